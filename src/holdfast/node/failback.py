"""Home at a set hour: the most preferred machine becomes the primary by a switchover, if nothing speaks against it.

The hour is read off the wall clock, and only the hour: a switchover is planned, loses nothing, and is refused where the
primary does not agree, so a clock that is wrong moves it to another time of the day and no more. Pure.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final, NamedTuple

from holdfast.node.schedule import time_of

WITHIN: Final = timedelta(minutes=15)
"""When it could not be at the minute: for so long after it. Then the next day."""
LAG_MS_MAX: Final = 1000.0


class Home(NamedTuple):
    """What speaks for it."""

    preferred: bool
    """This is the most preferred machine."""
    standby: bool
    primary_serves: bool
    paused: bool
    ready: bool
    behind_records: int
    lag_ms_p99: float


def due(at: str, now: datetime, last: datetime | None) -> bool:
    """Whether *now* is the time *at* (``HH:MM``), for the first time since *last* it was tried."""
    if not at:
        return False
    begins = time_of(at, now)
    if not begins <= now < begins + WITHIN:
        return False
    return last is None or last < begins


def against(home: Home) -> str:
    """Why not; empty when nothing speaks against it."""
    if not home.preferred:
        return "another machine is preferred"
    if not home.standby:
        return "this machine is no standby"
    if not home.primary_serves:
        return "the primary is not heard, or does not serve: nothing is moved now"
    if home.paused:
        return "automatic takeover is paused"
    if not home.ready:
        return "this standby is not ready to take over"
    if home.behind_records > 1000 or home.lag_ms_p99 > LAG_MS_MAX:
        return f"this copy is {home.behind_records} records behind, {home.lag_ms_p99:.0f} ms at the 99th percentile"
    return ""
