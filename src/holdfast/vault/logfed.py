"""Backup from the log: a snapshot of what the tree index knows, without walking the trees.

The index, read at one position of the log, says exactly what stood where: names, metadata, and the digests of every
file's blocks. What is not new since the last snapshot is taken over from it (``known``); only where the log's records
touched something is looked at all (``touched``).

Files that are new are read from the disk, where they may have changed again meanwhile. So their bytes are compared
with the index's digests before they count. What does not agree is read again beside an index that stands later; the
names are then those of that later position, too. So a snapshot is exact at its position, whatever went on while it was
made.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Final, NamedTuple

from blake3 import blake3

from holdfast.changes.change import Meta
from holdfast.changes.digest import BLOCK_BYTES, DIGEST_BYTES, block_digest
from holdfast.changes.exchange import EntryKind
from holdfast.changes.names import Position
from holdfast.errors import HoldfastError
from holdfast.trees.index import IndexReader, Node, NodeKind
from holdfast.trees.spec import Tree
from holdfast.trees.stat import Owners, has_handles, unpack_xattrs
from holdfast.vault.backup import GRACE_SECONDS, BackupResult, Clocks, check_clock, check_duration, put_snapshot
from holdfast.vault.cut import pieces
from holdfast.vault.known import SETTLED_NS, Known, KnownDirectory, KnownEntry
from holdfast.vault.record import DEPTH_MAX, GAPS_NAMED_MAX, Entry, Gap, Snapshot, TreeRoot
from holdfast.vault.repository import Vault
from holdfast.vault.touched import Touched, TouchedDirectory
from holdfast.vault.writer import Writer

ROUNDS_MAX: Final = 12
"""A file written to ten times a second lies still for long enough in one of them."""
REST_ROUND: Final = 3
"""From this one on a standby stops applying during a round: few files are left, it takes milliseconds."""
PAUSE_SECONDS: Final = (0.01, 0.25)
"""Between two rounds: doubled from the first to the last."""
LINK_BYTES: Final = 8
HELD_BYTES_MAX: Final = 16 * 1024 * 1024
"""Files up to this size are compared and stored from memory; longer ones are read twice."""
HELD_ROWS_BYTES_MAX: Final = 32 * 1024 * 1024
"""Of what is known, read three times: a folder's row is some 300 bytes a message."""

_FLAGS: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Source(NamedTuple):
    """What a snapshot is made from.

    *read_index*: gives a reader of the tree index at a whole instant; everything a file may hold by now that the log
    does not have yet must be in the log by the next call. *reach*: returns when ``touched`` knows every record up to
    that position, with the time it was captured at (0: not known): by this clock a snapshot is never earlier.
    """

    trees: Sequence[Tree]
    read_index: Callable[[], IndexReader]
    reach: Callable[[Position], int]
    touched: Touched
    rest: Callable[[], AbstractContextManager[None]] = nullcontext
    """Inside, the trees stand still, where that is possible: for files that change all the time."""


def snapshot_from_log(
    vault: Vault,
    source: Source,
    machine: str,
    *,
    clocks: Clocks | None = None,
    grace_seconds: float = GRACE_SECONDS,
    pause: Callable[[float], None] = time.sleep,
) -> BackupResult:
    """Add a snapshot at the position that the index has now, or a little later.

    ``source.touched`` is empty afterwards. After an error it is not, and the vault is as it was. What could not be
    read, or does not hold what the log says, is named in the snapshot's gaps. Raises as ``backup_trees``, and what the
    source raises.
    """
    clocks = clocks or Clocks()
    began_seconds = clocks.monotonic_seconds()
    vault.sync()
    check_clock(vault, clocks.wall_ns())
    with vault.catalog.transaction(), Writer(vault) as writer:
        backup = _Backup(vault, source, writer, clocks)
        snapshot = backup.make(machine, pause)
        writer.flush()
        check_duration(clocks.monotonic_seconds() - began_seconds, grace_seconds)
        name = put_snapshot(vault, snapshot)
        backup.known.stands_at(None if backup.unsettled else name.position)  # gaps are to be looked at again
        vault.catalog.set_number("known_losses", vault.catalog.losses)
    source.touched.clear()
    for wanted in backup.unsettled:
        source.touched.look(wanted.tree, wanted.path)
    return BackupResult(name, snapshot, backup.files_read, writer.added_bytes, writer.written_bytes)


class _Wanted(NamedTuple):
    """A file whose bytes the vault may not have."""

    tree: str
    path: bytes
    node: Node
    digest: bytes


class _Backup:
    def __init__(self, vault: Vault, source: Source, writer: Writer, clocks: Clocks) -> None:
        self.known = Known(vault.catalog, HELD_ROWS_BYTES_MAX)
        self.files_read = 0
        self.unsettled: list[_Wanted] = []
        """Files that did not hold what the index tells."""
        self._source = source
        self._writer = writer
        self._clocks = clocks
        self._owners = Owners()
        self._fresh = _Fresh(vault)
        self._roots = {str(tree.name): os.fsencode(tree.root) for tree in source.trees}

    def make(self, machine: str, pause: Callable[[float], None]) -> Snapshot:
        wait = PAUSE_SECONDS[0]
        for number in range(ROUNDS_MAX):
            with self._source.rest() if number >= REST_ROUND else nullcontext():
                taken_at_ns = self._clocks.wall_ns()
                reader = self._source.read_index()
                try:
                    self._hurry(reader)
                    taken_at_ns = max(taken_at_ns, self._source.reach(reader.position))
                    self.unsettled = [wanted for wanted in self._missing(reader) if not self._read(wanted)]
                    if not self.unsettled or number == ROUNDS_MAX - 1:
                        return self._snapshot(reader, machine, taken_at_ns)
                finally:
                    reader.close()
            pause(wait)
            wait = min(wait * 2, PAUSE_SECONDS[1])
        raise AssertionError("the last round returns")

    def _hurry(self, reader: IndexReader) -> None:
        """What changed too quickly in the last round comes first in this one."""
        for wanted in self.unsettled:
            node = reader.at(wanted.tree, wanted.path)
            if node is not None and node.kind == NodeKind.FILE:
                self._read(wanted._replace(node=node, digest=file_digest(node)))

    def _snapshot(self, reader: IndexReader, machine: str, taken_at_ns: int) -> Snapshot:
        gaps = [Gap(wanted.tree, wanted.path, self._reason(wanted)) for wanted in self.unsettled]
        gaps += [
            Gap(tree, b"", "this machine was not told where it stands")
            for tree in map(str, reader.roots())
            if tree not in self._roots
        ]
        touched = self._source.touched
        if not touched.everything:
            for tree in touched.trees:
                moves = touched.moves(tree)
                if moves:
                    self.known.move(tree, [(move.path, move.origin) for move in moves])
        look = _Look(reader, self.known, touched, self._owners, self._fresh, moved=True)
        settled_before_ns = taken_at_ns - SETTLED_NS
        roots = tuple(self._tree(look, tree, settled_before_ns) for tree in self._trees(reader))
        totals = reader.totals()
        return Snapshot(
            taken_at_ns,
            machine,
            roots,
            totals.files,
            totals.bytes,
            gaps=tuple(gaps[:GAPS_NAMED_MAX]),
            gaps_total=len(gaps),
            incarnation=reader.position.incarnation,
            sequence=int(reader.position.sequence),
        )

    def _trees(self, reader: IndexReader) -> list[str]:
        return [name for name in map(str, reader.roots()) if name in self._roots]

    # -- which files ---------------------------------------------------------------------------------------------------

    def _missing(self, reader: IndexReader) -> Iterator[_Wanted]:
        """Files whose bytes nothing known has."""
        touched = self._source.touched
        if not touched.everything:
            self._fresh.remember(self.known, touched)
        look = _Look(reader, self.known, touched, self._owners, self._fresh, moved=False)
        for tree in self._trees(reader):
            yield from look.wanted(tree)

    def _read(self, wanted: _Wanted) -> bool:
        """Store the file's bytes if they are those the index tells; whether they were."""
        if self._fresh.ids(wanted.digest) is not None:
            return True
        try:
            ids = self._stored(wanted)
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
                raise
            return False
        if ids is None:
            return False
        self._fresh.add(wanted.digest, ids)
        return True

    def _stored(self, wanted: _Wanted) -> bytes | None:
        path, node = self._roots[wanted.tree] + b"/" + wanted.path, wanted.node
        fd = os.open(path, _FLAGS)
        try:
            before = os.fstat(fd)
            if not stat.S_ISREG(before.st_mode) or before.st_size != node.size:
                return None
            if node.size <= HELD_BYTES_MAX:
                data = _whole(fd, node.size)
                if len(data) != node.size or not _agrees(partial(_sliced, data), node):
                    return None
                read = partial(_sliced, data)
            else:
                read = partial(_read_at, fd)
                if not _agrees(read, node):
                    return None
            self.files_read += 1
            ids = b"".join(self._writer.add(piece) for piece in pieces(read))
            after = os.fstat(fd)
        finally:
            os.close(fd)
        quiet = (before.st_mtime_ns, before.st_ctime_ns, before.st_size) == (
            after.st_mtime_ns,
            after.st_ctime_ns,
            after.st_size,
        )
        return ids if quiet or node.size <= HELD_BYTES_MAX else None

    def _reason(self, wanted: _Wanted) -> str:
        """Why the file is a gap; what can be read of it is stored nevertheless."""
        path = self._roots[wanted.tree] + b"/" + wanted.path
        try:
            fd = os.open(path, _FLAGS)
            try:
                if not stat.S_ISREG(os.fstat(fd).st_mode):
                    return "it is gone"
                held = [(self._writer.add(piece), len(piece)) for piece in pieces(partial(_read_at, fd))]
            finally:
                os.close(fd)
        except OSError as error:
            return os.strerror(error.errno or 0)
        self._fresh.add(wanted.digest, b"".join(content for content, _ in held), sum(length for _, length in held))
        return "its bytes are not those that the log tells: it changes all the time, or it is damaged here"

    # -- the trees -----------------------------------------------------------------------------------------------------

    def _tree(self, look: _Look, tree: str, settled_before_ns: int) -> TreeRoot:
        node = look.root(tree)
        content = _Build(look, self._writer, settled_before_ns).directory(tree, node.id, look.top(tree), 0)
        return TreeRoot(tree, self._roots[tree], look.meta(node), content)


class _Fresh:
    """Contents by the digest of the file they make up: of files read now, and of those that only got another name."""

    def __init__(self, vault: Vault) -> None:
        self._db = vault.catalog.db
        self._db.execute("DROP TABLE IF EXISTS temp.fresh")
        self._db.execute("CREATE TEMP TABLE fresh (digest BLOB PRIMARY KEY, ids BLOB, size INTEGER) WITHOUT ROWID")

    def add(self, digest: bytes, ids: bytes, size: int | None = None) -> None:
        """*size*: another one than the index tells."""
        self._db.execute("INSERT OR REPLACE INTO temp.fresh VALUES (?, ?, ?)", (digest, ids, size))

    def ids(self, digest: bytes) -> tuple[bytes, int | None] | None:
        """The ids, and the size where it is another one than the index tells."""
        return self._db.execute("SELECT ids, size FROM temp.fresh WHERE digest = ?", (digest,)).fetchone()  # type: ignore[return-value, unused-ignore]

    def remember(self, known: Known, touched: Touched) -> None:
        """What touched names held at the last snapshot: it may stand elsewhere now."""
        for tree in touched.trees:
            for _, directory in touched.directories(tree):
                row = known.directory(tree, directory.origin) if directory.origin is not None else None
                if row is None:
                    continue
                for name in directory.names:
                    entry = row.entry(name)
                    if entry is not None and entry.digest:
                        self.add(entry.digest, entry.entry.content)


class _Place(NamedTuple):
    """A directory: its path now, what was touched in it (None: nothing), and the path its row is known by, if any."""

    path: bytes
    touched: TouchedDirectory | None
    known: bytes | None


class _Look:
    """Compares the index with what is known. *moved*: the rows of moved directories stand at their paths of now."""

    def __init__(
        self, reader: IndexReader, known: Known, touched: Touched, owners: Owners, fresh: _Fresh, *, moved: bool
    ) -> None:
        self.reader = reader
        self.known = known
        self.fresh = fresh
        self._touched = touched
        self._owners = owners
        self._moved = moved
        self._linked = reader.several_names() if touched.everything else None

    def root(self, tree: str) -> Node:
        node = self.reader.at(tree, b"")
        assert node is not None, "a root of the index"
        return node

    def top(self, tree: str) -> _Place:
        return _Place(b"", self._touched.trees.get(tree), b"")

    def meta(self, node: Node) -> Meta:
        owners = self._owners
        xattrs = unpack_xattrs(node.xattrs)
        return Meta(node.mode, owners.user(node.uid), owners.group(node.gid), node.mtime_ns, xattrs)

    def link(self, node: Node) -> bytes:
        """The same for the names of one file, b"" for a file with one. Handles do not come again, inode numbers do."""
        several = len(self.reader.names(node.id)) > 1 if self._linked is None else node.id in self._linked
        if not several:
            return b""
        handle = node.handle if node.handle is not None and has_handles(node.handle) else b"%d" % node.ino
        return blake3(b"link " + handle).digest(length=LINK_BYTES)

    def row(self, tree: str, place: _Place) -> KnownDirectory | None:
        return None if place.known is None else self.known.directory(tree, place.known)

    def untouched(self, place: _Place) -> bool:
        """Whether its row, if there is one, is still true of all below."""
        return place.touched is None and not self._touched.everything

    def names(self, directory: int, place: _Place, row: KnownDirectory | None) -> Iterator[tuple[bytes, Node | None]]:
        """What to look at in a directory, and what the index has there."""
        if row is None or self._touched.everything or place.touched is None:
            children = self.reader.children(directory)
            yield from children.items()
            if row is not None:
                yield from ((name, None) for name in row.names if name not in children)
            return
        for name in place.touched.names | place.touched.below.keys():
            yield name, self.reader.child(directory, name)

    def below(self, place: _Place, name: bytes, node: Node, old: KnownEntry | None) -> _Place:
        path = place.path + b"/" + name if place.path else name
        if self._touched.everything:
            return _Place(path, None, path)
        if place.touched is None:  # a directory not known is listed whole
            return _Place(path, None, None)
        touched = place.touched.below.get(name)
        if touched is None and (old is None or old.ino != node.ino):
            return _Place(path, None, None)
        origin = place.touched.origin_of(name)
        return _Place(path, touched, path if self._moved and origin is not None else origin)

    def held(self, node: Node, old: KnownEntry | None) -> bytes | None:
        """The ids of a file's contents, when *old* is the same bytes."""
        if old is None or old.entry.kind is not EntryKind.FILE or old.entry.size != node.size:
            return None
        if old.digest:
            return old.entry.content if old.digest == file_digest(node) else None
        seen = old.ctime_ns and (old.ino, old.ctime_ns, old.entry.meta.mtime_ns) == node_stamp(node)
        return old.entry.content if seen else None

    def wanted(self, tree: str) -> Iterator[_Wanted]:
        """Files whose bytes are not known from their own row."""
        pending = [(self.root(tree).id, self.top(tree))]
        while pending:
            directory, place = pending.pop()
            row = self.row(tree, place)
            if row is not None and self.untouched(place):
                continue
            for name, node in self.names(directory, place, row):
                if node is None:
                    continue
                old = row.entry(name) if row is not None else None
                if node.kind == NodeKind.DIRECTORY:
                    pending.append((node.id, self.below(place, name, node, old)))
                elif node.kind == NodeKind.FILE and self.held(node, old) is None:
                    path = place.path + b"/" + name if place.path else name
                    yield _Wanted(tree, path, node, file_digest(node))


class _Build:
    """Writes the parts of directories that are different."""

    def __init__(self, look: _Look, writer: Writer, settled_before_ns: int) -> None:
        self._look = look
        self._writer = writer
        self._settled_before_ns = settled_before_ns

    def directory(self, tree: str, directory: int, place: _Place, depth: int) -> bytes:
        if depth > DEPTH_MAX:
            raise HoldfastError(f"tree {tree}: directories stand deeper below each other than {DEPTH_MAX}")
        look = self._look
        row = look.row(tree, place)
        if row is not None and look.untouched(place):
            return row.parts
        changed: dict[bytes, KnownEntry | None] = {}
        for name, node in look.names(directory, place, row):
            old = row.entry(name) if row is not None else None
            new = None if node is None else self._entry(tree, place, name, node, old, depth)
            if new is old:
                continue
            changed[name] = new
            if old is not None and (new is None or old.entry.kind is not new.entry.kind):
                self._forget(tree, place, old)
        if row is not None and not changed:
            return row.parts
        row = KnownDirectory() if row is None else row
        for name in sorted(changed):
            new = changed[name]
            if new is None:
                row.remove(name)
            else:
                row.put(new)
        content = row.written(self._writer.add_part)
        look.known.keep(tree, place.path, row)
        return content

    def _forget(self, tree: str, place: _Place, old: KnownEntry) -> None:
        if old.entry.kind is EntryKind.DIRECTORY:
            path = place.path + b"/" + old.entry.name if place.path else old.entry.name
            self._look.known.forget_below(tree, path)

    def _entry(
        self, tree: str, place: _Place, name: bytes, node: Node, old: KnownEntry | None, depth: int
    ) -> KnownEntry:
        look = self._look
        meta, digest = look.meta(node), b""
        if node.kind == NodeKind.DIRECTORY:
            content = self.directory(tree, node.id, look.below(place, name, node, old), depth + 1)
            entry = Entry(name, EntryKind.DIRECTORY, meta, 0, content)
        elif node.kind == NodeKind.SYMLINK:
            entry = Entry(name, EntryKind.SYMLINK, meta, 0, node.content, look.link(node))
        else:
            digest, size = file_digest(node), node.size
            ids = look.held(node, old)
            if ids is None:
                ids, other_size = look.fresh.ids(digest) or (b"", 0)
                if other_size is not None:
                    size, digest = other_size, b""
            entry = Entry(name, EntryKind.FILE, meta, size, ids, look.link(node))
        if old is not None and old.entry == entry and old.digest == digest and old.ino == node.ino:
            return old
        trusted = node.ctime_ns and node.ctime_ns < self._settled_before_ns and (digest or not node.size)
        return KnownEntry(node.ino, node.ctime_ns if trusted else 0, entry, digest)


def file_digest(node: Node) -> bytes:
    """Equal for files of equal bytes, as far as the index knows them."""
    return blake3(b"%d " % node.size + node.content).digest(length=DIGEST_BYTES)


def node_stamp(node: Node) -> tuple[int, int, int]:
    return node.ino, node.ctime_ns, node.mtime_ns


def _agrees(read: Callable[[int, int], bytes], node: Node) -> bool:
    """Whether the file's blocks have the digests that the index tells."""
    if len(node.content) != DIGEST_BYTES * -(-node.size // BLOCK_BYTES):
        return False
    for number, at in enumerate(range(0, node.size, BLOCK_BYTES)):
        block = read(at, min(BLOCK_BYTES, node.size - at))
        if block_digest(block) != node.content[number * DIGEST_BYTES : (number + 1) * DIGEST_BYTES]:
            return False
    return True


def _sliced(data: bytes, at: int, length: int) -> bytes:
    return data[at : at + length]


def _whole(fd: int, size: int) -> bytes:
    """One byte more than *size* when there is one."""
    return _read_at(fd, 0, size + 1)


def _read_at(fd: int, at: int, length: int) -> bytes:
    """*length* bytes, fewer only at the end of the file."""
    data = os.pread(fd, length, at)
    if not data or len(data) == length:
        return data
    parts = [data]
    at, length = at + len(data), length - len(data)
    while length and (data := os.pread(fd, length, at)):
        parts.append(data)
        at, length = at + len(data), length - len(data)
    return b"".join(parts)
