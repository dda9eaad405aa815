"""The primary gives its role up for a switchover: it stops serving, brings everything into the log, and follows it; and
serves again when nobody was promoted."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from holdfast.errors import HoldfastError, Refused
from holdfast.node.roles import Role

if TYPE_CHECKING:
    from holdfast.node.node import Node

YIELD_SECONDS_MAX: Final = 30.0
"""A machine that stopped for a switchover serves again when nobody was promoted for so long."""


class Yielding:
    def __init__(self, node: Node) -> None:
        self._node = node
        self._timer: asyncio.Task[None] | None = None

    async def begin(self) -> int:
        """As the primary: stop serving, put everything into the log, follow it. The last record's number."""
        node = self._node
        async with node.busy:
            if node.primary is None:
                raise Refused(f"{node.world.settings.machine} is not the primary ({node.role})")
            node.world.history.record("yielding for a switchover", "the other machine asked")
            try:
                await node.world.serving.stop()
                await node.primary.barrier(YIELD_SECONDS_MAX / 3)
            except HoldfastError:
                await node.world.serving.start()
                raise
            chain = await node.end_primary()
            node.world.local.change(served_epoch=0)
            node.become(Role.YIELDED, "stopped for a switchover; waits for the other machine's promotion")
            self._timer = asyncio.create_task(self._resume_unless_promoted())
            node.spawn(self._follow())
            return chain.sequence

    async def _follow(self) -> None:
        """Not before the answer: the other machine waits for it, and so do the users."""
        node = self._node
        async with node.busy:
            if node.role is Role.YIELDED and node.standby is None:
                try:
                    await node.copying.follow_again()
                except HoldfastError as error:
                    node.lost(error)

    async def _resume_unless_promoted(self) -> None:
        node = self._node
        await asyncio.sleep(YIELD_SECONDS_MAX)
        self._timer = None
        node.world.history.record("nobody was promoted after this machine yielded: it serves again")
        node.look_again()

    def ended(self) -> bool:
        """Nobody needs to wait any more; whether anybody did."""
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
        return timer is not None

    async def give_up(self) -> None:
        """The switchover was given up: serve again at once."""
        node = self._node
        if node.role is not Role.YIELDED:
            raise Refused(f"this machine has not yielded ({node.role})")
        node.look_again()
