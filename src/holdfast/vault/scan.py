"""Backup from a walk: the trees as they stand on this machine's disk become a snapshot.

A scan is not an instant: files change while it runs. Each file is read so that its size and bytes agree (again, when
it changed meanwhile); what still changes after ``READ_ATTEMPTS_MAX`` is kept as it was read and named as a gap.

Mount points inside a tree are walked like directories. Sockets, fifos and devices are counted, not kept.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Final, NamedTuple

from blake3 import blake3

from holdfast.changes.change import PATH_BYTES_MAX, Meta
from holdfast.changes.exchange import EntryKind
from holdfast.trees.spec import Tree
from holdfast.trees.stat import Observed, Owners, observed, read_xattrs
from holdfast.vault.cut import pieces
from holdfast.vault.known import SETTLED_NS, Known, KnownDirectory, KnownEntry, unchanged
from holdfast.vault.record import DEPTH_MAX, FILE_BYTES_MAX, GAPS_NAMED_MAX, Entry, Gap, TreeRoot
from holdfast.vault.writer import Writer

READ_ATTEMPTS_MAX: Final = 3
LINK_BYTES: Final = 8

_DIRECTORY_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE_FLAGS: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
"""O_NONBLOCK: what was a file may have become a fifo meanwhile, whose opening would wait for a writer."""


class Counts:
    """What a scan saw, and did not see."""

    def __init__(self) -> None:
        self.files = 0
        self.bytes = 0
        self.files_read = 0
        """Files whose bytes were read; the others were known."""
        self.skipped = 0
        self.gaps: list[Gap] = []
        self.gaps_total = 0

    def gap(self, tree: str, path: bytes, reason: str) -> None:
        self.gaps_total += 1
        if len(self.gaps) < GAPS_NAMED_MAX:
            self.gaps.append(Gap(tree, path, reason))


class _Directory(NamedTuple):
    """An open directory of the walk."""

    fd: int
    path: bytes
    depth: int


class Scanner:
    """Walks trees into a :class:`Writer`. *progress* is called with the counts after each file."""

    def __init__(
        self,
        writer: Writer,
        known: Known,
        clock_ns: Callable[[], int],
        progress: Callable[[Counts], None] | None = None,
    ) -> None:
        self.counts = Counts()
        self._writer = writer
        self._known = known
        self._clock_ns = clock_ns
        self._progress = progress
        self._owners = Owners()

    def tree(self, tree: Tree) -> TreeRoot:
        """The tree as it stands. Raises OSError when the root itself cannot be read."""
        root = os.fsencode(tree.root)
        with _opened(root, None) as fd:
            status = os.fstat(fd)
            walk = _TreeWalk(self, tree, status.st_dev)
            content = walk.directory(_Directory(fd, b"", 0))
            return TreeRoot(tree.name, root, self.meta(_observed(status), read_xattrs(fd)), content)

    def meta(self, seen: Observed, xattrs: tuple[tuple[bytes, bytes], ...]) -> Meta:
        return self._owners.meta(seen, xattrs)

    def same_owner(self, meta: Meta, status: os.stat_result) -> bool:
        """The numbers did not change; the names behind them may have."""
        return meta.owner == self._owners.user(status.st_uid) and meta.group == self._owners.group(status.st_gid)

    @property
    def writer(self) -> Writer:
        return self._writer

    @property
    def known(self) -> Known:
        return self._known

    def settled_before_ns(self) -> int:
        return self._clock_ns() - SETTLED_NS

    def report(self) -> None:
        if self._progress is not None:
            self._progress(self.counts)


class _TreeWalk:
    """One tree's walk."""

    def __init__(self, scanner: Scanner, tree: Tree, device: int) -> None:
        self._scanner = scanner
        self._tree = tree
        self._device = device
        self._counts = scanner.counts

    def directory(self, here: _Directory) -> bytes:
        """The content (ids of the parts) of an open directory, all below it taken in."""
        before = self._scanner.known.directory(self._tree.name, here.path)
        known = {entry.entry.name: entry for entry in before.all()} if before else {}
        now: list[KnownEntry] = []
        reusable = True
        for name, status in self._listing(here):
            old = known.pop(name, None)
            new = self._look(here, name, status, old)
            if new is None:
                self._forget(here, old)
                reusable = False
                continue
            reusable = reusable and new is old
            now.append(new)
        for gone in known.values():
            self._forget(here, gone)
        if before is not None and reusable and not known:
            content = before.parts
        else:
            content = self._write_parts(here, now)
        self._scanner.report()
        return content

    def _write_parts(self, here: _Directory, now: list[KnownEntry]) -> bytes:
        row = KnownDirectory()
        for entry in now:
            row.put(entry)
        content = row.written(self._scanner.writer.add_part)
        self._scanner.known.keep(self._tree.name, here.path, row)
        return content

    def _forget(self, here: _Directory, old: KnownEntry | None) -> None:
        if old is not None and old.entry.kind is EntryKind.DIRECTORY:
            self._scanner.known.forget_below(self._tree.name, _below(here.path, old.entry.name))

    def _listing(self, here: _Directory) -> Iterator[tuple[bytes, os.stat_result]]:
        """Names and what they are, in order, without what is excluded."""
        try:
            with os.scandir(here.fd) as found:
                names = sorted(os.fsencode(entry.name) for entry in found)
        except OSError as error:
            self._gap(here.path, f"cannot be listed: {os.strerror(error.errno or 0)}")
            return
        for name in names:
            try:
                status = os.stat(name, dir_fd=here.fd, follow_symlinks=False)
            except FileNotFoundError:
                continue
            except OSError as error:
                self._gap(_below(here.path, name), os.strerror(error.errno or 0))
                continue
            directory = stat.S_ISDIR(status.st_mode)
            if self._tree.excluded_name(name, directory=directory):
                continue
            if not self._tree.decides_by_name and self._tree.excluded(_below(here.path, name), directory=directory):
                continue
            yield name, status

    def _look(self, here: _Directory, name: bytes, status: os.stat_result, old: KnownEntry | None) -> KnownEntry | None:
        """One name's entry; *old* itself when nothing changed; None for what is not kept (gaps are noted)."""
        path = _below(here.path, name)
        seen = observed(status)
        if seen is None:
            self._counts.skipped += 1
            return None
        if len(path) > PATH_BYTES_MAX:
            self._gap(path, "its path is too long")
            return None
        settled_before_ns = self._scanner.settled_before_ns()
        try:
            if stat.S_ISDIR(status.st_mode):
                return self._subdirectory(here, name, path, old)
            if old is not None and unchanged(old, status) and self._scanner.same_owner(old.entry.meta, status):
                self._count(old.entry)
                return old
            if stat.S_ISLNK(status.st_mode):
                entry = self._symlink(here, name, seen, status)
            else:
                entry, status = self._file(here, name, path)
        except FileNotFoundError:
            return None
        except OSError as error:
            self._gap(path, error.strerror or str(error))
            return None
        self._count(entry)
        trusted = status.st_ctime_ns < settled_before_ns
        return KnownEntry(status.st_ino, status.st_ctime_ns if trusted else 0, entry)

    def _count(self, entry: Entry) -> None:
        self._counts.files += entry.kind is EntryKind.FILE
        self._counts.bytes += entry.size
        self._scanner.report()

    def _gap(self, path: bytes, reason: str) -> None:
        self._counts.gap(self._tree.name, path, reason)

    def _subdirectory(self, here: _Directory, name: bytes, path: bytes, old: KnownEntry | None) -> KnownEntry | None:
        if here.depth >= DEPTH_MAX:
            self._gap(path, f"directories stand deeper below each other than {DEPTH_MAX}")
            return None
        with _opened(name, here.fd) as fd:
            content = self.directory(_Directory(fd, path, here.depth + 1))
            status = os.fstat(fd)
            meta = self._scanner.meta(_observed(status), read_xattrs(fd))
            entry = Entry(name, EntryKind.DIRECTORY, meta, 0, content)
        if old is not None and old.entry == entry:
            return old
        return KnownEntry(status.st_ino, status.st_ctime_ns, entry)

    def _symlink(self, here: _Directory, name: bytes, seen: Observed, status: os.stat_result) -> Entry:
        target = os.readlink(name, dir_fd=here.fd)
        xattrs = read_xattrs(b"/proc/self/fd/%d/" % here.fd + name)
        return Entry(name, EntryKind.SYMLINK, self._scanner.meta(seen, xattrs), 0, target, self._link(status))

    def _file(self, here: _Directory, name: bytes, path: bytes) -> tuple[Entry, os.stat_result]:
        """Read one file. Raises OSError."""
        fd = os.open(name, _FILE_FLAGS, dir_fd=here.fd)
        try:
            for attempt in range(READ_ATTEMPTS_MAX):
                before = os.fstat(fd)
                if not stat.S_ISREG(before.st_mode):
                    raise FileNotFoundError  # another thing has this name by now
                if before.st_size > FILE_BYTES_MAX:
                    raise OSError(errno.EFBIG, "larger than a vault can hold")
                xattrs = read_xattrs(fd)
                size, content = self._contents(fd)
                after = os.fstat(fd)
                if (after.st_mtime_ns, after.st_ctime_ns, after.st_size) == (
                    before.st_mtime_ns,
                    before.st_ctime_ns,
                    size,
                ):
                    break
                if attempt + 1 == READ_ATTEMPTS_MAX:
                    self._gap(path, "it changed while it was read")
        finally:
            os.close(fd)
        self._counts.files_read += 1
        meta = self._scanner.meta(_observed(before), xattrs)
        return Entry(name, EntryKind.FILE, meta, size, content, self._link(before)), before

    def _contents(self, fd: int) -> tuple[int, bytes]:
        """The file's bytes into the vault: how many, and the ids."""
        writer = self._scanner.writer
        ids = []
        size = 0
        for piece in pieces(partial(_read_whole, fd)):
            ids.append(writer.add(piece))
            size += len(piece)
            if size > FILE_BYTES_MAX:
                raise OSError(errno.EFBIG, "it grew larger than a vault can hold")
        return size, b"".join(ids)

    def _link(self, status: os.stat_result) -> bytes:
        """The same for the names of one file, b"" for a file with one."""
        if status.st_nlink < 2:
            return b""
        device = 0 if status.st_dev == self._device else status.st_dev
        return blake3(b"%d %d" % (device, status.st_ino)).digest(length=LINK_BYTES)


def _observed(status: os.stat_result) -> Observed:
    """For what is known to be a file or a directory."""
    seen = observed(status)
    assert seen is not None
    return seen


def _below(path: bytes, name: bytes) -> bytes:
    return path + b"/" + name if path else name


def _read_whole(fd: int, at: int, size: int) -> bytes:
    """*size* bytes at *at*, fewer only at the end of the file."""
    data = os.pread(fd, size, at)
    if not data or len(data) == size:
        return data
    rest = os.pread(fd, size - len(data), at + len(data))
    while rest:
        data += rest
        rest = os.pread(fd, size - len(data), at + len(data)) if len(data) < size else b""
    return data


@contextmanager
def _opened(name: bytes, directory_fd: int | None) -> Iterator[int]:
    fd = os.open(name, _DIRECTORY_FLAGS, dir_fd=directory_fd)
    try:
        yield fd
    finally:
        os.close(fd)


def scan_trees(scanner: Scanner, trees: Sequence[Tree]) -> tuple[TreeRoot, ...]:
    """All *trees*, one after another; one that cannot be opened at all is a gap with an empty path."""
    roots = []
    for tree in trees:
        try:
            roots.append(scanner.tree(tree))
        except OSError as error:
            scanner.counts.gap(tree.name, b"", f"{tree.root}: {os.strerror(error.errno or 0)}")
    return tuple(roots)
