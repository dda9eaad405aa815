"""This machine as the primary: it watches, captures, serves its index and contents to standbys, and trims the log."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from holdfast.apply.applier import clean_marker, mark_clean
from holdfast.changes.frame import Chain, FrameWriter, Promotion, SegmentKey, follow_chain, open_frame, read_header
from holdfast.changes.names import CapturedPosition, Epoch
from holdfast.errors import HoldfastError, Unreachable
from holdfast.log.port import Fenced, Log
from holdfast.node.beats import Beats
from holdfast.node.capture import Capture
from holdfast.node.copies import Copies
from holdfast.node.errands import run_errands
from holdfast.node.keeping import LogKeeper
from holdfast.node.schedule import Schedule
from holdfast.node.scrub import Scrub
from holdfast.node.world import World
from holdfast.trees.index import Index
from holdfast.trees.replay import Replay
from holdfast.trees.spec import Tree
from holdfast.trees.stat import Owners
from holdfast.watch.limits import Limits
from holdfast.watch.watcher import ScanProgress, Watcher


class _Read(NamedTuple):
    """Where reading the log to its end came to, and who wrote the last record read."""

    chain: Chain
    epoch: Epoch
    writer: str


async def _replay(index: Index, log: Log, owners: Owners, key: SegmentKey, read: _Read) -> _Read:
    """Bring the records after *read* into the index, to the log's end. Nothing is committed."""
    last = (await log.state()).last
    replay = Replay(index, owners)
    while read.chain.sequence < last:
        async for record in log.follow(read.chain.sequence):
            frame = open_frame(record.payload, key)
            chain = follow_chain(read.chain, record.payload, frame.header)
            read = _Read(chain, frame.header.epoch, str(frame.header.writer))
            if not frame.changes:
                replay.abandon()
            for change in frame.changes:
                replay.apply(change)
            if chain.sequence >= last:
                break
    return read


async def catch_up(index: Index, log: Log, world: World, epoch: Epoch) -> tuple[Chain, bool]:
    """Bring the records since the last commit into the index: the place reached is the log's end, and whether the last
    record left a batch unfinished.

    Raises FrameDamaged, ReplayGap, LogDamaged: then the index is of no use any more. Raises Fenced, with the index as
    it was, when the record reached is not this machine's own of *epoch*: another machine was promoted after it was
    decided that we are primary (a server cut off from the others had told the log's end as it was before).
    """
    me = str(world.settings.machine)
    read = _Read(index.chain, index.epoch, me)
    chain, reached, writer = await _replay(index, log, world.owners, world.segment_key(), read)
    if (reached, writer) != (epoch, me):
        raise Fenced(f"{writer} was promoted (epoch {reached})", last=chain.sequence)
    cut_short = chain.sequence > 0 and read_header((await log.read(chain.sequence)).payload)[0].more
    index.commit(chain, reached)
    return chain, cut_short


async def pass_over(index: Index, log: Log, owners: Owners, key: SegmentKey) -> tuple[Chain, Epoch]:
    """Bring the records after the index's place, a copy that never became whole, into it and not into the trees.

    The place reached is the log's end. Nothing is committed: after ``rollback`` the index is that of the trees again.
    When the promotion behind it is in the log, the scan that follows finds the trees as they are, and logs what takes
    the unfinished copy back, for whoever reads the log. Raises FrameDamaged, ReplayGap, LogUnavailable.
    """
    read = await _replay(index, log, owners, key, _Read(index.chain, index.epoch, ""))
    return read.chain, read.epoch


def scan_words(at: ScanProgress) -> tuple[str, float]:
    """How far a scan is: in words, and as a share (-1: a first scan does not know how much there is)."""
    if not at.files_expected:
        return f"scanning: {at.files:,} names so far", -1.0
    return f"scanning {at.files:,} of about {at.files_expected:,} names", min(at.files / at.files_expected, 1.0)


class Primary:
    """From :meth:`begin` to :meth:`end`. *on_lost* is called when it may not go on."""

    def __init__(
        self,
        world: World,
        index: Index,
        log: Log,
        epoch: Epoch,
        beats: Beats,
        on_lost: Callable[[HoldfastError], None],
    ) -> None:
        self._world = world
        self._index = index
        self._log = log
        self.epoch = epoch
        self._on_lost = on_lost
        self.trees = [Tree(spec) for spec in world.local.state.trees]
        copy = world.settings.copy
        self.watcher = Watcher(
            index,
            self.trees,
            world.owners,
            batch_seconds=copy.batch_milliseconds / 1000,
            limits=Limits.of_process(world.open_files_max),
            monotonic=world.clocks.monotonic,
        )
        self.capture: Capture | None = None
        self.scanning: ScanProgress | None = None
        self.scan_done = False
        self._keeper = LogKeeper(world, log, beats)
        self.scrub: Scrub | None = None
        self.copies: Copies | None = None
        """Under the policy ``interval``."""
        self._tasks: list[asyncio.Task[None]] = []

    async def begin(
        self, chain: Chain, promotion: Promotion | None, *, cut_short: bool = False, prove: bool = False
    ) -> None:
        """Watch, then (with *promotion*) append it as the record after *chain*, then capture. Raises Fenced, OSError.

        *cut_short*: our last record left a batch unfinished; readers are told that it ends there. *prove*: append
        something in any case, so that it is certain that nobody else was promoted.
        From the first line on nothing that happens in the trees is missed.
        """
        world, settings = self._world, self._world.settings
        clean_marker(self._index.file).unlink(missing_ok=True)
        await asyncio.to_thread(self.watcher.start)
        try:
            writer = FrameWriter(settings.segment_name, settings.machine_name, self.epoch, world.segment_key())
            self.capture = Capture(
                watcher=self.watcher,
                index=self._index,
                log=self._log,
                writer=writer,
                chain=chain,
                clock_ns=world.clocks.wall_ns,
                monotonic=world.clocks.monotonic,
                on_lost=self._on_lost,
                at_intervals=settings.at_intervals,
            )
            if promotion is not None:
                await self.capture.append_promotion(promotion)
            elif cut_short or prove:
                await self.capture.append_nothing(more=cut_short)
            world.local.change(served_epoch=int(self.epoch))
        except BaseException:
            await asyncio.to_thread(self.watcher.stop)
            raise
        doubt_since_ns = world.local.state.doubt_since_ns or None
        # Asked for before anything is captured: a barrier passes after it.
        scanned = None if settings.at_intervals else self.capture.scan(self._seen, doubt_since_ns)
        self.capture.start()
        if scanned is None:  # the scrub compares with what is watched all the time
            schedule = Schedule(settings.copy.at, settings.copy.every_hours)
            self.copies = Copies(self.capture, schedule, world.clocks.wall_seconds, self._seen)
            works = [self.copies.run(doubt_since_ns, self._scanned)]
        else:
            self.scrub = Scrub(world, self.trees, self.watcher, self.capture)
            works = [self._scan(scanned), self.scrub.run()]
        works += [self._look_for_others(), run_errands(world.serving.mail, world.history), self._keeper.run()]
        self._tasks = [asyncio.create_task(work) for work in works]

    async def end(self) -> Chain:
        """Stop capturing; everything seen is in the log (unless it was lost). The place reached."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        assert self.capture is not None
        chain = await self.capture.stop()
        if self.capture.clean:
            mark_clean(self._index)
        await asyncio.to_thread(self.watcher.stop)
        return chain

    async def barrier(self, timeout_seconds: float) -> CapturedPosition:
        """Returns once everything done before this call is in the log; at intervals it makes a copy for that.

        Raises Unreachable in time, or why capturing has ended.
        """
        assert self.capture is not None
        if self.copies is None:
            return await self.capture.barrier(timeout_seconds=timeout_seconds)
        try:
            return await asyncio.wait_for(self.copies.make(), timeout_seconds)
        except TimeoutError:
            raise Unreachable(
                f"the copy was not whole within {timeout_seconds:g} s",
                hint="It goes on: `holdfast status`.",
                retry=True,
            ) from None

    def _seen(self, progress: ScanProgress | None) -> None:
        self.scanning = progress

    async def _scan(self, scanned: Awaitable[None]) -> None:
        """What changed while nobody watched."""
        try:
            await scanned
        except HoldfastError:
            return  # the capture ended, and told why
        self.scanning = None
        self._scanned()

    def _scanned(self) -> None:
        self.scan_done = True
        self._world.local.change(doubt_since_ns=0)

    async def _look_for_others(self) -> None:
        """An idle primary appends nothing and would not notice that it was replaced: look at the log's end."""
        assert self.capture is not None
        while True:
            await asyncio.sleep(1.0)
            try:
                ours = self.capture.chain.sequence
                last = (await self._log.state()).last
                if last > ours and self.capture.chain.sequence == ours:
                    header, _ = read_header((await self._log.read(last)).payload)
                    if header.writer != self._world.settings.machine:
                        self._on_lost(Fenced(f"{header.writer} was promoted (epoch {header.epoch})", last=last))
                        return
            except HoldfastError as error:
                if not error.retry:
                    self._on_lost(error)
                    return
