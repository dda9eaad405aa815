"""One socket to one log server, from dialling to the end; :mod:`holdfast.log.connection` keeps one alive."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import Any, Final, NamedTuple, NoReturn
from urllib.parse import urlsplit

from holdfast.errors import ConfigurationError, Refused
from holdfast.log import wire
from holdfast.log.port import LogUnavailable
from holdfast.log.server_config import CLIENT_PORT
from holdfast.log.trust import TlsFiles

REFUSAL_SECONDS: Final = 0.5
"""A server that refuses a certificate says so within a round trip."""
_TRUST_HINT: Final = "Both must have certificates of this site's authority, valid now, for this address."

MessageSink = Callable[[wire.Message], None]


class ConnectionLost(LogUnavailable):
    """The connection ended while an answer was awaited: whether the server acted is unknown."""


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


class Link(asyncio.Protocol):
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
        if secured is None:  # an end of file during the handshake: asyncio.sslproto calls that done
            raise LogUnavailable(f"{host}:{port} hung up")
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
        silent = Link(self.endpoint, self._dispatch, self._complained)
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


def tls_context(files: TlsFiles, *, server: bool = False) -> ssl.SSLContext:
    """Read anew at each dial: a renewed certificate is used from the next connection on. *server*: for who listens;
    who comes must show a certificate. Raises ConfigurationError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    context.verify_mode = ssl.CERT_REQUIRED
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_verify_locations(files.trust)
        context.load_cert_chain(files.certificate, files.key)
    except OSError as error:  # ssl.SSLError is one
        raise ConfigurationError(
            f"cannot use the certificate {files.certificate}: {error}", hint=_TRUST_HINT
        ) from error
    return context


def links_of(transport: asyncio.BaseTransport) -> frozenset[str]:
    """What the certificate at the other end says of its machine: ``holdfast:machine/...``, ``holdfast:role/...``."""
    shown: dict[str, Any] = transport.get_extra_info("peercert") or {}
    return frozenset(name for kind, name in shown.get("subjectAltName", ()) if kind == "URI")
