"""Postfix's policy delegation protocol, server side (SMTPD_POLICY_README): may this recipient be taken now?

A request is lines ``name=value``, then an empty line; the answer is ``action=...`` and an empty line. One connection
carries many requests. What is asked is answered by one function, the same for every recipient.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Final

from holdfast.gate.tasks import hang_up

REQUEST_BYTES_MAX: Final = 64 * 1024
"""Postfix's are some hundred bytes; the longest attribute is a header-like certificate name."""
SESSIONS_MAX: Final = 500
END: Final = b"\n\n"
DUNNO: Final = "DUNNO"
"""Go on with the next restriction."""


def later(text: str) -> str:
    """Refuse for now. The text goes to the sender's administrator."""
    said = "".join(mark if " " <= mark <= "~" else "?" for mark in text)[:200]
    return f"450 4.3.2 {said}"


class PolicyServer:
    """Answers every request by what *decide* says at that moment."""

    def __init__(self, decide: Callable[[], str]) -> None:
        self._decide = decide
        self._server: asyncio.Server | None = None
        self._sessions: set[_Session] = set()

    async def start(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: _Session(self._decide, self._sessions), sock=listening, backlog=SESSIONS_MAX
        )

    async def stop(self) -> None:
        await hang_up(self._server, (), self._sessions)


class _Session(asyncio.Protocol):
    def __init__(self, decide: Callable[[], str], sessions: set[_Session]) -> None:
        self._decide, self._sessions = decide, sessions
        self._buffer = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        if len(self._sessions) >= SESSIONS_MAX:
            transport.close()  # Postfix: 451 4.3.5
        else:
            self._sessions.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._sessions.discard(self)

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        assert self._transport is not None
        self._buffer += data
        while END in self._buffer:
            request, _, self._buffer = self._buffer.partition(END)
            if b"request=smtpd_access_policy" not in request.split(b"\n"):
                self._transport.abort()
                return
            self._transport.write(f"action={self._decide()}\n\n".encode())
        if len(self._buffer) > REQUEST_BYTES_MAX:
            self._transport.abort()
