"""The event history of a machine: what was done, when and why, a JSON object a line, oldest first.

Each event is on disk before :meth:`History.record` returns, because the interesting ones stand right before a crash.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import Struct

HISTORY_BYTES_MAX: Final = 16 * 1024 * 1024
"""Then the file becomes ``.1`` and a new one begins: two files, about 100,000 events."""


class Event(Struct, frozen=True, omit_defaults=True):
    """One step of this machine. ``at`` is seconds since 1970 by this machine's clock: for people, not for order."""

    at: float
    what: str
    why: str = ""
    details: dict[str, Any] = {}


class History:
    """Append-only. A line cut short by a crash is skipped on reading."""

    def __init__(self, path: Path, clock: Callable[[], float]) -> None:
        self._path = path
        self._clock = clock

    def record(self, what: str, why: str = "", **details: Any) -> Event:
        """Append one event durably."""
        event = Event(self._clock(), what, why, details)
        if self._path.exists() and self._path.stat().st_size > HISTORY_BYTES_MAX:
            self._path.rename(self._path.with_suffix(self._path.suffix + ".1"))
        fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(fd, msgspec.json.encode(event) + b"\n")
            os.fsync(fd)
        finally:
            os.close(fd)
        return event

    def events(self, last: int = 100) -> list[Event]:
        """The *last* events, oldest first."""
        lines: list[bytes] = []
        for path in (self._path.with_suffix(self._path.suffix + ".1"), self._path):
            if path.exists():
                lines += path.read_bytes().splitlines()
        events = []
        for line in lines[-last:]:
            try:
                events.append(msgspec.json.decode(line, type=Event))
            except msgspec.DecodeError:
                continue  # cut short by a power cut: the event before it is whole
        return events
