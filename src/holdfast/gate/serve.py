"""The LMTP gate's process: sockets around :class:`holdfast.gate.lmtp.LmtpSession`.

One event loop, two connections for each session. A side that does not read stops the other's bytes at
``WAITING_BYTES_MAX``, so memory is bounded whatever peers do: about 200 KiB for a session, plus its header while that
is collected.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, NamedTuple

from msgspec import Struct

from holdfast.errors import ConfigurationError, EnvironmentUnfit, HoldfastError
from holdfast.gate.barrier import SharedBarrier
from holdfast.gate.deliveries import Deliveries, Outcome
from holdfast.gate.lmtp import (
    AwaitBarrier,
    End,
    LmtpSession,
    Lookup,
    NoteDone,
    NoteIntent,
    PutOff,
    Step,
    ToClient,
    ToServer,
)
from holdfast.gate.noting import outcome
from holdfast.gate.read_only import Refuses, never
from holdfast.gate.tasks import watched
from holdfast.ledger.book import Book
from holdfast.log.link import links_of

SESSIONS_MAX: Final = 500
"""Postfix opens 20 to one destination (default_destination_concurrency_limit); a gate that is full says 421."""
WAITING_BYTES_MAX: Final = 64 * 1024
CONNECT_SECONDS: Final = 10.0
SILENT_SECONDS_MAX: Final = 600.0
"""Postfix waits so long for the answer to a content (lmtp_data_done_timeout)."""
WATCH_SECONDS: Final = 5.0
RECOVER_SECONDS: Final = 1.0
DOUBTFUL_SECONDS: Final = 60.0
"""What was intended longer than this before the last one has been asked for, or was never tried again."""
DOUBTS_AT_ONCE: Final = 4
ANSWERS_SECONDS: Final = 0.05
"""Between two tries to reach a mail store that is starting."""
_log = logging.getLogger("holdfast.gate")

StoreLookup = Callable[[bytes, bytes], Awaitable[bool]]
"""Delivery id and recipient: is that message in the recipient's mailboxes? Raises HoldfastError."""


class Place(NamedTuple):
    """Where a socket is: a path, or a host and a port."""

    path: str
    host: str = ""
    port: int = 0

    @classmethod
    def parse(cls, text: str) -> Place:
        """``unix:/path`` or ``HOST:PORT`` (IPv6 in brackets). Raises ConfigurationError."""
        if text.startswith("unix:/"):
            return cls(text.removeprefix("unix:"))
        host, colon, port = text.rpartition(":")
        if not colon or not host or not port.isdigit() or not 0 < int(port) < 65536:
            raise ConfigurationError(f"{text!r} is no address", hint="Write unix:/path or 127.0.0.1:2424.")
        return cls("", host.strip("[]"), int(port))

    def __str__(self) -> str:
        return f"unix:{self.path}" if self.path else f"{self.host}:{self.port}"


def listening_at(place: Place, owner: tuple[int, int] | None = None) -> socket.socket:
    """A listening socket; a socket file gets *owner* (uid, gid) and mode 0600. Raises EnvironmentUnfit.

    Clients that connect before somebody accepts wait.
    """
    bound = socket.socket(socket.AF_UNIX if place.path else socket.AF_INET6 if ":" in place.host else socket.AF_INET)
    try:
        if place.path:
            Path(place.path).unlink(missing_ok=True)
            mask = os.umask(0o177)
            try:
                bound.bind(place.path)
            finally:
                os.umask(mask)
            if owner is not None:
                os.chown(place.path, *owner)
        else:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind((place.host, place.port))
        bound.listen(SESSIONS_MAX)
    except OSError as error:
        bound.close()
        raise EnvironmentUnfit(
            f"the gate cannot listen at {place}: {error.strerror or error}",
            hint="Is another gate running, or does the folder not exist? Postfix must be installed first.",
        ) from None
    return bound


class Counts(Struct):
    """Since the gate started."""

    sessions: int = 0
    delivered: int = 0
    """Recipients."""
    repeated: int = 0
    """Recipients who had the message already."""
    later: int = 0
    """Contents answered 451 because the barrier did not pass, and senders because nothing may be changed now."""
    looked_up: int = 0


class LmtpGate:
    """Listens, and runs the sessions. Of one event loop."""

    def __init__(
        self,
        *,
        server: Place,
        deliveries: Deliveries,
        barrier: SharedBarrier,
        in_store: StoreLookup,
        flush: Callable[[], Awaitable[None]],
        book: Book | None = None,
        refuses: Refuses = never,
    ) -> None:
        """*flush* makes the queue try again now: Postfix would wait minutes after a "later". *book*: the ledger."""
        self.server = server
        self.deliveries = deliveries
        self.barrier = barrier
        self.in_store = in_store
        self.flush = flush
        self.book = book
        self.refuses = refuses
        self.counts = Counts()
        self._sessions: set[_Session] = set()
        self._listening: list[asyncio.Server] = []
        self._watching: asyncio.Task[None] | None = None
        self._recovering: asyncio.Task[None] | None = None
        self._clearing: asyncio.Task[None] | None = None
        self._asking = asyncio.Semaphore(DOUBTS_AT_ONCE)

    async def start(self, listening: socket.socket) -> None:
        """Serve who comes to *listening* (see :func:`listening_at`)."""
        loop = asyncio.get_running_loop()
        self._listening.append(await loop.create_server(self._session, sock=listening, backlog=SESSIONS_MAX))
        self._watching = loop.create_task(self._watch())
        self._clearing = watched(self._clear_doubts())

    async def start_straight(self, listening: socket.socket, tls: ssl.SSLContext, relays: frozenset[str]) -> None:
        """Serve the *relays* (links in their certificates, `holdfast.log.trust`) at *listening*, besides."""
        loop = asyncio.get_running_loop()
        made = await loop.create_server(
            lambda: _ClientSide(_Session(self), relays), sock=listening, ssl=tls, backlog=SESSIONS_MAX
        )
        self._listening.append(made)

    async def stop(self) -> None:
        """Close everything. Clients without an answer come again."""
        for listening in self._listening:
            listening.close()
        for task in (self._watching, self._recovering, self._clearing):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        for session in list(self._sessions):
            session.abort()
        self.deliveries.close()

    def _session(self) -> asyncio.Protocol:
        return _ClientSide(_Session(self))

    def tell_ledger(self, delivery: bytes, delivered: tuple[bytes, ...], refused: tuple[bytes, ...] = ()) -> None:
        """Raises NoSpace."""
        if self.book is not None:
            for event in outcome(self.book, delivery, delivered, refused):
                self.book.note(event)

    async def has(self, delivery: bytes, recipient: bytes) -> bool:
        """Whether the mail store shows a doubtful delivery; then it is noted as done. Raises HoldfastError."""
        async with self._asking:
            self.counts.looked_up += 1
            if not await self.in_store(delivery, recipient):
                return False
        self.deliveries.stored(delivery, (recipient,))
        self.tell_ledger(delivery, (recipient,))
        return True

    async def _clear_doubts(self) -> None:
        """What was about to be delivered when the gate before this one ended: the mail store is asked at once, before
        a client can have deleted it. What it does not show is asked for again when it comes."""
        doubtful = self.deliveries.doubtful(DOUBTFUL_SECONDS)
        if not doubtful:
            return
        while not await self._server_answers():  # noqa: ASYNC110  # another process: there is no event
            await asyncio.sleep(ANSWERS_SECONDS)
        for delivery, recipient in doubtful:  # one by one: everything else is starting here, too
            try:
                await self.has(delivery, recipient)
            except HoldfastError as error:
                _log.warning("was %s delivered? It is asked again when it comes: %s", delivery.decode(), error)

    async def _server_answers(self) -> bool:
        place = self.server
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                opening = (
                    asyncio.open_unix_connection(place.path)
                    if place.path
                    else asyncio.open_connection(place.host, place.port)
                )
                _, writer = await opening
        except (OSError, TimeoutError):
            return False
        writer.transport.abort()
        return True

    def opened(self, session: _Session) -> bool:
        """Whether there is room for it."""
        if len(self._sessions) >= SESSIONS_MAX:
            return False
        self._sessions.add(session)
        self.counts.sessions += 1
        return True

    def closed(self, session: _Session) -> None:
        self._sessions.discard(session)

    def put_off(self) -> None:
        """A delivery was answered "later": as soon as a barrier passes again, the queue is told to come."""
        self.counts.later += 1
        if self._recovering is None:
            self._recovering = asyncio.get_running_loop().create_task(self._recover())

    async def _recover(self) -> None:
        while True:
            await asyncio.sleep(RECOVER_SECONDS)
            try:
                await self.barrier.wait()
            except HoldfastError:
                continue
            break
        self._recovering = None
        _log.info("the log takes deliveries again: the queue is told to come")
        await self.flush()

    async def _watch(self) -> None:
        """End sessions in which nothing happens."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            before = loop.time() - SILENT_SECONDS_MAX
            for session in [session for session in self._sessions if session.active_at < before]:
                _log.warning("a session was silent for %.0f s and is ended", SILENT_SECONDS_MAX)
                session.abort()


class _Session:
    """Carries out the steps of one :class:`LmtpSession`."""

    def __init__(self, gate: LmtpGate) -> None:
        self._gate = gate
        self._lmtp = LmtpSession(gate.refuses)
        self._client: asyncio.Transport | None = None
        self._server: asyncio.Transport | None = None
        self._server_full = False
        self._client_full = False
        self._ending = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._held: tuple[bytes, tuple[bytes, ...]] = (b"", ())
        """The message whose answers wait for the barrier: who has it, from now or from before."""
        self.active_at = asyncio.get_running_loop().time()

    # -- connections ---------------------------------------------------------------------------------------------------

    def client_made(self, transport: asyncio.Transport) -> None:
        self._client = transport
        transport.set_write_buffer_limits(WAITING_BYTES_MAX)
        if not self._gate.opened(self):
            transport.write(b"421 4.3.2 too many sessions\r\n")
            transport.close()
            return
        transport.pause_reading()
        self._spawn(self._connect())

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        place = self._gate.server
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                if place.path:
                    await loop.create_unix_connection(lambda: _ServerSide(self), place.path)
                else:
                    await loop.create_connection(lambda: _ServerSide(self), place.host, place.port)
        except (OSError, TimeoutError) as error:
            self._carry_out(self._lmtp.server_gone(f"{place}: {error or 'no answer in time'}"))

    def server_made(self, transport: asyncio.Transport) -> None:
        self._server = transport
        transport.set_write_buffer_limits(WAITING_BYTES_MAX)
        if self._client is None or self._ending:
            transport.abort()
            return
        self._flow()

    def client_lost(self) -> None:
        self._client = None
        self._finish()

    def server_lost(self) -> None:
        self._server = None
        if not self._ending:
            self._carry_out(self._lmtp.server_gone(f"{self._gate.server} closed the connection"))

    def abort(self) -> None:
        for transport in (self._client, self._server):
            if transport is not None:
                transport.abort()
        self._finish()

    def _finish(self) -> None:
        """The client is gone: what the server has not answered is not promised to anybody."""
        self._ending = True
        self._gate.closed(self)
        if self._server is not None:
            self._server.abort()
        for task in self._tasks:
            task.cancel()

    # -- bytes ---------------------------------------------------------------------------------------------------------

    def from_client(self, data: bytes) -> None:
        self.active_at = asyncio.get_running_loop().time()
        self._carry_out(self._lmtp.from_client(data))

    def from_server(self, data: bytes) -> None:
        self.active_at = asyncio.get_running_loop().time()
        self._carry_out(self._lmtp.from_server(data))

    def full(self, *, client: bool, full: bool) -> None:
        if client:
            self._client_full = full
        else:
            self._server_full = full
        self._flow()

    def _flow(self) -> None:
        """Let the sides send, or not: the client while its bytes are wanted and somebody takes them."""
        if self._client is not None and not self._ending:
            wanted = self._server is not None and self._lmtp.reading and not self._server_full and not self._client_full
            if wanted and not self._client.is_reading():
                self._client.resume_reading()
            elif not wanted and self._client.is_reading():
                self._client.pause_reading()
        if self._server is not None and not self._ending:
            if self._client_full and self._server.is_reading():
                self._server.pause_reading()
            elif not self._client_full and not self._server.is_reading():
                self._server.resume_reading()

    def _carry_out(self, steps: list[Step]) -> None:
        for at, step in enumerate(steps):
            match step:
                case ToClient(data):
                    if self._client is not None:
                        self._client.write(data)
                case ToServer(data):
                    if self._server is not None:
                        self._server.write(data)
                case NoteIntent() | NoteDone():
                    if not self._noted(step):
                        del steps[at + 1 :]
                        self.abort()  # without its line in the journal nothing may happen: the client comes again
                        return
                case Lookup():
                    self._look_up(step)
                case AwaitBarrier():
                    self._spawn(self._wait_for_barrier())
                case PutOff():
                    self._gate.put_off()
                case End(why):
                    self._end(why)
        self._flow()

    def _end(self, why: str) -> None:
        if why:
            _log.info("a session was ended: %s", why)
        self._ending = True
        if self._client is not None:
            self._client.close()
        if self._server is not None:
            self._server.abort() if why else self._server.close()

    # -- journal, store, barrier ---------------------------------------------------------------------------------------

    def _noted(self, step: NoteIntent | NoteDone) -> bool:
        journal = self._gate.deliveries
        try:
            if isinstance(step, NoteIntent):
                journal.intend(step.delivery, step.recipients)
            else:
                journal.stored(step.delivery, step.delivered)
                journal.refused(step.delivery, step.refused)
                self._held = (step.delivery, (*self._held[1], *step.delivered))
                self._gate.tell_ledger(step.delivery, step.delivered, step.refused)
                self._gate.counts.delivered += len(step.delivered)
        except HoldfastError as error:
            _log.error("%s", error)
            return False
        return True

    def _look_up(self, step: Lookup) -> None:
        try:
            outcomes = {
                recipient: self._gate.deliveries.outcome(step.delivery, recipient) for recipient in step.recipients
            }
        except OSError as error:
            _log.error("the journal of deliveries cannot be read: %s", error)
            self.abort()
            return
        have = frozenset(recipient for recipient, outcome in outcomes.items() if outcome is Outcome.DONE)
        self._held = (step.delivery, ())
        try:
            # The machine that delivered it may have died between its line in the journal and its line in the ledger.
            self._gate.tell_ledger(step.delivery, tuple(sorted(have)))
        except HoldfastError as error:
            _log.error("%s", error)
            self.abort()
            return
        doubtful = tuple(recipient for recipient, outcome in outcomes.items() if outcome is Outcome.INTENDED)
        if doubtful:
            self._spawn(self._ask_store(step.delivery, have, doubtful))
        else:
            self._go_on(have)

    async def _ask_store(self, delivery: bytes, have: frozenset[bytes], doubtful: tuple[bytes, ...]) -> None:
        found = set(have)
        for recipient in doubtful:
            try:
                if await self._gate.has(delivery, recipient):
                    found.add(recipient)
            except HoldfastError as error:
                _log.error("was %s delivered to %s? %s", delivery.decode(), recipient.decode("utf-8", "replace"), error)
                self.abort()  # neither "yes" nor "no" would be true: the client comes again
                return
        self._go_on(frozenset(found))

    def _go_on(self, have: frozenset[bytes]) -> None:
        self._held = (self._held[0], tuple(have))
        self._gate.counts.repeated += len(have)
        self._carry_out(self._lmtp.known(have))

    async def _wait_for_barrier(self) -> None:
        delivery, recipients = self._held
        try:
            await self._gate.barrier.wait()
            self._gate.deliveries.done(delivery, self._gate.deliveries.unwritten(delivery, recipients))
        except HoldfastError as error:
            _log.warning("not acknowledged: %s", error.message)
            self._gate.put_off()
            self._carry_out(self._lmtp.barrier_failed(error.message))
        else:
            self._carry_out(self._lmtp.barrier_passed())
        self.active_at = asyncio.get_running_loop().time()

    def _spawn(self, work: Awaitable[None]) -> None:
        async def run() -> None:
            await work

        task = asyncio.get_running_loop().create_task(run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class _ClientSide(asyncio.Protocol):
    def __init__(self, session: _Session, allowed: frozenset[str] | None = None) -> None:
        """*allowed*: one of these links its certificate must have."""
        self._session, self._allowed = session, allowed

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        if self._allowed is not None and not self._allowed & links_of(transport):
            _log.warning("%s is no relay of this site", transport.get_extra_info("peername"))
            transport.abort()
            return
        self._session.client_made(transport)

    def data_received(self, data: bytes) -> None:
        self._session.from_client(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._session.client_lost()

    def pause_writing(self) -> None:
        self._session.full(client=True, full=True)

    def resume_writing(self) -> None:
        self._session.full(client=True, full=False)


class _ServerSide(asyncio.Protocol):
    def __init__(self, session: _Session) -> None:
        self._session = session

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._session.server_made(transport)

    def data_received(self, data: bytes) -> None:
        self._session.from_server(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._session.server_lost()

    def pause_writing(self) -> None:
        self._session.full(client=False, full=True)

    def resume_writing(self) -> None:
        self._session.full(client=False, full=False)
