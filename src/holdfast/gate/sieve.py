"""One ManageSieve session through the gate (RFC 5804): which answers are held. Pure.

As in :mod:`holdfast.gate.imap` both sides' bytes pass unchanged, and the ``OK`` to a command that may have changed
something is held until the barrier has passed, with all that comes after it. ManageSieve has no tags: answers come in
the order of the commands. Should the two sides ever count differently, an answer comes late, never early: while any
command that changes something has no answer, every ``OK`` is held, and so is one that nobody asked for.

An answer is data lines (strings, quoted or ``{n}`` literals), then a line that begins with OK, NO or BYE and may hold
literals, too. A client's literal is ``{n+}`` and needs no permission; any other is refused. Within AUTHENTICATE the
client sends strings, each after a string from the server: its bytes wait until the server has spoken.

STARTTLS is not offered and not carried: the gate must be able to read.

While changes are refused (``read_only``), a command that would be held is swallowed, the server gets ``NOOP`` in its
place (RFC 5804, 2.13), and the client hears ``NO (TRYLATER)`` when that is answered.
"""

from __future__ import annotations

import re
from collections import deque
from enum import Enum, auto
from typing import Final

from holdfast.gate.from_client import FromClient
from holdfast.gate.imap import Moved
from holdfast.gate.read_only import WORDS, Refuses, never
from holdfast.gate.stream import ProtocolBroken, printable

LINE_BYTES_MAX: Final = 64 * 1024
"""Pigeonhole takes 8 KiB (managesieve_max_line_length 65,536 with literals)."""
COMMANDS_MAX: Final = 100
READING_COMMANDS: Final = frozenset(
    b"CAPABILITY HAVESPACE LISTSCRIPTS GETSCRIPT CHECKSCRIPT NOOP LOGOUT AUTHENTICATE XCLIENT".split()
)
_NO_COMMAND: Final = b"XNOTTHROUGHTHEGATE\r\n"
_IN_PLACE: Final = b"NOOP\r\n"
_REFUSAL: Final = b'NO (TRYLATER) "%s"\r\n' % WORDS.encode()
_LITERAL: Final = re.compile(rb"(?:^|[ (])\{(\d{1,10})(\+?)\}\r?\n\Z")
_QUOTED: Final = re.compile(rb'"(?:[^"\\\r\n]|\\.)*"')
_STARTTLS: Final = re.compile(rb'"STARTTLS"', re.IGNORECASE)
_FINAL: Final = re.compile(rb"(OK|NO|BYE)\b", re.IGNORECASE)


class _Fate(Enum):
    """Of a command."""

    PASSES = auto()
    HELD = auto()
    REFUSED = auto()


class _Side(Enum):
    COMMAND = auto()
    WITHIN = auto()
    """Of a command or string: after a literal."""
    ASKED = auto()
    """Within AUTHENTICATE: the server speaks next."""
    STRING = auto()
    """Within AUTHENTICATE: the client's string comes."""


class SieveSession:
    """See the module; used as :class:`holdfast.gate.imap.ImapSession` is."""

    def __init__(self, refuses: Refuses = never) -> None:
        self.holding = False
        self._refuses = refuses
        self._commands: deque[_Fate] = deque([_Fate.PASSES])
        """Those without an answer. The first answer is that to the login."""
        self._swallowing = False
        """The command that is being read is refused."""
        self._side = _Side.COMMAND
        self._authenticating = False
        self._from_client = FromClient(LINE_BYTES_MAX)
        self._to_server: list[bytes] = []
        self._from_server = b""
        self._server_literal = 0
        self._final = b""
        """``OK``, ``NO`` or ``BYE`` while the rest of that answer comes (after a literal)."""
        self._within = False
        """A line of the server goes on, after a literal."""
        self._covered = 0

    @property
    def reading(self) -> bool:
        return self._side is not _Side.ASKED

    def last_words(self, text: str) -> bytes:
        boundary = not self._server_literal and not self._within
        return (
            b'BYE (TRYLATER) "' + printable(text).replace(b'"', b"'").replace(b"\\", b"/") + b'"\r\n'
            if boundary
            else b""
        )

    def from_client(self, data: bytes) -> Moved:
        self._from_client.feed(data)
        self._read_client()
        return Moved(b"", self._said())

    def from_server(self, data: bytes) -> Moved:
        self._from_server += data
        if self.holding:
            return Moved()
        return Moved(self._scan(), self._said())

    def released(self) -> Moved:
        assert self.holding
        self.holding = False
        self._covered = len(self._from_server)
        return Moved(self._scan(), self._said())

    def rest(self) -> bytes:
        rest, self._from_server = self._from_server, b""
        return rest

    # -- the client's side ---------------------------------------------------------------------------------------------

    def _said(self) -> bytes:
        said = b"".join(self._to_server)
        self._to_server.clear()
        return said

    def _read_client(self) -> None:
        for piece, line in self._from_client.pieces(lambda: self.reading):
            if line:
                self._take_line(piece)
            elif not self._swallowing:
                self._to_server.append(piece)

    def _take_line(self, line: bytes) -> None:
        if self._side is _Side.COMMAND:
            line = self._begun(line)
        literal = _LITERAL.search(line)
        if literal and b'"' in _QUOTED.sub(b"", line):
            literal = None
        if literal and not literal[2]:
            raise ProtocolBroken("a literal that asks for permission: ManageSieve has none (RFC 5804, 4)")
        if not self._swallowing:
            self._to_server.append(line)
        elif not literal:
            self._to_server.append(_IN_PLACE)
            self._swallowing = False
        if literal:
            self._from_client.literal = int(literal[1])
            self._side = _Side.WITHIN
        else:
            self._side = _Side.ASKED if self._authenticating else _Side.COMMAND

    def _begun(self, line: bytes) -> bytes:
        words = line.split(None, 1)
        word = words[0].upper() if words else b""
        if not word:
            return line
        if len(self._commands) >= COMMANDS_MAX:
            raise ProtocolBroken("too many commands without an answer")
        if word == b"STARTTLS":
            self._commands.append(_Fate.PASSES)
            return _NO_COMMAND
        if word in READING_COMMANDS:
            self._commands.append(_Fate.PASSES)
        else:
            self._swallowing = self._refuses()
            self._commands.append(_Fate.REFUSED if self._swallowing else _Fate.HELD)
        self._authenticating = word == b"AUTHENTICATE"
        return line

    # -- the server's side ---------------------------------------------------------------------------------------------

    def _scan(self) -> bytes:
        """What of the server's bytes the client may have; the rest is kept."""
        data, at = self._from_server, 0
        shown: list[bytes] = []
        while at < len(data):
            if self._server_literal:
                taken = min(self._server_literal, len(data) - at)
                shown.append(data[at : at + taken])
                self._server_literal -= taken
                at += taken
                continue
            end = data.find(b"\n", at) + 1
            if not end:
                if len(data) - at > LINE_BYTES_MAX:
                    raise ProtocolBroken(f"a line of more than {LINE_BYTES_MAX} bytes from the server")
                break
            line = data[at:end]
            if not self._within:
                final = _FINAL.match(line)
                self._final = final[1].upper() if final else b""
                if self._final == b"OK" and at >= self._covered and self._is_held():
                    self.holding = True
                    break
            at = end
            if not self._within and self._final and self._commands and self._commands[0] is _Fate.REFUSED:
                shown.append(_REFUSAL)
            elif self._within or not _STARTTLS.match(line):
                shown.append(line)
            self._passed(line)
        self._covered = max(0, self._covered - at)
        self._from_server = data[at:]
        return b"".join(shown)

    def _is_held(self) -> bool:
        return not self._commands or _Fate.HELD in self._commands

    def _passed(self, line: bytes) -> None:
        literal = _LITERAL.search(line)
        if literal and b'"' not in _QUOTED.sub(b"", line):
            self._server_literal, self._within = int(literal[1]), True
            return
        self._within = False
        if self._final in (b"OK", b"NO"):
            if self._commands:
                self._commands.popleft()
            if self._authenticating and not self._commands:
                self._authenticating = False
                if self._side in (_Side.ASKED, _Side.STRING):
                    self._side = _Side.COMMAND
                    self._read_client()
        elif not self._final and self._side is _Side.ASKED and len(self._commands) == 1:
            self._side = _Side.STRING
            self._read_client()
