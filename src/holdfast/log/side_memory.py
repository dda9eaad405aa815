"""A side stream in memory, for tests: the same contract. Several handles on one store are several machines."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator

from holdfast.changes.names import Incarnation
from holdfast.errors import HoldfastError
from holdfast.log.memory import matches
from holdfast.log.port import PAYLOAD_BYTES_MAX, LogFull, LogUnavailable
from holdfast.log.side import BEFORE_FIRST, Place, SideMessage, SideState, checked_subject


class MemorySide:
    """A :class:`holdfast.log.side.SideStream`. *available* False: no quorum."""

    def __init__(self, bytes_max: int = 1024**3, *, refuses_when_full: bool = True) -> None:
        self.available = True
        self.bytes_max = bytes_max
        self._refuses_when_full = refuses_when_full
        self._incarnation = Incarnation(secrets.token_hex(16))
        self._messages: dict[Place, SideMessage] = {}
        self._last = BEFORE_FIRST
        self._once: dict[str, Place] = {}

    @property
    def messages(self) -> int:
        return len(self._messages)

    def _stored_bytes(self) -> int:
        return sum(len(message.payload) for message in self._messages.values())

    def _require(self) -> None:
        if not self.available:
            raise LogUnavailable("the stream has no quorum")

    async def publish(self, subject: str, payload: bytes, *, once: str = "") -> Place:
        if len(payload) > PAYLOAD_BYTES_MAX:
            raise HoldfastError(f"a message of {len(payload)} bytes is above the limit of {PAYLOAD_BYTES_MAX}")
        checked_subject(subject)
        self._require()
        if once and once in self._once:
            return self._once[once]
        while self._stored_bytes() + len(payload) > self.bytes_max:
            if self._refuses_when_full or not self._messages:
                raise LogFull("the stream is full")
            del self._messages[min(self._messages)]
        self._last = Place(self._last + 1)
        self._messages[self._last] = SideMessage(self._last, subject, payload)
        if once:
            self._once[checked_subject(once)] = self._last
        return self._last

    async def read(self, pattern: str = ">", *, after: Place = BEFORE_FIRST) -> AsyncIterator[SideMessage]:
        self._require()
        words = tuple(pattern.split("."))
        for place in sorted(self._messages):
            message = self._messages.get(place)
            if message is not None and place > after and matches(words, message.subject):
                yield message

    async def last(self, subject: str) -> SideMessage | None:
        self._require()
        found = [message for message in self._messages.values() if message.subject == checked_subject(subject)]
        return max(found, default=None)

    async def purge(self, pattern: str) -> int:
        self._require()
        words = tuple(pattern.split("."))
        gone = [place for place, message in self._messages.items() if matches(words, message.subject)]
        for place in gone:
            del self._messages[place]
        return len(gone)

    async def state(self) -> SideState:
        self._require()
        first = min(self._messages, default=Place(self._last + 1))
        return SideState(
            self._incarnation, first, self._last, len(self._messages), self._stored_bytes(), self.bytes_max
        )
