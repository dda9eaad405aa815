from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from holdfast.errors import HoldfastError, NoSpace
from holdfast.gate.barrier import Position, SharedBarrier
from holdfast.gate.ledger_stream import BUNCH_BYTES, Collector, SentNotes
from holdfast.gate.noting import NotedBarrier
from holdfast.ledger.book import PENDING_MAX, Book, Limits, read
from holdfast.ledger.events import Accepted, Settled
from holdfast.ledger.states import Ledger, State
from holdfast.log.port import LogUnavailable
from holdfast.log.side import LEDGER, Place
from holdfast.log.side_memory import MemorySide
from holdfast.log.side_seal import RelayKey, SealBroken

ALICE = "alice@example.org"


def accepted(notes: SentNotes, delivery: str) -> Accepted:
    return Accepted(at=notes.now(), machine="relay", delivery=delivery, queue=f"Q{delivery}", to=(ALICE,))


class Log:
    def __init__(self) -> None:
        self.passes = True

    async def __call__(self) -> Position:
        if not self.passes:
            raise LogUnavailable("away")
        return Position("L", 3)


def test_a_relays_lines_reach_the_ledger_of_the_primary_once(tmp_path: Path) -> None:
    async def play() -> None:
        side, log = MemorySide(), Log()
        notes = SentNotes("relay", side, lambda: 1_795_348_800.0)
        book = Book(tmp_path / "ledger", "main", lambda: 1_795_348_800.0, Limits(30, 1024**2))
        collector = Collector(side, book, SharedBarrier(NotedBarrier(log, book)))
        notes.note(accepted(notes, "d"))
        side.available = False
        with pytest.raises(LogUnavailable):
            await notes.send()
        side.available = True
        await notes.send()
        log.passes = False
        with pytest.raises(HoldfastError):
            await collector.take()
        assert side.messages == 2  # not in the log: they stay
        log.passes = True
        await collector.take()
        assert side.messages == 0
        ledger = Ledger(read(book.directory))
        told = ledger.messages["d"]
        assert len(told.accepted) == 1  # although its line came twice
        assert ledger.row(told, ALICE).reason == "accepted; its shadow is in the log"
        notes.note(Settled(at=notes.now(), machine="relay", delivery="d", queue="Qd"))
        await notes.send()
        await collector.take()
        ledger = Ledger(read(book.directory))
        assert ledger.row(ledger.messages["d"], ALICE).state is State.LEFT

    asyncio.run(play())


def test_many_lines_go_in_bunches_and_a_restart_numbers_on() -> None:
    async def play() -> None:
        side, clock = MemorySide(), iter(range(1_000, 10**9))
        notes = SentNotes("relay", side, lambda: float(next(clock)))
        for number in range(2_000):
            notes.note(accepted(notes, f"d{number}"))
        last = notes.flush()
        await notes.send()
        sizes = [len(message.payload) async for message in side.read()]
        assert len(sizes) > 2
        assert max(sizes) <= BUNCH_BYTES
        assert SentNotes("relay", side, lambda: float(next(clock))).flush() > last

    asyncio.run(play())


def test_a_stream_that_takes_nothing_stops_acceptance_before_memory_is_full() -> None:
    notes = SentNotes("relay", MemorySide(), lambda: 1.0)
    for _ in range(PENDING_MAX):
        notes.note(accepted(notes, "d"))
    with pytest.raises(NoSpace):
        notes.note(accepted(notes, "d"))


class StoredUnheard(MemorySide):
    """It takes what comes, and says so only when it *answers*."""

    answers = False

    async def publish(self, subject: str, payload: bytes, *, once: str = "") -> Place:
        place = await super().publish(subject, payload, once=once)
        if not self.answers:
            raise LogUnavailable("no answer", sent=True)
        return place


def test_a_line_that_came_after_a_try_without_an_answer_is_not_lost() -> None:
    async def play() -> None:
        side = StoredUnheard()
        notes = SentNotes("relay", side, lambda: 1_795_348_800.0)
        notes.note(accepted(notes, "first"))
        with pytest.raises(LogUnavailable):
            await notes.send()
        notes.note(accepted(notes, "second"))
        side.answers = True
        await notes.send()
        said = b"".join([message.payload async for message in side.read()])
        assert b'"second"' in said
        subjects = [message.subject async for message in side.read()]
        assert len(subjects) == len(set(subjects))  # a purge of what was read takes nothing else

    asyncio.run(play())


def test_a_bunch_that_does_not_open_does_not_bring_the_others_into_the_ledger_again_and_again(tmp_path: Path) -> None:
    async def play() -> None:
        bare = MemorySide()
        side = RelayKey.generate().sealed(bare, LEDGER)
        await bare.publish("relay2.1-1", b"of another key")
        notes = SentNotes("relay", side, lambda: 1_795_348_800.0)
        book = Book(tmp_path / "ledger", "main", lambda: 1_795_348_800.0, Limits(30, 1024**2))
        collector = Collector(side, book, SharedBarrier(NotedBarrier(Log(), book)))
        notes.note(accepted(notes, "d"))
        await notes.send()
        for _ in range(3):
            with pytest.raises(SealBroken):
                await collector.take()
        book.flush()
        assert [event.delivery for event in read(book.directory) if isinstance(event, Accepted)] == ["d"]
        assert bare.messages == 1  # what does not open stays

    asyncio.run(play())
