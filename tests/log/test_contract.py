"""What every log does, be it in memory, on one server, or on three (with TLS)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Protocol

import pytest

from holdfast.changes.names import Incarnation, Sequence
from holdfast.errors import HoldfastError, Refused
from holdfast.log import jetstream
from holdfast.log.memory import MemoryLogStore
from holdfast.log.port import (
    PAYLOAD_BYTES_MAX,
    Fenced,
    Log,
    LogDamaged,
    LogReplaced,
    LogUnavailable,
    Missing,
    Record,
    Trimmed,
)
from tests.log.conftest import Run
from tests.log.harness import NAMES, Servers, new_segment, take

PATIENCE = jetstream.Patience(short_seconds=0.5)
START = Sequence(0)
BYTES_MAX = 32 * 1024**2


class Backend(Protocol):
    """One kind of log, and what can happen to it."""

    async def new(self) -> Log: ...
    async def another_handle(self, log: Log) -> Log: ...
    async def replaced(self, log: Log) -> Log: ...
    async def crash_and_return(self) -> None: ...


class InMemory:
    def __init__(self) -> None:
        self._stores: dict[Incarnation, MemoryLogStore] = {}

    async def new(self) -> Log:
        store = MemoryLogStore()
        self._stores[store.incarnation] = store
        return store.open()

    async def another_handle(self, log: Log) -> Log:
        return self._stores[log.incarnation].open()

    async def replaced(self, log: Log) -> Log:
        store = self._stores[log.incarnation]
        new = store.replace(log.incarnation)
        self._stores[new.incarnation] = store
        return new

    async def crash_and_return(self) -> None:
        for store in self._stores.values():
            store.set_available(False)
        await asyncio.sleep(0)
        for store in self._stores.values():
            store.set_available(True)


class OnServers:
    """Handle one is the machine "main"'s, further ones are "backup"'s where there is one."""

    def __init__(self, servers: Servers) -> None:
        self.servers = servers

    async def new(self) -> Log:
        connection = await self.servers.connect(NAMES[0])
        return await jetstream.create(
            connection, new_segment(), replicas=len(self.servers.names), bytes_max=BYTES_MAX, patience=PATIENCE
        )

    async def another_handle(self, log: Log) -> Log:
        assert isinstance(log, jetstream.JetStreamLog)
        connection = await self.servers.connect(self.servers.names[len(self.servers.names) // 2])
        return await jetstream.open_log(connection, log.stream.segment, patience=PATIENCE)

    async def replaced(self, log: Log) -> Log:
        assert isinstance(log, jetstream.JetStreamLog)
        return await jetstream.replace(
            await self.servers.connect(NAMES[0]),
            log.stream.segment,
            expected=log.incarnation,
            replicas=len(self.servers.names),
            bytes_max=BYTES_MAX,
            patience=PATIENCE,
        )

    async def crash_and_return(self) -> None:
        self.servers.kill()


@pytest.fixture(params=["memory", "single", "three"])
def backend(request: pytest.FixtureRequest) -> Backend:
    if request.param == "memory":
        return InMemory()
    return OnServers(request.getfixturevalue(request.param))


async def filled(log: Log, count: int, start: Sequence = START) -> Sequence:
    last = start
    for number in range(count):
        last = await log.append(b"record %d" % (start + number + 1), after=last)
    return last


def test_what_is_appended_is_read_back_in_order(run: Run, backend: Backend) -> None:
    async def facts() -> None:
        log = await backend.new()
        empty = await log.state()
        assert (empty.first, empty.last) == (1, 0)
        assert await filled(log, 3) == 3
        state = await log.state()
        assert (state.incarnation, state.first, state.last) == (log.incarnation, 1, 3)
        assert state.stored_bytes >= 3 * len(b"record 1")
        assert await log.read(Sequence(2)) == Record(Sequence(2), b"record 2")
        again = await backend.another_handle(log)
        assert again.incarnation == log.incarnation
        assert [record.payload for record in await take(again.follow(START), 3)] == [
            b"record 1",
            b"record 2",
            b"record 3",
        ]

    run(facts())


def test_payloads_of_any_bytes_and_size_come_back_exactly(run: Run, backend: Backend) -> None:
    async def facts() -> None:
        log = await backend.new()
        payloads = [b"", b"\r\n", b"MSG a 1 0\r\n\r\n", bytes(range(256)) * 300, b"x" * (3 * 1024**2)]
        for number, payload in enumerate(payloads):
            await log.append(payload, after=Sequence(number))
        assert [record.payload for record in await take(log.follow(START), len(payloads))] == payloads
        with pytest.raises(HoldfastError, match="above the limit"):
            await log.append(b"x" * (PAYLOAD_BYTES_MAX + 1), after=Sequence(len(payloads)))

    run(facts())


def test_a_second_writer_is_fenced_and_the_log_stays_one_line(run: Run, backend: Backend) -> None:
    async def facts() -> None:
        old = await backend.new()
        last = await filled(old, 2)
        new = await backend.another_handle(old)
        await new.append(b"promotion", after=last)
        with pytest.raises(Fenced) as fenced:
            await old.append(b"of the old primary", after=last)
        assert fenced.value.last == 3
        with pytest.raises(Fenced):
            await old.append(b"of the old primary", after=START)
        assert (await new.read(Sequence(3))).payload == b"promotion"
        assert (await new.state()).last == 3

    run(facts())


def test_racing_writers_get_one_winner_each_place(run: Run, backend: Backend) -> None:
    async def facts() -> None:
        one = await backend.new()
        two = await backend.another_handle(one)

        async def race(log: Log, name: bytes, place: int) -> bytes | None:
            try:
                await log.append(name + b" %d" % place, after=Sequence(place))
            except Fenced:
                return None
            return name + b" %d" % place

        for place in range(20):
            outcome = await asyncio.gather(race(one, b"one", place), race(two, b"two", place))
            winners = [winner for winner in outcome if winner]
            assert len(winners) == 1
            assert (await one.read(Sequence(place + 1))).payload == winners[0]

    run(facts())


def test_the_same_append_twice_is_one_record(run: Run, backend: Backend) -> None:
    """After LogUnavailable, or a crash before the answer was noted, a writer repeats: it finds its own record."""

    async def facts() -> None:
        log = await backend.new()
        assert await log.append(b"once", after=START) == 1
        again = await backend.another_handle(log)
        assert await again.append(b"once", after=START) == 1
        assert (await log.state()).last == 1

    run(facts())


def test_appends_of_one_handle_keep_their_order(run: Run, backend: Backend) -> None:
    """The next frame may be handed over while one is under way."""

    async def facts() -> None:
        log = await backend.new()
        places = await asyncio.gather(*(log.append(b"%d" % number, after=Sequence(number)) for number in range(20)))
        assert places == list(range(1, 21))
        assert [record.payload for record in await take(log.follow(START), 20)] == [b"%d" % n for n in range(20)]

    run(facts())


def test_a_follower_hears_what_comes_later(run: Run, backend: Backend) -> None:
    async def facts() -> None:
        log = await backend.new()
        reader = await backend.another_handle(log)
        following = asyncio.create_task(take(reader.follow(Sequence(2)), 5))
        await filled(log, 7)
        assert [record.sequence for record in await following] == [3, 4, 5, 6, 7]

    run(facts())


def test_a_follower_far_behind_catches_up_without_gaps(run: Run, backend: Backend) -> None:
    async def facts() -> None:
        log = await backend.new()
        await filled(log, 300)
        assert [record.sequence for record in await take(log.follow(START), 300)] == list(range(1, 301))

    run(facts())


def test_trimmed_records_are_named_as_trimmed(run: Run, backend: Backend) -> None:
    async def facts() -> None:
        log = await backend.new()
        await filled(log, 10)
        await log.trim(Sequence(4))
        await log.trim(Sequence(4))
        await log.trim(Sequence(2))
        state = await log.state()
        assert (state.first, state.last) == (5, 10)
        with pytest.raises(Trimmed) as trimmed:
            await log.read(Sequence(4))
        assert trimmed.value.first == 5
        with pytest.raises(Trimmed):
            await take(log.follow(START), 1)
        assert (await take(log.follow(Sequence(4)), 1))[0].sequence == 5
        with pytest.raises(Missing):
            await log.read(Sequence(11))

    run(facts())


def test_trimming_everything_keeps_the_numbers(run: Run, backend: Backend) -> None:
    async def facts() -> None:
        log = await backend.new()
        await filled(log, 3)
        await log.trim(Sequence(99))
        state = await log.state()
        assert (state.first, state.last) == (4, 3)
        with pytest.raises(Trimmed):
            await take(log.follow(START), 1)
        assert await log.append(b"next", after=Sequence(3)) == 4
        with pytest.raises(Fenced):
            await log.append(b"other", after=Sequence(1))

    run(facts())


def test_a_follower_overtaken_by_trimming_is_told(run: Run, backend: Backend) -> None:
    async def facts() -> None:
        log = await backend.new()
        reader = await backend.another_handle(log)
        records = reader.follow(START)
        await filled(log, 1)
        assert (await anext(records)).sequence == 1
        await filled(log, 200, Sequence(1))
        await log.trim(Sequence(150))
        with pytest.raises(Trimmed):
            await take(records, 200)

    run(facts())


def test_a_replaced_log_is_another_incarnation(run: Run, backend: Backend) -> None:
    async def facts() -> None:
        old = await backend.new()
        records = old.follow(START)
        await filled(old, 2)
        assert [record.sequence for record in await take(records, 2)] == [1, 2]
        waiting = asyncio.create_task(take(old.follow(Sequence(2)), 1))
        new = await backend.replaced(old)
        assert new.incarnation != old.incarnation
        assert (await new.state()).last == 0
        await filled(new, 2)
        for attempt in (old.append(b"late", after=Sequence(2)), old.state(), old.read(Sequence(1)), waiting):
            with pytest.raises(LogReplaced) as replaced:
                await attempt
            assert replaced.value.now == new.incarnation
        assert (await new.state()).last == 2
        with pytest.raises(Refused):
            await backend.replaced(old)

    run(facts())


def test_a_place_past_the_end_is_damage(run: Run, backend: Backend) -> None:
    """Somebody had record 5 acknowledged or read it; the log ends at 2: acknowledged records are gone."""

    async def facts() -> None:
        log = await backend.new()
        await filled(log, 2)
        with pytest.raises(LogDamaged):
            await log.append(b"six", after=Sequence(5))
        with pytest.raises(LogDamaged):
            await take(log.follow(Sequence(5)), 1)

    run(facts())


def test_nothing_acknowledged_is_lost_when_all_servers_crash_mid_append(run: Run, backend: Backend) -> None:
    """Appends, a follower and the crash run at once; both go on by themselves."""

    async def facts() -> None:
        log = await backend.new()
        reader = await backend.another_handle(log)
        total = 200
        acknowledged: list[Sequence] = []
        enough = asyncio.Event()

        async def write() -> None:
            last = START
            while last < total:
                with contextlib.suppress(LogUnavailable):
                    last = await log.append(b"record %d" % (last + 1), after=last)
                    acknowledged.append(last)
                if len(acknowledged) >= total // 4:
                    enough.set()

        async def crash() -> None:
            await enough.wait()
            await backend.crash_and_return()

        following = asyncio.create_task(take(reader.follow(START), total, 60))
        await asyncio.gather(write(), crash())
        assert [record.payload for record in await following] == [b"record %d" % (n + 1) for n in range(total)]
        assert acknowledged == list(range(1, total + 1))
        assert (await log.state()).last == total

    run(facts())


def test_a_slow_follower_holds_nobody_up(run: Run, backend: Backend) -> None:
    async def facts() -> None:
        log = await backend.new()
        slow: AsyncIterator[Record] = log.follow(START)
        await filled(log, 1)
        assert (await anext(slow)).sequence == 1
        await filled(log, 100, Sequence(1))
        assert [record.sequence for record in await take(slow, 100)] == list(range(2, 102))

    run(facts())
