"""Following the stream: every record, in order, whatever restarts in between.

There is no consumer on the server. Who is behind reads records in batches from whichever replica the servers pick
(direct get), and hears how far the log is from the leader's answers to the writer's appends, which go to a subject that
followers hear too. Who is up to date is sent each record by the leader as soon as a quorum has it (the stream's
``republish``): asking for a record of 800 kB took as long as appending it. Such a message can be lost, as any core
message: then it is read, as by one who is behind. So nothing about a reader is kept on any server, and a reader needs
no Raft leader to go on: a consumer would have to be made again after each failure, by the leader of the servers'
metadata, and would die with the one server it is on.

A replica may be behind or damaged; what it lacks is asked of the leader and of the others before it is called lost.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Final

from holdfast.changes.names import Incarnation, Sequence
from holdfast.log import wire
from holdfast.log.port import LogDamaged, LogUnavailable, Record, Trimmed
from holdfast.log.stream import Standing, standing_of

if TYPE_CHECKING:
    from holdfast.log.jetstream import JetStreamLog

BATCH_RECORDS: Final = 64
BATCH_BYTES: Final = 4 * 1024 * 1024
"""One batch being applied and one under way: some 8 MB (16 with the largest frames) of memory a follower."""
IDLE_SECONDS: Final = 0.25
"""Look for news at least this often: a wake-up may be lost with a connection."""
CHECK_SECONDS: Final = 2.0
"""Ask the leader how things stand this often while idle: trimmed, replaced, ends too early?"""
SENT_BYTES_MAX: Final = 16 * 1024 * 1024
"""Records sent to us that wait to be taken. Past it they are forgotten, and read when their turn comes: this follower
is behind, and what is sent to it now would only be in its way."""
BEHIND_SECONDS: Final = (0.001, 0.008)
"""Pauses while the replica asked has not yet applied what the leader acknowledged: one asking costs half a millisecond
of processor, and a longer pause would be a lag of its own."""
LAGGING_SECONDS: Final = 0.5
"""Replicas behind by this much are left aside: the leader is read instead."""
RETRY_SECONDS: Final = 0.05


class Shortness:
    """Tells a log that ends too early from one that only seems to for a moment."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._since: float | None = None

    def lasts(self, short: bool) -> bool:
        """Whether *short* has been true at every call for as long as that."""
        now = asyncio.get_running_loop().time()
        self._since = (now if self._since is None else self._since) if short else None
        return self._since is not None and now - self._since >= self._seconds


class _Tail:
    """The highest sequence known to be acknowledged, and the records that were sent to us."""

    def __init__(self, log: JetStreamLog) -> None:
        self.sequence = Sequence(0)
        self._log = log
        self._news = asyncio.Event()
        subject = f"{log.stream.acknowledgements(log.incarnation)}.>"
        self._sid = log.stream.connection.subscribe(subject, self._heard)
        self._sending_sid: int | None = None
        self._sent: dict[Sequence, Standing] = {}
        self._sent_bytes = 0

    def _heard(self, message: wire.Message) -> None:
        if message.payload:
            self.advance(Sequence(json.loads(message.payload).get("seq") or 0))

    def advance(self, sequence: Sequence) -> None:
        if sequence > self.sequence:
            self.sequence = sequence
            self._news.set()

    async def wait(self, sequence: Sequence, seconds: float) -> bool:
        """Whether *sequence* is known to be acknowledged, by *seconds* from now at the latest."""
        try:
            async with asyncio.timeout(seconds):
                while self.sequence < sequence:
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            return False
        return True

    def listen(self) -> None:
        """Be sent the records that come from now on."""
        if self._sending_sid is None:
            stream = self._log.stream
            self._sending_sid = stream.connection.subscribe(stream.sent_out(self._log.incarnation), self._received)

    def _received(self, message: wire.Message) -> None:
        standing = standing_of(message)
        self._sent_bytes += len(standing.record.payload)
        if self._sent_bytes > SENT_BYTES_MAX:
            self._stop_sending()
        else:
            self._sent[standing.record.sequence] = standing
        self.advance(standing.record.sequence)

    def taken(self, following: Sequence) -> list[Standing]:
        """The records from *following* on, without a gap, that were sent to us; what is older is forgotten."""
        found: list[Standing] = []
        while (standing := self._sent.pop(Sequence(following + len(found)), None)) is not None:
            found.append(standing)
        if found:
            self._sent = {at: standing for at, standing in self._sent.items() if at > following}
            self._sent_bytes = sum(len(standing.record.payload) for standing in self._sent.values())
        return found

    def _stop_sending(self) -> None:
        if self._sending_sid is not None:
            self._log.stream.connection.unsubscribe(self._sending_sid)
            self._sending_sid = None
        self._sent.clear()
        self._sent_bytes = 0

    def close(self) -> None:
        self._stop_sending()
        self._log.stream.connection.unsubscribe(self._sid)


async def records(log: JetStreamLog, after: Sequence) -> AsyncIterator[Record]:
    """See :meth:`holdfast.log.port.Log.follow`."""
    follower = _Follower(log, after)
    try:
        await follower.check()
        while True:
            for standing in await follower.batch():
                async for record in follower.accept(standing):
                    yield record
    finally:
        follower.close()


class _Follower:
    def __init__(self, log: JetStreamLog, after: Sequence) -> None:
        self._log = log
        self._stream = log.stream
        self._subject = log.stream.subject(log.incarnation)
        self._next = Sequence(after + 1)
        self._tail = _Tail(log)
        self._ahead: asyncio.Task[tuple[list[Standing], bool]] | None = None
        self._exhausted = False
        """The last replica asked had no more: asking again is for when the leader has acknowledged more."""
        self._shortness = Shortness(log.patience.short_seconds)
        self._checked = asyncio.get_running_loop().time()

    def close(self) -> None:
        self._tail.close()
        if self._ahead is not None:
            self._ahead.cancel()

    async def batch(self) -> list[Standing]:
        """The next records there are, at least one; meanwhile more are fetched ahead."""
        loop = asyncio.get_running_loop()
        behind_since: float | None = None
        pause = BEHIND_SECONDS[0]
        while True:
            if self._exhausted and self._tail.sequence < self._next:
                behind_since, pause = None, BEHIND_SECONDS[0]
                self._tail.listen()
                if not await self._tail.wait(self._next, IDLE_SECONDS) and loop.time() - self._checked > CHECK_SECONDS:
                    await self.check()
            found = self._tail.taken(self._next) or await self._fetched()
            if found:
                return found
            if self._tail.sequence < self._next:
                continue
            behind_since = behind_since or loop.time()
            if loop.time() - behind_since > LAGGING_SECONDS:
                standing = await self._searched()
                if standing is not None:
                    return [standing]
                await self.check()
            await asyncio.sleep(pause)
            pause = min(pause * 2, BEHIND_SECONDS[1])

    async def _fetched(self) -> list[Standing]:
        """One batch of some replica, [] when it has none or none can be reached."""
        ahead, self._ahead = self._ahead, None
        try:
            found, more = await (ahead or self._fetch(self._next))
        except LogUnavailable:
            await asyncio.sleep(RETRY_SECONDS)
            return []
        self._exhausted = not more
        found = [standing for standing in found if standing.record.sequence >= self._next]
        if found and more:
            self._ahead = asyncio.create_task(self._fetch(Sequence(found[-1].record.sequence + 1)))
        return found

    async def _fetch(self, first: Sequence) -> tuple[list[Standing], bool]:
        """Records from *first* on, and whether there are more."""
        if self._tail.sequence == first:  # mostly; alone it comes without another message that ends a batch
            standing = await self._stream.peek(first, self._log.patience.answer_seconds_max)
            return [] if standing is None else [standing], self._tail.sequence > first
        return await self._stream.peek_many(
            first, records=BATCH_RECORDS, bytes_max=BATCH_BYTES, seconds=self._log.patience.answer_seconds_max
        )

    async def accept(self, standing: Standing) -> AsyncIterator[Record]:
        """*standing* as the next record, after whatever the replica left out before it."""
        if standing.subject != self._subject:
            raise self._log.replaced(Incarnation(standing.subject.rpartition(".")[2]))
        while self._next < standing.record.sequence:
            missing = await self._searched()
            if missing is None:
                await self.check(hole=True)
                continue
            self._next = Sequence(self._next + 1)
            yield missing.record
        if self._next == standing.record.sequence:
            self._next = Sequence(self._next + 1)
            yield standing.record

    async def _searched(self) -> Standing | None:
        """The next record from the leader or any other replica; None: none has it, or none can be asked."""
        try:
            standing = await self._stream.find(self._next, self._log.patience.answer_seconds_max)
        except LogUnavailable:
            await asyncio.sleep(RETRY_SECONDS)
            return None
        if standing is not None and standing.subject != self._subject:
            raise self._log.replaced(Incarnation(standing.subject.rpartition(".")[2]))
        return standing

    async def check(self, *, hole: bool = False) -> None:
        """Compare with the leader's state; *hole*: no replica was seen to have the next record though later ones exist.

        Raises Trimmed, LogReplaced, LogDamaged. Without a leader it says nothing.
        """
        loop = asyncio.get_running_loop()
        self._checked = loop.time()
        try:
            state = (await self._log.info_within(self._log.patience.answer_seconds_max)).state
        except LogUnavailable:
            return
        segment = self._stream.segment
        if self._next < state.first:
            raise Trimmed(f"record {self._next} of {segment} was trimmed before it was read", first=state.first)
        self._tail.advance(state.last)
        too_short = state.last < self._next - 1
        short = too_short or (hole and self._next <= state.last)
        if not self._shortness.lasts(short):
            if short:
                self._checked -= CHECK_SECONDS  # look again at the next idle moment
                await asyncio.sleep(RETRY_SECONDS)
            return
        if too_short:
            what = f"ends at {state.last}, but record {self._next - 1} was read from it"
        else:
            what = f"lacks record {self._next}, though it goes on to {state.last}"
        raise LogDamaged(f"the log of {segment} {what}", sequence=self._next)
