"""The ledger's keeper in the gates' process: what waits is written, the agent gets figures, a takeover gets its report.

A report is made when the gates begin on a machine and the ledger says that another machine, or another log, was there
before: after a takeover, a switchover, a restore. It stands in the ledger's folder, ``report-<time>.json``, and so on
every mail machine. Until it is made it is *owed*, by a file beside it (``owed.json``): a machine that dies, yields or
restarts its gates before that leaves it to whoever serves next, and one report tells of all these changes.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from holdfast.errors import HoldfastError
from holdfast.files import write_once
from holdfast.gate.accept import ShadowMilter
from holdfast.gate.barrier import SharedBarrier
from holdfast.gate.options import GateOptions
from holdfast.gate.tasks import watched
from holdfast.ledger.book import Book, read
from holdfast.ledger.events import Began, Restarted, Safe
from holdfast.ledger.kept import Figures, figures_json, owe_report

TICK_SECONDS: Final = 0.5
FIGURES_SECONDS: Final = 5.0
REPORT_AFTER_SECONDS: Final = 5.0
"""What was adopted needs a moment from the queue to the mailboxes."""
ADOPTING_SECONDS_MAX: Final = 600.0
_log = logging.getLogger("holdfast.gate")


class Before(Struct, frozen=True):
    """Who kept this ledger last, and in which log."""

    machine: str = ""
    log: str = ""
    at: int = 0
    """The last line, in milliseconds since 1970."""

    @classmethod
    def of(cls, directory: Path) -> Before:
        """Raises OSError."""
        machine, log, at = "", "", 0
        for event in read(directory, holding=frozenset({b'"type":"began"', b'"type":"safe"'})):
            machine, at = event.machine, event.at
            if isinstance(event, Safe):
                log = event.log
        return cls(machine, log, at)


class Keeper:
    """Of one event loop."""

    def __init__(
        self,
        book: Book,
        barrier: SharedBarrier,
        options: GateOptions,
        milter: ShadowMilter | None,
        *,
        report_after_seconds: float = REPORT_AFTER_SECONDS,
    ) -> None:
        self._book, self._barrier, self._options, self._milter = book, barrier, options, milter
        self._report_after_seconds = report_after_seconds
        self._figures = Path(options.ledger_view)
        self._postfix_since = 0.0
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Raises HoldfastError."""
        try:
            before = Before.of(self._book.directory)
        except OSError as error:
            raise HoldfastError(f"the ledger cannot be read: {error}", hint="Mend the disk.") from None
        self._postfix_since = before.at / 1000
        self._book.note(Began(at=self._book.now(), machine=self._book.machine))
        self._tasks = [watched(self._tick()), watched(self._report_change(before))]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        try:
            self._book.flush()
        except HoldfastError as error:
            _log.error("%s", error)

    async def _tick(self) -> None:
        waited = FIGURES_SECONDS
        while True:
            try:
                self._note_restart()
                self._book.flush()
                if waited >= FIGURES_SECONDS:
                    waited = 0.0
                    write_once(self._figures, figures_json(self._now()))
            except HoldfastError as error:
                _log.error("%s", error)
            await asyncio.sleep(TICK_SECONDS)
            waited += TICK_SECONDS

    def _note_restart(self) -> None:
        """A Postfix that died may have sent what is still in its queue. Raises NoSpace."""
        if self._milter is None:
            return
        started = self._milter.queue.started_at()
        if started <= self._postfix_since:
            return
        self._postfix_since = started
        at, machine = self._book.now(), self._book.machine
        for shadow in self._milter.standing:
            self._book.note(Restarted(at=at, machine=machine, delivery=shadow.delivery, queue=shadow.queue_id))

    def _now(self) -> Figures:
        milter = self._milter
        return Figures(
            accepted=milter.counts.shadowed if milter else 0,
            refused=milter.counts.later if milter else 0,
            waiting=milter.waiting if milter else 0,
            adopted=milter.counts.adopted if milter else 0,
        )

    async def _report_change(self, before: Before) -> None:
        """Nothing when this machine goes on with its own ledger in its own log, and no report is owed."""
        while True:
            try:
                await self._barrier.wait()
                break
            except HoldfastError:
                await asyncio.sleep(TICK_SECONDS)
        try:
            why = owe_report(self._book.directory, self._changed(before))
        except HoldfastError as error:
            _log.error("%s", error)
            why = self._changed(before)
        if not why:
            return
        waited = 0.0
        while waited < ADOPTING_SECONDS_MAX and self._milter is not None and self._milter.adopting_any:
            await asyncio.sleep(TICK_SECONDS)
            waited += TICK_SECONDS
        await asyncio.sleep(self._report_after_seconds)
        await self._report(why)

    def _changed(self, before: Before) -> str:
        now = self._book.last_safe
        if not before.machine or now is None or (before.machine, before.log) == (self._book.machine, now.log):
            return ""
        return f"{before.machine} served before" if before.machine != self._book.machine else "the log is another one"

    async def _report(self, why: str) -> None:
        """In a process of its own: to read a day's ledger takes seconds, and messages wait for this one."""
        argv = [sys.executable, "-m", "holdfast.gate.reporting", msgspec.json.encode(self._options).decode(), why]
        process = await asyncio.create_subprocess_exec(*argv, stdin=asyncio.subprocess.DEVNULL)
        try:
            status = await process.wait()
        except asyncio.CancelledError:
            process.kill()
            raise
        if status:
            _log.error("no report of the change (%s): `holdfast ledger report` makes one", why)
