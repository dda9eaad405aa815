"""Which message reached which recipient: a journal of lines in a protected tree, one file an hour.

::

    <directory>/deliveries-2026112221
    I 1795374000 4f3c...9a alice@example.org        intent: about to be delivered
    D 1795374001 4f3c...9a alice@example.org        done: the mail store has it, and the log has what it did
    R 1795374001 4f3c...9a alice@example.org        refused by the mail store: nothing was stored

Time in seconds since 1970, the delivery id, the recipient in percent-encoding (RFC 3986): no blanks, no line ends. A
line is one write(2) with O_APPEND; a line cut short by a crash is skipped and said.

Lines are not synced here. They lie in a protected tree: the barrier that lets a delivery's answer go carries its lines
to a second machine before, and to this one's own disk (``unsynced``). And the tree is captured in the order of time, so
no machine has a delivered message without the intent before it. A ``D`` is written when the barrier behind its delivery
has passed. Earlier, it could be in the log without the message: of a file that is appended to all the time a batch
takes lines that are younger than the events it has. A machine that took over then would never deliver that message.

In memory stand 8 bytes for each delivery of the days kept (a sorted array for each day; 3 million deliveries: 24 MB). A
hit is looked up in the day's files, so a chance match of two digests decides nothing.
"""

from __future__ import annotations

import os
import re
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from enum import Enum, auto
from pathlib import Path
from time import gmtime, strftime
from typing import Final, NamedTuple
from urllib.parse import unquote_to_bytes

from blake3 import blake3

from holdfast.errors import HoldfastError, NoSpace
from holdfast.gate.stream import quoted_address

KEEP_DAYS: Final = 8
"""A queue gives up after 5 days (Postfix, maximal_queue_lifetime); a long weekend of a stopped queue on top."""
_NAME: Final = re.compile(r"deliveries-(\d{8})\d{2}")


class Outcome(Enum):
    UNKNOWN = auto()
    """Never heard of: deliver."""
    INTENDED = auto()
    """It was about to be delivered when something died: the mail store knows."""
    DONE = auto()


class Line(NamedTuple):
    kind: str
    """``I``, ``D`` or ``R``."""
    at_seconds: int
    delivery: bytes
    recipient: bytes


def encode_line(line: Line) -> bytes:
    return b"%s %d %s %s\n" % (
        line.kind.encode(),
        line.at_seconds,
        line.delivery,
        quoted_address(line.recipient).encode(),
    )


def decode_line(data: bytes) -> Line | None:
    """None: not a whole line of ours."""
    fields = data.split(b" ")
    if len(fields) != 4 or fields[0] not in (b"I", b"D", b"R") or not fields[1].isdigit() or len(fields[1]) > 12:
        return None
    return Line(fields[0].decode(), int(fields[1]), fields[2], unquote_to_bytes(fields[3]))


def _key(delivery: bytes, recipient: bytes) -> int:
    return int.from_bytes(blake3(delivery + b"\0" + recipient).digest(length=8), "big")


class Deliveries:
    """The journal in *directory*, read once, then appended to. One writer: the gate of the primary."""

    def __init__(
        self,
        directory: Path,
        wall_seconds: Callable[[], float],
        keep_days: int = KEEP_DAYS,
        wrote: Callable[[Path], None] = lambda path: None,
    ) -> None:
        """*wrote* hears of each file that lines were appended to. Raises HoldfastError (the directory cannot be made
        or read)."""
        self._directory, self._wrote = directory, wrote
        self._wall_seconds = wall_seconds
        self._keep_days = keep_days
        self._days: dict[str, array[int]] = {}
        self._today: set[int] = set()
        self._day = ""
        self._open: dict[tuple[bytes, bytes], int] = {}
        """Intents without an outcome, with their times."""
        self._stored: set[tuple[bytes, bytes]] = set()
        """The mail store has it, and its ``D`` waits for a barrier."""
        self._file = -1
        self._name = ""
        self.damaged_lines = 0
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._load()
        except OSError as error:
            raise HoldfastError(
                f"the journal of deliveries {directory} cannot be read: {error}",
                hint="Without it a repeated delivery would not be noticed. Mend the disk, then start the gate.",
            ) from None

    # -- asking --------------------------------------------------------------------------------------------------------

    def outcome(self, delivery: bytes, recipient: bytes) -> Outcome:
        """What is known of *delivery* to *recipient*. Raises OSError."""
        if (delivery, recipient) in self._stored:
            return Outcome.DONE
        key = _key(delivery, recipient)
        if key in self._today and self._stands_in(self._day, delivery, recipient):
            return Outcome.DONE
        for day, keys in self._days.items():
            at = bisect_left(keys, key)
            if at < len(keys) and keys[at] == key and self._stands_in(day, delivery, recipient):
                return Outcome.DONE
        return Outcome.INTENDED if (delivery, recipient) in self._open else Outcome.UNKNOWN

    def doubtful(self, seconds: float) -> list[tuple[bytes, bytes]]:
        """Delivery ids and recipients of intents without an outcome, of the last *seconds* before the last one."""
        newest = max(self._open.values(), default=0)
        return [pair for pair, at_seconds in self._open.items() if at_seconds >= newest - seconds]

    # -- noting --------------------------------------------------------------------------------------------------------

    def intend(self, delivery: bytes, recipients: tuple[bytes, ...]) -> None:
        """Raises NoSpace, HoldfastError: then it must not be delivered."""
        self._append("I", delivery, recipients)
        self._open.update(dict.fromkeys(((delivery, recipient) for recipient in recipients), int(self._wall_seconds())))

    def stored(self, delivery: bytes, recipients: Iterable[bytes]) -> None:
        """The mail store has it: it is not delivered again by these gates. :meth:`done` follows behind a barrier."""
        self._stored.update((delivery, recipient) for recipient in recipients)

    def unwritten(self, delivery: bytes, recipients: Iterable[bytes]) -> tuple[bytes, ...]:
        """Those that :meth:`stored` told of, and :meth:`done` has not."""
        return tuple(recipient for recipient in recipients if (delivery, recipient) in self._stored)

    def done(self, delivery: bytes, recipients: tuple[bytes, ...]) -> None:
        """A barrier has passed since. Raises NoSpace, HoldfastError: then its answer must be "later"."""
        if recipients:
            self._append("D", delivery, recipients)
            self._today.update(_key(delivery, recipient) for recipient in recipients)
            self._close(delivery, recipients)

    def refused(self, delivery: bytes, recipients: tuple[bytes, ...]) -> None:
        """Raises NoSpace, HoldfastError."""
        if recipients:
            self._append("R", delivery, recipients)
            self._close(delivery, recipients)

    def _close(self, delivery: bytes, recipients: tuple[bytes, ...]) -> None:
        for recipient in recipients:
            self._open.pop((delivery, recipient), None)
            self._stored.discard((delivery, recipient))

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    # -- files ---------------------------------------------------------------------------------------------------------

    def _append(self, kind: str, delivery: bytes, recipients: tuple[bytes, ...]) -> None:
        now = self._wall_seconds()
        data = b"".join(encode_line(Line(kind, int(now), delivery, recipient)) for recipient in recipients)
        try:
            self._roll(now)
            written = os.write(self._file, data)
            self._wrote(self._directory / self._name)
        except OSError as error:
            raise NoSpace(
                f"the journal of deliveries cannot be written: {error}",
                hint=f"Look at the disk of {self._directory}. Messages wait in the queue until then.",
                retry=True,
            ) from None
        if written != len(data):  # a full disk took a part: the rest would look like another line
            self.close()
            self._name = ""
            raise NoSpace(
                "the journal of deliveries was written in part: the disk is full",
                hint="Free space. Messages wait in the queue until then.",
                retry=True,
            )

    def _roll(self, now: float) -> None:
        name = "deliveries-" + strftime("%Y%m%d%H", gmtime(now))
        if name == self._name:
            return
        self.close()
        path = self._directory / name
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        if os.fstat(self._file).st_size and not path.read_bytes().endswith(b"\n"):
            os.write(self._file, b"\n")  # what a crash cut short stays a damaged line of its own
        self._name = name
        if name[11:19] != self._day:
            self._next_day(name[11:19])

    def _next_day(self, day: str) -> None:
        if self._today:
            self._days[self._day] = array("Q", sorted({*self._today, *self._days.get(self._day, ())}))
        self._today = set(self._days.pop(day, ()))
        self._day = day
        self._drop_old()

    def _drop_old(self) -> None:
        oldest = strftime("%Y%m%d", gmtime(self._wall_seconds() - self._keep_days * 86400))
        for path in self._files():
            if path.name[11:19] < oldest:
                path.unlink(missing_ok=True)
        for day in [day for day in self._days if day < oldest]:
            del self._days[day]

    def _files(self) -> list[Path]:
        return sorted(path for path in self._directory.iterdir() if _NAME.fullmatch(path.name))

    def _lines(self, path: Path) -> Iterator[Line]:
        with path.open("rb") as file:
            for data in file:
                line = decode_line(data[:-1]) if data.endswith(b"\n") else None
                if line is not None:
                    yield line
                elif data != b"\n":
                    self.damaged_lines += 1

    def _load(self) -> None:
        """Read all files; then today's are open for more."""
        found: dict[str, set[int]] = {}
        for path in self._files():
            keys = found.setdefault(path.name[11:19], set())
            for line in self._lines(path):
                pair = (line.delivery, line.recipient)
                if line.kind == "I":
                    self._open[pair] = line.at_seconds
                    continue
                self._open.pop(pair, None)
                if line.kind == "D":
                    keys.add(_key(*pair))
        self._days = {day: array("Q", sorted(keys)) for day, keys in found.items() if keys}
        self._drop_old()

    def _stands_in(self, day: str, delivery: bytes, recipient: bytes) -> bool:
        wanted = encode_line(Line("D", 0, delivery, recipient))[3:]  # without its time
        for path in self._directory.glob(f"deliveries-{day}??"):
            data = path.read_bytes()
            at = data.find(wanted)
            while at >= 0:
                begin = data.rfind(b"\n", 0, at) + 1
                if data[begin : begin + 2] == b"D ":
                    return True
                at = data.find(wanted, at + 1)
        return False
