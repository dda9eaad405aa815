"""After an unclean stop: the trees are brought back to the names of the committed index, then the log is applied again.

The state a stop leaves
-----------------------
The index is exactly at its committed position S. What the index says was on disk before S was committed. The trees hold
that, and of the frames after S: all that was applied (a process died), or any part of it (a power cut).

What is done
------------
1. Every thing the index knows (by handle: names mean nothing here) goes back to its name or names at S.
2. What the index does not know was most likely made by a frame after S. It is moved aside; when the log brings the same
   content again, what was kept is dropped. What remains in the end is named.
3. What the index knows and is nowhere was removed by a frame after S. An empty file (directory, link) stands in for it,
   so that the frames that worked on it, and then removed it, fit again.
4. Contents are left as they are: patches are absolute writes, so the last write of each byte wins again.

Then the names are those at S, and after the log was applied to where it had been applied before, so are bytes and
metadata. Everything that was touched is compared then (:meth:`Recovered.settle`), because a disk that lost what it had
promised must not go unnoticed.

A stop during recovery is no special case: what it had moved is found and taken as above.
"""

from __future__ import annotations

import errno
import os
from collections import defaultdict
from collections.abc import Mapping
from heapq import heapify, heappop
from itertools import count
from typing import Final, NamedTuple

from holdfast.apply.aside import Aside, Kept
from holdfast.apply.compare import content_of, difference
from holdfast.apply.content import Described, describe_link, describe_new
from holdfast.apply.divergence import Oddity
from holdfast.apply.place import Place, world_error
from holdfast.apply.steps import describe_directory
from holdfast.errors import Refused
from holdfast.trees.index import Index, Node, NodeKind
from holdfast.trees.spec import RESERVED_NAME, Tree
from holdfast.trees.stat import Observed, observed, unpack_xattrs

UNDO: Final = RESERVED_NAME + b"/undo"
DIFFERENCES_MAX: Final = 200_000
"""Names that may differ after an unclean stop: minutes of full load without a durable point. More is another trouble,
for which moving things about would be the wrong answer."""
_UNKNOWN: Final = "unknown to the index after an unclean stop; the log most likely brings it again"


class RecoveryReport(NamedTuple):
    """What recovery found. ``missing`` are stood in for by empty things until the log removes or the primary heals."""

    needed: bool
    put_back: int
    unknown: int
    suspects: int
    missing: tuple[Oddity, ...]

    @classmethod
    def nothing(cls) -> RecoveryReport:
        """The last stop was clean."""
        return cls(False, 0, 0, 0, ())


class Settlement(NamedTuple):
    """What came of a recovery: ``differing`` are to be fetched from the primary, ``kept`` lie aside for a person."""

    differing: tuple[Oddity, ...]
    kept: tuple[Kept, ...]


class Recovered:
    """What is still open after a recovery."""

    def __init__(self, aside: Aside) -> None:
        self._aside = aside
        self._held: dict[tuple[int, bytes], list[tuple[Place, Kept]]] = defaultdict(list)
        self.suspects: set[int] = set()
        """Nodes whose content may be ahead of the index, or is not there at all."""
        self.report = RecoveryReport.nothing()

    @property
    def settled(self) -> bool:
        """Whether nothing is open."""
        return not self._held and not self.suspects

    def hold(self, size: int, content: bytes, place: Place, kept: Kept) -> None:
        self._held[size, content].append((place, kept))

    def brought(self, node: Node) -> None:
        """The log made *node* what it is: things moved aside with the same content were the same thing."""
        for place, kept in self._held.pop((node.size, node.content), ()):
            self._aside.drop(place, kept, "the log brought the same content again")

    def settle(self, index: Index, places: Mapping[str, Place]) -> Settlement:
        """Compare all suspects with the index as it is now."""
        differing = []
        for node_id in sorted(self.suspects):
            node = index.node(node_id)
            if node is None:
                continue
            tree, path = _path(index, *index.names(node_id)[0])
            what = difference(places[tree], path, node)
            if what:
                differing.append(Oddity(tree, path, what))
        return Settlement(tuple(differing), tuple(kept for held in self._held.values() for _, kept in held))


class _Deviation(NamedTuple):
    """Something that stands where the index does not have it."""

    path: bytes
    node: int | None
    kind: NodeKind


class _Missing(NamedTuple):
    """A name of the index that does not stand where it should. Sorts parents first."""

    depth: int
    parent: int
    name: bytes
    node: int


def recover(index: Index, trees: Mapping[str, Tree], places: Mapping[str, Place], aside: Aside) -> Recovered:
    """Bring all trees the index knows back to it. Changes the index only where something stands in."""
    recovered = Recovered(aside)
    roots = index.roots()
    undos = [
        _Undo(index, tree, places[name], recovered, roots[tree.name])
        for name, tree in trees.items()
        if tree.name in roots
    ]
    for undo in undos:  # all look before one acts
        undo.look()
    for undo in undos:
        undo.act(aside)
    recovered.report = RecoveryReport(
        needed=True,
        put_back=sum(undo.put_back for undo in undos),
        unknown=sum(undo.unknown for undo in undos),
        suspects=len(recovered.suspects),
        missing=tuple(oddity for undo in undos for oddity in undo.missing),
    )
    return recovered


class _Undo:
    """Recovery of one tree: a look that changes nothing, then the moves."""

    def __init__(self, index: Index, tree: Tree, place: Place, recovered: Recovered, root: int) -> None:
        self._index = index
        self._tree = tree
        self._place = place
        self._recovered = recovered
        self._root = root
        self._deviations: list[_Deviation] = []
        self._absent: list[_Missing] = []
        self._held: dict[int, list[bytes]] = defaultdict(list)
        self._strangers: list[tuple[bytes, bytes, NodeKind]] = []
        self._numbers = count(1)
        self.put_back = 0
        self.unknown = 0
        self.missing: list[Oddity] = []

    # -- looking -------------------------------------------------------------------------------------------------------

    def look(self) -> None:
        """Find what deviates and what is absent. Raises Refused when it is too much, or the root is another."""
        self._check_root()
        self._walk(b"", self._root, ours=False)
        if self._place.status(UNDO) is not None:
            self._walk(UNDO, None, ours=True)
        self._expand()
        if len(self._absent) + len(self._deviations) > DIFFERENCES_MAX:
            raise Refused(
                f"tree {self._tree.name!r} differs from its index in more than {DIFFERENCES_MAX} names",
                hint="That is no trace of an unclean stop. Look at its filesystem; then `holdfast join --rejoin`.",
            )

    def _check_root(self) -> None:
        node = self._index.node(self._root)
        handle = self._place.handles.read(self._place.fd, b"")
        if node is None or (node.handle or handle) != handle:
            raise Refused(
                f"the root {self._place.root} of tree {self._tree.name!r} is not the directory it was",
                hint="Is its filesystem mounted? If it was replaced on purpose: `holdfast join --rejoin`.",
            )

    def _walk(self, start: bytes, node_id: int | None, *, ours: bool) -> None:
        pending = [(start, node_id)]
        while pending:
            path, directory = pending.pop()
            expected = {} if directory is None else self._index.children(directory)
            for name, is_directory in sorted(self._place.listing(path)):
                below = path + b"/" + name if path else name
                if not ours and self._tree.excluded(below, directory=is_directory):
                    expected.pop(name, None)
                    continue
                should = expected.get(name)
                known = self._examine(below, should)
                if should is not None and known is not None and known.id == should.id:
                    del expected[name]
                if is_directory:
                    pending.append((below, known.id if known else None))
            if directory is not None:
                depth = path.count(b"/") + (1 if path else 0)
                self._absent += [
                    _Missing(depth, directory, name, node.id)
                    for name, node in expected.items()
                    if not self._tree.excluded(path + b"/" + name if path else name, directory=_is_directory(node))
                ]

    def _examine(self, path: bytes, should: Node | None) -> Node | None:
        """Which node stands at *path*; notes it when that is not the one that *should*."""
        status = self._place.status(path)
        seen = None if status is None else observed(status)
        if seen is None:  # gone, or a socket and the like: not ours
            return None
        alike = should is not None and (seen.ino, seen.kind) == (should.ino, should.kind)
        if alike and should is not None and seen.kind != NodeKind.DIRECTORY and _untouched(seen, should):
            return should
        directory, name = self._place.parent(path)
        handle = self._place.handles.read(directory, name)
        known = None if handle is None else self._index.by_handle(handle)
        if known is not None and (known.kind != seen.kind or not self._in_tree(known)):
            known = None
        if known is None and should is not None and alike and should.handle is None:
            known = should
        if known is not None and known.kind == NodeKind.FILE:
            self._recovered.suspects.add(known.id)
        if known is None or should is None or known.id != should.id:
            self._deviations.append(_Deviation(path, known.id if known else None, seen.kind))
        return known

    def _in_tree(self, node: Node) -> bool:
        """Two filesystems may give two things the same handle."""
        names = self._index.names(node.id)
        return bool(names) and _path(self._index, *names[0])[0] == self._tree.name

    def _expand(self) -> None:
        """What is absent because a directory above it is."""
        standing = {deviation.node for deviation in self._deviations}
        for missing in self._absent:  # grows as it goes
            if missing.node not in standing:
                below = self._index.children(missing.node)
                self._absent += [_Missing(missing.depth + 1, missing.node, n, c.id) for n, c in below.items()]
            if len(self._absent) > DIFFERENCES_MAX:
                return

    # -- acting --------------------------------------------------------------------------------------------------------

    def act(self, aside: Aside) -> None:
        """Everything that deviates is taken out, what is absent put back, and the rest moved aside."""
        try:
            self._place.clear_staging()
            if self._deviations:
                self._place.make_directories(UNDO)
            for deviation in reversed(self._deviations):  # what lies below before what lies above
                self._take_out(deviation)
            heapify(self._absent)
            while self._absent:
                self._restore(heappop(self._absent))
            self._dispose(aside)
            if self._place.status(UNDO) is not None:
                self._place.rmdir(UNDO)
        except OSError as error:
            raise world_error(error, f"recovering tree {self._tree.name!r} in {self._place.root}") from error

    def _take_out(self, deviation: _Deviation) -> None:
        path, node, kind = deviation
        if node is None and kind == NodeKind.DIRECTORY:
            try:
                self._place.rmdir(path)
                return
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
        out = self._move_out(path)
        if node is None:
            self._strangers.append((out, path, kind))
        else:
            self._held[node].append(out)

    def _move_out(self, path: bytes) -> bytes:
        while True:
            out = b"%s/%d" % (UNDO, next(self._numbers))
            try:
                self._place.rename(path, out, replace=False)
            except FileExistsError:
                continue
            self._place.forget(path)
            return out

    def _restore(self, missing: _Missing) -> None:
        path = _path(self._index, missing.parent, missing.name)[1]
        if self._place.status(path) is not None:  # a socket or the like: nothing of ours is left standing there
            self._strangers.append((self._move_out(path), path, NodeKind.FILE))
        held = self._held.get(missing.node)
        if held:
            self._place.rename(held.pop(), path, replace=False)
            self.put_back += 1
            return
        node = self._index.node(missing.node)
        assert node is not None
        standing = self._other_name(node, missing)
        if standing is not None:
            self._place.link(standing, path, replace=False)
            self.put_back += 1
        else:
            self._stand_in(path, node)

    def _other_name(self, node: Node, missing: _Missing) -> bytes | None:
        """Another name under which *node* stands where it should."""
        for parent, name in self._index.names(node.id):
            path = _path(self._index, parent, name)[1]
            if (parent, name) != (missing.parent, missing.name):
                try:
                    directory, own_name = self._place.parent(path)
                except (FileNotFoundError, NotADirectoryError):
                    continue
                if node.handle is not None and self._place.handles.read(directory, own_name) == node.handle:
                    return path
        return None

    def _stand_in(self, path: bytes, node: Node) -> None:
        """An empty thing for what is nowhere."""
        wanted = Described(node.mode, node.uid, node.gid, node.mtime_ns, unpack_xattrs(node.xattrs))
        place = self._place
        if node.kind == NodeKind.DIRECTORY:
            place.mkdir(path, 0o700)
            describe_directory(place, path, wanted)
        elif node.kind == NodeKind.SYMLINK:
            place.symlink(node.content, path, replace=False)
            describe_link(*place.parent(path), wanted)
        else:
            staged = place.stage()
            os.ftruncate(staged.fd, node.size)
            describe_new(staged.fd, wanted)
            place.settle(staged, path, replace=False)
            os.close(staged.fd)
            self._recovered.suspects.add(node.id)
            self.missing.append(Oddity(self._tree.name, path, "its content was not there after an unclean stop"))
        directory, name = place.parent(path)
        ino = os.stat(name, dir_fd=directory, follow_symlinks=False).st_ino
        self._index.update(node, node._replace(handle=place.handles.read(directory, name), ino=ino, ctime_ns=0))

    def _dispose(self, aside: Aside) -> None:
        for node_id, surplus in self._held.items():
            for out in surplus:
                status = self._place.status(out)
                node = self._index.node(node_id)
                assert status is not None
                assert node is not None
                if node.kind != NodeKind.DIRECTORY and status.st_nlink > 1:  # a name made by a frame after S
                    self._place.unlink(out)
                else:
                    self._strangers.append((out, out, NodeKind(node.kind)))
        for out, origin, kind in self._strangers:
            self.unknown += 1
            size, content = content_of(self._place, out, kind)
            kept = aside.take(self._place, self._tree.name, out, _UNKNOWN, origin=origin)
            if kind != NodeKind.DIRECTORY:
                self._recovered.hold(size, content, self._place, kept)


def _untouched(seen: Observed, node: Node) -> bool:
    return (seen.ctime_ns, seen.size, seen.mtime_ns) == (node.ctime_ns, node.size, node.mtime_ns)


def _is_directory(node: Node) -> bool:
    return node.kind == NodeKind.DIRECTORY


def _path(index: Index, parent: int, name: bytes) -> tuple[str, bytes]:
    found = index.path(parent, name)
    assert found is not None, "every node of the index has a name below a root"
    return found
