"""What a bus's subscription gives: a bounded queue to iterate over."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator

from holdfast.log.port import LISTENER_MESSAGES_MAX


class Listener:
    """A bounded queue that forgets the oldest."""

    def __init__(self) -> None:
        self._messages: deque[tuple[str, bytes]] = deque(maxlen=LISTENER_MESSAGES_MAX)
        self._news = asyncio.Event()

    def put(self, subject: str, payload: bytes) -> None:
        self._messages.append((subject, payload))
        self._news.set()

    def __aiter__(self) -> AsyncIterator[tuple[str, bytes]]:
        return self

    async def __anext__(self) -> tuple[str, bytes]:
        while not self._messages:
            self._news.clear()
            await self._news.wait()
        return self._messages.popleft()
