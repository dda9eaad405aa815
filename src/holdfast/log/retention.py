"""How much of the log may be forgotten: pure.

Three wishes in order of weight: the disk's hard limit is never passed; no live reader loses what it has not read; the
site keeps as many bytes and as much time as it asked for, and no more.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple

from holdfast.changes.names import MachineName, Sequence
from holdfast.log.port import LogState

READER_SECONDS_MAX: Final = 7 * 24 * 3600.0
"""A reader not heard of for a week is not waited for: it is seeded again when it comes back."""


@dataclass(frozen=True, slots=True)
class Retention:
    """What the site wants kept, and the limits on what is waited for."""

    keep_bytes: int
    """Forget what is older than the newest this many bytes ..."""
    keep_seconds: float
    """... and what is older than this: whichever forgets more."""
    hard_bytes: int
    """Above this much stored, slow readers are left behind. Keep it below the stream's own ``max_bytes``."""
    reader_seconds_max: float = READER_SECONDS_MAX


class Reader(NamedTuple):
    """A follower: *durable* is the last sequence it has safely, *seen_seconds_ago* since it last said so."""

    name: MachineName
    durable: Sequence
    seen_seconds_ago: float


class Mark(NamedTuple):
    """The log's last sequence was *sequence*, *age_seconds* ago (by a clock that only goes forward)."""

    sequence: Sequence
    age_seconds: float


class Trim(NamedTuple):
    """Trim through *through* (``first - 1``: nothing). The readers *left_behind* then need a new seed."""

    through: Sequence
    left_behind: tuple[MachineName, ...]
    reason: str


def trim_through(state: LogState, marks: Iterable[Mark], readers: Iterable[Reader], retention: Retention) -> Trim:
    """What to forget now.

    *marks* are what the caller noted of this incarnation as it grew; trimming by age is to a mark. Trimming by bytes
    takes records to be of average size: called on a timer, it comes as near as the next call.
    """
    everyone = list(readers)
    live = [reader for reader in everyone if reader.seen_seconds_ago <= retention.reader_seconds_max]
    too_old = [
        mark.sequence for mark in marks if mark.age_seconds > retention.keep_seconds and mark.sequence <= state.last
    ]
    wanted = max([_holding(state, state.stored_bytes - retention.keep_bytes), *too_old])
    through, reason = wanted, "kept as long as configured"

    slowest = min(live, key=lambda reader: reader.durable, default=None)
    if slowest is not None and slowest.durable < wanted:
        through = slowest.durable
        reason = f"waiting for {slowest.name}, which has {slowest.durable} of {state.last}"

    forced = _holding(state, state.stored_bytes - retention.hard_bytes)
    if forced > through:
        through = forced
        reason = f"{state.stored_bytes} bytes stored are above the limit of {retention.hard_bytes}"

    through = max(through, Sequence(state.first - 1))
    return Trim(through, tuple(reader.name for reader in everyone if reader.durable < through), reason)


def _holding(state: LogState, excess_bytes: int) -> Sequence:
    """The sequence up to which *excess_bytes* lie, records being of average size; ``first - 1`` for none."""
    if excess_bytes <= 0 or state.stored_bytes <= 0:
        return Sequence(state.first - 1)
    records = state.last - state.first + 1
    return Sequence(min(state.first - 1 + -(-records * excess_bytes // state.stored_bytes), state.last))
