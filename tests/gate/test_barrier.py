from __future__ import annotations

import asyncio

from holdfast.errors import Unreachable
from holdfast.gate.barrier import SharedBarrier


class Steps:
    """A barrier that passes when the test says so."""

    def __init__(self) -> None:
        self.begun = 0
        self.beginning = asyncio.Semaphore(0)
        self.go = asyncio.Event()
        self.fail = False

    async def __call__(self) -> None:
        self.begun += 1
        self.beginning.release()
        await self.go.wait()
        self.go.clear()
        if self.fail:
            raise Unreachable("away")


def test_who_comes_late_waits_for_a_barrier_that_begins_later() -> None:
    async def play() -> None:
        steps = Steps()
        barrier = SharedBarrier(steps)
        first = asyncio.create_task(barrier.wait())
        await steps.beginning.acquire()
        late = [asyncio.create_task(barrier.wait()) for _ in range(5)]
        await asyncio.sleep(0)
        steps.go.set()
        await first
        assert not any(task.done() for task in late)
        await steps.beginning.acquire()
        steps.go.set()
        await asyncio.gather(*late)
        assert (steps.begun, barrier.passed, barrier.waited) == (2, 2, 6)

    asyncio.run(play())


def test_a_failure_is_told_to_those_who_waited_and_to_nobody_else() -> None:
    async def play() -> None:
        steps = Steps()
        barrier = SharedBarrier(steps)
        steps.fail = True
        failing = [asyncio.create_task(barrier.wait()) for _ in range(2)]
        await steps.beginning.acquire()
        steps.go.set()
        assert [type(x) for x in await asyncio.gather(*failing, return_exceptions=True)] == [Unreachable] * 2
        steps.fail = False
        good = asyncio.create_task(barrier.wait())
        steps.go.set()
        await good

    asyncio.run(play())


def test_a_waiter_that_gives_up_harms_no_other() -> None:
    async def play() -> None:
        steps = Steps()
        barrier = SharedBarrier(steps)
        one, other = asyncio.create_task(barrier.wait()), asyncio.create_task(barrier.wait())
        await steps.beginning.acquire()
        one.cancel()
        steps.go.set()
        await other

    asyncio.run(play())
