"""Promise 1: nothing acknowledged is lost by the loss of any one machine, as far as the promise reaches.

How far it reaches is a fact of the drill: up to a moment (*safe*) everything acknowledged had been captured by the log.
A message lost that was acknowledged before it breaks the promise. One acknowledged after it is excused, and named. So
is a difference in state that rests on an operation acknowledged after it (:func:`excused`).
"""

from __future__ import annotations

import time
from collections.abc import Iterable

import msgspec
from msgspec import Struct

from holdfast.drill.checkers.findings import Difference, LostMessage, What


class Reach(Struct, frozen=True):
    """*safe_mono_ns*: whatever was acknowledged until then was captured. None: everything is promised (a switchover).

    *killed_mono_ns* is when the machine died. *queued* are the Message-IDs known to have been in its mail queue then,
    not yet in a mailbox; they are excused only if the queue was not protected. *set_aside* are those found on its disk
    when it came back, and not in the log: they had reached a mailbox there after the last thing captured.
    """

    safe_mono_ns: int | None = None
    killed_mono_ns: int | None = None
    queued: frozenset[str] = frozenset()
    queue_protected: bool = True
    set_aside: frozenset[str] = frozenset()

    def late(self, moment: int) -> bool:
        """Whether what was acknowledged at *moment* came too late before the machine's death to be promised."""
        killed = self.killed_mono_ns
        return self.safe_mono_ns is not None and self.safe_mono_ns < moment and (killed is None or moment <= killed)


def explain(lost: Iterable[LostMessage], reach: Reach) -> list[LostMessage]:
    """*lost* with reasons: why each may be gone, and whether the promise did not cover it."""
    return [_explained(message, reach) for message in lost]


def nothing_lost(lost: Iterable[LostMessage], reach: Reach) -> list[Difference]:
    """The losses that break the promise."""
    return [
        Difference(
            message.account,
            message.expected_in,
            0,
            What.MESSAGE_MISSING,
            message.message_id,
            "",
            f"{message.operation} acknowledged {_clock(message.acknowledged_real_ns)}; {message.reason}",
        )
        for message in explain(lost, reach)
        if not message.excused
    ]


def excused(difference: Difference, reach: Reach) -> bool:
    """Whether it rests on an operation acknowledged too late before the machine died to be promised."""
    return any(reach.late(moment) for moment in difference.rests_on)


def _explained(lost: LostMessage, reach: Reach) -> LostMessage:
    reason, excused = "acknowledged and captured, and gone", False
    if lost.message_id in reach.queued:
        reason, excused = "was in the mail queue of the machine that died", not reach.queue_protected
    elif lost.message_id in reach.set_aside and reach.killed_mono_ns is not None:
        before_ms = (reach.killed_mono_ns - lost.acknowledged_mono_ns) / 1e6
        reason = (
            f"stood on the dead machine's disk only, {before_ms:.0f} ms after its acknowledgement; kept aside there"
        )
        excused = before_ms >= 0
    elif lost.copies and any(reach.late(moment) for moment in lost.rests_on):
        reason, excused = "the message is there; that copy or move was not yet captured", True
    elif reach.safe_mono_ns is not None and lost.acknowledged_mono_ns > reach.safe_mono_ns:
        reason, excused = "not yet captured when the machine died", True
        if reach.killed_mono_ns is not None:
            before_ms = (reach.killed_mono_ns - lost.acknowledged_mono_ns) / 1e6
            reason += f" ({before_ms:.0f} ms after its acknowledgement)"
            excused = before_ms >= 0
            if not excused:
                reason = "acknowledged after the machine died, and gone"
    return msgspec.structs.replace(lost, reason=reason, excused=excused)


def _clock(real_ns: int) -> str:
    whole, milliseconds = divmod(real_ns // 1_000_000, 1000)
    return f"{time.strftime('%H:%M:%S', time.gmtime(whole))}.{milliseconds:03d} UTC"
