"""The log and the bus in memory, for tests: the same contract, with the faults a test wants to see.

Several handles on one store are several machines on one log.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from holdfast.changes.names import Incarnation, Sequence
from holdfast.errors import HoldfastError, Refused, Unreachable
from holdfast.log.listener import Listener
from holdfast.log.port import (
    HANDLERS_MAX,
    PAYLOAD_BYTES_MAX,
    Fenced,
    Handler,
    LogDamaged,
    LogFull,
    LogReplaced,
    LogState,
    LogUnavailable,
    Missing,
    Record,
    Trimmed,
)


class MemoryLogStore:
    """What the replicas hold together. *available* False: no quorum. *bytes_max*: the disk's size."""

    def __init__(self, bytes_max: int | None = None) -> None:
        self.available = True
        self.bytes_max = bytes_max
        self.incarnation = Incarnation(secrets.token_hex(16))
        self._records: dict[Sequence, bytes] = {}
        self._first = Sequence(1)
        self._last = Sequence(0)
        self._changed = asyncio.Event()

    def open(self, *, append_seconds_max: float = 20.0) -> MemoryLog:
        return MemoryLog(self, append_seconds_max)

    def replace(self, expected: Incarnation) -> MemoryLog:
        """Begin a new, empty log. Raises Refused when *expected* is not the one that stands."""
        if expected != self.incarnation:
            raise Refused(f"the log is {self.incarnation[:8]}, not the one to be replaced")
        self.incarnation = Incarnation(secrets.token_hex(16))
        self._records.clear()
        self._first, self._last = Sequence(1), Sequence(0)
        self.wake()
        return self.open()

    def lose(self, sequence: Sequence) -> None:
        """Damage: *sequence* is gone, though it was acknowledged."""
        del self._records[sequence]

    def lose_all(self) -> None:
        """Damage: two of three replicas were empty, and they agree that there is nothing."""
        self._records.clear()
        self._first, self._last = Sequence(1), Sequence(0)
        self.wake()

    def spoil(self, sequence: Sequence, payload: bytes) -> None:
        """Damage: *sequence*, acknowledged, holds something else now."""
        assert sequence in self._records
        self._records[sequence] = payload

    def set_available(self, available: bool) -> None:
        self.available = available
        self.wake()

    def state(self) -> LogState:
        stored = sum(len(payload) for payload in self._records.values())
        return LogState(self.incarnation, self._first, self._last, stored)

    def put(self, payload: bytes) -> None:
        if self.bytes_max is not None and self.state().stored_bytes + len(payload) > self.bytes_max:
            raise LogFull("the log is full")
        self._last = Sequence(self._last + 1)
        self._records[self._last] = payload
        self.wake()

    def get(self, sequence: Sequence) -> Record:
        if sequence < self._first:
            raise Trimmed(f"record {sequence} was trimmed", first=self._first)
        if sequence > self._last:
            raise Missing(f"record {sequence} does not exist: the last is {self._last}")
        if sequence not in self._records:
            raise LogDamaged(f"record {sequence} is missing", sequence=sequence)
        return Record(sequence, self._records[sequence])

    def trim(self, through: Sequence) -> None:
        while self._first <= min(through, self._last):
            self._records.pop(self._first, None)
            self._first = Sequence(self._first + 1)

    def wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def wait(self) -> None:
        """Until anything changes."""
        await self._changed.wait()


class MemoryLog:
    """A handle: a :class:`holdfast.log.port.Log`."""

    def __init__(self, store: MemoryLogStore, append_seconds_max: float) -> None:
        self._store = store
        self._incarnation = store.incarnation
        self._append_seconds_max = append_seconds_max
        self._order = asyncio.Lock()

    @property
    def incarnation(self) -> Incarnation:
        return self._incarnation

    async def append(self, payload: bytes, *, after: Sequence) -> Sequence:
        if len(payload) > PAYLOAD_BYTES_MAX:
            raise HoldfastError(f"a record of {len(payload)} bytes is above the limit of {PAYLOAD_BYTES_MAX}")
        async with self._order:
            await self._available(self._append_seconds_max)
            place, last = Sequence(after + 1), self._store.state().last
            if last < after:
                raise LogDamaged(f"the log ends at {last}, but {after} was acknowledged", sequence=Sequence(last + 1))
            if last == after:
                self._store.put(payload)
            elif not self._same(place, payload):
                raise Fenced(f"record {place} is another writer's", last=last)
            return place

    def _same(self, place: Sequence, payload: bytes) -> bool:
        try:
            return self._store.get(place).payload == payload
        except Trimmed:
            return False

    async def _available(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                while not self._store.available:
                    await self._store.wait()
        except TimeoutError:
            raise LogUnavailable("the log has no quorum") from None
        if self._store.incarnation != self._incarnation:
            raise LogReplaced("the log was replaced", now=self._store.incarnation)

    async def state(self) -> LogState:
        await self._available(0)
        return self._store.state()

    async def read(self, sequence: Sequence) -> Record:
        await self._available(0)
        return self._store.get(sequence)

    async def follow(self, after: Sequence) -> AsyncIterator[Record]:
        following = Sequence(after + 1)
        while True:
            if not self._store.available:
                await self._store.wait()
                continue
            await self._available(0)
            last = self._store.state().last
            if last < following - 1:
                raise LogDamaged(f"the log ends at {last}, but {following - 1} was read from it", sequence=following)
            try:
                record = self._store.get(following)
            except Missing:
                await self._store.wait()
                continue
            yield record
            following = Sequence(following + 1)

    async def trim(self, through: Sequence) -> None:
        await self._available(0)
        self._store.trim(through)

    async def close(self) -> None:
        """Nothing to let go of."""


class MemoryBusNetwork:
    """What the buses of one test share."""

    def __init__(self) -> None:
        self.listeners: list[tuple[tuple[str, ...], Listener]] = []
        self.servers: dict[str, tuple[Handler, asyncio.Semaphore, MemoryBus]] = {}

    def open(self) -> MemoryBus:
        return MemoryBus(self)


class MemoryBus:
    """A handle: a :class:`holdfast.log.port.Bus`. *connected* False: what it sends, answers too, does not arrive."""

    def __init__(self, network: MemoryBusNetwork) -> None:
        self.connected = True
        self._network = network

    async def publish(self, subject: str, payload: bytes) -> None:
        if self.connected:
            for pattern, listener in self._network.listeners:
                if matches(pattern, subject):
                    listener.put(subject, payload)

    @asynccontextmanager
    async def subscribe(self, subject: str) -> AsyncIterator[AsyncIterator[tuple[str, bytes]]]:
        entry = (tuple(subject.split(".")), Listener())
        self._network.listeners.append(entry)
        try:
            yield entry[1]
        finally:
            self._network.listeners.remove(entry)

    async def request(self, subject: str, payload: bytes, *, timeout_seconds: float) -> bytes:
        found = self._network.servers.get(subject)
        if not self.connected or found is None:
            raise Unreachable(f"nobody answers {subject}", retry=True)
        handler, places, server = found
        try:
            async with asyncio.timeout(timeout_seconds), places:
                answer = await handler(subject, payload)
        except TimeoutError:
            raise Unreachable(f"no answer to {subject} within {timeout_seconds:g} s", retry=True) from None
        if not server.connected:
            raise Unreachable(f"the answer to {subject} was lost", retry=True)
        return answer

    async def serve(self, subject: str, handler: Handler) -> None:
        self._network.servers[subject] = (handler, asyncio.Semaphore(HANDLERS_MAX), self)


def matches(pattern: tuple[str, ...], subject: str) -> bool:
    """NATS wildcards: ``*`` is one word, a final ``>`` is one or more."""
    words = subject.split(".")
    for place, word in enumerate(pattern):
        if word == ">":
            return len(words) > place
        if place >= len(words) or word not in ("*", words[place]):
            return False
    return len(words) == len(pattern)
