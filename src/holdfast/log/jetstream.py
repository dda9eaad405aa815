"""The log kept by NATS JetStream: one stream a segment.

How an append becomes certain. It is published with the expected last sequence (header ``Nats-Expected-Last-Sequence``)
and answered by the stream's leader once a quorum has it on disk. When the answer is lost, slow, or "wrong last
sequence", the place itself decides: what stands at ``after + 1`` is either our bytes (done), other bytes (fenced), or
nothing yet (publish again: the expected sequence makes a second copy impossible).
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from holdfast.changes.names import Incarnation, SegmentName, Sequence
from holdfast.errors import ConfigurationError, HoldfastError, Refused
from holdfast.log import follow, wire
from holdfast.log.api import ANSWER_SECONDS, RETRY_SECONDS, WRONG_LAST, ApiError, Code, taken_at
from holdfast.log.connection import NOBODY, Connection, LogConnection, NotSent
from holdfast.log.port import (
    PAYLOAD_BYTES_MAX,
    Fenced,
    LogDamaged,
    LogReplaced,
    LogState,
    LogUnavailable,
    Missing,
    Record,
    Trimmed,
)
from holdfast.log.stream import Stream, StreamInfo

BYTES_MAX: Final = 16 * 1024**3
"""Default hard limit of one segment's stream: past it the server drops the oldest, whoever still needs it."""
GONE_SECONDS: Final = 0.5
"""A server that just started may not know its streams yet: "no such stream" counts when said twice, this far apart."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to try before LogUnavailable. An election takes 4 to 9 s (nats-server's raft timeouts)."""

    append_seconds_max: float = 20.0
    answer_seconds_max: float = ANSWER_SECONDS
    """One attempt of an append; then its place is looked at and it is sent again."""
    request_seconds_max: float = 12.0
    """State, read, trim, create."""
    short_seconds: float = 2.0
    """A log that lacks something must do so for this long to be called damaged: a new leader may still be applying."""


class _Heard(Enum):
    """What one attempt of an append came to."""

    DONE = auto()
    NOT_SENT = auto()
    NOT_TAKEN = auto()
    """Certainly not appended by this attempt: nobody there, or an error that passes."""
    MISPLACED = auto()
    """The leader's last sequence is not ``after``."""
    UNKNOWN = auto()


class JetStreamLog:
    """A :class:`holdfast.log.port.Log`; made by :func:`create`, :func:`open_log` or :func:`replace`."""

    def __init__(
        self, stream: Stream, incarnation: Incarnation, patience: Patience, *, owns_connection: bool = False
    ) -> None:
        self.stream = stream
        self.patience = patience
        self._incarnation = incarnation
        self._connection = stream.connection
        self._owns_connection = owns_connection
        self._subject = stream.subject(incarnation)
        self._reply = f"{stream.acknowledgements(incarnation)}.{secrets.token_hex(8)}"
        self._numbers = itertools.count(1)
        self._order = asyncio.Lock()
        self._listening = self._connection.subscribe(f"{self._reply}.*", self._answered)

    @property
    def incarnation(self) -> Incarnation:
        return self._incarnation

    async def append(self, payload: bytes, *, after: Sequence) -> Sequence:
        if len(payload) > PAYLOAD_BYTES_MAX:
            raise HoldfastError(f"a record of {len(payload)} bytes is above the limit of {PAYLOAD_BYTES_MAX}")
        async with self._order:
            await self._append(payload, after)
        return Sequence(after + 1)

    async def _append(self, payload: bytes, after: Sequence) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.patience.append_seconds_max
        ask_state_at = loop.time() + GONE_SECONDS
        shortness = follow.Shortness(self.patience.short_seconds)
        place = Sequence(after + 1)
        sent = False
        pause = RETRY_SECONDS[0]
        while True:
            heard = await self._attempt(payload, after, deadline - loop.time())
            if heard is _Heard.DONE:
                return
            sent = sent or heard is _Heard.UNKNOWN
            if heard in (_Heard.UNKNOWN, _Heard.MISPLACED):
                standing = await self._standing(place)
                if standing == payload:
                    return
                if standing is not None:
                    state = await self._state_if_known(deadline)
                    raise self._fenced(place, state.last if state else place)
            if heard is _Heard.MISPLACED or loop.time() >= ask_state_at:
                ask_state_at = loop.time() + GONE_SECONDS
                state = await self._state_if_known(deadline)
                if state is not None and state.first > place:
                    raise self._fenced(place, state.last)
                if state is not None and shortness.lasts(state.last < after):
                    raise LogDamaged(
                        f"the log of {self.stream.segment} ends at {state.last}, but {after} was acknowledged",
                        sequence=Sequence(state.last + 1),
                    )
            if loop.time() + pause >= deadline:
                raise LogUnavailable(f"the log of {self.stream.segment} did not take record {place}", sent=sent)
            await asyncio.sleep(pause)
            pause = min(pause * 2, RETRY_SECONDS[1])

    async def _attempt(self, payload: bytes, after: Sequence, seconds: float) -> _Heard:
        try:
            await self._connection.wait_connected(max(seconds, 0.0))
            message = await self._connection.request(
                self._subject,
                payload,
                min(max(seconds, 0.05), self.patience.answer_seconds_max),
                reply=f"{self._reply}.{next(self._numbers)}",
                headers=b"NATS/1.0\r\nNats-Expected-Last-Sequence: %d\r\n\r\n" % after,
            )
        except NotSent:
            return _Heard.NOT_SENT
        except LogUnavailable:
            return _Heard.UNKNOWN
        if message.status == NOBODY:
            return _Heard.NOT_TAKEN
        return _heard(message.payload, after)

    async def _standing(self, place: Sequence) -> bytes | None:
        """What stands at *place*; None: nothing does, or nobody can say."""
        try:
            standing = await self.stream.peek(place, self.patience.answer_seconds_max)
        except LogUnavailable:
            return None
        return standing.record.payload if standing and standing.subject == self._subject else None

    def _fenced(self, place: Sequence, last: Sequence) -> Fenced:
        return Fenced(f"record {place} of {self.stream.segment} is another writer's", last=max(last, place))

    async def _state_if_known(self, deadline: float) -> LogState | None:
        """The state, None when nobody can say within a moment, at *deadline* at the latest. Raises LogReplaced."""
        left = deadline - asyncio.get_running_loop().time()
        try:
            return (await self.info_within(max(0.05, min(left, GONE_SECONDS * 3)))).state
        except LogUnavailable:
            return None

    def _answered(self, message: wire.Message) -> None:
        self._connection.deliver(message)

    async def info_within(self, seconds: float, *, of_anyone: bool = False) -> StreamInfo:
        """The stream as its leader describes it, or *of_anyone* any replica while nobody leads.

        Raises LogReplaced, LogUnavailable.
        """
        try:
            info = await _info_twice(self.stream, seconds, of_anyone=of_anyone)
        except ApiError as error:
            if error.code != Code.NO_STREAM:
                raise
            raise LogReplaced(f"the log of {self.stream.segment} is gone", now=None) from error
        if info.state.incarnation != self._incarnation:
            raise self.replaced(info.state.incarnation)
        return info

    def replaced(self, now: Incarnation) -> LogReplaced:
        return LogReplaced(f"the log of {self.stream.segment} was replaced: it is {now[:8]} now", now=now)

    async def state(self) -> LogState:
        return (await self.info_within(self.patience.request_seconds_max)).state

    async def info(self) -> StreamInfo:
        """State, leader and replicas. Raises LogReplaced, LogUnavailable."""
        return await self.info_within(self.patience.request_seconds_max)

    async def read(self, sequence: Sequence) -> Record:
        standing = None
        try:
            standing = await self.stream.peek(sequence, self.patience.answer_seconds_max)
        except LogUnavailable:
            await self._connection.wait_connected(self.patience.request_seconds_max)
        if standing is None:
            state = await self.state()
            if sequence < state.first:
                raise Trimmed(f"record {sequence} of {self.stream.segment} was trimmed", first=state.first)
            # Also past its end: a leader that was cut off may answer, from before it was, until it hears of another.
            standing = await self.stream.find(sequence, self.patience.request_seconds_max)
            if standing is None and sequence > state.last:
                raise Missing(f"record {sequence} of {self.stream.segment} does not exist: the last is {state.last}")
        if standing is None:
            raise LogDamaged(f"record {sequence} of {self.stream.segment} is missing", sequence=sequence)
        if standing.subject != self._subject:
            raise self.replaced(Incarnation(standing.subject.rpartition(".")[2]))
        return standing.record

    def follow(self, after: Sequence) -> AsyncIterator[Record]:
        return follow.records(self, after)

    async def trim(self, through: Sequence) -> None:
        state = await self.state()
        if through < state.first:
            return
        await self.stream.purge_through(min(through, state.last), self.patience.request_seconds_max)

    async def close(self) -> None:
        self._connection.unsubscribe(self._listening)
        if self._owns_connection:
            await self._connection.close()


async def create(
    connection: Connection,
    segment: SegmentName,
    *,
    replicas: int,
    bytes_max: int = BYTES_MAX,
    patience: Patience | None = None,
) -> JetStreamLog:
    """A new, empty log. Raises Refused when the segment has one, LogUnavailable, LogFull."""
    patience = patience or Patience()
    if replicas not in (1, 3):
        raise ConfigurationError(f"{replicas} log replicas are not possible", hint="1 for one machine, 3 for three.")
    stream = Stream(connection, segment)
    incarnation = Incarnation(secrets.token_hex(16))
    try:
        await stream.create(incarnation, replicas=replicas, bytes_max=bytes_max, seconds=patience.request_seconds_max)
    except ApiError as error:
        if error.code != Code.EXISTS:
            raise
        raise Refused(f"segment {segment} has a log already", hint="Open it, or replace it.") from error
    return JetStreamLog(stream, incarnation, patience)


async def open_log(
    connection: Connection,
    segment: SegmentName,
    *,
    patience: Patience | None = None,
    owns_connection: bool = False,
) -> JetStreamLog:
    """The log as it stands. Raises Missing when there is none, LogUnavailable."""
    patience = patience or Patience()
    stream = Stream(connection, segment)
    try:
        info = await _info_twice(stream, patience.request_seconds_max, of_anyone=True)
    except ApiError as error:
        if error.code != Code.NO_STREAM:
            raise
        raise Missing(f"segment {segment} has no log", hint="Create it (holdfast init).") from error
    return JetStreamLog(stream, info.state.incarnation, patience, owns_connection=owns_connection)


async def open_again(log: JetStreamLog) -> JetStreamLog:
    """*log* itself while it stands; else what stands in its place now, and *log* is closed.

    For who looks again and again: each log that is opened listens for answers, at every server, until it is closed.
    Raises as :func:`open_log`.
    """
    try:
        await log.info_within(log.patience.request_seconds_max, of_anyone=True)
    except LogReplaced:
        await log.close()
        return await open_log(log.stream.connection, log.stream.segment, patience=log.patience)
    return log


async def replace(
    connection: Connection,
    segment: SegmentName,
    *,
    expected: Incarnation | None,
    replicas: int,
    bytes_max: int = BYTES_MAX,
    patience: Patience | None = None,
) -> JetStreamLog:
    """Delete the log *expected* (None: there should be none) and begin a new one. All its records are lost to readers.

    A crash in between leaves no log: repeat with ``expected=None``. Raises Refused when another incarnation stands
    there, LogUnavailable, LogFull.
    """
    patience = patience or Patience()
    stream = Stream(connection, segment)
    try:
        info = await _info_twice(stream, patience.request_seconds_max, of_anyone=True)
        standing: Incarnation | None = info.state.incarnation
    except ApiError as error:
        if error.code != Code.NO_STREAM:
            raise
        standing = None
    if standing is not None:
        if standing != expected:
            raise Refused(
                f"the log of {segment} is {standing[:8]}, not the one to be replaced",
                hint="Somebody else replaced it: open it and look.",
            )
        await stream.delete(patience.request_seconds_max)
    return await create(connection, segment, replicas=replicas, bytes_max=bytes_max, patience=patience)


async def connect(settings: LogConnection, segment: SegmentName, *, patience: Patience | None = None) -> JetStreamLog:
    """Open the log on a connection of its own, which :meth:`JetStreamLog.close` ends."""
    connection = await Connection.open(settings)
    try:
        return await open_log(connection, segment, patience=patience, owns_connection=True)
    except (HoldfastError, asyncio.CancelledError):
        await connection.close()
        raise


async def _info_twice(stream: Stream, seconds: float, *, of_anyone: bool = False) -> StreamInfo:
    try:
        return await stream.info(seconds, of_anyone=of_anyone)
    except ApiError as error:
        if error.code != Code.NO_STREAM:
            raise
    await asyncio.sleep(GONE_SECONDS)
    return await stream.info(seconds, of_anyone=of_anyone)


def _heard(payload: bytes, after: Sequence) -> _Heard:
    """The leader's answer to an append. Raises LogFull, ApiError."""
    try:
        place = taken_at(payload)
    except ApiError as error:
        if error.code in WRONG_LAST:
            return _Heard.MISPLACED
        raise
    if place is None:
        return _Heard.NOT_TAKEN
    assert place == after + 1, (place, after)
    return _Heard.DONE
