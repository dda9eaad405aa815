"""Home at a set hour: once a day, on the preferred machine, and only when nothing speaks against it."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import pytest

from holdfast.errors import HoldfastError, Refused
from holdfast.node.failback import Home, against, due
from holdfast.node.guard import Guard
from holdfast.node.roles import Role

from .two_nodes import TwoNodes, run, wait_until

GOOD = Home(True, True, True, False, True, 0, 20.0)


def at(text: str) -> datetime:
    return datetime.fromisoformat(f"2026-11-22T{text}")


def test_it_is_due_in_the_quarter_of_an_hour_after_its_time_and_once_a_day() -> None:
    assert not due("03:30", at("03:29:59"), None)
    assert due("03:30", at("03:30:00"), None)
    assert not due("03:30", at("03:45:00"), None)
    assert not due("03:30", at("03:31:00"), at("03:30:00"))
    assert due("03:30", at("03:30:00"), datetime.fromisoformat("2026-11-21T03:30:00"))
    assert not due("", at("03:30:00"), None)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"preferred": False}, "preferred"),
        ({"standby": False}, "no standby"),
        ({"primary_serves": False}, "not heard"),
        ({"paused": True}, "paused"),
        ({"ready": False}, "not ready"),
        ({"behind_records": 5000}, "behind"),
        ({"lag_ms_p99": 9000.0}, "behind"),
    ],
)
def test_what_speaks_against_it(change: dict[str, object], why: str) -> None:
    assert against(GOOD) == ""
    assert why in against(GOOD._replace(**change))  # type: ignore[arg-type]


def test_the_preferred_machine_goes_home_by_itself(tmp_path: Path) -> None:
    async def scenario(nodes: TwoNodes) -> None:
        assert (await nodes.backup.operations.switchover("away")).done
        await nodes.main.wait_role(Role.STANDBY)
        main = nodes.main.node
        await wait_until(lambda: main.beats.alive("backup"), lambda: "backup is not heard")
        await wait_until(lambda: bool((b := main.beats.last("backup")) and b.serving), lambda: "backup does not serve")
        now = datetime.fromtimestamp(nodes.main.clock.seconds())
        guard = Guard(main, nodes.main.operations)
        object.__setattr__(main.world, "settings", _with_failback(main.world.settings, now))
        await guard.start()
        try:
            await nodes.main.wait_role(Role.PRIMARY)
        finally:
            await guard.stop()
        assert any("home to the preferred machine" in event for event in nodes.main.events())

    run(tmp_path, scenario)


def test_a_switchover_ordered_for_a_moment_happens_then_and_once(tmp_path: Path) -> None:
    async def scenario(nodes: TwoNodes) -> None:
        backup = nodes.backup.node
        await wait_until(lambda: backup.beats.alive("main"), lambda: "main is not heard")
        await backup.readiness.look()
        guard = Guard(backup, nodes.backup.operations)
        with pytest.raises(Refused, match="is primary"):
            Guard(nodes.main.node, nodes.main.operations).planned.order_switchover("03:30", "")
        at = guard.planned.order_switchover("03:30", "a new kernel")
        assert (await nodes.backup.status()).failover.switchover_at == at
        guard.planned.order_switchover("", "not tonight")
        assert (await nodes.backup.status()).failover.switchover_at == 0.0

        at = guard.planned.order_switchover("03:30", "a new kernel")
        nodes.backup.clock.wrong_by_seconds = at - nodes.main.clock.seconds() - 5.0
        guard.look(backup.world.clocks.steady())
        assert (await nodes.backup.status()).failover.switchover_at == at
        nodes.backup.clock.wrong_by_seconds += 6.0
        await guard.start()
        try:
            await nodes.backup.wait_role(Role.PRIMARY)
        finally:
            await guard.stop()
        assert (await nodes.backup.status()).failover.switchover_at == 0.0
        begun = [event for event in nodes.backup.events() if event.startswith("switchover begins")]
        assert len(begun) == 1
        assert "03:30: a new kernel" in begun[0]

    run(tmp_path, scenario)


def test_a_switchover_at_its_moment_that_fails_is_told_of_and_not_tried_again(tmp_path: Path) -> None:
    async def scenario(nodes: TwoNodes) -> None:
        backup = nodes.backup.node
        await wait_until(lambda: backup.beats.alive("main"), lambda: "main is not heard")
        await backup.readiness.look()
        assert nodes.main.node.asks is not None
        nodes.main.node.asks.answer("yield", _fails, changes=True)
        guard = Guard(backup, nodes.backup.operations)
        at = guard.planned.order_switchover("03:30", "a new kernel")
        nodes.backup.clock.wrong_by_seconds = at - nodes.main.clock.seconds() + 1.0
        await guard.start()
        try:
            await wait_until(lambda: bool(backup.not_switched), lambda: "\n".join(nodes.backup.events()))
            guard.look(backup.world.clocks.steady())
        finally:
            await guard.stop()
        assert len([event for event in nodes.backup.events() if event.startswith("switchover begins")]) == 1
        [warned] = [each for each in (await nodes.backup.status()).warnings if each.key == "own:no switchover"]
        assert warned.what.startswith("no switchover at ")
        assert "the disk does not answer" in warned.what
        assert nodes.main.node.role is Role.PRIMARY
        guard.planned.order_switchover("03:30", "another night")
        assert not backup.not_switched

    run(tmp_path, scenario)


async def _fails(request: object) -> dict[str, object]:
    raise HoldfastError("the disk does not answer")


def test_an_order_for_a_moment_at_which_the_agent_did_not_run_is_not_made_good_later(tmp_path: Path) -> None:
    async def scenario(nodes: TwoNodes) -> None:
        guard = Guard(nodes.backup.node, nodes.backup.operations)
        at = guard.planned.order_switchover("03:30", "a new kernel")
        nodes.backup.clock.wrong_by_seconds = at - nodes.main.clock.seconds() + 3600.0
        guard.look(nodes.backup.node.world.clocks.steady())
        assert nodes.backup.node.role is Role.STANDBY
        assert any("the agent did not run at that time" in event for event in nodes.backup.events())
        assert (await nodes.backup.status()).failover.switchover_at == 0.0

    run(tmp_path, scenario)


def _with_failback(settings: object, now: datetime) -> object:
    import msgspec

    failover = msgspec.structs.replace(settings.failover, failback_at=f"{now:%H:%M}")  # type: ignore[attr-defined]
    return msgspec.structs.replace(settings, failover=failover)  # type: ignore[type-var]
