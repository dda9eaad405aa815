"""Shadows in a side stream of the log: those of relays.

Subjects, below the stream's own prefix; payloads are sealed by whoever hands the stream in (``log.side_seal``)::

    <machine>.<delivery id>_<queue id>.0     the message, whole: one line of JSON, then the rest of its content
    <machine>.<delivery id>_<queue id>.<n>   the n-th part of a content longer than PART_BYTES, from 1; before ``0``
    TAKEN.<machine>.<queue id>               another machine has taken this message over

The line of JSON has ``sender`` and ``recipients`` as in SMTP, ``queue_id``, ``parts`` (how many there are besides the
rest), ``at`` (seconds since 1970 when it was accepted) and ``bytes`` (of the content). Parts without a ``0`` are of a
message that was never accepted. What is settled is purged: so the stream is the list of what is not settled.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import tempfile
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from holdfast.errors import HoldfastError
from holdfast.gate.shadows import DELIVERY, QUEUE_ID, Envelope, Shadow, checked_queue_id, full_disk
from holdfast.log.side import SideMessage, SideStream
from holdfast.log.side_seal import SealBroken

TAKEN: Final = "TAKEN"
"""No machine is called so: names are in lower case."""
WHOLE: Final = "0"
PART_BYTES: Final = 1024 * 1024
"""A message up to here is one record of the stream; the servers take 8 MiB."""
MEMORY_BYTES: Final = 128 * 1024
"""What comes is kept in memory up to here (most mail is shorter), then in a file: 500 sessions take 64 MB."""
PARTS_AT_ONCE: Final = 4
_MACHINE: Final = re.compile(r"[a-z0-9-]{1,32}")
_log = logging.getLogger("holdfast.gate")


class Head(Struct, frozen=True):
    """The line of JSON."""

    sender: str
    recipients: tuple[str, ...]
    queue_id: str
    parts: int
    at: float
    bytes: int

    def envelope(self) -> Envelope:
        return Envelope(self.sender, self.recipients)


class Listed(Struct, frozen=True):
    """A shadow that stands, with what is known of it without its parts."""

    shadow: Shadow
    head: Head


class StreamWriting:
    """A :class:`holdfast.gate.shadows.Writing`."""

    def __init__(
        self, stream: SideStream, shadow: Shadow, envelope: Envelope, spool: Path, at: float, under_way: set[str]
    ) -> None:
        """*under_way*: delivery ids of all that are being written."""
        self._stream, self._shadow, self._envelope, self._spool, self._at = stream, shadow, envelope, spool, at
        self._under_way = under_way
        self.left: Shadow | None = None
        self._bytes = 0
        with full_disk(spool):
            self._content = tempfile.SpooledTemporaryFile(  # noqa: SIM115  # closed by keep or drop
                MEMORY_BYTES, mode="w+b", dir=str(spool)
            )

    def write(self, data: bytes) -> None:
        with full_disk(self._spool):
            self._content.write(data)
        self._bytes += len(data)

    async def keep(self, queue_id: str) -> Shadow:
        name = f"{self._shadow.machine}.{self._shadow.delivery}_{checked_queue_id(queue_id)}"
        shadow = self._shadow._replace(name=name, queue_id=queue_id)
        self.left = shadow
        try:
            with full_disk(self._spool):
                self._content.seek(0)
            parts = max(0, self._bytes - 1) // PART_BYTES
            for first in range(1, parts + 1, PARTS_AT_ONCE):
                numbers = range(first, min(first + PARTS_AT_ONCE, parts + 1))
                pieces = [self._piece() for _ in numbers]
                await asyncio.gather(
                    *(
                        self._stream.publish(f"{shadow.name}.{n}", piece)
                        for n, piece in zip(numbers, pieces, strict=True)
                    )
                )
            head = Head(
                self._envelope.sender, self._envelope.recipients, queue_id, parts, round(self._at, 3), self._bytes
            )
            whole = msgspec.json.encode(head) + b"\n" + self._piece()
            await self._stream.publish(f"{shadow.name}.{WHOLE}", whole)
        finally:
            self.drop()
        self.left = None
        return shadow

    def _piece(self) -> bytes:
        with full_disk(self._spool):
            return self._content.read(PART_BYTES)

    def drop(self) -> None:
        self._under_way.discard(self._shadow.delivery)
        with contextlib.suppress(OSError):  # a full disk: what was not written yet goes anyway
            self._content.close()


class StreamShadows:
    """A :class:`holdfast.gate.shadows.ShadowStore`: all relays' of one segment."""

    def __init__(
        self, stream: SideStream, machine: str, spool: Path, wall_seconds: Callable[[], float] = time.time
    ) -> None:
        """*spool*: a folder on a disk, for long messages while they arrive. Raises HoldfastError."""
        self.machine = machine
        self._stream, self._spool, self._wall_seconds = stream, spool, wall_seconds
        self._under_way: set[str] = set()
        with full_disk(spool):
            spool.mkdir(mode=0o700, parents=True, exist_ok=True)

    def write(self, delivery: str, envelope: Envelope) -> StreamWriting:
        shadow = Shadow("", self.machine, "", delivery)
        at = self._wall_seconds()
        writing = StreamWriting(self._stream, shadow, envelope, self._spool, at, self._under_way)
        self._under_way.add(delivery)
        return writing

    async def standing(self) -> list[Shadow]:
        return [listed.shadow for listed in await self.listed()]

    async def accepted_at(self, shadow: Shadow) -> float:
        message = await self._stream.last(f"{shadow.name}.{WHOLE}")
        return 0.0 if message is None else _listed(message).head.at

    async def listed(self, machine: str = "*") -> list[Listed]:
        """Whole ones, the oldest first. What cannot be read stays where it is, and keeps nobody from the rest.

        Raises LogUnavailable.
        """
        found = []
        try:
            async for message in self._stream.read(f"{machine}.*.{WHOLE}"):
                try:
                    found.append(_listed(message))
                except HoldfastError as error:
                    _log.error("%s", error)
        except SealBroken as error:  # told after all others
            _log.error("%s", error)
        return found

    async def forget_unfinished(self) -> None:
        """Parts of this machine's messages that came to no end: it died, or the log was away. Raises HoldfastError.

        Not those of what was under way when the reading began, or is now: what came to its end in between has been read
        whole, because the reading goes to the stream's end.
        """
        before = set(self._under_way)
        whole: set[str] = set()
        parts: set[str] = set()
        async for message in self._stream.read(f"{self.machine}.*.*"):
            name, _, part = message.subject.rpartition(".")
            (whole if part == WHOLE else parts).add(name)
        under_way = before | self._under_way
        for name in parts - whole:
            if _delivery(name) in under_way:
                continue
            # What began and came to its end while the reading ended has its end there by now.
            if await self._stream.last(f"{name}.{WHOLE}") is not None:
                continue
            await self._stream.purge(f"{name}.*")

    async def read(self, shadow: Shadow) -> tuple[Envelope, bytes]:
        whole = await self._stream.last(f"{shadow.name}.{WHOLE}")
        if whole is None:
            raise Settled(f"{shadow.name} is settled meanwhile")
        head, rest = _split(whole)
        parts = []
        for number in range(1, head.parts + 1):
            part = await self._stream.last(f"{shadow.name}.{number}")
            if part is None:
                raise Settled(f"{shadow.name} is settled meanwhile, or lacks part {number}")
            parts.append(part.payload)
        content = b"".join([*parts, rest])
        if len(content) != head.bytes:
            raise HoldfastError(f"{shadow.name} has {len(content)} of {head.bytes} bytes", hint="It stays there.")
        return head.envelope(), content

    async def settle(self, shadow: Shadow) -> None:
        await self._stream.purge(f"{shadow.name}.*")

    async def take(self, shadow: Shadow) -> None:
        await self._stream.publish(f"{TAKEN}.{shadow.machine}.{shadow.queue_id}", b"", once=f"taken-{shadow.delivery}")
        await self.settle(shadow)

    async def taken_from_here(self) -> frozenset[str]:
        marks = []
        try:
            async for message in self._stream.read(f"{TAKEN}.{self.machine}.*"):
                marks.append(message.subject)
        except SealBroken as error:  # told after all others
            _log.error("%s", error)
        return frozenset(subject.rpartition(".")[2] for subject in marks)

    async def thrown_out(self, queue_ids: Collection[str]) -> None:
        for queue_id in queue_ids:
            await self._stream.purge(f"{TAKEN}.{self.machine}.{queue_id}")


class Settled(HoldfastError):
    """There is nothing to be done about it any more."""


def _split(message: SideMessage) -> tuple[Head, bytes]:
    line, _, rest = message.payload.partition(b"\n")
    try:
        return msgspec.json.decode(line, type=Head), rest
    except msgspec.DecodeError as error:
        raise HoldfastError(f"{message.subject} is no shadow: {error}", hint="Look at it by hand.") from None


def _listed(message: SideMessage) -> Listed:
    name = message.subject.rpartition(".")[0]
    head, _ = _split(message)
    machine, delivery = name.partition(".")[0], _delivery(name)
    # The servers take other marks in a subject, "/" among them; files and queues are named by these.
    plain = _MACHINE.fullmatch(machine) and DELIVERY.fullmatch(delivery) and QUEUE_ID.fullmatch(head.queue_id)
    if not plain or name != f"{machine}.{delivery}_{head.queue_id}":
        raise HoldfastError(
            f"{message.subject!r} is no shadow's name", hint="Which relay wrote it? Look at it by hand."
        )
    return Listed(Shadow(name, machine, head.queue_id, delivery), head)


def _delivery(name: str) -> str:
    return name.partition(".")[2].partition("_")[0]
