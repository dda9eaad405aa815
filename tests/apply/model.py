"""A tree in memory, the changes that make it, and frames of them: what an applied tree is compared with.

``Op`` values are small and arbitrary (hypothesis makes them); :class:`Model` reads each as an operation that is
possible at that moment, carries it out on itself, and says which changes a watcher would log.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

from holdfast.changes.change import (
    Change,
    Extent,
    Link,
    Meta,
    Mkdir,
    Patch,
    Put,
    Remove,
    Rename,
    Rmdir,
    SetMeta,
    Symlink,
)
from holdfast.changes.digest import BLOCK_BYTES, DIGEST_BYTES, content_digests
from holdfast.changes.frame import (
    Chain,
    Frame,
    FrameKind,
    FrameWriter,
    Promotion,
    SegmentKey,
    chain_start,
    open_frame,
    pack_changes,
    pack_promotion,
    seal,
)
from holdfast.changes.names import Epoch, Incarnation, MachineName, SegmentName, TreeName
from holdfast.trees.index import SUPER_ROOT, Index, Node, NodeKind
from holdfast.trees.stat import handle_at, observed, read_xattrs

TREE: Final = "store"
INCARNATION: Final = Incarnation("ab" * 16)
KEY: Final = SegmentKey(b"k" * 32)
NAMES: Final = (b"a", b"b", b"c", b"new\nline", b"\xff\xfe", b"n" * 255)
ROOT_RIGHTS: Final = os.geteuid() == 0


class Op(NamedTuple):
    """An operation: what (any number), on what, where to, and how much."""

    what: int
    subject: int
    place: int
    amount: int


@dataclass
class Thing:
    """An inode of the model."""

    kind: NodeKind
    meta: Meta
    content: bytes = b""
    names: dict[bytes, Thing] = field(default_factory=dict)


def meta(number: int, mode: int = 0o600) -> Meta:
    """Some metadata; set-user-ID bits and xattrs come up now and then."""
    owner = f"#{1000 + number % 3}" if ROOT_RIGHTS else f"#{os.geteuid()}"
    group = f"#{2000 + number % 2}" if ROOT_RIGHTS else f"#{os.getegid()}"
    bits = (mode, 0o640, 0o755, 0o4750)[number % 4]
    xattrs = ((b"user.x", b"%d" % number),) if number % 5 == 4 else ()
    return Meta(bits, owner, group, 10**18 + number * 1_000_003, xattrs)


class Model:
    """A tree that carries operations out and tells them as changes."""

    def __init__(self) -> None:
        self.root = Thing(NodeKind.DIRECTORY, Meta(0o755, "#0", "#0", 0))

    # -- reading -------------------------------------------------------------------------------------------------------

    def _paths(self, kinds: tuple[NodeKind, ...]) -> list[bytes]:
        return [path for path, thing in self.walk() if thing.kind in kinds]

    def walk(self) -> Iterable[tuple[bytes, Thing]]:
        pending = [(b"", self.root)]
        while pending:
            path, thing = pending.pop()
            for name, below in sorted(thing.names.items()):
                below_path = path + b"/" + name if path else name
                yield below_path, below
                if below.kind == NodeKind.DIRECTORY:
                    pending.append((below_path, below))

    def at(self, path: bytes) -> Thing | None:
        thing: Thing | None = self.root
        for name in path.split(b"/") if path else ():
            thing = None if thing is None else thing.names.get(name)
        return thing

    def picture(self) -> dict[bytes, tuple[Any, ...]]:
        """Comparable with :func:`picture_of`."""
        numbers: dict[int, list[bytes]] = {}
        for path, thing in self.walk():
            numbers.setdefault(id(thing), []).append(path)
        return {path: (*_described(thing), tuple(sorted(numbers[id(thing)]))) for path, thing in self.walk()}

    # -- operations ----------------------------------------------------------------------------------------------------

    def do(self, op: Op) -> list[Change]:
        """Carry *op* out; the changes that tell it."""
        operations = (
            self._put,
            self._put_parts,
            self._append,
            self._overwrite,
            self._truncate,
            self._rename,
            self._rename,
            self._link,
            self._remove,
            self._mkdir,
            self._rmdir,
            self._set_meta,
            self._symlink,
            self._swap,
            self._remake,
        )
        return operations[op.what % len(operations)](op)

    def _target(self, op: Op, *, replace: NodeKind | None) -> bytes | None:
        """A place for something new: free, or taken by what may be replaced."""
        directories = [b"", *self._paths((NodeKind.DIRECTORY,))]
        above = directories[op.place % len(directories)]
        name = NAMES[op.amount % len(NAMES)]
        path = above + b"/" + name if above else name
        standing = self.at(path)
        if standing is not None and (standing.kind == NodeKind.DIRECTORY or replace is None):
            return None
        return path if len(path) < 3000 else None

    def _subject(self, op: Op, *kinds: NodeKind) -> bytes | None:
        paths = self._paths(kinds)
        return paths[op.subject % len(paths)] if paths else None

    def _bind(self, path: bytes, thing: Thing) -> None:
        above, _, name = path.rpartition(b"/")
        directory = self.at(above)
        assert directory is not None
        directory.names[name] = thing

    def _unbind(self, path: bytes) -> Thing:
        above, _, name = path.rpartition(b"/")
        directory = self.at(above)
        assert directory is not None
        return directory.names.pop(name)

    def _put(self, op: Op) -> list[Change]:
        path = self._target(op, replace=NodeKind.FILE)
        if path is None:
            return []
        content = some_bytes(op.subject, (0, 1, 100, 5000, BLOCK_BYTES, BLOCK_BYTES + 7)[op.amount % 6])
        thing = Thing(NodeKind.FILE, meta(op.amount), content)
        self._bind(path, thing)
        extents = (Extent(0, content),) if content else ()
        return [Put(TREE, path, len(content), thing.meta, content_digests(content), extents)]

    def _put_parts(self, op: Op) -> list[Change]:
        """A sparse file in three parts."""
        path = self._target(op, replace=NodeKind.FILE)
        if path is None:
            return []
        first, last = some_bytes(op.subject, 3000), some_bytes(op.subject + 1, 2000)
        content = first + bytes(2 * BLOCK_BYTES) + last
        thing = Thing(NodeKind.FILE, meta(op.amount), content)
        self._bind(path, thing)
        size, end = len(content), len(content) - len(last)
        return [
            Put(TREE, path, 3000, thing.meta, b"", (Extent(0, first),), True),
            Patch(TREE, path, size - 1000, thing.meta, b"", (Extent(end, last[:1000]),), 0, True),
            Patch(TREE, path, size, thing.meta, content_digests(content), (Extent(end + 1000, last[1000:]),)),
        ]

    def _patched(self, path: bytes, content: bytes, at: int, data: bytes, number: int) -> list[Change]:
        thing = self.at(path)
        assert thing is not None
        thing.content, thing.meta = content, meta(number)
        first = min(at, len(content)) // BLOCK_BYTES
        digests = content_digests(content)[first * DIGEST_BYTES :]
        extents = (Extent(at, data),) if data else ()
        return [Patch(TREE, path, len(content), thing.meta, digests, extents, first)]

    def _append(self, op: Op) -> list[Change]:
        path = self._subject(op, NodeKind.FILE)
        if path is None:
            return []
        old, data = self._content(path), some_bytes(op.place, 1 + op.amount % 900)
        return self._patched(path, old + data, len(old), data, op.amount)

    def _overwrite(self, op: Op) -> list[Change]:
        path = self._subject(op, NodeKind.FILE)
        if path is None or not self._content(path):
            return []
        old = self._content(path)
        at = op.place % len(old)
        data = some_bytes(op.amount, min(700, len(old) - at))
        return self._patched(path, old[:at] + data + old[at + len(data) :], at, data, op.amount)

    def _truncate(self, op: Op) -> list[Change]:
        """To a shorter size, or to a longer one with a hole at the end."""
        path = self._subject(op, NodeKind.FILE)
        if path is None:
            return []
        old = self._content(path)
        size = (0, len(old) // 2, len(old) + 5000)[op.amount % 3]
        content = old[:size] + bytes(max(0, size - len(old)))
        return self._patched(path, content, min(size, len(old)), b"", op.amount)

    def _content(self, path: bytes) -> bytes:
        thing = self.at(path)
        assert thing is not None
        return thing.content

    def _rename(self, op: Op) -> list[Change]:
        path = self._subject(op, NodeKind.FILE, NodeKind.SYMLINK, NodeKind.DIRECTORY)
        if path is None:
            return []
        subject = self.at(path)
        directory = subject is not None and subject.kind == NodeKind.DIRECTORY
        to = self._target(op, replace=None if directory else NodeKind.FILE)
        if to is None or to == path or (directory and to.startswith(path + b"/")) or self.at(to) is subject:
            return []
        self._bind(to, self._unbind(path))
        return [Rename(TREE, path, to)]

    def _link(self, op: Op) -> list[Change]:
        path, to = self._subject(op, NodeKind.FILE), self._target(op, replace=NodeKind.FILE)
        if path is None or to is None:
            return []
        thing = self.at(path)
        assert thing is not None
        self._bind(to, thing)
        return [Link(TREE, path, to)]

    def _remove(self, op: Op) -> list[Change]:
        path = self._subject(op, NodeKind.FILE, NodeKind.SYMLINK)
        if path is None:
            return []
        self._unbind(path)
        return [Remove(TREE, path)]

    def _mkdir(self, op: Op) -> list[Change]:
        path = self._target(op, replace=None)
        if path is None:
            return []
        thing = Thing(NodeKind.DIRECTORY, meta(op.amount, 0o700))
        self._bind(path, thing)
        return [Mkdir(TREE, path, thing.meta)]

    def _rmdir(self, op: Op) -> list[Change]:
        """A whole directory away, what is in it first."""
        path = self._subject(op, NodeKind.DIRECTORY)
        if path is None:
            return []
        changes: list[Change] = []
        for below, thing in reversed(list(self.walk())):
            if below == path or below.startswith(path + b"/"):
                changes.append(Rmdir(TREE, below) if thing.kind == NodeKind.DIRECTORY else Remove(TREE, below))
        changes.sort(key=lambda change: -change.path.count(b"/"))
        self._unbind(path)
        return changes

    def _set_meta(self, op: Op) -> list[Change]:
        path = self._subject(op, NodeKind.FILE, NodeKind.DIRECTORY)
        if path is None:
            return []
        thing = self.at(path)
        assert thing is not None
        thing.meta = meta(op.amount)
        return [SetMeta(TREE, path, thing.meta)]

    def _symlink(self, op: Op) -> list[Change]:
        path = self._target(op, replace=NodeKind.FILE)
        if path is None:
            return []
        thing = Thing(NodeKind.SYMLINK, meta(0), (b"/etc", b"..", b"\xff", b"a")[op.subject % 4])
        self._bind(path, thing)
        return [Symlink(TREE, path, thing.content, thing.meta)]

    def _swap(self, op: Op) -> list[Change]:
        """Two things of one directory change their names: by way of a third."""
        path, other = self._subject(op, *NodeKind), self._subject(op._replace(subject=op.subject + 1), *NodeKind)
        if path is None or other is None or path.rpartition(b"/")[0] != other.rpartition(b"/")[0]:
            return []
        if self.at(path) is self.at(other):
            return []
        one, two = self._unbind(path), self._unbind(other)
        self._bind(path, two)
        self._bind(other, one)
        between = b".holdfast-move-1"
        return [Rename(TREE, path, between), Rename(TREE, other, path), Rename(TREE, between, other)]

    def _remake(self, op: Op) -> list[Change]:
        """A thing is renamed, and another of its kind made under the old name at once."""
        path = self._subject(op, NodeKind.FILE, NodeKind.DIRECTORY)
        changes = self._rename(op)
        if not changes or self.at(path or b"") is not None:
            return changes
        moved = changes[0]
        assert isinstance(moved, Rename)
        thing = self.at(moved.to)
        assert thing is not None
        if self.at(moved.path.rpartition(b"/")[0]) is None or thing.kind == NodeKind.SYMLINK:
            return changes
        if thing.kind == NodeKind.DIRECTORY:
            self._bind(moved.path, Thing(NodeKind.DIRECTORY, meta(op.amount, 0o700)))
            return [*changes, Mkdir(TREE, moved.path, meta(op.amount, 0o700))]
        content = some_bytes(op.amount, 50)
        self._bind(moved.path, Thing(NodeKind.FILE, meta(op.amount), content))
        return [*changes, Put(TREE, moved.path, 50, meta(op.amount), content_digests(content), (Extent(0, content),))]


def some_bytes(number: int, size: int) -> bytes:
    """Bytes that tell a lost, doubled or misplaced write."""
    pattern = b"%d," % number
    return (pattern * (size // len(pattern) + 1))[:size]


def _described(thing: Thing) -> tuple[Any, ...]:
    owner = (int(thing.meta.owner[1:]), int(thing.meta.group[1:]))
    if thing.kind == NodeKind.DIRECTORY:
        return thing.kind, thing.meta.mode, owner, thing.meta.xattrs
    if thing.kind == NodeKind.SYMLINK:
        return thing.kind, owner, thing.meta.mtime_ns, thing.content
    return thing.kind, thing.meta.mode, owner, thing.meta.mtime_ns, thing.meta.xattrs, content_digests(thing.content)


def picture_of(root: Path) -> dict[bytes, tuple[Any, ...]]:
    """What stands below *root*: kind, metadata, content, and the names of one inode. Times of directories left out."""
    found: dict[bytes, tuple[Any, ...]] = {}
    inodes: dict[int, list[bytes]] = {}
    numbers: dict[bytes, int] = {}
    base = os.fsencode(root)
    pending = [b""]
    while pending:
        above = pending.pop()
        for name in os.listdir(base + b"/" + above):
            path = above + b"/" + name if above else name
            if path == b".holdfast":
                continue
            status = os.lstat(base + b"/" + path)
            owner = (status.st_uid, status.st_gid)
            mode = stat.S_IMODE(status.st_mode)
            xattrs = read_xattrs(base + b"/" + path)
            if stat.S_ISDIR(status.st_mode):
                found[path] = (NodeKind.DIRECTORY, mode, owner, xattrs)
                pending.append(path)
            elif stat.S_ISLNK(status.st_mode):
                found[path] = (NodeKind.SYMLINK, owner, status.st_mtime_ns, os.readlink(base + b"/" + path))
            else:
                digests = content_digests(Path(os.fsdecode(base + b"/" + path)).read_bytes())
                found[path] = (NodeKind.FILE, mode, owner, status.st_mtime_ns, xattrs, digests)
            numbers[path] = status.st_ino
            inodes.setdefault(status.st_ino, []).append(path)
    return {path: (*what, tuple(sorted(inodes[numbers[path]]))) for path, what in found.items()}


def index_agrees(index: Index, root: Path) -> None:
    """The index says exactly what stands below *root*."""
    top = index.directory(TREE, b"")
    assert top is not None
    known = dict(index.walk(top))
    pictured = picture_of(root)
    assert known.keys() == pictured.keys()
    for path, node in known.items():
        seen = observed(os.lstat(os.fsencode(root) + b"/" + path))
        assert seen is not None
        assert (node.kind, node.ino, node.uid, node.gid) == (seen.kind, seen.ino, seen.uid, seen.gid)
        above, _, name = path.rpartition(b"/")
        directory = os.open(os.fsencode(root) + b"/" + above, os.O_PATH)
        assert node.handle == handle_at(directory, name)
        os.close(directory)
        if node.kind == NodeKind.FILE:
            assert (node.mode, node.mtime_ns, node.size) == (seen.mode, seen.mtime_ns, seen.size)
            assert node.content == pictured[path][5]
        elif node.kind == NodeKind.SYMLINK:
            assert node.content == pictured[path][3]
    totals = index.totals()
    kinds = [node.kind for node in {node.id: node for node in known.values()}.values()]
    assert (totals.directories - 1, totals.files, totals.symlinks) == tuple(
        kinds.count(kind) for kind in (NodeKind.DIRECTORY, NodeKind.FILE, NodeKind.SYMLINK)
    )


class LogRecord(NamedTuple):
    frame: Frame
    chain: Chain
    """The place after the frame."""


class LogWriter:
    """Seals frames one after another, as a primary does."""

    def __init__(self, epoch: int = 1) -> None:
        self.chain = chain_start(INCARNATION)
        self.raw: list[bytes] = []
        self.writer = FrameWriter(SegmentName("s"), MachineName("main"), Epoch(epoch), KEY)

    def changes(self, changes: Iterable[Change], *, more: bool = False) -> LogRecord:
        return self._sealed(FrameKind.CHANGES, pack_changes(tuple(changes)), more)

    def promotion(self, machine: str, epoch: int, *, more: bool = False) -> LogRecord:
        self.writer = self.writer._replace(epoch=Epoch(epoch), machine=MachineName(machine))
        packed = pack_promotion(Promotion(MachineName(machine), "test", False))
        return self._sealed(FrameKind.PROMOTION, packed, more)

    def _sealed(self, kind: FrameKind, packed: bytes, more: bool) -> LogRecord:
        raw = seal(self.writer, self.chain, kind, packed, captured_at_ns=1, more=more)
        self.raw.append(raw)
        self.chain = self.chain.after(raw)
        return LogRecord(open_frame(raw, KEY), self.chain)


def read_log(raw: list[bytes]) -> list[LogRecord]:
    """The records of frames as they are in the log."""
    chain = chain_start(INCARNATION)
    return [LogRecord(open_frame(frame, KEY), chain := chain.after(frame)) for frame in raw]


def seeded_index(file: Path, root: Path) -> Index:
    """A new index that stands at the beginning of the log, with the empty tree *root*."""
    index = Index.open(file)
    status = os.stat(root)
    fd = os.open(root, os.O_PATH)
    handle = handle_at(fd, b"")
    os.close(fd)
    node = Node(
        0,
        NodeKind.DIRECTORY,
        handle,
        status.st_ino,
        status.st_mode & 0o7777,
        status.st_uid,
        status.st_gid,
        0,
        status.st_mtime_ns,
        status.st_ctime_ns,
        b"",
        b"",
    )
    index.bind(SUPER_ROOT, TreeName(TREE).encode(), index.add(node))
    index.commit(chain_start(INCARNATION), Epoch(1))
    return index
