"""A store in a local folder: a disk, a mounted NAS.

An object is a file of its name. It is written beside, in ``.tmp``, synced, and linked to its name, which fails when the
name is taken; then the folder is synced. So an object is there whole or not at all, and two writers cannot replace each
other's. Filesystems without hard links (FAT, some network ones) get a rename after a look: there, of two programs that
make a vault at one place in the same moment, one loses.

What root writes is given to whom the folder belongs: a prune by root, where an SFTP account's vault lies, must not lock
that account out.

Every call opens the folder anew, looks for ``vault.json`` in it, and works below what it has opened: when a disk is
unmounted, or another is mounted in its place, nothing is written into the bare mount point and nothing is taken for
deleted. Between calls nothing is held open, so the disk can be unmounted.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, NoReturn

from holdfast.vault.pace import UNLIMITED, Pace
from holdfast.vault.port import (
    BackendFull,
    BackendRefused,
    BackendUnavailable,
    Found,
    ObjectExists,
    ObjectMissing,
    check_name,
    is_name,
)

TEMPORARY_FOLDER: Final = ".tmp"
TEMPORARY_SECONDS_MAX: Final = 24 * 3600.0
"""Older ones were left by a writer that was killed; no put takes a day."""
VAULT_NAME: Final = "vault.json"
READ_BYTES: Final = 8 * 1024 * 1024
"""One read(2): cut so that a signal or a network filesystem's limit costs little."""

_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_REFUSED: Final = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})
_ABSENT: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENXIO})
_NO_LINKS: Final = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})


class FolderBackend:
    """Objects below *root*, an absolute path.

    With *create* the folder is made when it is missing, and may be written to before it holds a vault; without, a
    folder without ``vault.json`` is taken for an unmounted disk.
    """

    def __init__(self, root: Path, *, create: bool = False, pace: Pace = UNLIMITED) -> None:
        self._root = root
        self._pace = pace
        self._may_be_new = create
        self._vault_seen: tuple[tuple[int, int, int, int], bytes] | None = None
        """Which file ``vault.json`` was, and what stood in it."""
        self._swept = False
        if create:
            self._make_root()

    @property
    def root(self) -> Path:
        return self._root

    @property
    def limited(self) -> bool:
        """Whether its bandwidth is."""
        return bool(self._pace)

    def put(self, name: str, data: bytes) -> None:
        check_name(name)
        folder, _, last = name.rpartition("/")
        with (
            self._named(f"cannot write {name}"),
            self._opened(writing=True) as root,
            self._folder(root, folder, make=True) as fd,
        ):
            if not self._same(fd, last, name, data):
                self._write(root, fd, last, name, data)
            os.fsync(fd)
        if name == VAULT_NAME:
            self._may_be_new = False

    def get(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        check_name(name)
        with self._named(f"cannot read {name}"), self._opened() as root:
            try:
                fd = os.open(name, _READ, dir_fd=root)
            except OSError as error:
                if error.errno in _ABSENT:
                    self._missing(name)
                raise
            try:
                data = _read(fd, start, length)
            except IsADirectoryError:
                self._missing(name)
            finally:
                os.close(fd)
        self._pace.spend(len(data))
        return data

    def size(self, name: str) -> int | None:
        check_name(name)
        with self._named(f"cannot look at {name}"), self._opened() as root:
            status = _status(root, name)
            return status.st_size if status is not None and stat.S_ISREG(status.st_mode) else None

    def list(self, prefix: str) -> Iterator[Found]:
        with self._named("cannot list the folder"), self._opened() as root:
            found: list[Found] = []
            _collect(root, "", prefix, found)
        return iter(found)

    def delete(self, name: str) -> None:
        check_name(name)
        folder, _, last = name.rpartition("/")
        with self._named(f"cannot delete {name}"), self._opened(writing=True) as root:
            try:
                with self._folder(root, folder, make=False) as fd:
                    os.unlink(last, dir_fd=fd)
                    os.fsync(fd)
            except FileNotFoundError:
                return

    def close(self) -> None:
        """Nothing is held."""

    # -- the folder itself -------------------------------------------------------------------------------------------

    def _make_root(self) -> None:
        with self._named("cannot make it"):
            missing = [self._root, *self._root.parents]
            missing = missing[: next((at for at, path in enumerate(missing) if path.is_dir()), len(missing))]
            for path in reversed(missing):
                with suppress(FileExistsError):
                    path.mkdir(mode=0o700)
                _sync(path.parent)

    @contextmanager
    def _opened(self, *, writing: bool = False) -> Iterator[int]:
        """The folder, looked at: it is the one this began with."""
        try:
            root = os.open(self._root, _FOLDER)
        except FileNotFoundError:
            hint = "Look whether its filesystem is mounted. A new vault is made with `holdfast vault init`."
            raise BackendUnavailable(f"{self._root} is not there", hint=hint) from None
        try:
            self._check_vault(root, writing)
            yield root
        finally:
            os.close(root)

    def _check_vault(self, root: int, writing: bool) -> None:
        status = _status(root, VAULT_NAME)
        if status is None:
            if self._vault_seen is not None or (writing and not self._may_be_new):
                hint = "Look whether its filesystem is mounted; nothing was written into the bare mount point."
                raise BackendUnavailable(f"{self._root} holds no vault", hint=hint)
            return
        which = status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size
        if self._vault_seen is not None and self._vault_seen[0] == which:
            return
        fd = os.open(VAULT_NAME, _READ, dir_fd=root)
        try:
            content = _read(fd, 0, None)
        finally:
            os.close(fd)
        if self._vault_seen is not None and self._vault_seen[1] != content:
            hint = "Look which disk is mounted there; run the command again for the one that is now."
            raise BackendUnavailable(f"{self._root} holds another vault than when this began", hint=hint)
        self._vault_seen = which, content

    @contextmanager
    def _folder(self, root: int, folder: str, *, make: bool) -> Iterator[int]:
        """The folder of an object, open; each one made is synced into its own."""
        fd = os.dup(root)
        try:
            for component in folder.split("/") if folder else ():
                if make:
                    with suppress(FileExistsError):
                        os.mkdir(component, 0o700, dir_fd=fd)
                        _give(component, fd, root)
                        os.fsync(fd)
                below = os.open(component, _FOLDER, dir_fd=fd)
                os.close(fd)
                fd = below
            yield fd
        finally:
            os.close(fd)

    # -- one object --------------------------------------------------------------------------------------------------

    def _write(self, root: int, folder: int, last: str, name: str, data: bytes) -> None:
        with suppress(FileExistsError):
            os.mkdir(TEMPORARY_FOLDER, 0o700, dir_fd=root)
            _give(TEMPORARY_FOLDER, root, root)
        temporaries = os.open(TEMPORARY_FOLDER, _FOLDER, dir_fd=root)
        temporary = secrets.token_hex(12)
        try:
            try:
                now_seconds = _write_synced(temporaries, temporary, self._pace.pieces(data))
                _give(temporary, temporaries, root)
                self._sweep(temporaries, now_seconds)
                linked = _linked(temporaries, temporary, folder, last)
                if not linked and not self._same(folder, last, name, data):
                    raise BackendUnavailable(f"{name} was there and is not any more")
            finally:
                with suppress(OSError):  # it is gone after a rename; else the next writer sweeps it
                    os.unlink(temporary, dir_fd=temporaries)
        finally:
            os.close(temporaries)

    def _same(self, folder: int, last: str, name: str, data: bytes) -> bool:
        """Whether the object is there; raises ObjectExists when it is another."""
        try:
            fd = os.open(last, _READ, dir_fd=folder)
        except FileNotFoundError:
            return False
        try:
            if os.fstat(fd).st_size != len(data) or _read(fd, 0, None) != data:
                hint = "It is not replaced. `holdfast vault verify` tells whether it is damaged."
                raise ObjectExists(f"{self._root}/{name} exists with other content", hint=hint)
            os.fsync(fd)  # its writer may have been killed before its own
            return True
        finally:
            os.close(fd)

    def _sweep(self, temporaries: int, now_seconds: float) -> None:
        """Once: files that killed writers left. Both times are the store's."""
        if self._swept:
            return
        self._swept = True
        for leftover in os.listdir(temporaries):
            status = _status(temporaries, leftover)
            if status is not None and now_seconds - status.st_mtime > TEMPORARY_SECONDS_MAX:
                with suppress(OSError):
                    os.unlink(leftover, dir_fd=temporaries)

    def _missing(self, name: str) -> NoReturn:
        raise ObjectMissing(f"object {name} is missing", hint="`holdfast vault verify` names what it held.") from None

    @contextmanager
    def _named(self, what: str) -> Iterator[None]:
        """Errors of the system as those of the port."""
        try:
            yield
        except OSError as error:
            reason = f"{self._root}: {what}: {os.strerror(error.errno) if error.errno else error}"
            if error.errno in _FULL:
                raise BackendFull(reason, hint="Free space or quota there, then repeat the command.") from error
            if error.errno in _REFUSED:
                hint = "Give this user the right to write there, or mount it writable."
                raise BackendRefused(reason, hint=hint) from error
            hint = "Look at that disk or mount (dmesg), then repeat the command: it goes on where it stopped."
            raise BackendUnavailable(reason, hint=hint) from error


def _read(fd: int, start: int, length: int | None) -> bytes:
    if length is None:
        length = max(os.fstat(fd).st_size - start, 0)
    pieces: list[bytes] = []
    while length > 0 and (piece := os.pread(fd, min(length, READ_BYTES), start)):
        pieces.append(piece)
        start += len(piece)
        length -= len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _write_synced(folder: int, name: str, pieces: Iterable[memoryview]) -> float:
    """A new file, on disk; returns the store's time, seconds since 1970."""
    fd = os.open(name, _NEW, 0o400, dir_fd=folder)
    try:
        for piece in pieces:
            rest = piece
            while rest:
                rest = rest[os.write(fd, rest) :]
        os.fsync(fd)
        return os.fstat(fd).st_mtime
    finally:
        os.close(fd)


def _give(name: str, folder: int, root: int) -> None:
    """What root has made in *folder* goes to the owner of *root*, where that is another."""
    owner = os.fstat(root)
    if os.geteuid() == 0 and owner.st_uid != 0:
        os.chown(name, owner.st_uid, owner.st_gid, dir_fd=folder, follow_symlinks=False)


def _linked(temporaries: int, temporary: str, folder: int, last: str) -> bool:
    """Give the file its name; False when it is taken. An NFS client that repeats a request hears "exists" of itself:
    the caller compares."""
    try:
        os.link(temporary, last, src_dir_fd=temporaries, dst_dir_fd=folder, follow_symlinks=False)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if _status(folder, last) is not None:
            return False
        os.rename(temporary, last, src_dir_fd=temporaries, dst_dir_fd=folder)
    return True


def _status(folder: int, name: str) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=folder, follow_symlinks=False)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _collect(folder: int, path: str, prefix: str, found: list[Found]) -> None:
    """Objects in and below an open folder whose names begin with *prefix*."""
    with os.scandir(folder) as entries:
        for entry in entries:
            name = path + entry.name
            if entry.name.startswith(".") or entry.is_symlink():
                continue
            try:
                if entry.is_dir(follow_symlinks=False):
                    below = name + "/"
                    if below.startswith(prefix) or prefix.startswith(below):
                        _collect_below(folder, entry.name, below, prefix, found)
                elif name.startswith(prefix) and is_name(name):
                    status = entry.stat(follow_symlinks=False)
                    found.append(Found(name, status.st_size, status.st_mtime))
            except FileNotFoundError:
                continue  # deleted meanwhile


def _collect_below(folder: int, name: str, path: str, prefix: str, found: list[Found]) -> None:
    fd = os.open(name, _FOLDER, dir_fd=folder)
    try:
        _collect(fd, path, prefix, found)
    finally:
        os.close(fd)


def _sync(folder: Path) -> None:
    fd = os.open(folder, _FOLDER)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
