"""The tables of automatic failover: every combination of facts has one meaning, and the dangerous ones are safe."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest

from holdfast.node.beats import Beat
from holdfast.node.hearing import FROZEN_SECONDS, Hearing, Said, confirmations, votes
from holdfast.node.outlook import Rules, Self, confirmed_by, primary_facts, standby_facts, superseded_by, vote
from holdfast.node.roles import Role
from holdfast.node.watchman import (
    MISSING_SECONDS,
    PRIMARY_TABLE,
    SERVE_SECONDS,
    STANDBY_TABLE,
    START_SECONDS,
    TURN_SECONDS,
    Order,
    PrimaryFacts,
    StandbyFacts,
    decide_primary,
    decide_standby,
)


def every(facts: Any) -> list[Any]:
    """Every value of a tuple of booleans."""
    return [facts(*flags) for flags in itertools.product([False, True], repeat=len(facts._fields))]


# -- the tables -------------------------------------------------------------------------------------------------------


def test_every_combination_has_a_row_and_every_row_is_reached() -> None:
    primary = {decide_primary(facts) for facts in every(PrimaryFacts)}
    standby = {decide_standby(facts) for facts in every(StandbyFacts)}
    assert primary == set(PRIMARY_TABLE)
    assert standby == set(STANDBY_TABLE)
    assert all(row.reason for row in (*PRIMARY_TABLE, *STANDBY_TABLE))
    assert all(row.advice for row in STANDBY_TABLE if row.order is Order.ASK), "who is asked is told what to do"


def test_a_primary_that_may_be_replaced_serves_only_while_it_is_confirmed() -> None:
    for facts in every(PrimaryFacts):
        order = decide_primary(facts).order
        if facts.serving and facts.replaceable and not facts.confirmed:
            assert order is Order.STOP
        if facts.serving and facts.superseded:
            assert order is Order.STOP
        if facts.serving and facts.logless:
            assert order is Order.STOP
        elif facts.serving and not facts.superseded and (facts.confirmed or not facts.replaceable):
            assert order is not Order.STOP, "nothing else stops it"


def test_changes_are_refused_while_the_log_is_away_and_taken_when_it_is_back_and_whatever_else_holds_comes_first() -> (
    None
):
    for facts in every(PrimaryFacts):
        order = decide_primary(facts).order
        if order is Order.REFUSE:
            assert facts.serving
            assert facts.read_only_due
            assert not facts.read_only
        if order is Order.ALLOW:
            assert facts.serving
            assert facts.read_only
            assert not facts.read_only_due
        stops = facts.superseded or facts.logless or (facts.replaceable and not facts.confirmed)
        if facts.serving and not stops and facts.read_only_due is not facts.read_only:
            assert order in (Order.REFUSE, Order.ALLOW)


def test_a_primary_that_stopped_serves_again_only_with_a_proof() -> None:
    for facts in every(PrimaryFacts):
        if decide_primary(facts).order is Order.SERVE:
            assert facts.proved
            assert not facts.superseded
            assert facts.confirmed or not facts.replaceable


def test_a_log_that_takes_nothing_stops_a_primary_only_where_that_is_configured_and_after_its_time() -> None:
    hearing, rules, me = (
        Hearing(["backup"], "m", 0.0),
        Rules("main", ("backup",), ("main", "backup"), automatic=False),
        ME,
    )
    for stop, away, logless in [(0.0, 1e9, False), (30.0, 0.0, False), (30.0, 29.0, False), (30.0, 30.0, True)]:
        facts = primary_facts(rules._replace(stop_seconds=stop), me._replace(away_seconds=away), hearing, {}, 1.0)
        assert facts.logless is logless
        facts = primary_facts(rules._replace(read_only_seconds=stop), me._replace(away_seconds=away), hearing, {}, 1.0)
        assert (facts.logless, facts.read_only_due) == (False, logless)


def test_nobody_takes_over_unless_nothing_speaks_against_it() -> None:
    promoted = [facts for facts in every(StandbyFacts) if decide_standby(facts).order is Order.PROMOTE]
    (facts,) = promoted
    assert facts == StandbyFacts(**{name: name != "paused" for name in StandbyFacts._fields})


# -- whom one hears ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("others", range(1, 10))
def test_who_votes_is_among_those_whose_confirmation_the_primary_needs(others: int) -> None:
    assert votes(others) + confirmations(others) == others + 1


def test_a_late_or_buffered_beat_confirms_only_what_it_echoes() -> None:
    main = Hearing(["backup", "relay"], "m1", 0.0)
    backup = Hearing(["main", "relay"], "b1", 0.0)
    assert main.confirmed_seconds(0.0) == math.inf
    backup.hear("main", main.tell(1.0), 1.1)
    echo = backup.tell(1.2)
    main.hear("backup", echo, 9.0)
    assert main.silent_seconds("backup", 9.0) == 0.0
    assert main.confirmed_seconds(9.0) == 8.0


def test_an_echo_of_an_earlier_run_of_the_agent_confirms_nothing() -> None:
    main = Hearing(["backup"], "second", 0.0)
    main.hear("backup", Said("b1", 5.0, {"main": ("first", 1e9)}, {}), 1.0)
    assert main.confirmed_seconds(1.0) == math.inf


def test_with_three_others_two_must_confirm() -> None:
    main = Hearing(["a", "b", "c"], "m", 0.0)
    main.hear("a", Said("a", 1.0, {"main": ("m", 10.0)}, {}), 10.0)
    assert main.confirmed_seconds(10.0) == math.inf
    main.hear("b", Said("b", 1.0, {"main": ("m", 9.0)}, {}), 10.0)
    assert main.confirmed_seconds(10.0) == 1.0


def test_who_was_frozen_does_not_take_its_own_sleep_for_the_others_silence() -> None:
    backup = Hearing(["main"], "b", 0.0)
    backup.hear("main", Said("m", 1.0), 0.5)
    now = 0.5
    while now < 2.0:
        now += 0.5
        assert not backup.look(now)
    assert backup.look(now + FROZEN_SECONDS + 0.1)
    assert backup.silent_seconds("main", now + FROZEN_SECONDS + 0.1) == 0.0


# -- from what is heard to the facts -----------------------------------------------------------------------------------

RULES = Rules("backup", ("main", "relay"), ("main", "backup"), automatic=True)
ME = Self(Role.STANDBY, 1, "main", applied=100)


def gone(**changes: object) -> tuple[Hearing, dict[str, Beat], float]:
    """Backup's ears 2.1 s after main's last beat; the relay misses it too. *changes*: to main's last beat."""
    hearing = Hearing(RULES.others, "b", 0.0)
    now = 10.0
    hearing.look(now)
    hearing._listening_since = 0.0
    main = Beat("main", "primary", "", "1", epoch=1)
    for name, value in changes.items():
        setattr(main, name, value)
    hearing.hear("main", Said("m", 1.0), now - 2.1)
    relay = Beat("relay", "relay", "", "1", epoch=1, said=Said("r", 5.0, {}, {"main": 1.9}))
    hearing.hear("relay", relay.said, now - 0.2)
    return hearing, {"main": main, "relay": relay}, now


def order(rules: Rules, me: Self, heard: tuple[Hearing, dict[str, Beat], float]) -> tuple[Order, str]:
    row = decide_standby(standby_facts(rules, me, *heard))
    return row.order, row.reason


def test_a_primary_missed_by_standby_and_relay_is_taken_over() -> None:
    assert order(RULES, ME, gone())[0] is Order.PROMOTE


def test_not_while_the_relay_hears_it_or_is_not_heard_itself() -> None:
    hearing, beats, now = gone()
    beats["relay"].said = Said("r", 5.0, {}, {"main": 0.2})
    assert "others still hear" in order(RULES, ME, (hearing, beats, now))[1]
    hearing, beats, now = gone()
    assert order(RULES, ME, (hearing, beats, now + 1.0))[0] is Order.ASK


@pytest.mark.parametrize(
    ("said", "what"),
    [
        ({"waiting_seconds": 11.0}, "not in the log"),
        ({"log_away_seconds": 30.0}, "not in the log"),
        ({"waiting_bytes": 1 << 30}, "not in the log"),
        ({"paused": "maintenance"}, "paused"),
    ],
)
def test_what_the_primary_said_last_can_forbid_it(said: dict[str, object], what: str) -> None:
    decided, reason = order(RULES, ME, gone(**said))
    assert decided is Order.ASK
    assert what in reason


def test_a_person_is_asked_when_the_policy_or_the_machines_or_too_many_takeovers_say_so() -> None:
    assert "person" in order(RULES._replace(automatic=False), ME, gone())[1]
    assert "third" in order(RULES._replace(others=("main",)), ME, gone())[1]
    assert "too many" in order(RULES, ME._replace(takeovers=(8.0, 8.1, 8.2)), gone())[1]
    assert "not whole" in order(RULES, ME._replace(role=Role.SEEDING), gone())[1]
    assert "not whole" in order(RULES, ME._replace(blocked="disk full"), gone())[1]


def test_a_primary_never_heard_is_given_time_to_start() -> None:
    hearing = Hearing(RULES.others, "b", 0.0)
    relay = Beat("relay", "relay", "", "1", said=Said("r", 5.0, {}, {"main": 30.0}))
    for now, expected in ((30.0, Order.NOTHING), (START_SECONDS + 1, Order.PROMOTE)):
        hearing.hear("relay", relay.said, now)
        assert order(RULES, ME, (hearing, {"relay": relay}, now))[0] is expected


def test_of_two_standbys_the_furthest_goes_first_then_the_preferred_and_the_other_when_it_does_not() -> None:
    rules = Rules("backup", ("main", "third", "relay"), ("main", "backup", "third"), automatic=True)
    for applied, first in ((99, True), (100, True), (101, False)):
        hearing, beats, now = gone()
        beats["third"] = Beat("third", "standby", "", "1", applied=applied, said=Said("t", 1.0, {}, {"main": 2.0}))
        hearing.hear("third", beats["third"].said, now)
        decided = order(rules, ME, (hearing, beats, now))
        assert (decided[0] is Order.PROMOTE) is first
        later = now + TURN_SECONDS
        for name in ("third", "relay"):
            hearing.hear(name, beats[name].said, later)
        assert order(rules, ME, (hearing, beats, later))[0] is Order.PROMOTE


def test_a_primary_knows_that_it_was_replaced_by_anybodys_epoch_but_not_by_an_old_word() -> None:
    rules = Rules("main", ("backup", "relay"), ("main", "backup"), automatic=True)
    hearing = Hearing(rules.others, "m", 0.0)
    relay = Beat("relay", "relay", "", "1", epoch=2)
    hearing.hear("relay", relay.said, 5.0)
    assert superseded_by(rules, hearing, {"relay": relay}, 1, 5.1) == "relay"
    assert superseded_by(rules, hearing, {"relay": relay}, 2, 5.1) == ""
    assert superseded_by(rules, hearing, {"relay": relay}, 1, 50.0) == ""


def test_a_pause_counts_for_the_primary_only_when_every_standby_has_heard_of_it_from_the_primary() -> None:
    rules = Rules("main", ("backup", "relay"), ("main", "backup"), automatic=True)
    me = Self(Role.PRIMARY, 1, "main", serving=True, paused=True, paused_at=3.0)
    hearing = Hearing(rules.others, "m", 0.0)
    backup = Beat("backup", "standby", "", "1", paused="work", said=Said("b", 1.0, {"main": ("m", 2.9)}, {}))
    hearing.hear("backup", backup.said, 3.2)
    assert primary_facts(rules, me, hearing, {"backup": backup}, 9.0).replaceable
    backup.said = Said("b", 1.0, {"main": ("m", 3.1)}, {})
    hearing.hear("backup", backup.said, 3.4)
    assert not primary_facts(rules, me, hearing, {"backup": backup}, 9.0).replaceable
    backup.paused = ""
    assert primary_facts(rules, me, hearing, {"backup": backup}, 9.0).replaceable


def test_a_vote_needs_the_silence_of_the_moment_it_is_asked_for() -> None:
    hearing, _, now = gone()
    assert vote(hearing, "main", now)
    assert confirmed_by(RULES, hearing, "main", ["relay"], now) == ""
    assert "would have to miss" in confirmed_by(RULES, hearing, "main", [], now)
    hearing.hear("main", Said("m", 2.0), now)
    assert "heard again" in confirmed_by(RULES, hearing, "main", ["relay"], now)
    assert SERVE_SECONDS < MISSING_SECONDS
