"""Lost answers, dying servers, damaged stores, and peers that must not get in: on real servers."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from holdfast.changes.names import MachineName, Sequence
from holdfast.errors import HoldfastError, Refused
from holdfast.log import jetstream
from holdfast.log.connection import Connection, LogConnection
from holdfast.log.leader import LeaderPin
from holdfast.log.link import NotTrusted
from holdfast.log.port import Fenced, LogDamaged, LogUnavailable
from holdfast.log.trust import Authority, Role, TlsFiles
from tests.log.conftest import Run
from tests.log.harness import NAMES, CuttingProxy, Servers, eventually, new_segment, take

MAIN, BACKUP, RELAY = NAMES
BYTES_MAX = 32 * 1024**2
START = Sequence(0)


async def new_log(servers: Servers, patience: jetstream.Patience | None = None) -> jetstream.JetStreamLog:
    connection = await servers.connect(MAIN)
    return await jetstream.create(
        connection, new_segment(), replicas=len(servers.names), bytes_max=BYTES_MAX, patience=patience
    )


async def behind_proxy(
    servers: Servers, log: jetstream.JetStreamLog, patience: jetstream.Patience
) -> tuple[CuttingProxy, jetstream.JetStreamLog]:
    target = servers.servers[MAIN].settings
    proxy = CuttingProxy(target.address, target.client_port)
    await proxy.start()
    settings = LogConnection((proxy.url,), servers.tls[MAIN])
    return proxy, await jetstream.connect(settings, log.stream.segment, patience=patience)


async def cut_after_effect(proxy: CuttingProxy, log: jetstream.JetStreamLog, last: Sequence) -> None:
    """Let the append happen, swallow its answer, then cut the connection and let the next one through."""

    async def happened() -> bool:
        return (await log.state()).last >= last

    await eventually("the append took effect", happened)
    async with asyncio.timeout(10):
        await proxy.swallowed.wait()
    proxy.swallow_answers = False
    proxy.cut()


def test_an_answer_lost_with_the_connection_is_found_in_the_log(run: Run, three: Servers) -> None:
    async def facts() -> None:
        log = await new_log(three)
        proxy, far = await behind_proxy(three, log, jetstream.Patience(answer_seconds_max=30))
        assert await far.append(b"one", after=START) == 1
        proxy.swallow_answers = True
        appending = asyncio.create_task(far.append(b"two", after=Sequence(1)))
        await cut_after_effect(proxy, log, Sequence(2))
        async with asyncio.timeout(5):  # it does not wait for an answer that can no longer come
            assert await appending == 2
        assert (await log.state()).last == 2
        assert await far.append(b"three", after=Sequence(2)) == 3
        await far.close()
        await proxy.stop()

    run(facts())


def test_an_answer_that_never_comes_is_found_in_the_log(run: Run, single: Servers) -> None:
    async def facts() -> None:
        log = await new_log(single)
        proxy, far = await behind_proxy(single, log, jetstream.Patience(answer_seconds_max=0.2))
        proxy.swallow_answers = True
        appending = asyncio.create_task(far.append(b"one", after=START))
        await cut_after_effect(proxy, log, Sequence(1))
        assert await appending == 1
        assert (await log.state()).last == 1
        await far.close()
        await proxy.stop()

    run(facts())


def test_a_lost_answer_is_no_excuse_when_another_writer_came_first(run: Run, single: Servers) -> None:
    async def facts() -> None:
        log = await new_log(single)
        proxy, far = await behind_proxy(single, log, jetstream.Patience(answer_seconds_max=30))
        proxy.swallow_answers = True
        await log.append(b"the other's", after=START)
        appending = asyncio.create_task(far.append(b"mine", after=START))
        await cut_after_effect(proxy, log, Sequence(1))
        with pytest.raises(Fenced):
            await appending
        await far.close()
        await proxy.stop()

    run(facts())


def test_without_any_server_an_append_says_whether_it_was_sent(run: Run, single: Servers) -> None:
    async def facts() -> None:
        log = await new_log(single)
        patience = jetstream.Patience(append_seconds_max=0.5, answer_seconds_max=0.2)
        proxy, far = await behind_proxy(single, log, patience)
        proxy.swallow_answers = True
        with pytest.raises(LogUnavailable) as unknown:
            await far.append(b"one", after=START)
        assert unknown.value.sent
        await proxy.stop()
        await eventually("connection lost", lambda: _is(far.stream.connection.server is None))
        with pytest.raises(LogUnavailable) as unsent:
            await far.append(b"one", after=START)
        assert not unsent.value.sent
        await far.close()
        assert await log.append(b"one", after=START) == 1

    run(facts())


async def _is(fact: bool) -> bool:
    return fact


@pytest.mark.parametrize("victim", ["leader", "own server"])
def test_one_server_killed_mid_append_loses_nothing_and_the_follower_goes_on(
    run: Run, three: Servers, victim: str
) -> None:
    async def facts() -> None:
        log = await new_log(three)
        reader = await jetstream.open_log(await three.connect(BACKUP), log.stream.segment)
        await three.healthy(log)
        leader = (await log.info()).leader
        name = MachineName(leader or "") if victim == "leader" else MAIN if leader != MAIN else BACKUP
        total = 120
        following = asyncio.create_task(take(reader.follow(START), total, 60))
        last, worst = START, 0.0
        while last < total:
            if last == total // 3:
                three.kill(name)
            begun = time.monotonic()
            last = await log.append(b"record %d" % (last + 1), after=last)
            worst = max(worst, time.monotonic() - begun)
        assert [record.payload for record in await following] == [b"record %d" % (n + 1) for n in range(total)]
        print(f"killed {name} ({victim}): longest append {worst * 1000:.0f} ms")
        await three.healthy(log)

    run(facts())


def test_an_agent_whose_server_dies_uses_another_and_comes_home(run: Run, three: Servers) -> None:
    async def facts() -> None:
        log = await new_log(three)
        connection = await Connection.open(dataclasses.replace(three.settings(MAIN), home_seconds=0.1))
        assert connection.server == MAIN
        await three.servers[MAIN].stop()
        await eventually("connected elsewhere", lambda: _is(connection.server in (BACKUP, RELAY)))
        elsewhere = await jetstream.open_log(connection, log.stream.segment)
        assert await elsewhere.append(b"one", after=START) == 1
        await three.servers[MAIN].start()
        await eventually("home again", lambda: _is(connection.server == MAIN))
        assert await elsewhere.append(b"two", after=Sequence(1)) == 2
        await connection.close()

    run(facts())


def test_a_relay_reads_but_never_writes_the_log(run: Run, three: Servers) -> None:
    async def facts() -> None:
        log = await new_log(three)
        await log.append(b"sealed", after=START)
        relay = await jetstream.open_log(await three.connect(RELAY), log.stream.segment)
        assert [record.payload for record in await take(relay.follow(START), 1)] == [b"sealed"]
        with pytest.raises(Refused, match="does not let"):
            await relay.append(b"forged", after=Sequence(1))
        for attempt in (relay.trim(Sequence(1)), relay.stream.delete(2.0)):
            with pytest.raises(HoldfastError, match="does not let"):
                await attempt
        assert ((await log.state()).first, (await log.state()).last) == (1, 1)

    run(facts())


def test_who_has_no_certificate_of_the_site_is_refused(run: Run, single: Servers, tmp_path: Path) -> None:
    """Nobody without certificate, with another authority's, with an expired one, or trusting another authority."""

    async def refused(tls: TlsFiles) -> None:
        with pytest.raises(NotTrusted):
            await Connection.open(dataclasses.replace(single.settings(MAIN), tls=tls, connect_seconds_max=5.0))

    async def facts() -> None:
        good = single.tls[MAIN]
        other = Authority.create("other", tmp_path / "other").issue(MAIN, ["127.0.0.1"]).write(tmp_path / "a")
        await refused(dataclasses.replace(other, trust=good.trust))
        await refused(dataclasses.replace(good, trust=other.trust))
        expired = single.authority.issue(MAIN, ["127.0.0.1"], days=1, now=datetime.now(UTC) - timedelta(days=2))
        await refused(expired.write(tmp_path / "b"))
        reader, writer = await asyncio.open_connection(
            single.servers[MAIN].settings.address, single.servers[MAIN].settings.client_port
        )
        assert (await reader.readline()).startswith(b"INFO")
        writer.write(b'CONNECT {"verbose":false}\r\nPING\r\n')
        assert b"PONG" not in await asyncio.wait_for(reader.read(), 10)
        writer.close()

    run(facts())


def test_a_certificate_without_a_known_role_is_refused(run: Run, single: Servers, tmp_path: Path) -> None:
    async def facts() -> None:
        steward = single.tls[MAIN].as_steward()
        assert steward is not None
        connection = await Connection.open(dataclasses.replace(single.settings(MAIN), tls=steward))
        with pytest.raises(HoldfastError):
            await jetstream.create(
                connection, new_segment(), replicas=1, patience=jetstream.Patience(request_seconds_max=1)
            )
        await connection.close()
        relay = single.authority.issue(RELAY, ["127.0.0.1"], role=Role.RELAY).write(tmp_path / "relay")
        connection = await Connection.open(dataclasses.replace(single.settings(MAIN), tls=relay))
        with pytest.raises(Refused):
            await jetstream.create(connection, new_segment(), replicas=1)
        await connection.close()

    run(facts())


def _blocks(servers: Servers, name: MachineName, log: jetstream.JetStreamLog) -> list[Path]:
    found = sorted(servers.servers[name].settings.store.glob(f"**/streams/{log.stream.name}/msgs/*.blk"))
    assert found
    return found


def _spoil(block: Path, payload: bytes) -> None:
    """Flip a byte inside *payload* as it lies in the store."""
    data = bytearray(block.read_bytes())
    place = data.index(payload)
    data[place] ^= 0xFF
    block.write_bytes(data)


def test_a_damaged_store_is_noticed(run: Run, single: Servers) -> None:
    async def facts() -> None:
        log = await new_log(single)
        for number in range(50):
            await log.append(b"record %03d " % (number + 1) * 100, after=Sequence(number))
        assert len(await take(log.follow(START), 50)) == 50
        server = single.servers[MAIN]
        await server.stop()
        _spoil(_blocks(single, MAIN, log)[0], b"record 020 ")
        await server.start()
        with pytest.raises(LogDamaged) as damaged:
            await take(log.follow(START), 50)
        assert damaged.value.sequence <= 20

    run(facts())


def test_one_damaged_replica_is_healed_by_the_others(run: Run, three: Servers) -> None:
    """The leader has the damage, and answers some of the reads; every record comes all the same."""

    async def facts() -> None:
        log = await new_log(three)
        payloads = [b"record %03d " % (number + 1) * 100 for number in range(50)]
        for number, payload in enumerate(payloads):
            await log.append(payload, after=Sequence(number))
        await three.healthy(log)
        server = three.servers[RELAY]
        await server.stop()
        _spoil(_blocks(three, RELAY, log)[0], b"record 020 ")
        await server.start()
        pin = LeaderPin(log, RELAY)

        async def led_by_the_damaged() -> bool:
            return (await pin.tick()).stream == RELAY

        await eventually("the damaged one leads", led_by_the_damaged)
        assert await log.stream.read_from_leader(Sequence(20), 5.0) is None
        for _ in range(6):
            assert [record.payload for record in await take(log.follow(START), 50)] == payloads
        assert await log.read(Sequence(20)) == (20, payloads[19])
        await three.healthy(log)
        assert await log.append(b"more", after=Sequence(50)) == 51

    run(facts())


def test_a_connection_does_not_go_home_to_a_server_that_is_frozen(run: Run, three: Servers) -> None:
    """The kernel takes calls for a frozen server; a connection that went there would stand still every few seconds."""

    async def facts() -> None:
        looks = asyncio.Queue[bytes]()

        async def frozen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            looks.put_nowait(await reader.read())  # until the other side hangs up
            writer.close()

        listener = await asyncio.start_server(frozen, "127.0.0.1", 0)
        host, port = listener.sockets[0].getsockname()
        urls = (f"tls://{host}:{port}", three.servers[MAIN].url)
        connection = await Connection.open(LogConnection(urls, three.tls[MAIN], home_seconds=0.1))
        for _ in range(2):  # the first call, and a look whether home is there again
            async with asyncio.timeout(15):
                assert await looks.get() == b""
        await connection.flush(5.0)
        assert (connection.server, connection.reconnects) == (MAIN, 0)
        await connection.close()
        listener.close()

    run(facts())
