"""What the gates' process does on the primary for the site's relays: their streams, their list of recipients, and what
a relay had accepted when it died.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Final

from holdfast.errors import HoldfastError
from holdfast.gate.accept import Foreign, ShadowMilter
from holdfast.gate.agent import Agent
from holdfast.gate.recipients import REPEAT_SECONDS, SUBJECT, Recipients, encode
from holdfast.gate.shadow_stream import StreamShadows
from holdfast.log.side import SideStream

LOOK_SECONDS: Final = 2.0
FIND_SECONDS: Final = 15.0
_log = logging.getLogger("holdfast.gate")


class RelaysOfPrimary:
    """Of one event loop. Runs while this machine serves."""

    def __init__(
        self,
        *,
        names: frozenset[str],
        adopt_seconds: float,
        agent: Agent,
        milter: ShadowMilter,
        shadows: StreamShadows,
        lists: SideStream,
        find: Callable[[float], Awaitable[Recipients]],
        wall_seconds: Callable[[], float] = time.time,
    ) -> None:
        self._names, self._adopt_seconds = names, adopt_seconds
        self._agent, self._milter, self._shadows, self._lists = agent, milter, shadows, lists
        self._find, self._wall_seconds = find, wall_seconds
        self._published: Recipients | None = None

    async def publish_lists(self) -> None:
        """For ever: say who is there when it has changed, and now and then that it has not."""
        while True:
            try:
                await self.publish_list()
            except (HoldfastError, OSError) as error:
                _log.warning("the relays have no new list of recipients: %s", error)
            await asyncio.sleep(FIND_SECONDS)

    async def publish_list(self) -> None:
        """Raises HoldfastError, OSError."""
        found = await self._find(self._wall_seconds())
        last = self._published
        if found.same_as(last) and last is not None and found.at - last.at < REPEAT_SECONDS:
            return
        await self._lists.publish(SUBJECT, encode(found))
        self._published = found

    async def adopt_from_the_gone(self) -> None:
        """For ever: put what a relay had accepted into this queue when the relay is gone for adopt_seconds."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                gone = await self._gone()
                if gone:
                    await self.adopt(gone)
            except HoldfastError as error:
                _log.warning("not looked for what the relays that are gone had accepted: %s", error)

    async def _gone(self) -> frozenset[str]:
        heard = await self._agent.heard()
        silent = {name: machine.silent_seconds for name, machine in heard.machines.items()}
        return frozenset(name for name in self._names if silent.get(name, 0.0) > self._adopt_seconds)

    async def adopt(self, machines: frozenset[str]) -> None:
        """Returns when all is in this queue. Raises HoldfastError."""
        for machine in sorted(machines):
            listed = await self._shadows.listed(machine)
            if not listed:
                continue
            _log.warning("%s is gone: what it had accepted, %d messages, is delivered from here", machine, len(listed))
            await self._milter.adopt([Foreign(each.shadow, self._shadows) for each in listed])
