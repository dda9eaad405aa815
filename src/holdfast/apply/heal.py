"""Heal: fetches what is missing or damaged on this machine from the primary, and repairs it in place.

Only what the log says is restored: a path is repaired when the primary's index and this machine's say the same of it
and the fetched bytes have the digests of that row. So healing never brings a newer state in before the log does. What
changes meanwhile is left, named, and can be tried again.

Contents are fetched while the applier goes on, into files of their own in staging. Then, in a pause of the applier and
if the row is still the same, the good blocks are written into the file that stands there (it keeps its identity and its
other names); a new file takes the place only where none of the right identity stands. What stood in the way, and what
should not be there at all, is moved aside.

Each repaired thing is compared with its row again before it is called healed.
"""

from __future__ import annotations

import asyncio
import errno
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from holdfast.apply.aside import Aside
from holdfast.apply.content import Described, describe, describe_link, write_extents
from holdfast.apply.peer import Peer
from holdfast.apply.place import Place, Staged, world_error
from holdfast.changes.change import Extent
from holdfast.changes.digest import BLOCK_BYTES, DIGEST_BYTES, ZERO_BLOCK_DIGEST, block_digest, content_digests
from holdfast.changes.exchange import (
    CONTENT_BYTES_MAX,
    LOOK_PATHS_MAX,
    CloseListing,
    Done,
    Entry,
    Listing,
    Look,
    Looked,
    OpenListing,
    PartState,
    PartWanted,
)
from holdfast.trees.index import Index, Node, NodeKind
from holdfast.trees.listing import order_key
from holdfast.trees.look import Comparison
from holdfast.trees.spec import Tree
from holdfast.trees.stat import handle_at, read_xattrs, unpack_xattrs

Paused = Callable[[], AbstractAsyncContextManager[Index]]
"""``async with paused() as index``: the applier rests between two changes, and *index* is its own, to be changed."""
PATHS_MAX: Final = LOOK_PATHS_MAX
"""Healed together: one question to the primary, one pause."""

Spot = tuple[str, bytes]
"""Tree and path."""


@dataclass
class HealReport:
    """*left*: why a place was not healed; ask again later, or seed."""

    healed: list[Spot] = field(default_factory=list)
    left: dict[Spot, str] = field(default_factory=dict)
    fetched_bytes: int = 0


class _Fetched(NamedTuple):
    """A file's content ready to be put in: the blocks in *ranges* stand in *staged*, the others are good or holes."""

    staged: Staged
    ranges: list[tuple[int, int]]


class _Meanwhile(Exception):
    """The primary's content is not that of the row (any more)."""


async def heal(
    peer: Peer, paused: Paused, trees: Mapping[str, Tree], aside: Aside, damaged: Iterable[Spot]
) -> HealReport:
    """Repair *damaged* places (tree, path), and directories above them that are missing.

    Afterwards the applier's next durable point makes it last. Raises Unreachable and the like from *peer*, and
    HoldfastError (NoSpace ...) for what the disk says; what was repaired until then stays repaired.
    """
    report = HealReport()
    spots: set[Spot] = set()
    for tree, path in damaged:
        if tree not in trees:
            report.left[tree, path] = "this machine has no such tree"
            continue
        above = list(_above(path))
        if any(trees[tree].excluded(each, directory=each != path) for each in (*above, path) if each):
            report.left[tree, path] = "it is left out of the copy, so this machine's own"
            continue
        spots.update((tree, each) for each in (*above, path))
    ordered = sorted(spots, key=lambda spot: (spot[0], order_key(spot[1])))
    job = _Heal(peer, paused, aside, {name: Place(tree.root) for name, tree in trees.items()}, report)
    try:
        for start in range(0, len(ordered), PATHS_MAX):
            await job.some(ordered[start : start + PATHS_MAX])
    except OSError as error:
        raise world_error(error, "healing") from error
    finally:
        job.close()
    return report


class _Heal:
    def __init__(self, peer: Peer, paused: Paused, aside: Aside, places: dict[str, Place], report: HealReport) -> None:
        self._peer = peer
        self._paused = paused
        self._aside = aside
        self._places = places
        self._report = report
        self._compare = Comparison(full=True, taken=lambda size_bytes: None)
        self._fetched: dict[Spot, _Fetched] = {}

    def close(self) -> None:
        for (tree, _), fetched in self._fetched.items():
            self._places[tree].discard(fetched.staged)
        for place in self._places.values():
            place.close()

    async def some(self, spots: list[Spot]) -> None:
        """Heal up to PATHS_MAX places, directories before what is in them."""
        async with self._paused() as index:
            rows = {spot: index.at(*spot) for spot in spots}
            wrong = await asyncio.to_thread(self._wrong, rows)
        entries = await self._look(wrong)
        for spot in wrong:
            row, entry = rows[spot], entries[spot]
            if not _agree(row, entry):
                self._report.left[spot] = "it changed at the primary; the log has not brought it here yet"
            elif row is not None and row.kind == NodeKind.FILE and entry is not None:
                await self._fetch(spot, row, entry.node)
        todo = [spot for spot in wrong if spot not in self._report.left]
        async with self._paused() as index:
            await asyncio.to_thread(self._repair_all, index, todo, rows)

    async def _look(self, spots: list[Spot]) -> dict[Spot, Entry | None]:
        if not spots:
            return {}
        listing = await self._peer.ask(OpenListing(), Listing)
        looked = await self._peer.ask(Look(listing.listing, tuple(spots)), Looked)
        found: dict[Spot, Entry | None] = {}
        for spot, entry in zip(spots, looked.entries, strict=False):
            found[spot] = None if entry is None else await self._peer.whole(listing, entry)
        await self._peer.ask(CloseListing(listing.listing), Done)
        return {spot: found.get(spot) for spot in spots}

    # -- what is wrong -------------------------------------------------------------------------------------------------

    def _wrong(self, rows: dict[Spot, Node | None]) -> list[Spot]:
        """The places that differ from their rows; the others are as they should be."""
        self._forget()
        return [spot for spot, row in rows.items() if self._differs(spot, row)]

    def _differs(self, spot: Spot, row: Node | None) -> str:
        """In what a place differs, in words; empty when it does not."""
        place = self._places[spot[0]]
        status = _status(place, spot[1])
        if row is None:
            return "it should not be there" if status is not None else ""
        if status is None:
            return "missing"
        directory, name = place.parent(spot[1])
        traits = [str(trait.what) for trait in self._compare.differences(row, directory, name, status)]
        if row.ino and status.st_ino != row.ino:
            traits.append("another file stands there")
        return ", ".join(traits)

    def _forget(self) -> None:
        """The applier may have moved directories since."""
        for place in self._places.values():
            place.forget(b"")

    # -- fetching ------------------------------------------------------------------------------------------------------

    async def _fetch(self, spot: Spot, row: Node, token: int) -> None:
        """The blocks that are not good here, into a file of their own."""
        place = self._places[spot[0]]
        ranges = await asyncio.to_thread(self._bad_ranges, place, spot[1], row)
        staged = _staged(place)
        self._fetched[spot] = _Fetched(staged, ranges)
        await asyncio.to_thread(os.ftruncate, staged.fd, row.size)
        try:
            for offset, length in ranges:
                data = await self._part(row, token, offset, length)
                await asyncio.to_thread(write_extents, staged.fd, (Extent(offset, data),))
        except _Meanwhile as error:
            self._report.left[spot] = str(error)
            self._discard(spot)

    async def _part(self, row: Node, token: int, offset: int, length: int) -> bytes:
        part = (await self._peer.contents([PartWanted(token, offset, length)]))[0]
        if part.state is PartState.UNREADABLE:
            raise _Meanwhile(f"the primary cannot read it: {part.reason}")
        first = offset // BLOCK_BYTES * DIGEST_BYTES
        data = part.data[:length]
        wanted = row.content[first : first + DIGEST_BYTES * -(-length // BLOCK_BYTES)]
        if part.state is PartState.GONE or content_digests(data) != wanted:
            raise _Meanwhile("the primary's content is not what its index says: it changed just now, or is damaged")
        self._report.fetched_bytes += len(data)
        return data

    def _bad_ranges(self, place: Place, path: bytes, row: Node) -> list[tuple[int, int]]:
        """What is not good in the file that stands at *path*, when it is the row's; else all of it but holes."""
        status = _status(place, path)
        ours = status is not None and stat.S_ISREG(status.st_mode) and status.st_ino == row.ino
        fd = place.open(path, os.O_RDONLY) if ours else None
        try:
            return _bad_ranges(fd, row)
        finally:
            if fd is not None:
                os.close(fd)

    # -- repairing -----------------------------------------------------------------------------------------------------

    def _repair_all(self, index: Index, spots: list[Spot], rows: dict[Spot, Node | None]) -> None:
        self._forget()
        for spot in spots:
            before, row = rows[spot], index.at(*spot)
            if not _same_row(before, row):
                self._report.left[spot] = "it changed while it was healed"
            else:
                self._repair(index, spot, row)
                self._judge(index, spot)
            self._discard(spot)
        self._restore_times(index, {(tree, path.rpartition(b"/")[0]) for tree, path in spots})

    def _restore_times(self, index: Index, directories: set[Spot]) -> None:
        """Directories in which something was put keep the modification times the log gave them."""
        for tree, path in directories:
            row = index.at(tree, path)
            status = _status(self._places[tree], path)
            if row is None or status is None or status.st_ino != row.ino:
                continue
            fd = self._places[tree].open(path, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.utime(fd, ns=(row.mtime_ns, row.mtime_ns))
                _sight(index, row, os.fstat(fd), row.handle)
            finally:
                os.close(fd)

    def _judge(self, index: Index, spot: Spot) -> None:
        still = self._differs(spot, index.at(*spot))
        if still:
            self._report.left[spot] = f"still wrong after the repair: {still}"
        else:
            self._report.healed.append(spot)

    def _repair(self, index: Index, spot: Spot, row: Node | None) -> None:
        tree, path = spot
        place = self._places[tree]
        try:
            status = _status(place, path)
            if status is not None and (row is None or not _is(status, row)):
                self._aside.take(
                    place, tree, path, "should not be there" if row is None else "is not what the log says"
                )
                status = None
            if row is None:
                return
            match row.kind:
                case NodeKind.DIRECTORY:
                    self._directory(index, place, path, row, status)
                case NodeKind.SYMLINK:
                    self._symlink(index, place, tree, path, row, status)
                case _:
                    self._file(index, spot, row, status)
        except (FileNotFoundError, NotADirectoryError):
            return  # the directory above could not be put right; it is judged missing

    def _directory(self, index: Index, place: Place, path: bytes, row: Node, status: os.stat_result | None) -> None:
        if status is None:
            place.mkdir(path, 0o700)
        fd = place.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            _describe(fd, row)
            _sight(index, row, os.fstat(fd), handle_at(fd, b""))
        finally:
            os.close(fd)

    def _symlink(
        self, index: Index, place: Place, tree: str, path: bytes, row: Node, status: os.stat_result | None
    ) -> None:
        directory, name = place.parent(path)
        if status is not None and os.readlink(name, dir_fd=directory) != row.content:
            self._aside.take(place, tree, path, "is not what the log says")
            status = None
        if status is None:
            place.symlink(row.content, path, replace=False)
        describe_link(directory, name, _described(row))
        _sight(index, row, os.stat(name, dir_fd=directory, follow_symlinks=False), handle_at(directory, name))

    def _file(self, index: Index, spot: Spot, row: Node, status: os.stat_result | None) -> None:
        tree, path = spot
        place, fetched = self._places[tree], self._fetched[spot]
        other = self._other_name(index, place, tree, path, row) if status is None else None
        if other is not None:
            place.link(other, path, replace=False)
            fd = place.open(path, os.O_RDWR)
            ranges = _bad_ranges(fd, row)
        elif status is not None:
            fd = place.open(path, os.O_RDWR)
            ranges = fetched.ranges
        else:
            place.settle(fetched.staged, path, replace=False)
            fd, ranges = fetched.staged.fd, []
            del self._fetched[spot]
        try:
            _copy(fetched.staged.fd, fd, ranges)
            if os.fstat(fd).st_size != row.size:
                os.ftruncate(fd, row.size)
            _describe(fd, row)
            _sight(index, row, os.fstat(fd), handle_at(fd, b""))
        finally:
            os.close(fd)

    def _other_name(self, index: Index, place: Place, tree: str, path: bytes, row: Node) -> bytes | None:
        """Where else the row's very file stands."""
        for parent, name in index.names(row.id):
            found = index.path(parent, name)
            if found is not None and found[0] == tree and found[1] != path:
                status = _status(place, found[1])
                if status is not None and _is(status, row):
                    return found[1]
        return None

    def _discard(self, spot: Spot) -> None:
        fetched = self._fetched.pop(spot, None)
        if fetched is not None:
            self._places[spot[0]].discard(fetched.staged)


def _status(place: Place, path: bytes) -> os.stat_result | None:
    """What stands at *path*; None when nothing does, or a symlink stands where a directory above it should."""
    try:
        return place.status(path)
    except OSError as error:
        if error.errno == errno.ELOOP:
            return None
        raise


_FORMATS: Final = {NodeKind.DIRECTORY: stat.S_IFDIR, NodeKind.FILE: stat.S_IFREG, NodeKind.SYMLINK: stat.S_IFLNK}


def _is(status: os.stat_result, row: Node) -> bool:
    """Whether what was seen is the thing the row means; identities not yet known are not asked for."""
    same_kind = stat.S_IFMT(status.st_mode) == _FORMATS[NodeKind(row.kind)]
    return same_kind and (not row.ino or status.st_ino == row.ino)


def _agree(row: Node | None, entry: Entry | None) -> bool:
    """Whether both indexes say the same thing stands there."""
    if row is None or entry is None:
        return row is None and entry is None
    return (row.kind, row.size, row.content) == (int(entry.kind), entry.size, entry.content)


def _same_row(before: Node | None, now: Node | None) -> bool:
    if before is None or now is None:
        return before is None and now is None
    return (before.id, before.size, before.content) == (now.id, now.size, now.content)


def _described(row: Node) -> Described:
    return Described(row.mode, row.uid, row.gid, row.mtime_ns, unpack_xattrs(row.xattrs))


def _describe(fd: int, row: Node) -> None:
    wanted = _described(row)
    describe(fd, os.fstat(fd), wanted, xattrs_differ=read_xattrs(fd) != wanted.xattrs)


def _sight(index: Index, row: Node, status: os.stat_result, handle: bytes | None) -> None:
    index.update(row, row._replace(handle=handle, ino=status.st_ino, ctime_ns=status.st_ctime_ns))


def _above(path: bytes) -> Iterator[bytes]:
    """The directories above *path*, the root (``b""``) last."""
    while path:
        path = path.rpartition(b"/")[0]
        yield path


def _staged(place: Place) -> Staged:
    """A file in staging with a name that no applier gives."""
    name = b"heal-" + os.urandom(8).hex().encode()
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    return Staged(os.open(name, flags, 0o600, dir_fd=place.staging_fd), name)


def _bad_ranges(fd: int | None, row: Node) -> list[tuple[int, int]]:
    """(offset, length) of blocks of *fd* that are not the row's, at most CONTENT_BYTES_MAX each; without *fd*: of all
    blocks that are no holes."""
    ranges: list[tuple[int, int]] = []
    for offset in range(0, row.size, BLOCK_BYTES):
        length = min(BLOCK_BYTES, row.size - offset)
        at = offset // BLOCK_BYTES * DIGEST_BYTES
        digest = row.content[at : at + DIGEST_BYTES]
        if fd is None and digest == ZERO_BLOCK_DIGEST:
            continue
        if fd is not None and block_digest(os.pread(fd, length, offset)) == digest:
            continue
        if ranges and sum(ranges[-1]) == offset and ranges[-1][1] + length <= CONTENT_BYTES_MAX:
            ranges[-1] = (ranges[-1][0], ranges[-1][1] + length)
        else:
            ranges.append((offset, length))
    return ranges


def _copy(source: int, target: int, ranges: list[tuple[int, int]]) -> None:
    for offset, length in ranges:
        write_extents(target, (Extent(offset, os.pread(source, length, offset)),))
