from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.ledger.report import Kind, Surviving, entries, report, to_look_at
from holdfast.ledger.states import TABLE, Facts, Ledger, State, row_of
from holdfast.ledger.views import rows
from tests.ledger.made import ALICE, BOB, FAR, Story


def state(story: Story, recipient: str = ALICE, delivery: str = "d") -> State:
    ledger = story.ledger
    return ledger.row(ledger.messages[delivery], recipient).state


def test_a_message_goes_from_queued_over_delivered_to_durable() -> None:
    story = Story().accept("d")
    assert state(story) is State.QUEUED
    assert "no answer" in story.ledger.row(story.ledger.messages["d"], ALICE).reason
    story.safe()
    assert "shadow is in the log" in story.ledger.row(story.ledger.messages["d"], ALICE).reason
    assert state(story.deliver("d")) is State.DELIVERED
    assert state(story.safe(record=8)) is State.DURABLE
    told = story.ledger.messages["d"]
    proof = story.ledger.proof(told.delivered[ALICE])
    assert proof is not None
    assert proof.record == 8


@pytest.mark.parametrize(
    ("story", "expected"),
    [
        (Story().accept("d").refuse("d"), State.REFUSED),
        (Story().accept("d").refuse("d").accept("d", machine="backup", after="main"), State.QUEUED),
        (Story().accept("d", FAR).safe().settle("d"), State.LEFT),
        (Story().accept("d", FAR).safe().accept("d", FAR, machine="backup", after="main"), State.QUEUED),
        (
            Story().accept("d", FAR).accept("d", FAR, machine="backup", after="main").settle("d", machine="backup"),
            State.RESENT,
        ),
        (Story().accept("d").reject("d").settle("d"), State.LEFT),
        (Story().accept("d", FAR).safe().restart("d"), State.QUEUED),
        (Story().accept("d", FAR).safe().restart("d").settle("d"), State.RESENT),
        (Story().accept("d").reject("d"), State.QUEUED),
        (Story().deliver("d"), State.DELIVERED),
        (Story().settle("d"), State.UNKNOWN),
    ],
)
def test_states(story: Story, expected: State) -> None:
    ledger = story.ledger
    told = ledger.messages["d"]
    recipient = told.recipients[0] if told.recipients else ALICE
    assert ledger.row(told, recipient).state is expected


def test_who_is_reached_by_an_alias_has_it_and_one_of_two_strangers_is_not_guessed() -> None:
    story = Story().accept("d", "info@example.org").deliver("d", ALICE, BOB).settle("d").safe()
    assert state(story, "info@example.org") is State.DURABLE
    both = Story().accept("d", "info@example.org", FAR).deliver("d", ALICE).settle("d").safe()
    assert [state(both, name) for name in ("info@example.org", FAR)] == [State.LEFT, State.LEFT]


def test_what_a_relay_hands_on_in_parts_is_one_message_with_all_its_recipients() -> None:
    story = Story().accept("d", ALICE, BOB, machine="relay")
    story.accept("d", ALICE, queue="P1").accept("d", BOB, queue="P2").deliver("d", ALICE).deliver("d", BOB).safe()
    ledger = story.ledger
    told = ledger.messages["d"]
    assert told.recipients == (ALICE, BOB)
    assert told.first is not None
    assert told.first.machine == "relay"
    assert {ledger.row(told, name).state for name in told.recipients} == {State.DURABLE}
    ledger = Ledger(reversed(story.events))
    assert (told := ledger.messages["d"]).first is not None
    assert told.first.machine == "relay"


@given(st.builds(Facts, *(st.booleans() for _ in Facts._fields)))
def test_every_combination_of_facts_has_a_row(facts: Facts) -> None:
    assert row_of(facts) in TABLE


SURVIVING = Surviving(mailboxes={ALICE: frozenset(), BOB: frozenset()}, shadows=frozenset(), queue=frozenset())


def kind(story: Story, surviving: Surviving, recipient: str = ALICE) -> Kind:
    (entry,) = [entry for entry in entries(story.ledger, surviving) if entry.recipient == recipient]
    return entry.kind


@pytest.mark.parametrize(
    ("story", "surviving", "expected"),
    [
        (Story().accept("d").deliver("d"), SURVIVING._replace(mailboxes={ALICE: frozenset({"d"})}), Kind.PRESENT),
        (Story().accept("d"), SURVIVING._replace(mailboxes={ALICE: frozenset({"d"})}), Kind.PRESENT),
        (
            Story().accept("d").accept("d", machine="backup", after="main").deliver("d", machine="backup"),
            SURVIVING._replace(mailboxes={ALICE: frozenset({"d"})}),
            Kind.RESENT,
        ),
        (Story().accept("d").safe(), SURVIVING._replace(shadows=frozenset({"d"})), Kind.WAITING),
        (Story().accept("d").safe(), SURVIVING._replace(queue=frozenset({"Qdmain"}), machine="main"), Kind.WAITING),
        (Story().accept("d").safe(), SURVIVING, Kind.LOST),
        (Story().accept("d").safe(), SURVIVING._replace(shadows=None), Kind.UNKNOWN),
        (Story().accept("d").deliver("d").safe(), SURVIVING, Kind.REMOVED),
        (Story().accept("d").deliver("d"), SURVIVING._replace(mailboxes={ALICE: None}), Kind.UNKNOWN),
        (Story().accept("d").deliver("d"), SURVIVING._replace(store_at=1), Kind.LOST),
        (Story().accept("d").settle("d"), SURVIVING, Kind.LEFT),
        (
            Story().accept("d").accept("d", machine="backup", after="main").settle("d", machine="backup"),
            SURVIVING,
            Kind.RESENT,
        ),
        (Story().settle("d").reject("d"), SURVIVING, Kind.UNKNOWN),
    ],
)
def test_kinds_of_a_report(story: Story, surviving: Surviving, expected: Kind) -> None:
    assert kind(story, surviving) is expected


def test_what_its_client_sent_again_is_not_lost() -> None:
    """Its gate died before it answered; the second copy has the same half of the id, or another message has not."""
    first, second, other = (half * 16 + print_ * 16 for half, print_ in ("1e", "2e", "3f"))
    seen = SURVIVING._replace(mailboxes={ALICE: frozenset({second, other})})
    again = entries(Story().accept(first).accept(second).deliver(second).safe().ledger, seen)
    assert [entry.kind for entry in again] == [Kind.RESENT, Kind.PRESENT]
    another = entries(Story().accept(first).accept(other).deliver(other).safe().ledger, seen)
    assert [entry.kind for entry in another] == [Kind.LOST, Kind.PRESENT]


def test_what_was_queued_again_names_who_accepted_it_also_when_that_line_is_lost() -> None:
    told = Story().accept("d", machine="backup", after="main").ledger.messages["d"]
    (row,) = rows(Story().accept("d", machine="backup", after="main").ledger, told)
    assert (row.machine, row.requeued_by) == ("main", "backup")


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["accept", "refuse", "deliver", "reject", "settle"]),
            st.sampled_from("abc"),
            st.sampled_from(["main", "backup"]),
        )
    ),
    st.frozensets(st.sampled_from("abc")),
    st.frozensets(st.sampled_from("abc")),
    st.booleans(),
)
def test_sums_add_up_whatever_happened(
    done: list[tuple[str, str, str]], boxes: frozenset[str], shadows: frozenset[str], blind: bool
) -> None:
    story = Story()
    for what, delivery, machine in done:
        getattr(story, what)(delivery, machine=machine)
    surviving = Surviving({ALICE: None if blind else boxes}, shadows, frozenset(), "backup")
    made = report(story.ledger, surviving, at=1, since=0, why="")
    assert sum(made.sums.values()) == made.accepted
    assert made.accepted + made.refused == sum(len(told.recipients) for told in story.ledger.messages.values())


def test_mailboxes_are_looked_at_for_what_was_delivered_and_for_what_still_waits() -> None:
    story = Story().accept("d", "info@example.org").deliver("d", ALICE).settle("d").accept("e", BOB)
    story.accept("f", FAR).settle("f")
    assert to_look_at(story.ledger) == {ALICE, BOB}
