"""A gate that passes bytes and holds answers: sockets around an IMAP or a ManageSieve session.

One event loop, two connections for each client. What one side has not taken stops the other: at most
``WAITING_BYTES_MAX`` and one read wait in each direction, about 1 MiB for a session whose peers stand still. While an
answer is held the server is not read. When either side ends, or the two cannot be followed any more, both connections
are closed; no other session notices.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Coroutine
from typing import Final, Protocol

from msgspec import Struct

from holdfast.errors import HoldfastError
from holdfast.gate.barrier import PatientBarrier
from holdfast.gate.imap import Moved
from holdfast.gate.serve import CONNECT_SECONDS, WAITING_BYTES_MAX, WATCH_SECONDS, Place
from holdfast.gate.stream import ProtocolBroken

SESSIONS_MAX: Final = 5000
"""Two descriptors each. Users keep four or five connections open."""
SILENT_SECONDS_MAX: Final = 2400.0
"""Dovecot ends an IMAP connection after 30 minutes without a command; this is for peers that vanished."""
NOT_SAFE: Final = "what you changed is not yet safe on a second machine: connect again to see what is there"
NO_SERVER: Final = "the mail store does not answer"
FULL: Final = "too many connections"
_log = logging.getLogger("holdfast.gate")


class HoldingSession(Protocol):
    """The pure part: :class:`holdfast.gate.imap.ImapSession`, :class:`holdfast.gate.sieve.SieveSession`."""

    holding: bool

    @property
    def reading(self) -> bool: ...

    def from_client(self, data: bytes) -> Moved: ...

    def from_server(self, data: bytes) -> Moved: ...

    def released(self) -> Moved: ...

    def rest(self) -> bytes: ...

    def last_words(self, text: str) -> bytes: ...


class PassingCounts(Struct):
    """Since the gate started."""

    sessions: int = 0
    held: int = 0
    """Answers, or groups of answers, that waited for a barrier."""
    unsafe: int = 0
    """Connections closed because the barrier did not pass."""
    broken: int = 0
    """Connections closed because a peer said what the gate cannot follow."""


class PassingGate:
    """Listens, and runs the sessions. Of one event loop."""

    def __init__(
        self, name: str, server: Place, session: Callable[[], HoldingSession], barrier: PatientBarrier
    ) -> None:
        self.name = name
        self.server = server
        self.session = session
        self.barrier = barrier
        self.counts = PassingCounts()
        self._connections: set[_Connection] = set()
        self._listening: asyncio.Server | None = None
        self._watching: asyncio.Task[None] | None = None

    async def start(self, listening: socket.socket) -> None:
        """Serve who comes to *listening* (see :func:`holdfast.gate.serve.listening_at`)."""
        loop = asyncio.get_running_loop()
        self._listening = await loop.create_server(lambda: _Side(_Connection(self), client=True), sock=listening)
        self._watching = loop.create_task(self._watch())

    async def stop(self) -> None:
        """Close everything. What was held has no answer."""
        if self._listening is not None:
            self._listening.close()
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        for connection in list(self._connections):
            connection.abort()

    def opened(self, connection: _Connection) -> bool:
        """Whether there is room for it."""
        if len(self._connections) >= SESSIONS_MAX:
            return False
        self._connections.add(connection)
        self.counts.sessions += 1
        return True

    def closed(self, connection: _Connection) -> None:
        self._connections.discard(connection)

    @property
    def waiting_bytes(self) -> int:
        """What was read and not taken yet by the other side, of all sessions."""
        return sum(connection.waiting_bytes for connection in self._connections)

    async def _watch(self) -> None:
        """End sessions in which nothing happens."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            before = loop.time() - SILENT_SECONDS_MAX
            for connection in [one for one in self._connections if one.active_at < before]:
                connection.abort()


class _Connection:
    """A client's connection, the server's, and the session between them."""

    def __init__(self, gate: PassingGate) -> None:
        self._gate = gate
        self._session = gate.session()
        self._client: asyncio.Transport | None = None
        self._server: asyncio.Transport | None = None
        self._server_ended = False
        self._full = {True: False, False: False}
        """Whether the client (True), the server (False) has more to take than it should."""
        self._ended = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        self.active_at = self._loop.time()

    @property
    def waiting_bytes(self) -> int:
        sides = (self._client, self._server)
        return sum(side.get_write_buffer_size() for side in sides if side is not None)

    # -- connections ---------------------------------------------------------------------------------------------------

    def made(self, transport: asyncio.Transport, *, client: bool) -> None:
        transport.set_write_buffer_limits(WAITING_BYTES_MAX)
        if not client:
            self._server = transport
            if self._ended:
                transport.abort()
            self._flow()
            return
        self._client = transport
        if not self._gate.opened(self):
            self._end(FULL)
            return
        transport.pause_reading()
        self._spawn(self._connect())

    async def _connect(self) -> None:
        place = self._gate.server
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                if place.path:
                    await self._loop.create_unix_connection(lambda: _Side(self, client=False), place.path)
                else:
                    await self._loop.create_connection(lambda: _Side(self, client=False), place.host, place.port)
        except (OSError, TimeoutError) as error:
            _log.warning("%s at %s: %s", self._gate.name, place, error or "no answer in time")
            self._end(NO_SERVER)

    def lost(self, *, client: bool) -> None:
        if client:
            self._client = None
            self._finish()
            return
        self._server, self._server_ended = None, True
        if not self._session.holding:
            self._last()

    def _last(self) -> None:
        """The server has ended, and everything it said may go to the client."""
        if self._client is not None and not self._ended:
            self._client.write(self._session.rest())
            self._client.close()

    def _end(self, words: str) -> None:
        """Say *words* where they can be said, and close."""
        if self._ended:
            return
        self._ended = True
        if self._client is not None:
            self._client.write(self._session.last_words(words))
            self._client.close()
        if self._server is not None:
            self._server.abort()

    def abort(self) -> None:
        if self._client is not None:
            self._client.abort()
        self._finish()

    def _finish(self) -> None:
        """The client is gone: the server gets what it said before, and its end."""
        self._ended = True
        self._gate.closed(self)
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()

    # -- bytes ---------------------------------------------------------------------------------------------------------

    def received(self, data: bytes, *, client: bool) -> None:
        self.active_at = self._loop.time()
        self._carry_out(self._session.from_client if client else self._session.from_server, data)

    def _carry_out(self, call: Callable[..., Moved], *data: bytes) -> None:
        if self._ended:
            return
        held = self._session.holding
        try:
            to_client, to_server = call(*data)
        except ProtocolBroken as error:
            self._gate.counts.broken += 1
            _log.warning("%s: a session was ended: %s", self._gate.name, error.message)
            self._end(error.message)
            return
        if to_client and self._client is not None:
            self._client.write(to_client)
        if to_server and self._server is not None:
            self._server.write(to_server)
        if self._session.holding and not held:
            self._gate.counts.held += 1
            self._spawn(self._hold())
        self._flow()

    def full(self, full: bool, *, client: bool) -> None:
        self._full[client] = full
        self._flow()

    def _flow(self) -> None:
        """Let each side send, or not: while its bytes are wanted and somebody takes them."""
        if self._ended:
            return
        wanted = self._server is not None and self._session.reading and not self._full[False]
        _set_reading(self._client, wanted)
        _set_reading(self._server, not self._full[True] and not self._session.holding)

    async def _hold(self) -> None:
        try:
            await self._gate.barrier.wait()
        except HoldfastError as error:
            self._gate.counts.unsafe += 1
            _log.warning("%s: an answer was not given: %s", self._gate.name, error.message)
            self._end(NOT_SAFE)
            return
        self.active_at = self._loop.time()
        self._carry_out(self._release)
        if self._server_ended and not self._session.holding:
            self._last()

    def _release(self) -> Moved:
        moved = self._session.released()
        if self._session.holding:  # what came after the barrier's begin
            self._gate.counts.held += 1
            self._spawn(self._hold())
        return moved

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _set_reading(transport: asyncio.Transport | None, wanted: bool) -> None:
    if transport is None or transport.is_closing() or transport.is_reading() == wanted:
        return
    if wanted:
        transport.resume_reading()
    else:
        transport.pause_reading()


class _Side(asyncio.Protocol):
    """One of the two connections."""

    def __init__(self, connection: _Connection, *, client: bool) -> None:
        self._connection = connection
        self._client = client

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._connection.made(transport, client=self._client)

    def data_received(self, data: bytes) -> None:
        self._connection.received(data, client=self._client)

    def connection_lost(self, exc: Exception | None) -> None:
        self._connection.lost(client=self._client)

    def pause_writing(self) -> None:
        self._connection.full(True, client=self._client)

    def resume_writing(self) -> None:
        self._connection.full(False, client=self._client)
