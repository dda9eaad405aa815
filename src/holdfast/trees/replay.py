"""What a change means for the tree index.

Two users: an applier, after it made the change in the filesystem (it hands over what it then observed), and a watcher
that starts again and reads its own records since its last commit (it observed nothing: handles stay unknown until the
scan that follows).

The first change of a tree is the metadata of its root, which brings the root into the index.

A change that does not fit the index (its parent is missing, the name to rename is not there) raises ReplayGap: the
index and the log have parted, which only a scan can mend.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from holdfast.changes.change import Change, Link, Meta, Mkdir, Patch, Put, Remove, Rename, Rmdir, SetMeta, Symlink
from holdfast.changes.digest import DIGEST_BYTES, block_count
from holdfast.errors import HoldfastError
from holdfast.trees.index import SUPER_ROOT, Index, Node, NodeKind
from holdfast.trees.stat import Owners, pack_xattrs


class ReplayGap(HoldfastError):
    """A change does not fit what the index says stands there."""

    def __init__(self, change: Change, what: str) -> None:
        super().__init__(
            f"a change of {change.path!r} in tree {change.tree!r} does not fit the tree index: {what}",
            hint="The index and the log have parted; a scan mends it.",
        )


class Sighting(NamedTuple):
    """What an applier saw after making a change: what only this machine's filesystem can tell. *handle* is None where
    it was not looked at because it stays as it was."""

    ino: int
    ctime_ns: int
    handle: bytes | None


_BLANK: Final = {kind: Node(0, kind, None, 0, 0, 0, 0, 0, 0, 0, b"", b"") for kind in NodeKind}


class Replay:
    """Brings changes into *index*."""

    def __init__(self, index: Index, owners: Owners) -> None:
        self._index = index
        self._owners = owners
        self._begun: tuple[str, bytes] | None = None
        """The new file whose parts are coming."""

    def apply(self, change: Change, sighting: Sighting | None = None) -> None:
        """One change, in the order of the log. Raises ReplayGap."""
        begun, self._begun = self._begun, None
        match change:
            case Put() if change.more:
                self._begun = change.tree, change.path
            case Put():
                self._new(change, NodeKind.FILE, change.meta, change.size, change.digests, sighting)
            case Patch() if begun == (change.tree, change.path):
                if change.more:
                    self._begun = begun
                else:
                    self._new(change, NodeKind.FILE, change.meta, change.size, change.digests, sighting)
            case Patch():
                self._patch(change, sighting)
            case Mkdir():
                self._new(change, NodeKind.DIRECTORY, change.meta, 0, b"", sighting)
            case Symlink():
                self._new(change, NodeKind.SYMLINK, change.meta, 0, change.target, sighting)
            case SetMeta(path=b"") if self._index.directory(change.tree, b"") is None:
                self._new(change, NodeKind.DIRECTORY, change.meta, 0, b"", sighting)
            case SetMeta():
                node = self._there(change, change.path)
                self._index.update(node, self._described(node, change.meta, node.size, node.content, sighting))
            case Rename():
                self._rename(change, sighting)
            case Link():
                self._link(change, sighting)
            case Remove() | Rmdir():
                node = self._there(change, change.path)
                if node.kind == NodeKind.DIRECTORY and self._index.has_children(node.id):
                    raise ReplayGap(change, "the directory is not empty")
                self._take_away(change, change.path, node)

    def abandon(self) -> None:
        """The open batch will not go on (a promotion, or an empty frame of a writer that began anew): a file whose
        parts were coming never comes to be."""
        self._begun = None

    def _place(self, change: Change, path: bytes) -> tuple[int, bytes]:
        """Directory and name of *path*."""
        above, _, name = path.rpartition(b"/")
        parent = self._index.directory(change.tree, above) if path else SUPER_ROOT
        if parent is None:
            raise ReplayGap(change, f"there is no directory {above!r}")
        return (parent, name) if path else (SUPER_ROOT, change.tree.encode())

    def _there(self, change: Change, path: bytes) -> Node:
        node = self._index.child(*self._place(change, path))
        if node is None:
            raise ReplayGap(change, f"nothing stands at {path!r}")
        return node

    def _take_away(self, change: Change, path: bytes, node: Node) -> None:
        self._index.unbind(*self._place(change, path))
        self._index.drop_if_nameless(node)

    def _free(self, change: Change, path: bytes) -> tuple[int, bytes]:
        """The place *path*, free: what file stood there has lost this name."""
        place = self._place(change, path)
        standing = self._index.child(*place)
        if standing is not None:
            if standing.kind == NodeKind.DIRECTORY:
                raise ReplayGap(change, f"a directory stands at {path!r}")
            self._take_away(change, path, standing)
        return place

    def _described(self, node: Node, meta: Meta, size: int, content: bytes, sighting: Sighting | None) -> Node:
        """*node* with this content, the metadata of *meta*, and what was sighted."""
        handle, ino, ctime_ns = node.handle, node.ino, 0
        if sighting is not None:
            handle, ino, ctime_ns = sighting.handle or handle, sighting.ino, sighting.ctime_ns
        return Node(
            node.id,
            node.kind,
            handle,
            ino,
            meta.mode,
            self._owners.uid(meta.owner),
            self._owners.gid(meta.group),
            size,
            meta.mtime_ns,
            ctime_ns,
            content,
            pack_xattrs(meta.xattrs),
        )

    def _resight(self, node: Node, sighting: Sighting | None) -> None:
        if sighting is None:
            self._index.update(node, node._replace(ctime_ns=0))
            return
        handle = sighting.handle or node.handle
        self._index.update(node, node._replace(handle=handle, ino=sighting.ino, ctime_ns=sighting.ctime_ns))

    def _new(
        self, change: Change, kind: NodeKind, meta: Meta, size: int, content: bytes, sighting: Sighting | None
    ) -> None:
        parent, name = self._free(change, change.path)
        node = self._described(_BLANK[kind], meta, size, content, sighting)
        self._index.bind(parent, name, self._index.add(node))

    def _patch(self, change: Patch, sighting: Sighting | None) -> None:
        node = self._there(change, change.path)
        if node.kind != NodeKind.FILE:
            raise ReplayGap(change, "a patch for what is no file")
        content = node.content
        if change.digests or not change.more:
            content = node.content[: change.first_block * DIGEST_BYTES] + change.digests
            if len(content) != DIGEST_BYTES * block_count(change.size):
                raise ReplayGap(change, "the patch leaves blocks between the known ones and its own")
        self._index.update(node, self._described(node, change.meta, change.size, content, sighting))

    def _link(self, change: Link, sighting: Sighting | None) -> None:
        node = self._there(change, change.path)
        if (
            self._index.child_id(*self._place(change, change.to)) != node.id
        ):  # else: freeing it might take its last name
            self._index.bind(*self._free(change, change.to), node.id)
        self._resight(node, sighting)

    def _rename(self, change: Rename, sighting: Sighting | None) -> None:
        node = self._there(change, change.path)
        parent, name = self._place(change, change.path)
        standing = self._index.child(*self._place(change, change.to))
        if standing is not None and standing.id == node.id:  # two names of one file: rename(2) does nothing
            return
        to_parent, to_name = self._free(change, change.to)
        self._index.move(parent, name, to_parent, to_name, directory=node.kind == NodeKind.DIRECTORY)
        self._resight(node, sighting)
