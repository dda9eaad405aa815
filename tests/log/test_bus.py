"""What every bus does, in memory and over NATS."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from holdfast.errors import HoldfastError, Unreachable
from holdfast.log.bus import NatsBus
from holdfast.log.memory import MemoryBusNetwork, matches
from holdfast.log.port import HANDLERS_MAX, LISTENER_MESSAGES_MAX, Bus
from tests.log.conftest import Run
from tests.log.harness import Servers, new_segment

Buses = Callable[[], Coroutine[Any, Any, tuple[Bus, Bus]]]


@pytest.fixture(params=["memory", "single", "three"])
def buses(request: pytest.FixtureRequest) -> Buses:
    """Two buses of two machines."""
    if request.param == "memory":

        async def in_memory() -> tuple[Bus, Bus]:
            network = MemoryBusNetwork()
            return network.open(), network.open()

        return in_memory
    servers: Servers = request.getfixturevalue(request.param)

    async def over_nats() -> tuple[Bus, Bus]:
        return tuple([NatsBus(await servers.connect(servers.names[place])) for place in (0, -1)])  # type: ignore[return-value]

    return over_nats


def test_what_is_published_after_subscribing_is_heard(run: Run, buses: Buses) -> None:
    async def facts() -> None:
        one, two = await buses()
        segment = new_segment()
        async with two.subscribe(f"hf.{segment}.beat.*") as messages:
            for number in range(5):
                await two.publish(f"hf.{segment}.beat.main", b"%d" % number)
                await one.publish(f"hf.{segment}.other.main", b"not for us")
            async with asyncio.timeout(10):
                heard = [await anext(messages) for _ in range(5)]
        assert heard == [(f"hf.{segment}.beat.main", b"%d" % number) for number in range(5)]

    run(facts())


def test_beats_cross_machines(run: Run, buses: Buses) -> None:
    async def facts() -> None:
        one, two = await buses()
        segment = new_segment()
        async with two.subscribe(f"hf.{segment}.beat.>") as messages:
            heard = asyncio.ensure_future(anext(messages))
            while not heard.done():
                await one.publish(f"hf.{segment}.beat.main", b"alive")
                await asyncio.wait([heard], timeout=0.05)
            assert heard.result() == (f"hf.{segment}.beat.main", b"alive")

    run(facts())


def test_a_listener_that_lags_loses_the_oldest(run: Run, buses: Buses) -> None:
    async def facts() -> None:
        _, two = await buses()
        segment = new_segment()
        total = LISTENER_MESSAGES_MAX + 10
        async with two.subscribe(f"hf.{segment}.beat") as messages, two.subscribe(f"hf.{segment}.done") as done:
            for number in range(total):
                await two.publish(f"hf.{segment}.beat", b"%d" % number)
            await two.publish(f"hf.{segment}.done", b"")
            await anext(done)
            assert await anext(messages) == (f"hf.{segment}.beat", b"10")

    run(facts())


def test_questions_are_answered_and_errors_travel(run: Run, buses: Buses) -> None:
    async def facts() -> None:
        one, two = await buses()
        segment = new_segment()

        async def answer(subject: str, payload: bytes) -> bytes:
            if payload == b"bad":
                raise HoldfastError("cannot", hint="try\r\nharder")
            return subject.encode() + b" " + payload

        await two.serve(f"hf.{segment}.ask", answer)
        assert await _asked(one, f"hf.{segment}.ask", b"\x00\xff") == b"hf.%s.ask \x00\xff" % segment.encode()
        with pytest.raises(HoldfastError, match="cannot") as failed:
            await one.request(f"hf.{segment}.ask", b"bad", timeout_seconds=5)
        assert failed.value.hint.split() == ["try", "harder"]

    run(facts())


async def _asked(bus: Bus, subject: str, payload: bytes) -> bytes:
    """A subscription takes a moment to reach the other servers of a cluster."""
    for _ in range(100):
        try:
            return await bus.request(subject, payload, timeout_seconds=5)
        except Unreachable:
            await asyncio.sleep(0.02)
    raise AssertionError("never answered")


def test_nobody_there_and_nobody_answering_are_unreachable(run: Run, buses: Buses) -> None:
    async def facts() -> None:
        one, two = await buses()
        segment = new_segment()
        with pytest.raises(Unreachable):
            await one.request(f"hf.{segment}.nobody", b"", timeout_seconds=5)

        async def never(subject: str, payload: bytes) -> bytes:
            if payload != b"hello":
                await asyncio.Event().wait()
            return b""

        await two.serve(f"hf.{segment}.slow", never)
        await _asked(one, f"hf.{segment}.slow", b"hello")
        with pytest.raises(Unreachable):
            await one.request(f"hf.{segment}.slow", b"", timeout_seconds=0.1)

    run(facts())


def test_handlers_at_once_are_bounded(run: Run, buses: Buses) -> None:
    async def facts() -> None:
        one, two = await buses()
        segment = new_segment()
        running = most = 0
        full, go = asyncio.Event(), asyncio.Event()

        async def handle(subject: str, payload: bytes) -> bytes:
            nonlocal running, most
            if payload == b"hello":
                return b""
            running += 1
            most = max(most, running)
            if running == HANDLERS_MAX:
                full.set()
            await go.wait()
            running -= 1
            return b""

        await two.serve(f"hf.{segment}.ask", handle)
        await _asked(one, f"hf.{segment}.ask", b"hello")
        asking = [
            asyncio.create_task(one.request(f"hf.{segment}.ask", b"", timeout_seconds=10))
            for _ in range(HANDLERS_MAX + 5)
        ]
        async with asyncio.timeout(10):
            await full.wait()
        go.set()
        await asyncio.gather(*asking)
        assert most == HANDLERS_MAX

    run(facts())


def test_wildcards() -> None:
    def one(pattern: str, subject: str) -> bool:
        return matches(tuple(pattern.split(".")), subject)

    assert one("a.*.c", "a.b.c")
    assert one("a.>", "a.b.c")
    assert not one("a.>", "a")
    assert not one("a.*", "a.b.c")
    assert not one("a.b.c", "a.b")
