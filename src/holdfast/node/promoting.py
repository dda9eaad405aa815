"""This machine becomes the primary: it founds the log, goes on as the primary it was, or, a standby, is promoted.

Before it serves, its promotion is in the log and ``served_epoch`` on its disk: ``Primary.begin`` keeps that order.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from holdfast.changes.frame import Chain, FrameDamaged, Promotion, chain_start
from holdfast.changes.names import Epoch, Sequence
from holdfast.errors import HoldfastError
from holdfast.log.port import Fenced, LogDamaged
from holdfast.node.primary import Primary, catch_up, pass_over
from holdfast.node.roles import Role, Row
from holdfast.node.story import ANEW
from holdfast.trees.index import Index, IndexUnusable
from holdfast.trees.replay import ReplayGap

if TYPE_CHECKING:
    from holdfast.node.node import Node

OWN_RECORDS_HINT: Final = (
    "Run `holdfast takeover` on the standby, then `holdfast join --rejoin` here. "
    "Is this machine's mail store the good one? Then run `holdfast found` here."
)


class Promoting:
    def __init__(self, node: Node) -> None:
        self._node = node

    async def found(self, row: Row) -> None:
        """Start the log from what this machine holds."""
        node = self._node
        world = node.world
        node.become(Role.FOUNDER, row.reason)
        trees = await world.find_trees()
        for spec in trees:
            Path(spec.root).mkdir(parents=True, exist_ok=True)
        world.local.change(trees=trees)
        again = node.orders.to_found or world.local.served_epoch > 0
        index = node.open_index()
        state = None if node.log is None or node.orders.to_found else await node.log.state()
        # What was lost with the log had numbers there, and other machines know them: they are not given a second time.
        used = state is not None and (
            state.last > 0 or (index.position.sequence > 0 and index.position.incarnation == state.incarnation)
        )
        if node.orders.to_found or node.log is None or used:
            known_log = None if node.log is None else node.log.incarnation
            node.log = await world.door.found(known_log, ordered=node.orders.to_found)
        node.orders.to_found = False
        known = index.epoch
        index.clear()
        chain = chain_start(node.log.incarnation)
        epoch = Epoch(max(node.epoch, known, world.local.served_epoch) + 1)
        index.commit(chain, epoch)
        alone = world.local.state.alone
        if again and not alone:
            world.history.record(ANEW, row.reason, machine=str(world.settings.machine), epoch=int(epoch))
        try:
            await self._promote_founder(chain, epoch, f"alone: {alone}" if alone else row.reason, planned=not alone)
        finally:
            # The promotion is in the log, although something that serves may not have started: left standing, the
            # order would set this log aside at the agent's next start.
            if alone and node.primary is not None:
                world.local.change(alone="")
        if alone:
            world.history.record("takeover done", f"alone, with a new log, epoch {epoch}", epoch=int(epoch))

    async def resume(self, row: Row) -> None:
        """Go on as the primary this machine is: its own records since the last commit, then a scan, while serving."""
        node = self._node
        assert node.log is not None
        await self._find_trees_again()
        index = node.open_index()
        try:
            chain, cut_short = await catch_up(index, node.log, node.world, node.epoch)
        except (ReplayGap, FrameDamaged, LogDamaged) as error:
            raise IndexUnusable(error.message, hint=OWN_RECORDS_HINT) from error
        await self._begin(index, chain, node.epoch, None, row.reason, cut_short=cut_short)

    async def _find_trees_again(self) -> None:
        """Configuration may have changed meanwhile. A tree that is not found any more stays protected."""
        node = self._node
        known = {spec.name: spec for spec in node.world.local.state.trees}
        try:
            found = await node.world.find_trees()
        except HoldfastError as error:
            node.world.history.record("discovery failed, the trees stay as they were", error.message)
            return
        known.update({spec.name: spec for spec in found})
        node.world.local.change(trees=tuple(known.values()))

    async def _promote_founder(self, chain: Chain, epoch: Epoch, reason: str, *, planned: bool) -> None:
        node = self._node
        promotion = Promotion(node.world.settings.machine_name, reason, planned)
        await self._begin(node.open_index(), chain, epoch, promotion, reason)

    async def promote(self, reason: str, *, planned: bool, behind: Sequence | None = None) -> str:
        """As a standby: append this machine's promotion and capture from then on.

        *behind*: as the record right after this one and no other. Raises Fenced when somebody else's record came first,
        or has been applied meanwhile; :meth:`Copying.follow_again` makes it a standby again.
        """
        node = self._node
        assert node.standby is not None
        assert node.log is not None
        chain = await node.end_standby(to_promote=True)
        if behind is not None and chain.sequence != behind:
            raise Fenced(f"record {chain.sequence} came meanwhile, and {behind} was the last", last=chain.sequence)
        node.world.serving.look_again()
        index = node.open_index()
        if index.chain != chain:
            node.look_again()
            raise HoldfastError(
                f"the copy was applied to record {chain.sequence}, but is on disk only to {index.chain.sequence}",
                hint="The agent recovers it now; give the command again. `holdfast history` says more.",
                retry=True,
            )
        reached = index.epoch
        try:
            if node.world.settings.at_intervals:
                chain, reached = await pass_over(index, node.log, node.world.owners, node.world.segment_key())
            epoch = Epoch(max(node.epoch, reached) + 1)
            primary = Primary(node.world, index, node.log, epoch, node.beats, node.lost)
            await primary.begin(chain, Promotion(node.world.settings.machine_name, reason, planned))
        except Fenced:
            index.rollback()
            raise
        except HoldfastError:
            node.look_again()
            raise
        self._is_primary(primary, reason)
        if not planned:
            node.takeovers.append(node.world.clocks.steady())
        return f"record {chain.sequence + 1} of the log promotes this machine, epoch {epoch}"

    async def _begin(
        self,
        index: Index,
        chain: Chain,
        epoch: Epoch,
        promotion: Promotion | None,
        reason: str,
        *,
        cut_short: bool = False,
    ) -> None:
        node = self._node
        assert node.log is not None
        primary = Primary(node.world, index, node.log, epoch, node.beats, node.lost)
        await primary.begin(chain, promotion, cut_short=cut_short, prove=node.guarded)
        self._is_primary(primary, reason)
        try:
            await node.world.serving.prepare()
        except HoldfastError as error:
            node.world.history.record("the mail software could not be prepared", error.message)
        if not node.guarded:  # else the guard does it, when the others confirm that they hear this machine
            await node.world.serving.start()

    def _is_primary(self, primary: Primary, reason: str) -> None:
        node = self._node
        assert node.peer is not None
        node.proved = True
        serving = node.world.serving.on  # decided anew, it never stopped
        node.held = "not heard by the others yet" if node.guarded and not serving else ""
        node.primary = primary
        node.world.local.change(whole_after=0)
        node.peer.open_source(primary)
        node.epoch, node.primary_name = primary.epoch, node.world.settings.machine_name
        node.become(Role.PRIMARY, reason)
