"""The primary's copies under the policy ``interval``: one when it becomes the primary, then at the set times.

A copy is a scan, with everything that happens during it, closed at one instant (``capture``). It may be held open after
the scan: for a switchover the long part is done while mail is served, and the close is short.

What is stored: nothing. A copy that was cut short is gone on with as the first one after the start; a time that passed
while the agent was down is made good by it, too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime
from typing import Final

from holdfast.changes.names import CapturedPosition
from holdfast.errors import HoldfastError
from holdfast.node.capture import Capture
from holdfast.node.schedule import Schedule
from holdfast.watch.watcher import ScanProgress

LOOK_SECONDS: Final = 1.0
"""How exactly a time of the day is kept."""
HELD_OPEN_SECONDS_MAX: Final = 120.0
"""A switchover that comes no further is over by then: the copy is closed as it is."""


class Copies:
    """Runs on the primary, between :meth:`run` and its cancellation."""

    def __init__(
        self,
        capture: Capture,
        schedule: Schedule,
        wall_seconds: Callable[[], float],
        progress: Callable[[ScanProgress | None], None],
    ) -> None:
        self._capture = capture
        self._schedule = schedule
        self._wall_seconds = wall_seconds
        self._progress = progress
        self._busy = asyncio.Lock()
        self._open_until = 0.0
        """While a copy is held open: when it is closed at the latest."""
        self._tasks: set[asyncio.Task[CapturedPosition]] = set()
        self.copied_at = 0.0
        """The instant of the last whole copy, in seconds since 1970; 0: none since this machine is the primary."""
        self.next_at = 0.0
        """When the next one is due; 0: now."""

    async def run(self, doubt_since_ns: int | None, on_first: Callable[[], None]) -> None:
        """*on_first* is called when the first copy is whole. Ends with the capture, which tells why."""
        try:
            async with self._busy:
                await self._open(doubt_since_ns)
                await self._close()
            on_first()
            while True:
                await asyncio.sleep(LOOK_SECONDS)
                held_open = self._open_until and self._wall_seconds() < self._open_until
                due = self._wall_seconds() >= self.next_at or self._open_until
                if due and not held_open and not self._busy.locked():
                    await self.make()
        except HoldfastError:
            return

    async def make(self) -> CapturedPosition:
        """A copy in which is everything done before this call. It is made whole even if the caller is cancelled."""
        task = asyncio.create_task(self._make())
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return await asyncio.shield(task)

    async def hold_open(self) -> None:
        """Scan, and go on hearing of what happens, until :meth:`make` closes it."""
        async with self._busy:
            if not self._open_until:
                await self._open(None)
            self._open_until = self._wall_seconds() + HELD_OPEN_SECONDS_MAX

    async def _make(self) -> CapturedPosition:
        async with self._busy:
            if not self._open_until:
                await self._open(None)
            return await self._close()

    def _done(self, task: asyncio.Task[CapturedPosition]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # whoever waits for it gets it, and the capture told why it ended

    async def _open(self, doubt_since_ns: int | None) -> None:
        began = self._wall_seconds()
        self.next_at = self._schedule.next_after(datetime.fromtimestamp(began)).timestamp()
        try:
            await self._capture.open_copy(self._progress, doubt_since_ns)
        finally:
            self._progress(None)

    async def _close(self) -> CapturedPosition:
        self._open_until = 0.0
        at = self._wall_seconds()
        position = await self._capture.close_copy()
        self.copied_at = at
        return position


def copy_words(copied_at_ns: int) -> str:
    """Which copy, for people: by its time."""
    if not copied_at_ns:
        return "of a time that is not known"
    return f"of {datetime.fromtimestamp(copied_at_ns / 1e9):%Y-%m-%d %H:%M:%S}"
