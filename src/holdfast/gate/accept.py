"""The shadow milter: Postfix hears that a message is accepted when its shadow is kept.

Postfix asks here at the end of each message (``smtpd_milters``, ``non_smtpd_milters``), before it answers its client.
The message gets the header ``Holdfast-Delivery``, its shadow is written and kept; then Postfix hears "go on", or 451
when the log does not take it, 452 when there is no room. Shadows go when their queue files have gone.

What comes from a relay of this site (by its address) keeps the delivery id that the relay gave it: so what a relay
hands on twice, or hands on after the primary has adopted it, comes to its recipients once.

A machine that has become primary adopts the shadows of others: they go through sendmail(1) into its queue, come by here
again, and get a shadow of this machine's before the old one is given up. One that its client sends again meanwhile,
because it heard nothing of the first machine, gets the same delivery id (``shadows``).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable, Coroutine, Iterable
from typing import Final, NamedTuple

from blake3 import blake3
from msgspec import Struct

from holdfast.errors import HoldfastError, NoSpace
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
    quarantine,
)
from holdfast.gate.noting import Seen, accepted
from holdfast.gate.queue import PostfixQueue
from holdfast.gate.read_only import WORDS, Refuses, never
from holdfast.gate.shadows import DELIVERY, Envelope, Shadow, ShadowStore, Writing, new_delivery
from holdfast.gate.stream import ProtocolBroken
from holdfast.gate.tasks import hang_up, watched
from holdfast.ledger.events import Refused, Settled, fingerprint_of
from holdfast.ledger.port import Notes

HEADER: Final = b"Holdfast-Delivery"
SESSIONS_MAX: Final = 500
SETTLE_SECONDS: Final = 0.5
SETTLED_AT_ONCE: Final = 16
ADOPTED_AT_ONCE: Final = 16
ADOPTION_SECONDS_MAX: Final = 300.0
"""From sendmail(1) through pickup(8), which looks every 60 s for what was refused before, to the milter."""
ADOPTION_TRIES_MAX: Final = 3
"""A quarter of an hour. What has not come by then another milter refuses each time, and its sender gets a notice each
time; and what waits behind it must not wait for ever. Its shadow stands, and it is tried again by the next gates."""
LOOKS: Final = 2
"""A message that moves from one queue to another while we list them is in neither list; not twice in a row."""
LEFT_LOOKS: Final = 60
"""What a refused message may have left is settled at once, and, because it may come to stand there late, again after
so many looks."""
LOAD_SECONDS_MAX: Final = 1.0
LISTING_PAUSES: Final = 20.0
"""Listing a queue of 20,000 messages takes 0.1 s: no more than a twentieth of the time goes into it."""
ADOPTED_IDS_MAX: Final = 100_000
"""Some 10 MB."""
LEFT_MAX: Final = 100_000
"""Some 20 MB: refused for the quarter of an hour and more that the log is away. What the oldest have left goes with the
next start."""
_log = logging.getLogger("holdfast.gate")


class AcceptCounts(Struct):
    """Messages since the start."""

    shadowed: int = 0
    later: int = 0
    settled: int = 0
    adopted: int = 0
    given_up: int = 0
    """Of others, never came through this machine's queue; their shadows stand."""


class Foreign(NamedTuple):
    """A shadow of another machine, and the store it stands in."""

    shadow: Shadow
    store: ShadowStore


class _Adoption(NamedTuple):
    foreign: Foreign
    taken: asyncio.Future[None]


class _Standing(NamedTuple):
    shadow: Shadow
    looks: int
    """In how many looks its queue file was absent."""


class ShadowMilter:
    """Of one event loop."""

    def __init__(
        self,
        store: ShadowStore,
        queue: PostfixQueue,
        book: Notes | None = None,
        *,
        subjects: bool = False,
        relays: frozenset[str] = frozenset(),
        adopts_at_start: bool = True,
        adopts_own: bool = True,
        holds: Callable[[], bool] = lambda: False,
        adoption_seconds: float = ADOPTION_SECONDS_MAX,
        refuses: Refuses = never,
    ) -> None:
        """*book*: the ledger; *subjects*: whether it keeps them. *relays*: IP addresses of clients whose delivery ids
        are kept. *adopts_at_start*: what stands there of other machines, because this one took over from them; a relay
        does not. *adopts_own*: what this one had accepted into a queue that it has lost. *holds*: whether messages go
        on hold in the queue.
        """
        self.store, self.queue, self.relays, self.adopts_at_start = store, queue, relays, adopts_at_start
        self.adopts_own, self.holds, self.book = adopts_own, holds, book
        self._subjects, self._adoption_seconds, self.refuses = subjects, adoption_seconds, refuses
        self.counts = AcceptCounts()
        self._standing: dict[str, _Standing] = {}
        """This machine's, by name."""
        self._left: dict[str, _Standing] = {}
        """What refused messages may have left; *looks* since then."""
        self._adopting: dict[str, _Adoption] = {}
        """Others', by delivery id, that are on their way through the queue of this machine."""
        self._adopted_ids: dict[str, None] = {}
        """Ids of what is adopted, or was lately: after a crash in between, a message may come by a second time."""
        self._by_print: dict[str, str] = {}
        """Ids of what is adopted, and of what stood here when these gates began, by their fingerprints: perhaps their
        clients heard nothing, and send them again."""
        self._never_came: dict[str, int] = {}
        """Tries to adopt a shadow, by its name, at which it did not pass Postfix."""
        self._sessions: set[_Session] = set()
        self._server: asyncio.Server | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self, listening: socket.socket) -> None:
        """Serve, settle, and adopt what others have left in a store of files. Raises HoldfastError (it is unreadable).

        Where the store cannot be asked yet, because the log is away, it is asked again later. It is asked first, while
        clients wait: Postfix may have in its maildrop what an adoption put there before a power cut.
        """
        loaded = False
        try:
            async with asyncio.timeout(LOAD_SECONDS_MAX):
                await self._load()
            loaded = True
        except TimeoutError:
            pass
        except HoldfastError as error:
            if not error.retry:
                raise
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Session(self), sock=listening, backlog=SESSIONS_MAX)
        self._tasks.append(watched(self._settle_all(loaded=loaded)))

    async def _load(self) -> None:
        standing = await self.store.standing()
        strange = await self._of_a_lost_queue(standing)
        for shadow in standing:
            if shadow.machine == self.store.machine and shadow not in strange:
                self._standing.setdefault(shadow.name, _Standing(shadow, 0))
                self._may_come_again(shadow.delivery)
        others = [
            Foreign(shadow, self.store)
            for shadow in standing
            if (shadow in strange and self.adopts_own)
            or (self.adopts_at_start and shadow.machine != self.store.machine)
        ]
        if others:
            self._tasks.append(watched(self.adopt(others)))

    async def _of_a_lost_queue(self, standing: list[Shadow]) -> frozenset[Shadow]:
        """This machine's, accepted into a queue that it has no more: nothing of them was delivered by going from here.

        Raises HoldfastError.
        """
        try:
            since = await asyncio.to_thread(self.queue.since)
            present = await asyncio.to_thread(self.queue.ids) | await asyncio.to_thread(self.queue.ids)
        except OSError as error:
            raise HoldfastError(f"the queue cannot be read: {error}", hint="Is Postfix whole?", retry=True) from None
        own = [each for each in standing if each.machine == self.store.machine and each.queue_id not in present]
        return frozenset([each for each in own if await self.store.accepted_at(each) < since])

    async def stop(self) -> None:
        """Clients without an answer hear 451 from Postfix, and come again."""
        await hang_up(self._server, self._tasks, self._sessions)

    @property
    def standing(self) -> list[Shadow]:
        """This machine's."""
        return [standing.shadow for standing in self._standing.values()]

    # -- messages ------------------------------------------------------------------------------------------------------

    @property
    def waiting(self) -> int:
        """Messages of this machine's queue that have a shadow."""
        return len(self._standing)

    @property
    def adopting_any(self) -> bool:
        return bool(self._adopting)

    def adopting(self, delivery: str) -> bool:
        return delivery in self._adopting or delivery in self._adopted_ids

    def delivery_of(self, envelope: Envelope, head: Iterable[bytes]) -> str:
        """Of a message that has no id: that of one which its client sends again, or a new one."""
        new = new_delivery(envelope, head)
        return self._by_print.get(fingerprint_of(new), new)

    def _may_come_again(self, delivery: str) -> None:
        self._by_print[fingerprint_of(delivery)] = delivery
        if len(self._by_print) > ADOPTED_IDS_MAX:
            del self._by_print[next(iter(self._by_print))]

    async def keep(self, writing: Writing, shadow: Shadow, seen: Seen, adopts: str = "") -> Shadow:
        """*shadow* as the ledger is to know it; the one that is kept. Raises HoldfastError: then it is not kept, and
        what may be left of it goes.

        *adopts*: the delivery id of another machine's shadow that this message is, if it is one.
        """
        adoption = self._adopting.get(adopts)
        try:
            if self.book is not None:
                before = None if adoption is None else adoption.foreign.shadow
                self.book.note(accepted(self.book, seen, shadow, before, subjects=self._subjects))
            shadow = await writing.keep(shadow.queue_id)
        except HoldfastError as error:
            self.counts.later += 1
            self._note_refused(shadow, error)
            if writing.left is not None:
                self._left[writing.left.name] = _Standing(writing.left, 0)
                if len(self._left) > LEFT_MAX:
                    del self._left[next(iter(self._left))]
            raise
        self._standing[shadow.name] = _Standing(shadow, 0)
        self.counts.shadowed += 1
        if adoption is not None:
            await adoption.foreign.store.take(adoption.foreign.shadow)
            if not adoption.taken.done():
                adoption.taken.set_result(None)
                self.counts.adopted += 1
        return shadow

    def _note_refused(self, shadow: Shadow, error: HoldfastError) -> None:
        if self.book is None:
            return
        at, machine = self.book.now(), shadow.machine
        told = Refused(at=at, machine=machine, delivery=shadow.delivery, queue=shadow.queue_id, why=error.message)
        with contextlib.suppress(NoSpace):
            self.book.note(told)

    def opened(self, session: _Session) -> bool:
        if len(self._sessions) >= SESSIONS_MAX:
            return False
        self._sessions.add(session)
        return True

    def closed(self, session: _Session) -> None:
        self._sessions.discard(session)

    # -- settling and adopting -----------------------------------------------------------------------------------------

    async def _settle_all(self, *, loaded: bool) -> None:
        loop, took = asyncio.get_running_loop(), 0.0
        while True:
            await asyncio.sleep(max(SETTLE_SECONDS, LISTING_PAUSES * took))
            if not loaded:
                try:
                    await self._load()
                except HoldfastError as error:
                    _log.error("the shadows cannot be read yet: %s", error)
                    continue
                loaded = True
            await self._settle_left()
            if not self._standing:
                continue
            before = set(self._standing)  # younger ones may have a queue file that the list does not show yet
            began = loop.time()
            try:
                present = await asyncio.to_thread(self.queue.ids)
            except OSError as error:
                _log.error("the queue cannot be listed, shadows stay: %s", error)
                continue
            took = loop.time() - began
            await self._settle(before, present)

    async def _settle(self, before: set[str], present: frozenset[str]) -> None:
        gone = []
        for name in before:
            shadow, looks = self._standing[name]
            looks = 0 if shadow.queue_id in present else looks + 1
            self._standing[name] = _Standing(shadow, looks)
            if looks >= LOOKS:
                gone.append(shadow)
        try:
            self._note_settled(gone)
        except HoldfastError as error:
            _log.error("settled shadows stay for now: %s", error)
            return
        for first in range(0, len(gone), SETTLED_AT_ONCE):
            some = gone[first : first + SETTLED_AT_ONCE]
            for shadow, settled in zip(some, await asyncio.gather(*map(self._settled, some)), strict=True):
                if not settled:
                    return  # the log is away: look again later
                del self._standing[shadow.name]
                self.counts.settled += 1

    def _note_settled(self, gone: list[Shadow]) -> None:
        """The ledger has it before the shadow goes: what has no shadow any more has a reason. Raises NoSpace."""
        if self.book is None or not gone:
            return
        at = self.book.now()
        for shadow in gone:
            told = Settled(at=at, machine=shadow.machine, delivery=shadow.delivery, queue=shadow.queue_id)
            self.book.note(told)
        self.book.flush()

    async def _settle_left(self) -> None:
        for name, (shadow, looks) in list(self._left.items()):
            if name not in self._left:  # it was the oldest of too many, while the one before was settled
                continue
            if looks not in (0, LEFT_LOOKS) or await self._settled(shadow):
                self._left[name] = _Standing(shadow, looks + 1)
            if looks >= LEFT_LOOKS:
                del self._left[name]

    async def _settled(self, shadow: Shadow) -> bool:
        try:
            await self.store.settle(shadow)
        except HoldfastError as error:
            _log.error("a settled shadow cannot be removed yet: %s", error)
            return False
        return True

    def adopt(self, shadows: Iterable[Foreign]) -> Coroutine[object, object, None]:
        """Put what other machines had accepted and not delivered into this queue; to be awaited: returns when all are
        there, with shadows of this machine's own, or given up.

        From this call on they may come by at any time, however their adoption ends: an earlier one may have put them
        into Postfix's maildrop before the power was cut.
        """
        waiting = [foreign for foreign in shadows if self._tries_left(foreign.shadow)]
        for foreign in waiting:
            self._adopted_ids[foreign.shadow.delivery] = None
            self._may_come_again(foreign.shadow.delivery)
            if len(self._adopted_ids) > ADOPTED_IDS_MAX:
                del self._adopted_ids[next(iter(self._adopted_ids))]
        return self._adopt_all(waiting)

    async def _adopt_all(self, waiting: list[Foreign]) -> None:
        places = asyncio.Semaphore(ADOPTED_AT_ONCE)

        async def adopt(foreign: Foreign) -> bool:
            async with places:
                return await self._adopted(foreign)

        while waiting:
            # Of two with one id, one after the other: by its id alone the milter knows what it adopts.
            first = {foreign.shadow.delivery: foreign for foreign in reversed(waiting)}
            done = await asyncio.gather(*map(adopt, first.values()))
            finished = {foreign for foreign, adopted in zip(first.values(), done, strict=True) if adopted}
            waiting = [foreign for foreign in waiting if foreign not in finished]
            if waiting:
                await asyncio.sleep(0 if finished else SETTLE_SECONDS)

    def _tries_left(self, shadow: Shadow) -> bool:
        return self._never_came.get(shadow.name, 0) < ADOPTION_TRIES_MAX

    async def _adopted(self, foreign: Foreign) -> bool:
        """False: it is to be tried again."""
        shadow = foreign.shadow
        adoption = _Adoption(foreign, asyncio.get_running_loop().create_future())
        try:
            envelope, message = await foreign.store.read(shadow)
            self._adopting[shadow.delivery] = adoption
            await self.queue.put(envelope, message)
            async with asyncio.timeout(self._adoption_seconds):
                await adoption.taken
        except TimeoutError:
            self._never_came[shadow.name] = self._never_came.get(shadow.name, 0) + 1
            if self._tries_left(shadow):
                _log.error("%s, accepted by %s, has not passed Postfix yet", shadow.delivery, shadow.machine)
                return False
            self.counts.given_up += 1
            words = (
                "%s, accepted by %s, does not pass Postfix: see its log. It is not lost; the next gates try it again"
            )
            _log.error(words, shadow.delivery, shadow.machine)
            return True
        except HoldfastError as error:
            _log.error("%s, accepted by %s, is not in the queue yet: %s", shadow.delivery, shadow.machine, error)
            return not error.retry
        finally:
            self._adopting.pop(shadow.delivery, None)
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
        self._delivery = ""
        self._has_id = False
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
                self._begin, self._head, self._failure = event, [], None
                if self._milter.refuses():
                    self._failure = HoldfastError(WORDS, retry=True)
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

    @property
    def _of_relay(self) -> bool:
        return self._begin is not None and self._begin.client in self._milter.relays

    def _known_delivery(self) -> str:
        """The id that a machine of this site has given the message before; empty when none has.

        The uppermost counts: lower ones were there before the message came to this site.
        """
        for line in self._head:
            name, _, value = line.partition(b":")
            if name.strip().lower() == DELIVERY_HEADER:
                found = value.strip().decode("ascii", "replace")
                known = self._of_relay or self._milter.adopting(found)
                return found if known and DELIVERY.fullmatch(found) else ""
        return ""

    def _open(self) -> Writing:
        assert self._begin is not None
        known = self._known_delivery()
        envelope = Envelope.of(self._begin.sender, self._begin.recipients)
        self._has_id = bool(known)
        self._delivery = known or self._milter.delivery_of(envelope, self._head)
        writing = self._milter.store.write(self._delivery, envelope)
        self._writing = writing
        if not self._has_id:
            writing.write(HEADER + b": " + self._delivery.encode() + b"\r\n")
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
        writing, self._writing = self._writing, None
        if writing is None:
            assert self._failure is not None
            self._refuse(self._failure)
            return
        assert self._begin is not None
        seen = Seen(self._begin, tuple(self._head), self._digest.hexdigest(length=16), self._bytes)
        shadow = Shadow("", self._milter.store.machine, queue_id, self._delivery)
        self._task = watched(self._keep(writing, shadow, seen))  # without an answer Postfix would wait 5 minutes

    def _refuse(self, error: HoldfastError) -> None:
        _log.error("a message was not accepted: %s", error)
        self._send(later(error.message, no_space=isinstance(error, NoSpace)))

    async def _keep(self, writing: Writing, shadow: Shadow, seen: Seen) -> None:
        delivery, has_id = shadow.delivery, self._has_id
        try:
            await self._milter.keep(writing, shadow, seen, delivery if has_id and not self._of_relay else "")
        except HoldfastError as error:
            writing.drop()
            self._refuse(error)
        else:
            if self._milter.holds():
                self._send(quarantine("held by order: holdfast relay drain"))
            self._send(packet(b"c") if has_id else accept(HEADER, delivery.encode()))
