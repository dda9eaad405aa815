"""Bandwidth: how fast bytes may go to a store and come from it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Final

PIECE_BYTES: Final = 256 * 1024
"""What goes at once under a limit: below a second for every limit a vault can work with."""


class Pace:
    """At most so many bytes a second, shared by all who hold it; 0 is no limit.

    A connection that stood still earns nothing: the rate is kept over every stretch of time, but for one piece.
    """

    def __init__(
        self,
        bytes_per_second: float = 0.0,
        *,
        clock_seconds: Callable[[], float] = time.monotonic,
        wait: Callable[[float], None] = time.sleep,
    ) -> None:
        assert bytes_per_second >= 0, bytes_per_second
        self.bytes_per_second = bytes_per_second
        self._clock_seconds = clock_seconds
        self._wait = wait
        self._lock = threading.Lock()
        self._free_at_seconds = 0.0

    def __bool__(self) -> bool:
        return self.bytes_per_second > 0

    def spend(self, count: int) -> None:
        """Wait until *count* bytes may go."""
        if not self:
            return
        with self._lock:
            now = self._clock_seconds()
            begins = max(now, self._free_at_seconds)
            self._free_at_seconds = begins + count / self.bytes_per_second
        if begins > now:
            self._wait(begins - now)

    def pieces(self, data: bytes) -> Iterator[memoryview]:
        """*data* in pieces, each when it may go; all at once without a limit."""
        view = memoryview(data)
        step = PIECE_BYTES if self else max(len(view), 1)
        for at in range(0, len(view), step):
            piece = view[at : at + step]
            self.spend(len(piece))
            yield piece


UNLIMITED: Final = Pace()
