"""Metadata of directories, and when their modification times may be told.

A modification time beside a half-copied folder would be believed: Dovecot compares it with what its index says and
does not look into the folder when they are equal. So it is logged only once nothing happened in it for a while, and a
new directory travels with time 0.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterator

from holdfast.changes.change import Change, SetMeta
from holdfast.trees.index import Node
from holdfast.trees.stat import observed, pack_xattrs, read_xattrs
from holdfast.watch.disk import Unreadable
from holdfast.watch.scene import THE_DIRECTORY, Scene


class Folders:
    """Directories in which something happened, in the order in which it last did."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._touched: OrderedDict[int, float] = OrderedDict()

    def forget(self) -> None:
        self._touched.clear()

    def touched(self, node_id: int) -> None:
        """Something happened in the directory: a reader's copy of it has another time now."""
        touched = self._touched
        if node_id in touched:
            touched[node_id] = self._scene.now
            touched.move_to_end(node_id)
        elif len(touched) < self._scene.limits.settling_max:
            touched[node_id] = self._scene.now

    def went(self, node_id: int) -> None:
        self._touched.pop(node_id, None)

    def due_at(self) -> float | None:
        """When the next one has settled, on the monotonic clock."""
        if not self._touched:
            return None
        return next(iter(self._touched.values())) + self._scene.limits.settle_seconds

    def settle(self, *, at_once: bool = False) -> Iterator[Change]:
        """The times of those in which nothing happened for a while."""
        limit = self._scene.monotonic() - (0.0 if at_once else self._scene.limits.settle_seconds)
        while self._touched:
            node_id, touched = next(iter(self._touched.items()))
            if touched > limit:
                return
            del self._touched[node_id]
            yield from self.describe(node_id, with_mtime=True)

    def describe(self, node_id: int, *, with_mtime: bool) -> Iterator[Change]:
        """Metadata of a known directory. *with_mtime*: what happened in it has changed a reader's directory's, so the
        time is logged even when it is the one logged before."""
        scene = self._scene
        directory, node = scene.disk.directory(node_id), scene.index.node(node_id)
        if directory is None or node is None:
            return
        try:
            fd = scene.disk.fd(directory)
            if fd is None:
                return
            seen = observed(os.fstat(fd))
            xattrs = read_xattrs(fd)
        except (Unreadable, OSError) as error:
            scene.trouble((node_id, THE_DIRECTORY), str(error))
            return
        assert seen is not None
        if not seen.links:
            return
        mtime_ns = seen.mtime_ns if with_mtime else node.mtime_ns
        new = Node(
            node.id, node.kind, node.handle, seen.ino, seen.mode, seen.uid, seen.gid, 0, mtime_ns, seen.ctime_ns,
            node.content, pack_xattrs(xattrs),
        )  # fmt: skip
        if not with_mtime and new._replace(ctime_ns=node.ctime_ns, ino=node.ino) == node:
            if new != node:
                scene.index.resight(node_id, node.handle, new.ino, new.ctime_ns)
            return
        scene.index.update(node, new)
        meta = scene.owners.meta(seen._replace(mtime_ns=mtime_ns), xattrs)
        yield SetMeta(directory.tree.name, directory.path, meta)
