"""A load generator for LMTP and SMTP: as many messages as the server takes, for as little CPU as Python allows.

It shares its machine with the system under test, so it must cost little: one thread, one epoll, contents prepared
beforehand and never copied again (``sendmsg`` of a fresh header and an old body). With CHUNKING (RFC 3030), which
Dovecot offers, one message is one write and mostly one read: envelope and content leave together, and the answers come
together. Without it, or with ``--data``, DATA is used: envelope pipelined (RFC 2920), content after the 354.

    python -m holdfast.drill.workload.lmtp --port 24 --to user00@example.org --connections 8 --seconds 30

prints one JSON object (:class:`LoadResult`). Every message has its own Message-ID: ``load.<number>.<seed>@...``.
"""

from __future__ import annotations

import argparse
import array
import random
import selectors
import socket
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from holdfast.drill.workload import messages
from holdfast.drill.workload.net import Endpoint
from holdfast.drill.workload.smtp import dot_stuffed
from holdfast.errors import ExitStatus, HoldfastError, Unreachable

POOL_MESSAGES: Final = 64
"""Different bodies of a mix; enough for the size law to show, small enough to stay in the CPU's cache mostly."""

SMALL_MESSAGE_BYTES: Final = 4096
ANSWER_SECONDS: Final = 30.0
"""Without any answer for so long, a load has failed: a benchmark must not wait for ever."""

RECONNECT_SECONDS: Final = 0.05

ENVELOPE_ANSWER_BYTES: Final = 28
"""``250 2.1.0 OK`` twice, the shortest that Dovecot and Postfix give. Being woken only for more than that (SO_RCVLOWAT)
saves the wake-ups for answers that change nothing."""


class Load(Struct, frozen=True):
    """What to send. It ends after *seconds* or *messages*, whichever is not 0 and comes first.

    *size*: ``4k`` (every message 4,096 bytes) or ``mix`` (the workload's size law, attachments to 5 MB left out unless
    *large*). *warm_seconds* at the begin are sent, and left out of the figures. *pool_seed* decides about the contents
    (None: *seed* does): loads that are to be compared need the same, because the mean size of a pool of
    ``POOL_MESSAGES`` differs by a factor of six from seed to seed.
    """

    endpoint: Endpoint
    recipients: tuple[str, ...]
    connections: int = 8
    seconds: float = 0.0
    messages: int = 0
    size: str = "4k"
    large: bool = False
    smtp: bool = False
    chunking: bool = True
    warm_seconds: float = 0.0
    seed: int = 1
    sender: str = "load@outside.example"
    pool_seed: int | None = None


class LoadResult(Struct):
    """*messages* were accepted in *seconds*, after the warm-up; times of one message from first byte to last answer.

    *cpu_us_per_message* is this generator's own. *failed*: refused or cut; *first_error* says how.
    """

    messages: int
    bytes: int
    seconds: float
    messages_per_second: float
    latency_ms_p50: float
    latency_ms_p99: float
    latency_ms_max: float
    per_second: list[int]
    cpu_us_per_message: float
    connections: int
    chunking: bool
    failed: int
    first_error: str
    accepted_total: int
    """The warm-up included."""


class Acknowledged:
    """Number, begin and answer (CLOCK_MONOTONIC ns) of every accepted message, in order of the answers."""

    def __init__(self) -> None:
        self.numbers = array.array("Q")
        self.begun_ns = array.array("Q")
        self.answered_ns = array.array("Q")
        self.sizes = array.array("Q")

    def note(self, number: int, begun_ns: int, answered_ns: int, size: int) -> None:
        self.numbers.append(number)
        self.begun_ns.append(begun_ns)
        self.answered_ns.append(answered_ns)
        self.sizes.append(size)

    def write(self, path: Path, seed: int) -> None:
        """One line each: Message-ID, begin, answer."""
        with path.open("w") as file:
            for number, begun, answered in zip(self.numbers, self.begun_ns, self.answered_ns, strict=True):
                file.write(f"{message_id(number, seed)} {begun} {answered}\n")


def message_id(number: int, seed: int) -> str:
    return f"load.{number}.{seed:x}@{messages.DOMAIN}"


def run(load: Load) -> tuple[LoadResult, Acknowledged]:
    """Send the load. Raises Unreachable when the server answers nothing any more."""
    generator = _Generator(load)
    cpu = time.process_time()
    began_ns = generator.run()
    cpu = time.process_time() - cpu
    return _result(load, generator, began_ns, cpu), generator.acknowledged


def contents(load: Load) -> list[bytes]:
    """The pool of contents, each without its Message-ID line (and without dots to stuff, for DATA)."""
    made: list[bytes] = []
    seed = load.seed if load.pool_seed is None else load.pool_seed
    if load.size == "4k":
        chance = random.Random(seed)
        head = f"From: <{load.sender}>\r\nSubject: load\r\nMIME-Version: 1.0\r\n\r\n".encode()
        for _ in range(POOL_MESSAGES):
            wanted = SMALL_MESSAGE_BYTES - len(head) - 60  # the Message-ID line comes on top
            text = b"".join(b"%074x\r\n" % chance.getrandbits(296) for _ in range(wanted // 76 + 1))
            made.append(head + text[: wanted - 2] + b"\r\n")
        return made
    number = 0
    while len(made) < POOL_MESSAGES:
        mail = messages.make(seed, number, stream="pool", sender=load.sender, recipient=load.recipients[0])
        number += 1
        if load.large or len(mail.content) < 1_000_000:
            header, _, rest = mail.content.partition(b"Message-ID: ")
            made.append(header + rest.partition(b"\r\n")[2])
    return made


class _Connection:
    """One session's state: what was sent, what must still be sent, how many answers are still to come."""

    __slots__ = ("answers", "begun_ns", "buffer", "content", "enough", "number", "phase", "size", "socket", "unsent")

    def __init__(self, opened: socket.socket) -> None:
        self.socket = opened
        self.buffer = b""
        self.phase = "greeting"
        self.answers = 1
        self.unsent: list[memoryview] = []
        self.content: tuple[bytes, bytes] = (b"", b"")
        self.enough = 1
        self.number = -1
        self.size = 0
        self.begun_ns = 0


class _Generator:
    def __init__(self, load: Load) -> None:
        self._load = load
        self._plain = contents(load)
        self._stuffed = [dot_stuffed(content) for content in self._plain]
        self._envelopes = [f"MAIL FROM:<{load.sender}>\r\nRCPT TO:<{to}>\r\n".encode() for to in load.recipients]
        self._selector = selectors.DefaultSelector()
        self._open = 0
        self._reconnect_at: list[float] = []
        self._next = 0
        self._deadline = 0.0
        self.chunking = load.chunking
        self.acknowledged = Acknowledged()
        self.failed = 0
        self.first_error = ""

    def run(self) -> int:
        began = time.monotonic()
        began_ns = time.monotonic_ns()
        self._deadline = began + self._load.seconds if self._load.seconds else float("inf")
        for _ in range(self._load.connections):
            self._connect()
        last_answer = time.monotonic()
        while self._open or (self._reconnect_at and self._more()):
            events = self._selector.select(0.2)
            for key, mask in events:
                if mask & selectors.EVENT_WRITE:
                    self._flush(key.data)
                if mask & selectors.EVENT_READ:
                    self._read(key.data)
            now = time.monotonic()
            if events:
                last_answer = now
            elif now - last_answer > ANSWER_SECONDS:
                raise Unreachable(f"{self._load.endpoint}: no answer for {ANSWER_SECONDS:.0f} s")
            while self._reconnect_at and self._reconnect_at[0] <= now:
                self._reconnect_at.pop(0)
                self._connect()
        self._selector.close()
        return began_ns

    def _more(self) -> bool:
        return time.monotonic() < self._deadline and not (self._load.messages and self._next >= self._load.messages)

    def _connect(self) -> None:
        try:
            opened = socket.create_connection((self._load.endpoint.host, self._load.endpoint.port), timeout=2.0)
        except OSError as error:
            self._failure(str(error))
            return
        opened.setblocking(False)
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._selector.register(opened, selectors.EVENT_READ, _Connection(opened))
        self._open += 1

    def _failure(self, text: str) -> None:
        self.first_error = self.first_error or text
        self._reconnect_at.append(time.monotonic() + RECONNECT_SECONDS)
        if not self.acknowledged.numbers and self.failed > 10 * self._load.connections:
            raise Unreachable(f"{self._load.endpoint}: {self.first_error}")
        self.failed += 1

    def _drop(self, connection: _Connection, text: str = "") -> None:
        self._selector.unregister(connection.socket)
        connection.socket.close()
        self._open -= 1
        if text:
            self._failure(text)

    def _read(self, connection: _Connection) -> None:
        try:
            got = connection.socket.recv(65536)
        except BlockingIOError:
            return
        except OSError as error:
            self._drop(connection, str(error))
            return
        if not got:
            self._drop(connection, "closed by the server")
            return
        lines = (connection.buffer + got).split(b"\r\n")
        connection.buffer = lines.pop()
        for line in lines:
            if line[3:4] == b"-":
                if connection.phase == "hello" and line[4:] == b"CHUNKING":
                    connection.phase = "hello, chunking"
                continue
            if line[:1] not in b"23" or not line:
                self._drop(connection, line.decode("utf-8", "replace"))
                return
            connection.answers -= 1
        if connection.answers == 0:
            self._advance(connection)

    def _advance(self, connection: _Connection) -> None:
        """All answers to what was sent are there: send what comes next."""
        phase = connection.phase
        if phase == "greeting":
            connection.phase = "hello"
            self._send(connection, 1, b"EHLO load\r\n" if self._load.smtp else b"LHLO load\r\n")
            return
        if phase == "data":
            connection.phase = "content"
            self._send(connection, 1, *connection.content, b".\r\n")
            return
        if phase.startswith("hello"):
            if phase == "hello":
                self.chunking = False
        elif phase == "content":
            self.acknowledged.note(connection.number, connection.begun_ns, time.monotonic_ns(), connection.size)
        elif phase == "quit":
            self._drop(connection)
            return
        if self._more():
            self._message(connection)
        else:
            connection.phase = "quit"
            self._send(connection, 1, b"QUIT\r\n")

    def _message(self, connection: _Connection) -> None:
        number = self._next
        self._next += 1
        envelope = self._envelopes[number % len(self._envelopes)]
        header = b"Message-ID: <%s>\r\n" % message_id(number, self._load.seed).encode()
        content = (self._plain if self.chunking else self._stuffed)[number % POOL_MESSAGES]
        connection.number = number
        connection.size = len(header) + len(content)
        connection.begun_ns = time.monotonic_ns()
        if self.chunking:
            connection.phase = "content"
            self._send(connection, 3, envelope + b"BDAT %d LAST\r\n" % connection.size + header, content)
        else:
            connection.phase = "data"
            connection.content = (header, content)
            self._send(connection, 3, envelope + b"DATA\r\n")

    def _send(self, connection: _Connection, answers: int, *parts: bytes) -> None:
        connection.answers = answers
        enough = ENVELOPE_ANSWER_BYTES + 1 if answers == 3 else 1
        if enough != connection.enough:
            connection.enough = enough
            connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, enough)
        try:
            sent = connection.socket.sendmsg(parts)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self._drop(connection, str(error))
            return
        for part in parts:
            if sent >= len(part):
                sent -= len(part)
            else:
                connection.unsent.append(memoryview(part)[sent:])
                sent = 0
        if connection.unsent:
            self._selector.modify(connection.socket, selectors.EVENT_READ | selectors.EVENT_WRITE, connection)

    def _flush(self, connection: _Connection) -> None:
        try:
            while connection.unsent:
                sent = connection.socket.send(connection.unsent[0])
                if sent < len(connection.unsent[0]):
                    connection.unsent[0] = connection.unsent[0][sent:]
                    return
                connection.unsent.pop(0)
        except BlockingIOError:
            return
        except OSError as error:
            self._drop(connection, str(error))
            return
        self._selector.modify(connection.socket, selectors.EVENT_READ, connection)


def _result(load: Load, generator: _Generator, began_ns: int, cpu_seconds: float) -> LoadResult:
    done = generator.acknowledged
    from_ns = began_ns + round(load.warm_seconds * 1e9)
    measured = [index for index, begun in enumerate(done.begun_ns) if begun >= from_ns]
    latencies = sorted((done.answered_ns[index] - done.begun_ns[index]) / 1e6 for index in measured)
    last_ns = max((done.answered_ns[index] for index in measured), default=from_ns)
    seconds = (last_ns - from_ns) / 1e9
    per_second = [0] * (int((last_ns - began_ns) / 1e9) + 1)
    for answered in done.answered_ns:
        second = int((answered - began_ns) / 1e9)
        if second < len(per_second):
            per_second[second] += 1
    return LoadResult(
        messages=len(measured),
        bytes=sum(done.sizes[index] for index in measured),
        seconds=seconds,
        messages_per_second=len(measured) / seconds if seconds else 0.0,
        latency_ms_p50=percentile(latencies, 50),
        latency_ms_p99=percentile(latencies, 99),
        latency_ms_max=latencies[-1] if latencies else 0.0,
        per_second=per_second,
        cpu_us_per_message=cpu_seconds * 1e6 / max(1, len(done.numbers)),
        connections=load.connections,
        chunking=generator.chunking,
        failed=generator.failed,
        first_error=generator.first_error,
        accepted_total=len(done.numbers),
    )


def percentile(ascending: list[float], percent: float) -> float:
    """The nearest-rank percentile of an ascending list; 0 when it is empty."""
    if not ascending:
        return 0.0
    return ascending[min(len(ascending) - 1, max(0, -(-round(len(ascending) * percent) // 100) - 1))]


def main(arguments: Iterable[str] | None = None) -> ExitStatus:
    parser = argparse.ArgumentParser(prog="holdfast.drill.workload.lmtp", description="LMTP and SMTP load generator.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--to", action="append", required=True, help="recipient (repeatable; taken in turn)")
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=0.0)
    parser.add_argument("--messages", type=int, default=0)
    parser.add_argument("--warm-seconds", type=float, default=0.0, help="at the begin, left out of the figures")
    parser.add_argument("--size", choices=("4k", "mix"), default="4k")
    parser.add_argument("--large", action="store_true", help="attachments to 5 MB in the mix")
    parser.add_argument("--smtp", action="store_true", help="EHLO instead of LHLO")
    parser.add_argument("--data", action="store_true", help="DATA even when CHUNKING is offered")
    parser.add_argument("--seed", type=int, default=1, help="of the Message-IDs, and of the contents by default")
    parser.add_argument("--pool-seed", type=int, help="of the contents")
    parser.add_argument("--acknowledged", type=Path, help="write Message-ID, begin and answer of every message")
    options = parser.parse_args(None if arguments is None else list(arguments))
    if not options.seconds and not options.messages:
        parser.error("give --seconds or --messages")
    load = Load(
        Endpoint(options.host, options.port),
        tuple(options.to),
        options.connections,
        options.seconds,
        options.messages,
        options.size,
        options.large,
        options.smtp,
        not options.data,
        options.warm_seconds,
        options.seed,
        pool_seed=options.pool_seed,
    )
    result, acknowledged = run(load)
    if options.acknowledged is not None:
        acknowledged.write(options.acknowledged, options.seed)
    print(msgspec.json.encode(result).decode())
    return ExitStatus.DONE


if __name__ == "__main__":
    try:
        sys.exit(main())
    except HoldfastError as problem:
        print(problem, file=sys.stderr)
        sys.exit(problem.exit_status)
