"""The reconciler: what stands in the trees now, against what the index (the log) has; the difference as changes.

One way for everything. Events only say where to look; a scan looks everywhere. Inside a batch things are read in an
order that keeps a copy sound: first contents of files that refer to others (``read_first``), then names, then other
contents.

A node that is not at a name any more, but has more links than names are left of it (its handle tells), has been moved
since the events of this batch were taken. It is kept at its old name, *in limbo*, until a later batch has seen
everything that was queued when it was missed: then it is found at its new name, which is a rename, or it has left the
tree and is removed. So a message that is moved about is never absent from the log. Places wanted by others meanwhile
are put off.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from holdfast.changes.change import Change
from holdfast.trees.index import Node, NodeKind
from holdfast.watch.disk import Place
from holdfast.watch.folders import Folders
from holdfast.watch.hints import ATTRIB, CONTENT, CREATE, NAMES, ON_DIRECTORY, Hint
from holdfast.watch.looks import Looks
from holdfast.watch.scan import Scan
from holdfast.watch.scene import LEFT_OUT, READ_FIRST, THE_DIRECTORY, Scene

_MORE_THAN_CONTENT: Final = NAMES | ON_DIRECTORY


class _Sorted:
    """The hints of a batch, by what has to be done."""

    def __init__(self) -> None:
        self.places: dict[Place, None] = {}
        """Names changed here."""
        self.first: dict[Place, tuple[int, bytes | None]] = {}
        """Contents or metadata of the file here, to be read before names: the mask, and its identity where known."""
        self.contents: dict[Place, tuple[int, bytes | None]] = {}
        """The same of other files."""
        self.handles: dict[bytes, int] = {}
        """The same of files of which no protected name is told."""


class Reconciler:
    """Makes changes of hints. One thread; every batch is taken whole before the next begins."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self._folders = Folders(self.scene)
        self._looks = Looks(self.scene, self._folders)
        self._files = self._looks.files

    def forget(self) -> None:
        """Start anew: the index was rolled back, or is another one's work. A scan must follow."""
        self.scene.forget()
        self._folders.forget()
        self._looks.forget()

    # -- what is left over between batches -----------------------------------------------------------------------------

    def due_seconds(self) -> float | None:
        """How long until there is something to do without any event; None: never."""
        scene = self.scene
        now = scene.monotonic()
        if scene.again:
            return 0.0
        times = [at for at in (self._files.due_at(), self._folders.due_at()) if at is not None]
        if scene.limbo:
            times.append(now + scene.limbo.due_seconds())
        if scene.troubles:
            times.append(min(trouble.since for trouble in scene.troubles.values()) + scene.limits.retry_seconds)
        return max(min(times) - now, 0.0) if times else None

    def open_since(self) -> int | None:
        """The number of the oldest batch of which something is still to be logged; None when all is."""
        numbers = (self.scene.limbo.since(), self._files.since(), min(self.scene.again.values(), default=None))
        return min((number for number in numbers if number is not None), default=None)

    # -- batches -------------------------------------------------------------------------------------------------------

    def events(self, hints: Iterable[Hint], *, hurry: bool = False) -> Iterator[Change]:
        """The changes behind *hints*. *hurry*: a barrier waits, nothing is put off because it is slow."""
        scene = self.scene
        scene.begin_batch(hurry=hurry)
        found = self._sort(hints)
        again, scene.again = scene.again, {}
        found.places.update(dict.fromkeys(again))
        for place, (mask, child) in found.first.items():
            yield from self._content_at(place, mask, child)
        yield from self._looks.look(scene.in_reading_order(list(found.places)))
        for place, (mask, child) in found.contents.items():
            yield from self._content_at(place, mask, child)
        for handle, mask in found.handles.items():
            node = scene.index.by_handle(handle)
            if node is not None:
                yield from self._content_of(node, mask, None)
        yield from self._checks()
        if scene.to_scan is None:  # in the middle of a scan not everything has been looked at
            yield from self._give_up(scene.limbo.given_up(scene.number))
        for place, since in again.items():
            if place in scene.again:
                scene.again[place] = since
        yield from self._retry()
        if scene.to_scan is None:
            yield from self._folders.settle()

    def _sort(self, hints: Iterable[Hint]) -> _Sorted:
        scene, found = self.scene, _Sorted()
        places, handles = found.places, found.handles
        directory_of, touched, limbo, pattern = (
            scene.disk.directory_of,
            self._folders.touched,
            scene.limbo,
            scene.pattern,
        )
        spots = scene.disk.spots
        for where, mask in hints:
            plain = not mask & _MORE_THAN_CONTENT
            if plain:
                spot = spots.get(where)
                if spot is not None:
                    at, child, first = spot
                    if at is not None:
                        contents = found.first if first else found.contents
                        known = contents.get(at)
                        contents[at] = (mask | known[0] if known else mask, child)
                    elif child is not None:
                        handles[child] = handles.get(child, 0) | mask
                    continue
            handle, name, child, to = where
            directory = None if handle is None else directory_of(handle)
            if directory is None:
                if child is not None and mask & (CONTENT | ATTRIB) and not mask & (CREATE | ON_DIRECTORY):
                    handles[child] = handles.get(child, 0) | mask
                continue
            if not name:
                scene.directory_checks.add(directory.id)
                touched(directory.id)
                continue
            if mask & NAMES:
                touched(directory.id)
            is_directory, special = bool(mask & ON_DIRECTORY), 0
            place = (directory.id, name)
            if mask & NAMES:
                if to is not None:
                    limbo.renamed(place, to, child)
                if child is not None:
                    limbo.moved(child, scene.number)
            if is_directory:
                tree = directory.tree
                if tree.decides_by_name and tree.excluded_name(name, directory=True):
                    continue
                if mask & NAMES:
                    limbo.directory_came(place, mask, child)
            elif (special := pattern(directory, place)) & LEFT_OUT:
                # By the path we know: should its directory be renamed in this batch, all in it is looked at.
                if child is not None and mask & (CONTENT | ATTRIB) and not mask & CREATE:
                    handles[child] = handles.get(child, 0) | mask  # it may have another name, which is protected
                if plain:
                    scene.remember_spot(where, (None, child, False))
                continue
            if mask & NAMES:
                places[place] = None
            if mask & (CONTENT | ATTRIB):
                if is_directory:
                    places[place] = None
                else:
                    contents = found.first if special & READ_FIRST else found.contents
                    known = contents.get(place)
                    contents[place] = (mask | (known[0] if known else 0), child)
                    if plain:
                        scene.remember_spot(where, (place, child, bool(special & READ_FIRST)))
        return found

    def _content_at(self, place: Place, mask: int, child: bytes | None) -> Iterable[Change]:
        index = self.scene.index
        node = index.child(*place)
        if child is not None and (node is None or (node.handle is not None and node.handle != child)):
            node = index.by_handle(child)
            return () if node is None else self._content_of(node, mask, None)
        return () if node is None else self._content_of(node, mask, place)

    def _content_of(self, node: Node, mask: int, place: Place | None) -> Iterable[Change]:
        scene = self.scene
        if node.id in scene.fresh:
            return ()
        if node.kind == NodeKind.DIRECTORY:
            scene.directory_checks.add(node.id)
            return ()
        if place is None:
            names = scene.index.names(node.id)
            if not names:
                return ()
            place = names[0]
        return self._files.compare(node, place, mask)

    def _checks(self) -> Iterator[Change]:
        """What looking at names found to need a closer look."""
        scene = self.scene
        while scene.checks or scene.directory_checks:
            checks, scene.checks = scene.checks, {}
            for node_id, (mask, place) in checks.items():
                node = scene.index.node(node_id)
                if node is not None and node_id not in scene.fresh:
                    yield from self._files.compare(node, place, mask)
            directories, scene.directory_checks = scene.directory_checks, set()
            for node_id in directories:
                yield from self._folders.describe(node_id, with_mtime=False)

    def _give_up(self, places: set[Place]) -> Iterator[Change]:
        if places:
            yield from self._looks.give_up(places)
            yield from self._checks()

    def _retry(self) -> Iterator[Change]:
        """What could not be read, or was put off, and is due."""
        scene = self.scene
        places = []
        limit = scene.monotonic() - scene.limits.retry_seconds
        for place in [place for place, trouble in scene.troubles.items() if trouble.since <= limit]:
            del scene.troubles[place]
            if place[1] == THE_DIRECTORY:
                self._looks.relist(place[0])
                scene.directory_checks.add(place[0])
                continue
            places.append(place)
            node_id = scene.index.child_id(*place)
            if node_id is not None:
                scene.check(node_id, CONTENT | ATTRIB, place)
        self._files.take_up()
        yield from self._looks.look(places)
        yield from self._checks()

    def mark(self, tree: str, path: bytes) -> None:
        """Look at *path* in the next batch: somebody found that it differs."""
        scene = self.scene
        above, _, name = path.rpartition(b"/")
        directory = scene.index.directory(tree, above)
        if directory is None:
            if path:
                self.mark(tree, above)
            return
        node_id = scene.index.child_id(directory, name) if name else directory
        node = None if node_id is None else scene.index.node(node_id)
        if node is not None and node.kind == NodeKind.DIRECTORY:
            scene.directory_checks.add(node.id)
            for place in self._looks.listing(node.id):
                scene.put_off(place)
        elif node is not None:
            self._files.went(node.id)  # what is remembered of it, too, is in doubt
            scene.check(node.id, CONTENT | ATTRIB, (directory, name))
        if name:
            scene.put_off((directory, name))

    # -- scan ----------------------------------------------------------------------------------------------------------

    def scan(self, doubt_since_ns: int | None) -> Scan:
        """A scan, to be begun."""
        return Scan(self.scene, self._looks, self._folders, self._checks, doubt_since_ns)

    def after_scan(self, *, final: bool) -> Iterator[Change]:
        """What was put off is tried again. *final*: no events will tell of what is in limbo, so it is given up."""
        scene = self.scene
        again = set(scene.again)
        scene.again.clear()
        yield from self._looks.look(scene.in_reading_order(list(again)))
        yield from self._checks()
        if final:
            yield from self._give_up(scene.limbo.everything())
        yield from self._folders.settle(at_once=final)
