"""Shadows: copies of the messages in this machine's queue, as files in a protected tree.

::

    <directory>/<machine>.<queue id>.<delivery id>     one message
    <directory>/_taken.<machine>.<queue id>            empty: another machine has taken this message over
    <directory>/*.part                                 being written; never protected

A message's file is one line of JSON (``sender``, ``recipients``, both as in SMTP), then the message with CR LF, its
first field ``Holdfast-Delivery``. It is written before Postfix hears that the message is accepted, and the barrier has
passed: so it is on a second machine. It goes when the queue file is gone (*settled*: delivered, or returned to its
sender).

When another machine becomes primary, it puts the shadows that are not its own into its queue, each with its envelope
and its delivery id, and leaves ``_taken``. The first machine, back again, throws those messages out of its own queue. A
recipient of this site who has one already is not given it twice (the LMTP gate); what went to another site in the
moments between its delivery and its settling goes there twice.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple
from urllib.parse import unquote_to_bytes

import msgspec
from msgspec import Struct

from holdfast.errors import HoldfastError, NoSpace
from holdfast.gate.stream import quoted_address

PART: Final = ".part"
TAKEN: Final = "_taken"
TAKEN_DAYS: Final = 60
"""A machine away for longer comes back with a queue that its Postfix has given up (5 days) anyway."""
_NAME: Final = re.compile(r"([a-z0-9-]{1,32})\.([0-9A-Za-z]{5,32})\.([0-9A-Za-z]{1,64})")
_TAKEN: Final = re.compile(r"_taken\.([a-z0-9-]{1,32})\.([0-9A-Za-z]{5,32})")
QUEUE_ID: Final = re.compile(r"[0-9A-Za-z]{5,32}")


class Envelope(Struct, frozen=True, forbid_unknown_fields=True):
    """Addresses without angle brackets, in percent-encoding (RFC 3986): they may be any bytes. A bounce's sender is
    empty."""

    sender: str
    recipients: tuple[str, ...]

    @classmethod
    def of(cls, sender: bytes, recipients: tuple[bytes, ...]) -> Envelope:
        """From what MAIL FROM and RCPT TO said, angle brackets included."""
        return cls(_quoted(sender), tuple(_quoted(recipient) for recipient in recipients))

    def sender_text(self) -> str:
        """As an argument of a program."""
        return os.fsdecode(unquote_to_bytes(self.sender))

    def recipient_texts(self) -> list[str]:
        return [os.fsdecode(unquote_to_bytes(recipient)) for recipient in self.recipients]


class Shadow(NamedTuple):
    path: Path
    machine: str
    queue_id: str
    delivery: str


class Writing:
    """A shadow being written. End it by :meth:`finish` or :meth:`drop`."""

    def __init__(self, directory: Path, machine: str, delivery: str, envelope: Envelope) -> None:
        """Raises NoSpace."""
        self._directory, self._machine, self._delivery = directory, machine, delivery
        self._part = directory / (delivery + PART)
        self._file: BinaryIO | None = None
        with _full(directory):
            self._file = open(self._part, "xb", buffering=256 * 1024, opener=_private)  # noqa: SIM115  # closed by finish or drop
            self._file.write(msgspec.json.encode(envelope) + b"\n")

    def write(self, data: bytes) -> None:
        """Raises NoSpace."""
        assert self._file is not None
        with _full(self._directory):
            self._file.write(data)

    def finish(self, queue_id: str) -> Shadow:
        """It stands whole under its name. Raises NoSpace, HoldfastError (no queue id)."""
        assert self._file is not None
        if not QUEUE_ID.fullmatch(queue_id):
            raise HoldfastError("Postfix told no queue id", hint="Add `i` to milter_end_of_data_macros in main.cf.")
        with _full(self._directory):
            self._file.close()
            path = self._directory / f"{self._machine}.{queue_id}.{self._delivery}"
            self._part.rename(path)
        self._file = None
        return Shadow(path, self._machine, queue_id, self._delivery)

    def drop(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):  # a full disk: it goes anyway
                self._file.close()
            self._part.unlink(missing_ok=True)
            self._file = None


class Shadows:
    """All shadows of this segment, as they stand in *directory*."""

    def __init__(self, directory: Path, machine: str, wall_seconds: Callable[[], float] = time.time) -> None:
        """Raises HoldfastError."""
        self.directory, self.machine = directory, machine
        self._wall_seconds = wall_seconds
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            for path in directory.glob("*" + PART):
                path.unlink()
        except OSError as error:
            raise HoldfastError(f"{directory}: {error}", hint="Mend the disk, then restart the agent.") from None

    def write(self, delivery: str, envelope: Envelope) -> Writing:
        """Begin one. Raises NoSpace."""
        return Writing(self.directory, self.machine, delivery, envelope)

    def standing(self) -> Iterator[Shadow]:
        """Whole ones, of all machines."""
        return standing_in(self.directory)

    def settle(self, shadow: Shadow) -> None:
        """Its queue file is gone."""
        shadow.path.unlink(missing_ok=True)

    def take(self, shadow: Shadow) -> None:
        """It is in this machine's queue now; its first machine is not to deliver it any more."""
        (self.directory / f"{TAKEN}.{shadow.machine}.{shadow.queue_id}").touch(mode=0o600)
        shadow.path.unlink(missing_ok=True)

    def taken_from_here(self) -> frozenset[str]:
        """Queue ids of this machine that another has taken over. Old marks are dropped."""
        found = set()
        for path in self.directory.iterdir():
            match = _TAKEN.fullmatch(path.name)
            if match is None:
                continue
            if self._wall_seconds() - path.stat().st_mtime > TAKEN_DAYS * 86400:
                path.unlink(missing_ok=True)
            elif match[1] == self.machine:
                found.add(match[2])
        return frozenset(found)


def standing_in(directory: Path) -> Iterator[Shadow]:
    """Whole ones, of all machines. Raises OSError."""
    for path in sorted(directory.iterdir()):
        match = _NAME.fullmatch(path.name)
        if match:
            yield Shadow(path, match[1], match[2], match[3])


def read_shadow(path: Path) -> tuple[Envelope, bytes]:
    """The envelope, and the message with CR LF. Raises HoldfastError, OSError."""
    head, _, message = path.read_bytes().partition(b"\n")
    try:
        return msgspec.json.decode(head, type=Envelope), message
    except msgspec.DecodeError as error:
        raise HoldfastError(f"{path} is no shadow: {error}", hint="It stays where it is: look at it by hand.") from None


def _quoted(address: bytes) -> str:
    inside = address[1:-1] if address[:1] == b"<" and address[-1:] == b">" else address
    return quoted_address(inside)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


class _full:
    """Inside, an OSError becomes NoSpace."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError):
            raise NoSpace(
                f"a shadow cannot be written: {error.strerror or error}",
                hint=f"Look at the disk of {self._directory}. Until then nothing is accepted (451).",
                retry=True,
            ) from None
