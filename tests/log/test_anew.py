"""Two of three log servers have lost their disks: the third, with the old log, and the empty ones begin anew."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from holdfast.changes.names import SegmentName, Sequence
from holdfast.errors import HoldfastError, Refused, Unreachable
from holdfast.log import jetstream
from holdfast.log.anew import Anew, is_whole, meta_views, whole
from holdfast.log.bus import NatsBus
from tests.log.conftest import Run
from tests.log.harness import NAMES, Servers, eventually, new_segment

MAIN, BACKUP, RELAY = NAMES
ALL = frozenset(NAMES)
BYTES_MAX = 32 * 1024**2


def view(leader: str | None, *others: str, **broken: Any) -> dict[str, Any]:
    replicas = [{"name": name, "current": True, "offline": False, **broken} for name in others]
    return {"leader": leader, "replicas": replicas}


def test_a_group_is_whole_when_all_follow_one_leader_who_counts_them_all() -> None:
    good = {"main": view("relay"), "backup": view("relay"), "relay": view("relay", "main", "backup")}
    assert is_whole(good, ALL)
    assert not is_whole({name: good[name] for name in ("main", "relay")}, ALL), "one does not answer"
    assert not is_whole({**good, "main": view("main", "backup")}, ALL), "two leaders"
    assert not is_whole({**good, "relay": view(None)}, ALL), "one follows nobody"
    assert not is_whole({**good, "relay": view("relay", "main")}, ALL), "one is not counted"
    assert not is_whole({**good, "relay": view("relay", "main", "backup", offline=True)}, ALL)
    assert not is_whole({**good, "relay": view("relay", "main", "backup", current=False)}, ALL)


@pytest.fixture
def servers(run: Run, tmp_path: Path) -> Iterator[Servers]:
    """Servers of their own: they lose their stores here."""
    three = Servers(tmp_path, NAMES)
    run(three.start())
    yield three
    run(three.stop())


async def agents(servers: Servers, segment: SegmentName) -> dict[str, Anew]:
    parts: dict[str, Anew] = {}
    for name in NAMES:
        parts[name] = Anew(NatsBus(await servers.connect(name)), segment, name, servers.servers[name])
        await parts[name].serve()
    return parts


def starts(servers: Servers) -> list[int]:
    return [server.starts for server in servers.servers.values()]


async def lose_two_disks(servers: Servers) -> None:
    """The two empty servers find each other before the third, which has the old log, is back."""
    for server in servers.servers.values():
        await server.stop()
    for name in (MAIN, BACKUP):
        shutil.rmtree(servers.servers[name].settings.store)
    await asyncio.gather(servers.servers[MAIN].start(), servers.servers[BACKUP].start())
    connection = await servers.connect(MAIN)

    async def led() -> bool:
        views = await meta_views(connection, frozenset({MAIN, BACKUP}))
        return any(view.get("leader") for view in views.values())

    await eventually("the empty servers have a leader", led)
    await servers.servers[RELAY].start()


def test_a_log_is_founded_anew_after_two_of_three_servers_lost_their_disks(run: Run, servers: Servers) -> None:
    async def facts() -> None:
        segment = new_segment()
        log = await jetstream.create(await servers.connect(MAIN), segment, replicas=3, bytes_max=BYTES_MAX)
        await log.append(b"old", after=Sequence(0))
        await servers.healthy(log)
        await lose_two_disks(servers)
        parts = await agents(servers, segment)
        connection = await servers.connect(MAIN)
        assert not await whole(connection, ALL, seconds=0.0), "they are one group already: nothing is shown here"
        before = starts(servers)
        with pytest.raises(HoldfastError, match="that of relay still keeps a log"):
            await parts[MAIN].order(ALL - {MAIN}, by_person=False)
        assert starts(servers) == before, "nobody has said that it may go"
        await parts[MAIN].order(ALL - {MAIN}, by_person=True)
        assert await whole(connection, ALL, seconds=20.0)
        anew = await jetstream.replace(connection, segment, expected=None, replicas=3, bytes_max=BYTES_MAX)
        await anew.append(b"new", after=Sequence(0))
        await servers.healthy(anew)
        kept = servers.servers[RELAY].settings.folder
        assert list(kept.glob(f"store.aside-*/jetstream/HF/streams/HF_{segment}")), "the relay's old log is kept"

    run(facts())


def test_nothing_is_stopped_when_a_machine_does_not_answer_or_its_server_keeps_another_log(
    run: Run, servers: Servers
) -> None:
    async def facts() -> None:
        parts, before = await agents(servers, new_segment()), starts(servers)
        with pytest.raises(Unreachable, match="elsewhere does not answer"):
            await parts[MAIN].order(frozenset({BACKUP, "elsewhere"}), by_person=True)
        other = await jetstream.create(await servers.connect(MAIN), new_segment(), replicas=3, bytes_max=BYTES_MAX)
        await servers.healthy(other)
        with pytest.raises(Refused, match=f"main also keeps .*HF_{other.stream.segment}"):
            await parts[MAIN].order(frozenset({BACKUP, RELAY}), by_person=True)
        assert starts(servers) == before

    run(facts())


def test_a_relay_cannot_have_the_others_begin_anew(run: Run, servers: Servers) -> None:
    async def facts() -> None:
        parts, before = await agents(servers, new_segment()), starts(servers)
        with pytest.raises(Refused, match="does not let this machine do that"):
            await parts[RELAY].order(frozenset({BACKUP}), by_person=True)
        assert starts(servers) == before

    run(facts())
