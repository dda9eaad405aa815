"""Lines and message contents in a byte stream, for protocols with CRLF line ends (RFC 5321, 2.3.8 and 4.1.1.4).

Two programs that disagree about where a line ends disagree about where a message ends ("SMTP smuggling"). So a line is
ended by CR LF and by nothing else, and a bare CR or LF or a NUL in a command is an error, never guessed at. Pure.
"""

from __future__ import annotations

from typing import Final
from urllib.parse import quote_from_bytes

from holdfast.errors import HoldfastError

LINE_BYTES_MAX: Final = 8192
"""A command or one line of a reply. RFC 5321 asks for 512, parameters of extensions add to it; Postfix and Dovecot
stay below 2,048 and 4,096."""
END_OF_CONTENT: Final = b"\r\n.\r\n"


def quoted_address(address: bytes) -> str:
    """Any bytes as text without blanks and line ends: percent-encoding (RFC 3986)."""
    return quote_from_bytes(address, safe="@+=-_.~!/")


def printable(text: str) -> bytes:
    """*text* fit for a line of an answer: ASCII, not too long."""
    return "".join(mark if " " <= mark <= "~" else "?" for mark in text)[:200].encode()


class ProtocolBroken(HoldfastError):
    """The peer sent what the protocol does not know: the session ends."""


class LineReader:
    """Bytes in, whole lines out. What is not yet a line waits, LINE_BYTES_MAX of it at most."""

    __slots__ = ("_buffer",)

    def __init__(self) -> None:
        self._buffer = b""

    def feed(self, data: bytes) -> None:
        self._buffer = self._buffer + data if self._buffer else data

    def line(self) -> bytes | None:
        """The next line without its CR LF; None while there is no whole one.

        Raises ProtocolBroken: a bare CR or LF, a NUL, or a line that is too long.
        """
        end = self._buffer.find(b"\n")
        if end < 0:
            if len(self._buffer) > LINE_BYTES_MAX:
                raise ProtocolBroken(f"a line of more than {LINE_BYTES_MAX} bytes")
            return None
        line = self._buffer[:end]
        if end > LINE_BYTES_MAX:
            raise ProtocolBroken(f"a line of more than {LINE_BYTES_MAX} bytes")
        if line.find(b"\r") != end - 1 or not line:
            raise ProtocolBroken("a bare CR or LF in a line")
        if b"\0" in line:
            raise ProtocolBroken("a NUL in a line")
        self._buffer = self._buffer[end + 1 :]
        return line[:-1]

    def take(self) -> bytes:
        """Everything that waits, as it came: the stream goes on as content."""
        rest, self._buffer = self._buffer, b""
        return rest

    @property
    def waiting(self) -> int:
        """Bytes that wait."""
        return len(self._buffer)


class ContentReader:
    """Finds the end of one message's content: CR LF . CR LF, and nothing that resembles it.

    Contents stay as they are on the wire (dots stuffed, terminator included). Feed until :attr:`ended`.
    """

    __slots__ = ("_tail", "bare_lf", "ended")

    def __init__(self) -> None:
        self._tail = b"\r\n"  # a content begins at the begin of a line: "." alone may be its first
        self.ended = False
        self.bare_lf = False
        """A LF without CR before it was in what was fed: a reader that takes it for a line's end sees other messages
        than we do. That piece must not be passed on."""

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """*data* as (what belongs to the content, what comes after its end)."""
        seen = self._tail + data
        at = seen.find(END_OF_CONTENT)
        if at >= 0:
            self.ended = True
            cut = at + len(END_OF_CONTENT) - len(self._tail)
            content, rest = data[:cut], data[cut:]
            seen = seen[: at + len(END_OF_CONTENT)]
        else:
            content, rest = data, b""
        if seen.count(b"\n") != seen.count(b"\r\n") + (seen[0] == 0x0A):
            self.bare_lf = True
        self._tail = seen[-4:]
        return content, rest
