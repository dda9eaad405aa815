"""When the next copy is due, under the policy ``interval``. Pure.

Times of the day are read off this machine's clock, as a person does: around a change of the clocks a copy may come an
hour sooner or later, and no more. Distances are from the beginning of one copy to the beginning of the next.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import NamedTuple


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
