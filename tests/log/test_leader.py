"""The leaders sit where they were told to, whatever was killed meanwhile."""

from __future__ import annotations

import shutil

from holdfast.changes.names import Sequence
from holdfast.log import jetstream
from holdfast.log.api import StreamApi, leaderless
from holdfast.log.connection import Connection
from holdfast.log.leader import LeaderPin
from holdfast.log.side import SideShape, stream_name
from holdfast.log.side_stream import ensure_side_stream
from tests.log.conftest import Run
from tests.log.harness import NAMES, Servers, eventually, new_segment

MAIN, BACKUP, RELAY = NAMES


def test_both_leaders_move_to_the_named_server_and_stay(run: Run, three: Servers) -> None:
    async def facts() -> None:
        connection = await three.connect(MAIN)
        log = await jetstream.create(connection, new_segment(), replicas=3, bytes_max=32 * 1024**2)
        settings = three.settings(MAIN)
        steward = settings.tls.as_steward()
        assert steward is not None
        for wanted in (BACKUP, RELAY):
            pin = LeaderPin(log, wanted, type(settings)(settings.urls, steward))

            async def there(pin: LeaderPin = pin, wanted: str = wanted) -> bool:
                leaders = await pin.tick()
                return leaders.stream == wanted and leaders.meta == wanted

            await eventually(f"{wanted} leads", there, 60)
            assert (await pin.tick()).asked == ()

    run(facts())


def test_a_side_streams_leader_moves_too_and_one_that_is_not_there_is_passed_over(run: Run, three: Servers) -> None:
    async def facts() -> None:
        connection, segment = await three.connect(MAIN), new_segment()
        log = await jetstream.create(connection, segment, replicas=3, bytes_max=32 * 1024**2)
        await ensure_side_stream(connection, segment, SideShape("shadows", 4 * 1024**2), replicas=3)
        api = StreamApi(connection, stream_name(segment, "shadows"))
        for wanted in (BACKUP, RELAY):
            pin = LeaderPin(log, wanted, sides=("recipients", "shadows"))

            async def there(pin: LeaderPin = pin, wanted: str = wanted) -> bool:
                await pin.tick()
                cluster = (await api.call("STREAM.INFO", {}, 2.0))["cluster"]
                return bool(cluster.get("leader") == wanted)

            await eventually(f"{wanted} leads the shadows", there, 60)
            assert "shadows" not in (await pin.tick()).asked

    run(facts())


def test_a_server_that_lacks_records_is_named_until_it_is_filled(run: Run, three: Servers) -> None:
    async def facts() -> None:
        connection = await three.connect(MAIN)
        log = await jetstream.create(connection, new_segment(), replicas=3, bytes_max=32 * 1024**2)
        group = (await log.stream.call("STREAM.INFO", {}, 5.0))["cluster"]["raft_group"]
        await log.append(b"before", after=Sequence(0))
        pin = LeaderPin(log, None)

        async def named(*names: str) -> bool:
            return (await pin.tick()).lacking == names

        await eventually("all hold all", named)
        await three.servers[BACKUP].stop()
        store = three.servers[BACKUP].settings.store / "jetstream"
        shutil.rmtree(store / "HF/streams" / log.stream.name)
        shutil.rmtree(store / "SYS/_js_" / group)
        await eventually("one lacks records", lambda: named(BACKUP))
        assert await log.append(b"meanwhile", after=Sequence(1)) == 2
        await three.servers[BACKUP].start()
        await eventually("it was filled", named)

    run(facts())


def test_an_answer_from_who_does_not_lead_is_not_taken_for_the_leaders() -> None:
    """As nats-server 2.15.1 describes a stream: the last one comes from an empty replica while nobody leads."""
    replicas = [{"name": "main", "current": False, "active": 0}, {"name": "relay", "current": False, "offline": True}]
    state = {"messages": 0, "bytes": 0, "first_seq": 0, "last_seq": 0}
    led = {"state": state, "cluster": {"name": "site", "leader": "main", "replicas": replicas}}
    alone = {"state": state, "cluster": {"name": "site", "leader": ""}}
    assert [leaderless(answer) for answer in (led, alone, {"purged": 3})] == [None, None, None]
    assert leaderless({"state": state, "cluster": {"name": "site", "leader": "", "replicas": replicas}})
    assert leaderless({"state": state, "cluster": {"name": "site", "replicas": replicas}})


def test_a_server_that_is_down_is_not_asked_for(run: Run, three: Servers) -> None:
    async def facts() -> None:
        connection: Connection = await three.connect(MAIN)
        log = await jetstream.create(connection, new_segment(), replicas=3, bytes_max=32 * 1024**2)
        pin = LeaderPin(log, "elsewhere")
        assert (await pin.tick()).asked == ()

    run(facts())
