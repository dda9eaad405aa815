"""The facts of ``roles``: what the log, the other machines and this machine's own disk say."""

from __future__ import annotations

from typing import TYPE_CHECKING

from holdfast.changes.frame import read_header
from holdfast.changes.names import Epoch, MachineName
from holdfast.log.port import LogState
from holdfast.node.beats import Beat
from holdfast.node.roles import Facts

if TYPE_CHECKING:
    from holdfast.node.node import Node


class RoleFacts:
    def __init__(self, node: Node) -> None:
        self._node = node

    async def of_log(self) -> tuple[LogState | None, Facts]:
        """What the log says (its state: None when there is none), and what this machine knows without its index."""
        node = self._node
        state = None if node.log is None else await node.log.state()
        primary, epoch = None, Epoch(0)
        if node.log is not None and state is not None and state.last:
            header, _ = read_header((await node.log.read(state.last)).payload)
            primary, epoch = header.writer, header.epoch
        return state, self.of_machine(state, primary, epoch)

    def of_machine(self, state: LogState | None, primary: MachineName | None, epoch: Epoch) -> Facts:
        """*primary*, *epoch*: of the log's last record."""
        node = self._node
        settings, empty = node.world.settings, state is None or not state.last
        return Facts(
            relay=settings.me.role == "relay",
            log_empty=empty,
            starts_log=settings.starts_log,
            primary=primary,
            epoch=epoch,
            me=settings.machine_name,
            served_epoch=node.world.local.served_epoch,
            index_fits=False,
            index_empty=False,
            told_to_found=node.orders.to_found or (empty and bool(node.world.local.state.alone)),
            told_to_rejoin=node.orders.to_rejoin,
            known_elsewhere=self._known_elsewhere(),
            unheard=self._unheard(),
        )

    def heard_mail_machines(self) -> dict[str, Beat | None]:
        """The other machines that hold mail; None: not heard, or it has not looked at its own disk yet."""
        node = self._node
        me, beats = node.world.settings.me, node.beats
        return {
            machine.name: beat if beats.alive(machine.name) and beat is not None and beat.known_epoch >= 0 else None
            for machine in node.world.settings.mail_machines
            if machine is not me
            for beat in [beats.last(machine.name)]
        }

    def _known_elsewhere(self) -> Epoch:
        heard = [beat for beat in self.heard_mail_machines().values() if beat is not None]
        return Epoch(max((max(beat.epoch, beat.known_epoch) for beat in heard), default=0))

    def _unheard(self) -> str:
        return next((name for name, beat in self.heard_mail_machines().items() if beat is None), "")

    def with_index(self, facts: Facts, state: LogState | None) -> Facts:
        """And whether the tree index continues the log. Raises IndexUnusable, NoSpace."""
        node = self._node
        index = node.open_index()
        position = index.position
        node.known_epoch = max(index.epoch, node.world.local.served_epoch)
        empty = position.sequence == 0
        fits = (
            state is not None
            and not empty
            and not node.copying.reseed
            and position.incarnation == state.incarnation
            and state.first - 1 <= position.sequence <= state.last
        )
        return facts._replace(index_fits=fits, index_empty=empty)
