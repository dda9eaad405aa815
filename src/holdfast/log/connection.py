"""One connection to the log's servers: dials, redials, and tells every waiter at once when it is lost.

A waiter is told because "lost after sending" is the moment an append becomes ambiguous, and the sooner it looks, the
shorter the stall. Nothing is buffered for a later connection: what was not written to a socket was certainly not sent.

The first URL is home (the machine's own server). While connected elsewhere, it is tried again every HOME_SECONDS.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import secrets
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple, NoReturn
from urllib.parse import urlsplit

from holdfast.errors import ConfigurationError, HoldfastError, Refused
from holdfast.log import wire
from holdfast.log.port import LogUnavailable
from holdfast.log.server_config import CLIENT_PORT
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
REFUSAL_SECONDS: Final = 0.5
"""A server that refuses a certificate says so within a round trip."""
WRITE_BYTES_MAX: Final = 32 * 1024 * 1024
"""Unsent bytes past which a publish is refused: a few of the largest frames; more means the link stands still."""
NOBODY: Final = 503
"""Status of the answer to a request that has no listener ("no responders")."""

MessageSink = Callable[[wire.Message], None]


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


class ConnectionLost(LogUnavailable):
    """The connection ended while an answer was awaited: whether the server acted is unknown."""


class NotSent(LogUnavailable):
    """There is no connection (or it is choked): nothing left this machine."""


class NotTrusted(Refused):
    """One side does not accept the other's certificate."""


class Endpoint(NamedTuple):
    host: str
    port: int

    @classmethod
    def of(cls, url: str) -> Endpoint:
        """Raises ConfigurationError."""
        try:
            parts = urlsplit(url)
            endpoint = cls(parts.hostname or "", parts.port or CLIENT_PORT)
        except ValueError as error:
            raise ConfigurationError(f"log server {url!r}: {error}", hint="Write tls://HOST:PORT.") from error
        if parts.scheme != "tls" or not endpoint.host:
            raise ConfigurationError(f"log server {url!r} is not a TLS address", hint="Write tls://HOST:PORT.")
        return endpoint


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
        self._link: _Link | None = None
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
    async def open(cls, settings: LogConnection) -> Connection:
        """Connect to the first server that takes us. Raises NotTrusted or ConfigurationError at once, LogUnavailable
        at the deadline.
        """
        connection = cls(settings)
        connection._task = asyncio.create_task(connection._run(), name="log connection")
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
        while True:
            link = await self._dial_round()
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
            self.reconnects += 1

    async def _dial_round(self) -> _Link | None:
        for endpoint in self._endpoints:
            try:
                return await self._dial(endpoint)
            except HoldfastError as error:
                self._last_error = error
                _log.debug("log server %s:%d: %s", endpoint.host, endpoint.port, error.message)
        return None

    async def _dial(self, endpoint: Endpoint) -> _Link:
        context = _tls_context(self.settings.tls)
        link = _Link(endpoint, self._dispatch, self._complained)
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

    async def _tend(self, link: _Link) -> None:
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


class _Link(asyncio.Protocol):
    """One socket to one server."""

    def __init__(self, endpoint: Endpoint, dispatch: MessageSink, complained: Callable[[str], None]) -> None:
        loop = asyncio.get_running_loop()
        self.endpoint = endpoint
        self.lost: asyncio.Future[None] = loop.create_future()
        self.pings_unanswered = 0
        self.server_name = ""
        self._dispatch = dispatch
        self._complained = complained
        self._decoder = wire.Decoder()
        self._transport: asyncio.Transport | None = None
        self._info: asyncio.Future[None] = loop.create_future()
        self._pongs: list[asyncio.Future[None] | None] = []
        self._complaint = ""
        self._reason: Exception | None = None

    async def dial(self, context: ssl.SSLContext) -> None:
        """TCP, INFO, TLS. Raises NotTrusted (we do not trust it), LogUnavailable."""
        loop = asyncio.get_running_loop()
        host, port = self.endpoint
        try:
            transport, _ = await loop.create_connection(lambda: self, host, port)
            if not await self._or_lost(self._info):
                raise LogUnavailable(f"{host}:{port} hung up")
            secured = await loop.start_tls(transport, self, context, server_hostname=host)
        except ssl.SSLError as error:
            raise NotTrusted(f"{host}:{port}: {error.reason or error}", hint=_TRUST_HINT) from error
        except OSError as error:
            raise LogUnavailable(f"{host}:{port}: {error.strerror or error}") from error
        assert secured is not None
        self._transport = secured

    async def greet(self, name: str, subscriptions: list[bytes]) -> bool:
        """CONNECT and subscribe; True when the server has processed both, False when it hung up instead."""
        answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.write([wire.connect(name), *subscriptions])
        self.ping(answer)
        return await self._or_lost(answer)

    async def ask_why(self, context: ssl.SSLContext) -> NoReturn:
        """After a hang-up: raise NotTrusted when it was for our certificate, else LogUnavailable.

        In TLS 1.3 the server judges our certificate after our side is done, and what we then write breaks the pipe
        before its alert is read. So listen once more, saying nothing.
        """
        place = f"{self.endpoint.host}:{self.endpoint.port}"
        if "authorization" in self._complaint.lower():
            raise NotTrusted(f"{place} refuses us: {self._complaint}", hint=_TRUST_HINT)
        silent = _Link(self.endpoint, self._dispatch, self._complained)
        try:
            await silent.dial(context)
            await asyncio.wait([silent.lost], timeout=REFUSAL_SECONDS)
        finally:
            silent.abort()
        reason = silent._reason or self._reason
        if isinstance(reason, ssl.SSLError):
            raise NotTrusted(f"{place} refuses our certificate: {reason.reason or reason}", hint=_TRUST_HINT)
        raise LogUnavailable(f"{place} hung up: {self._complaint or reason or 'no reason given'}")

    async def _or_lost(self, future: asyncio.Future[None]) -> bool:
        await asyncio.wait([future, self.lost], return_when=asyncio.FIRST_COMPLETED)
        return future.done() and future.exception() is None

    @property
    def unsent_bytes(self) -> int:
        return self._transport.get_write_buffer_size() if self._transport else 0

    def write(self, pieces: list[bytes]) -> None:
        if self._transport is not None:
            self._transport.writelines(pieces)

    def ping(self, answer: asyncio.Future[None] | None) -> None:
        self._pongs.append(answer)
        self.pings_unanswered += 1
        self.write([wire.PING])

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()
        self._end(None)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        try:
            for event in self._decoder.feed(data):
                self._take(event)
        except wire.ProtocolBroken as error:
            self._reason = error
            self.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(exc)

    def _take(self, event: wire.Event) -> None:
        match event:
            case wire.Message():
                self._dispatch(event)
            case wire.Ping():
                self.write([wire.PONG])
            case wire.Pong():
                self.pings_unanswered = 0
                answer = self._pongs.pop(0) if self._pongs else None
                if answer is not None and not answer.done():
                    answer.set_result(None)
            case wire.Info():
                self.server_name = str(event.fields.get("server_name", ""))
                if not self._info.done():
                    self._info.set_result(None)
            case wire.Complaint():
                self._complaint = event.text
                self._complained(event.text)

    def _end(self, reason: Exception | None) -> None:
        self._reason = self._reason or reason
        if not self.lost.done():
            self.lost.set_result(None)
        for answer in self._pongs:
            if answer is not None and not answer.done():
                answer.set_exception(ConnectionLost("the connection to the log server was lost"))
                answer.exception()  # seen, should nobody wait any more
        self._pongs.clear()


_TRUST_HINT: Final = "Both must have certificates of this site's authority, valid now, for this address."


def _tls_context(files: TlsFiles) -> ssl.SSLContext:
    """Read anew at each dial: a renewed certificate is used from the next connection on. Raises ConfigurationError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_verify_locations(files.trust)
        context.load_cert_chain(files.certificate, files.key)
    except OSError as error:  # ssl.SSLError is one
        raise ConfigurationError(
            f"cannot use the certificate {files.certificate}: {error}", hint=_TRUST_HINT
        ) from error
    return context


async def _answers(endpoint: Endpoint) -> bool:
    try:
        async with asyncio.timeout(DIAL_SECONDS_MAX):
            _, writer = await asyncio.open_connection(*endpoint)
    except (OSError, TimeoutError):
        return False
    writer.close()
    return True
