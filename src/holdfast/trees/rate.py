"""A rate limit: how long to wait before the next bytes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

BURST_SECONDS: Final = 0.25
"""What may go at once, as seconds of the rate: short enough to leave other work its share, long enough for one part."""


class TokenBucket:
    """*bytes_per_second* on average; 0 is no limit. The clock is monotonic seconds. Not for use by two threads at once.

    It lends: an amount of any size goes through, and those after it wait for it.
    """

    def __init__(self, bytes_per_second: float, clock: Callable[[], float]) -> None:
        self.bytes_per_second = bytes_per_second
        self._clock = clock
        self._free_at = clock()

    def take(self, size_bytes: int) -> float:
        """Seconds to wait before *size_bytes* may be moved; the caller waits, however it does that."""
        if self.bytes_per_second <= 0:
            return 0.0
        now = self._clock()
        start = max(self._free_at, now - BURST_SECONDS)
        self._free_at = start + size_bytes / self.bytes_per_second
        return max(start - now, 0.0)
