"""What the gates tell the ledger, and when it is written: with the barrier that carries what it tells of."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple

from holdfast.gate.barrier import Position
from holdfast.gate.milter import Begin
from holdfast.gate.shadows import Envelope, Shadow
from holdfast.gate.stream import quoted_address
from holdfast.gate.unsynced import Unsynced
from holdfast.ledger.book import Book
from holdfast.ledger.events import Accepted, Delivered, Event, Rejected
from holdfast.ledger.port import Notes

TEXT_CHARS_MAX: Final = 998
"""Of a Message-ID or a subject: a line (RFC 5322 2.1.1)."""


class NotedBarrier:
    """A barrier, before which what the ledger was told is written, and after which the ledger knows it is safe."""

    def __init__(
        self, barrier: Callable[[], Awaitable[Position]], book: Book, unsynced: Unsynced | None = None
    ) -> None:
        """*unsynced*: what is to be on this machine's own disk by then, too."""
        self._barrier, self._book, self._unsynced = barrier, book, unsynced or Unsynced()

    async def __call__(self) -> None:
        """Raises what the barrier raises; NoSpace, HoldfastError: a journal cannot be written, so nothing may be
        promised."""
        upto = self._book.flush()
        position, synced = await asyncio.gather(self._barrier(), self._unsynced.sync(), return_exceptions=True)
        for failure in (position, synced):
            if isinstance(failure, BaseException):
                raise failure
        assert not isinstance(position, BaseException)
        self._book.safe(upto, position.log, position.record)


class Unlogged:
    """Where there is no log yet: the ledger is written, and knows nothing of it as safe."""

    def __init__(self, book: Book) -> None:
        self._book = book

    async def __call__(self) -> None:
        """Raises NoSpace."""
        self._book.flush()


class Seen(NamedTuple):
    """What the milter saw of a message."""

    begin: Begin
    head: tuple[bytes, ...]
    """Header fields, a line or more each."""
    digest: str
    bytes: int


def accepted(book: Notes, seen: Seen, shadow: Shadow, after: Shadow | None, *, subjects: bool) -> Accepted:
    """*after*: the shadow of another machine's that this one replaces. Where the message came from, only that one's
    gate heard; here it comes out of this machine's own hand."""
    envelope = Envelope.of(seen.begin.sender, seen.begin.recipients)
    return Accepted(
        at=book.now(),
        machine=shadow.machine,
        delivery=shadow.delivery,
        queue=shadow.queue_id,
        client=seen.begin.client if after is None else "",
        port=seen.begin.port if after is None else "",
        login=seen.begin.login if after is None else "",
        message_id=field_of(seen.head, b"message-id").strip("<>"),
        subject=field_of(seen.head, b"subject") if subjects else "",
        sender=envelope.sender,
        to=envelope.recipients,
        digest=seen.digest,
        bytes=seen.bytes,
        after="" if after is None else after.machine,
        after_queue="" if after is None else after.queue_id,
    )


def field_of(head: tuple[bytes, ...], name: bytes) -> str:
    """The value of the first field *name* (lower case), unfolded; empty when there is none."""
    for line in head:
        key, _, value = line.partition(b":")
        if key.strip().lower() == name:
            return " ".join(value.decode("utf-8", "replace").split())[:TEXT_CHARS_MAX]
    return ""


def outcome(
    book: Notes, delivery: bytes, delivered: tuple[bytes, ...], rejected: tuple[bytes, ...] = ()
) -> list[Event]:
    """What the mail store did with a message."""
    at, machine, told = book.now(), book.machine, delivery.decode("ascii", "replace")
    events: list[Event] = []
    if delivered:
        to = tuple(quoted_address(name) for name in delivered)
        events.append(Delivered(at=at, machine=machine, delivery=told, to=to))
    if rejected:
        to = tuple(quoted_address(name) for name in rejected)
        events.append(Rejected(at=at, machine=machine, delivery=told, to=to))
    return events
