"""`holdfast why`: the cause of an event, from what the machines wrote down."""

from __future__ import annotations

import pytest

from holdfast.node.story import ANEW, ENDED, NOTHING, REFUSES, STOOD_STILL, Line, tell

WHY = "main is not heard for 2.0 s here, nor by relay"
TAKEOVER = [
    Line(98.0, "backup", "decided: take over", "main: ...", {"silent": {"main": 2.0}}),
    Line(100.0, "backup", "takeover begins", WHY, {"machine": "backup", "primary": "main"}),
    Line(100.6, "backup", "takeover: serve", "", {"seconds": 0.5}),
    Line(100.8, "backup", "takeover done", "", {"seconds": 0.8}),
]


def started(at: float, up: float) -> Line:
    return Line(at, "main", "agent started", "version 1", {"machine_up_seconds": up})


def stood_still(until: float, seconds: float) -> Line:
    return Line(until, "main", STOOD_STILL, "", {"seconds": seconds})


@pytest.mark.parametrize(
    ("own", "cause"),
    [
        ([started(10.0, 5.0)], "has not said anything since"),
        ([started(10.0, 5.0), started(130.0, 3.0)], "The machine main died"),
        ([started(95.0, 9.0), started(130.0, 3.0)], "The machine main died"),  # young, when its power was cut
        ([started(95.0, 9.0)], "has not said anything since"),
        ([started(10.0, 5.0), started(103.0, 98.0)], "The agent on main died alone"),
        ([Line(97.0, "main", "agent stopped", "asked to"), started(160.0, 9e9)], "stopped in order"),
        ([stood_still(107.0, 9.0)], "frozen, suspended or starved"),
        ([Line(107.0, "main", STOOD_STILL, "")], "frozen, suspended or starved"),  # for how long is not said
        ([Line(99.5, "main", "stops serving", "the one cut off")], "was cut off from the others"),
        ([Line(99.5, "main", "stops serving", "..."), stood_still(104.0, 1.2)], "was cut off from the others"),
        ([stood_still(95.0, 1.2), Line(99.5, "main", "stops serving", "...")], "was cut off from the others"),
    ],
)
def test_the_cause_of_a_takeover_is_named_by_what_the_old_primary_says(own: list[Line], cause: str) -> None:
    story = tell([*TAKEOVER, *own], None, {})
    assert cause in story.cause
    assert story.headline == f"backup became the primary by a takeover that took 0.8 s: {WHY}"
    assert [line.at for line in story.lines] == sorted(line.at for line in story.lines)


def test_a_machine_that_cannot_be_asked_is_said_to_be_gone() -> None:
    assert "cannot be asked (no answer)" in tell(TAKEOVER, None, {"main": "no answer"}).cause


def test_an_order_by_a_person_is_one() -> None:
    ordered = [Line(100.0, "backup", "takeover begins", "main smells of smoke", {"primary": "main"})]
    assert tell([*ordered, started(130.0, 3.0)], None, {}).cause.startswith("A person ordered it: main smells of smoke")
    planned = [Line(100.0, "backup", "switchover begins", "kernel update", {"primary": "main"})]
    assert tell(planned, None, {}).cause == "A person ordered it: kernel update"


def test_a_primary_that_stopped_by_itself_says_whether_it_was_cut_off_or_stood_still() -> None:
    assert (
        "cut off" in tell([Line(5.0, "main", "stops serving", "...", {"looked_after_seconds": 0.06})], None, {}).cause
    )
    assert (
        "stood still for 3.0 s"
        in tell([Line(5.0, "main", "stops serving", "...", {"looked_after_seconds": 3.0})], None, {}).cause
    )


def test_a_stop_that_led_to_a_takeover_is_told_with_it_and_an_order_just_before_is_not() -> None:
    before = Line(93.0, "main", "switchover begins", "home", {"primary": "backup"})
    stop = Line(99.5, "main", "stops serving", "the one cut off")
    for at in (None, 99.4):
        story = tell([before, stop, *TAKEOVER], at, {})
        assert story.at == 100.0
        assert "was cut off from the others" in story.cause


def test_a_stop_for_want_of_a_log_says_so() -> None:
    stop = Line(5.0, "main", "stops serving", "the log takes nothing, and [failover] without_quorum says to stop then")
    assert "The log took nothing" in tell([stop], None, {}).cause
    refuses = tell([Line(5.0, "main", REFUSES, "the log takes nothing")], None, {})
    assert refuses.headline == "main refuses changes: the log takes nothing"
    assert "without_quorum says read-only" in refuses.cause


def test_a_log_that_begins_anew_says_why() -> None:
    story = tell([Line(5.0, "main", ANEW, "the log is empty, and this machine served last", {})], None, {})
    assert story.headline == "main: the log was founded anew: the log is empty, and this machine served last"
    assert "The log before could not go on: the log is empty" in story.cause


def test_going_on_alone_is_told_as_the_takeover_it_is() -> None:
    alone = [
        Line(100.0, "backup", "takeover begins", "alone: a fire", {"machine": "backup", "primary": "main"}),
        Line(104.0, "backup", "agent started", "version 1", {"machine_up_seconds": 9e9}),
        Line(105.0, "backup", "takeover done", "alone, with a new log, epoch 2", {"epoch": 2}),
    ]
    story = tell(alone, None, {})
    assert story.headline == "backup became the primary by a takeover: alone: a fire"
    assert story.cause.startswith("A person ordered it: alone: a fire. main has not said anything since")


def test_a_machine_whose_certificate_had_ended_may_have_been_refused_by_the_others() -> None:
    ended = Line(50.0, "main", ENDED, "the certificate of main expired on 2026-11-30: issue a new one")
    stop = Line(99.5, "main", "stops serving", "the one cut off", {"looked_after_seconds": 0.06})
    for lines in ([ended, stop], [ended, stop, *TAKEOVER]):
        assert "may have refused it: the certificate of main expired" in tell(lines, None, {}).cause


def test_an_earlier_event_is_found_by_its_time_and_nothing_by_none() -> None:
    later = [Line(9000.0, "main", "switchover begins", "home", {"primary": "backup"})]
    assert tell([*TAKEOVER, *later], 150.0, {}).at == 100.0
    assert tell([*TAKEOVER, *later], None, {}).at == 9000.0
    assert tell([started(1.0, 1.0)], None, {}).headline == NOTHING
