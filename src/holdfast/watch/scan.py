"""The scan: every directory compared with its rows. What differs by stat alone is looked at like any other place."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Final

from holdfast.changes.change import Change, SetMeta
from holdfast.trees.index import Node, NodeKind
from holdfast.trees.spec import Tree
from holdfast.trees.stat import observed, pack_xattrs, read_xattrs
from holdfast.watch.disk import Directory, Place, Unreadable, ensure_root
from holdfast.watch.folders import Folders
from holdfast.watch.looks import Looks
from holdfast.watch.scene import BOUNDARY, THE_DIRECTORY, Boundary, Scene

_FILE: Final = int(NodeKind.FILE)


class Scan:
    """One walk over all directories, one at a time. Between two of them events may be looked at."""

    def __init__(
        self,
        scene: Scene,
        looks: Looks,
        folders: Folders,
        checks: Callable[[], Iterator[Change]],
        doubt_since_ns: int | None,
    ) -> None:
        """*checks* compares the files that looking found to differ. *doubt_since_ns*: files whose ctime is not older
        are read, although they look unchanged."""
        self._scene = scene
        self._looks = looks
        self._folders = folders
        self._checks = checks
        self._doubt_since_ns = doubt_since_ns
        self._to_come: list[int] = []
        self.directories = 0
        self.names = 0
        """Looked at so far."""

    def begin(self) -> Iterator[Change]:
        """Bring the roots into the index; then take :meth:`directory` until it gives None."""
        scene = self._scene
        scene.begin_batch()
        scene.to_scan = self._to_come
        self._looks.listed.clear()
        for name, tree in scene.trees.items():
            yield from self._root(name, tree)
        self._to_come.reverse()

    def _root(self, name: str, tree: Tree) -> Iterator[Change]:
        scene = self._scene
        fd, handle = scene.disk.root(name)
        seen = observed(os.fstat(fd))
        assert seen is not None, "a root is a directory"
        node_id = scene.index.directory(name, b"")
        if node_id is None:
            xattrs = read_xattrs(fd)
            node = Node(
                0, NodeKind.DIRECTORY, handle, seen.ino, seen.mode, seen.uid, seen.gid, 0, seen.mtime_ns,
                seen.ctime_ns, b"", pack_xattrs(xattrs),
            )  # fmt: skip
            node_id = ensure_root(scene.index, tree, node)
            scene.disk.forget()
            self._folders.touched(node_id)
            yield SetMeta(name, b"", scene.owners.meta(seen, xattrs))
        else:
            known = scene.index.node(node_id)
            assert known is not None, "a root without its node: the index is broken"
            if known.handle != handle:
                scene.index.resight(node_id, handle, seen.ino, 0)
                scene.disk.forget()
            scene.directory_checks.add(node_id)
            if known.mtime_ns != seen.mtime_ns:
                self._folders.touched(node_id)
        self._to_come.append(node_id)

    def directory(self) -> Iterator[Change | Boundary] | None:
        """One more directory: its changes, to be taken whole. None at the end."""
        scene = self._scene
        while self._to_come:
            node_id = self._to_come.pop()
            directory = scene.disk.directory(node_id)
            if directory is None or node_id in self._looks.listed:
                continue
            try:
                fd = scene.disk.fd(directory)
                if fd is not None:
                    scene.watch(fd, directory.handle or self._adopt(directory, fd))
                names = scene.disk.names(directory) or []
                places = self._unequal(directory, fd, names)
            except Unreadable as error:
                scene.trouble((node_id, THE_DIRECTORY), error.reason)
                continue
            self.directories += 1
            self.names += len(names)
            return self._changes(node_id, places)
        return None

    def end(self) -> None:
        """What is in limbo now may have been renamed while the scan ran: the events since then tell."""
        self._scene.to_scan = None
        self._looks.listed.clear()
        self._scene.limbo.stay(self._scene.number)

    def _adopt(self, directory: Directory, fd: int) -> bytes:
        handle = self._scene.disk.handle_of_open(directory, fd)
        assert handle is not None, "an open directory has a handle"
        self._scene.index.resight(directory.id, handle, os.fstat(fd).st_ino, 0)
        self._scene.disk.came(directory.id, handle)
        return handle

    def _changes(self, node_id: int, places: list[Place]) -> Iterator[Change | Boundary]:
        scene = self._scene
        scene.now = scene.monotonic()
        scene.deep = True
        scene.fresh.clear()
        try:
            if places or scene.directory_checks:
                yield from self._looks.look(scene.in_reading_order(places))
                yield from self._checks()
        finally:
            scene.deep = False
        below = scene.index.directories_in(node_id)
        self._to_come.extend(i for i in reversed(below) if i not in self._looks.listed)
        yield BOUNDARY

    def _unequal(self, directory: Directory, fd: int | None, names: list[bytes]) -> list[Place]:
        """The places of a directory where something differs from the index, by stat alone."""
        remaining = set(names)
        node_id = directory.id
        unequal: list[Place] = []
        doubted: list[int] = []
        doubt_since_ns = self._doubt_since_ns
        lstat, is_file = os.stat, _FILE
        for name, child_id, kind, ino, size, mtime_ns, ctime_ns in self._scene.index.rows(node_id):
            if name in remaining:
                remaining.discard(name)
                try:
                    status = lstat(name, dir_fd=fd, follow_symlinks=False)
                except OSError:
                    unequal.append((node_id, name))
                    continue
                if (
                    status.st_ctime_ns == ctime_ns
                    and status.st_ino == ino
                    and status.st_mtime_ns == mtime_ns
                    and (status.st_size == size or kind != is_file)
                ):
                    if doubt_since_ns is None or ctime_ns < doubt_since_ns or kind != is_file:
                        continue
                    doubted.append(child_id)
            unequal.append((node_id, name))
        for child_id in doubted:
            self._scene.index.doubt(child_id)
        tree = directory.tree
        by_name = tree.decides_by_name
        unequal.extend(
            (node_id, name) for name in remaining if not (by_name and tree.excluded_name(name, directory=False))
        )
        return unequal
