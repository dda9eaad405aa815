"""What every side stream does, be it in memory, on one server, or on three, plain or sealed."""

from __future__ import annotations

import asyncio
import itertools
from typing import Protocol

import pytest

from holdfast.changes.names import SegmentName
from holdfast.errors import HoldfastError, Refused
from holdfast.log.port import PAYLOAD_BYTES_MAX, LogFull, LogUnavailable, Missing
from holdfast.log.side import Place, SideMessage, SideShape, SideStream
from holdfast.log.side_memory import MemorySide
from holdfast.log.side_seal import RelayKey, SealBroken
from holdfast.log.side_stream import JetStreamSide, SidePatience, ensure_side_stream
from tests.log.conftest import Run
from tests.log.harness import NAMES, SIDE_SEGMENTS, Servers

BYTES_MAX = 4 * 1024**2
NAME = "shadows"
PATIENCE = SidePatience()


class Backend(Protocol):
    """One kind of side stream, and what can happen to it."""

    async def new(self, *, refuses_when_full: bool = True) -> SideStream: ...
    async def relays(self, stream: SideStream) -> SideStream:
        """The handle of another machine: the relay's, where there is one."""
        ...

    async def crash_and_return(self) -> None: ...


class InMemory:
    async def new(self, *, refuses_when_full: bool = True) -> SideStream:
        return MemorySide(BYTES_MAX, refuses_when_full=refuses_when_full)

    async def relays(self, stream: SideStream) -> SideStream:
        return stream

    async def crash_and_return(self) -> None:
        pass


class OnServers:
    taken = itertools.count()

    def __init__(self, servers: Servers) -> None:
        self.servers = servers
        self.segment = SIDE_SEGMENTS[next(self.taken)]

    async def new(self, *, refuses_when_full: bool = True) -> SideStream:
        connection = await self.servers.connect(NAMES[0])
        shape = SideShape(NAME, BYTES_MAX, refuses_when_full=refuses_when_full)
        return await ensure_side_stream(
            connection, self.segment, shape, replicas=len(self.servers.names), patience=PATIENCE
        )

    async def relays(self, stream: SideStream) -> SideStream:
        return JetStreamSide(await self.servers.connect(self.servers.names[-1]), self.segment, NAME, PATIENCE)

    async def crash_and_return(self) -> None:
        self.servers.kill()


class Sealed:
    def __init__(self, inner: Backend) -> None:
        self.inner = inner
        self.key = RelayKey.generate()
        self.plain: SideStream | None = None

    async def new(self, *, refuses_when_full: bool = True) -> SideStream:
        self.plain = await self.inner.new(refuses_when_full=refuses_when_full)
        return self.key.sealed(self.plain, NAME)

    async def relays(self, stream: SideStream) -> SideStream:
        assert self.plain is not None
        return self.key.sealed(await self.inner.relays(self.plain), NAME)

    async def crash_and_return(self) -> None:
        await self.inner.crash_and_return()


@pytest.fixture(params=["memory", "single", "three", "sealed"])
def backend(request: pytest.FixtureRequest) -> Backend:
    if request.param == "memory":
        return InMemory()
    if request.param == "sealed":
        return Sealed(InMemory())
    return OnServers(request.getfixturevalue(request.param))


async def all_of(stream: SideStream, pattern: str = ">", after: int = 0) -> list[SideMessage]:
    return [message async for message in stream.read(pattern, after=Place(after))]


def test_what_is_published_is_read_by_subject_from_a_place_on(run: Run, backend: Backend) -> None:
    async def facts() -> None:
        stream = await backend.new()
        assert await all_of(stream) == []
        relay = await backend.relays(stream)
        assert await relay.publish("relay.one.0", b"first") == 1
        assert await stream.publish("main.two.0", b"") == 2
        assert await relay.publish("relay.one.1", bytes(range(256)) * 40) == 3
        assert [(m.place, m.subject) for m in await all_of(stream)] == [
            (1, "relay.one.0"),
            (2, "main.two.0"),
            (3, "relay.one.1"),
        ]
        assert [m.payload for m in await all_of(relay, "relay.>")] == [b"first", bytes(range(256)) * 40]
        assert [m.place for m in await all_of(stream, "*.one.*", after=1)] == [3]
        assert await all_of(stream, "backup.>") == []
        last = await relay.last("relay.one.1")
        assert last is not None
        assert last.place == 3
        assert await stream.last("relay.none") is None

    run(facts())


def test_more_than_one_batch_comes_whole_and_in_order(run: Run, backend: Backend) -> None:
    async def facts() -> None:
        stream = await backend.new()
        relay = await backend.relays(stream)
        places = await asyncio.gather(*(relay.publish(f"relay.{n}", b"%d" % n) for n in range(300)))
        assert sorted(places) == list(range(1, 301))
        found = await all_of(stream)
        assert [m.place for m in found] == list(range(1, 301))
        assert sorted(int(m.payload) for m in found) == list(range(300))

    run(facts())


def test_what_was_acknowledged_is_seen_at_once_by_every_machine(run: Run, backend: Backend) -> None:
    """A replica that is behind must not hide it."""

    async def facts() -> None:
        stream = await backend.new()
        relay = await backend.relays(stream)
        for number in range(100):
            await relay.publish("relay.one", b"%d" % number)
            assert (await all_of(stream, after=number))[-1].payload == b"%d" % number

    run(facts())


def test_what_is_purged_is_gone_and_the_rest_stays(run: Run, backend: Backend) -> None:
    async def facts() -> None:
        stream = await backend.new()
        relay = await backend.relays(stream)
        for subject in ("relay.a.0", "relay.a.1", "relay.b.0", "main.a.0"):
            await relay.publish(subject, b"x")
        assert await relay.purge("relay.a.*") == 2
        assert await relay.purge("relay.a.*") == 0
        assert await stream.last("relay.a.0") is None
        state = await stream.state()
        assert (state.first, state.last, state.messages) == (3, 4, 2)
        assert await relay.publish("relay.c.0", b"x") == 5
        assert await stream.purge(">") == 3
        state = await stream.state()
        assert (state.first, state.last, state.messages) == (6, 5, 0)
        assert await all_of(stream) == []

    run(facts())


def test_the_same_published_twice_is_one(run: Run, backend: Backend) -> None:
    async def facts() -> None:
        stream = await backend.new()
        relay = await backend.relays(stream)
        first = await relay.publish("relay.a", b"x", once="relay.a")
        assert await relay.publish("relay.a", b"x", once="relay.a") == first
        assert await relay.publish("relay.a", b"x") == first + 1
        assert len(await all_of(stream)) == 2

    run(facts())


def test_a_full_stream_refuses_and_takes_again_after_a_purge(run: Run, backend: Backend) -> None:
    async def facts() -> None:
        stream = await backend.new()
        relay = await backend.relays(stream)
        with pytest.raises(LogFull):  # noqa: PT012  # whichever it is
            for number in range(10):
                await relay.publish(f"relay.{number}", b"x" * 1024**2)
        before = await all_of(stream)
        assert before[0].subject == "relay.0"
        assert len(before) >= 3
        await relay.purge("relay.0")
        await relay.publish("relay.again", b"x" * 1024)

    run(facts())


def test_a_full_stream_that_may_forget_loses_the_oldest(run: Run, backend: Backend) -> None:
    async def facts() -> None:
        stream = await backend.new(refuses_when_full=False)
        for number in range(10):
            await stream.publish(f"main.{number}", b"x" * 1024**2)
        found = await all_of(stream)
        assert found[-1].subject == "main.9"
        assert found[0].place > 1

    run(facts())


def test_it_outlives_a_crash_of_all_servers(run: Run, backend: Backend) -> None:
    async def facts() -> None:
        stream = await backend.new()
        for number in range(20):
            await stream.publish("main.a", b"%d" % number)
        incarnation = (await stream.state()).incarnation
        await backend.crash_and_return()
        assert await stream.publish("main.a", b"20") == 21
        assert [int(m.payload) for m in await all_of(stream)] == list(range(21))
        assert (await stream.state()).incarnation == incarnation

    run(facts())


def test_what_cannot_be_published_is_refused_here(run: Run, backend: Backend) -> None:
    async def facts() -> None:
        stream = await backend.new()
        for subject in ("", "a..b", "a b", "a.*", "a.>", "a\r\nPUB x", "ä", ".".join("abcdefghi")):
            with pytest.raises(HoldfastError, match="subject"):
                await stream.publish(subject, b"x")
        with pytest.raises(HoldfastError, match="above the limit"):
            await stream.publish("a", b"x" * (PAYLOAD_BYTES_MAX + 1))

    run(facts())


def test_a_stream_that_is_not_made_yet_takes_nothing_and_holds_nothing(run: Run, single: Servers) -> None:
    async def facts() -> None:
        connection = await single.connect(NAMES[0])
        patience = SidePatience(publish_seconds_max=0.3)
        stream = JetStreamSide(connection, SegmentName("nowhere"), NAME, patience)
        with pytest.raises(LogUnavailable) as unavailable:
            await stream.publish("a", b"x")
        assert not unavailable.value.sent
        assert await all_of(stream) == []
        assert await stream.purge(">") == 0
        with pytest.raises(Missing):
            await stream.state()

    run(facts())


def test_a_stream_is_changed_to_a_new_shape_and_keeps_its_messages(run: Run, single: Servers) -> None:
    async def facts() -> None:
        connection = await single.connect(NAMES[0])
        segment = SegmentName("shape")
        stream = await ensure_side_stream(connection, segment, SideShape(NAME, BYTES_MAX), replicas=1)
        await stream.publish("a", b"x")
        before = await stream.state()
        again = await ensure_side_stream(connection, segment, SideShape(NAME, 2 * BYTES_MAX, 3600.0), replicas=1)
        after = await again.state()
        assert (after.incarnation, after.messages, after.bytes_max) == (before.incarnation, 1, 2 * BYTES_MAX)

    run(facts())


def test_a_relay_cannot_say_which_recipients_there_are_nor_empty_another_stream(run: Run, three: Servers) -> None:
    async def facts() -> None:
        segment = SIDE_SEGMENTS[next(OnServers.taken)]
        connection = await three.connect(NAMES[0])
        of_main = await ensure_side_stream(connection, segment, SideShape("recipients", BYTES_MAX), replicas=3)
        await of_main.publish("main", b"x")
        of_relay = JetStreamSide(await three.connect(NAMES[2]), segment, "recipients", PATIENCE)
        assert len(await all_of(of_relay)) == 1
        with pytest.raises(Refused):
            await of_relay.publish("main", b"y")
        with pytest.raises(Refused):
            await of_relay.purge(">")

    run(facts())


def test_a_message_that_was_not_sealed_with_our_key_is_told_after_all_others(run: Run) -> None:
    async def facts() -> None:
        stream = MemorySide()
        ours, other = RelayKey.generate().sealed(stream, NAME), RelayKey.generate().sealed(stream, NAME)
        await other.publish("a", b"forged")
        await ours.publish("a", b"true")
        sealed = (await all_of(stream, "a"))[1].payload
        assert b"true" not in sealed
        await stream.publish("b", sealed)  # moved to another subject
        await stream.publish("a", b"")
        await ours.publish("a", b"last")
        found = []
        with pytest.raises(SealBroken, match="message 1"):  # noqa: PT012  # what came before is the point
            async for message in ours.read():
                found.append(message.payload)
        assert found == [b"true", b"last"]

    run(facts())
