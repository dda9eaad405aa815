"""`holdfast takeover --alone` with a real agent and its log server: two of three machines are not there."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from holdfast.console.client import Client
from holdfast.errors import HoldfastError
from holdfast.node.enrol import Folder, create_site, initial_configuration
from tests.log.harness import free_port

SECONDS_MAX = 60.0
MAIL = """\
services = []
state_directory = "{base}/mail"
[[mail.trees]]
name = "store"
root = "{base}/store"
"""


def left_of_three(base: Path) -> Path:
    """The configuration of the machine ``backup``, whose site has two more."""
    text = initial_configuration(
        site="example",
        machine="backup",
        machines={"backup": ("mail", "127.0.0.1"), "main": ("mail", "127.0.0.2"), "relay": ("relay", "127.0.0.3")},
        service_addresses=(),
        interface="lo",
        mail_lines=MAIL.format(base=base),
    )
    ports = f"client_port = {free_port('127.0.0.1')}\ncluster_port = {free_port('127.0.0.1')}"
    text = f'state_directory = "{base}/state"\nrun_directory = "{base}/run"\n' + text.replace(
        "[log]", f"[log]\n{ports}"
    )
    folder = Folder(base / "etc")
    create_site(text, folder)
    (base / "store").mkdir()
    (base / "store" / "message").write_text("kept\n")
    return folder.configuration


@contextmanager
def agent(configuration: Path, base: Path) -> Iterator[subprocess.Popen[bytes]]:
    with open(base / "log", "ab") as log:
        argv = [sys.executable, "-P", "-m", "holdfast.agent", str(configuration)]
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        yield process
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        process.kill()
        process.wait()


def wait_role(client: Client, role: str, base: Path) -> dict[str, Any]:
    deadline = time.monotonic() + SECONDS_MAX
    said: object = "no answer"
    while time.monotonic() < deadline:
        with contextlib.suppress(HoldfastError):
            status: dict[str, Any] = client.get("/status")
            if status["role"] == role:
                return status
            said = status["reason"]
        time.sleep(0.05)
    raise AssertionError(f"not {role}: {said}\n{(base / 'log').read_text()[-3000:]}")


def test_an_agent_that_waits_for_the_logs_servers_ends_when_it_is_asked_to(tmp_path: Path) -> None:
    configuration = left_of_three(tmp_path)
    nobody = free_port("127.0.0.1")
    text = configuration.read_text()
    configuration.write_text(text.replace("[log]", f'[log]\nembedded = false\nservers = ["tls://127.0.0.1:{nobody}"]'))
    with agent(configuration, tmp_path) as waiting:
        deadline = time.monotonic() + SECONDS_MAX
        while "waiting for the log's servers" not in (said := (tmp_path / "log").read_text()):
            assert time.monotonic() < deadline, said
            time.sleep(0.05)
        waiting.terminate()
        assert waiting.wait(SECONDS_MAX) == 0


def test_an_agent_that_is_left_of_three_goes_on_alone_when_it_is_started_again(tmp_path: Path) -> None:
    configuration = left_of_three(tmp_path)
    client = Client(tmp_path / "run" / "agent.sock", seconds=30.0)
    with agent(configuration, tmp_path) as first:
        wait_role(client, "waiting", tmp_path)
        plan = client.post("/plan/alone", why="a fire", force=False)
        assert plan["refusals"] == []
        client.post("/alone", why="a fire", force=False)
        assert first.wait(SECONDS_MAX) == 0
    with agent(configuration, tmp_path):
        status = wait_role(client, "primary", tmp_path)
        assert [machine["name"] for machine in status["machines"]] == ["backup"]
        assert status["failover"]["policy"] == "manual"
        story = client.get("/why")
        deadline = time.monotonic() + SECONDS_MAX
        while "its end is not known" in story["headline"] and time.monotonic() < deadline:  # a moment later
            time.sleep(0.05)
            story = client.get("/why")
        assert story["headline"] == "backup became the primary by a takeover: alone: a fire"
    assert list((tmp_path / "state").glob("log.before-alone-*/store"))
    assert (tmp_path / "etc" / "holdfast.toml.before-alone").exists()
