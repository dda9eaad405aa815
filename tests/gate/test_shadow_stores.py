"""What every store of shadows does, be it files or a stream."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from holdfast.errors import HoldfastError, NoSpace
from holdfast.gate.shadow_files import FileShadows
from holdfast.gate.shadow_stream import PART_BYTES, StreamShadows
from holdfast.gate.shadows import Envelope, ShadowStore
from holdfast.log import side as side_port
from holdfast.log.side import SHADOWS
from holdfast.log.side_memory import MemorySide
from holdfast.log.side_seal import RelayKey
from tests.gate.test_accept import played

ENVELOPE = Envelope.of(b"<s\xe9nder@outside.example>", (b"<a@example.org>", b'<"b c"@example.org>'))
Open = Callable[[str], ShadowStore]
Messages = AsyncIterator[side_port.SideMessage]


@pytest.fixture(params=["files", "stream"])
def open_store(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    """The store as a machine of that name has it."""
    if request.param == "files":
        return lambda machine: FileShadows(tmp_path, machine)
    side = MemorySide()
    return lambda machine: StreamShadows(side, machine, tmp_path)


@pytest.mark.parametrize("size", [0, 1, 300_000, PART_BYTES, PART_BYTES + 1, 9 * PART_BYTES + 17])
def test_what_is_kept_is_read_back_exactly(open_store: Open, size: int) -> None:
    async def play() -> None:
        store = open_store("relay")
        content = bytes(range(256)) * (size // 256) + b"\n" * (size % 256)
        writing = store.write("abc123", ENVELOPE)
        for first in range(0, size, 65_535):
            writing.write(content[first : first + 65_535])
        shadow = await writing.keep("4XyZ1abc")
        assert (shadow.machine, shadow.queue_id, shadow.delivery) == ("relay", "4XyZ1abc", "abc123")
        assert await open_store("main").standing() == [shadow]
        assert await open_store("main").read(shadow) == (ENVELOPE, content)
        assert ENVELOPE.sender_text().encode("utf-8", "surrogateescape") == b"s\xe9nder@outside.example"
        await store.settle(shadow)
        await store.settle(shadow)
        assert await store.standing() == []
        with pytest.raises(HoldfastError):
            await store.read(shadow)

    played(play)


def test_what_is_dropped_or_has_no_queue_id_does_not_stand(open_store: Open) -> None:
    async def play() -> None:
        store = open_store("relay")
        dropped = store.write("dropped", ENVELOPE)
        dropped.write(b"x" * 200_000)
        dropped.drop()
        nameless = store.write("nameless", ENVELOPE)
        with pytest.raises(HoldfastError, match="queue id"):
            await nameless.keep("")
        nameless.drop()
        assert await store.standing() == []

    played(play)


def test_what_another_takes_is_marked_for_the_first(open_store: Open) -> None:
    async def play() -> None:
        store = open_store("relay")
        shadows = []
        for delivery, queue_id in (("one", "4Queue1"), ("two", "4Queue2")):
            writing = store.write(delivery, ENVELOPE)
            writing.write(b"content")
            shadows.append(await writing.keep(queue_id))
        await open_store("main").take(shadows[0])
        assert await store.standing() == [shadows[1]]
        assert await store.taken_from_here() == {"4Queue1"}
        assert await open_store("main").taken_from_here() == frozenset()
        await store.thrown_out(["4Queue1"])

    played(play)


def test_parts_of_what_came_to_no_end_are_forgotten(tmp_path: Path) -> None:
    async def play() -> None:
        side = MemorySide()
        await side.publish(
            "relay.whole_4a.0", b'{"sender":"","recipients":[],"queue_id":"4a","parts":1,"at":0,"bytes":1}\n'
        )
        for subject in ("relay.whole_4a.1", "relay.torn_4b.1", "relay.torn_4b.2", "relay2.torn_4c.1"):
            await side.publish(subject, b"x")
        await StreamShadows(side, "relay", tmp_path).forget_unfinished()
        left = [message.subject async for message in side.read()]
        assert left == ["relay.whole_4a.0", "relay.whole_4a.1", "relay2.torn_4c.1"]

    played(play)


def test_parts_of_what_is_under_way_are_not_forgotten(tmp_path: Path) -> None:
    class Slow(MemorySide):
        """The last record of a message waits."""

        def __init__(self) -> None:
            super().__init__()
            self.go, self.reached = asyncio.Event(), asyncio.Event()

        async def publish(self, subject: str, payload: bytes, *, once: str = "") -> side_port.Place:
            if subject.endswith(".0"):
                self.reached.set()
                await self.go.wait()
            return await super().publish(subject, payload, once=once)

    async def play() -> None:
        side = Slow()
        store = StreamShadows(side, "relay", tmp_path)
        writing = store.write("long", ENVELOPE)
        writing.write(b"x" * (2 * PART_BYTES))
        keeping = asyncio.create_task(writing.keep("4Queue1"))
        await side.reached.wait()
        await store.forget_unfinished()
        side.go.set()
        shadow = await keeping
        await store.forget_unfinished()
        assert (await store.read(shadow))[1] == b"x" * (2 * PART_BYTES)

    played(play)


@contextmanager
def full_disk_at(size: int) -> Iterator[None]:
    """No file of this process grows beyond *size* (setrlimit(2))."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_is_full_at_the_last_bytes_of_a_message_is_said(tmp_path: Path) -> None:
    async def play() -> None:
        store = StreamShadows(MemorySide(), "relay", tmp_path)
        writing = store.write("long", ENVELOPE)
        writing.write(b"x" * 200_000)
        writing.write(b"the end")
        with full_disk_at(150_000):
            with pytest.raises(NoSpace):
                await writing.keep("4Queue1")
            writing.drop()
            other = store.write("other", ENVELOPE)
            other.write(b"x" * 100_000)
            with pytest.raises(NoSpace):
                other.write(b"x" * 400_000)
            other.drop()
        assert await store.standing() == []

    played(play)


@pytest.mark.parametrize(
    "subject",
    ["/etc/cron.a_4Queue1.0", "relay.a/../../b_4Queue1.0", "Relay.a_4Queue1.0", "relay.a_4Queue2.0", "relay.a.0"],
)
def test_a_shadow_that_is_named_like_none_of_ours_is_left_alone(tmp_path: Path, subject: str) -> None:
    """Whoever has a relay's certificate may name subjects as the servers allow, and files are named by them."""

    class Lax(MemorySide):
        async def read(self, pattern: str = ">", *, after: side_port.Place = side_port.BEFORE_FIRST) -> Messages:
            head = b'{"sender":"","recipients":[],"queue_id":"4Queue1","parts":0,"at":1,"bytes":1}\nx'
            yield side_port.SideMessage(side_port.Place(1), subject, head)
            async for message in super().read(pattern, after=after):
                yield message

    async def play() -> None:
        store = StreamShadows(Lax(), "relay", tmp_path)
        writing = store.write("good", ENVELOPE)
        writing.write(b"content")
        assert await writing.keep("4Queue1") in await store.standing()
        assert len(await store.standing()) == 1

    played(play)


def test_what_came_to_its_end_while_the_stream_was_read_is_not_forgotten(tmp_path: Path) -> None:
    class Meanwhile(MemorySide):
        """A message begins when the reading has begun, and has its end when the reading is over."""

        begun = False

        async def read(self, pattern: str = ">", *, after: side_port.Place = side_port.BEFORE_FIRST) -> Messages:
            if not self.begun:
                self.begun = True
                await self.publish("relay.long_4Queue1.1", b"x")
            async for message in super().read(pattern, after=after):
                yield message
            await self.publish("relay.long_4Queue1.0", b"{}\n")

    async def play() -> None:
        side = Meanwhile()
        await StreamShadows(side, "relay", tmp_path).forget_unfinished()
        assert side.messages == 2

    played(play)


def test_a_mark_that_does_not_open_keeps_no_other_from_being_seen(tmp_path: Path) -> None:
    async def play() -> None:
        bare = MemorySide()
        side = RelayKey.generate().sealed(bare, SHADOWS)
        await bare.publish("TAKEN.relay.4Queue1", b"of another key")
        await side.publish("TAKEN.relay.4Queue2", b"")
        assert await StreamShadows(side, "relay", tmp_path).taken_from_here() == {"4Queue2"}

    played(play)
