"""The gates' process: ready on a standby, told to begin, and without an agent on a machine that was rebuilt."""

from __future__ import annotations

import asyncio
import http.client
import os
import signal
import subprocess
import sys
from pathlib import Path

import msgspec

from holdfast.errors import ExitStatus
from holdfast.gate.begin import channel
from holdfast.node.gates import Gate
from holdfast.node.settings import GateSettings, Settings, parse_settings
from holdfast.node.stand_in import end_stand_in, stand_in_runs
from tests.mail.boxes import free_port

from .test_settings import GOOD


def settings_in(folder: Path, port: int) -> Settings:
    """With the gate that needs no mail software to begin: the one for DAV."""
    gate = GateSettings(dav=f"127.0.0.1:{port}", dav_server=f"127.0.0.1:{free_port()}")
    made = msgspec.structs.replace(parse_settings(GOOD, "holdfast.toml"), gate=gate)
    return msgspec.structs.replace(made, state_directory=str(folder / "state"), run_directory=str(folder / "run"))


def answer(port: int) -> int:
    """The status of an answer through the gate; nobody is behind it."""
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        client.request("GET", "/")
        return client.getresponse().status
    finally:
        client.close()


def test_a_process_that_is_ready_begins_when_it_is_told(tmp_path: Path) -> None:
    port = free_port()

    async def play() -> None:
        gate = Gate(settings_in(tmp_path, port))
        assert await gate.warm()
        assert not await gate.warm()
        assert (gate.running, gate.serving) == (True, False)
        process = gate._process
        await gate.start()
        assert gate._process is process
        assert gate.serving
        assert await asyncio.to_thread(answer, port) == 502
        await gate.stop()
        assert not gate.running

    asyncio.run(play())


def test_a_ready_process_that_died_is_replaced(tmp_path: Path) -> None:
    port = free_port()

    async def play() -> None:
        gate = Gate(settings_in(tmp_path, port))
        await gate.warm()
        assert gate._process is not None
        os.kill(gate._process.pid, signal.SIGKILL)
        await gate.start()
        assert await asyncio.to_thread(answer, port) == 502
        await gate.stop()

    asyncio.run(play())


def test_a_ready_process_ends_with_whoever_started_it() -> None:
    here, there = channel()
    with there:
        process = subprocess.Popen([sys.executable, "-m", "holdfast.gate", "main"], stdin=there.fileno())
    here.close()
    assert process.wait(20) == ExitStatus.DONE


def test_gates_without_an_agent_serve_until_the_agent_opens_its_own(tmp_path: Path) -> None:
    port = free_port()
    settings = settings_in(tmp_path, port)
    Gate(settings).stand_in(tmp_path / "gates.log")
    assert stand_in_runs(settings.run)
    assert answer(port) == 502
    Gate(settings).stand_in(tmp_path / "gates.log")  # once more: nothing to do

    async def play() -> None:
        gate = Gate(settings)
        await gate.start()
        assert not stand_in_runs(settings.run)
        assert await asyncio.to_thread(answer, port) == 502
        await gate.stop()

    try:
        asyncio.run(play())
    finally:
        end_stand_in(settings.run)
