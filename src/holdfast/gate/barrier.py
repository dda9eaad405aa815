"""Many waiters, one barrier at a time.

A barrier that has begun says nothing of what was done after its begin. So who comes while one is under way waits for
the next; all who came meanwhile share it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, NamedTuple

import aiohttp

from holdfast.errors import HoldfastError, Unreachable

AGENT_HINT: Final = "Look at `holdfast status`. Until then messages wait in the queue: nothing is lost."
AGAIN_SECONDS: Final = 0.25


class Position(NamedTuple):
    """Where the log stood when a barrier had passed."""

    log: str
    """Its incarnation."""
    record: int


class AgentBarrier:
    """One barrier through the agent's socket, on a connection that stays open."""

    def __init__(self, socket: Path, timeout_seconds: float) -> None:
        self._socket = socket
        self._timeout = aiohttp.ClientTimeout(total=timeout_seconds)
        self._session: aiohttp.ClientSession | None = None

    async def __call__(self) -> Position:
        """Everything done before this call is in the log: up to where. Raises Unreachable, HoldfastError (the agent's
        refusal)."""
        if self._session is None:
            connector = aiohttp.UnixConnector(str(self._socket), limit=2)
            self._session = aiohttp.ClientSession(connector=connector, timeout=self._timeout)
        try:
            async with self._session.post("http://agent/barrier") as answer:
                body = await answer.json()
                if answer.status != 200:
                    raise HoldfastError(str(body.get("message", answer.reason)), hint=AGENT_HINT, retry=True)
                return Position(str(body["incarnation"]), int(body["sequence"]))
        except TimeoutError:
            raise Unreachable("the log did not take it in time", hint=AGENT_HINT, retry=True) from None
        except (aiohttp.ClientError, OSError, ValueError, KeyError) as error:
            raise Unreachable(f"the agent does not answer: {error}", hint=AGENT_HINT, retry=True) from None

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()


class SharedBarrier:
    """Wait for a barrier that begins after the call. Of one event loop."""

    def __init__(self, barrier: Callable[[], Awaitable[object]]) -> None:
        self._barrier = barrier
        self._waiting: list[asyncio.Future[None]] = []
        self._task: asyncio.Task[None] | None = None
        self.passed = 0
        """Barriers made."""
        self.waited = 0
        """Waiters they were made for."""

    async def wait(self) -> None:
        """Raises what the barrier raises."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        await future

    async def _run(self) -> None:
        try:
            while self._waiting:
                waiting, self._waiting = self._waiting, []
                failure = await self._one()
                for future in waiting:
                    if future.done():
                        continue
                    if failure is None:
                        future.set_result(None)
                    else:
                        future.set_exception(failure)
                self.passed += 1
                self.waited += len(waiting)
        finally:
            self._task = None

    async def _one(self) -> HoldfastError | None:
        try:
            await self._barrier()
        except HoldfastError as error:
            return error
        return None


class PatientBarrier:
    """A barrier that is asked for again until it passes: for a client that has no queue, and waits."""

    def __init__(self, barrier: SharedBarrier, seconds: float) -> None:
        """*seconds*: how long a client waits at most."""
        self._barrier = barrier
        self._seconds = seconds

    async def wait(self) -> None:
        """Raises HoldfastError when no barrier passed in time."""
        failure = HoldfastError("the log did not take it in time", hint=AGENT_HINT, retry=True)
        try:
            async with asyncio.timeout(self._seconds):
                while True:
                    try:
                        return await self._barrier.wait()
                    except HoldfastError as error:
                        failure = error
                    await asyncio.sleep(AGAIN_SECONDS)
        except TimeoutError:
            raise failure from None
