"""The journal: one JSON record a line, appended, handed to the kernel line by line.

A line that was written survives the death of the workload's process (not of the machine it runs on: the client machine
of a lab is never cut). A last line cut in half is left out when reading; anything else that does not parse is an error.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import msgspec

from holdfast.drill.checkers.facts import (
    Attempt,
    Begin,
    Doing,
    End,
    Mark,
    Outcome,
    Probe,
    Protocol,
    Record,
    Result,
    Trouble,
)
from holdfast.drill.workload.net import AnswerLost, Declined, NotSent
from holdfast.errors import HoldfastError

_DECODER: Final = msgspec.json.Decoder(Record)


class BadJournal(HoldfastError):
    """A line of a journal is not a record; the message names file and line."""


class Answered(msgspec.Struct):
    """Filled in by whoever carries an operation out: what the server answered (see :class:`Outcome`)."""

    detail: str = ""
    uid_validity: int = 0
    uids: tuple[int, ...] = ()
    touched: tuple[int, ...] = ()
    etag: str = ""


class Journal:
    """Appends records; safe to use from many threads."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        self._lock = threading.Lock()
        self._encoder = msgspec.json.Encoder()
        self._operations = 0
        self.counts: dict[str, int] = {}

    def begin(self, seed: int, settings: str) -> None:
        self._write(Begin(seed, settings, *now()))

    def attempt(self, worker: str, account: str, doing: Doing) -> int:
        """Write down what is about to be asked; its number, for :meth:`outcome`."""
        with self._lock:
            self._operations += 1
            number = self._operations
        self._write(Attempt(number, worker, account, doing, *now()))
        return number

    def outcome(self, operation: int, result: Result, answered: Answered | None = None) -> None:
        done = answered or Answered()
        mono_ns, real_ns = now()
        self._write(
            Outcome(
                operation,
                result,
                mono_ns,
                real_ns,
                done.detail,
                done.uid_validity,
                done.uids,
                done.touched,
                done.etag,
            )
        )
        with self._lock:
            self.counts[result.value] = self.counts.get(result.value, 0) + 1

    @contextlib.contextmanager
    def operation(self, worker: str, account: str, doing: Doing) -> Iterator[Answered]:
        """Record an attempt, and its outcome by how the block ends; errors go on to the caller after that."""
        number = self.attempt(worker, account, doing)
        answered = Answered()
        try:
            yield answered
        except Declined as error:
            answered.detail = error.message
            self.outcome(number, Result.REFUSED, answered)
            raise
        except NotSent as error:
            answered.detail = error.message
            self.outcome(number, Result.NOT_DONE, answered)
            raise
        except AnswerLost as error:
            answered.detail = error.message
            self.outcome(number, Result.UNKNOWN, answered)
            raise
        self.outcome(number, Result.ACKNOWLEDGED, answered)

    def probe(
        self, protocol: Protocol, *, good: bool, began: tuple[int, int], detail: str = "", answered_by: str = ""
    ) -> None:
        """*began* is :func:`now` at the begin of the try; it ends now."""
        seconds = (time.monotonic_ns() - began[0]) / 1e9
        self._write(Probe(protocol, good, *began, seconds, detail, answered_by))

    def trouble(self, worker: str, what: str) -> None:
        self._write(Trouble(worker, what, *now()))

    def mark(self, name: str, detail: str = "") -> None:
        self._write(Mark(name, *now(), detail))

    def end(self) -> None:
        mono_ns, real_ns = now()
        self._write(End(mono_ns, real_ns, dict(self.counts)))

    def close(self) -> None:
        os.close(self._file)

    def _write(self, record: Record) -> None:
        line = self._encoder.encode(record) + b"\n"
        with self._lock:
            written = os.write(self._file, line)
        if written != len(line):
            raise BadJournal(f"only {written} of {len(line)} bytes of a record were written", hint="Is the disk full?")


def now() -> tuple[int, int]:
    """(CLOCK_MONOTONIC, CLOCK_REALTIME) in nanoseconds."""
    return time.monotonic_ns(), time.time_ns()


def read(path: Path) -> list[Record]:
    """All records of the journal at *path*, in order. Raises BadJournal."""
    with path.open("rb") as file:
        return list(decoded(file, str(path)))


def decoded(lines: Iterable[bytes], name: str) -> Iterator[Record]:
    """Records from lines; a last line without its end is what a killed writer leaves, and is left out."""
    for number, line in enumerate(lines, 1):
        if not line.endswith(b"\n"):
            return
        try:
            yield _DECODER.decode(line)
        except (msgspec.DecodeError, ValueError) as error:
            raise BadJournal(f"{name}, line {number}: not a record: {error}") from error
