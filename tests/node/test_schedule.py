"""When the next copy is due."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.errors import Refused
from holdfast.node.schedule import Schedule, moment

DAY = datetime(2026, 11, 30)
TIMES = st.lists(
    st.builds(lambda hour, minute: f"{hour:02}:{minute:02}", st.integers(0, 23), st.integers(0, 59)), min_size=1
)


@pytest.mark.parametrize(
    ("schedule", "began", "due"),
    [
        (Schedule(at=("06:00", "14:00")), DAY.replace(hour=5), DAY.replace(hour=6)),
        (Schedule(at=("06:00", "14:00")), DAY.replace(hour=6), DAY.replace(hour=14)),
        (Schedule(at=("06:00", "14:00")), DAY.replace(hour=14, second=1), DAY.replace(hour=6) + timedelta(days=1)),
        (Schedule(every_hours=4.0), DAY.replace(hour=14), DAY.replace(hour=18)),
    ],
)
def test_the_next_copy_is_due_at_its_time(schedule: Schedule, began: datetime, due: datetime) -> None:
    assert schedule.next_after(began) == due


@given(TIMES, st.datetimes(datetime(2026, 1, 1), datetime(2028, 1, 1)))
def test_a_time_of_the_day_comes_within_a_day_and_after_now(at: list[str], began: datetime) -> None:
    due = Schedule(tuple(at)).next_after(began)
    assert began < due <= began + timedelta(days=1)
    assert f"{due:%H:%M}" in at


@pytest.mark.parametrize(
    ("text", "due"),
    [
        ("03:30", DAY.replace(hour=3, minute=30) + timedelta(days=1)),
        ("23:00", DAY.replace(hour=23)),
        ("2026-12-05 03:30", datetime(2026, 12, 5, 3, 30)),
    ],
)
def test_a_moment_is_the_next_of_its_kind(text: str, due: datetime) -> None:
    assert moment(text, DAY.replace(hour=22)) == due


@pytest.mark.parametrize(
    "text", ["", "3:30", "25:00", "tomorrow", "2026-11-29 03:30", "2036-12-05", "2026-12-05T03:30Z"]
)
def test_what_is_no_moment_to_come_is_refused(text: str) -> None:
    with pytest.raises(Refused):
        moment(text, DAY.replace(hour=22))
