"""The shadow milter: Postfix hears that a message is accepted when its shadow is in the log.

Postfix asks here at the end of each message (``smtpd_milters``, ``non_smtpd_milters``), before it answers its client.
The message gets the header ``Holdfast-Delivery``, its shadow is written, the barrier is waited for; then Postfix hears
"go on", or 451 when the log does not take it. Shadows go when their queue files have gone.

A machine that has become primary adopts the shadows of others: they go through sendmail(1) into its queue, come by here
again, and get a shadow of this machine's before the old one is given up.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import socket
from collections.abc import Awaitable
from typing import Final

from blake3 import blake3
from msgspec import Struct

from holdfast.errors import HoldfastError, NoSpace
from holdfast.gate.barrier import SharedBarrier
from holdfast.gate.lmtp import DELIVERY_HEADER
from holdfast.gate.milter import (
    Abort,
    Begin,
    Body,
    Close,
    EndOfMessage,
    Header,
    MilterSession,
    Reply,
    accept,
    later,
    packet,
)
from holdfast.gate.noting import Seen, accepted
from holdfast.gate.queue import PostfixQueue
from holdfast.gate.shadows import Envelope, Shadow, Shadows, Writing, read_shadow
from holdfast.gate.stream import ProtocolBroken
from holdfast.ledger.book import Book
from holdfast.ledger.events import Refused, Settled

HEADER: Final = b"Holdfast-Delivery"
SESSIONS_MAX: Final = 500
SETTLE_SECONDS: Final = 0.5
ADOPTED_AT_ONCE: Final = 8
LOOKS: Final = 2
"""A message that moves from one queue to another while we list them is in neither list; not twice in a row."""
_log = logging.getLogger("holdfast.gate")


class AcceptCounts(Struct):
    """Messages since the start."""

    shadowed: int = 0
    later: int = 0
    settled: int = 0
    adopted: int = 0


class ShadowMilter:
    """Of one event loop."""

    def __init__(
        self,
        shadows: Shadows,
        queue: PostfixQueue,
        barrier: SharedBarrier,
        book: Book | None = None,
        *,
        subjects: bool = False,
    ) -> None:
        """*book*: the ledger; *subjects*: whether it keeps them."""
        self.shadows, self.queue, self.barrier, self.book = shadows, queue, barrier, book
        self._subjects = subjects
        self.counts = AcceptCounts()
        self._standing: dict[str, tuple[Shadow, int]] = {}
        """This machine's, by delivery id, and in how many looks its queue file was absent."""
        self._adopting: dict[str, Shadow] = {}
        """Others', that are on their way through the queue of this machine."""
        self._sessions: set[_Session] = set()
        self._server: asyncio.Server | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self, listening: socket.socket) -> None:
        """Serve, settle, and adopt. Raises HoldfastError (the shadows cannot be read)."""
        loop = asyncio.get_running_loop()
        try:
            for shadow in self.shadows.standing():
                if shadow.machine == self.shadows.machine:
                    self._standing[shadow.delivery] = (shadow, 0)
                else:
                    self._adopting[shadow.delivery] = shadow
        except OSError as error:
            raise HoldfastError(f"{self.shadows.directory}: {error}", hint="Mend the disk, then start again.") from None
        self._server = await loop.create_server(lambda: _Session(self), sock=listening, backlog=SESSIONS_MAX)
        self._tasks = [loop.create_task(self._settle_all()), loop.create_task(self._adopt_all())]

    async def stop(self) -> None:
        """Clients without an answer hear 451 from Postfix, and come again."""
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for session in list(self._sessions):
            session.abort()

    # -- messages ------------------------------------------------------------------------------------------------------

    @property
    def waiting(self) -> int:
        """Messages of this machine's queue that have a shadow."""
        return len(self._standing)

    @property
    def adopting_any(self) -> bool:
        return bool(self._adopting)

    def adopting(self, delivery: str) -> bool:
        return delivery in self._adopting

    async def keep(self, shadow: Shadow, seen: Seen) -> None:
        """Wait until *shadow* is in the log. Raises HoldfastError: then it is gone again."""
        old = self._adopting.get(shadow.delivery)
        try:
            if self.book is not None:
                self.book.note(accepted(self.book, seen, shadow, old, subjects=self._subjects))
            await self.barrier.wait()
        except HoldfastError as error:
            self.counts.later += 1
            if self.book is not None:
                at, machine = self.book.now(), shadow.machine
                told = Refused(
                    at=at, machine=machine, delivery=shadow.delivery, queue=shadow.queue_id, why=error.message
                )
                with contextlib.suppress(NoSpace):
                    self.book.note(told)
            self.shadows.settle(shadow)
            raise
        self._standing[shadow.delivery] = (shadow, 0)
        self.counts.shadowed += 1
        if old is not None:
            self.shadows.take(old)
            del self._adopting[shadow.delivery]
            self.counts.adopted += 1

    def opened(self, session: _Session) -> bool:
        if len(self._sessions) >= SESSIONS_MAX:
            return False
        self._sessions.add(session)
        return True

    def closed(self, session: _Session) -> None:
        self._sessions.discard(session)

    # -- settling and adopting -----------------------------------------------------------------------------------------

    async def _settle_all(self) -> None:
        while True:
            await asyncio.sleep(SETTLE_SECONDS)
            if not self._standing:
                continue
            before = set(self._standing)  # younger ones may have a queue file that the list does not show yet
            try:
                present = await asyncio.to_thread(self.queue.ids)
            except OSError as error:
                _log.error("the queue cannot be listed, shadows stay: %s", error)
                continue
            self._settle(before, present)

    def _settle(self, before: set[str], present: frozenset[str]) -> None:
        gone = []
        for delivery in before:
            shadow, looks = self._standing[delivery]
            looks = 0 if shadow.queue_id in present else looks + 1
            self._standing[delivery] = (shadow, looks)
            if looks >= LOOKS:
                gone.append(shadow)
        try:
            self._note_settled(gone)
            for shadow in gone:
                self.shadows.settle(shadow)
                del self._standing[shadow.delivery]
                self.counts.settled += 1
        except (HoldfastError, OSError) as error:
            _log.error("settled shadows stay for now: %s", error)

    def _note_settled(self, gone: list[Shadow]) -> None:
        """The ledger has it before the shadow goes: what has no shadow any more has a reason. Raises NoSpace."""
        if self.book is None or not gone:
            return
        at = self.book.now()
        for shadow in gone:
            told = Settled(at=at, machine=shadow.machine, delivery=shadow.delivery, queue=shadow.queue_id)
            self.book.note(told)
        self.book.flush()

    async def _adopt_all(self) -> None:
        """Put what another machine had accepted and not delivered into this queue."""
        places = asyncio.Semaphore(ADOPTED_AT_ONCE)

        async def adopt(shadow: Shadow) -> bool:
            async with places:
                return await self._adopted(shadow)

        waiting = list(self._adopting.values())
        while waiting:
            done = await asyncio.gather(*(adopt(shadow) for shadow in waiting))
            waiting = [shadow for shadow, adopted in zip(waiting, done, strict=True) if not adopted]
            await asyncio.sleep(SETTLE_SECONDS)

    async def _adopted(self, shadow: Shadow) -> bool:
        try:
            envelope, message = await asyncio.to_thread(read_shadow, shadow.path)
            await self.queue.put(envelope, message)
        except (HoldfastError, OSError) as error:
            _log.error("%s, accepted by %s, is not in the queue yet: %s", shadow.delivery, shadow.machine, error)
            return isinstance(error, HoldfastError) and not error.retry
        _log.info("%s, accepted by %s, is in the queue here", shadow.delivery, shadow.machine)
        return True


class _Session(asyncio.Protocol):
    """One of Postfix's connections; messages come over it one after the other."""

    def __init__(self, milter: ShadowMilter) -> None:
        self._milter = milter
        self._session = MilterSession()
        self._transport: asyncio.Transport | None = None
        self._head: list[bytes] = []
        """Header fields until the first byte of content, or the end: the delivery id may be among them."""
        self._begin: Begin | None = None
        self._writing: Writing | None = None
        self._adopted = False
        self._digest = blake3()
        self._bytes = 0
        self._failure: HoldfastError | None = None
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        if not self._milter.opened(self):
            transport.close()  # milter_default_action: tempfail

    def connection_lost(self, exc: Exception | None) -> None:
        self._milter.closed(self)
        self._drop()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        try:
            for event in self._session.feed(data):
                self._take(event)
        except ProtocolBroken as error:
            _log.error("milter: %s", error.message)
            self.abort()

    def _take(self, event: object) -> None:
        match event:
            case Begin():
                self._drop()
                self._begin, self._head, self._failure, self._adopted = event, [], None, False
                self._digest, self._bytes = blake3(), 0
            case Header(name, value):
                self._head.append(name + b":" + value + b"\r\n")
            case Body(data):
                self._write(data)
                self._digest.update(data)
                self._bytes += len(data)
            case EndOfMessage(queue_id):
                self._finish(queue_id)
            case Abort():
                self._drop()
            case Reply(data):
                self._send(data)
            case Close():
                if self._transport is not None:
                    self._transport.close()
            case _:
                raise AssertionError(event)

    def _send(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def _drop(self) -> None:
        if self._writing is not None:
            self._writing.drop()
            self._writing = None

    def _open(self) -> Writing:
        assert self._begin is not None
        delivery = ""
        for line in self._head:
            name, _, value = line.partition(b":")
            if name.strip().lower() == DELIVERY_HEADER and self._milter.adopting(
                value.strip().decode("ascii", "replace")
            ):
                delivery, self._adopted = value.strip().decode("ascii"), True
        delivery = delivery or secrets.token_hex(16)
        envelope = Envelope.of(self._begin.sender, self._begin.recipients)
        writing = self._milter.shadows.write(delivery, envelope)
        self._writing = writing
        if not self._adopted:
            writing.write(HEADER + b": " + delivery.encode() + b"\r\n")
        head = b"".join(self._head) + b"\r\n"
        writing.write(head)
        self._digest.update(head)
        self._bytes += len(head)
        return writing

    def _write(self, data: bytes) -> None:
        if self._failure is not None:
            return
        try:
            (self._writing or self._open()).write(data)
        except HoldfastError as error:
            self._failure = error
            self._drop()

    def _finish(self, queue_id: str) -> None:
        self._write(b"")
        if self._writing is None:
            assert self._failure is not None
            self._refuse(self._failure)
            return
        try:
            shadow = self._writing.finish(queue_id)
        except HoldfastError as error:
            self._drop()
            self._refuse(error)
            return
        self._writing = None
        assert self._begin is not None
        seen = Seen(self._begin, tuple(self._head), self._digest.hexdigest(length=16), self._bytes)
        self._spawn(self._keep(shadow, seen))

    def _refuse(self, error: HoldfastError) -> None:
        _log.error("a message was not accepted: %s", error)
        self._send(later(error.message))

    async def _keep(self, shadow: Shadow, seen: Seen) -> None:
        try:
            await self._milter.keep(shadow, seen)
        except HoldfastError as error:
            self._refuse(error)
        else:
            adopted = packet(b"c")
            self._send(adopted if self._adopted else accept(HEADER, shadow.delivery.encode()))

    def _spawn(self, work: Awaitable[None]) -> None:
        async def run() -> None:
            await work

        self._task = asyncio.get_running_loop().create_task(run())
