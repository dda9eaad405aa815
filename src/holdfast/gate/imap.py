"""One IMAP session through the gate, from its login on (RFC 9051, RFC 3501): which answers are held. Pure.

Both sides' bytes pass unchanged. The gate reads along in order to know two things: which commands the client has
given, and where in the server's stream a line begins that answers one. ``TAG OK`` for a command that may have changed
something is held, and with it all that the server says after it, until the barrier has passed. Everything else passes
at once: untagged data, ``NO``, ``BAD``, and the answers to commands that only read (:data:`READING_COMMANDS`). A
command the gate does not know is held, and so is an answer to a tag that it does not know: where the two sides should
read the client's bytes differently, an answer comes late, never early.

The client's side::

    COMMAND   lines, each passed on when it is whole; after {n+} at a line's end n bytes pass, then the rest of it
              --line ends with {n}---> ASKED     the server says whether it wants them
              --IDLE, AUTHENTICATE---> ASKED
    ASKED     the client's bytes wait: until the server's "+" nobody can tell literal from command
              --"+"--------> COMMAND (n bytes first), or LINE (one line that is no command: DONE, a SASL response)
              --TAG answer-> COMMAND  (refused: what comes next is a command)
    LINE      --its end--> COMMAND (after IDLE), ASKED (within AUTHENTICATE)

The server's side: response lines, begun outside a literal (``{n}`` at the end of a data line). Of data only line ends
and literals are looked for, by one regular expression; a literal is skipped without being looked at. Lines of text (a
tag, ``+``, ``* OK`` and its like) are gathered whole: what looks like a literal at the end of a text is none.

When a barrier does not pass, the connection is closed with ``* BYE`` and the command has no answer. ``NO`` would not be
true: the change has been made here, and a client that repeats an APPEND because of it has the message twice. A client
whose connection ended knows that it does not know, connects again and looks (RFC 9051, 7.1.5).

What the gate cannot read is not offered: STARTTLS and COMPRESS=DEFLATE are taken out of the server's capabilities, and
a client that asks nevertheless gets the server's answer to a command that does not exist.

While the log takes nothing and the site wants it so (``read_only``), what would be held is refused instead: the whole
command is swallowed, and the server gets ``TAG CAPABILITY`` in its place. Its answer has the right tag at the right
place of the stream, and the client hears ``TAG NO [UNAVAILABLE]`` for it. ``CLOSE`` becomes UNSELECT: of a mailbox that
is read-only it expunges nothing and is no error (RFC 3501, 6.4.2; RFC 3691).

A line ends with LF, with or without CR before it, because that is how Dovecot, behind the gate, reads it.
"""

from __future__ import annotations

import re
from collections import deque
from enum import Enum, auto
from typing import Final, NamedTuple

from holdfast.gate.from_client import FromClient
from holdfast.gate.read_only import WORDS, Refuses, never
from holdfast.gate.stream import ProtocolBroken, printable

LINE_BYTES_MAX: Final = 128 * 1024
"""A line of the client, or of text from the server. Dovecot takes 64 KiB (imap_max_line_length)."""
COMMANDS_MAX: Final = 1000
"""Commands without an answer. Clients pipeline a few, Dovecot runs one or two at a time."""
LITERAL_DIGITS_MAX: Final = 12
READING_COMMANDS: Final = frozenset(
    b"CAPABILITY NOOP LOGOUT ID ENABLE LOGIN AUTHENTICATE SELECT EXAMINE UNSELECT LIST LSUB XLIST STATUS NAMESPACE "
    b"FETCH SEARCH SORT THREAD IDLE NOTIFY CANCELUPDATE GETQUOTA GETQUOTAROOT GETACL LISTRIGHTS MYRIGHTS GETMETADATA "
    b"URLFETCH ESEARCH".split()
)
"""Commands whose OK promises nothing that could be lost. FETCH may set \\Seen, which a client does not ask for: that
follows within milliseconds. CHECK is held: RFC 3501, 6.4.1, is about what is in memory and not yet safe."""
_BY_UID: Final = frozenset({b"FETCH", b"SEARCH", b"SORT", b"THREAD"})
_REFUSED: Final = frozenset({b"STARTTLS", b"COMPRESS"})
_HIDDEN: Final = frozenset({b"STARTTLS", b"COMPRESS=DEFLATE"})
_NO_COMMAND: Final = b"XNOTTHROUGHTHEGATE"
_IN_PLACE: Final = b"CAPABILITY"
"""Given instead of a refused command. NOOP could tell of expunged messages within what the client takes for a STORE
(RFC 3501, 7.4.1), and after 20 commands that it does not know Dovecot closes the connection."""
_CLIENT_LITERAL: Final = re.compile(rb"(?:^|[ (~])\{(\d{1,%d})(\+?)\}\r?\n\Z" % LITERAL_DIGITS_MAX)
_QUOTED: Final = re.compile(rb'"(?:[^"\\\r\n]|\\.)*"')
_MARK: Final = re.compile(rb"\{(\d{1,%d})\}\r?\n|\n(?!\* [^OBPNCobpnc\r\n])" % LITERAL_DIGITS_MAX)
"""In data: a literal begins; or a line ends, unless one that is surely data follows."""
_PARTIAL: Final = re.compile(rb"\{\d{0,%d}\}?\r?\Z" % LITERAL_DIGITS_MAX)
_PARTIAL_BYTES_MAX: Final = LITERAL_DIGITS_MAX + 3
_TEXT: Final = re.compile(rb"\* (?:OK|NO|BAD|BYE|PREAUTH|CAPABILITY)[ \r\n]", re.IGNORECASE)
_TEXT_BYTES_MAX: Final = len(b"* CAPABILITY ")
_CAPABILITIES: Final = re.compile(rb"(?:\* |\[)CAPABILITY ([^\]\r\n]*)", re.IGNORECASE)


class Moved(NamedTuple):
    """Bytes to write now."""

    to_client: bytes = b""
    to_server: bytes = b""


class _Side(Enum):
    COMMAND = auto()
    ASKED = auto()
    LINE = auto()


class _Command(NamedTuple):
    tag: bytes
    held: bool
    refused: bool = False


class ImapSession:
    """See the module. Feed it both sides' bytes, write what it returns; while :attr:`holding`, get a barrier passed and
    call :meth:`released`. Any call may raise ProtocolBroken: the session ends."""

    def __init__(self, refuses: Refuses = never) -> None:
        self.holding = False
        self._refuses = refuses
        self._logged_in = False
        """Whether the server has answered the login, which Dovecot's login service took."""
        self._commands: deque[_Command] = deque()
        # the client's side
        self._side = _Side.COMMAND
        self._tag = b""
        """Of the command that is being read; empty between two."""
        self._word = b""
        self._swallowing = False
        """The command that is being read is refused."""
        self._from_client = FromClient(LINE_BYTES_MAX)
        self._to_server: list[bytes] = []
        # the server's side
        self._from_server = b""
        self._skip = 0
        self._at_begin = True
        self._covered = 0
        """So many bytes of what waits were there before the barrier that has passed."""

    # -- what the shell calls ------------------------------------------------------------------------------------------

    @property
    def reading(self) -> bool:
        """Whether the client's bytes are wanted now."""
        return self._side is not _Side.ASKED

    @property
    def at_boundary(self) -> bool:
        """Whether the server's stream, as the client has it, ends with a whole response: last words can be said."""
        return self._at_begin and not self._skip

    def last_words(self, text: str) -> bytes:
        """What the client is told before its connection is closed; nothing in the middle of a response."""
        return b"* BYE [UNAVAILABLE] " + printable(text) + b"\r\n" if self.at_boundary else b""

    def from_client(self, data: bytes) -> Moved:
        self._from_client.feed(data)
        self._read_client()
        return Moved(b"", self._said())

    def from_server(self, data: bytes) -> Moved:
        if self.holding:
            self._from_server += data
            return Moved()
        to_client = self._scan(self._from_server + data if self._from_server else data)
        return Moved(to_client, self._said())

    def released(self) -> Moved:
        """A barrier has passed that began after the bytes held were given to this session."""
        assert self.holding
        self.holding = False
        self._covered = len(self._from_server)
        waiting, self._from_server = self._from_server, b""
        to_client = self._scan(waiting)
        return Moved(to_client, self._said())

    def rest(self) -> bytes:
        """The server has ended: what it said last, if that was not a whole line."""
        rest, self._from_server = self._from_server, b""
        return rest

    # -- the client's side ---------------------------------------------------------------------------------------------

    def _said(self) -> bytes:
        if not self._to_server:
            return b""
        said = self._to_server[0] if len(self._to_server) == 1 else b"".join(self._to_server)
        self._to_server.clear()
        return said

    def _read_client(self) -> None:
        for piece, line in self._from_client.pieces(lambda: self.reading):
            if line:
                self._take_line(piece)
            elif not self._swallowing:
                self._to_server.append(piece)

    def _take_line(self, line: bytes) -> None:
        if self._side is _Side.LINE:
            self._side = _Side.ASKED if self._word == b"AUTHENTICATE" else _Side.COMMAND
            self._to_server.append(line)
            return
        line = self._begun(line) if not self._tag else line
        literal = _CLIENT_LITERAL.search(line)
        if literal and b'"' in line and b'"' in _QUOTED.sub(b"", line):
            literal = None  # within a quoted string that never ends: the server takes the line for the whole command
        if not self._swallowing:
            self._to_server.append(line)
        elif not (literal and literal[2]):  # its end, or the client asks whether it may go on
            self._to_server.append(self._tag + b" " + _IN_PLACE + b"\r\n")
            self._swallowing = False
        if literal:
            if not self._tag:
                raise ProtocolBroken("a literal without a command")
            self._from_client.literal = int(literal[1])
            self._side = _Side.COMMAND if literal[2] else _Side.ASKED
        elif self._word in (b"IDLE", b"AUTHENTICATE"):
            self._side = _Side.ASKED
        else:
            self._tag = self._word = b""

    def _begun(self, line: bytes) -> bytes:
        """A command begins; the line to pass on."""
        words = line.split(None, 3)
        if len(words) < 2:
            return line  # the server has no tag to answer it by
        tag, self._word = words[0], words[1].upper()
        by_uid = self._word == b"UID" and len(words) > 2
        read = words[2].upper() in _BY_UID if by_uid else self._word in READING_COMMANDS
        if self._word in _REFUSED:
            line, read, self._word = tag + b" " + _NO_COMMAND + b"\r\n", True, b""
        refused = not read and self._refuses()
        if refused and self._word == b"CLOSE" and len(words) == 2:
            line, read, refused = tag + b" UNSELECT\r\n", True, False
        if len(self._commands) >= COMMANDS_MAX:
            raise ProtocolBroken("too many commands without an answer")
        self._commands.append(_Command(tag, not read and not refused, refused))
        self._tag, self._swallowing = tag, refused
        return line

    def _asked(self, *, go_on: bool) -> None:
        """The server has answered what the client waits for."""
        if self._side is not _Side.ASKED and not (self._side is _Side.LINE and not go_on):
            return
        if not go_on:
            self._side, self._tag, self._word, self._from_client.literal = _Side.COMMAND, b"", b"", 0
            self._swallowing = False
        elif self._word in (b"IDLE", b"AUTHENTICATE") and not self._from_client.literal:
            self._side = _Side.LINE
        else:
            self._side = _Side.COMMAND
        self._read_client()

    # -- the server's side ---------------------------------------------------------------------------------------------

    def _scan(self, data: bytes) -> bytes:
        """What of *data* the client may have; the rest is kept."""
        size, at = len(data), 0
        changed: list[bytes] = []
        sent = 0
        while at < size:
            if self._skip:
                taken = min(self._skip, size - at)
                self._skip -= taken
                at += taken
                continue
            if self._at_begin:
                kind = _kind(data, at)
                end = data.find(b"\n", at) + 1 if kind else 0
                if kind is None or (kind and not end):
                    if size - at > LINE_BYTES_MAX:
                        raise ProtocolBroken(f"a line of more than {LINE_BYTES_MAX} bytes from the server")
                    break
                if kind:
                    line = data[at:end]
                    shown = self._take_text(line, covered=at < self._covered)
                    if shown is None:
                        self.holding = True
                        break
                    if shown != line:
                        changed += (data[sent:at], shown)
                        sent = end
                    at = end
                    continue
                self._at_begin = False
            mark = _MARK.search(data, at)
            if mark is None:
                partial = _PARTIAL.search(data, max(at, size - _PARTIAL_BYTES_MAX))
                at = partial.start() if partial else size
                break
            at = mark.end()
            if mark[1] is not None:
                self._skip = int(mark[1])
            else:
                self._at_begin = True
        self._covered = max(0, self._covered - at)
        self._from_server = data[at:]
        if changed:
            return b"".join((*changed, data[sent:at]))
        return data if at == size else data[:at]

    def _take_text(self, line: bytes, *, covered: bool) -> bytes | None:
        """A whole line of text: what the client hears of it; None: not now."""
        if line[:1] == b"+":
            self._asked(go_on=True)
            return line
        if line[:2] == b"* ":
            return _without_hidden(line)
        words = line.split(None, 2)
        tag, status = (words[0], words[1].upper() if len(words) > 1 else b"") if words else (b"", b"")
        of_tag = [command for command in self._commands if command.tag == tag]
        held = any(command.held for command in of_tag) if of_tag else self._logged_in
        self._logged_in = True
        if held and not covered and status == b"OK":
            return None
        if of_tag:
            self._commands.remove(of_tag[0])
        if tag == self._tag and len(of_tag) == 1:
            self._asked(go_on=False)
        if of_tag and of_tag[0].refused:
            return tag + b" NO [UNAVAILABLE] " + WORDS.encode() + b"\r\n"
        return _without_hidden(line)


def _kind(data: bytes, at: int) -> bool | None:
    """Whether a line of text begins at *at*, not data; None: too few bytes to tell."""
    if data[at] != 0x2A:
        return True
    head = data[at : at + _TEXT_BYTES_MAX]
    if len(head) < _TEXT_BYTES_MAX and b"\n" not in head:
        return None
    return _TEXT.match(head) is not None


def _without_hidden(line: bytes) -> bytes:
    """*line* without the capabilities that the gate does not carry."""
    found = _CAPABILITIES.search(line)
    if found is None:
        return line
    names = found[1].split(b" ")
    kept = [name for name in names if name.upper() not in _HIDDEN]
    return line if len(kept) == len(names) else line[: found.start(1)] + b" ".join(kept) + line[found.end(1) :]
