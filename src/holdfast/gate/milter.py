"""One milter session, the server's side (Sendmail's milter protocol, version 6, as Postfix speaks it). Pure.

A packet is its length (4 bytes, big-endian, without themselves), a command byte, and data; texts end with NUL. Postfix
documents what it sends in MILTER_README; the packets stand in libmilter's include/libmilter/mfdef.h.

The session gathers what a message is: sender, recipients, header, content. Only the end of a message is answered; all
other answers are switched off in the negotiation, so a message costs one round trip.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from holdfast.gate.stream import ProtocolBroken

VERSION: Final = 6
PACKET_BYTES_MAX: Final = 1024 * 1024
"""Postfix sends contents in pieces of 65,535 bytes, and headers of at most header_size_limit."""
RECIPIENTS_MAX: Final = 10_000
HEADER_BYTES_MAX: Final = 1024 * 1024

_ADD_HEADERS: Final = 0x01
_QUARANTINE: Final = 0x20
_ACTIONS: Final = _ADD_HEADERS | _QUARANTINE
_NO_HELO, _NO_UNKNOWN = 0x02, 0x100
_NO_REPLY: Final = 0x80 | 0x1000 | 0x4000 | 0x8000 | 0x10000 | 0x40000 | 0x80000
"""NR_HDR, NR_CONN, NR_MAIL, NR_RCPT, NR_DATA, NR_EOH, NR_BODY."""
_LEADING_SPACE: Final = 0x100000
_WANTED_PROTOCOL: Final = _NO_HELO | _NO_UNKNOWN | _NO_REPLY | _LEADING_SPACE
_PORT_MACROS: Final = (b"{daemon_port}", b"{daemon_name}")


class Begin(NamedTuple):
    """A message begins: its envelope is whole, its header comes."""

    sender: bytes
    """With angle brackets, as in MAIL FROM; ``<>`` for a bounce."""
    recipients: tuple[bytes, ...]
    client: str = ""
    """Its address; empty when Postfix did not say."""
    port: str = ""
    """Where it came in: the port (``{daemon_port}``), or Postfix's name for it (``{daemon_name}``)."""
    login: str = ""
    """As whom the client logged in."""


class Header(NamedTuple):
    """One header field, its value with leading blanks, lines ended by CR LF but for the last."""

    name: bytes
    value: bytes


class Body(NamedTuple):
    data: bytes


class EndOfMessage(NamedTuple):
    """Answer with :func:`accept` or :func:`later`. *queue_id* is Postfix's, empty when it did not say."""

    queue_id: str


class Abort(NamedTuple):
    """The message under way is not: its client left, or was refused."""


class Reply(NamedTuple):
    """Bytes for Postfix."""

    data: bytes


class Close(NamedTuple):
    """Postfix is done."""


Event = Begin | Header | Body | EndOfMessage | Abort | Reply | Close


def packet(command: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(command) + len(data)) + command + data


def accept(header: bytes, value: bytes) -> bytes:
    """The message is taken; put the field *header* on top of it."""
    insert = packet(b"i", struct.pack(">I", 1) + header + b"\0" + value + b"\0")
    return insert + packet(b"c")


def quarantine(reason: str) -> bytes:
    """Before :func:`accept`: the message goes on hold in Postfix's queue."""
    return packet(b"q", reason.encode("ascii") + b"\0")


def later(text: str, *, no_space: bool = False) -> bytes:
    """Refuse for now: 451 4.3.0 and *text*; 452 4.3.1 when there is *no_space*."""
    code = "452 4.3.1" if no_space else "451 4.3.0"
    said = "".join(mark if " " <= mark <= "~" else "?" for mark in text)[:200].replace("%", "%%")
    return packet(b"y", f"{code} {said}".encode() + b"\0")


class MilterSession:
    """Feed it Postfix's bytes; it gives what they mean, in order."""

    def __init__(self) -> None:
        self._buffer = b""
        self._negotiated = False
        self._client = ""
        self._macros: dict[bytes, str] = {}
        self._forget()

    def feed(self, data: bytes) -> list[Event]:
        """Raises ProtocolBroken: the session ends."""
        self._buffer += data
        events: list[Event] = []
        at = 0
        while len(self._buffer) - at >= 4:
            (length,) = struct.unpack_from(">I", self._buffer, at)
            if not 0 < length <= PACKET_BYTES_MAX:
                raise ProtocolBroken(f"a packet of {length} bytes")
            if len(self._buffer) - at < 4 + length:
                break
            command = self._buffer[at + 4 : at + 5]
            events += self._take(command, self._buffer[at + 5 : at + 4 + length])
            at += 4 + length
        self._buffer = self._buffer[at:]
        return events

    def _forget(self) -> None:
        self._sender: bytes | None = None
        self._recipients: list[bytes] = []
        self._header_bytes = 0
        self._begun = False
        self._login = ""
        self._queue_id = ""

    def _take(self, command: bytes, data: bytes) -> list[Event]:
        if not self._negotiated and command not in b"OQ":
            raise ProtocolBroken("a command before the negotiation")
        match command:
            case b"O":
                return [Reply(self._negotiate(data))]
            case b"D":
                self._note_macros(data)
            case b"M":
                queue_id, login = self._queue_id, self._login  # their macros come before
                self._forget()
                self._queue_id, self._login = queue_id, login
                self._sender = _first(data)
            case b"R":
                if len(self._recipients) >= RECIPIENTS_MAX:
                    raise ProtocolBroken("too many recipients")
                self._recipients.append(_first(data))
            case b"T" | b"N":
                return self._begin()
            case b"L":
                return [*self._begin(), self._field(data)]
            case b"B":
                return [*self._begin(), Body(data)]
            case b"E":
                events = [*self._begin(), *([Body(data)] if data else []), EndOfMessage(self._queue_id)]
                self._forget()
                return events
            case b"A":
                self._forget()
                return [Abort()]
            case b"Q" | b"K":
                self._forget()
                return [Abort(), Close()] if command == b"Q" else [Abort()]
            case b"C":
                self._client = _address_of(data)
            case b"H" | b"U":
                return [Reply(packet(b"c"))]
            case _:
                raise ProtocolBroken(f"the command {command!r}")
        return []

    def _negotiate(self, data: bytes) -> bytes:
        if len(data) < 12:
            raise ProtocolBroken("the negotiation is cut short")
        version, actions, protocol = struct.unpack_from(">III", data)
        if version < VERSION or actions & _ACTIONS != _ACTIONS or protocol & _NO_REPLY != _NO_REPLY:
            raise ProtocolBroken(f"milter protocol {version}: set `milter_protocol = 6` in main.cf")
        self._negotiated = True
        return packet(b"O", struct.pack(">III", VERSION, _ACTIONS, protocol & _WANTED_PROTOCOL))

    def _note_macros(self, data: bytes) -> None:
        fields = data[1:].split(b"\0")
        for name, value in zip(fields[::2], fields[1::2], strict=False):
            if name in (b"i", b"{i}"):
                self._queue_id = value.decode("ascii", "replace")
            elif name == b"{auth_authen}":
                self._login = value.decode("utf-8", "replace")
            elif name in _PORT_MACROS:
                self._macros[name] = value.decode("utf-8", "replace")

    def _begin(self) -> list[Event]:
        if self._begun:
            return []
        if self._sender is None or not self._recipients:
            raise ProtocolBroken("a content without an envelope")
        self._begun = True
        port = next((self._macros[name] for name in _PORT_MACROS if name in self._macros), "")
        return [Begin(self._sender, tuple(self._recipients), self._client, port, self._login)]

    def _field(self, data: bytes) -> Header:
        name, _, value = data.partition(b"\0")
        value = value.rstrip(b"\0")
        self._header_bytes += len(data)
        if self._header_bytes > HEADER_BYTES_MAX:
            raise ProtocolBroken("the header is too long")
        return Header(name, value.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n"))


def _address_of(data: bytes) -> str:
    """The client's address out of a connect packet: its name, NUL, a family, a port (2 bytes), the address, NUL.

    Postfix writes ``IPv6:`` before those.
    """
    rest = data.partition(b"\0")[2]
    if rest[:1] not in (b"4", b"6"):
        return ""
    return rest[3:].rstrip(b"\0").decode("ascii", "replace").removeprefix("IPv6:").lower()


def _first(data: bytes) -> bytes:
    """The address of a MAIL or RCPT packet; parameters follow it."""
    return data.split(b"\0", 1)[0]
