"""This machine as a standby: it applies the log to its trees and is ready to be promoted."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from holdfast.apply.applier import Applier
from holdfast.apply.recovery import Settlement
from holdfast.changes.frame import Chain, Frame
from holdfast.changes.names import Sequence
from holdfast.errors import HoldfastError
from holdfast.log.port import Log
from holdfast.node.follow import Follow
from holdfast.node.world import World
from holdfast.trees.index import Index
from holdfast.trees.spec import Tree


class Standby:
    """From :meth:`begin` to :meth:`end`. *on_lost* is called when the copy does not continue the log any more.

    *log_end*: when the log is applied that far, a recovery is over; *on_settled* gets what it could not bring right.
    """

    def __init__(
        self,
        world: World,
        index: Index,
        log: Log,
        *,
        log_end: Sequence,
        on_settled: Callable[[Settlement], None],
        primary_clock_ns: Callable[[], int],
        on_promotion: Callable[[Frame], None],
        on_lost: Callable[[HoldfastError], None],
    ) -> None:
        self._world = world
        self._index = index
        self.trees = [Tree(spec) for spec in world.local.state.trees]
        self.applier = Applier(index, self.trees, world.owners, world.new_aside(), open_files_max=world.open_files_max)
        self.follow = Follow(
            applier=self.applier,
            index=index,
            log=log,
            key=world.segment_key(),
            chain=index.chain,
            durable_seconds=world.settings.copy.durable_seconds,
            clock_ns=primary_clock_ns,
            monotonic=world.clocks.monotonic,
            settle_at=log_end,
            on_settled=on_settled,
            on_promotion=on_promotion,
            on_lost=on_lost,
            whole_only=world.settings.at_intervals,
        )

    async def begin(self) -> None:
        """After an unclean end the trees are first brought back to the committed index. Raises HoldfastError."""
        report = await asyncio.to_thread(self.applier.recover)
        if report.put_back or report.unknown or report.suspects or report.missing:
            self._world.history.record(
                "copy recovered after an unclean end",
                f"{report.put_back} put back, {report.unknown} unknown kept aside, {report.suspects} to be checked, "
                f"{len(report.missing)} missing",
            )
        self._world.local.change(doubt_since_ns=0)
        self.follow.start()

    async def end(self, *, to_promote: bool = False) -> Chain:
        """Stop applying; what was applied is on disk and in the index, which is closed. The place reached.

        *to_promote*: nobody will finish a batch that has begun, so what came of it counts.
        """
        chain = await self.follow.stop()
        if to_promote and not self.applier.whole:
            await asyncio.to_thread(self.applier.give_up_batch)
        await asyncio.to_thread(self.applier.close)
        return chain
