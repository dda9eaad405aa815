"""What an answer promises is on this machine's own disk too."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from holdfast.errors import HoldfastError
from holdfast.gate.barrier import Position
from holdfast.gate.deliveries import Deliveries
from holdfast.gate.noting import NotedBarrier
from holdfast.gate.unsynced import Unsynced
from holdfast.ledger.book import Book, Limits
from holdfast.ledger.events import Began


def test_a_barrier_syncs_what_was_written_before_it_and_fails_where_that_fails(tmp_path: Path) -> None:
    unsynced, now = Unsynced(), 1_795_348_800.0
    book = Book(tmp_path / "ledger", "main", lambda: now, Limits(30.0, 2**20), unsynced.wrote)
    journal = Deliveries(tmp_path / "deliveries", lambda: now, wrote=unsynced.wrote)
    passed = []

    async def log() -> Position:
        passed.append(1)
        return Position("log", 7)

    async def play() -> None:
        barrier = NotedBarrier(log, book, unsynced)
        journal.done(b"id", (b"a@example.org",))
        book.note(Began(at=1, machine="main"))
        await barrier()
        assert book.last_safe is not None
        safe = book.last_safe
        journal.done(b"id2", (b"a@example.org",))
        (path,) = (tmp_path / "deliveries").glob("deliveries-*")
        path.rename(path.with_name("away"))
        os.symlink("away", path)  # what is not a file of ours cannot be opened to be synced
        for _ in range(2):  # a failure is not forgotten
            with pytest.raises(HoldfastError, match="not on disk"):
                await barrier()
        assert book.last_safe == safe
        path.unlink()
        path.with_name("away").rename(path)
        await barrier()
        assert len(passed) == 4

    asyncio.run(play())
