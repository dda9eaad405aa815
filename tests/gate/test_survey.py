"""The ledger with a real Dovecot: what was delivered, and what is found in mailboxes."""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path

import pytest

from holdfast.gate.barrier import Position, SharedBarrier
from holdfast.gate.deliveries import Deliveries
from holdfast.gate.noting import NotedBarrier
from holdfast.gate.reporting import made_report
from holdfast.gate.serve import LmtpGate, Place, listening_at
from holdfast.gate.store import DovecotLookup
from holdfast.gate.survey import Survey
from holdfast.ledger.book import Book, Limits, read
from holdfast.ledger.states import Ledger, State
from holdfast.mail.commands import SystemCommands
from tests.gate.test_serve import BOB, Barrier, Site, deliver
from tests.mail.boxes import USER, DovecotBox, free_port

pytestmark = pytest.mark.system


def test_what_was_delivered_is_durable_in_the_ledger_and_present_in_its_report(tmp_path: Path) -> None:
    async def play(box: DovecotBox) -> None:
        await box.service.start()
        book = Book(tmp_path / "ledger", "main", time.time, Limits(days=30, bytes=1024**2))

        async def log() -> Position:
            return Position("L", 5)

        doveadm, port, barrier = ("doveadm", "-c", str(box.config)), free_port(), SharedBarrier(NotedBarrier(log, book))
        gate = LmtpGate(
            server=Place("", "127.0.0.1", box.lmtp_port),
            deliveries=Deliveries(tmp_path / "journal", time.time),
            barrier=barrier,
            in_store=DovecotLookup(SystemCommands(), doveadm),
            flush=Barrier().flush,
            book=book,
        )
        await gate.start(listening_at(Place("", "127.0.0.1", port)))
        try:
            site = Site(gate, Barrier(), port, box)
            assert await asyncio.to_thread(deliver, site, "one", USER, BOB) == {}
            assert await asyncio.to_thread(deliver, site, "two", USER) == {}
            book.flush()
            ledger = Ledger(read(tmp_path / "ledger"))
            assert {
                (told.delivery, name): ledger.row(told, name).state
                for told in ledger.messages.values()
                for name in told.recipients
            } == {("one", USER): State.DURABLE, ("one", BOB): State.DURABLE, ("two", USER): State.DURABLE}
            survey = Survey(SystemCommands(), "main", None, doveadm)
            assert await survey.mailbox(USER, 1.0) == frozenset({"one", "two"})
            assert await survey.mailbox("nobody@elsewhere.example", 1.0) == frozenset()
            await SystemCommands().run([*doveadm, "expunge", "-u", BOB, "mailbox", "INBOX", "all"], timeout_seconds=30)
            made = await made_report(tmp_path / "ledger", survey, book.now(), 1.0, "a test")
            assert {kind: count for kind, count in made.sums.items() if count} == {"present": 2, "removed": 1}
        finally:
            await gate.stop()
            await box.service.stop(force=True)

    with tempfile.TemporaryDirectory(prefix="hf-survey-") as folder:
        asyncio.run(play(DovecotBox(Path(folder))))
