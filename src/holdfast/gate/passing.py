"""A gate that passes bytes and holds answers: sockets around an IMAP or a ManageSieve session.

Dovecot hands each client over when it has logged in, as to a post-login script (login-server.c of its lib-master): its
imap process connects to the gate's socket, sends a line about the client and, beside it, the client's connection
(SCM_RIGHTS). The gate sends the line back, and beside it one end of a pair: with that the imap process goes on as if it
were the client. TLS, passwords, limits and the client's address stay Dovecot's. What a client said in one piece with
its login Dovecot has read already; the answers to it are not asked for here, so they are held.

One event loop, two connections for each client. What one side has not taken stops the other: at most
``WAITING_BYTES_MAX`` and one read wait in each direction, about 1 MiB for a session whose peers stand still, besides
what the kernel keeps (``SOCKET_BYTES``). While an answer is held the server is not read. When either side ends, or the
two cannot be followed any more, both connections are closed; no other session notices.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Final, Protocol

from msgspec import Struct

from holdfast.errors import HoldfastError
from holdfast.gate.barrier import AGAIN_SECONDS, PatientBarrier
from holdfast.gate.imap import Moved
from holdfast.gate.serve import WATCH_SECONDS
from holdfast.gate.stream import ProtocolBroken
from holdfast.gate.tasks import hang_up

WAITING_BYTES_MAX: Final = 256 * 1024
"""A read brings as much: with less, each read of a large message would wait for the other side."""
SOCKET_BYTES: Final = 1024 * 1024
"""What the kernel takes of a writer before it has to wait. With its usual 208 KiB the imap process, the gate and the
login process take turns for every piece of a large message: measured, a third slower."""
_SO_SNDBUFFORCE: Final = 32
"""socket(7); not among Python's names. Root may go above net.core.wmem_max."""
HAND_OVER_SECONDS: Final = 10.0
HAND_OVER_BYTES_MAX: Final = 64 * 1024
"""Addresses, name and userdb fields of one user."""
SESSIONS_MAX: Final = 5000
"""Two descriptors each. Users keep four or five connections open."""
SILENT_SECONDS_MAX: Final = 2400.0
"""Dovecot ends an IMAP connection after 30 minutes without a command; this is for peers that vanished."""
NOT_SAFE: Final = "what you changed is not yet safe on a second machine: connect again to see what is there"
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

    def __init__(self, name: str, session: Callable[[], HoldingSession], barrier: PatientBarrier) -> None:
        self.name = name
        self.session = session
        self.barrier = barrier
        self.counts = PassingCounts()
        self._connections: set[_Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, listening: socket.socket) -> None:
        """Serve whom Dovecot hands over at *listening* (see :func:`holdfast.gate.serve.listening_at`)."""
        listening.setblocking(False)
        self._spawn(self._accept(listening))
        self._spawn(self._watch())

    async def stop(self) -> None:
        """Close everything. What was held has no answer."""
        await hang_up(None, self._tasks, self._connections)

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        with listening:
            while True:
                try:
                    from_dovecot, _ = await loop.sock_accept(listening)
                except OSError as error:  # no descriptor is left: those who come wait
                    _log.warning("%s: %s", self.name, error)
                    await asyncio.sleep(AGAIN_SECONDS)
                    continue
                self._spawn(self._take_over(from_dovecot))

    async def _take_over(self, from_dovecot: socket.socket) -> None:
        with from_dovecot:
            try:
                async with asyncio.timeout(HAND_OVER_SECONDS):
                    client, line = await _handed_over(from_dovecot)
                    await self._open(client, from_dovecot, line)
            except (OSError, TimeoutError, ProtocolBroken) as error:
                _log.warning("%s: a client was not taken over: %s", self.name, error or "nothing came")

    async def _open(self, client: socket.socket, from_dovecot: socket.socket, line: bytes) -> None:
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        connection = _Connection(self)
        with theirs:
            if len(self._connections) >= SESSIONS_MAX:
                client.close()
                ours.close()
                raise ProtocolBroken("too many connections")
            self._connections.add(connection)
            self.counts.sessions += 1
            try:
                for end in (ours, theirs, client):
                    _enlarge(end)
                for side, of_client in ((ours, False), (client, True)):
                    side.setblocking(False)
                    await loop.connect_accepted_socket(partial(_Side, connection, client=of_client), side)
                if socket.send_fds(from_dovecot, [line], [theirs.fileno()]) != len(line):
                    raise ProtocolBroken("Dovecot does not take its answer")
            except (OSError, ProtocolBroken):
                connection.abort()
                raise

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

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
        if client:
            self._client = transport
        else:
            self._server = transport
        self._flow()

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


async def _handed_over(from_dovecot: socket.socket) -> tuple[socket.socket, bytes]:
    """The client's connection, and the line to send back: name and fields, without the two addresses before them.

    Raises OSError, ProtocolBroken.
    """
    loop = asyncio.get_running_loop()
    from_dovecot.setblocking(False)
    said, client = b"", None
    try:
        while said.count(b"\n") < 2:
            readable = asyncio.Event()
            loop.add_reader(from_dovecot, readable.set)
            try:
                await readable.wait()
            finally:
                loop.remove_reader(from_dovecot)
            more, descriptors, _, _ = socket.recv_fds(from_dovecot, HAND_OVER_BYTES_MAX, 1)
            for descriptor in descriptors:
                if client is not None:
                    client.close()
                client = socket.socket(fileno=descriptor)
            said += more
            if not more or len(said) > HAND_OVER_BYTES_MAX:
                raise ProtocolBroken("Dovecot's line about the client has no end")
        version, line = said.split(b"\n", 1)
        fields = line.split(b"\t", 2)
        if client is None or not version.startswith(b"VERSION\tscript-login\t1\t") or len(fields) < 3:
            raise ProtocolBroken("this is not Dovecot's way to hand a client over (script-login, version 1)")
    except BaseException:
        if client is not None:
            client.close()
        raise
    return client, fields[2]


def _enlarge(end: socket.socket) -> None:
    """Of a pair on this machine; TCP does it by itself."""
    if end.family == socket.AF_UNIX:
        with contextlib.suppress(PermissionError):  # not root: it is slower, and right
            end.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, SOCKET_BYTES)


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
