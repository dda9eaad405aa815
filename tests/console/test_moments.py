"""Days as they are given to a search."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from holdfast.console.times import TimeUnclear
from holdfast.console.vault_moments import day_or_time


def ns(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * 10**9


@pytest.fixture(autouse=True)
def _in_utc() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", "UTC")
        time.tzset()
        yield
    time.tzset()


TUESDAY_NOON = ns("2026-11-17T12:00:00")


@pytest.mark.parametrize(
    ("text", "begin", "end"),
    [
        ("tuesday", "2026-11-17T00:00:00", "2026-11-17T23:59:59"),
        ("monday", "2026-11-16T00:00:00", "2026-11-16T23:59:59"),
        ("today", "2026-11-17T00:00:00", "2026-11-17T23:59:59"),
        ("2026-11-02", "2026-11-02T00:00:00", "2026-11-02T23:59:59"),
        ("2026-11-02 14:00", "2026-11-02T14:00:00", "2026-11-02T14:00:00"),
    ],
)
def test_a_day_alone_is_all_of_it(text: str, begin: str, end: str) -> None:
    assert day_or_time(text, TUESDAY_NOON) == ns(begin)
    assert day_or_time(text, TUESDAY_NOON, end=True) == ns(end)


def test_what_is_no_day_is_refused() -> None:
    with pytest.raises(TimeUnclear, match="last year"):
        day_or_time("last year", TUESDAY_NOON)
