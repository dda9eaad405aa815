"""What became of every message, by what the ledger says *and* what is really there. Pure; its sums add up.

After a takeover or a restore somebody asks: of all that was accepted, what do we have? Each recipient of each accepted
message falls into one of seven kinds, by the first row of ``TABLE`` that applies.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Final, NamedTuple

from msgspec import Struct

from holdfast.ledger.book import ERASED
from holdfast.ledger.events import fingerprint_of
from holdfast.ledger.states import Facts, Ledger, State, Told, row_of


class Kind(StrEnum):
    PRESENT = "present"
    RESENT = "re-sent"
    WAITING = "waiting"
    REMOVED = "removed"
    """Delivered, and no longer in the mailbox: people delete mail, and rules file it elsewhere."""
    LEFT = "left"
    LOST = "lost"
    UNKNOWN = "unknown"


class Surviving(NamedTuple):
    """What is there now."""

    mailboxes: Mapping[str, frozenset[str] | None]
    """Recipient -> delivery ids of the messages in the mailboxes; None: they could not be looked at."""
    shadows: frozenset[str] | None
    """Delivery ids of the shadows of all machines, relays included; None: they could not all be read."""
    queue: frozenset[str]
    """Queue ids of the messages in this machine's queue."""
    machine: str = ""
    store_at: int = 0
    """The moment whose state the store was restored to (milliseconds since 1970); 0: it was not restored."""


class Case(NamedTuple):
    """What the table asks."""

    facts: Facts
    there: bool | None
    """Whether a mailbox has it; None: not known."""
    waits: bool | None
    """Whether a shadow or a queue file is there; None: not known."""
    too_young: bool
    """Delivered after the moment to which the store was restored."""
    erased: bool
    came_again: bool = False
    """The same message was accepted later, under another id: its client had not heard that it was accepted."""


class Row(NamedTuple):
    kind: Kind
    applies: Callable[[Case], bool]
    reason: str


TABLE: Final = (
    Row(
        Kind.RESENT,
        lambda c: bool(c.there) and c.facts.again,
        "in the mailbox, once; queued again after its machine was replaced",
    ),
    Row(Kind.PRESENT, lambda c: bool(c.there), "in the mailbox"),
    Row(Kind.WAITING, lambda c: bool(c.waits) and not c.facts.delivered, "accepted, and waits in the queue"),
    Row(
        Kind.PRESENT,
        lambda c: c.facts.delivered and c.erased,
        "delivered; whose it is was erased, so that no mailbox can be looked at",
    ),
    Row(
        Kind.UNKNOWN,
        lambda c: c.facts.delivered and c.there is None,
        "delivered, and the mailbox could not be looked at",
    ),
    Row(
        Kind.LOST,
        lambda c: c.facts.delivered and c.too_young,
        "delivered after the moment that the store was restored to",
    ),
    Row(
        Kind.REMOVED,
        lambda c: c.facts.delivered,
        "delivered, and no longer there: its owner deleted it, or a rule filed it elsewhere",
    ),
    Row(
        Kind.LEFT,
        lambda c: c.facts.rejected and c.facts.settled,
        "the mail store refused it: returned to its sender",
    ),
    Row(
        Kind.RESENT,
        lambda c: c.facts.again and c.facts.settled,
        "sent once more after its machine was replaced: it may have come twice, or was returned (Postfix's log says)",
    ),
    Row(
        Kind.RESENT,
        lambda c: c.facts.restarted and c.facts.settled and not c.facts.elsewhere,
        "left the queue after Postfix was started anew: if it had gone just before, it went twice",
    ),
    Row(Kind.LEFT, lambda c: c.facts.settled, "left the queue: handed on, or returned; Postfix's log says which"),
    Row(
        Kind.UNKNOWN,
        lambda c: c.facts.queued and c.waits is None,
        "accepted, not delivered, and the shadows could not be read",
    ),
    Row(
        Kind.RESENT,
        lambda c: c.facts.queued and c.came_again,
        "its client did not hear that it was accepted and sent it again: that copy has another delivery id",
    ),
    Row(
        Kind.LOST,
        lambda c: c.facts.queued,
        "accepted, and there is no copy: no mailbox, queue or shadow has it",
    ),
    Row(Kind.UNKNOWN, lambda c: True, "only a part of its story is in the ledger"),
)


class Entry(Struct, frozen=True):
    """One message for one recipient."""

    delivery: str
    message_id: str
    recipient: str
    accepted_at: int
    machine: str
    """That accepted it."""
    kind: Kind
    state: State
    reason: str


class Report(Struct, frozen=True):
    """*accepted*: the entries' number, and the sum of *sums*. *refused*: told 451, in no sum."""

    at: int
    since: int
    why: str
    machine: str
    accepted: int
    messages: int
    refused: int
    sums: dict[str, int]
    named: tuple[Entry, ...]
    """Those that are not simply present or left."""


NAMED: Final = frozenset({Kind.RESENT, Kind.WAITING, Kind.LOST, Kind.UNKNOWN})
NAMED_MAX: Final = 10_000
"""In a report that is kept; the sums hold all."""


def entries(ledger: Ledger, surviving: Surviving, since: int = 0) -> list[Entry]:
    """Of messages accepted since (milliseconds), oldest first."""
    made = []
    latest: dict[tuple[str, str], int] = {}
    for told in ledger.messages.values():
        for recipient in told.recipients:
            copies = (fingerprint_of(told.delivery), recipient)
            latest[copies] = max(told.at, latest.get(copies, 0))
    for told in sorted(ledger.messages.values(), key=lambda told: told.at):
        if told.at < since:
            continue
        for recipient in told.recipients:
            facts = ledger.facts(told, recipient)
            state = row_of(facts)
            if state.state is State.REFUSED:
                continue
            case = _case(told, recipient, facts, surviving)
            case = case._replace(came_again=latest[fingerprint_of(told.delivery), recipient] > told.at)
            row = next(row for row in TABLE if row.applies(case))
            first = told.first
            made.append(
                Entry(
                    told.delivery,
                    first.message_id if first else "",
                    recipient,
                    told.at,
                    first.by if first else "",
                    row.kind,
                    state.state,
                    row.reason,
                )
            )
    return made


def report(ledger: Ledger, surviving: Surviving, *, at: int, since: int, why: str) -> Report:
    """Raises AssertionError when the sums do not add up: then this program is wrong, and so would be its report."""
    found = entries(ledger, surviving, since)
    sums = {str(kind): 0 for kind in Kind}
    sums.update(Counter(str(entry.kind) for entry in found))
    counted = [told for told in ledger.messages.values() if told.at >= since]
    refused = sum(
        row_of(ledger.facts(told, recipient)).state is State.REFUSED
        for told in counted
        for recipient in told.recipients
    )
    whole = sum(len(told.recipients) for told in counted)
    if sum(sums.values()) + refused != whole or set(sums) != {str(kind) for kind in Kind}:
        raise AssertionError(f"the ledger's sums do not add up: {sums}, {refused} refused, of {whole}")
    return Report(
        at=at,
        since=since,
        why=why,
        machine=surviving.machine,
        accepted=whole - refused,
        messages=len({entry.delivery for entry in found}),
        refused=refused,
        sums=sums,
        named=tuple(entry for entry in found if entry.kind in NAMED)[:NAMED_MAX],
    )


def sums_words(sums: Mapping[str, int]) -> str:
    """``12 present, 1 re-sent, 0 lost, 0 unknown``: what is nought is left out, but for what people fear."""
    always = (Kind.PRESENT, Kind.LOST, Kind.UNKNOWN)
    return ", ".join(f"{sums[kind]:,} {kind}" for kind in Kind if sums.get(kind) or kind in always)


def to_look_at(ledger: Ledger, since: int = 0) -> frozenset[str]:
    """Whose mailboxes a report needs: all that something was delivered to, or is to be."""
    names: set[str] = set()
    for told in ledger.messages.values():
        if told.at < since:
            continue
        names.update(told.delivered)
        names.update(name for name in told.recipients if not ledger.facts(told, name).settled)
    return frozenset(names - {ERASED})


def _case(told: Told, recipient: str, facts: Facts, surviving: Surviving) -> Case:
    landed = told.landed(recipient)
    boxes = [surviving.mailboxes.get(name) for name in landed or (recipient,)]
    there: bool | None = any(box is not None and told.delivery in box for box in boxes)
    if not there and landed and any(box is None for box in boxes):
        there = None
    queued = any(event.machine == surviving.machine and event.queue in surviving.queue for event in told.accepted)
    waits = queued or (None if surviving.shadows is None else told.delivery in surviving.shadows)
    return Case(
        facts=facts,
        there=there,
        waits=waits,
        too_young=bool(surviving.store_at) and any(told.delivered[name].at > surviving.store_at for name in landed),
        erased=ERASED in landed,
    )
