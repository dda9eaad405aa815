"""Handing on what a relay has held, in order, at the primary's pace."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Collection
from typing import Final

from msgspec import Struct

from holdfast.gate.held import in_order
from holdfast.gate.pace import REST_SECONDS, Pace
from holdfast.gate.queue import PostfixQueue

LOOK_SECONDS: Final = 0.5
LAST_LOOK_SECONDS: Final = 0.1
"""When nothing is left to be given free."""


class Progress(Struct, frozen=True):
    """Of a drain. *left* are on hold, *on_way* given free and not handed on yet."""

    messages: int
    handed_on: int
    on_way: int
    left: int
    rate: float
    """Messages a second."""
    seconds_left: float | None
    stalled: bool
    """The primary takes nothing at the moment."""
    done: bool = False


async def drain(
    queue: PostfixQueue,
    first: Collection[str],
    *,
    clock: Callable[[], float],
) -> AsyncGenerator[Progress, None]:
    """All that waits, *first* first. Given up in the middle, the rest stays on hold. Raises HoldfastError."""
    await queue.hold_all()
    left = in_order(await queue.listed(), first)
    total = len(left)
    on_way: set[str] = set()
    pace, handed_on = Pace(), 0
    looked_at = clock()
    while left or on_way:
        room = 0 if pace.stalled and on_way else max(0, pace.window - len(on_way))
        free, left = left[:room], left[room:]
        if free:
            await queue.release(free)
            on_way.update(free)
        if free or pace.stalled:
            await queue.flush()
        await asyncio.sleep(REST_SECONDS if pace.stalled else LOOK_SECONDS if left else LAST_LOOK_SECONDS)
        present = await asyncio.to_thread(queue.ids)
        through = on_way - present
        on_way -= through
        handed_on += len(through)
        now = clock()
        pace, looked_at = pace.looked(len(through), len(on_way), max(now - looked_at, 0.001)), now
        remaining = len(left) + len(on_way)
        yield Progress(
            total, handed_on, len(on_way), len(left), round(pace.rate, 2), pace.seconds_left(remaining), pace.stalled
        )
    yield Progress(total, handed_on, 0, 0, round(pace.rate, 2), 0.0, False, done=True)
