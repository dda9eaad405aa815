"""What people, and other machines for them, have told this one: rejoin, pause, resume, found. The node does it when it
decides its role anew."""

from __future__ import annotations

from typing import TYPE_CHECKING

from holdfast.errors import HoldfastError, Refused
from holdfast.node.roles import Role

if TYPE_CHECKING:
    from holdfast.node.node import Node


class Orders:
    def __init__(self, node: Node) -> None:
        self._node = node
        self.to_rejoin = False
        self.to_found = False
        self.paused_at = node.world.clocks.steady()
        """When it was told, or, paused by an agent before this one, when this one began."""

    def rejoin(self) -> None:
        node = self._node
        if node.role not in (Role.RETURNED, Role.BLOCKED, Role.WAITING):
            raise Refused(
                f"this machine is {node.role}: there is nothing to rejoin", hint="`holdfast status` shows its state."
            )
        self.to_rejoin = True
        node.look_again()

    def pause(self, why: str) -> None:
        """Nobody takes over without a person until :meth:`resume`."""
        node = self._node
        if not node.world.local.state.paused:
            self.paused_at = node.world.clocks.steady()
            node.world.history.record("automatic takeover is paused", why)
        node.world.local.change(paused=why)
        node.spawn(node.beats.say_now())

    def resume(self, *, told: str) -> None:
        """Raises Refused where the primary is neither heard nor *told*: it may still rely on the pause.

        Told, that is: it knows that the pause is over, whether or not it is heard here again after a cut.
        """
        node = self._node
        primary = node.primary_name
        if not node.world.local.state.paused:
            return
        unaware = primary is not None and primary != told and not node.beats.alive(primary)
        if node.role is not Role.PRIMARY and unaware:
            raise Refused(
                f"the primary {primary} is not heard, and may serve on in the belief that nobody takes over",
                hint="Is it gone? Then `holdfast takeover` on the standby. Else resume when it is heard again.",
            )
        node.world.local.change(paused="")
        node.world.history.record("automatic takeover is possible again", "resumed by a person")
        node.spawn(node.beats.say_now())

    async def found(self, *, force: bool = False) -> None:
        """Start the log anew from here. A primary may when its log does not answer: it may be lost for good.

        Raises Refused; where another machine knows of a later primary, unless *force*.
        """
        node = self._node
        if node.role is Role.RELAY:
            raise Refused("this machine is a relay: it has nothing to start a log from")
        if node.role is Role.PRIMARY and await self._log_answers():
            raise Refused("this machine is the primary, and the log goes on: it is not started anew")
        continues = node.role in (Role.PRIMARY, Role.STANDBY, Role.YIELDED)
        known = max(node.known_epoch, node.epoch if continues else 0)
        later = [
            name
            for name, beat in node.role_facts.heard_mail_machines().items()
            if beat is not None and beat.known_epoch > known
        ]
        if later and not force:
            raise Refused(
                f"{later[0]} knows of a later primary than this machine: what is here is old",
                hint=f"Give the order on the machine that served last; is it gone, on {later[0]}. Or --force.",
            )
        self.to_found = True
        node.look_again()

    async def _log_answers(self) -> bool:
        node = self._node
        capture = None if node.primary is None else node.primary.capture
        if node.log is None or (capture is not None and capture.status().log_away_seconds is not None):
            return False
        try:
            await node.log.state()
        except HoldfastError:
            return False
        return True
