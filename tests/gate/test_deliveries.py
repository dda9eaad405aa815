from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.errors import NoSpace
from holdfast.gate.deliveries import Deliveries, Line, Outcome, decode_line, encode_line

NOON = 1_795_348_800.0  # 2026-11-22 12:00 UTC
DAY = 86400.0
ALICE, BOB = b"alice@example.org", b"bob@example.org"


class Clock:
    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@given(st.sampled_from("IDR"), st.integers(0, 2**33), st.binary(max_size=300))
def test_lines_hold_any_recipient(kind: str, at: int, recipient: bytes) -> None:
    line = Line(kind, at, b"0a1b", recipient)
    data = encode_line(line)
    assert data.count(b"\n") == 1
    if recipient:
        assert decode_line(data[:-1]) == line


@given(st.binary(max_size=80))
def test_any_bytes_are_a_line_or_none(data: bytes) -> None:
    decode_line(data)


def test_what_was_noted_is_known_also_after_a_restart(tmp_path: Path, clock: Clock) -> None:
    journal = Deliveries(tmp_path, clock)
    journal.intend(b"id1", (ALICE, BOB))
    assert journal.outcome(b"id1", ALICE) is Outcome.INTENDED
    journal.done(b"id1", (ALICE,))
    journal.refused(b"id1", (BOB,))
    journal.intend(b"id2", (BOB,))
    for seen in (journal, Deliveries(tmp_path, clock)):
        assert seen.outcome(b"id1", ALICE) is Outcome.DONE
        assert seen.outcome(b"id1", BOB) is Outcome.UNKNOWN
        assert seen.outcome(b"id2", BOB) is Outcome.INTENDED
        assert seen.outcome(b"id2", ALICE) is Outcome.UNKNOWN
        assert seen.outcome(b"id", ALICE) is Outcome.UNKNOWN


def test_days_are_kept_and_then_forgotten_with_their_files(tmp_path: Path, clock: Clock) -> None:
    journal = Deliveries(tmp_path, clock, keep_days=3)
    for day in range(5):
        clock.now = NOON + day * DAY
        journal.done(b"day%d" % day, (ALICE,))
    known = [journal.outcome(b"day%d" % day, ALICE) is Outcome.DONE for day in range(5)]
    assert known == [False, True, True, True, True]
    assert len(list(tmp_path.iterdir())) == 4
    again = Deliveries(tmp_path, clock, keep_days=3)
    assert [again.outcome(b"day%d" % day, ALICE) is Outcome.DONE for day in range(5)] == known


def test_a_clock_set_back_an_hour_loses_nothing(tmp_path: Path, clock: Clock) -> None:
    journal = Deliveries(tmp_path, clock)
    journal.done(b"before", (ALICE,))
    for step in (-3600.0, -2 * DAY, +DAY):
        clock.now += step
        journal.done(b"at%d" % int(clock.now), (ALICE,))
        assert journal.outcome(b"before", ALICE) is Outcome.DONE
        assert journal.outcome(b"at%d" % int(clock.now), ALICE) is Outcome.DONE


def test_a_line_cut_short_harms_no_other(tmp_path: Path, clock: Clock) -> None:
    journal = Deliveries(tmp_path, clock)
    journal.done(b"id1", (ALICE,))
    journal.close()
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes() + b"D 17953488")
    journal = Deliveries(tmp_path, clock)
    journal.done(b"id2", (ALICE,))
    again = Deliveries(tmp_path, clock)
    assert again.damaged_lines == 1
    assert again.outcome(b"id1", ALICE) is Outcome.DONE
    assert again.outcome(b"id2", ALICE) is Outcome.DONE


def test_what_the_store_has_is_not_delivered_again_and_is_written_down_behind_the_barrier(
    tmp_path: Path, clock: Clock
) -> None:
    journal = Deliveries(tmp_path, clock)
    journal.intend(b"id", (ALICE, BOB))
    journal.stored(b"id", (ALICE,))
    assert journal.outcome(b"id", ALICE) is Outcome.DONE
    assert Deliveries(tmp_path, clock).outcome(b"id", ALICE) is Outcome.INTENDED  # as another machine would see it
    assert journal.unwritten(b"id", (ALICE, BOB)) == (ALICE,)
    journal.done(b"id", (ALICE,))
    assert journal.unwritten(b"id", (ALICE, BOB)) == ()
    assert Deliveries(tmp_path, clock).outcome(b"id", ALICE) is Outcome.DONE


def test_two_digests_that_agree_by_chance_decide_nothing(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("holdfast.gate.deliveries._key", lambda delivery, recipient: 7)
    journal = Deliveries(tmp_path, clock)
    journal.done(b"id1", (ALICE,))
    assert journal.outcome(b"id1", ALICE) is Outcome.DONE
    assert journal.outcome(b"id1", BOB) is Outcome.UNKNOWN
    assert journal.outcome(b"id2", ALICE) is Outcome.UNKNOWN
    journal.intend(b"id2", (ALICE,))
    assert journal.outcome(b"id2", ALICE) is Outcome.INTENDED


def test_a_journal_that_cannot_be_written_says_so(tmp_path: Path, clock: Clock) -> None:
    journal = Deliveries(tmp_path, clock)
    (tmp_path / "deliveries-2026112212").mkdir()
    with pytest.raises(NoSpace, match="cannot be written"):
        journal.intend(b"id", (ALICE,))
    assert journal.outcome(b"id", ALICE) is Outcome.UNKNOWN
