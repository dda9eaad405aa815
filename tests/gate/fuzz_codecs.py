"""Hostile peers for the gates' codecs: sensible talk, damaged, cut anywhere, in any order.

As a program: ``python -m tests.gate.fuzz_codecs [SEED [CODEC ...]]``, with ``HOLDFAST_FUZZ_CODECS`` inputs for each
codec (1,000,000 when not set). Each input is one session. What holds, whatever is said:

* no exception but ProtocolBroken;
* ``lmtp``: no bare LF reaches the server; success for a content is said only behind a barrier;
* ``milter``: an event comes only behind a negotiation, an end only behind its begin;
* ``imap``, ``sieve``: each side hears what the other said, unchanged and from its begin on; while an answer is held the
  client hears nothing; and it does not matter how the bytes are cut;
* ``imap``: the OK to a command that changes something is never heard without a barrier after it came; while changes
  are refused the server never hears of one.

A failing input is printed with its seed and number, which make it again.
"""

from __future__ import annotations

import os
import random
import re
import struct
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from holdfast.gate import imap, lmtp, milter, sieve
from holdfast.gate.passing import HoldingSession
from holdfast.gate.read_only import WORDS
from holdfast.gate.stream import ProtocolBroken
from tests.changes.fuzz_frame import mutated

COUNT_VARIABLE: Final = "HOLDFAST_FUZZ_CODECS"

LMTP_CLIENT: Final = (
    b"LHLO x\r\n",
    b"MAIL FROM:<a@b.c> SIZE=9\r\n",
    b"RCPT TO:<a@b>\r\n",
    b'RCPT TO:<"x>y"@d>\r\n',
    b"DATA\r\n",
    b"Subject: x\r\n\r\n",
    b"text\r\n",
    b"\r\n.\r\n",
    b".\r\n",
    b"\n.\n",
    b"\r.\r",
    b"\r\n.\n",
    b"\n.\r\n",
    b"\0",
    b"RSET\r\n",
    b"..\r\n",
    b"BDAT 3 LAST\r\nabc",
    b"QUIT\r\n",
    b"STARTTLS\r\n",
    b"\xff\xfe\r\n",
    b"x" * 1000 + b"\r\n",
)
LMTP_SERVER: Final = (
    b"220 x\r\n",
    b"250-x\r\n250-CHUNKING\r\n250 PIPELINING\r\n",
    b"250 ok\r\n",
    b"354 go\r\n",
    b"451 later\r\n",
    b"550 no\r\n",
    b"250-more\r\n",
    b"2\r\n",
    b"421 bye\r\n",
)
MILTER: Final = tuple(
    milter.packet(command, data)
    for command, data in (
        (b"O", struct.pack(">III", 6, 0x1FF, 0x1FFFFF)),
        (b"D", b"Mi\0004XyZ\0"),
        (b"D", b"C{daemon_name}\0x\0j\0"),
        (b"C", b"c\0004\x1f\x90192.0.2.9\0"),
        (b"M", b"<a@b>\0SIZE=1\0"),
        (b"R", b"<c@d>\0"),
        (b"T", b""),
        (b"L", b"Subject\0 x\n y\0"),
        (b"N", b""),
        (b"B", b"line\r\n"),
        (b"E", b""),
        (b"A", b""),
        (b"Q", b""),
        (b"K", b""),
    )
)
IMAP_CLIENT: Final = (
    b"a1 NOOP\r\n",
    b"a2 STORE 1 +FLAGS (\\Seen)\r\n",
    b"a3 APPEND x {3+}\r\nabc\r\n",
    b"a3 APPEND x {3}\r\n",
    b"abc\r\n",
    b"a4 IDLE\r\n",
    b"DONE\r\n",
    b"a5 UID FETCH 1 BODY[HEADER.FIELDS ({4+}\r\nFROM)]\r\n",
    b"a6 uid expunge 1\r\n",
    b'a7 SEARCH TEXT "a\\"b {9+}"\r\n',
    b"a8 AUTHENTICATE PLAIN\r\n",
    b"AGEAYg==\r\n",
    b"a9 LOGIN {1}\r\n",
    b"x ~{2}\r\n",
    b"\r\n",
    b"a1 CREATE x\r\n",
    b'b1 CREATE "x {5}\r\n',
    b"\0\xff\n",
)
IMAP_SERVER: Final = (
    b"* OK ready\r\n",
    b"+ go\r\n",
    b"* 1 FETCH (BODY[] {8}\r\na2 OK x\r\n)\r\n",
    b"* 2 EXISTS\r\n",
    b"a1 OK x\r\n",
    b"a2 OK x\r\n",
    b"a3 OK [APPENDUID 1 2] x\r\n",
    b"a4 OK x\r\n",
    b"a5 OK x\r\n",
    b"a6 OK x\r\n",
    b"a7 BAD x {9}\r\n",
    b"a8 NO x\r\n",
    b"a9 NO [X] y\r\n",
    b"* NO {7}\r\n",
    b"* LIST () NIL {1}\r\nx\r\n",
    b"* NAMESPACE NIL NIL NIL\r\n",
    b"* BYE x\r\n",
    b'* 1 FETCH (X ~{0}\r\n Y "z")\r\n',
    b"zz OK x\r\n",
    b"\r\n",
    b"a1\r\n",
)
SIEVE_CLIENT: Final = (
    b'PUTSCRIPT "x" {3+}\r\nabc\r\n',
    b'GETSCRIPT "x"\r\n',
    b'SETACTIVE ""\r\n',
    b"LISTSCRIPTS\r\n",
    b"NOOP\r\n",
    b"\r\n",
    b'AUTHENTICATE "X"\r\n',
    b'AUTHENTICATE "X" {2+}\r\nab\r\n',
    b'"resp"\r\n',
    b"{2+}\r\nab\r\n",
    b'PUTSCRIPT "x {3+}\r\n',
)
SIEVE_SERVER: Final = (
    b"OK\r\n",
    b'OK "x {3}"\r\n',
    b'NO (QUOTA) "x"\r\n',
    b"OK (WARNINGS) {4}\r\nOK\r\n\r\n",
    b'"x" ACTIVE\r\n',
    b"{3}\r\nOK\n\r\n",
    b'"SASL" ""\r\n',
    b"BYE\r\n",
    b"ok\r\n",
)


def said(chance: random.Random, parts: Sequence[bytes], most: int = 12) -> bytes:
    """Sensible talk, in one case of three damaged."""
    talk = b"".join(chance.choices(parts, k=chance.randrange(1, most)))
    return mutated(chance, talk) if not chance.randrange(3) else talk


def cut(chance: random.Random, data: bytes) -> list[bytes]:
    pieces = []
    while data:
        size = chance.choice((1, 2, 5, 20, 1000) if len(data) < 40 else (7, 1000))
        pieces.append(data[:size])
        data = data[size:]
    return pieces


def moves(chance: random.Random, client: bytes, server: bytes) -> list[tuple[bool, bytes]]:
    """Both sides' pieces in an order of chance; True: the client's."""
    sides = [(True, piece) for piece in cut(chance, client)], [(False, piece) for piece in cut(chance, server)]
    order = [True] * len(sides[0]) + [False] * len(sides[1])
    chance.shuffle(order)
    waiting = {True: iter(sides[0]), False: iter(sides[1])}
    return [next(waiting[side]) for side in order]


def spoiled(chance: random.Random, parts: Sequence[bytes], others: Sequence[bytes]) -> list[bytes]:
    """A sensible sequence in which now and then something is left out, doubled, damaged, or another thing."""
    made: list[bytes] = []
    for part in parts:
        match chance.randrange(40):
            case 0:
                pass
            case 1:
                made += [part, part]
            case 2:
                made.append(mutated(chance, part))
            case 3:
                made.append(chance.choice(others))
            case _:
                made.append(part)
    return made


def an_lmtp_session(chance: random.Random) -> str:
    """Each line that reaches the server is answered, mostly as a server would."""
    envelope = [LMTP_CLIENT[1], *chance.choices(LMTP_CLIENT[2:4], k=chance.randrange(1, 4)), b"DATA\r\n"]
    content = [b"Subject: x\r\n\r\n", *chance.choices(LMTP_CLIENT[6:], k=chance.randrange(4)), b"\r\n.\r\n"]
    client = spoiled(chance, [LMTP_CLIENT[0], *(envelope + content) * chance.randrange(1, 3), b"QUIT\r\n"], LMTP_CLIENT)
    session = lmtp.LmtpSession()
    waiting = [(False, b"220 x\r\n"), *((True, piece) for part in client for piece in cut(chance, part))]
    hear_server, barriers, ended, recipients = b"", 0, False, 0
    while waiting:
        of_client, data = waiting.pop(0)
        answering = session.state is lmtp.State.ANSWERS
        steps = session.from_client(data) if of_client else session.from_server(data)
        answers = b""
        while steps:
            step = steps.pop(0)
            if isinstance(step, lmtp.ToServer):
                hear_server += step.data
                for line in step.data.split(b"\r\n")[:-1]:
                    recipients = (
                        recipients + 1 if line.startswith(b"RCPT") else 0 if line.startswith(b"MAIL") else recipients
                    )
                    sound = (
                        b"354 go\r\n"
                        if line == b"DATA"
                        else b"250 x\r\n" * recipients
                        if line == b"."
                        else b"250 x\r\n"
                    )
                    if line.split(b" ")[0].split(b":")[0] in (
                        b"LHLO",
                        b"MAIL",
                        b"RCPT",
                        b"DATA",
                        b"RSET",
                        b"QUIT",
                        b".",
                    ):
                        answers += chance.choice(LMTP_SERVER) if not chance.randrange(30) else sound
            elif isinstance(step, lmtp.ToClient):
                assert not (answering and step.data.startswith(b"2")), "success without a barrier"
            elif isinstance(step, lmtp.Lookup):
                have = chance.sample(step.recipients, chance.randrange(len(step.recipients) + 1))
                steps += session.known(frozenset(have if chance.randrange(2) else ()))
            elif isinstance(step, lmtp.AwaitBarrier):
                barriers, answering = barriers + 1, False
                steps += session.barrier_passed() if chance.randrange(3) else session.barrier_failed("away\r\n250 x")
            elif isinstance(step, lmtp.End):
                ended = True
        waiting = [(False, piece) for piece in cut(chance, answers)] + waiting
    assert hear_server.count(b"\n") == hear_server.count(b"\r\n"), "a bare LF reached the server"
    return f"{'ended' if ended else 'went on'}, {'a barrier' if barriers else 'no barrier'}"


def a_milter_session(chance: random.Random) -> str:
    session = milter.MilterSession()
    message = [MILTER[1], MILTER[4], MILTER[5], MILTER[6], MILTER[7], MILTER[8], MILTER[9], MILTER[10]]
    data = b"".join(spoiled(chance, [MILTER[0], MILTER[2], MILTER[3], *message, *message, MILTER[12]], MILTER))
    negotiated = begun = False
    whole = 0
    for piece in cut(chance, data):
        try:
            events = session.feed(piece)
        except ProtocolBroken:
            return "broken"
        for event in events:
            if isinstance(event, milter.Reply):
                negotiated = True
            elif isinstance(event, milter.Begin):
                assert negotiated, "a message before the negotiation"
                assert event.recipients, "a message for nobody"
                begun = True
            elif isinstance(event, milter.Header | milter.Body | milter.EndOfMessage):
                assert begun, "a part of no message"
                begun = not isinstance(event, milter.EndOfMessage)
                whole += not begun
            elif isinstance(event, milter.Abort):
                begun = False
    return f"{whole} messages"


def always() -> bool:
    return True


def a_holding_session(
    chance: random.Random, make: Callable[[], HoldingSession], client: bytes, server: bytes
) -> tuple[str, HoldingSession]:
    session = make()
    heard = {True: b"", False: b""}
    end = "passed"
    try:
        for of_client, data in moves(chance, client, server):
            held = session.holding
            to_client, to_server = session.from_client(data) if of_client else session.from_server(data)
            assert not (held and to_client), "something was heard behind what is held"
            heard[True] += to_client
            heard[False] += to_server
            if session.holding and chance.randrange(2):
                end = "held"
                to_client, to_server = session.released()
                heard[True] += to_client
                heard[False] += to_server
    except ProtocolBroken:
        end = "broken"
    if not re.search(rb"CAPABILITY|STARTTLS", server, re.IGNORECASE):
        assert server.startswith(heard[True]), "the client hears what the server did not say"
    if not re.search(rb"STARTTLS|COMPRESS", client, re.IGNORECASE):
        assert client.startswith(heard[False]), "the server hears what the client did not say"
    return end, session


def whole(make: Callable[[], HoldingSession], pieces: Sequence[tuple[bool, bytes]]) -> tuple[bytes, bytes]:
    """What both hear when every barrier passes at once."""
    session = make()
    to_client, to_server = b"", b""
    try:
        for of_client, data in pieces:
            heard = session.from_client(data) if of_client else session.from_server(data)
            while True:
                to_client += heard.to_client
                to_server += heard.to_server
                if not session.holding:
                    break
                heard = session.released()
    except ProtocolBroken:
        return b"broken", b""
    return to_client + session.rest(), to_server


def an_imap_session(chance: random.Random) -> str:
    client, server = said(chance, IMAP_CLIENT), said(chance, IMAP_SERVER)
    end, _ = a_holding_session(chance, imap.ImapSession, client, server)
    if not chance.randrange(4):
        cut_up = [(True, piece) for piece in cut(chance, client)] + [(False, piece) for piece in cut(chance, server)]
        for make in (imap.ImapSession, partial(imap.ImapSession, always)):
            once = whole(make, [(True, client), (False, server)])
            assert whole(make, cut_up) == once, "it matters how the bytes are cut"
    if not chance.randrange(4):
        a_sound_imap_session(chance)
        a_refused_imap_session(chance)
    return end


CHANGES: Final = (b"STORE 1 FLAGS ()", b"EXPUNGE", b"COPY 1 {3+}\r\nabc", b"XNEW", b"APPEND x {6+}\r\na OK\r\n")
REFUSED: Final = b"NO [UNAVAILABLE] " + WORDS.encode()
READS: Final = (b"NOOP", b"FETCH 1 {3+}\r\na b", b"UID SEARCH ALL")
BETWEEN: Final = (
    b"",
    b"* 3 EXISTS\r\n",
    b"* 1 FETCH (BODY[] {9}\r\nt0 OK x\r\n)\r\n",
    b"* OK t {5}\r\n",
    b'* LIST () "/" x\r\n',
)


def a_sound_imap_session(chance: random.Random) -> None:
    """Commands and their answers as they should be: exactly the OKs of changes are held."""
    session = imap.ImapSession()
    commands = [(b"t%d" % number, chance.choice(CHANGES + READS)) for number in range(chance.randrange(1, 6))]
    client = b"".join(b"%s %s\r\n" % command for command in commands)
    for piece in cut(chance, client):
        session.from_client(piece)
    came: dict[bytes, bool] = {}
    server = b""
    for tag, command in commands:
        answer = chance.choice((b"OK", b"OK", b"NO", b"BAD"))
        came[tag] = answer == b"OK" and command in CHANGES
        server += chance.choice(BETWEEN) + b"%s %s text\r\n" % (tag, answer)
    heard, released = b"", 0
    for piece in cut(chance, server):
        heard += session.from_server(piece).to_client
        while session.holding:
            line = server[len(heard) :].split(b"\r\n", 1)[0]
            assert came[line.split(b" ", 1)[0]], f"{line!r} is held"
            heard += session.released().to_client
            released += 1
    assert heard == server
    assert released <= sum(came.values())
    assert released or not any(came.values()), "nothing was held"


def a_refused_imap_session(chance: random.Random) -> None:
    """While changes are refused: the server hears of none, and each has its answer at its place."""
    session = imap.ImapSession(always)
    commands = [(b"t%d" % number, chance.choice(CHANGES + READS)) for number in range(chance.randrange(1, 6))]
    client = b"".join(b"%s %s\r\n" % command for command in commands)
    told = b"".join(session.from_client(piece).to_server for piece in cut(chance, client))
    assert told == b"".join(
        b"%s %s\r\n" % (tag, b"CAPABILITY" if command in CHANGES else command) for tag, command in commands
    )
    server = wanted = b""
    for tag, command in commands:
        between = chance.choice(BETWEEN)
        server += between + b"%s OK text\r\n" % tag
        wanted += between + b"%s %s\r\n" % (tag, REFUSED if command in CHANGES else b"OK text")
    heard = b"".join(session.from_server(piece).to_client for piece in cut(chance, server))
    assert heard == wanted
    assert not session.holding


def a_sieve_session(chance: random.Random) -> str:
    client, server = said(chance, SIEVE_CLIENT), said(chance, SIEVE_SERVER)
    end, _ = a_holding_session(chance, sieve.SieveSession, client, server)
    if not chance.randrange(4):
        cut_up = [(True, piece) for piece in cut(chance, client)] + [(False, piece) for piece in cut(chance, server)]
        for make in (sieve.SieveSession, partial(sieve.SieveSession, always)):
            once = whole(make, [(True, client), (False, server)])
            assert whole(make, cut_up) == once, "it matters how the bytes are cut"
    return end


CODECS: Final[dict[str, Callable[[random.Random], str]]] = {
    "lmtp": an_lmtp_session,
    "milter": a_milter_session,
    "imap": an_imap_session,
    "sieve": a_sieve_session,
}


def run(codec: str, seed: int, count: int, first: int = 0) -> Counter[str]:
    """*count* sessions; how each ended. Raises AssertionError, with its number, at the first that is wrong."""
    ends: Counter[str] = Counter()
    for number in range(first, first + count):
        try:
            ends[CODECS[codec](random.Random(seed << 32 | number))] += 1
        except BaseException as error:
            raise AssertionError(f"{codec}, seed {seed}, input {number}: {error!r}") from error
    return ends


def main() -> None:
    seed = int(sys.argv[1]) if len(sys.argv) > 1 else 1
    count = int(os.environ.get(COUNT_VARIABLE, "1000000"))
    for codec in sys.argv[2:] or CODECS:
        print(f"{codec}, seed {seed}: {dict(run(codec, seed, count))}", flush=True)


if __name__ == "__main__":
    main()
