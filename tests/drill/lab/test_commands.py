"""``holdfast lab`` by hand: every command, its output and exit status."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from holdfast.drill.lab import backend
from holdfast.drill.lab.lab import Lab

from .conftest import fresh_name

pytestmark = pytest.mark.system


def holdfast_lab(*arguments: str, name: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": backend.source_folder(), "HOLDFAST_LAB": name}
    argv = [sys.executable, "-m", "holdfast.drill.lab", *arguments]
    return subprocess.run(argv, env=env, input=stdin, capture_output=True, text=True, check=False, timeout=60)


@pytest.fixture(scope="module")
def name() -> Iterator[str]:
    chosen = fresh_name()
    done = holdfast_lab("up", "--disk-mb", "256", "--machine", "spare:standby", "--json", name=chosen)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert [machine["name"] for machine in seen["machines"]] == ["main", "backup", "relay", "client", "spare"]
    yield chosen
    assert holdfast_lab("down", name=chosen).stdout == f"lab {chosen}: removed\n"
    assert holdfast_lab("down", name=chosen).stdout == f"lab {chosen}: there was none\n"


def test_status_names_machines_addresses_the_service_address_and_accounts(name: str) -> None:
    seen = json.loads(holdfast_lab("status", "--json", name=name).stdout)
    network = Lab.open(name).state.network
    assert seen["service_ipv4"] == f"10.77.{network}.10"
    assert seen["service_ipv6"] == f"fd77:{network}::10"
    assert seen["machines"][0]["ipv4"] == f"10.77.{network}.11"
    assert seen["machines"][0]["pid"] > 1
    assert len(seen["accounts"]) == 50
    assert seen["accounts"][0] == {"address": "user01@example.test", "password": Lab.open(name).accounts[0].password}
    text = holdfast_lab("status", name=name).stdout
    assert f"10.77.{network}.12" in text
    assert len(text.splitlines()) <= 24


def test_list_names_it(name: str) -> None:
    assert name in holdfast_lab("list", name=name).stdout.split()


def test_exec_passes_input_output_and_exit_status_through(name: str) -> None:
    done = holdfast_lab(
        "exec", "main", "--", "sh", "-c", "cat; hostname; echo bad >&2; exit 7", name=name, stdin="in\n"
    )
    assert (done.returncode, done.stdout, done.stderr) == (7, "in\nmain\n", "bad\n")
    assert holdfast_lab("exec", "main", "sh", "-c", "kill -TERM $$", name=name).returncode == 128 + 15
    assert holdfast_lab("exec", "--user", "vmail", "main", "--", "id", "-un", name=name).stdout == "vmail\n"


def test_exec_on_a_terminal_gives_the_command_a_terminal_of_its_own(name: str) -> None:
    env = {**os.environ, "PYTHONPATH": backend.source_folder(), "HOLDFAST_LAB": name, "TERM": "vt100"}
    command = (
        f"{sys.executable} -m holdfast.drill.lab exec main -- sh -c 'test -t 0 && test -t 1 && echo $TERM; exit 5'"
    )
    script = ["script", "--quiet", "--return", "--command", command, "/dev/null"]
    done = subprocess.run(script, env=env, capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 5
    assert "vt100" in done.stdout


def test_kill_start_freeze_thaw_cut_heal_stop_by_hand(name: str) -> None:
    def states() -> dict[str, str]:
        seen = json.loads(holdfast_lab("status", "--json", name=name).stdout)
        return {machine["name"]: machine["state"] for machine in seen["machines"]}

    for command in (["kill", "main", "spare"], ["kill", "--soft", "backup"], ["freeze", "relay"], ["stop", "client"]):
        assert holdfast_lab(*command, name=name).returncode == 0
    expected = {"main": "off", "backup": "killed (soft)", "relay": "frozen", "client": "killed (soft)", "spare": "off"}
    assert states() == expected
    assert holdfast_lab("cut", "--one-way", "main", "backup", name=name).returncode == 0
    assert "cut: main -> backup (packets)" in holdfast_lab("status", name=name).stdout
    for command in (["start", "main", "backup", "client", "spare"], ["thaw", "relay"], ["heal"]):
        assert holdfast_lab(*command, name=name).returncode == 0
    assert set(states().values()) == {"on"}
    assert "cut:" not in holdfast_lab("status", name=name).stdout


def test_an_error_is_a_sentence_with_a_hint_and_its_own_status(name: str) -> None:
    done = holdfast_lab("kill", "nobody", name=name)
    assert done.returncode == 1
    assert "has no machine nobody" in done.stderr
    assert "It has main" in done.stderr
    assert "Traceback" not in done.stderr
    assert holdfast_lab("up", "--machine", "x:king", name=f"{name}x").returncode == 6


def test_help_names_every_command() -> None:
    shown = holdfast_lab("--help", name="lab").stdout
    for command in ("up", "down", "status", "exec", "kill", "start", "freeze", "thaw", "cut", "heal", "list"):
        assert f"  {command} " in shown
