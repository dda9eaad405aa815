"""Time left, from how much is done. Pure."""

from __future__ import annotations

from typing import Final

SETTLING_SECONDS: Final = 20.0
"""The rate is that of about the last so many seconds: a slow beginning is forgotten, a short stall is not a trend."""
SHOWN_AFTER_SECONDS: Final = 2.0
"""Earlier an estimate would be a guess."""


class Estimate:
    """Of work of *total* units (bytes, objects); 0 when nobody knows."""

    def __init__(self, total: float, now_seconds: float) -> None:
        self.total = total
        self.done = 0.0
        self._began_seconds = self._last_seconds = now_seconds
        self._rate = 0.0

    def update(self, done: float, now_seconds: float) -> None:
        passed = now_seconds - self._last_seconds
        if passed <= 0:
            self.done = done
            return
        weight = passed / (passed + min(SETTLING_SECONDS, self._last_seconds - self._began_seconds))
        self._rate += weight * ((done - self.done) / passed - self._rate)
        self.done, self._last_seconds = done, now_seconds

    @property
    def per_second(self) -> float:
        return self._rate

    def left_seconds(self) -> float | None:
        """None while nobody can say."""
        known = self.total > 0 and self._rate > 0 and self._last_seconds - self._began_seconds >= SHOWN_AFTER_SECONDS
        return max(self.total - self.done, 0.0) / self._rate if known else None
