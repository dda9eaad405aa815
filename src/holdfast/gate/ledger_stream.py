"""The ledger of a machine without trees: a relay's lines go through a side stream to the primary, which writes them.

A message of the stream is a bunch of lines; its subject is the relay's name and the numbers of the first and the last:
a bunch that may stand there already, and is sent again with what came meanwhile, is another one. The primary appends
them to its ledger, waits for the barrier, and purges them. Dead in between, it takes them once more: a reader of the
ledger does not mind. While there is no primary they wait in the stream.

A relay does not wait for it: that a message is accepted rests on its shadow. Dead before it has sent its last half
second, it leaves messages of which the ledger hears when they are queued on a mail machine.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

import msgspec

from holdfast.errors import HoldfastError, NoSpace
from holdfast.gate.barrier import SharedBarrier
from holdfast.ledger.book import PENDING_MAX, Book
from holdfast.ledger.events import Event, Safe, encode
from holdfast.log.side import LEDGER, SideShape, SideStream
from holdfast.log.side_seal import SealBroken

SHAPE: Final = SideShape(LEDGER, 256 * 1024**2, age_seconds_max=30 * 86400.0, refuses_when_full=False)
"""400,000 messages while no primary takes them; then the oldest go: mail must not wait for its ledger."""
SEND_SECONDS: Final = 0.5
TAKE_SECONDS: Final = 2.0
BUNCH_BYTES: Final = 128 * 1024
_log = logging.getLogger("holdfast.gate")


class SentNotes:
    """The :class:`holdfast.ledger.port.Notes` of a relay. Of one event loop."""

    def __init__(self, machine: str, stream: SideStream, wall_seconds: Callable[[], float]) -> None:
        self.machine = machine
        self._stream, self._wall_seconds = stream, wall_seconds
        self._n = self.now()
        """No file knows the last number: the clock begins above it."""
        self._pending: list[tuple[int, bytes]] = []

    def now(self) -> int:
        return int(self._wall_seconds() * 1000)

    def note(self, event: Event) -> None:
        if len(self._pending) >= PENDING_MAX:
            raise NoSpace(
                "the ledger's stream takes nothing",
                hint="The log has no majority. Until then messages are answered 451: nothing is lost.",
                retry=True,
            )
        self._n += 1
        self._pending.append((self._n, encode(msgspec.structs.replace(event, n=self._n))))

    def flush(self) -> int:
        """What waits is sent by :meth:`run`: nothing rests on it."""
        return self._n

    async def run(self) -> None:
        """For ever."""
        while True:
            await asyncio.sleep(SEND_SECONDS)
            try:
                await self.send()
            except HoldfastError as error:
                _log.warning("the ledger's lines wait: %s", error)

    async def send(self) -> None:
        """All that waits. Raises HoldfastError: the rest waits on."""
        place, upto = 0, 0
        while bunch := self._next_bunch():
            subject = f"{self.machine}.{bunch[0][0]}-{bunch[-1][0]}"
            place = await self._stream.publish(subject, b"".join(line for _, line in bunch), once=subject)
            upto = bunch[-1][0]
            del self._pending[: len(bunch)]
        if place:  # in the primary's files they are behind its own lines; that they are safe, they say themselves
            said = Safe(at=self.now(), machine=self.machine, n=self._n + 1, upto=upto, log=LEDGER, record=place)
            self._n += 1
            subject = f"{self.machine}.{self._n}"
            await self._stream.publish(subject, encode(said), once=subject)

    def _next_bunch(self) -> list[tuple[int, bytes]]:
        size = 0
        bunch: list[tuple[int, bytes]] = []
        for number, line in self._pending:
            size += len(line)
            if bunch and size > BUNCH_BYTES:
                break
            bunch.append((number, line))
        return bunch


class Collector:
    """Takes relays' lines into the ledger of the primary."""

    def __init__(self, stream: SideStream, book: Book, barrier: SharedBarrier) -> None:
        self._stream, self._book, self._barrier = stream, book, barrier

    async def run(self) -> None:
        """For ever."""
        while True:
            try:
                await self.take()
            except HoldfastError as error:
                _log.warning("relays' lines of the ledger wait: %s", error)
            await asyncio.sleep(TAKE_SECONDS)

    async def take(self) -> int:
        """All that stands there; how many bunches. Raises HoldfastError."""
        subjects = []
        broken: SealBroken | None = None
        try:
            async for message in self._stream.read():
                self._book.take(message.payload)
                subjects.append(message.subject)
        except SealBroken as error:  # told after all others: these go into the ledger once, whatever stays there
            broken = error
        if subjects:
            await self._barrier.wait()
        for subject in subjects:
            await self._stream.purge(subject)
        if broken is not None:
            raise broken
        return len(subjects)
