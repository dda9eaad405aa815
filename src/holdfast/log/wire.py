"""The NATS client protocol without I/O: bytes in, events out; and the commands we send.

Protocol: https://docs.nats.io/reference/reference-protocols/nats-protocol. Why not nats-py: it keeps publishes for
the next connection, where an append must know at once whether it left this machine and when the connection that carried
it was lost; and it takes a quarter more CPU for an append and its answer (bench: 4 KB, TLS).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from holdfast.errors import HoldfastError

LINE_BYTES_MAX: Final = 64 * 1024
"""A control line. The server's own ``max_control_line`` is 4 KiB; INFO with many routes is the longest, some KiB."""
MESSAGE_BYTES_MAX: Final = 16 * 1024 * 1024
"""Twice our ``max_payload``: anything longer is not a NATS server talking."""


JOINED_BYTES_MAX: Final = 8 * 1024
"""Up to here one piece (one TLS record, one system call) is cheaper than not copying."""


class ProtocolBroken(HoldfastError):
    """What came is not the NATS protocol; the connection is of no more use."""


class Message(NamedTuple):
    """One message to a subscription of ours (number *sid*)."""

    sid: int
    subject: str
    reply: str
    headers: bytes
    """As they came, with the status line; empty when there are none."""
    payload: bytes

    @property
    def status(self) -> int:
        """The number in ``NATS/1.0 503``, 0 for an ordinary message."""
        text = self.headers[9:12]
        return int(text) if text.isdigit() else 0

    def header(self, name: bytes) -> str | None:
        """The value of the header *name* (as the server spells it), None if absent."""
        begin = self.headers.rfind(b"\r\n" + name + b":")
        if begin < 0:
            return None
        begin += len(name) + 3
        return self.headers[begin : self.headers.index(b"\r\n", begin)].strip().decode("utf-8", "replace")


@dataclass(frozen=True, slots=True)
class Info:
    """What the server says of itself when a connection begins, and when that changes."""

    fields: dict[str, Any]


class Ping:
    """To be answered with PONG."""


class Pong:
    """Answers our PING."""


class Complaint(NamedTuple):
    """``-ERR``: the server refuses something we sent, and mostly hangs up after it."""

    text: str


Event = Message | Info | Ping | Pong | Complaint


class Decoder:
    """Feed it what arrives, in whatever pieces."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._waiting: tuple[int, str, str, int, int] | None = None

    def feed(self, data: bytes) -> Iterator[Event]:
        """The events complete by now. Raises ProtocolBroken; the decoder is of no use after that."""
        self._buffer += data
        position = 0
        try:
            while True:
                if self._waiting is not None:
                    size = self._waiting[4]
                    if len(self._buffer) < position + size + 2:
                        return
                    yield self._message(position)
                    position += size + 2
                    continue
                end = self._buffer.find(b"\r\n", position)
                if end < 0:
                    if len(self._buffer) - position > LINE_BYTES_MAX:
                        raise ProtocolBroken("the log server sent a line without end")
                    return
                line = bytes(self._buffer[position:end])
                position = end + 2
                event = self._line(line)
                if event is not None:
                    yield event
        finally:
            del self._buffer[:position]

    def _message(self, position: int) -> Message:
        assert self._waiting is not None
        sid, subject, reply, header_size, size = self._waiting
        self._waiting = None
        with memoryview(self._buffer) as view:
            headers = bytes(view[position : position + header_size])
            payload = bytes(view[position + header_size : position + size])
        ends_well = self._buffer.startswith(b"\r\n", position + size)
        if not ends_well or (headers and not headers.endswith(b"\r\n\r\n")):
            raise ProtocolBroken("the log server sent a message that does not end where it said")
        return Message(sid, subject, reply, headers, payload)

    def _line(self, line: bytes) -> Event | None:
        verb, _, rest = line.partition(b" ")
        match verb:
            case b"MSG" | b"HMSG":
                self._waiting = _message_head(rest.split(), with_headers=verb == b"HMSG")
                return None
            case b"PING":
                return Ping()
            case b"PONG":
                return Pong()
            case b"+OK":
                return None
            case b"-ERR":
                return Complaint(rest.decode("utf-8", "replace").strip("'"))
            case b"INFO":
                return Info(_json_object(rest))
        raise ProtocolBroken(f"the log server sent {line[:40]!r}", hint="Is the address that of a NATS server?")


def _message_head(words: list[bytes], *, with_headers: bool) -> tuple[int, str, str, int, int]:
    """MSG subject sid [reply] size; HMSG subject sid [reply] header-size total-size."""
    least = 4 if with_headers else 3
    if len(words) not in (least, least + 1):
        raise ProtocolBroken(f"the log server sent a message line of {len(words)} words")
    try:
        sid, size = int(words[1]), int(words[-1])
        header_size = int(words[-2]) if with_headers else 0
        subject = words[0].decode()
        reply = words[2].decode() if len(words) > least else ""
    except ValueError as error:  # UnicodeDecodeError is one
        raise ProtocolBroken("the log server sent a message line that cannot be read") from error
    if not 0 <= header_size <= size <= MESSAGE_BYTES_MAX:
        raise ProtocolBroken(f"the log server announced a message of {size} bytes")
    return sid, subject, reply, header_size, size


def _json_object(data: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(data)
    except ValueError as error:
        raise ProtocolBroken("the log server's INFO cannot be read") from error
    if not isinstance(fields, dict):
        raise ProtocolBroken("the log server's INFO is not an object")
    return fields


def connect(name: str) -> bytes:
    """CONNECT, with headers and "nobody listens" answers on. Our own messages do come back to our subscriptions."""
    options = {
        "verbose": False,
        "pedantic": False,
        "tls_required": True,
        "name": name,
        "lang": "holdfast",
        "version": "1",
        "protocol": 1,
        "headers": True,
        "no_responders": True,
    }
    return b"CONNECT " + json.dumps(options).encode() + b"\r\n"


def publish(subject: str, payload: bytes, *, reply: str = "", headers: bytes = b"") -> list[bytes]:
    """PUB or HPUB, as pieces to be written one after the other: a large *payload* is not copied here.

    *headers* is a whole block made by :func:`headers`.
    """
    address = f"{subject} {reply}" if reply else subject
    if headers:
        head = f"HPUB {address} {len(headers)} {len(headers) + len(payload)}\r\n".encode() + headers
    else:
        head = f"PUB {address} {len(payload)}\r\n".encode()
    if len(payload) <= JOINED_BYTES_MAX:
        return [head + payload + b"\r\n"]
    return [head, payload, b"\r\n"]


def headers(values: dict[str, str]) -> bytes:
    """A header block. Line ends in values become blanks: a value can never start another header or command."""
    lines = "".join(f"{name}: {' '.join(value.splitlines())}\r\n" for name, value in values.items())
    return f"NATS/1.0\r\n{lines}\r\n".encode()


def subscribe(subject: str, sid: int) -> bytes:
    return f"SUB {subject} {sid}\r\n".encode()


def unsubscribe(sid: int) -> bytes:
    return f"UNSUB {sid}\r\n".encode()


PING: Final = b"PING\r\n"
PONG: Final = b"PONG\r\n"
