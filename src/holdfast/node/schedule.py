"""When the next copy is due, under the policy ``interval``. Pure.

Times of the day are read off this machine's clock, as a person does: around a change of the clocks a copy may come an
hour sooner or later, and no more. Distances are from the beginning of one copy to the beginning of the next.
"""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from typing import Final, NamedTuple

from holdfast.errors import Refused

TIME_OF_DAY: Final = r"([01]\d|2[0-3]):[0-5]\d"
AHEAD_MAX: Final = timedelta(days=31)
"""An order for later is rather a year that was mistyped."""


class Schedule(NamedTuple):
    """One of the two: ``settings`` sees to that."""

    at: tuple[str, ...] = ()
    """Times of the day, ``HH:MM``."""
    every_hours: float = 0.0

    def next_after(self, began: datetime) -> datetime:
        """When the copy after the one that began at *began* is due."""
        if not self.at:
            return began + timedelta(hours=self.every_hours)
        days = (began, began + timedelta(days=1))
        return min(moment for day in days for at in self.at if (moment := time_of(at, day)) > began)


def time_of(at: str, day: datetime) -> datetime:
    """The moment *at* (``HH:MM``) of *day*."""
    hour, minute = (int(part) for part in at.split(":"))
    return day.replace(hour=hour, minute=minute, second=0, microsecond=0)


def moment(text: str, now: datetime) -> datetime:
    """What a person means by ``03:30`` (the next time it is that late) or ``2026-12-01 03:30``. Raises Refused."""
    if re.fullmatch(TIME_OF_DAY, text):
        return Schedule(at=(text,)).next_after(now)
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        at = None
    if at is None or at.tzinfo is not None:
        raise Refused(f"{text!r} is no moment", hint="Write 03:30, or 2026-12-01 03:30, by this machine's clock.")
    if not now < at <= now + AHEAD_MAX:
        raise Refused(
            f"{text} is not within the {AHEAD_MAX.days} days to come", hint=f"It is {now:%Y-%m-%d %H:%M} now."
        )
    return at
