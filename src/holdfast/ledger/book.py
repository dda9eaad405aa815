"""The ledger's files: append, roll by the hour, drop the oldest, read, erase a person.

One writer: the gates' process of the primary. `holdfast ledger erase` rewrites files beside it; both hold a lock
(flock(2) on a file outside the tree) while they do, some milliseconds.
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import gmtime, strftime
from typing import Final, NamedTuple

import msgspec

from holdfast.errors import HoldfastError, NoSpace
from holdfast.files import PRIVATE, write_once
from holdfast.ledger.events import Accepted, Delivered, Event, Rejected, Safe, decode, encode

PENDING_MAX: Final = 20_000
"""Lines that wait to be written. They wait half a second; so many only when the disk takes nothing."""
ERASED: Final = "(erased)"
_NAME: Final = re.compile(r"ledger-(\d{10})")


class Limits(NamedTuple):
    days: float
    bytes: int


class Written(NamedTuple):
    """Where the log has this machine's events up to *upto*."""

    upto: int
    log: str
    record: int
    at: int


class Book:
    """The files in *directory*, to be written by *machine*."""

    def __init__(
        self,
        directory: Path,
        machine: str,
        wall_seconds: Callable[[], float],
        limits: Limits,
        wrote: Callable[[Path], None] = lambda path: None,
    ) -> None:
        """*wrote* hears of each file that lines were appended to. Raises HoldfastError."""
        self.directory, self.machine, self._wrote = directory, machine, wrote
        self._wall_seconds = wall_seconds
        self._limits = limits
        self._pending: list[bytes] = []
        self._safe: Written | None = None
        self.last_safe: Written | None = None
        self._name = ""
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._n = last_number(directory, machine)
        except OSError as error:
            raise HoldfastError(
                f"the ledger {directory} cannot be read: {error}", hint="Mend the disk, then start the gate."
            ) from None

    def now(self) -> int:
        return int(self._wall_seconds() * 1000)

    def note(self, event: Event) -> None:
        """Take *event* down, with the next number. Raises NoSpace: what it tells of must not be promised."""
        if len(self._pending) >= PENDING_MAX:
            self.flush()
        self._number(event)

    def take(self, lines: bytes) -> None:
        """Whole lines of another machine's, with its numbers. Raises NoSpace."""
        if len(self._pending) >= PENDING_MAX:
            self.flush()
        self._pending.append(lines)

    def _number(self, event: Event) -> None:
        self._n += 1
        self._pending.append(encode(msgspec.structs.replace(event, n=self._n)))

    def flush(self) -> int:
        """Write what was noted; the number of the last event that is written. Raises NoSpace: all of it waits on."""
        if self._safe is not None:
            safe, self._safe = self._safe, None
            self._number(Safe(at=safe.at, machine=self.machine, upto=safe.upto, log=safe.log, record=safe.record))
        if not self._pending:
            return self._n
        data = b"".join(self._pending)
        try:
            with locked(self.directory):
                self._append(data)
        except OSError as error:
            raise NoSpace(
                f"the ledger cannot be written: {error.strerror or error}",
                hint=f"Look at the disk of {self.directory}. Until then messages are answered 451: nothing is lost.",
                retry=True,
            ) from None
        self._pending.clear()
        return self._n

    def safe(self, upto: int, log: str, record: int) -> None:
        """The log has all events up to *upto*. Said with the next flush, not for its own sake."""
        self._safe = self.last_safe = Written(upto, log, record, self.now())

    def _append(self, data: bytes) -> None:
        name = "ledger-" + strftime("%Y%m%d%H", gmtime(self._wall_seconds()))
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        file = os.open(self.directory / name, flags, 0o600)
        try:
            size = os.fstat(file).st_size
            if name != self._name and size and os.pread(file, 1, size - 1) != b"\n":
                data = b"\n" + data  # what a crash cut short stays a damaged line of its own
            if os.write(file, data) != len(data):
                os.ftruncate(file, size)
                raise OSError("the disk is full")
        finally:
            os.close(file)
        self._wrote(self.directory / name)
        if name != self._name:
            self._name = name
            self._bound()

    def _bound(self) -> None:
        """Drop whole hours, the oldest first, until age and bytes are within the limits."""
        oldest = strftime("%Y%m%d%H", gmtime(self._wall_seconds() - self._limits.days * 86400))
        files = book_files(self.directory)
        total = sum(path.stat().st_size for path in files)
        for path in files[:-1]:
            if path.name[7:] >= oldest and total <= self._limits.bytes:
                break
            total -= path.stat().st_size
            path.unlink(missing_ok=True)


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    file = os.open(directory.with_name(directory.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        os.close(file)


def book_files(directory: Path) -> list[Path]:
    """Oldest first. Raises OSError."""
    return sorted(path for path in directory.iterdir() if _NAME.fullmatch(path.name))


def read(directory: Path, since: float = 0.0, holding: frozenset[bytes] = frozenset()) -> Iterator[Event]:
    """Events, oldest file first, of the hours from *since* (seconds since 1970) on; only lines with one of *holding* in
    them (in any case), when there are any. Damaged lines are passed over. Raises OSError."""
    first = strftime("%Y%m%d%H", gmtime(since))
    wanted = [each.lower() for each in holding]
    for path in book_files(directory):
        if path.name[7:] < first:
            continue
        with path.open("rb") as file:
            for line in file:
                if wanted and not any(each in line.lower() for each in wanted):
                    continue
                event = decode(line)
                if event is not None:
                    yield event


def last_number(directory: Path, machine: str) -> int:
    """The number of the last event of *machine*; 0 when there is none. Raises OSError."""
    mine = b'"machine":"%s"' % machine.encode()
    for path in reversed(book_files(directory)):
        numbers = [
            event.n for line in path.open("rb") if mine in line and (event := decode(line)) and event.machine == machine
        ]
        if numbers:
            return max(numbers)
    return 0


def erase(directory: Path, account: str) -> int:
    """Take *account* (an address, as it stands in the lines) out of all files; how many lines named it. What else tells
    of a person goes out of those messages with it: client, login, sender, Message-ID, subject. The messages stay, so
    that sums add up. Raises OSError, NoSpace."""
    changed = 0
    wanted = account.lower()
    for path in book_files(directory):
        with locked(directory):
            lines = path.read_bytes().splitlines(keepends=True)
            made = [_without(line, wanted) for line in lines]
            differing = sum(one != other for one, other in zip(lines, made, strict=True))
            if differing:
                write_once(path, b"".join(made), PRIVATE)
                changed += differing
    return changed


def naming(directory: Path, account: str) -> int:
    """How many lines name *account*. Raises OSError."""
    wanted = account.lower()
    return sum(_without(line, wanted) != line for path in book_files(directory) for line in path.open("rb"))


def _without(line: bytes, account: str) -> bytes:
    event = decode(line)
    if event is None:
        return b"\n" if account.encode() in line.lower() else line
    if not isinstance(event, Accepted | Delivered | Rejected):
        return line
    names = {event.sender, event.login} if isinstance(event, Accepted) else set()
    if account not in {name.lower() for name in (*names, *event.to)}:
        return line
    to = tuple(ERASED if name.lower() == account else name for name in event.to)
    if not isinstance(event, Accepted):
        return encode(msgspec.structs.replace(event, to=to))
    bare = msgspec.structs.replace(event, to=to, client="", login="", message_id="", subject="", sender=ERASED)
    return encode(bare)
