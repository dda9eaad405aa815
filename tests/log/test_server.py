"""The embedded server: kept running, dying with us, and clear about what is wrong."""

from __future__ import annotations

import dataclasses
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from holdfast.changes.names import MachineName, Sequence
from holdfast.errors import ConfigurationError, EnvironmentUnfit, NoSpace
from holdfast.log import jetstream
from holdfast.log.connection import Connection, LogConnection
from holdfast.log.port import LogFull, LogUnavailable
from holdfast.log.server import LogServer, find_binary, set_store_aside
from holdfast.log.server_config import Peer, ServerSettings, rendered
from holdfast.log.trust import Authority
from tests.log.conftest import Run
from tests.log.harness import eventually, free_port, new_segment

MAIN = MachineName("main")
ADDRESS = "127.0.7.1"


@pytest.fixture
def settings(tmp_path: Path) -> ServerSettings:
    tls = Authority.create("site", tmp_path / "ca").issue(MAIN, [ADDRESS]).write(tmp_path / "tls")
    return ServerSettings(
        machine=MAIN,
        site="site",
        folder=tmp_path / "log",
        tls=tls,
        address=ADDRESS,
        client_port=free_port(ADDRESS),
        store_bytes_max=1024**3,
    )


async def new_log(server: LogServer) -> jetstream.JetStreamLog:
    connection = await Connection.open(LogConnection((server.url,), server.settings.tls))
    return await jetstream.create(
        connection,
        new_segment(),
        replicas=1,
        bytes_max=256 * 1024**2,
        patience=jetstream.Patience(append_seconds_max=1, request_seconds_max=2),
    )


def test_a_killed_server_comes_back_with_its_records(run: Run, settings: ServerSettings) -> None:
    async def facts() -> None:
        server = LogServer(settings)
        await server.start()
        log = await new_log(server)
        await log.append(b"one", after=Sequence(0))
        assert server.pid is not None
        os.kill(server.pid, signal.SIGKILL)
        await eventually("started again", lambda: _is(server.starts == 2 and server.pid is not None))
        await server.wait_ready(10)
        assert (await eventually("the record", lambda: log.read(Sequence(1)))).payload == b"one"
        await log.stream.connection.close()
        await server.stop()
        again = LogServer(settings)
        await again.start()
        connection = await Connection.open(LogConnection((again.url,), settings.tls))
        log = await jetstream.open_log(connection, log.stream.segment)
        assert (await log.read(Sequence(1))).payload == b"one"
        await connection.close()
        await again.stop()

    run(facts())


async def _is(fact: bool) -> bool:
    return fact


def test_a_store_set_aside_is_kept_and_the_server_begins_empty(run: Run, settings: ServerSettings) -> None:
    async def facts() -> None:
        assert set_store_aside(settings) is None
        server = LogServer(settings)
        await server.start()
        log = await new_log(server)
        await log.append(b"old", after=Sequence(0))
        await log.stream.connection.close()
        await server.stop()
        aside = set_store_aside(settings)
        assert aside is not None
        assert list(aside.glob("**/*.blk"))
        second = LogServer(settings)
        await second.start()
        fresh = await new_log(second)
        assert (await fresh.state()).last == 0
        await fresh.stream.connection.close()
        await second.stop()

    run(facts())


def test_what_begins_anew_twice_keeps_the_log_of_before_the_first_time(run: Run, settings: ServerSettings) -> None:
    async def facts() -> None:
        settings.folder.mkdir(parents=True)
        (settings.folder / "store.aside-20200101T000000.000000").mkdir()
        server = LogServer(settings)
        await server.start()
        log = await new_log(server)
        await log.append(b"old", after=Sequence(0))
        await log.stream.connection.close()
        for _ in range(2):  # an order that could not be carried out to its end is repeated
            await server.begin_anew(0.0)
        kept = sorted(settings.folder.glob("store.aside-*"))
        assert [bool(list(each.glob("**/*.blk"))) for each in kept] == [True, False], "and none of another trouble"
        await server.stop()

    run(facts())


def test_a_server_whose_store_cannot_be_set_aside_runs_on(run: Run, settings: ServerSettings) -> None:
    async def facts() -> None:
        server = LogServer(settings)
        await server.start()
        wrong = settings.folder / "store.aside-0"
        wrong.write_text("no folder")
        with pytest.raises(NotADirectoryError):
            await server.begin_anew(0.0)
        await server.wait_ready(10)
        assert server.pid is not None
        await server.stop()

    run(facts())


def test_a_taken_port_is_named(run: Run, settings: ServerSettings) -> None:
    async def facts() -> None:
        with socket.socket() as other:
            other.bind((ADDRESS, settings.client_port))
            other.listen()
            with pytest.raises(EnvironmentUnfit, match=f"port is taken: {ADDRESS}:{settings.client_port}"):
                await LogServer(settings).start()

    run(facts())


def test_a_missing_program_is_named(run: Run, settings: ServerSettings) -> None:
    async def facts() -> None:
        absent = dataclasses.replace(settings, binary=Path("/nowhere/nats-server"))
        with pytest.raises(EnvironmentUnfit, match="/nowhere/nats-server is not a program"):
            await LogServer(absent).start()

    run(facts())
    assert find_binary().name == "nats-server"


def test_a_missing_certificate_is_a_configuration_error(run: Run, settings: ServerSettings) -> None:
    async def facts() -> None:
        settings.tls.certificate.unlink()
        with pytest.raises(ConfigurationError, match="does not accept its configuration"):
            await LogServer(settings).start()

    run(facts())


def test_a_full_disk_is_named_before_the_start(run: Run, settings: ServerSettings) -> None:
    async def facts() -> None:
        with pytest.raises(NoSpace, match="MiB are free"):
            await LogServer(settings, free_bytes_min=1 << 60).start()

    run(facts())


def test_the_server_dies_with_its_agent(settings: ServerSettings, tmp_path: Path) -> None:
    program = tmp_path / "agent.py"
    program.write_text(
        "import asyncio, pickle, sys\n"
        "from holdfast.log.server import LogServer\n"
        "async def main():\n"
        "    server = LogServer(pickle.load(open(sys.argv[1], 'rb')))\n"
        "    await server.start()\n"
        "    print(server.pid, flush=True)\n"
        "    await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    import pickle

    (tmp_path / "settings").write_bytes(pickle.dumps(settings))
    source = Path(__file__).parents[2] / "src"
    with subprocess.Popen(
        [sys.executable, program, tmp_path / "settings"],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(source)},
    ) as agent:
        assert agent.stdout is not None
        server = os.pidfd_open(int(agent.stdout.readline()))
        agent.kill()

    import select

    ended, _, _ = select.select([server], [], [], 10)
    os.close(server)
    assert ended


def test_the_configuration_can_be_read_by_people_and_by_the_server(settings: ServerSettings) -> None:
    clustered = dataclasses.replace(settings, peers=(Peer("192.0.2.2"), Peer("2001:db8::3", 7222)))
    text = rendered(clustered)
    for line in (
        "sync_interval: always",
        "verify_and_map: true",
        '"tls://192.0.2.2:6222"',
        '"tls://[2001:db8::3]:7222"',
        'deny: ["hf.*.log.>", "hf.*.ack.>", "hf.*.new.>", "hf.*.side.recipients.>", "hf.*.anew.>"]',
    ):
        assert line in text
    assert "cluster {" not in rendered(settings)
    settings.folder.mkdir()
    clustered.config.write_text(text)
    checked = subprocess.run([find_binary(), "-t", "-c", clustered.config], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr


async def fill(log: jetstream.JetStreamLog, last: Sequence) -> Sequence:
    while True:
        last = await log.append(b"y" * 1024**2, after=last)


@pytest.mark.system
def test_a_disk_that_fills_up_stops_appends_and_room_lets_them_go_on(
    run: Run, settings: ServerSettings, tmp_path: Path
) -> None:
    """Nothing acknowledged is lost, and nobody has to restart anything by hand."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96m", "tmpfs", disk], check=True)
    try:
        small = dataclasses.replace(settings, folder=disk / "log")
        small.folder.mkdir()

        async def facts() -> None:
            server = LogServer(small, free_bytes_min=16 * 1024**2)
            await server.start()
            log = await new_log(server)
            last = Sequence(0)
            for _ in range(4):
                last = await log.append(b"x" * 1024**2, after=last)
            ballast = disk / "ballast"
            ballast.write_bytes(bytes(server.free_bytes - 4 * 1024**2))
            with pytest.raises((LogFull, LogUnavailable)):
                last = await fill(log, last)
            acknowledged = (await log.state()).last
            assert acknowledged >= 4
            assert server.store_off
            assert isinstance(server.last_error, NoSpace)
            ballast.unlink()
            await eventually("appends again", lambda: log.append(b"y" * 1024**2, after=acknowledged), 30)
            for number in range(acknowledged):
                assert len((await log.read(Sequence(number + 1))).payload) == 1024**2
            await log.stream.connection.close()
            await server.stop()

        run(facts())
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_who_opens_the_log_again_and_again_listens_once(run: Run, settings: ServerSettings) -> None:
    async def facts() -> None:
        server = LogServer(settings)
        await server.start()
        log = await new_log(server)
        connection = log.stream.connection
        subscribed = connection.subscribed
        for _ in range(3):
            assert await jetstream.open_again(log) is log
        assert connection.subscribed == subscribed
        new = await jetstream.replace(
            connection, log.stream.segment, expected=log.incarnation, replicas=1, bytes_max=256 * 1024**2
        )
        await new.close()
        found = await jetstream.open_again(log)
        assert found.incarnation == new.incarnation
        assert connection.subscribed == subscribed
        await found.append(b"one", after=Sequence(0))
        await connection.close()
        await server.stop()

    run(facts())
