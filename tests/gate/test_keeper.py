"""The report of a change comes, whoever makes it in the end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

from holdfast.gate.barrier import Position, SharedBarrier
from holdfast.gate.keeper import Keeper
from holdfast.gate.noting import NotedBarrier
from holdfast.gate.options import GateOptions
from holdfast.ledger.book import Book, Limits
from holdfast.ledger.kept import OWED, kept_reports, read_report

SECONDS_MAX = 60.0


def test_a_report_that_a_machine_did_not_come_to_make_is_made_by_the_next(tmp_path: Path) -> None:
    ledger = tmp_path / "ledger"

    async def on(machine: str, *, patient: bool, until: Callable[[], bool]) -> None:
        """The gates of *machine* until then. *patient*: they end before they come to report."""
        book = Book(ledger, machine, time.time, Limits(days=30, bytes=1024**2))
        options = GateOptions(
            machine=machine,
            agent_socket="",
            barrier_seconds=1.0,
            parent=0,
            ledger=str(ledger),
            ledger_view=str(tmp_path / "view"),
        )
        keeper = Keeper(
            book,
            SharedBarrier(NotedBarrier(_passes, book)),
            options,
            None,
            report_after_seconds=SECONDS_MAX if patient else 0.0,
        )
        keeper.start()
        try:
            await _until(until)
        finally:
            await keeper.stop()

    async def play() -> None:
        await on("main", patient=False, until=lambda: (tmp_path / "view").exists())
        assert not (ledger / OWED).exists(), "the first machine of all follows nobody"
        await on("backup", patient=True, until=(ledger / OWED).exists)
        await on("main", patient=True, until=lambda: "backup" in (ledger / OWED).read_text())
        assert not kept_reports(ledger)
        await on("main", patient=False, until=lambda: not (ledger / OWED).exists())
        [made] = kept_reports(ledger)
        assert read_report(made).why == "main served before; then backup served before"

    asyncio.run(play())


async def _passes() -> Position:
    return Position("L", 5)


async def _until(fact: Callable[[], bool]) -> None:
    async with asyncio.timeout(SECONDS_MAX):
        while not fact():  # noqa: ASYNC110 - files and a process of their own, which set no event
            await asyncio.sleep(0.01)
