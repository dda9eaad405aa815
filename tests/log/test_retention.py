"""What may be forgotten, and who pays for it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from holdfast.changes.names import Incarnation, MachineName, Sequence
from holdfast.log.port import LogState
from holdfast.log.retention import Mark, Reader, Retention, trim_through

INCARNATION = Incarnation("0" * 32)
BACKUP, ARCHIVE = MachineName("backup"), MachineName("archive")
KEEP = Retention(keep_bytes=1000, keep_seconds=3600, hard_bytes=5000, reader_seconds_max=600)


def state(first: int, last: int, stored_bytes: int) -> LogState:
    return LogState(INCARNATION, Sequence(first), Sequence(last), stored_bytes)


def reader(name: MachineName, durable: int, seen_seconds_ago: float = 1) -> Reader:
    return Reader(name, Sequence(durable), seen_seconds_ago)


def test_nothing_is_trimmed_below_the_wish() -> None:
    assert trim_through(state(1, 10, 1000), [], [reader(BACKUP, 10)], KEEP).through == 0
    assert trim_through(state(11, 10, 0), [], [], KEEP).through == 10


def test_bytes_above_the_wish_are_trimmed() -> None:
    assert trim_through(state(1, 20, 2000), [], [reader(BACKUP, 20)], KEEP).through == 10


def test_old_records_are_trimmed_though_they_are_small() -> None:
    marks = [Mark(Sequence(4), 4000), Mark(Sequence(8), 3000)]
    assert trim_through(state(1, 10, 100), marks, [], KEEP).through == 4


def test_a_live_reader_is_waited_for_until_the_hard_limit() -> None:
    waiting = trim_through(state(1, 40, 4000), [], [reader(BACKUP, 40), reader(ARCHIVE, 5)], KEEP)
    assert (waiting.through, waiting.left_behind) == (5, ())
    assert "archive" in waiting.reason
    forced = trim_through(state(1, 100, 10000), [], [reader(BACKUP, 100), reader(ARCHIVE, 5)], KEEP)
    assert (forced.through, forced.left_behind) == (50, (ARCHIVE,))
    assert "limit" in forced.reason


def test_a_reader_long_gone_is_left_behind_at_once_and_named() -> None:
    gone = trim_through(state(1, 40, 4000), [], [reader(BACKUP, 40), reader(ARCHIVE, 5, 601)], KEEP)
    assert (gone.through, gone.left_behind) == (30, (ARCHIVE,))


@given(
    first=st.integers(1, 1000),
    records=st.integers(0, 1000),
    record_bytes=st.integers(0, 100),
    durables=st.lists(st.tuples(st.integers(0, 2000), st.floats(0, 1200)), max_size=4),
    marks=st.lists(st.tuples(st.integers(0, 2500), st.floats(0, 10000)), max_size=4),
)
def test_whatever_comes_the_weights_hold(
    first: int, records: int, record_bytes: int, durables: list[tuple[int, float]], marks: list[tuple[int, float]]
) -> None:
    now = state(first, first + records - 1, records * record_bytes)
    readers = [Reader(MachineName(f"r{place}"), Sequence(at), seen) for place, (at, seen) in enumerate(durables)]
    trim = trim_through(now, [Mark(Sequence(at), age) for at, age in marks], readers, KEEP)
    assert now.first - 1 <= trim.through <= now.last
    behind = {one.name for one in readers if one.durable < trim.through}
    assert set(trim.left_behind) == behind
    if now.stored_bytes <= KEEP.hard_bytes:
        live = [one.durable for one in readers if one.seen_seconds_ago <= KEEP.reader_seconds_max]
        assert trim.through <= max(min(live, default=now.last), now.first - 1)
    else:
        assert (now.last - trim.through) * record_bytes <= KEEP.hard_bytes
