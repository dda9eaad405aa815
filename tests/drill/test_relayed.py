"""How long a relay accepted nothing, by its senders' journal."""

from __future__ import annotations

import math

from holdfast.drill.checkers.facts import Attempt, Deliver, Outcome, Record, Result
from holdfast.drill.relayed import longest_pause

MESSAGE = Deliver("id", ("a@example.org",), "digest", 1, "plain")


def journal(*answers: tuple[float, Result]) -> list[Record]:
    records: list[Record] = []
    for op, (seconds, result) in enumerate(answers):
        at = int(seconds * 1e9)
        records += [Attempt(op, "smtp-0", "", MESSAGE, at, at), Outcome(op, result, at, at)]
    return records


def test_the_longest_time_between_two_acceptances_counts_whatever_failed_in_between() -> None:
    took, failed = Result.ACKNOWLEDGED, Result.REFUSED
    assert longest_pause(journal((1, took), (1.5, took), (2, failed), (4, took), (4.2, took))) == 2.5
    assert longest_pause(journal((4, took), (1, took), (2, took))) == 2.0


def test_a_relay_that_accepted_nothing_paused_for_ever() -> None:
    assert longest_pause(journal((1, Result.REFUSED))) == math.inf
