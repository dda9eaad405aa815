"""The log's records as a standby may apply them under the policy ``interval``: a copy's when all of it is there.

The log holds what comes of a copy before it is whole; nothing else does. A copy up to ``HELD_BYTES_MAX`` is kept in
memory meanwhile; of a larger one only its length, and it is read again when it is whole.

A promotion is told as soon as it is read: who the primary is does not wait for its first copy.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Final

from holdfast.changes.frame import FrameKind, read_header
from holdfast.changes.names import Sequence
from holdfast.log.port import Log, Record

HELD_BYTES_MAX: Final = 32 * 1024 * 1024


class WholeCopies:
    """Reads *log* from after *after* on. *on_seen* is called when a record was looked at, applied or not."""

    def __init__(
        self,
        log: Log,
        after: Sequence,
        *,
        on_seen: Callable[[], None],
        on_promotion: Callable[[Record], None],
        held_bytes_max: int = HELD_BYTES_MAX,
    ) -> None:
        self._log = log
        self._on_seen = on_seen
        self._on_promotion = on_promotion
        self._held_bytes_max = held_bytes_max
        self.seen = after
        """The last record looked at."""
        self.whole = after
        """The last record that made a copy whole: what a takeover would use."""

    async def records(self) -> AsyncIterator[Record]:
        """As ``Log.follow``, a whole copy at a time. Raises what it raises, FrameDamaged for an unreadable header."""
        held: list[Record] = []
        held_bytes = 0
        async for record in self._log.follow(self.seen):
            header, _ = read_header(record.payload)
            held.append(record)
            held_bytes += len(record.payload)
            if held_bytes > self._held_bytes_max:
                held.clear()
            if header.kind is FrameKind.PROMOTION:
                self._on_promotion(record)
            self.seen = record.sequence
            if not header.more:
                begin, self.whole = self.whole, record.sequence
                async for ready in self._again(begin, held):
                    yield ready
                held, held_bytes = [], 0
            self._on_seen()

    async def _again(self, begin: Sequence, held: list[Record]) -> AsyncIterator[Record]:
        """The records after *begin* up to ``whole``."""
        if len(held) < self.whole - begin:
            async for record in self._log.follow(begin):
                yield record
                if record.sequence >= self.whole:
                    return
        for record in held:
            yield record
