"""A standby says before it is needed what would keep it from taking over."""

from __future__ import annotations

from pathlib import Path

import pytest

from holdfast.mail.port import CheckResult
from holdfast.node import readiness
from holdfast.node.readiness import full_disks, taken_ports, wrong_clock
from holdfast.node.roles import Role
from holdfast.trees.spec import TreeSpec

from .two_nodes import TwoNodes, run, wait_until


def test_a_disk_that_cannot_be_looked_at_or_is_full_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trees = [TreeSpec("store", str(tmp_path)), TreeSpec("more", str(tmp_path))]
    assert list(full_disks(trees)) == []
    monkeypatch.setattr(readiness, "FREE_SHARE_MIN", 1.1)
    (full,) = full_disks(trees)
    assert "% full" in full
    (gone,) = full_disks([TreeSpec("store", str(tmp_path / "gone"))])
    assert "cannot be looked at" in gone


def test_a_port_that_is_taken_is_named_but_not_on_loopback(tmp_path: Path) -> None:
    head = "  sl  local_address rem_address   st\n"
    (tmp_path / "tcp").write_text(
        head
        + "   0: 00000000:0019 00000000:0000 0A\n"
        + "   1: 0100007F:03E1 00000000:0000 0A\n"
        + "   2: 00000000:1F90 00000000:0000 0A\n"
    )
    (tmp_path / "tcp6").write_text(head + "   0: 00000000000000000000000000000000:008F 00:0000 0A\n")
    (said,) = taken_ports(tmp_path)
    assert "port 25, 143 already" in said


def test_a_clock_is_wrong_when_two_others_say_so() -> None:
    assert wrong_clock({"main": 5.0, "relay": 7.0}) == ["this machine's clock is 5 s behind that of main and relay"]
    assert wrong_clock({"main": -5.0, "relay": -7.0}) == ["this machine's clock is 5 s ahead of that of main and relay"]
    assert wrong_clock({"main": 5.0, "relay": 0.0}) == []
    assert wrong_clock({"main": 5.0}) == []


def test_a_standby_that_is_not_ready_says_so_and_the_primary_too(tmp_path: Path) -> None:
    async def scenario(nodes: TwoNodes) -> None:
        backup = nodes.backup.node
        await wait_until(lambda: backup.readiness.last.checked_at > 0, lambda: "never checked")
        assert backup.readiness.last.ready, backup.readiness.last.problems

        async def broken() -> tuple[CheckResult, ...]:
            return (CheckResult("postfix", errors=("fatal: bad main.cf",)),)

        backup.world.serving.mail.check = broken  # type: ignore[method-assign]
        await backup.readiness.look()
        assert "not ready to take over: postfix: fatal: bad main.cf" in await nodes.backup.warnings()
        await backup.beats.say_now()
        beat = nodes.main.node.beats.last("backup")
        await wait_until(
            lambda: bool((heard := nodes.main.node.beats.last("backup")) and heard.warnings), lambda: str(beat)
        )
        assert "not ready to take over" in await nodes.main.warnings()
        assert any(event.startswith("not ready to take over") for event in nodes.backup.events())

    run(tmp_path, scenario)


def test_a_primary_is_no_standby_and_is_not_checked(tmp_path: Path) -> None:
    async def scenario(nodes: TwoNodes) -> None:
        assert nodes.main.node.role is Role.PRIMARY
        assert nodes.main.node.readiness.last.checked_at == 0

    run(tmp_path, scenario)
