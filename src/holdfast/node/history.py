"""The event history of a machine: what was done, when and why, a JSON object a line, oldest first.

Each event is on disk before :meth:`History.record` returns, because the interesting ones stand right before a crash.
Except while that disk takes nothing: events wait in memory then, and are written with the next one it takes. What is
told here (a role ended, a fence failed) is done whether or not it can be written down.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import Struct

HISTORY_BYTES_MAX: Final = 16 * 1024 * 1024
"""Then the file becomes ``.1`` and a new one begins: two files, about 100,000 events."""

WAITING_MAX: Final = 1000
"""A full disk makes an event a second (each new try that fails): the last quarter of an hour, and what led to it."""
_LOG: Final = logging.getLogger(__name__)


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
        self._waiting: deque[Event] = deque(maxlen=WAITING_MAX)

    def record(self, what: str, why: str = "", **details: Any) -> Event:
        """Append one event durably; on a disk that is full or failing it waits in memory."""
        event = Event(self._clock(), what, why, details)
        self._waiting.append(event)
        try:
            self._write(b"".join(msgspec.json.encode(each) + b"\n" for each in self._waiting))
        except OSError as error:
            _LOG.warning("the history cannot be written (%s): %s: %s", error.strerror, what, why)
        else:
            self._waiting.clear()
        return event

    def _write(self, lines: bytes) -> None:
        """All of *lines*, or nothing of them. Raises OSError."""
        if self._path.exists() and self._path.stat().st_size > HISTORY_BYTES_MAX:
            self._path.rename(self._path.with_suffix(self._path.suffix + ".1"))
        fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            size = os.fstat(fd).st_size
            try:
                rest = memoryview(lines)
                while rest:
                    rest = rest[os.write(fd, rest) :]
                os.fsync(fd)
            except OSError:
                os.ftruncate(fd, size)
                raise
        finally:
            os.close(fd)

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
        return [*events, *self._waiting][-last:]
