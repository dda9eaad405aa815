"""This machine as the primary: it watches, captures, serves its index and contents to standbys, and trims the log."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from holdfast.apply.applier import clean_marker, mark_clean
from holdfast.changes.frame import Chain, FrameWriter, Promotion, follow_chain, open_frame, read_header
from holdfast.changes.names import CapturedPosition, Epoch
from holdfast.errors import HoldfastError
from holdfast.log.port import Fenced, Log
from holdfast.node.beats import Beats
from holdfast.node.capture import Capture
from holdfast.node.errands import run_errands
from holdfast.node.keeping import LogKeeper
from holdfast.node.scrub import Scrub
from holdfast.node.world import World
from holdfast.trees.index import Index
from holdfast.trees.replay import Replay
from holdfast.trees.spec import Tree
from holdfast.watch.watcher import ScanProgress, Watcher


async def catch_up(index: Index, log: Log, world: World, epoch: Epoch) -> tuple[Chain, bool]:
    """Bring the records since the last commit into the index: the place reached is the log's end, and whether the last
    record left a batch unfinished.

    Raises FrameDamaged, ReplayGap, LogDamaged: then the index is of no use any more. Raises Fenced, with the index as
    it was, when the record reached is not this machine's own of *epoch*: another machine was promoted after it was
    decided that we are primary (a server cut off from the others had told the log's end as it was before).
    """
    chain, reached, writer = index.chain, index.epoch, str(world.settings.machine)
    last = (await log.state()).last
    replay = Replay(index, world.owners)
    while chain.sequence < last:
        async for record in log.follow(chain.sequence):
            frame = open_frame(record.payload, world.segment_key())
            chain = follow_chain(chain, record.payload, frame.header)
            reached, writer = frame.header.epoch, frame.header.writer
            if not frame.changes:
                replay.abandon()
            for change in frame.changes:
                replay.apply(change)
            if chain.sequence >= last:
                break
    if (reached, writer) != (epoch, world.settings.machine):
        raise Fenced(f"{writer} was promoted (epoch {reached})", last=chain.sequence)
    cut_short = chain.sequence > 0 and read_header((await log.read(chain.sequence)).payload)[0].more
    index.commit(chain, reached)
    return chain, cut_short


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
            monotonic=world.clocks.monotonic,
        )
        self.capture: Capture | None = None
        self.scanning: ScanProgress | None = None
        self.scan_done = False
        self._keeper = LogKeeper(world, log, beats)
        self.scrub: Scrub | None = None
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
            )
            if promotion is not None:
                await self.capture.append_promotion(promotion)
            elif cut_short or prove:
                await self.capture.append_nothing(more=cut_short)
            world.local.change(served_epoch=int(self.epoch))
        except BaseException:
            await asyncio.to_thread(self.watcher.stop)
            raise
        self.capture.start()
        self.scrub = Scrub(world, self.trees, self.watcher, self.capture)
        errands = run_errands(world.serving.mail, world.history)
        works = (self._scan(), self._look_for_others(), errands, self._keeper.run(), self.scrub.run())
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
        assert self.capture is not None
        return await self.capture.barrier(timeout_seconds=timeout_seconds)

    async def _scan(self) -> None:
        """What changed while nobody watched."""
        assert self.capture is not None

        def seen(progress: ScanProgress) -> None:
            self.scanning = progress

        try:
            await self.capture.scan(seen, self._world.local.state.doubt_since_ns or None)
        except HoldfastError:
            return  # the capture ended, and told why
        self.scanning, self.scan_done = None, True
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
