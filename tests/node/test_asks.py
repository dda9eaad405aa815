"""Agents obey each other, and nobody else."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from holdfast.changes.frame import SegmentKey
from holdfast.changes.names import MachineName, SegmentName
from holdfast.errors import HoldfastError
from holdfast.log.memory import MemoryBus, MemoryBusNetwork
from holdfast.node.asks import AskFailed, Asks

SEGMENT = SegmentName("main")


def pair(bus: MemoryBus, keys: tuple[SegmentKey, SegmentKey]) -> tuple[Asks, Asks, list[dict[str, Any]]]:
    """An asker "backup" and an answerer "main" that knows the verb yield; what it obeyed."""
    obeyed: list[dict[str, Any]] = []

    async def give_up(arguments: dict[str, Any]) -> dict[str, Any]:
        obeyed.append(arguments)
        return {"sequence": 7}

    asker = Asks(bus, SEGMENT, MachineName("backup"), keys[0])
    answerer = Asks(bus, SEGMENT, MachineName("main"), keys[1])
    answerer.answer("yield", give_up, changes=True)
    return asker, answerer, obeyed


class Recording(MemoryBus):
    """Remembers what was sent, as somebody on the way could."""

    def __init__(self) -> None:
        super().__init__(MemoryBusNetwork())
        self.sent: list[tuple[str, bytes]] = []

    async def request(self, subject: str, payload: bytes, *, timeout_seconds: float) -> bytes:
        self.sent.append((subject, payload))
        return await super().request(subject, payload, timeout_seconds=timeout_seconds)


def test_an_order_is_obeyed_once_and_a_recorded_one_never_again() -> None:
    async def scenario() -> None:
        bus, key = Recording(), SegmentKey.generate()
        asker, answerer, obeyed = pair(bus, (key, key))
        await answerer.serve()
        assert (await asker.order("main", "yield", why="x"))["sequence"] == 7
        assert obeyed == [{"why": "x"}]
        subject, order = bus.sent[-1]
        await MemoryBus.request(bus, subject, order, timeout_seconds=1.0)
        assert len(obeyed) == 1, "the challenge was used up"

    asyncio.run(scenario())


def test_an_order_without_a_challenge_is_refused() -> None:
    async def scenario() -> None:
        key = SegmentKey.generate()
        asker, answerer, obeyed = pair(MemoryBus(MemoryBusNetwork()), (key, key))
        await answerer.serve()
        with pytest.raises(AskFailed, match="challenge"):
            await asker.ask("main", "yield")
        assert not obeyed

    asyncio.run(scenario())


def test_who_has_another_key_is_not_obeyed() -> None:
    async def scenario() -> None:
        asker, answerer, obeyed = pair(MemoryBus(MemoryBusNetwork()), (SegmentKey.generate(), SegmentKey.generate()))
        await answerer.serve()
        with pytest.raises(HoldfastError):
            await asker.order("main", "yield", seconds=1.0)
        assert not obeyed

    asyncio.run(scenario())


def test_what_fails_there_is_said_here() -> None:
    async def scenario() -> None:
        key = SegmentKey.generate()
        asker, answerer, _ = pair(MemoryBus(MemoryBusNetwork()), (key, key))

        async def fail(arguments: dict[str, Any]) -> dict[str, Any]:
            raise HoldfastError("the disk is gone", hint="Look at dmesg.")

        answerer.answer("trees", fail, changes=False)
        await answerer.serve()
        with pytest.raises(AskFailed, match="main: the disk is gone") as caught:
            await asker.ask("main", "trees")
        assert caught.value.hint == "Look at dmesg."

    asyncio.run(scenario())
