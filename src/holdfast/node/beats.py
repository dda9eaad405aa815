"""Beats: what every agent says of itself four times a second, and what was heard of the others.

Beats are core messages: unordered, unstored, needing no leader. They carry no secrets. They tell people and plans who
is alive, and what they say of hearing (``hearing``) is what a machine goes by when it acts without a person.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from typing import Final

import msgspec
from msgspec import Struct

from holdfast.changes.names import MachineName, SegmentName
from holdfast.log.port import Bus
from holdfast.node.hearing import Hearing, Said

BEAT_SECONDS: Final = 0.25
SILENT_SECONDS: Final = 2.0
"""A machine not heard for so long counts as gone: eight beats."""
BEAT_BYTES_MAX: Final = 16 * 1024
OFFSETS_KEPT: Final = 8
"""Clock comparisons of the last two seconds: the smallest has waited least on its way."""
CLOCK_JUMP_SECONDS: Final = 1.0
"""Clocks further apart than this are set wrong; less is what beats that wait for a busy machine look like."""


class VaultBeat(Struct, omit_defaults=True):
    """One vault, as the machine that feeds it sees it. Times are seconds since 1970; 0: none yet."""

    name: str
    feeding: bool = False
    incarnation: str = ""
    archived: int = 0
    """The vault has the log up to this record."""
    safe_at: float = 0.0
    """What happened up to this moment is in the vault."""
    snapshot_at: float = 0.0
    gaps: int = 0
    """Of the last snapshot: what it should hold and does not."""
    gap: str = ""
    """What the vault will never have, since this agent started; empty when there is nothing."""
    problem: str = ""
    """Why it is not fed at the moment."""


class Beat(Struct, omit_defaults=True):
    """A machine's state in brief. Positions are sequences in ``incarnation``."""

    machine: str
    role: str
    reason: str
    version: str
    epoch: int = 0
    known_epoch: int = -1
    """The latest epoch it knows of from its own disk, as long as the log may be lost; -1: it has not looked yet."""
    incarnation: str = ""
    captured: int = 0
    applied: int = 0
    durable: int = 0
    waiting_bytes: int = 0
    """Captured and not yet in the log."""
    waiting_seconds: float = 0.0
    log_away_seconds: float = -1.0
    log_away_because: str = ""
    lag_ms_p50: float = 0.0
    lag_ms_p99: float = 0.0
    serving: bool = False
    read_only: bool = False
    """It serves, and refuses changes: the log takes nothing."""
    holds_address: bool = False
    progress: str = ""
    """What a long step is at: "seeding 12,345 of 80,000 files"."""
    progress_share: float = -1.0
    warnings: list[str] = []
    totals: dict[str, int] = {}
    paused: str = ""
    """Why nobody may take over without a person here (`holdfast pause`); empty when it is not so."""
    said: Said = Said()
    """Whom this machine hears."""
    vaults: list[VaultBeat] = []
    """Those this machine feeds."""
    trees: str = ""
    """The primary's set of trees (local.trees_digest): a standby with another set must be seeded again."""
    policy: str = ""
    """``[failover] policy``, which must be the same everywhere."""
    copied_at: float = 0.0
    """Under the policy ``interval``, seconds since 1970: the primary's last whole copy, a standby's copy as applied."""
    next_copy_at: float = 0.0
    at: float = 0.0


class Beats:
    """Publishes this machine's beat and remembers the others' last ones."""

    def __init__(
        self,
        bus: Bus,
        segment: SegmentName,
        me: MachineName,
        say: Callable[[], Beat],
        hearing: Hearing,
        steady: Callable[[], float],
        wall_seconds: Callable[[], float],
        on_clock_jump: Callable[[str], None] = lambda machine: None,
    ) -> None:
        """*steady*: the clock of *hearing*. *on_clock_jump*: called with a machine's name when a clock was set."""
        self._bus = bus
        self._prefix = f"hf.{segment}.beat."
        self._me = me
        self._say = say
        self.hearing = hearing
        self._steady = steady
        self._wall_seconds = wall_seconds
        self._on_clock_jump = on_clock_jump
        self._heard: dict[str, tuple[float, Beat]] = {}
        self._offsets: dict[str, deque[float]] = {}
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        works = [self._publish(), *(self._listen(machine) for machine in self.hearing.others)]
        self._tasks = [asyncio.create_task(work) for work in works]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def silent(self) -> dict[str, float]:
        """How long nothing was heard of each other machine; or, never heard, for how long it is listened for."""
        return self.hearing.tell(self._steady()).silent

    @property
    def all(self) -> dict[str, Beat]:
        """The last of each machine, however long ago."""
        return {machine: beat for machine, (_, beat) in self._heard.items()}

    def own(self) -> Beat:
        """What this machine says now."""
        return self._say()

    def last(self, machine: str) -> Beat | None:
        """What was last heard of *machine*, however long ago."""
        heard = self._heard.get(machine)
        return None if heard is None else heard[1]

    def silent_seconds(self, machine: str) -> float | None:
        """How long nothing was heard of *machine*; None when nothing ever was."""
        heard = self._heard.get(machine)
        return None if heard is None else self._steady() - heard[0]

    def alive(self, machine: str) -> bool:
        silent = self.silent_seconds(machine)
        return silent is not None and silent < SILENT_SECONDS

    def clock_ahead_seconds(self, machine: str) -> float:
        """How far our clock is ahead of *machine*'s; 0 when they agree within CLOCK_JUMP_SECONDS, or it is unknown."""
        ahead = min(self._offsets.get(machine, ()), default=0.0)
        return ahead if abs(ahead) > CLOCK_JUMP_SECONDS else 0.0

    def _compare_clocks(self, machine: str, at: float) -> None:
        offset = self._wall_seconds() - at
        known = self._offsets.setdefault(machine, deque(maxlen=OFFSETS_KEPT))
        if known and abs(offset - known[-1]) > CLOCK_JUMP_SECONDS:
            known.clear()
            self._on_clock_jump(machine)
        known.append(offset)

    async def say_now(self) -> None:
        """Publish a beat at once: the role has changed."""
        beat = self._say()
        beat.said = self.hearing.tell(self._steady())
        await self._bus.publish(self._prefix + self._me, msgspec.json.encode(beat))

    async def _publish(self) -> None:
        while True:
            await self.say_now()
            await asyncio.sleep(BEAT_SECONDS)

    async def _listen(self, machine: str) -> None:
        """To one of the site's others; a subscription to all would bring our own beats back, too."""
        async with self._bus.subscribe(self._prefix + machine) as messages:
            async for _, payload in messages:
                if len(payload) > BEAT_BYTES_MAX:
                    continue
                with contextlib.suppress(msgspec.DecodeError):  # a newer agent's beat: it counts as not heard
                    beat = msgspec.json.decode(payload, type=Beat)
                    now = self._steady()
                    self._heard[machine] = (now, beat)
                    self.hearing.hear(machine, beat.said, now)
                    self._compare_clocks(machine, beat.at)
