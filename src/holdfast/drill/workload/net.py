"""A connection of a line protocol that knows what its failure means for the command under way.

Why not smtplib and imaplib: a drill must tell "it cannot have happened" from "nobody knows", and the libraries do not
say whether the request had left completely when the connection broke. Here a broken *send* is :class:`NotSent` (a
request whose last line was not sent is not carried out), a broken *receive* is :class:`AnswerLost`.
"""

from __future__ import annotations

import os
import socket
import ssl
from typing import Final

from msgspec import Struct

from holdfast.errors import HoldfastError, Unreachable

LINE_BYTES_MAX: Final = 1 << 20
"""A server that sends more without a line end is not one of ours (IMAP FETCH lines without literals are short)."""

LITERAL_BYTES_MAX: Final = 64 << 20
"""Largest IMAP literal accepted; six times the largest message of a workload."""

READ_BYTES: Final = 1 << 18

KEEPALIVE_IDLE_SECONDS: Final = 1
KEEPALIVE_COUNT: Final = 3
"""A client that waits for an answer of a machine that died would wait for its timeout. With keep-alive it hears from
the machine that took the address over (a reset) within about a second: what impatient users and good clients do."""


class NotSent(Unreachable):
    """The request did not leave completely: it cannot have been carried out."""


class AnswerLost(Unreachable):
    """The request left completely and no answer came: it may have been carried out."""


class Declined(HoldfastError):
    """The server answered no. *code* is its reply (``550``, ``NO``, ``BAD``), *temporary* if a retry may help."""

    def __init__(self, code: str, text: str, *, temporary: bool = False) -> None:
        super().__init__(f"{code} {text}", retry=temporary)
        self.code = code
        self.text = text
        self.temporary = temporary


class Endpoint(Struct, frozen=True):
    """Where a server listens. *tls*: ``none``, ``implicit`` or ``starttls``. *port* 0: not there, leave it out."""

    host: str
    port: int
    tls: str = "none"

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


def tls_context(ca_file: str) -> ssl.SSLContext:
    """Trusts *ca_file*; when it is empty nothing is checked, which is right for a drill of availability only."""
    if ca_file:
        context = ssl.create_default_context(cafile=ca_file)
        context.check_hostname = False
        return context
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


class Patience(Struct, frozen=True):
    """How long a client waits. *connect_seconds* is short so that an outage is measured finely."""

    connect_seconds: float = 0.5
    answer_seconds: float = 10.0
    ca_file: str = ""


class Line:
    """One TCP connection: lines and counted bytes in, bytes out."""

    def __init__(self, endpoint: Endpoint, patience: Patience) -> None:
        self.endpoint = endpoint
        self._patience = patience
        self._buffer = bytearray()
        try:
            raw = socket.create_connection((endpoint.host, endpoint.port), timeout=patience.connect_seconds)
        except OSError as error:
            raise NotSent(f"{endpoint}: cannot connect: {error}", retry=True) from error
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_SECONDS)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_IDLE_SECONDS)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_COUNT)
        raw.settimeout(patience.answer_seconds)
        self._socket: socket.socket = raw
        if endpoint.tls == "implicit":
            self.start_tls()

    def start_tls(self) -> None:
        """Wrap the connection (RFC 8314, or after STARTTLS)."""
        try:
            self._socket = tls_context(self._patience.ca_file).wrap_socket(self._socket)
        except OSError as error:
            self.close()
            raise NotSent(f"{self.endpoint}: no TLS: {error}", retry=True) from error
        self._buffer.clear()

    def send(self, *parts: bytes) -> None:
        """Send all of *parts*, as one: a peer that hangs up after the first would make "no answer" a "not sent".

        Raises NotSent.
        """
        try:
            self._socket.sendall(b"".join(parts))
        except OSError as error:
            self.close()
            raise NotSent(f"{self.endpoint}: cut while sending: {_reason(error)}", retry=True) from error

    def line(self) -> bytes:
        """The next line without its end (CRLF, or a bare LF). Raises AnswerLost."""
        while (end := self._buffer.find(b"\n")) < 0:
            if len(self._buffer) > LINE_BYTES_MAX:
                self.close()
                raise AnswerLost(f"{self.endpoint}: a line of more than {LINE_BYTES_MAX} bytes")
            self._read()
        taken = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return taken.removesuffix(b"\r")

    def counted(self, count: int) -> bytes:
        """Exactly *count* bytes. Raises AnswerLost."""
        if count > LITERAL_BYTES_MAX:
            self.close()
            raise AnswerLost(f"{self.endpoint}: {count} bytes announced, more than {LITERAL_BYTES_MAX}")
        while len(self._buffer) < count:
            self._read()
        taken = bytes(self._buffer[:count])
        del self._buffer[:count]
        return taken

    def close(self) -> None:
        self._socket.close()

    def _read(self) -> None:
        try:
            got = self._socket.recv(READ_BYTES)
        except OSError as error:
            self.close()
            raise AnswerLost(f"{self.endpoint}: no answer: {_reason(error)}", retry=True) from error
        if not got:
            self.close()
            raise AnswerLost(f"{self.endpoint}: connection closed while waiting for an answer", retry=True)
        self._buffer += got


def _reason(error: OSError) -> str:
    return os.strerror(error.errno) if error.errno else str(error) or type(error).__name__
