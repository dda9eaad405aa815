"""Alarms: one message a cause, one when it is over; who tells; and that they arrive."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import msgspec
import pytest

from holdfast.errors import HoldfastError
from holdfast.mail.commands import SystemCommands
from holdfast.node.alarms import Alarms, Causes, of_site, post, speaks
from holdfast.node.settings import AlarmSettings
from holdfast.node.status import Warned

from .two_nodes import TwoNodes, run, wait_until

SETTINGS = AlarmSettings(after_seconds=10.0, over_seconds=30.0)
LAG = Warned("backup is 2000 ms behind", "look", "lag backup")
ASKED = Warned("no automatic takeover", "look", "own:no takeover")
NOBODY = Warned("nobody is served", "look", "nobody served")


def told(causes: Causes, *looks: tuple[float, list[Warned]]) -> list[str]:
    return [f"{at:g} {state} {each.key}" for at, warned in looks for state, each, _ in causes.look(warned, at)]


def test_a_cause_is_told_when_it_has_lasted_and_once_and_when_it_is_over() -> None:
    looks = [(float(at), [LAG] if at < 60 else []) for at in range(0, 120, 2)]
    assert told(Causes(SETTINGS), *looks) == ["10 raised lag backup", "88 over lag backup"]


def test_what_comes_and_goes_is_one_cause() -> None:
    looks = [(float(at), [LAG] if at % 20 < 10 else []) for at in range(0, 200, 2)]
    assert told(Causes(SETTINGS), *looks, (300.0, []))[0].endswith("raised lag backup")
    assert len(told(Causes(SETTINGS), *looks, (300.0, []))) == 2


def test_what_passes_is_told_to_nobody_but_that_nobody_is_served_is_told_soon_and_that_a_person_is_asked_at_once() -> (
    None
):
    assert told(Causes(SETTINGS), (0.0, [LAG]), (2.0, [LAG]), (4.0, []), (40.0, [])) == []
    looks = [(float(at), [NOBODY]) for at in range(0, 12, 2)]
    assert told(Causes(SETTINGS), *looks) == ["6 raised nobody served"]
    assert told(Causes(SETTINGS), (0.0, [ASKED])) == ["0 raised own:no takeover"]


def test_a_warning_without_a_key_is_for_who_looks() -> None:
    assert told(Causes(SETTINGS), (0.0, [Warned("x", "y")]), (60.0, [Warned("x", "y")])) == []


def test_the_primary_speaks_for_the_site_and_while_it_is_silent_the_first_that_is_heard() -> None:
    all_heard = [("main", True), ("backup", True), ("relay", True)]
    assert [speaks(name, "main", all_heard) for name, _ in all_heard] == [True, False, False]
    silent = [("main", False), ("backup", True), ("relay", True)]
    assert [speaks(name, "main", silent) for name in ("backup", "relay")] == [True, False]


@pytest.fixture
def hook() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    got: list[dict[str, Any]] = []

    class Take(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(500 if "fail" in self.path else 204)
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Take)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/hook", got
    server.shutdown()
    thread.join()
    server.server_close()


def test_command_and_webhook_get_the_message_and_failures_are_named(
    tmp_path: Path, hook: tuple[str, list[dict[str, Any]]]
) -> None:
    address, got = hook
    written = tmp_path / "alarm.json"

    async def scenario(nodes: TwoNodes) -> None:
        alarms = Alarms(nodes.main.node, SystemCommands())
        with pytest.raises(HoldfastError, match="nobody is configured"):
            await alarms.test()
        script = f'cat > {written}; echo "$HOLDFAST_TEXT" >> {written}'
        alarms.settings = AlarmSettings(command=("/bin/sh", "-c", script), webhook=address)
        assert await alarms.test() == {"command": "", "webhook": ""}
        alarms.settings = AlarmSettings(command=("/bin/false",), webhook=address + "/fail?token=secret")
        failed = await alarms.test()
        assert "false" in failed["command"]
        assert "500" in failed["webhook"]
        assert "secret" not in failed["webhook"]

    run(tmp_path, scenario)
    first, text = written.read_text().splitlines()
    assert msgspec.json.decode(first)["state"] == "test"
    assert text == got[0]["text"] == "Holdfast, site test, main: a test of the alarms: nothing is wrong"


def test_only_the_web_is_posted_to() -> None:
    with pytest.raises(ValueError, match="no web address"):
        post("file:///etc/passwd", {})


def test_a_standby_that_is_gone_is_one_cause_and_so_is_a_primary_that_is(tmp_path: Path) -> None:
    async def scenario(nodes: TwoNodes) -> None:
        await nodes.backup.stop()
        await wait_until(lambda: not nodes.main.node.beats.alive("backup"), lambda: "backup is still heard")
        status = await nodes.main.status()
        told = {each.key: each.what for each in of_site(status) if each.key}
        assert told["one copy"] == "down to one copy: there is no standby now (backup is silent (was standby))"
        assert "silent backup" not in told
        # The same two machines, as the other one would see it.
        seen = [msgspec.structs.replace(view, alive=False) if view.name == "main" else view for view in status.machines]
        silent = Warned("main is silent for 5 s", "", "silent main")
        keys = {each.key for each in of_site(msgspec.structs.replace(status, machines=tuple(seen), warnings=(silent,)))}
        assert keys == {"", "nobody served"}

    run(tmp_path, scenario)


def test_a_promotion_is_told_by_the_machine_that_was_promoted(tmp_path: Path) -> None:
    async def scenario(nodes: TwoNodes) -> None:
        alarms = Alarms(nodes.backup.node, SystemCommands())
        alarms.look(await nodes.backup.status())
        outcome = await nodes.backup.operations.switchover("a test")
        assert outcome.done
        alarms.look(await nodes.backup.status())
        alarms.look(await nodes.backup.status())
        waiting = [alarms._waiting.get_nowait() for _ in range(alarms._waiting.qsize())]
        assert [alarm.what for alarm in waiting if alarm.state == "event"] == [
            "switched over to backup, because: a test"
        ]

    run(tmp_path, scenario)
