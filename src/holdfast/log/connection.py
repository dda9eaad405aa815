"""One connection to the log's servers: dials, redials, and tells every waiter at once when it is lost.

A waiter is told because "lost after sending" is the moment an append becomes ambiguous, and the sooner it looks, the
shorter the stall. Nothing is buffered for a later connection: what was not written to a socket was certainly not sent.

The first URL is home (the machine's own server, or that of the log's leader). While connected elsewhere, it is tried
again every HOME_SECONDS.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

from holdfast.errors import ConfigurationError, HoldfastError, Refused
from holdfast.log import wire
from holdfast.log.link import ConnectionLost, Endpoint, Link, MessageSink, NotTrusted, tls_context
from holdfast.log.port import LogUnavailable
from holdfast.log.trust import TlsFiles

_log = logging.getLogger(__name__)

DIAL_SECONDS_MAX: Final = 3.0
"""TCP, TLS and CONNECT to one server: a second across a slow WAN, and then some."""
REDIAL_SECONDS: Final = (0.02, 2.0)
"""Shortest and longest pause between rounds over all servers; doubled each round."""
PING_SECONDS: Final = 1.0
PINGS_UNANSWERED_MAX: Final = 3
"""A server whose machine lost power sends no RST: after 3 s without a word it is given up."""
HOME_SECONDS: Final = 5.0
"""While connected to another server, how often the machine's own is tried."""
WRITE_BYTES_MAX: Final = 32 * 1024 * 1024
"""Unsent bytes past which a publish is refused: a few of the largest frames; more means the link stands still."""
NOBODY: Final = 503
"""Status of the answer to a request that has no listener ("no responders")."""


@dataclass(frozen=True, slots=True)
class LogConnection:
    """Where the log's servers are and who we are to them: the same for embedded and external servers."""

    urls: tuple[str, ...]
    """``tls://host[:port]``, the machine's own first."""
    tls: TlsFiles
    name: str = "holdfast"
    """Shown in the server's connection list."""
    connect_seconds_max: float = 10.0
    """How long :meth:`Connection.open` tries."""
    home_seconds: float = HOME_SECONDS


class NotSent(LogUnavailable):
    """There is no connection (or it is choked): nothing left this machine."""


class _Pending(NamedTuple):
    subject: str
    sink: MessageSink
    fail: Callable[[HoldfastError], None]


class Connection:
    """See the module. Made by :meth:`open`; every method belongs to the event loop that opened it."""

    def __init__(self, settings: LogConnection) -> None:
        self.settings = settings
        self.reconnects = 0
        self._endpoints = tuple(Endpoint.of(url) for url in settings.urls)
        if not self._endpoints:
            raise ConfigurationError("no log server is configured", hint="Name at least one tls://HOST:PORT.")
        self._link: Link | None = None
        self._subscriptions: dict[int, tuple[str, MessageSink]] = {}
        self._numbers = itertools.count(1)
        self._pending: dict[str, _Pending] = {}
        self._inbox = f"_INBOX.{secrets.token_hex(11)}"
        self._connected = asyncio.Event()
        self._closed = False
        self._last_error: HoldfastError | None = None
        self._task: asyncio.Task[None] | None = None
        self.subscribe(f"{self._inbox}.*", self._answered)

    @classmethod
    def begin(cls, settings: LogConnection) -> Connection:
        """Connect in the background, for as long as it takes. Raises ConfigurationError."""
        connection = cls(settings)
        connection._task = asyncio.create_task(connection._run(), name="log connection")
        return connection

    @classmethod
    async def open(cls, settings: LogConnection) -> Connection:
        """Connect to the first server that takes us. Raises NotTrusted or ConfigurationError at once, LogUnavailable
        at the deadline.
        """
        connection = cls.begin(settings)
        try:
            async with asyncio.timeout(settings.connect_seconds_max):
                while not connection._connected.is_set():
                    if isinstance(connection._last_error, (NotTrusted, ConfigurationError)):
                        raise connection._last_error
                    await connection._wait_connected(0.1)
        except TimeoutError:
            await connection.close()
            reason = connection._last_error.message if connection._last_error else "no answer"
            raise LogUnavailable(f"no log server of {', '.join(settings.urls)}: {reason}") from None
        except (asyncio.CancelledError, HoldfastError):
            await connection.close()
            raise
        return connection

    @property
    def server(self) -> str | None:
        """The name of the server we are connected to."""
        return self._link.server_name if self._link else None

    @property
    def last_error(self) -> HoldfastError | None:
        """Why the last attempt to connect failed; None once connected."""
        return self._last_error

    @property
    def subscribed(self) -> int:
        """How many subscriptions there are."""
        return len(self._subscriptions)

    async def wait_connected(self, seconds: float) -> None:
        """Raises NotSent when there is no connection within *seconds*."""
        if not self._connected.is_set() and not await self._wait_connected(seconds):
            reason = f": {self._last_error.message}" if self._last_error else ""
            raise NotSent(f"no log server can be reached{reason}")

    async def close(self) -> None:
        """Hang up. Waiters get ConnectionLost. Idempotent."""
        self._closed = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._drop_link()

    def publish(self, subject: str, payload: bytes, *, reply: str = "", headers: bytes = b"") -> None:
        """Hand a message to the socket. Raises NotSent: then nothing left this machine."""
        link = self._link
        if link is None:
            raise NotSent("not connected to a log server")
        if link.unsent_bytes > WRITE_BYTES_MAX:
            raise NotSent("the log server takes nothing any more")
        link.write(wire.publish(subject, payload, reply=reply, headers=headers))

    def subscribe(self, subject: str, sink: MessageSink) -> int:
        """Call *sink* (which must not wait) for each message, across reconnects, until :meth:`unsubscribe`."""
        sid = next(self._numbers)
        self._subscriptions[sid] = (subject, sink)
        if self._link is not None:
            self._link.write([wire.subscribe(subject, sid)])
        return sid

    def unsubscribe(self, sid: int) -> None:
        self._subscriptions.pop(sid, None)
        if self._link is not None:
            self._link.write([wire.unsubscribe(sid)])

    async def flush(self, seconds: float) -> None:
        """Wait until the server has processed all sent so far. Raises LogUnavailable."""
        link = self._link
        if link is None:
            raise NotSent("not connected to a log server")
        answer = asyncio.get_running_loop().create_future()
        link.ping(answer)
        try:
            async with asyncio.timeout(seconds):
                await answer
        except TimeoutError:
            raise LogUnavailable("the log server does not answer a ping") from None

    async def request(
        self, subject: str, payload: bytes, seconds: float, *, reply: str = "", headers: bytes = b""
    ) -> wire.Message:
        """One answer; its status may be NOBODY. *reply* is an address whose messages :meth:`deliver` is called for;
        by default our inbox. Raises NotSent, ConnectionLost, LogUnavailable (time), Refused (no permission).
        """
        answer: asyncio.Future[wire.Message] = asyncio.get_running_loop().create_future()
        reply = reply or self._new_inbox()

        def sink(message: wire.Message) -> None:
            if not answer.done():
                answer.set_result(message)

        with self._awaiting(reply, subject, sink, answer):
            self.publish(subject, payload, reply=reply, headers=headers)
            try:
                async with asyncio.timeout(seconds):
                    return await answer
            except TimeoutError:
                raise LogUnavailable(f"no answer from the log within {seconds:g} s ({subject})", sent=True) from None

    async def request_many(
        self, subject: str, payload: bytes, seconds: float, is_last: Callable[[wire.Message], bool]
    ) -> list[wire.Message]:
        """Answers up to and including the one *is_last* is true of; *seconds* from one to the next.

        Raises like :meth:`request`.
        """
        loop = asyncio.get_running_loop()
        answers: list[wire.Message] = []
        done: asyncio.Future[None] = loop.create_future()
        heard = loop.time()

        def sink(message: wire.Message) -> None:
            nonlocal heard
            heard = loop.time()
            answers.append(message)
            if is_last(message) and not done.done():
                done.set_result(None)

        with self._awaiting(reply := self._new_inbox(), subject, sink, done):
            self.publish(subject, payload, reply=reply)
            while True:
                try:
                    async with asyncio.timeout_at(heard + seconds):
                        await asyncio.shield(done)
                    return answers
                except TimeoutError:
                    if loop.time() >= heard + seconds:
                        raise LogUnavailable(f"no answer from the log within {seconds:g} s ({subject})") from None

    def deliver(self, message: wire.Message) -> bool:
        """Pass *message* to the request whose *reply* address it came to; False if none waits (any more)."""
        waiting = self._pending.get(message.subject)
        if waiting is None:
            return False
        waiting.sink(message)
        return True

    @contextlib.contextmanager
    def _awaiting(
        self, reply: str, subject: str, sink: MessageSink, future: asyncio.Future[wire.Message] | asyncio.Future[None]
    ) -> Iterator[None]:
        def fail(error: HoldfastError) -> None:
            if not future.done():
                future.set_exception(error)

        self._pending[reply] = _Pending(subject, sink, fail)
        try:
            yield
        finally:
            del self._pending[reply]
            if future.done() and not future.cancelled():
                future.exception()  # seen: the waiter may have been cancelled meanwhile

    def _new_inbox(self) -> str:
        return f"{self._inbox}.{next(self._numbers)}"

    def _answered(self, message: wire.Message) -> None:
        self.deliver(message)

    # The link below, and its keeper.

    async def _wait_connected(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                await self._connected.wait()
        except TimeoutError:
            return False
        return True

    async def _run(self) -> None:
        pause = REDIAL_SECONDS[0]
        silent: Endpoint | None = None
        while True:
            link = await self._dial_round(silent)
            if link is None:
                await asyncio.sleep(pause)
                pause = min(pause * 2, REDIAL_SECONDS[1])
                continue
            pause = REDIAL_SECONDS[0]
            self._link = link
            self._last_error = None
            self._connected.set()
            try:
                await self._tend(link)
            finally:
                self._drop_link()
            silent = link.endpoint if link.pings_unanswered >= PINGS_UNANSWERED_MAX else None
            self.reconnects += 1

    async def _dial_round(self, silent: Endpoint | None) -> Link | None:
        """The first server that takes us; *silent*, which said nothing any more, is tried last: it may be long."""
        for endpoint in sorted(self._endpoints, key=lambda endpoint: endpoint == silent):
            try:
                return await self._dial(endpoint)
            except HoldfastError as error:
                self._last_error = error
                _log.debug("log server %s:%d: %s", endpoint.host, endpoint.port, error.message)
        return None

    async def _dial(self, endpoint: Endpoint) -> Link:
        context = tls_context(self.settings.tls)
        link = Link(endpoint, self._dispatch, self._complained)
        done = False
        try:
            async with asyncio.timeout(DIAL_SECONDS_MAX):
                await link.dial(context)
                greeting = [wire.subscribe(subject, sid) for sid, (subject, _) in self._subscriptions.items()]
                if not await link.greet(self.settings.name, greeting):
                    await link.ask_why(context)
            done = True
        except TimeoutError:
            raise LogUnavailable(f"{endpoint.host}:{endpoint.port} does not answer") from None
        finally:
            if not done:
                link.abort()
        return link

    async def _tend(self, link: Link) -> None:
        """Ping until the link is lost, or home answers again and nothing is under way here."""
        loop = asyncio.get_running_loop()
        look_home = loop.time() + self.settings.home_seconds
        while not link.lost.done():
            await asyncio.wait([link.lost], timeout=PING_SECONDS)
            if link.lost.done() or link.pings_unanswered >= PINGS_UNANSWERED_MAX:
                return
            link.ping(None)
            if link.endpoint != self._endpoints[0] and loop.time() >= look_home:
                look_home = loop.time() + self.settings.home_seconds
                if not self._pending and await _answers(self._endpoints[0]):
                    return

    def _drop_link(self) -> None:
        link, self._link = self._link, None
        self._connected.clear()
        if link is not None:
            link.abort()
        for waiting in list(self._pending.values()):
            waiting.fail(ConnectionLost("the connection to the log server was lost", sent=True))

    def _dispatch(self, message: wire.Message) -> None:
        found = self._subscriptions.get(message.sid)
        if found is not None:
            found[1](message)

    def _complained(self, text: str) -> None:
        """``Permissions Violation for Publish to "subject"``: that publish was dropped, the connection stays."""
        _log.warning("log server: %s", text)
        if "permissions violation" not in text.lower():
            return
        for waiting in list(self._pending.values()):
            if f'"{waiting.subject}"' in text:
                hint = "Its certificate's role does not include this; see the log server's configuration."
                waiting.fail(Refused(f"the log server does not let this machine do that: {text}", hint=hint))


async def _answers(endpoint: Endpoint) -> bool:
    """Whether a server says the first word there, as a NATS server does: of a frozen one only the kernel answers."""
    try:
        async with asyncio.timeout(DIAL_SECONDS_MAX):
            reader, writer = await asyncio.open_connection(*endpoint)
            try:
                return bool(await reader.read(1))
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return False
