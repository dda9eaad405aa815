"""The bus over core NATS, on the log's connection: beats, questions and answers; no storage, no Raft leader.

An answerer's HoldfastError travels as the header ``Hf-Error`` (sentence) and ``Hf-Hint``, and is raised at the asker.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from holdfast.errors import HoldfastError, Unreachable
from holdfast.log import wire
from holdfast.log.connection import NOBODY, Connection, NotSent
from holdfast.log.listener import Listener
from holdfast.log.port import HANDLERS_MAX, Handler, LogUnavailable

REGISTERED_SECONDS_MAX = 2.0
"""A subscription is known to the server within a round trip."""


class NatsBus:
    """A :class:`holdfast.log.port.Bus`. The connection stays its owner's; :meth:`close` ends what is served."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._serving: list[int] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def publish(self, subject: str, payload: bytes) -> None:
        with contextlib.suppress(NotSent):
            self._connection.publish(subject, payload)

    @asynccontextmanager
    async def subscribe(self, subject: str) -> AsyncIterator[AsyncIterator[tuple[str, bytes]]]:
        listener = Listener()
        sid = self._connection.subscribe(subject, lambda message: listener.put(message.subject, message.payload))
        try:
            # While there is no connection nothing can be missed; the subscription is made with the next one.
            with contextlib.suppress(LogUnavailable):
                await self._connection.flush(REGISTERED_SECONDS_MAX)
            yield listener
        finally:
            self._connection.unsubscribe(sid)

    async def request(self, subject: str, payload: bytes, *, timeout_seconds: float) -> bytes:
        try:
            message = await self._connection.request(subject, payload, timeout_seconds)
        except LogUnavailable as error:
            raise Unreachable(f"no answer to {subject}: {error.message}", retry=True) from error
        if message.status == NOBODY:
            raise Unreachable(f"nobody answers {subject}", retry=True)
        problem = message.header(b"Hf-Error")
        if problem is not None:
            raise HoldfastError(problem, hint=message.header(b"Hf-Hint") or "")
        return message.payload

    async def serve(self, subject: str, handler: Handler) -> None:
        places = asyncio.Semaphore(HANDLERS_MAX)

        def take(message: wire.Message) -> None:
            if message.reply:
                task = asyncio.create_task(self._answer(message, handler, places), name=f"serving {subject}")
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

        self._serving.append(self._connection.subscribe(subject, take))
        with contextlib.suppress(LogUnavailable):
            await self._connection.flush(REGISTERED_SECONDS_MAX)

    async def close(self) -> None:
        """Answer nothing further; handlers under way are cancelled."""
        for sid in self._serving:
            self._connection.unsubscribe(sid)
        self._serving.clear()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _answer(self, message: wire.Message, handler: Handler, places: asyncio.Semaphore) -> None:
        async with places:
            headers = b""
            try:
                payload = await handler(message.subject, message.payload)
            except HoldfastError as error:
                payload = b""
                headers = wire.headers({"Hf-Error": error.message, "Hf-Hint": error.hint})
            with contextlib.suppress(NotSent):
                self._connection.publish(message.reply, payload, headers=headers)
