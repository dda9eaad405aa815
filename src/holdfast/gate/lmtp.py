"""One LMTP session through the gate (RFC 2033): what goes to whom, and which answers are held. Pure.

The gate reads every command and every answer, and passes them on unchanged. It speaks for itself in six places: it
takes out of the answer to LHLO what it does not carry (CHUNKING, STARTTLS, AUTH, XCLIENT ...); it offers SMTPUTF8 there
where the server does not; it refuses commands it does not know; it refuses MAIL while changes are refused
(``read_only``); it answers DATA with its own 354, because it must see the message's header before it knows whether a
recipient has it already; and it holds the answers to a content until the barrier has passed.

Dovecot 2.3 does not offer SMTPUTF8 (RFC 6531), and takes raw UTF-8 in header fields all the same. Postfix calls a
message SMTPUTF8 for such a field alone when it comes through sendmail(1) (``smtputf8_autodetect_classes``), as what is
adopted after a takeover does, and returns it to its sender when its next hop does not offer the extension. So the gate
offers it, and asks the server without it. A sender's address that is not ASCII gets the 550 that Postfix would give.

States of the client's side::

    COMMANDS  --DATA--> SETTLING (answers to what was pipelined are still to come)
              --> HEADER  (our 354 is out; the header is collected, at most HEADER_BYTES_MAX of it)
              --> LOOKUP  (the journal is asked which recipients have this delivery id)
              --> OPENING (RSET, MAIL, RCPT again when some have it; then DATA; the server's 354 is awaited)
              --> CONTENT (passed on as it comes) --> ANSWERS (one for each recipient, collected)
              --> BARRIER (held) --> COMMANDS
    SWALLOW   the content is read and thrown away: everybody has it already, or it cannot be delivered

While the state is not COMMANDS, HEADER, CONTENT or SWALLOW the client's bytes wait: the shell stops reading.

The session asks for what it needs by *steps* (the return value of every call), in order: bytes to a side, a lookup, a
note in the journal, a barrier, an end. The shell carries them out and calls back.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable
from enum import Enum, auto
from typing import Final, NamedTuple

from blake3 import blake3

from holdfast.gate.read_only import WORDS, Refuses, never
from holdfast.gate.stream import ContentReader, LineReader, ProtocolBroken, printable

DELIVERY_HEADER: Final = b"holdfast-delivery"
HEADER_BYTES_MAX: Final = 256 * 1024
"""Postfix keeps headers below header_size_limit (102,400 bytes) and puts the rest into the body."""
RECIPIENTS_MAX: Final = 2000
"""Of one transaction. Postfix sends 50 (default_destination_recipient_limit); RFC 5321 asks for 100."""
PIPELINED_MAX: Final = RECIPIENTS_MAX + 100
_PASSED_COMMANDS: Final = frozenset({b"MAIL", b"RCPT", b"RSET", b"NOOP", b"VRFY"})
_UTF8: Final = b"SMTPUTF8"
_CARRIED: Final = frozenset({b"PIPELINING", b"8BITMIME", _UTF8, b"ENHANCEDSTATUSCODES", b"SIZE", b"DSN"})
_UTF8_ASKED: Final = re.compile(rb"(?i) +%s(?= |$)" % _UTF8)
"""Among the parameters: behind the address."""
_NO_UTF8_ADDRESSES: Final = b"550 5.6.7 the mail store takes no address that is not ASCII"
_UNKNOWN_COMMAND: Final = b"500 5.5.1 not known here"
_REFUSED: Final = b"451 4.3.2 " + WORDS.encode()
_NO_RECIPIENT: Final = b"503 5.5.1 no valid recipients"
_GO_ON: Final = b"354 OK"
_ALREADY: Final = b"250 2.0.0 delivered before, not again"
_BARE_LF: Final = b"554 5.6.0 bare LF in the message: readers would disagree about where it ends"
_HEADER_TOO_LONG: Final = b"554 5.6.0 the header is longer than %d bytes" % HEADER_BYTES_MAX
_GATE: Final = b"gate"
DeliveryId = bytes


class ToClient(NamedTuple):
    data: bytes


class ToServer(NamedTuple):
    data: bytes


class Lookup(NamedTuple):
    """Which of *recipients* have *delivery* already? Call :meth:`LmtpSession.known`."""

    delivery: DeliveryId
    recipients: tuple[bytes, ...]


class NoteIntent(NamedTuple):
    """Into the journal before the next step: *delivery* will now be given to *recipients*."""

    delivery: DeliveryId
    recipients: tuple[bytes, ...]


class NoteDone(NamedTuple):
    """Into the journal before the next step: who has *delivery*, and who was refused it."""

    delivery: DeliveryId
    delivered: tuple[bytes, ...]
    refused: tuple[bytes, ...]


class PutOff(NamedTuple):
    """The client was told to come later: the queue is to be told when it may."""


class AwaitBarrier(NamedTuple):
    """Call :meth:`LmtpSession.barrier_passed` or :meth:`LmtpSession.barrier_failed`."""


class End(NamedTuple):
    """Close both connections when what was given to them is written. *why* is for the log; empty: in order."""

    why: str = ""


Step = ToClient | ToServer | Lookup | NoteIntent | NoteDone | AwaitBarrier | PutOff | End


class State(Enum):
    COMMANDS = auto()
    SETTLING = auto()
    HEADER = auto()
    LOOKUP = auto()
    OPENING = auto()
    CONTENT = auto()
    ANSWERS = auto()
    BARRIER = auto()
    SWALLOW = auto()
    ENDED = auto()


READING: Final = frozenset({State.COMMANDS, State.HEADER, State.CONTENT, State.SWALLOW})
"""In these states the client's bytes are taken."""


class _Expected(NamedTuple):
    """An answer to come. *verb* ``gate``: our own, *line* is it, said when its turn comes."""

    verb: bytes
    line: bytes = b""
    silent: bool = False
    """An answer to what the gate asked by itself: not passed on."""


class _Recipient(NamedTuple):
    address: bytes
    line: bytes
    """The client's RCPT command."""


class LmtpSession:
    """See the module. Feed it both sides' bytes; carry out the steps it returns, in order.

    A session may have ended when it is told what it asked for: then nothing follows.
    """

    def __init__(self, refuses: Refuses = never) -> None:
        self.state = State.COMMANDS
        self._refuses = refuses
        self._client = LineReader()
        self._server = LineReader()
        self._expected: deque[_Expected] = deque([_Expected(b"greeting")])
        self._reply: list[bytes] = []
        self._steps: list[Step] = []
        self._mail = b""
        self._offers_utf8 = False
        """SMTPUTF8 is our offer, not the server's."""
        self._recipients: list[_Recipient] = []
        self._delivery: DeliveryId = b""
        self._have: frozenset[bytes] = frozenset()
        self._content = ContentReader()
        self._held = b""
        """Header, and what came with it, until the server takes it."""
        self._answers: list[bytes] = []
        self._later = b""
        """What is answered instead of success when the barrier did not pass."""
        self._instead = b""
        """What every recipient is answered when the content could not be delivered; the session ends after it."""

    # -- what the shell calls ------------------------------------------------------------------------------------------

    def from_client(self, data: bytes) -> list[Step]:
        self._client.feed(data)
        return self._run(self._read_client)

    def from_server(self, data: bytes) -> list[Step]:
        self._server.feed(data)

        def read() -> None:
            self._read_server()
            self._read_client()

        return self._run(read)

    def known(self, have: frozenset[bytes]) -> list[Step]:
        """The answer to Lookup: these recipients (addresses as they stood in it) have the message."""
        assert self.state in (State.LOOKUP, State.ENDED)
        self._have = have

        def go_on() -> None:
            self._open()
            self._read_client()

        return self._run(go_on)

    def barrier_passed(self) -> list[Step]:
        assert self.state in (State.BARRIER, State.ENDED)
        return self._run(self._answer)

    def barrier_failed(self, why: str) -> list[Step]:
        """What was delivered is not in the log: the client is to come again, and will be told it is there already."""
        assert self.state in (State.BARRIER, State.ENDED)
        self._later = b"451 4.3.0 delivered, not yet safe on a second machine: " + printable(why)
        return self._run(self._answer)

    def server_gone(self, why: str) -> list[Step]:
        """The server's connection could not be made, or has ended."""

        def gone() -> None:
            if self.state is State.ENDED:
                return
            if self.state in (State.HEADER, State.LOOKUP, State.OPENING, State.CONTENT):
                self._fail(b"451 4.3.0 the mail store does not answer: " + printable(why))
                self._read_client()
            elif self.state is State.ANSWERS:
                answer = b"451 4.3.0 the mail store ended in the middle: " + printable(why)
                missing = len(self._deliverable()) - len(self._answers)
                self._answers += [answer] * missing
                self._instead = answer
                self._delivered()
            elif self.state is State.BARRIER:
                self._instead = printable(why) or b"the mail store ended"
            elif self.state is not State.SWALLOW:
                self._end(b"421 4.3.0 the mail store does not answer: " + printable(why), why)

        return self._run(gone)

    @property
    def reading(self) -> bool:
        """Whether the client's bytes are wanted now."""
        return self.state in READING and len(self._expected) < PIPELINED_MAX

    # -- running -------------------------------------------------------------------------------------------------------

    def _run(self, work: Callable[[], None]) -> list[Step]:
        if self.state is State.ENDED:
            return []
        try:
            work()
        except ProtocolBroken as error:
            self._end(b"500 5.5.2 " + printable(error.message), error.message)
        steps, self._steps = self._steps, []
        return steps

    def _end(self, last_words: bytes, why: str) -> None:
        if last_words:
            self._to_client(last_words)
        self._steps.append(End(why))
        self.state = State.ENDED

    def _to_client(self, line: bytes) -> None:
        self._steps.append(ToClient(line + b"\r\n"))

    def _ask(self, verb: bytes, line: bytes, *, silent: bool = False) -> None:
        self._expected.append(_Expected(verb, silent=silent))
        self._steps.append(ToServer(line + b"\r\n"))

    # -- the client's side ---------------------------------------------------------------------------------------------

    def _read_client(self) -> None:
        while self.reading:
            if self.state is State.COMMANDS:
                line = self._client.line()
                if line is None:
                    return
                self._command(line)
            else:
                data = self._client.take()
                if not data:
                    return
                self._take_content(data)

    def _command(self, line: bytes) -> None:
        verb = line[:4].upper() if len(line) == 4 or line[4:5] in b" :" else line.split(b" ", 1)[0].upper()
        if verb == b"LHLO":
            self._ask(b"LHLO", line)
        elif verb == b"QUIT":
            self._ask(b"QUIT", line)
            self.state = State.SETTLING
        elif verb == b"DATA" and len(line) == 4:
            self.state = State.SETTLING
            self._expected.append(_Expected(_GATE))
            self._settle()
        elif verb == b"MAIL" and self._refuses():
            self._say_in_turn(_REFUSED)
            self._steps.append(PutOff())
        elif verb == b"RCPT" and len(self._recipients) >= RECIPIENTS_MAX:
            self._say_in_turn(b"452 4.5.3 too many recipients")
        elif verb == b"MAIL" and self._offers_utf8 and (asked := _UTF8_ASKED.search(line, line.rfind(b">") + 1)):
            if line.isascii():
                self._pass_on(verb, line[: asked.start()] + line[asked.end() :])
            else:
                self._say_in_turn(_NO_UTF8_ADDRESSES)
        elif verb in _PASSED_COMMANDS:
            self._pass_on(verb, line)
        else:
            self._say_in_turn(_UNKNOWN_COMMAND)

    def _pass_on(self, verb: bytes, line: bytes) -> None:
        self._expected.append(_Expected(verb, line))
        self._steps.append(ToServer(line + b"\r\n"))

    def _say_in_turn(self, line: bytes) -> None:
        """Our own answer, behind those that are still to come."""
        self._expected.append(_Expected(_GATE, line))
        self._settle()

    def _settle(self) -> None:
        """Say what of ours is at its turn."""
        while self._expected and self._expected[0].verb == _GATE:
            ours = self._expected.popleft()
            if ours.line:
                self._to_client(ours.line)
            else:
                self._begin_data()

    def _begin_data(self) -> None:
        if not self._recipients:
            self.state = State.COMMANDS
            self._to_client(_NO_RECIPIENT)
            return
        self._content = ContentReader()
        self._held = b""
        self._answers = []
        self._have = frozenset()
        self.state = State.HEADER
        self._to_client(_GO_ON)

    def _take_content(self, data: bytes) -> None:
        content, rest = self._content.feed(data)
        self._client.feed(rest)
        if self.state is State.SWALLOW:
            self._swallowed()
            return
        if self._content.bare_lf:
            self._fail(_BARE_LF)
            return
        if self.state is State.HEADER:
            self._held += content
            self._look_for_header_end()
            return
        if content:
            self._steps.append(ToServer(content))
        if self._content.ended:
            self.state = State.ANSWERS

    def _look_for_header_end(self) -> None:
        end = 0 if self._held.startswith(b"\r\n") else self._held.find(b"\r\n\r\n")
        if end < 0 and not self._content.ended:
            if len(self._held) > HEADER_BYTES_MAX:
                self._fail(_HEADER_TOO_LONG)
            return
        header = self._held if end < 0 else self._held[: end + 2]
        self._delivery = delivery_id(header)
        self.state = State.LOOKUP
        self._steps.append(Lookup(self._delivery, tuple(recipient.address for recipient in self._recipients)))

    def _deliverable(self) -> list[_Recipient]:
        return [recipient for recipient in self._recipients if recipient.address not in self._have]

    def _open(self) -> None:
        """Ask the server to take the content, for those who do not have it."""
        wanted = self._deliverable()
        if not wanted:
            self._ask(b"RSET", b"RSET", silent=True)
            self.state = State.SWALLOW
            self._swallowed()
            return
        self.state = State.OPENING
        if self._have:
            self._ask(b"again", b"RSET", silent=True)
            self._ask(b"again", self._mail, silent=True)
            for recipient in wanted:
                self._ask(b"again", recipient.line, silent=True)
        self._steps.append(NoteIntent(self._delivery, tuple(recipient.address for recipient in wanted)))
        self._ask(b"DATA", b"DATA", silent=True)

    def _fail(self, answer: bytes) -> None:
        """This content will not be delivered: read it to its end, then say so to everybody, and end the session."""
        self._instead = answer
        self._held = b""
        self.state = State.SWALLOW
        self._swallowed()

    def _swallowed(self) -> None:
        if not self._content.ended:
            return
        if self._instead:
            for _ in self._recipients:
                self._to_client(self._instead)
            self._end(b"", self._instead.decode("ascii", "replace"))
            return
        self.state = State.BARRIER  # everybody has it; whether it is in the log is what the client wants to hear
        self._steps.append(AwaitBarrier())

    # -- the server's side ---------------------------------------------------------------------------------------------

    def _read_server(self) -> None:
        while self.state is not State.ENDED:
            line = self._server.line()
            if line is None:
                return
            if len(line) < 3 or not line[:3].isdigit() or line[3:4] not in (b"", b" ", b"-"):
                raise ProtocolBroken("the mail store's answer is none")
            self._reply.append(line)
            if line[3:4] == b"-":
                if len(self._reply) > 100:
                    raise ProtocolBroken("the mail store's answer does not end")
                continue
            reply, self._reply = self._reply, []
            self._take_reply(reply)

    def _take_reply(self, reply: list[bytes]) -> None:
        if not self._expected and self.state is State.ANSWERS:
            self._answers.append(b"\r\n".join(reply))
            if len(self._answers) == len(self._deliverable()):
                self._delivered()
            return
        if not self._expected:
            raise ProtocolBroken("the mail store answers what was not asked")
        expected = self._expected.popleft()
        code = reply[-1][:1]
        if expected.verb == b"LHLO" and code == b"2":
            self._offers_utf8 = not any(line[4:].upper() == _UTF8 for line in reply[1:])
            reply = _carried(reply if not self._offers_utf8 else [*reply, b"250 " + _UTF8])
        if not expected.silent:
            self._to_client(b"\r\n".join(reply))
        match expected.verb:
            case b"MAIL" if code == b"2":
                self._mail, self._recipients = expected.line, []
            case b"RCPT" if code == b"2":
                self._recipients.append(_Recipient(_address(expected.line), expected.line))
            case b"RSET" | b"LHLO" if not expected.silent:
                self._forget()
            case b"again" if code != b"2" and self.state is State.OPENING:
                self._fail(b"451 4.3.0 the mail store changed its mind: " + reply[-1])
            case b"DATA" if self.state is State.OPENING:
                self._opened(code, reply)
            case b"QUIT":
                self._steps.append(End())
                self.state = State.ENDED
            case _:
                pass
        self._settle()

    def _opened(self, code: bytes, reply: list[bytes]) -> None:
        if code != b"3":
            self._fail(b"451 4.3.0 the mail store takes no content: " + reply[-1])
            return
        held, self._held = self._held, b""
        self._steps.append(ToServer(held))
        self.state = State.ANSWERS if self._content.ended else State.CONTENT

    def _delivered(self) -> None:
        """All answers are there: note them, and hold them."""
        wanted = self._deliverable()
        pairs = list(zip(wanted, self._answers, strict=True))
        delivered = tuple(recipient.address for recipient, answer in pairs if answer[:1] == b"2")
        refused = tuple(recipient.address for recipient, answer in pairs if answer[:1] in b"45" and not self._instead)
        self._steps.append(NoteDone(self._delivery, delivered, refused))
        self.state = State.BARRIER
        if delivered or self._have:
            self._steps.append(AwaitBarrier())
        else:
            self._answer()

    def _answer(self) -> None:
        """Say what was held, in the order of the recipients."""
        answers = iter(self._answers)
        for recipient in self._recipients:
            answer = _ALREADY if recipient.address in self._have else next(answers)
            self._to_client(self._later if self._later and answer[:1] == b"2" else answer)
        if self._instead:
            self._end(b"", self._instead.decode("ascii", "replace"))
            return
        self._forget()
        self.state = State.COMMANDS
        self._read_client()

    def _forget(self) -> None:
        self._mail, self._recipients, self._answers = b"", [], []
        self._delivery, self._have, self._later = b"", frozenset(), b""


def delivery_id(header: bytes) -> DeliveryId:
    """The delivery id of a message with this *header* (whole lines, CR LF each): see the package's page.

    At most 64 bytes, printable, no blanks.
    """
    for line in header.split(b"\r\n"):
        name, colon, value = line.partition(b":")
        if colon and name.rstrip().lower() == DELIVERY_HEADER:
            value = value.strip()
            if 0 < len(value) <= 64 and value.isalnum():
                return value
    return blake3(header).hexdigest(length=16).encode()


def _carried(reply: list[bytes]) -> list[bytes]:
    """The answer to LHLO with the extensions the gate carries."""
    kept = [reply[0][4:]] + [line[4:] for line in reply[1:] if line[4:].split(b" ", 1)[0].upper() in _CARRIED]
    return [b"250-" + text for text in kept[:-1]] + [b"250 " + kept[-1]]


def _address(line: bytes) -> bytes:
    """The recipient in ``RCPT TO:<address> ...``; quoted local parts may hold ``>``."""
    start, end = line.find(b"<"), line.rfind(b">")
    return line[start + 1 : end].strip() if 0 <= start < end else line[8:].strip()
