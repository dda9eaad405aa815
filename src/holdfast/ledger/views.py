"""Messages and what became of them, as rows (one for each recipient) and as stories. Pure."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator

import msgspec
from msgspec import Struct

from holdfast.ledger.events import Accepted, Delivered, OfMessage, Refused, Rejected, Restarted, Settled
from holdfast.ledger.states import Ledger, Told


class Row(Struct, frozen=True):
    """Times in milliseconds since 1970; 0: not, or not known. *durable_record*: where the log has the delivery, or,
    when there is none, the acceptance."""

    accepted_at: int
    machine: str
    client: str
    port: str
    login: str
    delivery: str
    message_id: str
    subject: str
    sender: str
    recipient: str
    digest: str
    bytes: int
    state: str
    reason: str
    queued_at: int
    delivered_at: int
    durable_at: int
    durable_log: str
    durable_record: int
    requeued_by: str
    left_at: int


def rows(ledger: Ledger, told: Told) -> Iterator[Row]:
    first = told.first
    again = [event for event in told.accepted if event.after]
    for recipient in told.recipients:
        row = ledger.row(told, recipient)
        landed = [told.delivered[name] for name in told.landed(recipient)]
        latest = max(landed, key=lambda event: event.at, default=None)
        proof = ledger.proof(latest) if latest else ledger.proof(first) if first else None
        yield Row(
            accepted_at=first.at if first else 0,
            machine=first.by if first else "",
            client=first.client if first else "",
            port=first.port if first else "",
            login=first.login if first else "",
            delivery=told.delivery,
            message_id=first.message_id if first else "",
            subject=first.subject if first else "",
            sender=first.sender if first else "",
            recipient=recipient,
            digest=first.digest if first else "",
            bytes=first.bytes if first else 0,
            state=row.state,
            reason=row.reason,
            queued_at=told.accepted[-1].at if told.accepted else 0,
            delivered_at=latest.at if latest else 0,
            durable_at=proof.at if proof else 0,
            durable_log=proof.log if proof else "",
            durable_record=proof.record if proof else 0,
            requeued_by=again[-1].machine if again else "",
            left_at=max((event.at for event in told.settled), default=0),
        )


def all_rows(ledger: Ledger, since: int = 0) -> Iterator[Row]:
    """Of messages first heard of since (milliseconds), oldest first."""
    for told in sorted(ledger.messages.values(), key=lambda told: told.at):
        if told.at >= since:
            yield from rows(ledger, told)


def as_csv(found: Iterable[Row]) -> Iterator[str]:
    """Lines, the names first (RFC 4180). What a spreadsheet would take for a formula gets an apostrophe before it."""
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(Row.__struct_fields__)
    for row in found:
        writer.writerow(_harmless(value) for value in msgspec.structs.astuple(row))
        yield buffer.getvalue()
        buffer.seek(0)
        buffer.truncate()
    yield buffer.getvalue()


def _harmless(value: object) -> object:
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value


class Step(Struct, frozen=True):
    """One line of a message's story."""

    at: int
    machine: str
    what: str
    log: str = ""
    record: int = 0
    """Where the log has it; 0: not confirmed, as far as the ledger says."""


def story(ledger: Ledger, told: Told) -> list[Step]:
    events: list[OfMessage] = [*told.accepted, *told.refused, *told.restarted, *told.settled]
    events += {id(event): event for event in told.delivered.values()}.values()
    events += {id(event): event for event in told.rejected.values()}.values()
    steps = []
    for event in sorted(events, key=lambda event: (event.at, event.n)):
        proof = ledger.proof(event)
        where = (proof.log, proof.record) if proof else ("", 0)
        steps.append(Step(event.at, event.machine, _words(event), *where))
    return steps


def _words(event: OfMessage) -> str:
    match event:
        case Accepted(after=after) if after:
            return f"queued again as {event.queue}: {after}, which had it as {event.after_queue}, was replaced"
        case Accepted():
            by = f" by {event.login}" if event.login else ""
            where = f" at {event.port}" if event.port else ""
            return f"accepted from {event.client or 'this machine'}{where}{by}, queued as {event.queue}"
        case Refused():
            return f"not accepted: the sender heard 451 ({event.why})"
        case Delivered():
            return f"delivered to {', '.join(event.to)}"
        case Rejected():
            return f"the mail store did not take it for {', '.join(event.to)}"
        case Restarted():
            return f"Postfix was started anew, and has it in the queue as {event.queue}"
        case Settled():
            return f"queue file {event.queue} is gone: everything was delivered, handed on, or returned"
