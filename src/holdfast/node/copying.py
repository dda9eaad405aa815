"""This machine holds a copy: it is seeded, follows the log, is drained for a takeover, and healed after a recovery."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from holdfast.apply.heal import heal
from holdfast.apply.recovery import Settlement
from holdfast.changes.names import MachineName, Sequence
from holdfast.errors import HoldfastError, Unreachable
from holdfast.node.copies import copy_words
from holdfast.node.returned import report_unlogged
from holdfast.node.roles import Role, Row
from holdfast.node.seeding import Seeding
from holdfast.node.standby import Standby

if TYPE_CHECKING:
    from holdfast.node.node import Node

KEPT_NAMED_MAX: Final = 50
HEAL_SECONDS: Final = 5.0
"""Between two tries to fetch what is wrong here from a primary that is not there."""


class Copying:
    def __init__(self, node: Node) -> None:
        self._node = node
        self.reseed = ""
        """Why this copy must be compared with the primary before it can follow again; empty when it need not."""
        self.lacking = 0
        """Files that a recovery found wrong here and that are being fetched from the primary."""
        self.drained_to = Sequence(0)
        """What was the log's last record when the last drain began."""

    async def follow(self, row: Row) -> None:
        node = self._node
        await node.stop_serving(row.reason)
        await self.follow_again()
        node.become(Role.STANDBY, row.reason)
        node.spawn(self._prepare())

    async def _prepare(self) -> None:
        """What takes time at a first start (Postfix makes its queue folders) is done before it is needed."""
        node = self._node
        try:
            node.world.serving.look_again()
            for sentence in await node.world.serving.warm():
                node.world.history.record("standby prepared", sentence)
        except (HoldfastError, OSError) as error:
            node.world.history.record("the mail software could not be prepared", str(error))

    async def seed(self, row: Row) -> bool:
        """Fetch what differs from the primary. False: the next decision finds an index that fits, or seeds on."""
        node = self._node
        await node.stop_serving(row.reason)
        if node.primary_name is None or node.peer is None or not node.beats.alive(node.primary_name):
            node.become(Role.WAITING, f"{row.reason}; the primary {node.primary_name} is not heard", row.advice)
            return False
        node.become(Role.SEEDING, row.reason)
        node.seeding = Seeding(node.world, node.open_index(), node.peer, node.primary_name)
        if node.orders.to_rejoin and node.log is not None and node.open_index().position.sequence:
            await report_unlogged(node.world, node.open_index(), node.log)
        keep = node.orders.to_rejoin or node.world.local.served_epoch > 0
        try:
            await node.seeding.run(keep_replaced=keep)
        finally:
            node.seeding = None
        node.orders.to_rejoin, self.reseed = False, ""
        node.world.local.change(served_epoch=0, doubt_since_ns=0)
        if node.world.settings.at_intervals and node.log is not None:
            # What came later than the listing came as it was then: a copy has to begin after that.
            node.world.local.change(whole_after=int((await node.log.state()).last))
            node.spawn(self._ask_for_copy(node.primary_name))
        return False

    async def _ask_for_copy(self, primary: MachineName) -> None:
        node = self._node
        assert node.asks is not None
        try:
            await node.asks.order(primary, "copy", hold_open=False)
        except HoldfastError as error:  # it comes at its time
            node.world.history.record(f"{primary} could not be asked for a copy now", error.message)

    @property
    def whole(self) -> bool:
        """As a standby: whether what is applied is the trees of one instant. False between a seed and the next copy."""
        node = self._node
        if node.standby is None or not node.world.settings.at_intervals:
            return True
        return node.standby.follow.applied.sequence > node.world.local.state.whole_after

    def _settled(self, settlement: Settlement) -> None:
        """A recovery is over: what lies aside is named, and what is wrong is fetched from the primary."""
        node = self._node
        for kept in settlement.kept[:KEPT_NAMED_MAX]:
            path = kept.path.decode("utf-8", "backslashreplace")
            node.world.history.record("kept aside by the recovery", f"{kept.tree}/{path}: {kept.why}")
        spots = [(oddity.tree, oddity.path) for oddity in settlement.differing]
        if spots:
            node.world.history.record(f"{len(spots)} files differ after the recovery", "they are fetched anew")
            self.lacking = len(spots)
            node.spawn(self._heal(spots))

    async def _heal(self, spots: list[tuple[str, bytes]]) -> None:
        """Until they are there, or this copy is no standby's any more. A primary that is not there is waited for:
        meanwhile a person may make this machine the primary as it is."""
        node, said = self._node, ""
        standby = node.standby
        while standby is not None and node.standby is standby:
            try:
                left = await self._healed(standby, spots)
            except HoldfastError as error:
                if error.message != said:
                    said = error.message
                    node.world.history.record("healing failed", said)
                if error.retry or isinstance(error, Unreachable):
                    await asyncio.sleep(HEAL_SECONDS)
                    continue
                left = len(spots)
            if node.standby is standby:
                self.lacking = left
                if left:
                    self.reseed = f"{left} files differ after a recovery and could not be fetched one by one"
                    node.look_again()
            return

    async def _healed(self, standby: Standby, spots: list[tuple[str, bytes]]) -> int:
        """How many are left. Raises HoldfastError."""
        node = self._node
        if node.peer is None or node.primary_name is None:
            raise Unreachable("there is no primary to fetch from")
        trees = {str(tree.name): tree for tree in standby.trees}
        peer = node.peer.exchange_with(node.primary_name)
        report = await heal(peer, standby.follow.paused, trees, node.world.new_aside(), spots)
        return len(report.left)

    async def drain(self, timeout_seconds: float) -> str:
        """As a standby: apply everything the log has now; at intervals, every copy that is whole."""
        node = self._node
        assert node.standby is not None
        assert node.log is not None
        last = (await node.log.state()).last
        follow = node.standby.follow
        applied = await follow.drained(last, timeout_seconds=timeout_seconds)
        self.drained_to = last
        if not node.world.settings.at_intervals:
            return f"applied to the log's end, record {last}"
        rest = f"; the {last - applied} records behind it are of a copy that is not whole" if applied < last else ""
        return f"applied to the last whole copy, {copy_words(follow.copied_at_ns)}, record {applied}{rest}"

    async def follow_again(self) -> None:
        """As neither: follow the log from where the index stands."""
        node = self._node
        assert node.log is not None
        self.lacking = 0
        node.standby = Standby(
            node.world,
            node.open_index(),
            node.log,
            log_end=(await node.log.state()).last,
            on_settled=self._settled,
            primary_clock_ns=self._primary_clock_ns,
            on_promotion=node.promoted,
            on_lost=node.lost,
        )
        await node.standby.begin()

    def _primary_clock_ns(self) -> int:
        """The time by the primary's clock, as far as its beats tell: frames carry that clock's times."""
        node = self._node
        ahead = node.beats.clock_ahead_seconds(node.primary_name) if node.primary_name else 0.0
        return node.world.clocks.wall_ns() - int(ahead * 1e9)
