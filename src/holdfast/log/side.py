"""Side streams: what machines that do not write the log have to say, kept as safely as the log is.

The log has one writer and its order is the truth. A side stream has many writers and no order between them: a relay
puts there what it has accepted, every machine what became of a message. It lies in the same engine, with as many
replicas, synced always, behind the same certificates.

A message has a *subject* (words between dots, below the stream's own prefix) and a *place* (from 1, with gaps after a
purge). :class:`SideStream` is the port; ``side_memory`` and ``side_stream`` are held to one contract
(tests/log/test_side_contract.py), ``side_seal`` seals what goes through any of them.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final, NamedTuple, NewType, Protocol

from holdfast.changes.names import Incarnation, SegmentName
from holdfast.errors import HoldfastError

SHADOWS: Final = "shadows"
"""What relays have accepted and not settled."""
RECIPIENTS: Final = "recipients"
"""What the primary's Postfix takes mail for."""
LEDGER: Final = "ledger"
"""What relays have to say of messages."""
SIDE_STREAMS: Final = (SHADOWS, RECIPIENTS, LEDGER)
"""A site has them where relays take mail."""
Place = NewType("Place", int)
"""A message's number in one side stream, from 1; 0 is "before the first"."""
BEFORE_FIRST: Final = Place(0)
SUBJECT_WORDS_MAX: Final = 8
_WORD: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")


class SideMessage(NamedTuple):
    place: Place
    subject: str
    """Below the stream's prefix."""
    payload: bytes


class SideState(NamedTuple):
    """The stream at one moment, as its leader sees it."""

    incarnation: Incarnation
    """Another one: the stream was made anew, and places of the old one mean nothing."""
    first: Place
    last: Place
    messages: int
    stored_bytes: int
    bytes_max: int


@dataclass(frozen=True, slots=True)
class SideShape:
    """What a side stream is to be like. A stream that stands is changed to it, but for its name."""

    name: str
    """One word; with the segment it names the stream and its subjects."""
    bytes_max: int
    age_seconds_max: float = 0.0
    """Messages older than this go by themselves; 0: none does."""
    refuses_when_full: bool = True
    """False: the oldest goes."""


class SideStream(Protocol):
    """A handle on one segment's stream of one name."""

    async def publish(self, subject: str, payload: bytes, *, once: str = "") -> Place:
        """Put *payload* there, and return its place once a quorum has it on disk.

        Two with the same *once* within SAME_SECONDS are one: what is certain to be repeated (after a crash, or after
        LogUnavailable) names itself. Without it only the repeats of this call are one.
        Raises LogFull, LogUnavailable (*sent*: it may stand there after all, or come to stand there), HoldfastError.
        """
        ...

    def read(self, pattern: str = ">", *, after: Place = BEFORE_FIRST) -> AsyncIterator[SideMessage]:
        """What stands at subjects like *pattern* (NATS wildcards) behind *after*, in order, up to now; then it ends.

        Everything acknowledged before the call and not purged is among it; what was purged a moment ago may be, too.
        Raises LogUnavailable.
        """
        ...

    async def last(self, subject: str) -> SideMessage | None:
        """The last one at *subject*. Raises LogUnavailable."""
        ...

    async def purge(self, pattern: str) -> int:
        """Forget all at subjects like *pattern*; how many there were. Idempotent. Raises LogUnavailable."""
        ...

    async def state(self) -> SideState:
        """Raises LogUnavailable; Missing when there is no such stream."""
        ...


SAME_SECONDS: Final = 120.0
"""How long the servers remember a *once* (nats-server's default window)."""


def stream_name(segment: SegmentName, name: str) -> str:
    """No segment's log can be called so: names of segments have no underscore."""
    return f"HF_{segment}_{name}"


def prefix(segment: SegmentName, name: str) -> str:
    return f"hf.{segment}.side.{name}"


def checked_subject(subject: str) -> str:
    """*subject* itself when a message can be published there."""
    words = subject.split(".")
    if len(words) > SUBJECT_WORDS_MAX or not all(_WORD.fullmatch(word) for word in words):
        raise HoldfastError(f"{subject!r} cannot be the subject of a message", hint="Letters, digits, - and _.")
    return subject
