"""How a follower gets its records: sent to it while it keeps up; read when it does not, or when that is lost."""

from __future__ import annotations

import asyncio
import itertools

import pytest

from holdfast.changes.names import Sequence
from holdfast.log import jetstream, wire
from holdfast.log.connection import Connection
from holdfast.log.follow import SENT_BYTES_MAX
from holdfast.log.link import MessageSink
from tests.log.conftest import Run
from tests.log.harness import NAMES, Servers, eventually, new_segment, take

MAIN, BACKUP, _ = NAMES
BYTES_MAX = 64 * 1024**2
START = Sequence(0)


class Watched(Connection):
    """Notes where records are asked for, and loses some of those that are sent."""

    keeps = staticmethod(lambda number: True)
    """Whether the sent record number so-and-so arrives."""

    def __init__(self, *arguments: object, **more: object) -> None:
        self.asked = 0
        self.listening = False
        super().__init__(*arguments, **more)  # type: ignore[arg-type]

    def publish(self, subject: str, payload: bytes, *, reply: str = "", headers: bytes = b"") -> None:
        self.asked += "DIRECT.GET" in subject
        super().publish(subject, payload, reply=reply, headers=headers)

    def subscribe(self, subject: str, sink: MessageSink) -> int:
        if ".new." not in subject:
            return super().subscribe(subject, sink)
        self.listening = True
        numbers = itertools.count(1)

        def lossy(message: wire.Message) -> None:
            if self.keeps(next(numbers)):
                sink(message)

        return super().subscribe(subject, lossy)


class Lossy(Watched):
    keeps = staticmethod(lambda number: number % 3 != 0)


async def opened(servers: Servers, kind: type[Watched]) -> tuple[jetstream.JetStreamLog, jetstream.JetStreamLog]:
    """A new log, the writer's handle and the follower's."""
    log = await jetstream.create(await servers.connect(MAIN), new_segment(), replicas=3, bytes_max=BYTES_MAX)
    connection = await kind.open(servers.settings(BACKUP))
    return log, await jetstream.open_log(connection, log.stream.segment, owns_connection=True)


def watched(log: jetstream.JetStreamLog) -> Watched:
    connection = log.stream.connection
    assert isinstance(connection, Watched)
    return connection


async def listens(log: jetstream.JetStreamLog) -> None:
    async def ask() -> bool:
        return watched(log).listening

    await eventually("the follower has caught up and listens", ask)
    await log.stream.connection.flush(5.0)


def test_a_follower_that_keeps_up_is_sent_its_records_and_asks_for_none(run: Run, three: Servers) -> None:
    async def facts() -> None:
        log, far = await opened(three, Watched)
        following = asyncio.create_task(take(far.follow(START), 40))
        await listens(far)
        last, asked = START, 0
        for number in range(40):  # the first ones may be too early: that somebody listens goes from server to server
            if number == 10:
                asked = watched(far).asked
            last = await log.append(b"%d" % number, after=last)
        assert [record.payload for record in await following] == [b"%d" % number for number in range(40)]
        asked = watched(far).asked - asked
        assert asked < 10, f"{asked} requests for 30 records"  # a look around when nothing came for a quarter second
        await far.close()

    run(facts())


def test_records_that_were_sent_and_lost_are_read(run: Run, three: Servers) -> None:
    async def facts() -> None:
        log, far = await opened(three, Lossy)
        following = asyncio.create_task(take(far.follow(START), 40))
        await listens(far)
        last = START
        for number in range(40):
            last = await log.append(b"%d" % number, after=last)
        assert [record.payload for record in await following] == [b"%d" % number for number in range(40)]
        await far.close()

    run(facts())


def test_a_follower_that_falls_behind_keeps_little_of_what_is_sent_and_gets_all(run: Run, three: Servers) -> None:
    async def facts() -> None:
        log, far = await opened(three, Watched)
        records = far.follow(START)
        first = asyncio.create_task(take(records, 1))
        await listens(far)
        payloads = [b"%d" % number * 6_000_000 for number in range(1, 5)]
        assert sum(map(len, payloads)) > SENT_BYTES_MAX
        await log.append(payloads[0], after=START)
        assert (await first)[0].payload == payloads[0]
        last = Sequence(1)
        for payload in payloads[1:]:  # nobody takes them meanwhile
            last = await log.append(payload, after=last)
        assert [record.payload for record in await take(records, 3)] == payloads[1:]
        await far.close()

    run(facts())


@pytest.mark.parametrize("after", [0, 3])
def test_what_is_sent_while_older_records_are_read_comes_once_and_in_order(
    run: Run, three: Servers, after: int
) -> None:
    async def facts() -> None:
        log, far = await opened(three, Watched)
        last = START
        for number in range(1, 101):
            last = await log.append(b"%d" % number, after=last)
        following = asyncio.create_task(take(far.follow(Sequence(after)), 200 - after))
        for number in range(101, 201):
            last = await log.append(b"%d" % number, after=last)
        assert [record.payload for record in await following] == [b"%d" % n for n in range(after + 1, 201)]
        await far.close()

    run(facts())
