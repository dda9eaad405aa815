"""Contents and metadata of files and symlinks: new ones whole, known ones as what differs.

Of a file that grows (the tree's ``append`` patterns) only the end is read again: back from where it ended when it was
last closed, or wholly compared, by as far as it may still be rewritten; when it grows by small records, mostly what is
young of it only (``tails``). Of others every block.
"""

from __future__ import annotations

import os
import stat
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Final, NamedTuple

from holdfast.changes.change import Change, Extent, Meta, Patch, Put, SetMeta
from holdfast.changes.digest import BLOCK_BYTES, DIGEST_BYTES
from holdfast.trees.index import Node, NodeKind
from holdfast.trees.stat import Observed, observed, pack_xattrs, read_xattrs, unpack_xattrs
from holdfast.watch.content import Differences, Known, Piece, read_new, read_whole, small_differences
from holdfast.watch.disk import Directory, Found, Place, Unreadable
from holdfast.watch.hints import ATTRIB, CLOSE_WRITE, CONTENT
from holdfast.watch.limits import CONTENT_BYTES_PER_SECOND, CONTENT_CHEAP_BYTES, FILE_BYTES_MAX
from holdfast.watch.scene import APPENDED, READ_FIRST, Scene
from holdfast.watch.tails import Tails, last_block

SLOW_REMEMBERED_MAX: Final = 1000


class _Deferred(NamedTuple):
    """A comparison put off until *until*; *since* is the number of the first batch that did."""

    until: float
    place: Place
    mask: int
    since: int


class _Open(NamedTuple):
    """A file open for reading, and how it looked then."""

    fd: int
    status: os.stat_result
    seen: Observed
    directory: Directory
    place: Place

    @property
    def tree(self) -> str:
        return self.directory.tree.name

    @property
    def path(self) -> bytes:
        return self.directory.prefix + self.place[1]


class Files:
    """Reads files. What it remembers of them is an economy: it may be forgotten at any time."""

    def __init__(self, scene: Scene, came: Callable[[int, Found, Place], None]) -> None:
        """*came* is told of new nodes."""
        self._scene = scene
        self._came = came
        self._tails = Tails(scene.limits.tails_bytes_max)
        self._settled: OrderedDict[int, int] = OrderedDict()
        """Sizes of growing files when they were last closed, or wholly compared."""
        self._slow: dict[int, float] = {}
        """Large files, and when they may be compared again."""
        self._deferred: dict[int, _Deferred] = {}

    def forget(self) -> None:
        self._tails.clear()
        self._settled.clear()
        self._slow.clear()
        self._deferred.clear()
        self._scene.disk.close_files()

    def went(self, node_id: int) -> None:
        self._scene.disk.close_file(node_id)
        self._tails.drop(node_id)
        self._settled.pop(node_id, None)

    # -- what was put off ----------------------------------------------------------------------------------------------

    def due_at(self) -> float | None:
        return min((deferred.until for deferred in self._deferred.values()), default=None)

    def since(self) -> int | None:
        return min((deferred.since for deferred in self._deferred.values()), default=None)

    def take_up(self) -> None:
        """What was put off and is due, or wanted in a hurry, goes among the checks."""
        scene = self._scene
        due = [n for n, deferred in self._deferred.items() if scene.hurry or deferred.until <= scene.now]
        for node_id in due:
            deferred = self._deferred.pop(node_id)
            self._slow.pop(node_id, None)
            scene.check(node_id, deferred.mask, deferred.place)

    def _too_soon(self, node_id: int, place: Place, mask: int) -> bool:
        until = self._slow.get(node_id)
        if until is None:
            return False
        scene = self._scene
        if scene.hurry or scene.deep or mask & CLOSE_WRITE or scene.now >= until:
            del self._slow[node_id]
            self._deferred.pop(node_id, None)
            return False
        before = self._deferred.get(node_id)
        since = before.since if before else scene.number
        self._deferred[node_id] = _Deferred(until, place, mask | (before.mask if before else 0), since)
        return True

    # -- new files -----------------------------------------------------------------------------------------------------

    def put(self, target: Place, found: Found, replace: Callable[[], None] | None) -> Iterable[Change]:
        """A file the index does not know. *replace* is called when it takes its place. To be taken before anything else
        is done: large files are read then."""
        scene = self._scene
        directory = scene.disk.directory(target[0])
        if directory is None:
            return ()
        try:
            fd = scene.disk.open_file(directory, target[1])
        except Unreadable as error:
            scene.trouble(target, error.reason)
            return ()
        if fd is None:
            return ()
        owned = True
        try:
            status = os.fstat(fd)
            seen = observed(status)
            if seen is None or seen.ino != found.seen.ino or seen.kind is not NodeKind.FILE:
                scene.put_off(target)
                return ()
            if seen.size > FILE_BYTES_MAX:
                scene.trouble(target, _TOO_LARGE)
                return ()
            file = _Open(fd, status, seen, directory, target)
            piece = read_whole(fd, status, scene.limits.piece_bytes)
            if piece is None:
                owned = False
                return self._put_parts(file, found, replace)
            xattrs = read_xattrs(fd)
            self._new(file, found, replace, piece, piece.digests, xattrs)
            meta = scene.owners.meta(seen, xattrs)
            return (Put(file.tree, file.path, piece.end, meta, piece.digests, piece.extents),)
        except OSError as error:
            scene.trouble(target, os.strerror(error.errno or 0))
            return ()
        finally:
            if owned:
                os.close(fd)

    def _put_parts(self, file: _Open, found: Found, replace: Callable[[], None] | None) -> Iterator[Change]:
        """Closes the file."""
        try:
            yield from self._put_open(file, found, replace)
        except OSError as error:
            self._scene.trouble(file.place, os.strerror(error.errno or 0))
        finally:
            os.close(file.fd)

    def _put_open(self, file: _Open, found: Found, replace: Callable[[], None] | None) -> Iterator[Change]:
        scene = self._scene
        xattrs = read_xattrs(file.fd)
        meta = scene.owners.meta(file.seen, xattrs)
        tree, path = file.tree, file.path
        digests = b""
        begun = False
        piece: Piece | None = None
        for piece in read_new(file.fd, file.status, scene.limits.piece_bytes):
            digests += piece.digests
            if piece.last:
                break
            if begun:
                yield Patch(tree, path, piece.end, meta, b"", piece.extents, more=True)
            else:
                yield Put(tree, path, piece.end, meta, b"", piece.extents, more=True)
                begun = True
        assert piece is not None, "a file has at least one piece"
        self._new(file, found, replace, piece, digests, xattrs)
        if begun:
            yield Patch(tree, path, piece.end, meta, digests, piece.extents)
        else:
            yield Put(tree, path, piece.end, meta, digests, piece.extents)
        if piece.error is not None:
            raise piece.error

    def _new(
        self,
        file: _Open,
        found: Found,
        replace: Callable[[], None] | None,
        last: Piece,
        digests: bytes,
        xattrs: tuple[tuple[bytes, bytes], ...],
    ) -> None:
        """The file is in the index: read to its end, of which *last* is the last piece."""
        scene, seen = self._scene, file.seen
        node = Node(
            0, NodeKind.FILE, found.handle, seen.ino, seen.mode, seen.uid, seen.gid, last.end, seen.mtime_ns,
            0 if last.error else seen.ctime_ns, digests, pack_xattrs(xattrs),
        )  # fmt: skip
        if replace is not None:
            replace()
        node_id = scene.index.add(node)
        scene.index.bind(*file.place, node_id)
        self._came(node_id, found, file.place)
        if scene.pattern(file.directory, file.place) & APPENDED:
            self._settle(node_id, last.end)
            if last.end <= BLOCK_BYTES:
                self._tails.put(node_id, last.extents[0].data if last.extents else b"", 0, scene.now)

    # -- known files ---------------------------------------------------------------------------------------------------

    def compare(self, node: Node, place: Place, mask: int) -> Iterable[Change]:
        """A known file or symlink with its row: a patch, or its metadata, when it differs. *mask*: what is known to
        have happened to it (bits of ``hints``). To be taken before anything else is done: large files are read then."""
        scene = self._scene
        if node.kind == NodeKind.SYMLINK:
            return self._symlink(node, place)
        directory = scene.disk.directory(place[0])
        if directory is None or (self._slow and self._too_soon(node.id, place, mask)):
            return ()
        if mask == CLOSE_WRITE and self._only_opened(node, directory, place):
            return ()
        try:
            file = self._open_known(node, directory, place)
            if file is None:
                return ()
            handed_over = False
            try:
                change, compared = self._compare_young(file, node, mask)
                if not compared:
                    if file.seen.size > BLOCK_BYTES or node.size > BLOCK_BYTES:
                        handed_over = True
                        return self._compare_large(file, node, mask)
                    change = self._compare_small(file, node, mask)
            finally:
                if not handed_over:
                    self._done_with(file, node)
        except Unreadable as error:
            scene.trouble(place, error.reason)
            return ()
        except OSError as error:
            scene.trouble(place, os.strerror(error.errno or 0))
            return ()
        if scene.troubles:
            scene.clear_trouble(place)
        return () if change is None else (change,)

    def _open_known(self, node: Node, directory: Directory, place: Place) -> _Open | None:
        """The file, which is at *place*, or elsewhere by now; None when it is no more. Raises Unreadable, OSError."""
        disk = self._scene.disk
        kept = disk.kept_open(node.id)
        fd, status = kept or (disk.open_file(directory, place[1]), None)
        try:
            if fd is not None and status is None:
                status = os.fstat(fd)
                if not stat.S_ISREG(status.st_mode) or (status.st_ino != node.ino and node.ino):
                    os.close(fd)
                    fd = None
            if fd is None:  # by now its name is another, or it is no more
                fd = disk.open_node(node)
                if fd is None:
                    return None
                status = os.fstat(fd)
            assert status is not None
            seen = observed(status)
            if seen is not None and seen.kind is NodeKind.FILE:
                if seen.size <= FILE_BYTES_MAX:
                    file = _Open(fd, status, seen, directory, place)
                    fd = None
                    return file
                self._scene.trouble(place, _TOO_LARGE)
            return None
        finally:
            if fd is not None:
                os.close(fd)

    def _only_opened(self, node: Node, directory: Directory, place: Place) -> bool:
        """Whether a file was opened for writing and closed without having been written, as Dovecot's index files are
        with each delivery. Of other files a close is read all the same: who writes through a mapping causes no other
        event, and need not change the time either (mmap(2))."""
        scene = self._scene
        special = scene.pattern(directory, place)
        if not special or scene.deep:
            return False
        seen = scene.disk.status(directory, place[1])
        if seen is None or (seen.st_ino, seen.st_size) != (node.ino, node.size):
            return False
        if (seen.st_mtime_ns, seen.st_ctime_ns) != (node.mtime_ns, node.ctime_ns):
            return False
        if special & APPENDED:
            self._settle(node.id, node.size)
        return True

    def _meta(self, file: _Open, node: Node, mask: int) -> tuple[Meta, bytes]:
        """The file's metadata, and its xattrs packed."""
        if mask & ATTRIB:
            xattrs = read_xattrs(file.fd)
            return self._scene.owners.meta(file.seen, xattrs), pack_xattrs(xattrs)
        return self._scene.owners.meta(file.seen, unpack_xattrs(node.xattrs)), node.xattrs

    def _compare_meta(self, file: _Open, node: Node, meta: Meta, xattrs: bytes) -> Change | None:
        """The content is as known."""
        new = _row(node, file.seen, node.size, node.content, xattrs)
        if new == node:
            return None
        if new._replace(ctime_ns=node.ctime_ns, ino=node.ino) == node:
            self._scene.index.resight(node.id, node.handle, new.ino, new.ctime_ns)
            return None
        self._scene.index.update(node, new)
        return SetMeta(file.tree, file.path, meta)

    def _compare_young(self, file: _Open, node: Node, mask: int) -> tuple[Change | None, bool]:
        """What is young of a file that grows by small records; and whether that was enough."""
        scene, seen = self._scene, file.seen
        if scene.pattern(file.directory, file.place) != APPENDED | READ_FIRST or scene.deep:
            return None, False
        tail = self._tails.get(node.id)
        if tail is None:
            return None, False
        meta, xattrs = self._meta(file, node, mask)  # may fail: before the tail takes up what the log has not got yet
        grown = tail.grown(file.fd, node.size, seen.size, scene.now)
        if grown is None:
            return None, False
        if mask & CLOSE_WRITE and node.id in self._settled:
            self._settle(node.id, grown.size)
        if grown.size == node.size and not grown.extents:
            return self._compare_meta(file, node, meta, xattrs), True
        self._tails.used(node.id, tail)
        last = last_block(grown.size)
        digests = node.content[: last // BLOCK_BYTES * DIGEST_BYTES] + grown.digest
        scene.index.update(node, _row(node, seen, grown.size, digests, xattrs))
        return Patch(file.tree, file.path, grown.size, meta, grown.digest, grown.extents, last // BLOCK_BYTES), True

    def _compare_small(self, file: _Open, node: Node, mask: int) -> Change | None:
        """Files of one block, before and now."""
        seen = file.seen
        meta, xattrs = self._meta(file, node, mask)
        if mask & CONTENT or seen.size != node.size or seen.mtime_ns != node.mtime_ns:
            data = os.pread(file.fd, seen.size, 0)
            extents, digests = small_differences(data, Known(node.size, node.content, self._tails.get(node.id)))
            self._tails.put(node.id, data, 0, self._scene.now)
            if digests != node.content or len(data) != node.size:
                self._scene.index.update(node, _row(node, seen, len(data), digests, xattrs))
                return Patch(file.tree, file.path, len(data), meta, digests, extents)
        return self._compare_meta(file, node, meta, xattrs)

    def _compare_large(self, file: _Open, node: Node, mask: int) -> Iterator[Change]:
        """Closes the file."""
        scene, seen = self._scene, file.seen
        try:
            meta, xattrs = self._meta(file, node, mask)
            if mask & CONTENT or seen.size != node.size or seen.mtime_ns != node.mtime_ns:
                changed = yield from self._compare_blocks(file, node, meta, xattrs, mask)
                if changed:
                    scene.clear_trouble(file.place)
                    return
            change = self._compare_meta(file, node, meta, xattrs)
            if change is not None:
                yield change
            scene.clear_trouble(file.place)
        except OSError as error:
            scene.trouble(file.place, os.strerror(error.errno or 0))
        finally:
            self._done_with(file, node)

    def _done_with(self, file: _Open, node: Node) -> None:
        """Close the file, or keep it open when it will come again."""
        if self._scene.pattern(file.directory, file.place) & APPENDED:
            self._scene.disk.keep_open(node.id, file.fd)
        else:
            os.close(file.fd)

    def _compare_blocks(
        self, file: _Open, node: Node, meta: Meta, xattrs: bytes, mask: int
    ) -> Generator[Change, None, bool]:
        """Block by block; whether the content differed. Raises OSError when it could not be read to the end, after
        what was read has been logged."""
        scene = self._scene
        grows = scene.pattern(file.directory, file.place) & APPENDED
        first_block = 0
        if grows and not scene.deep:
            settled = self._settled.get(node.id)
            if settled is not None and settled <= file.seen.size:
                first_block = max(settled - scene.limits.append_reach_bytes, 0) // BLOCK_BYTES
        known = Known(node.size, node.content, self._tails.get(node.id))
        difference = Differences(file.fd, file.status, known, first_block, scene.limits.piece_bytes)
        last, begun = yield from self._in_parts(difference, node, file, meta)
        changed = begun or bool(last) or difference.size != node.size or difference.digests != node.content
        if changed:
            seen = file.seen._replace(ctime_ns=0) if difference.error is not None else file.seen
            scene.index.update(node, _row(node, seen, difference.size, difference.digests, xattrs))
            first = min(difference.first_changed, len(difference.digests) // DIGEST_BYTES)
            digests = difference.digests[first * DIGEST_BYTES :]
            yield Patch(file.tree, file.path, difference.size, meta, digests, tuple(last), first)
        if difference.bytes_read > CONTENT_CHEAP_BYTES and len(self._slow) < SLOW_REMEMBERED_MAX:
            self._slow[node.id] = scene.monotonic() + difference.bytes_read / CONTENT_BYTES_PER_SECOND
        if difference.tail is not None and difference.error is None:
            self._tails.put(node.id, difference.tail, difference.tail_start, scene.now)
        else:
            self._tails.drop(node.id)
        if difference.error is not None:
            raise difference.error
        if grows and (mask & CLOSE_WRITE or node.id not in self._settled):
            self._settle(node.id, difference.size)
        return changed

    def _in_parts(
        self, difference: Differences, node: Node, file: _Open, meta: Meta
    ) -> Generator[Change, None, tuple[list[Extent], bool]]:
        """Extents as patches of bounded size; what is left for the last one, and whether any went before."""
        extents: list[Extent] = []
        weight, end, begun = 0, node.size, False
        for extent in difference:
            if extents and weight + len(extent.data) > self._scene.limits.piece_bytes:
                yield Patch(file.tree, file.path, end, meta, b"", tuple(extents), more=True)
                extents, weight, begun = [], 0, True
            extents.append(extent)
            weight += len(extent.data)
            end = max(end, extent.offset + len(extent.data))
        return extents, begun

    def _settle(self, node_id: int, size: int) -> None:
        if len(self._settled) >= self._scene.limits.settled_max:
            self._settled.popitem(last=False)
        self._settled[node_id] = size
        self._settled.move_to_end(node_id)

    def _symlink(self, node: Node, place: Place) -> Iterator[Change]:
        scene = self._scene
        directory = scene.disk.directory(place[0])
        if directory is None:
            return
        try:
            found = scene.disk.look(directory, place[1])
            if found is None or found.seen.kind is not NodeKind.SYMLINK:
                return
            xattrs = scene.disk.xattrs(directory, place[1])
        except Unreadable as error:
            scene.trouble(place, error.reason)
            return
        new = _row(node._replace(handle=found.handle), found.seen, 0, node.content, pack_xattrs(xattrs))
        if new == node:
            return
        scene.index.update(node, new)
        if new._replace(handle=node.handle, ctime_ns=node.ctime_ns, ino=node.ino) != node:
            meta = scene.owners.meta(found.seen, xattrs)
            yield SetMeta(directory.tree.name, directory.prefix + place[1], meta)


_new_tuple: Final = tuple.__new__
_TOO_LARGE: Final = f"larger than {FILE_BYTES_MAX >> 30} GiB"


def _row(node: Node, seen: Observed, size: int, content: bytes, xattrs: bytes) -> Node:
    """The row of *node* as it was seen."""
    return _new_tuple(Node, (
        node.id, node.kind, node.handle, seen.ino, seen.mode, seen.uid, seen.gid, size, seen.mtime_ns, seen.ctime_ns,
        content, xattrs,
    ))  # fmt: skip
