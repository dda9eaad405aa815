"""Keeping the log as long as the site wants it, and no longer: what the primary does about it on a timer.

The decision is ``log.retention``'s. Here: noting how the log grew (for "older than N hours" without wall clocks), who
reads it and how far they have it on disk (from beats), and trimming. A reader left behind is named in the history; it
finds out by itself that its copy does not continue the log, and is seeded.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final

from holdfast.changes.names import MachineName, Sequence
from holdfast.errors import HoldfastError
from holdfast.log.port import Log
from holdfast.log.retention import Mark, Reader, Retention, trim_through
from holdfast.node.beats import Beats
from holdfast.node.world import World

KEEP_SECONDS: Final = 30.0
MARKS_MAX: Final = 5000
"""A mark every 30 s: 41 hours finely. Older marks are thinned, so that any retention fits."""
HARD_SHARE: Final = 0.9
"""Slow readers are left behind here, before the servers drop the oldest records by themselves."""


class LogKeeper:
    """Runs on the primary until cancelled."""

    def __init__(self, world: World, log: Log, beats: Beats) -> None:
        self._world = world
        self._log = log
        self._beats = beats
        self._marks: deque[tuple[float, Sequence]] = deque()
        self._left_behind: set[MachineName] = set()
        settings = world.settings.log
        self._retention = Retention(
            keep_bytes=settings.retention_bytes,
            keep_seconds=settings.retention_hours * 3600,
            hard_bytes=int(settings.limit_bytes * HARD_SHARE),
        )

    async def run(self, every_seconds: float = KEEP_SECONDS) -> None:
        while True:
            try:
                await self.tick()
            except HoldfastError as error:
                if not error.retry:
                    self._world.history.record("the log could not be trimmed", error.message)
                    return  # the log was replaced or damaged: whoever appends finds out and acts
            await asyncio.sleep(every_seconds)

    async def tick(self) -> None:
        """Look, and trim what may be forgotten. Raises LogUnavailable, LogReplaced."""
        now = self._world.clocks.monotonic()
        state = await self._log.state()
        self._marks.append((now, state.last))
        if len(self._marks) > MARKS_MAX:
            self._marks = deque(mark for number, mark in enumerate(self._marks) if number % 2)
        marks = [Mark(sequence, now - at) for at, sequence in self._marks]
        trim = trim_through(state, marks, self._readers(), self._retention)
        through = min(trim.through, Sequence(state.last - 1))  # the last record names the primary: it stays
        for name in set(trim.left_behind) - self._left_behind:
            self._world.history.record(f"{name} is left behind by the log and will be seeded again", trim.reason)
        self._left_behind = set(trim.left_behind)
        if through >= state.first:
            await self._log.trim(through)

    def _readers(self) -> list[Reader]:
        """The standbys as last heard, and the vaults. A standby never heard is seeded when it comes."""
        readers = []
        for machine in self._world.settings.mail_machines:
            beat, silent = self._beats.last(machine.name), self._beats.silent_seconds(machine.name)
            if beat is not None and silent is not None and beat.incarnation == self._log.incarnation:
                readers.append(Reader(MachineName(machine.name), Sequence(beat.durable), silent))
        own = self._beats.own()
        heard = [(own, 0.0)] + [
            (beat, silent)
            for machine in self._world.settings.mail_machines
            if (beat := self._beats.last(machine.name))
            and (silent := self._beats.silent_seconds(machine.name)) is not None
        ]
        for beat, silent in heard:
            for vault in beat.vaults:
                if vault.incarnation == self._log.incarnation and vault.archived:
                    readers.append(Reader(MachineName(f"vault {vault.name}"), Sequence(vault.archived), silent))
        return readers
