"""When the next copy is due."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.node.schedule import Schedule

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
