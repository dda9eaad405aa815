"""In which state a message is, recipient by recipient: what the ledger's events say, as a table with reasons. Pure.

Nothing here looks at mailboxes or queues: ``report`` does, and so *lost* stands only there.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, NamedTuple

from holdfast.ledger.events import Accepted, Delivered, Event, Refused, Rejected, Restarted, Safe, Settled


class State(StrEnum):
    """Of one message for one recipient."""

    DURABLE = "durable"
    """Delivered, and the log has confirmed it."""
    DELIVERED = "delivered"
    QUEUED = "queued"
    RESENT = "re-sent"
    """Gone once more: what its first machine had sent before it died, nobody can know."""
    LEFT = "left"
    """Handed on to another server, or returned to its sender."""
    REFUSED = "refused"
    """The sender heard 451: not accepted, and in no sum."""
    UNKNOWN = "unknown"


class Facts(NamedTuple):
    """What the table asks, of one message for one recipient."""

    queued: bool
    """A gate saw it accepted. Else only its delivery is known: it came while the milter was off."""
    safe: bool
    """Its acceptance is in the log."""
    refused: bool
    delivered: bool
    """To this address, or, when it has none of its own, to what its alias became."""
    delivered_safe: bool
    rejected: bool
    settled: bool
    """All its queue files are gone."""
    again: bool
    """Another machine than the first has queued it again."""
    restarted: bool
    """Postfix was started anew while it was in the queue."""
    elsewhere: bool
    """Others of its recipients are local by another name, and which is whose is not known."""


class Row(NamedTuple):
    state: State
    applies: Callable[[Facts], bool]
    reason: str


TABLE: Final = (
    Row(State.DURABLE, lambda f: f.delivered and f.delivered_safe, "in the mail store, and so says the log"),
    Row(State.DELIVERED, lambda f: f.delivered, "in the mail store; the log has not confirmed it yet"),
    Row(
        State.REFUSED,
        lambda f: f.refused and not f.again,
        "the log did not take it in time: the sender heard 451 and keeps it",
    ),
    Row(State.QUEUED, lambda f: f.again and not f.settled, "queued again by the machine that took over"),
    Row(State.QUEUED, lambda f: f.queued and not f.settled and f.safe, "accepted; its shadow is in the log"),
    Row(
        State.QUEUED,
        lambda f: f.queued and not f.settled,
        "handed in; the log has not confirmed it yet, and the sender has no answer",
    ),
    Row(State.LEFT, lambda f: f.rejected, "the mail store refused it: returned to its sender"),
    Row(
        State.RESENT,
        lambda f: f.again,
        "sent once more by the machine that took over: it may have come twice, or was returned (Postfix's log says)",
    ),
    Row(
        State.RESENT,
        lambda f: f.restarted and f.settled and not f.elsewhere,
        "left the queue after Postfix was started anew: if it had gone just before, it went twice",
    ),
    Row(
        State.LEFT,
        lambda f: f.elsewhere,
        "left the queue: delivered here under another address, or handed on; Postfix's log says which",
    ),
    Row(
        State.LEFT,
        lambda f: f.settled,
        "left the queue: handed on to another server, or returned; Postfix's log says which",
    ),
    Row(State.UNKNOWN, lambda f: True, "only a part of its story is in the ledger: the rest was dropped by age"),
)


def row_of(facts: Facts) -> Row:
    """The first that applies."""
    return next(row for row in TABLE if row.applies(facts))


class Proof(NamedTuple):
    """Where the log has something."""

    log: str
    record: int
    at: int


@dataclass
class Told:
    """All events of one delivery id."""

    delivery: str
    accepted: list[Accepted] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)
    delivered: dict[str, Delivered] = field(default_factory=dict)
    """By recipient; the first."""
    rejected: dict[str, Rejected] = field(default_factory=dict)
    settled: list[Settled] = field(default_factory=list)
    restarted: list[Restarted] = field(default_factory=list)

    @property
    def first(self) -> Accepted | None:
        """The earliest, by the machines' clocks: a relay's lines come later than those of who got it from there."""
        return min(self.accepted, key=lambda event: event.at, default=None)

    @property
    def at(self) -> int:
        """When it was first heard of."""
        events = [*self.accepted, *self.delivered.values(), *self.settled, *self.rejected.values()]
        return min((event.at for event in events), default=0)

    @property
    def recipients(self) -> tuple[str, ...]:
        """As the envelopes named them (a message with many recipients may be handed on in parts); without an envelope
        those it was delivered to."""
        if self.accepted:
            return tuple(dict.fromkeys(name for event in self.accepted for name in event.to))
        return tuple(dict.fromkeys((*self.delivered, *self.rejected)))

    def landed(self, recipient: str) -> tuple[str, ...]:
        """The addresses under which *recipient* has it: its own, or those an alias became."""
        if recipient in self.delivered:
            return (recipient,)
        homeless = [name for name in self.recipients if name not in self.delivered]
        strangers = tuple(name for name in self.delivered if name not in self.recipients)
        return strangers if homeless == [recipient] else ()


class Ledger:
    """What a run of events says, message by message."""

    def __init__(self, events: Iterable[Event]) -> None:
        self.messages: dict[str, Told] = {}
        self._safe: dict[str, list[tuple[int, Proof]]] = {}
        for event in events:
            self._take(event)
        for proofs in self._safe.values():
            proofs.sort()

    def _take(self, event: Event) -> None:
        match event:
            case Safe():
                self._safe.setdefault(event.machine, []).append((event.upto, Proof(event.log, event.record, event.at)))
            case Accepted():
                told = self._told(event.delivery)
                if (event.machine, event.queue) not in {(one.machine, one.queue) for one in told.accepted}:
                    told.accepted.append(event)  # a relay's lines may come twice
            case Refused():
                self._told(event.delivery).refused.append(event)
            case Restarted():
                self._told(event.delivery).restarted.append(event)
            case Settled():
                self._told(event.delivery).settled.append(event)
            case Delivered():
                for name in event.to:
                    self._told(event.delivery).delivered.setdefault(name, event)
            case Rejected():
                for name in event.to:
                    self._told(event.delivery).rejected[name] = event
            case _:
                pass

    def _told(self, delivery: str) -> Told:
        return self.messages.setdefault(delivery, Told(delivery))

    def proof(self, event: Event) -> Proof | None:
        """Where the log has *event*; None: not confirmed, as far as the ledger says."""
        proofs = self._safe.get(event.machine, [])
        at = bisect_left(proofs, event.n, key=lambda pair: pair[0])
        return proofs[at][1] if at < len(proofs) else None

    def facts(self, told: Told, recipient: str) -> Facts:
        landed = told.landed(recipient)
        gone = {(event.machine, event.queue) for event in told.settled}
        standing = [event for event in told.accepted if (event.machine, event.queue) not in gone]
        taken = {(event.after, event.after_queue) for event in told.accepted if event.after}
        refused = {(event.machine, event.queue) for event in told.refused}
        standing = [
            event
            for event in standing
            if (event.machine, event.queue) not in taken and (event.machine, event.queue) not in refused
        ]
        return Facts(
            queued=bool(told.accepted),
            safe=told.first is not None and self.proof(told.first) is not None,
            refused=bool(told.refused),
            delivered=bool(landed),
            delivered_safe=bool(landed) and all(self.proof(told.delivered[name]) for name in landed),
            rejected=recipient in told.rejected,
            settled=bool(told.accepted) and not standing,
            again=any(event.after for event in told.accepted),
            restarted=bool(told.restarted),
            elsewhere=any(name not in told.recipients for name in told.delivered),
        )

    def row(self, told: Told, recipient: str) -> Row:
        return row_of(self.facts(told, recipient))
