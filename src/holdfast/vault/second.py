"""A second process that makes files in a restore: Python runs one thread at a time, and making files is Python's work.

The first directory with many directories in it (mostly that of the accounts) is shared: this process takes its
directories from the front, the second from the back, until they meet. Taking one is making it: ``mkdir`` succeeds once.
The second gets what it needs through a pipe (keys are on no command line and in no file) and the target as an open
directory; it tells what it has done through another pipe, and dies with its parent.

Files with several names whose first name both have made are two files then; :meth:`Second.finish` makes them one.

Only for a vault in a local folder without a limit of bandwidth, whose catalog is a file: another store is slower than
one process, and a catalog in memory would have to be made again.
"""

from __future__ import annotations

import os
import select
import stat
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import IO, Final

import msgspec
from msgspec import Struct

from holdfast.errors import HoldfastError
from holdfast.vault.backends.folder import FolderBackend
from holdfast.vault.faults import WrongKey
from holdfast.vault.patient import PatientBackend
from holdfast.vault.repository import Vault

SHARED_DIRECTORIES_MIN: Final = 8
"""With fewer the two would hardly share the work evenly."""
TOLD_EVERY_FILES: Final = 256


class Errand(Struct):
    """What the second process is to do. The file descriptors are inherited."""

    parent: int
    folder: str
    catalog: str
    vault: bytes
    secret: bytes
    identities: tuple[str, ...]
    root_fd: int
    shared_fd: int
    path: bytes
    """Of the shared directory."""
    content: bytes
    depth: int


class Told(Struct, omit_defaults=True):
    """What the second process says: how much it has done since it last spoke, and at its end all the rest."""

    files_made: int = 0
    bytes_made: int = 0
    ended: bool = False
    directories: int = 0
    """Of the shared directory, that were made here."""
    failures: list[tuple[bytes, str]] = []
    failures_total: int = 0
    links: list[tuple[bytes, list[bytes]]] = []
    """Of files with several names: the paths made here."""
    kind: str = ""
    """Of the error that ended it; empty: none did."""
    problem: str = ""
    hint: str = ""
    errno: int = 0
    """Of an error of the operating system that ended it (a full disk; all others are failures with a path)."""


def can_share(vault: Vault) -> bool:
    return _folder(vault) is not None and vault.catalog.path is not None


def _folder(vault: Vault) -> FolderBackend | None:
    backend = vault.backend.inner if isinstance(vault.backend, PatientBackend) else vault.backend
    return backend if isinstance(backend, FolderBackend) and not backend.limited else None


class Second:
    """The second process, seen from the first. A context manager: it does not outlive it."""

    def __init__(
        self,
        vault: Vault,
        root_fd: int,
        shared_fd: int,
        path: bytes,
        content: bytes,
        depth: int,
        told: Callable[[int, int], None],
    ) -> None:
        """*told* hears of files and bytes that were made."""
        folder = _folder(vault)
        assert folder is not None
        errand = Errand(
            os.getpid(),
            str(folder.root),
            str(vault.catalog.path),
            vault.codec.secrets.vault,
            vault.codec.secrets.secret,
            vault.readers.texts,
            root_fd,
            shared_fd,
            path,
            content,
            depth,
        )
        self._told = told
        self._unread = b""
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "holdfast.vault.second_main"],  # -P: nothing from where root happens to stand
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=(root_fd, shared_fd),
        )
        # It dies at once or reads to the end: then its answers tell what is wrong.
        with suppress(BrokenPipeError):
            _pipe(self._process.stdin).write(msgspec.msgpack.encode(errand))
        with suppress(BrokenPipeError):
            _pipe(self._process.stdin).close()
        self._ending: Told | None = None

    def __enter__(self) -> Second:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        _pipe(self._process.stdout).close()

    def listen(self) -> None:
        """Hear what it has said so far."""
        output = _pipe(self._process.stdout)
        while self._ending is None and select.select([output], [], [], 0)[0] and self._read(output):
            pass

    def _read(self, output: IO[bytes]) -> bool:
        said = os.read(output.fileno(), 65536)
        *lines, self._unread = (self._unread + said).split(b"\n")
        for line in lines:
            told = msgspec.json.decode(line, type=Told)
            self._told(told.files_made, told.bytes_made)
            if told.ended:
                self._ending = told
        return bool(said)

    def finish(self) -> Told:
        """Wait for its end, and what it says then.

        Raises what ended it: OSError (a full disk), WrongKey, HoldfastError.
        """
        output = _pipe(self._process.stdout)
        while self._ending is None:
            if not self._read(output) and self._ending is None:
                raise HoldfastError(
                    f"the second process of the restore ended with {self._process.wait()}",
                    hint="Remove the folder and repeat.",
                    retry=True,
                )
        if self._ending.errno:
            raise OSError(self._ending.errno, os.strerror(self._ending.errno))
        if self._ending.kind:
            kind = WrongKey if self._ending.kind == WrongKey.__name__ else HoldfastError
            raise kind(self._ending.problem, hint=self._ending.hint)
        return self._ending


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None
    return pipe


def relink(root_fd: int, first: bytes, others: list[bytes]) -> int:
    """Make *others* names of the file *first*; their directories keep their times. The bytes in it. Raises OSError."""
    for path in others:
        folder = os.path.dirname(path) or b"."
        before = os.stat(folder, dir_fd=root_fd, follow_symlinks=False)
        os.unlink(path, dir_fd=root_fd)
        os.link(first, path, src_dir_fd=root_fd, dst_dir_fd=root_fd, follow_symlinks=False)
        os.utime(folder, ns=(before.st_atime_ns, before.st_mtime_ns), dir_fd=root_fd, follow_symlinks=False)
    written = os.stat(first, dir_fd=root_fd, follow_symlinks=False)
    return written.st_size if stat.S_ISREG(written.st_mode) else 0
