"""Times as people write them: ``--at``. Pure; *now* and *zone* are passed in.

==============================  ===================================================================
``2026-11-21 14:00[:05]``       in the site's zone; with ``T`` instead of the space as well
``2026-11-21T14:00+01:00``      with an offset, or ``Z``
``yesterday 14:00``             ``today``, or a weekday's name: the last such moment before now
``14:00``                       today, or yesterday when that is still to come
``2 hours ago``                 seconds, minutes, hours, days, weeks
``@1763733600``                 seconds since 1970
``now``
==============================  ===================================================================

A date alone is refused: its beginning and its end are two answers. So are hours that a change of the clocks skips, and
those it repeats, unless an offset says which.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Final

from holdfast.errors import ExitStatus, HoldfastError

_DAYS: Final = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_UNITS: Final = {"second": 1, "minute": 60, "hour": 3600, "day": 86_400, "week": 604_800}
_AGO: Final = re.compile(r"(\d+(?:\.\d+)?)\s*(second|minute|hour|day|week)s?\s+ago")
_CLOCK: Final = re.compile(r"(\d{1,2}):(\d{2})(?::(\d{2})(?:\.(\d{1,9}))?)?")
_DATE: Final = re.compile(r"(\d{4})-(\d{2})-(\d{2})")
_FULL: Final = re.compile(r"(\d{4}-\d{2}-\d{2})[t ]+([0-9:.]+)\s*(z|utc|[+-]\d{2}:?\d{2})?")
HINT: Final = "Write 2026-11-21 14:00, 2026-11-21T14:00+01:00, 'yesterday 14:00', '2 hours ago' or now."


class TimeUnclear(HoldfastError):
    """What was written is no time, or more than one."""

    exit_status = ExitStatus.USAGE


def looks_like_time(text: str) -> bool:
    """Whether somebody who wrote *text* meant a time (right or wrong)."""
    plain = text.strip().lower()
    first = re.split(r"[\s]", plain, maxsplit=1)[0]
    words = ("now", "today", "yesterday", *_DAYS)
    return bool(first in words or plain.endswith("ago") or plain.startswith("@") or re.search(r"\d[:-]\d", plain))


def parse_time(text: str, now_ns: int, zone: tzinfo | None = None) -> int:
    """Nanoseconds since 1970. *zone* None: this machine's. Raises TimeUnclear."""
    plain = " ".join(text.strip().lower().split())
    if plain == "now":
        return now_ns
    if plain.startswith("@") and re.fullmatch(r"@\d{1,11}(\.\d{1,9})?", plain):
        whole, _, part = plain[1:].partition(".")
        return int(whole) * 10**9 + int(part.ljust(9, "0") or 0)
    if match := _AGO.fullmatch(plain):
        return now_ns - int(float(match[1]) * _UNITS[match[2]] * 10**9)
    if match := _FULL.fullmatch(plain):
        return _at(_date(match[1], text), match[2], text, zone, match[3] or "")
    if _DATE.fullmatch(plain):
        raise TimeUnclear(
            f"{text!r} is a whole day: which time of it?", hint=f"Write '{plain} 00:00', '{plain} 23:59' or between."
        )
    return _relative(plain, text, now_ns, zone)


def _relative(plain: str, text: str, now_ns: int, zone: tzinfo | None) -> int:
    word, _, clock = plain.rpartition(" ")
    if not _CLOCK.fullmatch(clock):
        if plain in ("today", "yesterday", *_DAYS):
            raise TimeUnclear(f"{text!r} is a whole day: which time of it?", hint=f"Write '{plain} 14:00'.")
        raise TimeUnclear(f"{text!r} is no time", hint=HINT)
    today = datetime.fromtimestamp(now_ns / 1e9, zone).replace(tzinfo=None, hour=0, minute=0, second=0, microsecond=0)
    if word == "yesterday":
        return _at(today - timedelta(days=1), clock, text, zone)
    if word == "today":
        return _at(today, clock, text, zone)
    if word == "":
        at_ns = _at(today, clock, text, zone)
        return at_ns if at_ns <= now_ns else _at(today - timedelta(days=1), clock, text, zone)
    days = [at for at, name in enumerate(_DAYS) if name == word or (len(word) == 3 and name.startswith(word))]
    if len(days) != 1:
        raise TimeUnclear(f"{text!r} is no time", hint=HINT)
    day = today - timedelta(days=(today.weekday() - days[0]) % 7)
    at_ns = _at(day, clock, text, zone)
    return at_ns if at_ns <= now_ns else _at(day - timedelta(days=7), clock, text, zone)


def _date(text: str, whole: str) -> datetime:
    try:
        return datetime.strptime(text, "%Y-%m-%d")
    except ValueError:
        raise TimeUnclear(f"{whole!r}: there is no day {text}", hint=HINT) from None


def _at(day: datetime, clock: str, text: str, zone: tzinfo | None, offset: str = "") -> int:
    match = _CLOCK.fullmatch(clock)
    part = (match[4] or "").ljust(9, "0") if match else ""
    try:
        if match is None:
            raise ValueError
        local = day.replace(hour=int(match[1]), minute=int(match[2]), second=int(match[3] or 0))
    except ValueError:
        raise TimeUnclear(f"{text!r}: there is no time {clock} in a day", hint=HINT) from None
    if offset:
        exact = local.replace(tzinfo=UTC if offset in ("z", "utc") else _offset(offset, text))
        return _ns(exact) + int(part)
    return _ns(_in_zone(local, text, zone)) + int(part)


def _offset(text: str, whole: str) -> tzinfo:
    try:
        made = datetime.strptime(text, "%z").tzinfo
    except ValueError:
        made = None
    if made is None:
        raise TimeUnclear(f"{whole!r}: {text} is no offset", hint=HINT)
    return made


def _in_zone(local: datetime, text: str, zone: tzinfo | None) -> datetime:
    """*local* in *zone*, when there is exactly one such moment."""
    first, second = (
        (moment.astimezone() if zone is None else moment.replace(tzinfo=zone))
        for moment in (local.replace(fold=0), local.replace(fold=1))
    )
    if first.utcoffset() == second.utcoffset():
        return first
    back = datetime.fromtimestamp(first.timestamp(), zone)
    early, late = first.isoformat(timespec="minutes"), second.isoformat(timespec="minutes")
    if back.replace(tzinfo=None, fold=0) != local:
        before, after = sorted((_shown(first, zone), _shown(second, zone)))
        raise TimeUnclear(f"{text!r}: the clocks skipped this hour", hint=f"The nearest are '{before}' and '{after}'.")
    raise TimeUnclear(f"{text!r} came twice, when the clocks were set back", hint=f"Write {early} or {late}.")


def _shown(moment: datetime, zone: tzinfo | None) -> str:
    return datetime.fromtimestamp(moment.timestamp(), zone).strftime("%Y-%m-%d %H:%M")


def _ns(moment: datetime) -> int:
    return int((moment.astimezone(UTC) - datetime(1970, 1, 1, tzinfo=UTC)) / timedelta(seconds=1)) * 10**9
