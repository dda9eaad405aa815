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

import os
import stat
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from typing import Final, NamedTuple

from holdfast.changes.change import Change, Extent, Meta, Patch, Put, SetMeta
from holdfast.changes.digest import BLOCK_BYTES, DIGEST_BYTES
from holdfast.trees.index import Index, Node, NodeKind
from holdfast.trees.spec import Tree
from holdfast.trees.stat import Observed, Owners, has_handles, observed, pack_xattrs, read_xattrs, unpack_xattrs
from holdfast.watch.content import Differences, Known, Piece, Tails, read_new
from holdfast.watch.disk import Directory, Disk, Found, Place, Unreadable, ensure_root
from holdfast.watch.hints import ATTRIB, CLOSE_WRITE, CONTENT, CREATE, NAMES, ON_DIRECTORY, Hint
from holdfast.watch.limbo import Limbo
from holdfast.watch.limits import CONTENT_BYTES_PER_SECOND, CONTENT_CHEAP_BYTES, FILE_BYTES_MAX, Limits
from holdfast.watch.names import Kind, Steps, pair

THE_DIRECTORY: Final = b"."
"""Names the directory itself where something is wrong with it."""
READ_FIRST: Final = 1
APPENDED: Final = 2
PATTERNS_REMEMBERED_MAX: Final = 20_000
"""Paths whose patterns were matched: hot index and list files come by again and again. About 4 MB."""
SLOW_REMEMBERED_MAX: Final = 1000


class Boundary:
    """Stands between changes of a scan where a position may count as whole."""


BOUNDARY: Final = Boundary()


class Trouble(NamedTuple):
    """What could not be read: *reason* for people, *since* on the monotonic clock."""

    tree: str
    path: bytes
    reason: str
    since: float


class Reconciler:
    """Owns the state that lives between batches. One thread."""

    def __init__(
        self,
        index: Index,
        trees: Mapping[str, Tree],
        owners: Owners,
        limits: Limits,
        monotonic: Callable[[], float],
        watch: Callable[[int, bytes], None],
    ) -> None:
        """*watch(fd, handle)* is told of each directory before it is listed."""
        self._index = index
        self._trees = trees
        self._owners = owners
        self._limits = limits
        self._monotonic = monotonic
        self._watch = watch
        self.skipped: dict[tuple[str, bytes], str] = {}
        self.disk = Disk(index, trees, limits, self._skip)
        self.limbo = Limbo(index, self.disk, monotonic, limits.limbo_seconds)
        self.troubles: dict[Place, Trouble] = {}
        self.troubles_unnamed = 0
        self._patterns: dict[tuple[str, bytes], int] = {}
        self.forget()

    def forget(self) -> None:
        """Start anew: the index was rolled back, or is another one's work. A scan must follow."""
        self.number = 0
        self.limbo.forget()
        self._again: dict[Place, int] = {}
        self._deferred: dict[int, tuple[float, Place, int, int]] = {}
        self._slow: dict[int, float] = {}
        self._settling: OrderedDict[int, float] = OrderedDict()
        self._tails = Tails(self._limits.tails_bytes_max)
        self._settled: OrderedDict[int, int] = OrderedDict()
        self._tasks: list[tuple[int, Place | None]] = []
        self._descended: set[int] = set()
        self._expired: set[Place] = set()
        self._condemned: set[int] = set()
        self._fresh: set[int] = set()
        self._contents: dict[int, tuple[int, Place]] = {}
        self._directories: set[int] = set()
        self._links: dict[bytes, int] = {}
        """The most links a file was seen to have in this look: a name looked at before may have gone since."""
        self._to_scan: list[int] | None = None
        self._listed: set[int] = set()
        self._deep = False
        self._doubt_since_ns: int | None = None
        self._hurry = False
        self.disk.forget()

    # -- what is left over between batches -----------------------------------------------------------------------------

    def due_seconds(self) -> float | None:
        """How long until there is something to do without any event; None: never."""
        now = self._monotonic()
        if self._again:
            return 0.0
        times = [until for until, _, _, _ in self._deferred.values()]
        if self._settling:
            times.append(next(iter(self._settling.values())) + self._limits.settle_seconds)
        if self.limbo:
            times.append(now + self.limbo.due_seconds())
        if self.troubles:
            times.append(min(t.since for t in self.troubles.values()) + self._limits.retry_seconds)
        return max(min(times) - now, 0.0) if times else None

    def open_since(self) -> int | None:
        """The number of the oldest batch of which something is still to be logged; None when all is."""
        return min(
            (
                *(since for since in (self.limbo.since(),) if since is not None),
                *self._again.values(),
                *(since for _, _, _, since in self._deferred.values()),
            ),
            default=None,
        )

    # -- batches -------------------------------------------------------------------------------------------------------

    def events(self, hints: Iterable[Hint], *, hurry: bool = False) -> Iterator[Change]:
        """The changes behind *hints*. *hurry*: a barrier waits, nothing is put off because it is slow."""
        self.number += 1
        self._fresh.clear()
        self._descended.clear()
        self._hurry = hurry
        self.disk.refresh()
        places, contents, handles = self._sorted_hints(hints)
        again, self._again = self._again, {}
        places.update(dict.fromkeys(again))
        yield from self._read_first(contents)
        yield from self._names(sorted(places, key=self._not_first) if self._any_read_first else places)
        yield from self._finish(contents, handles)
        if self._to_scan is None:  # in the middle of a scan not everything has been looked at
            yield from self._expire(self.limbo.given_up(self.number))
        for place, since in again.items():
            if place in self._again:
                self._again[place] = since
        yield from self._retry()
        if self._to_scan is None:
            yield from self._settle()

    def _sorted_hints(
        self, hints: Iterable[Hint]
    ) -> tuple[dict[Place, None], dict[Place, tuple[int, bytes | None]], dict[bytes, int]]:
        """Places whose names changed; places of files whose contents or metadata did; the same by handle alone."""
        places: dict[Place, None] = {}
        contents: dict[Place, tuple[int, bytes | None]] = {}
        handles: dict[bytes, int] = {}
        directory_of = self.disk.directory_of
        self.limbo.begin_batch()
        for handle, name, child, mask, to in hints:
            directory = None if handle is None else directory_of(handle)
            if directory is None:
                if child is not None and not mask & (CREATE | ON_DIRECTORY):
                    handles[child] = handles.get(child, 0) | mask
                continue
            if not name:
                self._directories.add(directory.id)
                self.touched(directory.id)
                continue
            if mask & NAMES:
                self.touched(directory.id)
            is_directory = bool(mask & ON_DIRECTORY)
            tree = directory.tree
            if tree.decides_by_name and tree.excluded_name(name, directory=is_directory):
                continue
            place = (directory.id, name)
            if mask & NAMES:
                places[place] = None
                if is_directory:
                    self.limbo.directory_came(place, mask, child)
                if to is not None:
                    self.limbo.renamed(place, to, child)
                if child is not None:
                    self.limbo.moved(child, self.number)
            if mask & (CONTENT | ATTRIB):
                if is_directory:
                    places[place] = None
                else:
                    known = contents.get(place)
                    contents[place] = (mask | (known[0] if known else 0), child)
        return places, contents, handles

    @property
    def _any_read_first(self) -> bool:
        return any(tree.spec.read_first for tree in self._trees.values())

    def _not_first(self, place: Place) -> bool:
        directory = self.disk.directory(place[0])
        return directory is None or not self._pattern(directory, place[1]) & READ_FIRST

    def _pattern(self, directory: Directory, name: bytes) -> int:
        key = (directory.tree.name, directory.prefix + name)
        known = self._patterns.get(key)
        if known is None:
            tree = directory.tree
            known = (READ_FIRST if tree.read_first(key[1]) else 0) | (APPENDED if tree.appended(key[1]) else 0)
            if len(self._patterns) >= PATTERNS_REMEMBERED_MAX:
                self._patterns.clear()
            self._patterns[key] = known
        return known

    def _read_first(self, contents: dict[Place, tuple[int, bytes | None]]) -> Iterator[Change]:
        if not self._any_read_first:
            return
        for place in [place for place in contents if not self._not_first(place)]:
            mask, child = contents.pop(place)
            yield from self._content_at(place, mask, child)

    def _finish(self, contents: dict[Place, tuple[int, bytes | None]], handles: dict[bytes, int]) -> Iterator[Change]:
        """Contents and metadata, once the names are right."""
        for place, (mask, child) in contents.items():
            yield from self._content_at(place, mask, child)
        for handle, mask in handles.items():
            if mask & (CONTENT | ATTRIB):
                node = self._index.by_handle(handle)
                if node is not None and node.id not in self._fresh:
                    yield from self._content_of(node, mask)
        yield from self._checks()

    def _checks(self) -> Iterator[Change]:
        """What looking at names found to need a closer look."""
        while self._contents or self._directories:
            contents, self._contents = self._contents, {}
            for node_id, (mask, place) in contents.items():
                node = self._index.node(node_id)
                if node is not None and node_id not in self._fresh:
                    yield from self._file(node, place, mask)
            directories, self._directories = self._directories, set()
            for node_id in directories:
                yield from self._directory(node_id, with_mtime=False)

    def _content_at(self, place: Place, mask: int, child: bytes | None) -> Iterator[Change]:
        node = self._index.child(*place)
        if child is not None and (node is None or (node.handle is not None and node.handle != child)):
            node = self._index.by_handle(child)
        if node is not None and node.id not in self._fresh:
            yield from self._content_of(node, mask, place)

    def _content_of(self, node: Node, mask: int, place: Place | None = None) -> Iterator[Change]:
        if node.kind == NodeKind.DIRECTORY:
            self._directories.add(node.id)
            return
        if place is None or self._index.child_id(*place) != node.id:
            names = self._index.names(node.id)
            if not names:
                return
            place = names[0]
        yield from self._file(node, place, mask)

    def _expire(self, places: set[Place]) -> Iterator[Change]:
        """What was at *places*, and was not found in all the events since, has left the trees."""
        if not places:
            return
        self._expired = places
        again = list(self._again)
        self._again.clear()
        self._descended.clear()
        yield from self._names(dict.fromkeys([*places, *again]))
        self._expired = set()
        self._condemned.clear()
        yield from self._checks()

    def _retry(self) -> Iterator[Change]:
        now = self._monotonic()
        due = [p for p, t in self.troubles.items() if now - t.since >= self._limits.retry_seconds]
        for place in due:
            del self.troubles[place]
            if place[1] == THE_DIRECTORY:
                self._tasks.append((place[0], None))
                self._directories.add(place[0])
                continue
            node_id = self._index.child_id(*place)
            if node_id is not None:
                self._contents[node_id] = (CONTENT | ATTRIB, place)
        late = [(n, p, m) for n, (until, p, m, _) in self._deferred.items() if until <= now or self._hurry]
        for node_id, place, mask in late:
            del self._deferred[node_id]
            self._slow.pop(node_id, None)
            self._contents[node_id] = (mask, place)
        if due:
            yield from self._names(place for place in due if place[1] != THE_DIRECTORY)
        if due or late:
            yield from self._checks()

    def mark(self, tree: str, path: bytes) -> None:
        """Look at *path* at the next batch: a scrub found it different."""
        above, _, name = path.rpartition(b"/")
        directory = self._index.directory(tree, above)
        if directory is None:
            if path:
                self.mark(tree, above)
            return
        node_id = self._index.child_id(directory, name) if name else directory
        node = None if node_id is None else self._index.node(node_id)
        if node is not None and node.kind == NodeKind.DIRECTORY:
            self._directories.add(node.id)
            self._again.update((place, self.number) for place in self._list(node.id))
        elif node is not None:
            self._check(node.id, CONTENT | ATTRIB, (directory, name))
        if name:
            self._again[directory, name] = self.number

    # -- names ---------------------------------------------------------------------------------------------------------

    def _names(self, places: Iterable[Place]) -> Iterator[Change]:
        """Look at *places*, and at all that follows from what is found there: new directories, lost ones."""
        yield from self._look(places)
        while self._tasks:
            node_id, place = self._tasks.pop()
            if place is not None:
                yield from self._look([place])
            else:
                yield from self._look(self._list(node_id))
                if self._to_scan is not None:
                    self._listed.add(node_id)

    def _list(self, node_id: int) -> Iterable[Place]:
        """The places of a directory that is new, or that is no more: what stands there, and what the index has."""
        directory = self.disk.directory(node_id)
        if directory is None:
            return []
        known = [name for name, *_ in self._index.rows(node_id)]
        if node_id in self._condemned:
            return [(node_id, name) for name in known]
        try:
            fd = self.disk.fd(directory)
            if fd is not None and directory.handle is not None:
                self._watch(fd, directory.handle)
            names = self.disk.names(directory)
        except Unreadable as error:
            self.trouble((node_id, THE_DIRECTORY), error.reason)
            return []
        places = [(node_id, name) for name in dict.fromkeys((*(names or ()), *known))]
        return sorted(places, key=self._not_first) if self._any_read_first else places

    def _look(self, places: Iterable[Place]) -> Iterator[Change]:
        looked: set[Place] = set()
        gone: dict[int, list[Place]] = {}
        gained: dict[bytes, list[tuple[Place, Found]]] = {}
        nodes: dict[int, Node] = {}
        known: dict[bytes, Node | None] = {}
        self._links.clear()
        work = list(places)
        work.reverse()
        while work:
            place = work.pop()
            if place in looked:
                continue
            looked.add(place)
            directory = self.disk.directory(place[0])
            if directory is None:
                continue
            if self.skipped:
                self.skipped.pop((directory.tree.name, directory.prefix + place[1]), None)
            old = self._index.child(*place)
            try:
                found = None if place[0] in self._condemned else self.disk.look(directory, place[1])
            except Unreadable as error:
                self.trouble(place, error.reason)
                continue
            if found is not None and found.seen.links > 1 and found.seen.kind is NodeKind.FILE:
                self._links[found.handle] = max(found.seen.links, self._links.get(found.handle, 0))
            if found is None:
                if old is None:
                    continue
            elif old is not None and self._same(old, found, directory, place[1]):
                self._compare(old, found, place, deep=self._deep)
                if old.kind == NodeKind.DIRECTORY and self._to_scan is None and not has_handles(found.handle):
                    self._tasks.append((old.id, None))  # perhaps another directory with the same inode number
                continue
            if old is not None:
                gone.setdefault(old.id, []).append(place)
                nodes[old.id] = old
                if old.kind == NodeKind.FILE:
                    work.extend(other for other in self._index.names(old.id) if other not in looked)
            if found is not None:
                handle = found.handle
                gained.setdefault(handle, []).append((place, found))
                if handle not in known:
                    node = self._index.by_handle(handle)
                    if node is not None and not self._fits(node, found, directory):
                        node = None
                    known[handle] = node
                    if node is not None:
                        nodes[node.id] = node
                        work.extend(other for other in self._index.names(node.id) if other not in looked)
        yield from self._steps(gone, gained, nodes, known)

    def _fits(self, node: Node, found: Found, directory: Directory) -> bool:
        """Whether a known node can be what was found: renames do not cross trees."""
        if node.kind != found.seen.kind:
            return False
        names = self._index.names(node.id)
        place = self._index.path(*names[0]) if names else None
        return place is not None and place[0] == directory.tree.name

    def _same(self, old: Node, found: Found, directory: Directory, name: bytes) -> bool:
        """Whether what was found is the node the index has at that place. Adopts identities not seen before."""
        if old.handle == found.handle:
            return old.kind == found.seen.kind
        if old.handle is not None or old.kind != found.seen.kind or self._index.by_handle(found.handle) is not None:
            return False
        seen = found.seen
        if seen.kind is NodeKind.FILE and seen.links > 1 and (seen.size, seen.mtime_ns) != (old.size, old.mtime_ns):
            return False
        if seen.kind is NodeKind.SYMLINK and self.disk.link_target(directory, name) != old.content:
            return False
        self._index.resight(old.id, found.handle, seen.ino, 0)
        self.disk.came(old.id, found.handle)
        return True

    def _compare(self, node: Node, found: Found, place: Place, *, deep: bool) -> None:
        """The same node: does it look as the index says? *deep*: nobody told us of changes of its content."""
        seen = found.seen
        as_known = (seen.mode, seen.uid, seen.gid) == (node.mode, node.uid, node.gid)
        if node.kind == NodeKind.DIRECTORY:
            if not as_known or node.handle is None or (deep and seen.ctime_ns != node.ctime_ns):
                self._directories.add(node.id)
            if seen.mtime_ns != node.mtime_ns:
                self.touched(node.id)
            return
        if seen.ctime_ns == node.ctime_ns and as_known and seen.mtime_ns == node.mtime_ns and seen.size == node.size:
            return
        adopted = node.handle is None
        if seen.size != node.size or seen.mtime_ns != node.mtime_ns:
            self._check(node.id, CONTENT | ATTRIB, place)
        elif adopted:
            directory = self.disk.directory(place[0])
            hot = directory is not None and self._pattern(directory, place[1])
            if hot or not as_known:
                self._check(node.id, CONTENT | ATTRIB if hot else ATTRIB, place)
            else:
                self._index.resight(node.id, found.handle, seen.ino, seen.ctime_ns)
        elif deep or not has_handles(found.handle):
            self._check(node.id, CONTENT | ATTRIB, place)
        elif not as_known:
            self._check(node.id, ATTRIB, place)
        else:
            self._index.resight(node.id, found.handle, seen.ino, seen.ctime_ns)

    def _check(self, node_id: int, mask: int, place: Place) -> None:
        before = self._contents.get(node_id)
        self._contents[node_id] = (mask | (before[0] if before else 0), place)

    def _steps(
        self,
        gone: dict[int, list[Place]],
        gained: dict[bytes, list[tuple[Place, Found]]],
        nodes: dict[int, Node],
        known: dict[bytes, Node | None],
    ) -> Iterator[Change]:
        if not gone and not gained:
            return
        steps = Steps(self._index, self.disk, self._owners, self)
        for handle, found_at in gained.items():
            node = known[handle]
            places, found = [place for place, _ in found_at], found_at[-1][1]
            if node is None and found.seen.kind is NodeKind.DIRECTORY:
                steps.add(Kind.NEW, None, places[-1], places[-1], found)  # the later look wins
                continue
            if node is None:
                steps.add(Kind.NEW, None, places[0], places[0], found)
                for place in places[1:]:
                    steps.add(Kind.LINK, None, place, place, found)
                continue
            sources = gone.pop(node.id, [])
            if node.kind == NodeKind.DIRECTORY:
                source = (sources or self._index.names(node.id))[0]
                steps.add(Kind.MOVE, node, source, places[-1], found)
                continue
            if found.seen.links > 1 and sources:
                sources, places = self._pair_links(steps, node, sources, places, found)
            for source_place, target in pair(sources, places):
                if source_place is None:
                    assert target is not None
                    steps.add(Kind.LINK, node, target, target, found)
                elif target is None:
                    steps.add(Kind.UNLINK, node, source_place, source_place, None)
                else:
                    steps.add(Kind.MOVE, node, source_place, target, found)
        for node_id, sources in gone.items():
            self._lost(steps, nodes[node_id], sources)
        yield from steps.changes()

    def _pair_links(
        self, steps: Steps, node: Node, sources: list[Place], places: list[Place], found: Found
    ) -> tuple[list[Place], list[Place]]:
        """Which name of a file with several became which. What is left is any one's guess, and all the same.

        When the file has more links than places are known, some of its names are where nobody has looked yet: then
        names that went stay in limbo, and what was gained is a further link.
        """
        sources, places = list(sources), list(places)
        unseen = self._links[found.handle] - (len(self._index.names(node.id)) - len(sources)) - len(places)
        for source in tuple(sources):
            target = self.limbo.renamed_to(source, node)
            if target in places:
                sources.remove(source)
                places.remove(target)
                steps.add(Kind.MOVE, node, source, target, found)
        if unseen > 0:
            missed = [source for source in sources if source not in self._expired]
            self.limbo.miss(node, missed, self.number)
            sources = [source for source in sources if source in self._expired]
        return sources, places

    def _lost(self, steps: Steps, node: Node, sources: list[Place]) -> None:
        """A node is not at *sources* any more, and was found nowhere else."""
        left = len(self._index.names(node.id)) - len(sources)
        leaving = [place for place in sources if place in self._expired or place[0] in self._condemned]
        links = max(self.disk.links(node), self._links.get(node.handle or b"", 0)) if len(leaving) < len(sources) else 0
        if links > left:
            self.limbo.miss(node, (place for place in sources if place not in leaving), self.number)
            sources = leaving
        elif node.kind == NodeKind.DIRECTORY and self._index.has_children(node.id):
            self._descend(node, sources[0], leaving=bool(leaving))
            return
        for place in sources:
            steps.add(Kind.UNLINK, node, place, place, None)

    def _descend(self, node: Node, place: Place, *, leaving: bool) -> None:
        """A directory is gone: first what was in it, then the directory itself."""
        if node.id in self._descended:
            self.put_off(place)
            return
        self._descended.add(node.id)
        if leaving:
            self._condemned.add(node.id)
        self._tasks.append((node.id, place))
        self._tasks.append((node.id, None))

    # -- for the steps -------------------------------------------------------------------------------------------------

    def came(self, node_id: int, found: Found, target: Place) -> None:
        self._clear_trouble(target)
        self._fresh.add(node_id)
        if found.seen.kind is NodeKind.DIRECTORY:
            self.touched(node_id)
            self._tasks.append((node_id, None))

    def moved(self, node: Node, found: Found, target: Place) -> None:
        self._clear_trouble(target)
        if node.kind == NodeKind.DIRECTORY:
            directory = self.disk.directory(node.id)
            if self._to_scan is not None:
                self._to_scan.append(node.id)
            elif directory is not None and not directory.tree.decides_by_name:
                self._relist(node.id)
        self._compare(node, found, target, deep=False)

    def _relist(self, node_id: int) -> None:
        """What is excluded below may depend on the path: look at everything again."""
        self._tasks.append((node_id, None))
        for child in self._index.directories_in(node_id):
            self._relist(child)

    def went(self, node: Node) -> None:
        self._tails.drop(node.id)
        self._settled.pop(node.id, None)
        self._settling.pop(node.id, None)

    def freed(self, place: Place) -> None:
        self.limbo.freed(place)

    def put_off(self, place: Place) -> None:
        self._again.setdefault(place, self.number)

    def trouble(self, place: Place, reason: str) -> None:
        directory = self.disk.directory(place[0])
        if directory is None:
            return
        if place not in self.troubles and len(self.troubles) >= self._limits.problems_max:
            self.troubles_unnamed += 1
            return
        path = directory.prefix + place[1]
        self.troubles[place] = Trouble(directory.tree.name, path, reason, self._monotonic())

    def _clear_trouble(self, place: Place) -> None:
        if self.troubles:
            self.troubles.pop(place, None)

    def _skip(self, tree: str, path: bytes, what: str) -> None:
        if len(self.skipped) < self._limits.problems_max:
            self.skipped[tree, path] = what

    # -- new files -----------------------------------------------------------------------------------------------------

    def put(self, target: Place, found: Found, replace: Callable[[], None]) -> Iterator[Change]:
        """A file the index does not know: its content and its row."""
        directory = self.disk.directory(target[0])
        if directory is None:
            return
        try:
            fd = self.disk.open_file(directory, target[1])
        except Unreadable as error:
            self.trouble(target, error.reason)
            return
        if fd is None:
            return
        try:
            status = os.fstat(fd)
            seen = observed(status)
            if seen is None or seen.ino != found.seen.ino or seen.kind is not NodeKind.FILE:
                self.put_off(target)
                return
            if status.st_size > FILE_BYTES_MAX:
                self.trouble(target, f"larger than {FILE_BYTES_MAX >> 30} GiB")
                return
            yield from self._put_open(fd, status, seen, directory, target, found, replace)
        except OSError as error:
            self.trouble(target, os.strerror(error.errno or 0))
        finally:
            os.close(fd)

    def _put_open(
        self,
        fd: int,
        status: os.stat_result,
        seen: Observed,
        directory: Directory,
        target: Place,
        found: Found,
        replace: Callable[[], None],
    ) -> Iterator[Change]:
        xattrs = read_xattrs(fd)
        meta = self._owners.meta(seen, xattrs)
        tree, path = directory.tree.name, directory.prefix + target[1]
        digests = b""
        begun = False
        piece: Piece | None = None
        for piece in read_new(fd, status, self._limits.piece_bytes):
            digests += piece.digests
            if piece.last:
                break
            if begun:
                yield Patch(tree, path, piece.end, meta, b"", piece.extents, more=True)
            else:
                yield Put(tree, path, piece.end, meta, b"", piece.extents, more=True)
                begun = True
        assert piece is not None
        node = Node(
            0, NodeKind.FILE, found.handle, seen.ino, seen.mode, seen.uid, seen.gid, piece.end, seen.mtime_ns,
            0 if piece.error else seen.ctime_ns, digests, pack_xattrs(xattrs),
        )  # fmt: skip
        replace()
        node_id = self._index.add(node)
        self._index.bind(*target, node_id)
        self.came(node_id, found, target)
        if self._pattern(directory, target[1]) & APPENDED:
            self._settle_size(node_id, piece.end)
            if piece.end <= BLOCK_BYTES:
                self._tails.put(node_id, piece.extents[0].data if piece.extents else b"")
        if begun:
            yield Patch(tree, path, piece.end, meta, digests, piece.extents)
        else:
            yield Put(tree, path, piece.end, meta, digests, piece.extents)
        if piece.error is not None:
            raise piece.error

    # -- known files ---------------------------------------------------------------------------------------------------

    def _file(self, node: Node, place: Place, mask: int) -> Iterator[Change]:
        """Compare a known file (or symlink) with its row; a patch or metadata when it differs."""
        if node.kind == NodeKind.SYMLINK:
            yield from self._symlink(node, place)
            return
        directory = self.disk.directory(place[0])
        if directory is None or self._too_soon(node.id, place, mask):
            return
        fd: int | None = None
        try:
            fd = self._open_known(node, directory, place)
            if fd is None:
                return
            status = os.fstat(fd)
            if status.st_size > FILE_BYTES_MAX:
                self.trouble(place, f"larger than {FILE_BYTES_MAX >> 30} GiB")
                return
            yield from self._file_open(fd, status, node, directory, place, mask)
            self._clear_trouble(place)
        except Unreadable as error:
            self.trouble(place, error.reason)
        except OSError as error:
            self.trouble(place, os.strerror(error.errno or 0))
        finally:
            if fd is not None:
                os.close(fd)

    def _too_soon(self, node_id: int, place: Place, mask: int) -> bool:
        until = self._slow.get(node_id)
        if until is None:
            return False
        if self._hurry or self._deep or mask & CLOSE_WRITE or self._monotonic() >= until:
            del self._slow[node_id]
            self._deferred.pop(node_id, None)
            return False
        before = self._deferred.get(node_id)
        since = before[3] if before else self.number
        self._deferred[node_id] = (until, place, mask | (before[2] if before else 0), since)
        return True

    def _open_known(self, node: Node, directory: Directory, place: Place) -> int | None:
        """The node's file, by its name; by its handle when another thing (or nothing) stands there by now."""
        fd = self.disk.open_file(directory, place[1])
        if fd is not None:
            status = os.fstat(fd)
            if stat.S_ISREG(status.st_mode) and (status.st_ino == node.ino or not node.ino):
                return fd
            os.close(fd)
        return self.disk.open_node(node)

    def _file_open(
        self, fd: int, status: os.stat_result, node: Node, directory: Directory, place: Place, mask: int
    ) -> Iterator[Change]:
        seen = observed(status)
        if seen is None or seen.kind is not NodeKind.FILE:
            return
        xattrs = read_xattrs(fd) if mask & ATTRIB else unpack_xattrs(node.xattrs)
        packed = pack_xattrs(xattrs) if mask & ATTRIB else node.xattrs
        new = node._replace(
            ino=seen.ino, mode=seen.mode, uid=seen.uid, gid=seen.gid, mtime_ns=seen.mtime_ns, ctime_ns=seen.ctime_ns,
            xattrs=packed,
        )  # fmt: skip
        tree, path = directory.tree.name, directory.prefix + place[1]
        meta = self._owners.meta(seen, xattrs)
        if mask & CONTENT or seen.size != node.size or seen.mtime_ns != node.mtime_ns:
            difference = self._differences(fd, status, node, directory, place, mask)
            last, begun = yield from self._parts(difference, node, tree, path, meta)
            new = new._replace(size=difference.size, content=difference.digests)
            if difference.error is not None:
                new = new._replace(ctime_ns=0)
            if begun or last or new.size != node.size or new.content != node.content:
                self._index.update(node, new)
                first = difference.first_changed
                first = min(first, len(new.content) // DIGEST_BYTES)
                yield Patch(tree, path, new.size, meta, new.content[first * DIGEST_BYTES :], tuple(last), first)
                self._after_reading(node.id, difference, directory, place, mask)
                return
            self._after_reading(node.id, difference, directory, place, mask)
        if new == node:
            return
        if new._replace(ctime_ns=node.ctime_ns, ino=node.ino) == node:
            self._index.resight(node.id, node.handle, new.ino, new.ctime_ns)
            return
        self._index.update(node, new)
        yield SetMeta(tree, path, meta)

    def _differences(
        self, fd: int, status: os.stat_result, node: Node, directory: Directory, place: Place, mask: int
    ) -> Differences:
        first_block = 0
        if self._pattern(directory, place[1]) & APPENDED and not self._deep and status.st_size > BLOCK_BYTES:
            settled = self._settled.get(node.id)
            if settled is not None and settled <= status.st_size:
                first_block = max(settled - self._limits.append_reach_bytes, 0) // BLOCK_BYTES
        known = Known(node.size, node.content, self._tails.get(node.id))
        return Differences(fd, status, known, first_block, self._limits.piece_bytes)

    def _parts(
        self, difference: Differences, node: Node, tree: str, path: bytes, meta: Meta
    ) -> Generator[Change, None, tuple[list[Extent], bool]]:
        """Extents as patches of bounded size; what is left for the last one, and whether any went before."""
        extents: list[Extent] = []
        weight, end, begun = 0, node.size, False
        for extent in difference:
            if extents and weight + len(extent.data) > self._limits.piece_bytes:
                yield Patch(tree, path, end, meta, b"", tuple(extents), more=True)
                extents, weight, begun = [], 0, True
            extents.append(extent)
            weight += len(extent.data)
            end = max(end, extent.offset + len(extent.data))
        return extents, begun

    def _after_reading(
        self, node_id: int, difference: Differences, directory: Directory, place: Place, mask: int
    ) -> None:
        if difference.bytes_read > CONTENT_CHEAP_BYTES and len(self._slow) < SLOW_REMEMBERED_MAX:
            self._slow[node_id] = self._monotonic() + difference.bytes_read / CONTENT_BYTES_PER_SECOND
        if difference.error is not None:
            self._tails.drop(node_id)
            raise difference.error
        if difference.tail is not None:
            self._tails.put(node_id, difference.tail)
        else:
            self._tails.drop(node_id)
        if self._pattern(directory, place[1]) & APPENDED and (mask & CLOSE_WRITE or node_id not in self._settled):
            self._settle_size(node_id, difference.size)

    def _settle_size(self, node_id: int, size: int) -> None:
        if len(self._settled) >= self._limits.settled_max:
            self._settled.popitem(last=False)
        self._settled[node_id] = size
        self._settled.move_to_end(node_id)

    def _symlink(self, node: Node, place: Place) -> Iterator[Change]:
        directory = self.disk.directory(place[0])
        if directory is None:
            return
        try:
            found = self.disk.look(directory, place[1])
            if found is None or found.seen.kind is not NodeKind.SYMLINK:
                return
            xattrs = self.disk.xattrs(directory, place[1])
        except Unreadable as error:
            self.trouble(place, error.reason)
            return
        seen = found.seen
        new = node._replace(
            handle=found.handle, ino=seen.ino, mode=seen.mode, uid=seen.uid, gid=seen.gid, mtime_ns=seen.mtime_ns,
            ctime_ns=seen.ctime_ns, xattrs=pack_xattrs(xattrs),
        )  # fmt: skip
        if new == node:
            return
        self._index.update(node, new)
        if new._replace(handle=node.handle, ctime_ns=node.ctime_ns, ino=node.ino) != node:
            yield SetMeta(directory.tree.name, directory.prefix + place[1], self._owners.meta(seen, xattrs))

    # -- directories ---------------------------------------------------------------------------------------------------

    def touched(self, node_id: int) -> None:
        """Something happened in the directory: its modification time can be told when it is quiet."""
        if len(self._settling) < self._limits.settling_max or node_id in self._settling:
            self._settling[node_id] = self._monotonic()
            self._settling.move_to_end(node_id)

    def _settle(self) -> Iterator[Change]:
        limit = self._monotonic() - self._limits.settle_seconds
        while self._settling:
            node_id, touched = next(iter(self._settling.items()))
            if touched > limit:
                return
            del self._settling[node_id]
            yield from self._directory(node_id, with_mtime=True)

    def _directory(self, node_id: int, *, with_mtime: bool) -> Iterator[Change]:
        """Metadata of a known directory. *with_mtime*: what happened in it has changed a reader's directory's, so the
        time is logged even when it is the one logged before."""
        directory, node = self.disk.directory(node_id), self._index.node(node_id)
        if directory is None or node is None:
            return
        try:
            fd = self.disk.fd(directory)
            if fd is None:
                return
            seen = observed(os.fstat(fd))
            xattrs = read_xattrs(fd)
        except (Unreadable, OSError) as error:
            self.trouble((node_id, THE_DIRECTORY), str(error))
            return
        assert seen is not None
        if not seen.links:
            return
        mtime_ns = seen.mtime_ns if with_mtime else node.mtime_ns
        new = node._replace(
            ino=seen.ino, mode=seen.mode, uid=seen.uid, gid=seen.gid, mtime_ns=mtime_ns, ctime_ns=seen.ctime_ns,
            xattrs=pack_xattrs(xattrs),
        )  # fmt: skip
        if not with_mtime and new._replace(ctime_ns=node.ctime_ns, ino=node.ino) == node:
            if new != node:
                self._index.resight(node_id, node.handle, new.ino, new.ctime_ns)
            return
        self._index.update(node, new)
        yield SetMeta(directory.tree.name, directory.path, self._owners.meta(seen._replace(mtime_ns=mtime_ns), xattrs))

    # -- scan ----------------------------------------------------------------------------------------------------------

    def begin_scan(self, doubt_since_ns: int | None = None) -> Iterator[Change]:
        """Open the roots and bring them into the index; then take :meth:`next_directory` until it gives None.

        *doubt_since_ns*: files whose ctime is not older are read, although they look unchanged.
        """
        self._doubt_since_ns = doubt_since_ns
        self.number += 1
        self._to_scan = []
        self.disk.refresh()
        self._listed.clear()
        self._descended.clear()
        for name, tree in self._trees.items():
            fd, handle = self.disk.root(name)
            seen = observed(os.fstat(fd))
            assert seen is not None
            node_id = self._index.directory(name, b"")
            if node_id is None:
                xattrs = read_xattrs(fd)
                node = Node(
                    0, NodeKind.DIRECTORY, handle, seen.ino, seen.mode, seen.uid, seen.gid, 0, seen.mtime_ns,
                    seen.ctime_ns, b"", pack_xattrs(xattrs),
                )  # fmt: skip
                node_id = ensure_root(self._index, tree, node)
                self.disk.forget()
                yield SetMeta(name, b"", self._owners.meta(seen, xattrs))
            else:
                known = self._index.node(node_id)
                assert known is not None
                if known.handle != handle:
                    self._index.resight(node_id, handle, seen.ino, 0)
                    self.disk.forget()
                self._directories.add(node_id)
                if known.mtime_ns != seen.mtime_ns:
                    self.touched(node_id)
            self._to_scan.append(node_id)
        self._to_scan.reverse()

    def next_directory(self) -> tuple[int, Iterator[Change | Boundary]] | None:
        """Compare one more directory: how many names it has, and its changes, to be taken whole. None at the end."""
        assert self._to_scan is not None
        while self._to_scan:
            node_id = self._to_scan.pop()
            directory = self.disk.directory(node_id)
            if directory is None or node_id in self._listed:
                continue
            try:
                fd = self.disk.fd(directory)
                if fd is not None:
                    handle = directory.handle
                    if handle is None:
                        handle = self._adopt_directory(directory, fd)
                    self._watch(fd, handle)
                names = self.disk.names(directory) or []
                places = self._unequal(directory, fd, names)
            except Unreadable as error:
                self.trouble((node_id, THE_DIRECTORY), error.reason)
                continue
            return len(names), self._scan_directory(node_id, places)
        return None

    def end_scan(self) -> None:
        """What is in limbo now may have been renamed while the scan ran: the events since then tell."""
        self._to_scan = None
        self._listed.clear()
        self.limbo.stay(self.number)

    def _adopt_directory(self, directory: Directory, fd: int) -> bytes:
        handle = self.disk.handle_of_open(directory, fd)
        assert handle is not None
        seen = os.fstat(fd)
        self._index.resight(directory.id, handle, seen.st_ino, 0)
        self.disk.came(directory.id, handle)
        return handle

    def _scan_directory(self, node_id: int, places: list[Place]) -> Iterator[Change | Boundary]:
        self._deep = True
        self._fresh.clear()
        try:
            if places:
                yield from self._names(places)
                yield from self._checks()
        finally:
            self._deep = False
        assert self._to_scan is not None
        self._to_scan.extend(i for i in reversed(self._index.directories_in(node_id)) if i not in self._listed)
        yield BOUNDARY

    def _unequal(self, directory: Directory, fd: int | None, names: list[bytes]) -> list[Place]:
        """The places of a directory where something differs from the index, by stat alone."""
        remaining = set(names)
        node_id = directory.id
        unequal: list[Place] = []
        doubted: list[int] = []
        doubt_since_ns = self._doubt_since_ns
        lstat, is_file = os.stat, int(NodeKind.FILE)
        for name, child_id, kind, ino, size, mtime_ns, ctime_ns in self._index.rows(node_id):
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
            self._index.doubt(child_id)
        tree = directory.tree
        by_name = tree.decides_by_name
        unequal.extend(
            (node_id, name) for name in remaining if not (by_name and tree.excluded_name(name, directory=False))
        )
        return unequal

    def confirm_scan(self, *, final: bool) -> Iterator[Change]:
        """After all directories: what was put off is tried again. *final*: what is in limbo is given up."""
        if final:
            yield from self._expire(self.limbo.everything())
        elif self._again:
            again = list(self._again)
            self._again.clear()
            yield from self._names(dict.fromkeys(again))
            yield from self._checks()
        yield from self._settle()
