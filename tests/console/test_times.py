"""Times as people write them."""

from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest

from holdfast.console.times import TimeUnclear, looks_like_time, parse_time

BERLIN = ZoneInfo("Europe/Berlin")
NOW_NS = int(datetime(2026, 11, 22, 15, 30, tzinfo=BERLIN).timestamp()) * 10**9  # a Sunday


def berlin(text: str) -> str:
    ns = parse_time(text, NOW_NS, BERLIN)
    return datetime.fromtimestamp(ns / 1e9, UTC).strftime("%Y-%m-%d %H:%M:%S")


@pytest.mark.parametrize(
    ("text", "utc"),
    [
        ("2026-11-21 14:00", "2026-11-21 13:00:00"),
        ("2026-11-21T14:00:05", "2026-11-21 13:00:05"),
        ("2026-07-01 14:00", "2026-07-01 12:00:00"),
        ("2026-11-21T14:00Z", "2026-11-21 14:00:00"),
        ("2026-11-21 14:00 UTC", "2026-11-21 14:00:00"),
        ("2026-11-21T14:00:00+05:30", "2026-11-21 08:30:00"),
        ("now", "2026-11-22 14:30:00"),
        ("yesterday 14:00", "2026-11-21 13:00:00"),
        ("Today 09:15", "2026-11-22 08:15:00"),
        ("14:00", "2026-11-22 13:00:00"),
        ("16:00", "2026-11-21 15:00:00"),
        ("tuesday 8:00", "2026-11-17 07:00:00"),
        ("sun 15:00", "2026-11-22 14:00:00"),
        ("sunday 16:00", "2026-11-15 15:00:00"),
        ("2 hours ago", "2026-11-22 12:30:00"),
        ("1.5 days ago", "2026-11-21 02:30:00"),
        ("@1763733600", "2025-11-21 14:00:00"),
        ("2026-10-25T02:30+02:00", "2026-10-25 00:30:00"),
        ("2026-10-25T02:30+01:00", "2026-10-25 01:30:00"),
    ],
)
def test_a_time_means_one_moment(text: str, utc: str) -> None:
    assert berlin(text) == utc
    assert looks_like_time(text)


def test_parts_of_seconds_are_kept() -> None:
    assert parse_time("2026-11-21T14:00:00.25Z", NOW_NS) % 10**9 == 250_000_000


@pytest.mark.parametrize(
    ("text", "says", "advises"),
    [
        ("2026-11-21", "a whole day", "'2026-11-21 00:00'"),
        ("tuesday", "a whole day", "'tuesday 14:00'"),
        ("2026-03-29 02:30", "skipped", "'2026-03-29 01:30' and '2026-03-29 03:30'"),
        ("2026-10-25 02:30", "twice", "2026-10-25T02:30+02:00 or 2026-10-25T02:30+01:00"),
        ("2026-02-30 10:00", "no day 2026-02-30", "Write"),
        ("2026-11-21 25:00", "no time 25:00", "Write"),
        ("someday 10:00", "is no time", "Write"),
        ("t 10:00", "is no time", "Write"),
        ("", "is no time", "Write"),
        ("soon", "is no time", "Write"),
    ],
)
def test_what_is_not_one_moment_says_what_to_write(text: str, says: str, advises: str) -> None:
    with pytest.raises(TimeUnclear) as caught:
        parse_time(text, NOW_NS, BERLIN)
    assert says in caught.value.message
    assert advises in caught.value.hint


def test_a_snapshots_name_is_no_time() -> None:
    assert not looks_like_time("3f2a91c8")
    assert not looks_like_time("latest")
