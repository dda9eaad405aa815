"""What a node works with: everything real, handed in by whoever builds the agent (agent.py, or a test)."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol

from holdfast.apply.aside import Aside
from holdfast.changes.frame import SegmentKey
from holdfast.changes.names import Incarnation
from holdfast.log.port import Bus, Leaders, Log
from holdfast.node.history import History
from holdfast.node.local import LocalFile
from holdfast.node.serving import Serving
from holdfast.node.settings import Settings
from holdfast.trees.spec import TreeSpec
from holdfast.trees.stat import Owners


class LogDoor(Protocol):
    """How a node gets at the segment's log."""

    async def open(self) -> Log | None:
        """The log as it stands; None when there is none. Raises LogUnavailable."""
        ...

    async def found(self, expected: Incarnation | None, *, ordered: bool) -> Log:
        """A new, empty log, in place of the one named *expected* if there is one. Raises Refused, LogUnavailable.

        *ordered*: a person said so; only then does an old log that a server still keeps go.
        """
        ...

    async def pin_leader(self) -> Leaders:
        """Have the relay lead the log, when there is one and it is up; who leads and who lacks records. Cheap."""
        ...


def boot_seconds() -> float:
    """CLOCK_BOOTTIME of clock_gettime(2)."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@dataclass(frozen=True)
class Clocks:
    wall_seconds: Callable[[], float]
    wall_ns: Callable[[], int]
    monotonic: Callable[[], float]
    steady: Callable[[], float] = boot_seconds
    """Never set, and goes on while the machine is suspended: by it the others' silence is measured."""


@dataclass(frozen=True)
class World:
    settings: Settings
    door: LogDoor
    bus: Bus
    key: SegmentKey | None
    """None on a relay."""
    owners: Owners
    history: History
    local: LocalFile
    serving: Serving
    clocks: Clocks
    find_trees: Callable[[], Awaitable[tuple[TreeSpec, ...]]]
    """Ask the mail software what is to be protected."""
    certificate_warning: Callable[[], str | None]
    """A sentence when this machine's certificate needs care."""
    version: str
    open_files_max: int = 1024
    """This process's limit, getrlimit(2)."""

    @property
    def index_path(self) -> Path:
        return self.settings.state / "index.db"

    def new_aside(self) -> Aside:
        """A folder named by the moment, for what is in the way and must not be deleted."""
        when = datetime.fromtimestamp(self.clocks.wall_seconds()).strftime("%Y-%m-%dT%H-%M-%S.%f")
        return Aside(self.settings.state / "aside" / when)

    def segment_key(self) -> SegmentKey:
        assert self.key is not None, "a relay has no segment key and is never asked for it"
        return self.key
