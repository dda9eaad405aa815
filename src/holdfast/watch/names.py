"""From what stands where to changes in order: renames, links, new things, removals.

Looking at places gives, for each node, the places where the log has it and it no longer stands (*gone*), and for each
identity the places where it stands and the log has it not (*gained*). From that follow steps:

==========================================  ============================================================================
a known node with gone and gained places    move, one for one; what is left over is a link or an unlink
a known node with gained places only        link (a file has another name); a directory has moved: the later look wins
an unknown identity                         made at its first place, linked to the others
a node with gone places and other names     unlink
a node that lost its last name              unlink when it is dead; else it is in limbo (see ``limbo``)
==========================================  ============================================================================

Steps wait until the index (what a reader's tree looks like at that moment) lets them: the place is free or holds a file
that leaves no other way, the directory exists and is not below the one moved, a directory to be removed is empty. When
every step waits for another one (two files that changed names, a directory and its child that changed places) one node
moves to a temporary name in the root of its tree. Steps that wait for a node in limbo are put off.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from typing import Final, Protocol

from holdfast.changes.change import PATH_BYTES_MAX, Change, Link, Mkdir, Remove, Rename, Rmdir, Symlink
from holdfast.trees.index import SUPER_ROOT, Index, Node, NodeKind
from holdfast.trees.stat import Owners, pack_xattrs
from holdfast.watch.disk import Disk, Found, Place, Unreadable
from holdfast.watch.limbo import Limbo

TEMPORARY_NAME: Final = b".holdfast-move-%d"
PATH_TOO_LONG: Final = "its path is longer than the kernel takes"
CHAIN_MAX: Final = 200
"""How far waiting is followed to see whether it ends in limbo; longer chains are taken as not."""


class Kind(Enum):
    MOVE = 1
    LINK = 2
    NEW = 3
    UNLINK = 4


class Step:
    """One change to come. *node* is None for a thing the index does not know (yet)."""

    __slots__ = ("done", "found", "kind", "node", "replaces", "source", "target")

    def __init__(self, kind: Kind, node: Node | None, source: Place, target: Place, found: Found | None) -> None:
        self.kind = kind
        self.node = node
        self.source = source
        self.target = target
        self.found = found
        self.done = False
        self.replaces = False
        """Something stands at the target; known once the step is ready."""

    @property
    def frees(self) -> Place | None:
        """The place that is free afterwards."""
        return self.source if self.kind in (Kind.MOVE, Kind.UNLINK) else None

    @property
    def takes(self) -> Place | None:
        return None if self.kind is Kind.UNLINK else self.target

    @property
    def of_directory(self) -> bool:
        if self.node is not None:
            return self.node.kind == NodeKind.DIRECTORY
        return self.found is not None and self.found.seen.kind is NodeKind.DIRECTORY


class Host(Protocol):
    """What the reconciler does for a step."""

    limbo: Limbo

    def put(self, target: Place, found: Found, replace: Callable[[], None] | None) -> Iterable[Change]: ...

    def came(self, node_id: int, found: Found, target: Place) -> None: ...

    def moved(self, node: Node, found: Found, target: Place) -> None: ...

    def went(self, node: Node) -> None: ...

    def freed(self, place: Place) -> None: ...

    def put_off(self, place: Place) -> None: ...

    def touched(self, node_id: int) -> None: ...

    def trouble(self, place: Place, reason: str) -> None: ...


class Steps:
    """The steps of one look at a set of places."""

    def __init__(self, index: Index, disk: Disk, owners: Owners, host: Host) -> None:
        self._index = index
        self._disk = disk
        self._owners = owners
        self._host = host
        self._steps: list[Step] = []
        self._frees: dict[Place, Step] = {}
        self._temporary = 0

    def add(self, kind: Kind, node: Node | None, source: Place, target: Place, found: Found | None) -> None:
        step = Step(kind, node, source, target, found)
        self._steps.append(step)
        if step.frees is not None:
            self._frees[step.frees] = step

    def changes(self) -> Iterator[Change]:
        """Carry the steps out in the index, in an order that works, and say each as a change."""
        pending = sorted(self._steps, key=lambda step: step.kind is Kind.UNLINK) if self._frees else self._steps
        while pending:
            waiting = []
            for step in pending:
                if step.done:
                    continue
                if self._ready(step):
                    yield from self._do(step)
                else:
                    waiting.append(step)
            if len(waiting) == len(pending):
                step_aside = next((s for s in waiting if s.kind is Kind.MOVE and not self._hopeless(s, 0)), None)
                if step_aside is None:
                    for step in waiting:
                        self._host.put_off(step.source)  # by then it may have gone from its target, too
                        self._host.put_off(step.target)
                    return
                yield from self._step_aside(step_aside)
            pending = waiting

    # -- waiting -------------------------------------------------------------------------------------------------------

    def _ready(self, step: Step) -> bool:
        if step.kind is Kind.UNLINK:
            return not (step.of_directory and step.node is not None and self._index.has_children(step.node.id))
        if self._disk.directory(step.target[0]) is None:
            return False
        if step.kind is Kind.MOVE and step.of_directory and step.node and self._below(step.target[0], step.node.id):
            return False
        occupant = self._index.child(*step.target)
        step.replaces = occupant is not None
        if occupant is None:
            return True
        if step.node is not None and occupant.id == step.node.id:
            return True
        if occupant.kind == NodeKind.DIRECTORY or step.of_directory:
            return False
        freeing = self._frees.get(step.target)
        if freeing is not None and not freeing.done:
            return freeing.kind is Kind.UNLINK
        return step.target not in self._host.limbo

    def _below(self, directory: int, ancestor: int) -> bool:
        """Whether *directory* is *ancestor*, or in it at any depth."""
        return any(node_id == ancestor for node_id in self._upwards(directory))

    def _upwards(self, directory: int) -> Iterator[int]:
        at = directory
        while at != SUPER_ROOT:
            yield at
            names = self._index.names(at)
            if not names:
                return
            at = names[0][0]

    def _hopeless(self, step: Step, depth: int) -> bool:
        """Whether the step waits, directly or through others, for something none of these steps brings about."""
        if depth > CHAIN_MAX:
            return False
        if step.kind is Kind.UNLINK:
            assert step.node is not None
            return any(self._never_free((step.node.id, name), depth) for name in self._index.children(step.node.id))
        if self._disk.directory(step.target[0]) is None:
            return True
        if step.kind is Kind.MOVE and step.of_directory and step.node is not None:
            chain = list(self._upwards(step.target[0]))
            if step.node.id in chain:
                between = chain[: chain.index(step.node.id)]
                movers = [s for s in self._frees.values() if not s.done and s.node and s.node.id in between]
                return not movers or all(self._hopeless(mover, depth + 1) for mover in movers)
        return self._index.child(*step.target) is not None and self._never_free(step.target, depth)

    def _never_free(self, place: Place, depth: int) -> bool:
        freeing = self._frees.get(place)
        return freeing is None or freeing.done or self._hopeless(freeing, depth + 1)

    def _step_aside(self, step: Step) -> Iterator[Change]:
        """Move the node of a waiting step to a temporary name, from where it will move on."""
        directory = self._disk.directory(step.source[0])
        assert directory is not None
        assert step.node is not None
        root = self._index.directory(directory.tree.name, b"")
        assert root is not None
        while self._index.child_id(root, TEMPORARY_NAME % self._temporary) is not None:
            self._temporary += 1
        place = root, TEMPORARY_NAME % self._temporary
        self._host.touched(root)
        path, to = self._path(step.source), self._path(place)
        self._move(step.node, step.source, place)
        del self._frees[step.source]
        step.source = place
        yield Rename(directory.tree.name, path, to)

    # -- doing ---------------------------------------------------------------------------------------------------------

    def _path(self, place: Place) -> bytes:
        directory = self._disk.directory(place[0])
        assert directory is not None, "a place in a directory without a name"
        return directory.prefix + place[1]

    def _tree(self, place: Place) -> str:
        directory = self._disk.directory(place[0])
        assert directory is not None
        return directory.tree.name

    def _do(self, step: Step) -> Iterator[Change]:
        step.done = True
        self._host.touched(step.source[0])
        if step.kind is Kind.UNLINK:
            yield self._unlink(step)
            return
        if step.kind is Kind.MOVE:
            self._host.touched(step.target[0])
        assert step.found is not None
        path = self._path(step.target)
        if len(path) > PATH_BYTES_MAX:
            self._host.trouble(step.target, PATH_TOO_LONG)
            return
        node = step.node
        if step.kind is Kind.LINK:
            node = self._index.by_handle(step.found.handle)
            names = self._index.names(node.id) if node is not None else []
            if node is not None and names:
                self._replace(step.target)
                self._index.bind(*step.target, node.id)
                self._host.moved(node, step.found, step.target)
                yield Link(self._tree(step.target), self._path(names[0]), path)
                return
        if step.kind is Kind.MOVE:
            assert node is not None
            source = self._path(step.source)
            if step.replaces:
                if self._index.child_id(*step.target) == node.id:
                    return
                self._replace(step.target)
            self._move(node, step.source, step.target)
            self._host.moved(node, step.found, step.target)
            yield Rename(self._tree(step.target), source, path)
            return
        yield from self._make(step.target, path, step.found)

    def _move(self, node: Node, source: Place, target: Place) -> None:
        is_directory = node.kind == NodeKind.DIRECTORY
        self._index.move(*source, *target, directory=is_directory)
        self._host.freed(source)
        if is_directory:
            self._disk.forget()

    def _replace(self, place: Place) -> None:
        """The file that stands at *place* loses this name."""
        occupant = self._index.child(*place)
        if occupant is None:
            return
        self._index.unbind(*place)
        self._host.freed(place)
        if self._index.drop_if_nameless(occupant):
            self._host.went(occupant)
        freeing = self._frees.get(place)
        if freeing is not None and freeing.kind is Kind.UNLINK:
            freeing.done = True

    def _unlink(self, step: Step) -> Change:
        node = step.node
        assert node is not None
        tree, path = self._tree(step.source), self._path(step.source)
        self._index.unbind(*step.source)
        self._host.freed(step.source)
        if self._index.drop_if_nameless(node):
            self._host.went(node)
        if node.kind == NodeKind.DIRECTORY:
            self._disk.forget()
            self._disk.close_directory(node.id)
            return Rmdir(tree, path)
        return Remove(tree, path)

    def _make(self, target: Place, path: bytes, found: Found) -> Iterator[Change]:
        seen = found.seen
        if seen.kind is NodeKind.FILE:
            yield from self._host.put(target, found, lambda: self._replace(target))
            return
        directory = self._disk.directory(target[0])
        if directory is None:
            return
        content = b""
        if seen.kind is NodeKind.SYMLINK:
            link_target = self._disk.link_target(directory, target[1])
            if link_target is None:
                return
            content = link_target
        try:
            xattrs = self._disk.xattrs(directory, target[1])
        except Unreadable as error:
            self._host.trouble(target, error.reason)
            return
        self._replace(target)
        if seen.kind is NodeKind.DIRECTORY:
            seen = seen._replace(mtime_ns=0)  # not to be trusted by anybody before it has settled
        meta = self._owners.meta(seen, xattrs)
        node = Node(
            0, seen.kind, found.handle, seen.ino, seen.mode, seen.uid, seen.gid, 0, seen.mtime_ns, seen.ctime_ns,
            content, pack_xattrs(xattrs),
        )  # fmt: skip
        node_id = self._index.add(node)
        self._index.bind(*target, node_id)
        self._host.came(node_id, found, target)
        if seen.kind is NodeKind.DIRECTORY:
            self._disk.came(node_id, found.handle)
            yield Mkdir(directory.tree.name, path, meta)
        else:
            yield Symlink(directory.tree.name, path, content, meta)


def pair(places: Iterable[Place], others: Iterable[Place]) -> list[tuple[Place | None, Place | None]]:
    """Gone and gained places one for one; what is left over stands alone."""
    left, right = list(places), list(others)
    longest = max(len(left), len(right))
    return [(left[at] if at < len(left) else None, right[at] if at < len(right) else None) for at in range(longest)]
