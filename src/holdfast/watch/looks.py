"""Looking at places: what stands there, what the index has there, and what follows for names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from holdfast.changes.change import PATH_BYTES_MAX, Change
from holdfast.trees.index import Node, NodeKind
from holdfast.trees.stat import has_handles
from holdfast.watch.disk import Directory, Found, Place, Unreadable
from holdfast.watch.files import Files
from holdfast.watch.folders import Folders
from holdfast.watch.hints import ATTRIB, CONTENT
from holdfast.watch.names import PATH_TOO_LONG, Kind, Steps, pair
from holdfast.watch.scene import THE_DIRECTORY, Scene


class _View:
    """What one look at a set of places has found."""

    def __init__(self) -> None:
        self.gone: dict[int, list[Place]] = {}
        """By node: where the index has it and it does not stand."""
        self.gained: dict[bytes, list[tuple[Place, Found]]] = {}
        """By identity: where it stands and the index has it not."""
        self.nodes: dict[int, Node] = {}
        self.known: dict[bytes, Node | None] = {}
        self.links: dict[bytes, int] = {}
        """The most links a file was seen to have: a name looked at before may have gone since."""

    def only_new_files(self) -> bool:
        """Whether nothing went, and all that came are files the index does not know, with one name each."""
        if self.gone or self.nodes:
            return False
        return all(len(at) == 1 and at[0][1].seen.kind is NodeKind.FILE for at in self.gained.values())


class Looks:
    """Names: from places to changes. Follows what it finds: new directories are listed, lost ones emptied."""

    def __init__(self, scene: Scene, folders: Folders) -> None:
        self._scene = scene
        self._folders = folders
        self.files = Files(scene, self.came)
        self.put = self.files.put
        self.put_off = scene.put_off
        self.trouble = scene.trouble
        self.touched = folders.touched
        self.limbo = scene.limbo
        self.freed = scene.limbo.freed
        self.listed: set[int] = set()
        """While a scan runs: directories that were listed here."""
        self._tasks: list[tuple[int, Place | None]] = []
        """Directories to list; with a place: to look at once more, after what was in them has gone."""
        self._descended: set[int] = set()
        self._expired: set[Place] = set()
        self._condemned: set[int] = set()
        """Directories that left the trees with all that is in them."""

    def forget(self) -> None:
        self.files.forget()
        for remembered in (self.listed, self._tasks, self._descended, self._expired, self._condemned):
            remembered.clear()

    # -- places --------------------------------------------------------------------------------------------------------

    def look(self, places: Iterable[Place]) -> Iterator[Change]:
        """Look at *places*, and at all that follows from what is found there."""
        self._descended.clear()
        yield from self._look(places)
        while self._tasks:
            node_id, place = self._tasks.pop()
            yield from self._look(self.listing(node_id) if place is None else (place,))

    def give_up(self, places: set[Place]) -> Iterator[Change]:
        """What was at *places*, and was not found in all the events since, has left the trees."""
        self._expired = places
        again = list(self._scene.again)
        self._scene.again.clear()
        yield from self.look([*places, *again])
        self._expired = set()
        self._condemned.clear()

    def relist(self, node_id: int) -> None:
        """Look at everything in a directory at the next look."""
        self._tasks.append((node_id, None))

    def listing(self, node_id: int) -> list[Place]:
        """The places of a directory that is new, or that is no more: what stands there, and what the index has."""
        scene = self._scene
        directory = scene.disk.directory(node_id)
        if directory is None:
            return []
        if scene.to_scan is not None:
            self.listed.add(node_id)
        known = [name for name, *_ in scene.index.rows(node_id)]
        if node_id in self._condemned:
            return [(node_id, name) for name in known]
        try:
            fd = scene.disk.fd(directory)
            if fd is not None and directory.handle is not None:
                scene.watch(fd, directory.handle)
            names = scene.disk.names(directory)
        except Unreadable as error:
            scene.trouble((node_id, THE_DIRECTORY), error.reason)
            return []
        return scene.in_reading_order([(node_id, name) for name in dict.fromkeys((*(names or ()), *known))])

    def _look(self, places: Iterable[Place]) -> Iterator[Change]:
        view = _View()
        looked: set[Place] = set()
        work = list(places)
        work.reverse()
        while work:
            place = work.pop()
            if place not in looked:
                looked.add(place)
                work.extend(other for other in self._look_at(place, view) if other not in looked)
        if view.only_new_files():
            yield from self._put_all(view)
        elif view.gone or view.gained:
            yield from self._steps(view)

    def _look_at(self, place: Place, view: _View) -> list[Place]:
        """Look at one place; which others have to be looked at therefore: the other names of what is involved."""
        scene = self._scene
        directory = scene.disk.directory(place[0])
        if directory is None:
            return []
        scene.clear_skipped(directory, place[1])
        old = scene.index.child(*place)
        try:
            found = None if place[0] in self._condemned else scene.disk.look(directory, place[1])
        except Unreadable as error:
            scene.trouble(place, error.reason)
            return []
        if found is not None and found.seen.links > 1 and found.seen.kind is NodeKind.FILE:
            view.links[found.handle] = max(found.seen.links, view.links.get(found.handle, 0))
        others: list[Place] = []
        if old is not None:
            if found is not None and self._same(old, found, directory, place[1]):
                self._compare(old, found, place, deep=scene.deep)
                if old.kind == NodeKind.DIRECTORY and scene.to_scan is None and not has_handles(found.handle):
                    self.relist(old.id)  # perhaps another directory with the same inode number
                return []
            view.gone.setdefault(old.id, []).append(place)
            view.nodes[old.id] = old
            if old.kind == NodeKind.FILE:
                others = scene.index.names(old.id)
        if found is not None:
            handle = found.handle
            view.gained.setdefault(handle, []).append((place, found))
            if handle not in view.known:
                node = scene.index.by_handle(handle)
                names = [] if node is None else scene.index.names(node.id)
                if node is not None and self._fits(node, names, found, directory):
                    view.known[handle] = view.nodes[node.id] = node
                    others = others + names
                else:
                    view.known[handle] = None
        return others

    def _fits(self, node: Node, names: list[Place], found: Found, directory: Directory) -> bool:
        """Whether a known node can be what was found: renames do not cross trees."""
        if node.kind != found.seen.kind or not names:
            return False
        above = self._scene.disk.directory(names[0][0])
        return above is not None and above.tree is directory.tree

    def _same(self, old: Node, found: Found, directory: Directory, name: bytes) -> bool:
        """Whether what was found is the node the index has at that place. Adopts identities not seen before."""
        seen, scene = found.seen, self._scene
        if old.handle == found.handle:
            return old.kind == seen.kind
        if old.handle is not None or old.kind != seen.kind or scene.index.by_handle(found.handle) is not None:
            return False
        if seen.kind is NodeKind.FILE and seen.links > 1 and (seen.size, seen.mtime_ns) != (old.size, old.mtime_ns):
            return False
        if seen.kind is NodeKind.SYMLINK and scene.disk.link_target(directory, name) != old.content:
            return False
        scene.index.resight(old.id, found.handle, seen.ino, 0)
        scene.disk.came(old.id, found.handle)
        return True

    def _compare(self, node: Node, found: Found, place: Place, *, deep: bool) -> None:
        """The same node: does it look as the index says? *deep*: nobody told us of changes of its content."""
        seen, scene = found.seen, self._scene
        as_known = seen.mode == node.mode and seen.uid == node.uid and seen.gid == node.gid
        if node.kind == NodeKind.DIRECTORY:
            if not as_known or node.handle is None or (scene.deep and seen.ctime_ns != node.ctime_ns):
                scene.directory_checks.add(node.id)
            if seen.mtime_ns != node.mtime_ns:
                self._folders.touched(node.id)
            return
        if seen.size != node.size or seen.mtime_ns != node.mtime_ns:
            scene.check(node.id, CONTENT | ATTRIB, place)
        elif seen.ctime_ns == node.ctime_ns and as_known:
            return
        elif self._hot(place) if node.handle is None else (deep or not has_handles(found.handle)):
            scene.check(node.id, CONTENT | ATTRIB, place)
        elif node.handle is None or not as_known or scene.deep:  # renamed unseen, and perhaps given other xattrs
            scene.check(node.id, ATTRIB, place)
        else:
            scene.index.resight(node.id, found.handle, seen.ino, seen.ctime_ns)

    def _hot(self, place: Place) -> bool:
        """Whether a file is of those that are rewritten in place."""
        directory = self._scene.disk.directory(place[0])
        return directory is not None and self._scene.pattern(directory, place) != 0

    # -- what follows --------------------------------------------------------------------------------------------------

    def _put_all(self, view: _View) -> Iterator[Change]:
        """New files at free places: nothing waits for anything. What most batches are, so without steps."""
        for ((place, found),) in view.gained.values():
            directory = self._scene.disk.directory(place[0])
            if directory is None:
                continue
            self.touched(place[0])
            if len(directory.prefix) + len(place[1]) > PATH_BYTES_MAX:
                self.trouble(place, PATH_TOO_LONG)
                continue
            yield from self.put(place, found, None)

    def _steps(self, view: _View) -> Iterator[Change]:
        steps = Steps(self._scene.index, self._scene.disk, self._scene.owners, self)
        for handle, found_at in view.gained.items():
            node = view.known[handle]
            places, found = [place for place, _ in found_at], found_at[-1][1]
            if node is None:
                if found.seen.kind is NodeKind.DIRECTORY:
                    del places[:-1]  # the later look wins
                steps.add(Kind.NEW, None, places[0], places[0], found)
                for place in places[1:]:
                    steps.add(Kind.LINK, None, place, place, found)
                continue
            sources = view.gone.pop(node.id, [])
            if node.kind == NodeKind.DIRECTORY:
                source = (sources or self._scene.index.names(node.id))[0]
                steps.add(Kind.MOVE, node, source, places[-1], found)
                continue
            if found.seen.links > 1 and sources:
                sources, places = self._pair_links(steps, node, sources, places, found, view.links[handle])
            for source_place, target in pair(sources, places):
                if source_place is None:
                    assert target is not None
                    steps.add(Kind.LINK, node, target, target, found)
                elif target is None:
                    steps.add(Kind.UNLINK, node, source_place, source_place, None)
                else:
                    steps.add(Kind.MOVE, node, source_place, target, found)
        for node_id, sources in view.gone.items():
            node = view.nodes[node_id]
            self._lost(steps, node, sources, view.links.get(node.handle or b"", 0))
        yield from steps.changes()

    def _pair_links(
        self, steps: Steps, node: Node, sources: list[Place], places: list[Place], found: Found, links: int
    ) -> tuple[list[Place], list[Place]]:
        """Which name of a file with several became which. What is left is any one's guess, and all the same.

        When the file has more links than places are known, some of its names are where nobody has looked yet: then
        names that went stay in limbo, and what was gained is a further link.
        """
        scene = self._scene
        unseen = links - (len(scene.index.names(node.id)) - len(sources)) - len(places)
        for source in tuple(sources):
            target = scene.limbo.renamed_to(source, node)
            if target in places:
                sources.remove(source)
                places.remove(target)
                steps.add(Kind.MOVE, node, source, target, found)
        if unseen > 0:
            missed = [source for source in sources if source not in self._expired]
            scene.limbo.miss(node, missed, scene.number)
            sources = [source for source in sources if source in self._expired]
        return sources, places

    def _lost(self, steps: Steps, node: Node, sources: list[Place], links_seen: int) -> None:
        """A node is not at *sources* any more, and was found nowhere else."""
        scene = self._scene
        leaving = [place for place in sources if place in self._expired or place[0] in self._condemned]
        if len(leaving) < len(sources):
            left = len(scene.index.names(node.id)) - len(sources)
            if max(scene.disk.links(node), links_seen) > left:
                scene.limbo.miss(node, (place for place in sources if place not in leaving), scene.number)
                sources = leaving
        if sources and node.kind == NodeKind.DIRECTORY and scene.index.has_children(node.id):
            self._descend(node, sources[0], leaving=bool(leaving))
            return
        for place in sources:
            steps.add(Kind.UNLINK, node, place, place, None)

    def _descend(self, node: Node, place: Place, *, leaving: bool) -> None:
        """A directory is gone: first what was in it, then the directory itself."""
        if node.id in self._descended:
            self._scene.put_off(place)
            return
        self._descended.add(node.id)
        if leaving:
            self._condemned.add(node.id)
        self._tasks.append((node.id, place))
        self._tasks.append((node.id, None))

    # -- told by steps and files ---------------------------------------------------------------------------------------

    def came(self, node_id: int, found: Found, target: Place) -> None:
        """A node is new in the index."""
        scene = self._scene
        scene.clear_trouble(target)
        scene.fresh.add(node_id)
        if found.seen.kind is NodeKind.DIRECTORY:
            self._folders.touched(node_id)
            if not scene.deep:  # a scan comes to it by itself
                self.relist(node_id)

    def moved(self, node: Node, found: Found, target: Place) -> None:
        """A known node has another name."""
        scene = self._scene
        scene.clear_trouble(target)
        if node.kind == NodeKind.DIRECTORY:
            directory = scene.disk.directory(node.id)
            if scene.to_scan is not None:
                scene.to_scan.append(node.id)
            elif directory is not None and not directory.tree.decides_by_name:
                self._relist_all(node.id)
        self._compare(node, found, target, deep=False)

    def _relist_all(self, node_id: int) -> None:
        """What is excluded below may depend on the path: look at everything again."""
        self.relist(node_id)
        for child in self._scene.index.directories_in(node_id):
            self._relist_all(child)

    def went(self, node: Node) -> None:
        """A node is no more in the index."""
        self.files.went(node.id)
        self._folders.went(node.id)
