"""What the log is, whoever keeps it: records in order, one writer, and the ways it can say no.

:class:`Log` and :class:`Bus` are the two ports; ``memory`` and ``jetstream`` are held to one contract
(tests/log/test_contract.py).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import ClassVar, Final, NamedTuple, Protocol

from holdfast.changes.names import Incarnation, Sequence
from holdfast.errors import ExitStatus, HoldfastError, NoSpace, Unreachable

PAYLOAD_BYTES_MAX: Final = 8 * 1024 * 1024 - 64 * 1024
"""The servers take 8 MiB a message (``max_payload``), our header included; 64 KiB stay free for it."""

Handler = Callable[[str, bytes], Awaitable[bytes]]
"""Answers one request: (subject, payload) to the reply's payload."""


class Record(NamedTuple):
    """One entry of the log; the payload is opaque here (a sealed frame)."""

    sequence: Sequence
    payload: bytes


class LogState(NamedTuple):
    """The log at one moment. Empty: ``first == last + 1``. *stored_bytes* is what one replica uses."""

    incarnation: Incarnation
    first: Sequence
    last: Sequence
    stored_bytes: int


class Leaders(NamedTuple):
    """Who leads the log and the servers' metadata now (server names; None: nobody, or unknown), and what was done."""

    stream: str | None
    meta: str | None
    asked: tuple[str, ...]
    lacking: tuple[str, ...] | None = None
    """Servers of the log that do not hold all its records: down, or being filled. None: not known, as nobody leads."""


NOBODY_KNOWN: Final = Leaders(None, None, ())


class Fenced(HoldfastError):
    """Another record stands where ours was to go: another machine writes this log. Never retried.

    *last* is the last sequence the log was seen to have.
    """

    exit_status: ClassVar[ExitStatus] = ExitStatus.REFUSED

    def __init__(self, message: str, *, last: Sequence, hint: str = "") -> None:
        super().__init__(message, hint=hint or "Stop serving: look at the last promotion in the log.")
        self.last = last


class LogUnavailable(Unreachable):
    """No quorum or no server within the deadline; nothing is known to be lost.

    For an append: *sent* False means certainly not appended. *sent* True means the record was handed to a server and
    could still appear after this error (a replica may hold it, waiting for a quorum). So repeat the append with the
    *same* payload and the same ``after``: it then finds its own record and succeeds. Another payload would be fenced.
    """

    def __init__(self, message: str, *, sent: bool = False, hint: str = "") -> None:
        hint = hint or "Two of the three log servers must run and reach each other."
        super().__init__(message, hint=hint, retry=True)
        self.sent = sent


class LogFull(NoSpace):
    """The log's disk or its quota is full: the record was not appended."""


class Trimmed(HoldfastError):
    """The record asked for is older than the log's first: the reader needs a new seed. *first* is what there is."""

    def __init__(self, message: str, *, first: Sequence) -> None:
        super().__init__(message, hint="Seed this reader again by a scan (holdfast join).")
        self.first = first


class Missing(HoldfastError):
    """No record has this number (yet)."""


class LogReplaced(HoldfastError):
    """The stream now belongs to another incarnation (or is gone): positions of the old one mean nothing."""

    def __init__(self, message: str, *, now: Incarnation | None) -> None:
        super().__init__(message, hint="Open the log again; readers start from the new log's seed.")
        self.now = now


class LogDamaged(HoldfastError):
    """Records that were acknowledged are not there any more: a hole, or the log ends before a place already read."""

    def __init__(self, message: str, *, sequence: Sequence) -> None:
        hint = "Replace the log (a new incarnation, seeded by a scan); keep the old store aside."
        super().__init__(message, hint=hint)
        self.sequence = sequence


class Log(Protocol):
    """A handle on one segment's log, bound to the incarnation it opened."""

    @property
    def incarnation(self) -> Incarnation: ...

    async def append(self, payload: bytes, *, after: Sequence) -> Sequence:
        """Put *payload* at ``after + 1`` and return that, once a quorum has it on disk.

        Raises Fenced, LogReplaced, LogUnavailable, LogFull, LogDamaged (the log ends before *after*), and HoldfastError
        for a payload above PAYLOAD_BYTES_MAX. Calls of one handle are carried out in the order they were made.
        """
        ...

    async def state(self) -> LogState:
        """Raises LogReplaced, LogUnavailable."""
        ...

    async def read(self, sequence: Sequence) -> Record:
        """Raises Trimmed (below the first), Missing (above the last), LogDamaged (hole), LogReplaced, Unavailable."""
        ...

    def follow(self, after: Sequence) -> AsyncIterator[Record]:
        """Every record from ``after + 1`` on, in order, without gaps and without end.

        Outlives restarts of servers and connections. Raises Trimmed, LogReplaced, LogDamaged; never LogUnavailable:
        without a server it waits.
        """
        ...

    async def trim(self, through: Sequence) -> None:
        """Forget the records up to and including *through*; past the last is as far as the last. Idempotent.

        Raises LogReplaced, LogUnavailable.
        """
        ...

    async def close(self) -> None:
        """Let go of the connection if it is ours. The log stays."""
        ...


class Bus(Protocol):
    """Messages between agents that are heard or lost: no storage, no order between senders, no leader needed."""

    async def publish(self, subject: str, payload: bytes) -> None:
        """Send, best effort. Raises nothing when nobody is connected: a beat not sent is a beat not heard."""
        ...

    def subscribe(self, subject: str) -> AbstractAsyncContextManager[AsyncIterator[tuple[str, bytes]]]:
        """``async with bus.subscribe("a.*") as messages``: inside, no message published from then on is skipped.

        Gives (subject, payload). A listener that lags by more than LISTENER_MESSAGES_MAX loses the oldest.
        """
        ...

    async def request(self, subject: str, payload: bytes, *, timeout_seconds: float) -> bytes:
        """One answer. Raises Unreachable when nobody answers in time, HoldfastError when the answerer failed."""
        ...

    async def serve(self, subject: str, handler: Handler) -> None:
        """Answer requests until the bus closes, up to HANDLERS_MAX at once; a HoldfastError becomes the asker's."""
        ...


LISTENER_MESSAGES_MAX: Final = 1024
"""Beats come 4 a second from each machine: minutes of them. Older ones say nothing a newer does not."""
HANDLERS_MAX: Final = 16
"""Requests are questions between a handful of agents; more at once are a loop gone wrong, and wait."""
