"""Looking at what stands in a tree, through no symlink, and comparing it with what the index says.

Read only. Used by the audit of either side, so it knows rows and the filesystem, and nothing of logs or peers.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from enum import StrEnum
from typing import Final, NamedTuple

from holdfast.changes.digest import BLOCK_BYTES, DIGEST_BYTES, block_digest
from holdfast.trees.index import Node, NodeKind
from holdfast.trees.stat import Observed, observed, pack_xattrs, read_xattrs

READ_BYTES: Final = 16 * BLOCK_BYTES
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
"""NONBLOCK: a fifo that takes a file's place must not hang us."""


class What(StrEnum):
    """In what a thing differs. The words stand in reports and travel between machines."""

    MISSING = "missing"
    EXTRA = "extra"
    KIND = "kind"
    """A file stands where a directory should, and the like."""
    SIZE = "size"
    CONTENT = "content"
    TARGET = "target"
    MODE = "mode"
    OWNER = "owner"
    MTIME = "mtime"
    XATTRS = "xattrs"
    LINKS = "links"
    """Names that should be one file are several, or the other way round."""
    UNREADABLE = "unreadable"


class Trait(NamedTuple):
    """One difference of one thing."""

    what: What
    detail: str


class Signature(NamedTuple):
    """Equal at two looks: nothing happened to the thing between them. Of a directory only the inode counts: what is
    done in it is no change of it."""

    ino: int
    size: int
    mtime_ns: int
    ctime_ns: int


class Digest(NamedTuple):
    """The digests of what could be read, and how many bytes that was."""

    digests: bytes
    bytes: int


def open_directory(root: bytes, path: bytes) -> int | None:
    """A readable descriptor of the directory *path* below *root*; None when it is not there, or is no directory, or a
    symlink is in the way. Raises OSError else."""
    try:
        fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        for name in path.split(b"/") if path else ():
            above = fd
            try:
                fd = os.open(name, _DIRECTORY, dir_fd=above)
            finally:
                os.close(above)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return None
        raise
    return fd


def status_at(directory_fd: int | None, name: bytes) -> os.stat_result | None:
    """What *name* in an open directory is (the directory itself for ``b""``); None when nothing stands there."""
    if directory_fd is None:
        return None
    if not name:
        return os.fstat(directory_fd)
    try:
        return os.stat(name, dir_fd=directory_fd, follow_symlinks=False)
    except (FileNotFoundError, NotADirectoryError):
        return None


def signature(status: os.stat_result | None) -> Signature | None:
    if status is None:
        return None
    if stat.S_ISDIR(status.st_mode):
        return Signature(status.st_ino, 0, 0, 0)
    return Signature(status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def read_digests(fd: int, size_bytes: int, taken: Callable[[int], None]) -> Digest:
    """Block digests of the first *size_bytes* of an open file; no digests when it has not so many (any more).

    *taken* is told of bytes before they are read.
    """
    digests = bytearray()
    for at in range(0, size_bytes, READ_BYTES):
        wanted = min(READ_BYTES, size_bytes - at)
        taken(wanted)
        chunk = memoryview(os.pread(fd, wanted, at))
        if len(chunk) != wanted:
            return Digest(b"", at)
        for start in range(0, wanted, BLOCK_BYTES):
            digests += block_digest(chunk[start : start + BLOCK_BYTES])
    return Digest(bytes(digests), size_bytes)


def first_difference(row: bytes, seen: bytes) -> str:
    """Where two sequences of block digests part, in words."""
    for at in range(0, max(len(row), len(seen)), DIGEST_BYTES):
        if row[at : at + DIGEST_BYTES] != seen[at : at + DIGEST_BYTES]:
            return f"from byte {at // DIGEST_BYTES * BLOCK_BYTES} on"
    return "nowhere"


class Comparison:
    """Compares one thing with its row. *full*: contents and xattrs always; else xattrs only when the row's change time
    is not that of the file. *taken* is told of the bytes of contents before they are read (a rate limit waits there).
    """

    def __init__(self, *, full: bool, taken: Callable[[int], None]) -> None:
        self._full = full
        self._taken = taken
        self.bytes_read = 0

    def differences(
        self, row: Node, directory_fd: int | None, name: bytes, status: os.stat_result | None
    ) -> Iterator[Trait]:
        """In what the thing *name* (as *status* says) differs from *row*."""
        if status is None:
            yield Trait(What.MISSING, _KIND_WORDS[NodeKind(row.kind)])
            return
        seen = observed(status)
        if seen is None or seen.kind != row.kind:
            stands = "something else" if seen is None else f"a {_KIND_WORDS[seen.kind]}"
            yield Trait(What.KIND, f"{stands} stands where a {_KIND_WORDS[NodeKind(row.kind)]} should")
            return
        assert directory_fd is not None, "a thing was seen in no directory"
        yield from _stat_differences(row, seen)
        try:
            yield from self._inner_differences(row, seen, directory_fd, name)
        except FileNotFoundError:
            yield Trait(What.MISSING, "it went while it was read")
        except OSError as error:
            yield Trait(What.UNREADABLE, os.strerror(error.errno or 0))

    def _inner_differences(self, row: Node, seen: Observed, directory_fd: int, name: bytes) -> Iterator[Trait]:
        if seen.kind is NodeKind.SYMLINK:
            target = os.readlink(name, dir_fd=directory_fd)
            if target != row.content:
                yield Trait(What.TARGET, f"to {os.fsdecode(target)[:200]!r}")
        if self._full or row.ctime_ns != seen.ctime_ns:
            yield from self._open_differences(row, seen, directory_fd, name)

    def _open_differences(self, row: Node, seen: Observed, directory_fd: int, name: bytes) -> Iterator[Trait]:
        if seen.kind is NodeKind.SYMLINK:
            xattrs = read_xattrs(b"/proc/self/fd/%d/%s" % (directory_fd, name))
        else:
            fd = os.open(name or b".", _DIRECTORY if seen.kind is NodeKind.DIRECTORY else _FILE, dir_fd=directory_fd)
            try:
                xattrs = read_xattrs(fd)
                if self._full and seen.kind is NodeKind.FILE and seen.size == row.size:
                    found = read_digests(fd, row.size, self._taken)
                    self.bytes_read += found.bytes
                    if found.digests != row.content:
                        yield Trait(What.CONTENT, first_difference(row.content, found.digests))
            finally:
                os.close(fd)
        if pack_xattrs(xattrs) != row.xattrs:
            yield Trait(What.XATTRS, ", ".join(os.fsdecode(key) for key, _ in xattrs)[:200])


_KIND_WORDS: Final = {NodeKind.DIRECTORY: "directory", NodeKind.FILE: "file", NodeKind.SYMLINK: "symlink"}


def _stat_differences(row: Node, seen: Observed) -> Iterator[Trait]:
    if seen.kind is NodeKind.FILE and seen.size != row.size:
        yield Trait(What.SIZE, f"{seen.size} bytes, should be {row.size}")
    if seen.mode != row.mode and seen.kind is not NodeKind.SYMLINK:
        yield Trait(What.MODE, f"{seen.mode:04o}, should be {row.mode:04o}")
    if (seen.uid, seen.gid) != (row.uid, row.gid):
        yield Trait(What.OWNER, f"{seen.uid}:{seen.gid}, should be {row.uid}:{row.gid}")
    if seen.mtime_ns != row.mtime_ns and seen.kind is not NodeKind.DIRECTORY:
        yield Trait(What.MTIME, f"{seen.mtime_ns} ns, should be {row.mtime_ns} ns")
