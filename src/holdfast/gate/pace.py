"""How fast a relay hands on what it has held: as fast as the primary answers. Pure.

The relay gives free a number of messages, the *window*, and keeps so many on their way. How long one is on its way
follows from how many are and how many come through (Little's law). While that stays short the window grows by half;
where it gets long, it shrinks; where nothing comes through at all, it goes back to the smallest, and the relay rests.
"""

from __future__ import annotations

from typing import Final, NamedTuple

WINDOW_MIN: Final = 20
"""One for each of Postfix's connections to one destination (default_destination_concurrency_limit)."""
WINDOW_MAX: Final = 2000
"""A tenth of what Postfix keeps in memory (qmgr_message_active_limit)."""
WINDOW_START: Final = 200
SLOW_SECONDS: Final = 5.0
"""A message on its way for longer than this: the primary has enough."""
REST_SECONDS: Final = 5.0
STALLED_SECONDS: Final = 10.0
"""Nothing came through for so long."""
SMOOTH: Final = 0.3
"""Weight of the latest rate in the mean: some ten looks back."""


class Pace(NamedTuple):
    """*rate*: messages a second, smoothed. *idle_seconds*: since something came through."""

    window: int = WINDOW_START
    rate: float = 0.0
    idle_seconds: float = 0.0

    def looked(self, done: int, on_way: int, seconds: float) -> Pace:
        """After *seconds* in which *done* came through, *on_way* are still on their way."""
        latest = done / seconds
        rate = latest if not self.rate else self.rate + SMOOTH * (latest - self.rate)
        if not done and on_way:
            idle = self.idle_seconds + seconds
            window = WINDOW_MIN if idle >= STALLED_SECONDS else self.window
            return Pace(window, rate, idle)
        if rate and on_way / rate > SLOW_SECONDS:
            return Pace(max(WINDOW_MIN, self.window * 2 // 3), rate)
        return Pace(min(WINDOW_MAX, self.window * 3 // 2), rate)

    @property
    def stalled(self) -> bool:
        return self.idle_seconds >= STALLED_SECONDS

    def seconds_left(self, messages: int) -> float | None:
        """None: nobody can say."""
        return messages / self.rate if self.rate > 0 else None
