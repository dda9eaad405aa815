"""Seed: makes this machine's trees and index equal to the primary's as they stand at one position of the log.

The steps, in this order:

1. The index is cleared and committed as standing for nothing: a seed that does not finish is never taken for a copy.
2. *Compare*: the listing is read page by page into the index. Files that are there already (same path, size and
   modification time; with *checksum*: same digests) are kept. The listing is closed.
3. What stands here and not in the listing is noted; wanted files whose content is among it (same size, time and
   digests) are moved to their new path.
4. NoSpace is raised here when the rest cannot fit.
5. *Fetch*: contents, several requests at once; of large files only the blocks that differ.
6. Further names of files are linked, extras are moved aside (never deleted; with a manifest), directories described.
7. Everything is written out, then the index is committed at the listing's position.

Killed at any moment and run again, it finds in step 2 what it had done; a large file goes on where it was.

Contents may be newer than the listing. Patches in the log are absolute, so following it from the position on makes
everything equal; until then such a file differs from its index row, and its modification time (1 ns after 1970) shows
it. A file deleted meanwhile is an empty placeholder, for the log's changes to work on.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Final, NamedTuple, TypeVar

import apsw

from holdfast.apply.applier import clean_marker
from holdfast.apply.aside import Aside
from holdfast.apply.peer import Peer
from holdfast.apply.place import world_error
from holdfast.apply.seed_book import SeedBook, Wanted
from holdfast.apply.seed_contents import SMALL_BYTES_MAX, LargeFile, SeedContents
from holdfast.apply.seed_ground import Ground, SeedCounts
from holdfast.apply.seed_names import SeedNames
from holdfast.changes.exchange import (
    CloseListing,
    Done,
    Listing,
    OpenListing,
    PartRead,
    PartState,
    PartWanted,
)
from holdfast.changes.frame import CHAIN_START, Chain
from holdfast.changes.names import NO_INCARNATION, Epoch, Incarnation, Position, Sequence
from holdfast.errors import ConfigurationError, NoSpace
from holdfast.trees.index import Index
from holdfast.trees.spec import Tree
from holdfast.trees.stat import Owners

REQUESTS_MAX: Final = 6
"""Contents under way at once: enough to hide the way there and back, few enough to leave the primary its work."""
LARGE_REQUESTS_MAX: Final = 3
FILE_WEIGHT_BYTES: Final = 8192
"""What a file costs besides its bytes, as bytes: for the estimate of the time left."""
T = TypeVar("T")


class SeedProgress(NamedTuple):
    """*phase*: ``compare``, ``fetch``, ``finish``. Totals are the listing's; what is kept counts as done.

    *eta_seconds* is None until it can be told.
    """

    phase: str
    entries: int
    entries_total: int
    files: int
    files_total: int
    bytes: int
    bytes_total: int
    bytes_per_second: float
    eta_seconds: float | None


class SeedReport(NamedTuple):
    """What a finished seed did; *counts* names what is not as listed. *aside*: things moved aside in this run."""

    position: Position
    epoch: Epoch
    files: int
    bytes: int
    counts: SeedCounts
    aside: int
    unknown_owners: tuple[str, ...]
    seconds: float


async def seed(
    peer: Peer,
    index: Index,
    trees: Mapping[str, Tree],
    owners: Owners,
    aside: Aside,
    *,
    progress: Callable[[SeedProgress], None],
    clock: Callable[[], float],
    checksum: bool = False,
    doubt_since_ns: int | None = None,
    keep_replaced: bool = True,
) -> SeedReport:
    """Run a seed from *peer* (see the module). Nothing else may use *index* or change the trees meanwhile.

    *keep_replaced*: a file that differs from the primary's is kept aside before it is replaced; without it (for a copy
    that only ever held what the log said) it is overwritten. *doubt_since_ns*: after a power cut, files changed since
    then (by their ctime) may have lost bytes that their size still counts: their digests are compared. *clock*:
    monotonic seconds.

    Raises NoSpace, Unreachable, ListingLost (run it again), ExchangeDamaged, ConfigurationError (the primary has a tree
    that this machine has not), HoldfastError for what the disk says.
    """
    worker = ThreadPoolExecutor(1, thread_name_prefix="seed")
    try:
        job = _Seed(peer, index, trees, owners, aside, worker, progress, clock)
        return await job.run(checksum=checksum, doubt_since_ns=doubt_since_ns, keep_replaced=keep_replaced)
    finally:
        await asyncio.to_thread(worker.shutdown)


class _Seed:
    def __init__(
        self,
        peer: Peer,
        index: Index,
        trees: Mapping[str, Tree],
        owners: Owners,
        aside: Aside,
        worker: ThreadPoolExecutor,
        progress: Callable[[SeedProgress], None],
        clock: Callable[[], float],
    ) -> None:
        self._peer = peer
        self._index = index
        self._trees = trees
        self._owners = owners
        self._aside = aside
        self._worker = worker
        self._tell = progress
        self._clock = clock
        self._requests = asyncio.Semaphore(REQUESTS_MAX)
        self._phase = "compare"
        self._phase_since = clock()
        self._kept = (0, 0)

    async def run(self, *, checksum: bool, doubt_since_ns: int | None, keep_replaced: bool) -> SeedReport:
        began = self._clock()
        listing = self._listed = await self._peer.ask(OpenListing(), Listing)
        self._check_trees(listing)
        book = await self._work(self._begin)
        try:
            chain = await self._bring(listing, book, checksum, doubt_since_ns, keep_replaced)
        except BaseException:
            await self._work(self._abandon, book)
            raise
        await self._work(book.finish)
        counts = replace(self._ground.counts)
        unknown = tuple(sorted(self._owners.unknown))
        seconds = self._clock() - began
        return SeedReport(
            chain.position,
            Epoch(listing.epoch),
            listing.files,
            listing.content_bytes,
            counts,
            self._aside.count,
            unknown,
            seconds,
        )

    async def _bring(
        self, listing: Listing, book: SeedBook, checksum: bool, doubt_since_ns: int | None, keep_replaced: bool
    ) -> Chain:
        """The listing's place in the log, where index and trees then stand."""
        trees = {name: self._trees[name] for name in listing.trees}
        ground = self._ground = await self._work(
            lambda: Ground(
                self._index,
                trees,
                self._owners,
                self._aside,
                book,
                checksum=checksum,
                doubt_since_ns=doubt_since_ns,
                keep_replaced=keep_replaced,
            )
        )
        self._names, self._files = SeedNames(ground), SeedContents(ground)
        try:
            for tree in listing.trees:
                await self._compare(listing, tree)
            await self._peer.ask(CloseListing(listing.listing), Done)
            await self._contents()
            return await self._finish(listing)
        finally:
            await self._work(self._files.close)
            await self._work(ground.close)

    # -- the thread ----------------------------------------------------------------------------------------------------

    async def _work(self, run: Callable[..., T], *arguments: Any) -> T:
        """*run* in the one thread that touches trees and index. Raises HoldfastError for what the disk says."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._worker, run, *arguments)
        except OSError as error:
            name = error.filename if isinstance(error.filename, str | bytes) else "a tree"
            raise world_error(error, f"copying to {name!r}") from error
        except (apsw.FullError, apsw.IOError) as error:
            raise NoSpace(
                f"the tree index {self._index.file} cannot be written ({error})",
                hint="Free space on that disk, then start the seed again.",
                retry=True,
            ) from error

    def _begin(self) -> SeedBook:
        clean_marker(self._index.file).unlink(missing_ok=True)  # the first start compares: newer contents are suspects
        self._index.clear()
        self._index.commit(Chain(NO_INCARNATION, Sequence(0), CHAIN_START), Epoch(0))
        return SeedBook(self._index.file.with_name(self._index.file.name + ".seed"))

    def _abandon(self, book: SeedBook) -> None:
        self._index.rollback()
        book.close()

    # -- comparing -----------------------------------------------------------------------------------------------------

    def _check_trees(self, listing: Listing) -> None:
        foreign = [name for name in listing.trees if name not in self._trees]
        if foreign:
            raise ConfigurationError(
                f"{self._peer.name} protects trees that this machine does not have: {', '.join(foreign)}",
                hint="Give this machine the same [tree] sections, then start the seed again.",
            )

    async def _compare(self, listing: Listing, tree: str) -> None:
        after: bytes | None = None
        asking = asyncio.create_task(self._peer.page(listing, tree, after))
        try:
            while True:
                page = await asking
                if not page.done:
                    after = page.entries[-1].path
                    asking = asyncio.create_task(self._peer.page(listing, tree, after))
                await self._work(self._names.take_page, tree, page.entries)
                self._report()
                if page.done:
                    return
        finally:
            asking.cancel()

    # -- contents ------------------------------------------------------------------------------------------------------

    async def _contents(self) -> None:
        for tree in self._listed.trees:
            await self._work(self._names.find_extras, tree)
        reached: int | None = 0
        while reached is not None:
            reached = await self._work(self._files.reuse_moved, reached)
            self._report()
        await self._work(self._files.check_space)
        self._begin_phase("fetch")
        batches: asyncio.Queue[list[Wanted] | None] = asyncio.Queue(REQUESTS_MAX)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._plan(batches))
                for _ in range(REQUESTS_MAX):
                    group.create_task(self._fetch_batches(batches))
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None

    async def _plan(self, batches: asyncio.Queue[list[Wanted] | None]) -> None:
        reached = 0
        while batch := await self._work(self._files.next_batch, reached):
            reached = batch[-1].local
            await batches.put(batch)
        for _ in range(REQUESTS_MAX):
            await batches.put(None)

    async def _fetch_batches(self, batches: asyncio.Queue[list[Wanted] | None]) -> None:
        while (batch := await batches.get()) is not None:
            if batch[0].size > SMALL_BYTES_MAX:
                await self._fetch_large(batch[0])
            else:
                await self._fetch_small(batch)
            self._report()

    async def _fetch_small(self, batch: list[Wanted]) -> None:
        got: list[tuple[Wanted, PartRead]] = [(w, PartRead(PartState.READ)) for w in batch if not w.size]
        todo = [wanted for wanted in batch if wanted.size]
        while todo:
            read = await self._ask_parts([PartWanted(wanted.source, 0, wanted.size) for wanted in todo])
            got += zip(todo, read, strict=False)
            todo = todo[len(read) :]
        await self._work(self._put_all, got)

    def _put_all(self, got: list[tuple[Wanted, PartRead]]) -> None:
        for wanted, part in got:
            if part.state is PartState.READ:
                self._files.put(wanted, part.data)
            else:
                self._files.put_placeholder(wanted, _problem(part))

    async def _fetch_large(self, wanted: Wanted) -> None:
        large = await self._work(self._files.open_large, wanted)
        lacking = await self._fetch_ranges(large)
        await self._work(self._files.finish_large, large, lacking)

    async def _fetch_ranges(self, large: LargeFile) -> str | None:
        """Fetch and write what is missing; what is lacking in the end (see finish_large)."""
        under_way: deque[tuple[tuple[int, int], asyncio.Task[tuple[PartRead, ...]]]] = deque()
        todo = iter(large.ranges)
        try:
            while True:
                while len(under_way) < LARGE_REQUESTS_MAX and (span := next(todo, None)) is not None:
                    part = PartWanted(large.wanted.source, *span)
                    under_way.append((span, asyncio.create_task(self._ask_parts([part]))))
                if not under_way:
                    return None
                span, asking = under_way[0]
                read = (await asking)[0]
                under_way.popleft()
                if read.state is not PartState.READ:
                    return _problem(read)
                await self._work(self._files.write_large, large, *span, read.data)
                self._report()
        finally:
            for _, asking in under_way:
                asking.cancel()

    async def _ask_parts(self, parts: list[PartWanted]) -> tuple[PartRead, ...]:
        async with self._requests:
            return await self._peer.contents(parts)

    # -- the end -------------------------------------------------------------------------------------------------------

    async def _finish(self, listing: Listing) -> Chain:
        self._begin_phase("finish")
        reached: int | None = 0
        while reached is not None:
            reached = await self._work(self._names.link_further, reached)
        await self._work(self._names.move_extras_aside)
        for tree in listing.trees:
            await self._work(self._names.describe_directories, tree)
        await self._work(self._ground.sync)
        chain = Chain(Incarnation(listing.incarnation), Sequence(listing.sequence), listing.digest)
        await self._work(self._index.commit, chain, Epoch(listing.epoch))
        self._report()
        return chain

    def _begin_phase(self, phase: str) -> None:
        counts = self._ground.counts
        self._phase, self._phase_since = phase, self._clock()
        self._kept = (counts.done_files, counts.done_bytes)
        self._report()

    def _report(self) -> None:
        listing, counts = self._listed, self._ground.counts
        total = listing.directories + listing.files + listing.symlinks
        seconds = self._clock() - self._phase_since
        files, size = counts.done_files - self._kept[0], counts.done_bytes - self._kept[1]
        done = size + files * FILE_WEIGHT_BYTES
        left = listing.content_bytes - counts.done_bytes + (listing.files - counts.done_files) * FILE_WEIGHT_BYTES
        eta = seconds * max(left, 0) / done if self._phase == "fetch" and done else None
        rate = size / seconds if self._phase == "fetch" and seconds > 0 else 0.0
        self._tell(
            SeedProgress(
                self._phase,
                counts.entries,
                total,
                counts.done_files,
                listing.files,
                counts.done_bytes,
                listing.content_bytes,
                rate,
                eta,
            )
        )


def _problem(part: PartRead) -> str:
    """Why there is no content; empty when it is gone."""
    return (part.reason or "unreadable at the source") if part.state is PartState.UNREADABLE else ""
