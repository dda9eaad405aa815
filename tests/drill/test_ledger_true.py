"""The checker of the ledger finds each kind of lie."""

from __future__ import annotations

from typing import Any

from holdfast.drill.checkers.facts import Attempt, Deliver, Outcome, Record, Result
from holdfast.drill.checkers.ledger_true import acknowledged, false_report, false_rows
from holdfast.drill.mail import KINDS, draw

ALICE = "alice@example.test"


def journal(*results: Result) -> list[Record]:
    records: list[Record] = []
    for op, result in enumerate(results):
        records.append(Attempt(op, "smtp-0", "", Deliver(f"m{op}", (ALICE,), "", 1, "plain"), 0, 0))
        records.append(Outcome(op, result, 0, 0))
    return records


def row(name: str, state: str) -> dict[str, Any]:
    return {"message_id": name, "recipient": ALICE, "state": state}


def test_only_what_was_acknowledged_is_asked_for() -> None:
    assert acknowledged(journal(Result.ACKNOWLEDGED, Result.REFUSED, Result.UNKNOWN)) == {("m0", ALICE)}


def test_each_false_state_is_found() -> None:
    taken = {("m0", ALICE)}
    good: list[tuple[str, set[tuple[str, str]], set[str]]] = [
        ("durable", set(), set()),
        ("queued", taken, {"m0"}),
        ("queued", set(), {"m0"}),
    ]
    for state, missing, queued in good:
        assert list(false_rows(taken, [row("m0", state), row("m0", "refused")], missing, queued)) == []
    bad: list[tuple[str, set[tuple[str, str]], str]] = [
        ("durable", taken, "in no mailbox"),
        ("queued", set(), "is in the mailbox"),
        ("refused", set(), "does not know"),
    ]
    for state, missing, why in bad:
        (said,) = false_rows(taken, [row("m0", state)], missing, set())
        assert why in said


def test_a_false_report_is_found() -> None:
    def report(kind: str, accepted: int = 1) -> dict[str, Any]:
        named = [{"message_id": "m0", "recipient": ALICE, "kind": kind, "reason": ""}]
        return {"sums": {kind: 1}, "accepted": accepted, "named": named}

    assert list(false_report(report("lost"), {("m0", ALICE)}, set())) == []
    assert list(false_report(report("waiting"), set(), {"m0"})) == []
    for false in (report("lost"), report("waiting"), report("unknown"), report("re-sent", accepted=2)):
        assert len(list(false_report(false, set(), set()))) == 1


def test_each_ten_runs_have_each_kind_of_fault() -> None:
    assert sorted(draw(number, 5)[0] for number in range(20, 30)) == sorted(KINDS)
    assert draw(7, 5)[0] == draw(7, 5)[0]
    assert draw(7, 5)[1].random() == draw(7, 5)[1].random()
