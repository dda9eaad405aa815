"""What the gates ask of the agent besides barriers: whom it hears."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import aiohttp
import msgspec
from msgspec import Struct

from holdfast.errors import Unreachable
from holdfast.gate.barrier import AGENT_HINT

ANSWER_SECONDS: Final = 5.0
MISSING_SECONDS: Final = 2.0
"""A machine not heard for so long is missed: what a standby goes by, too."""


class HeardMachine(Struct, frozen=True):
    """One other machine, by its beats."""

    silent_seconds: float
    """Since it was heard last, or since it is listened for."""
    known: bool = True
    """It was heard since this agent started."""
    role: str = ""
    serving: bool = False
    """By its own last word."""
    misses: dict[str, float] = {}
    """How long it has not heard each other machine, by its own last word."""

    @property
    def heard(self) -> bool:
        return self.known and self.silent_seconds < MISSING_SECONDS


class Heard(Struct, frozen=True):
    """Whom this machine hears."""

    primary: str = ""
    """The last promoted, as far as this machine knows."""
    machines: dict[str, HeardMachine] = {}

    @property
    def served(self) -> bool:
        """Some machine is heard that says it serves."""
        return any(machine.heard and machine.serving for machine in self.machines.values())


class Agent:
    """The agent of this machine, through its socket."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket
        self._session: aiohttp.ClientSession | None = None

    async def heard(self) -> Heard:
        """Raises Unreachable."""
        if self._session is None:
            connector = aiohttp.UnixConnector(str(self._socket), limit=2)
            timeout = aiohttp.ClientTimeout(total=ANSWER_SECONDS)
            self._session = aiohttp.ClientSession(connector=connector, timeout=timeout)
        try:
            async with self._session.get("http://agent/heard") as answer:
                return msgspec.json.decode(await answer.read(), type=Heard)
        except (aiohttp.ClientError, OSError, TimeoutError, msgspec.DecodeError) as error:
            raise Unreachable(f"the agent does not answer: {error}", hint=AGENT_HINT, retry=True) from None

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
