"""Whole nodes with their guards and a relay, in one process: who stops, who takes over, who waits for whom."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Literal

import pytest

from holdfast.errors import Refused
from holdfast.gate.read_only import ReadOnlyMark
from holdfast.node.guard import IS_PRIMARY, Guard
from holdfast.node.roles import Role
from holdfast.node.settings import FailoverSettings, MachineSettings
from holdfast.node.watchman import Order

from .two_nodes import SCENARIO_SECONDS_MAX, Machine, TwoNodes, wait_until


class Guarded(Machine):
    """With its guard, as an agent has."""

    guard: Guard

    async def begin(self) -> None:
        self.start()
        self.guard = Guard(self.node, self.operations)
        await self.guard.start()

    async def end(self) -> None:
        await self.stop()
        await self.guard.stop()

    @property
    def serves(self) -> bool:
        return self.node.world.serving.on and not self.node.held

    def hear_nothing_from(self) -> None:
        """One way: what it sends does not arrive, what others send does."""
        self.bus.connected = False

    def said(self, what: str) -> bool:
        return any(what in event for event in self.events())


class ThreeNodes(TwoNodes):
    machines = (*TwoNodes.machines, MachineSettings(name="relay", role="relay", address="192.0.2.13"))
    failover = FailoverSettings(policy="automatic", takeovers_max=2)

    def __init__(self, base: Path, failover: FailoverSettings) -> None:
        self.failover = failover
        super().__init__(base / "unused")
        self.main, self.backup, self.relay = (Guarded(self, name, base / name) for name in ("main", "backup", "relay"))

    async def up(self) -> None:
        for machine in self.all:
            await machine.begin()
        await self.backup.wait_role(Role.STANDBY)
        main, _, _ = self.all
        await wait_until(lambda: main.serves, lambda: f"main does not serve: {main.node.reason}")

    async def down(self) -> None:
        await asyncio.gather(*(machine.end() for machine in self.all))

    @property
    def all(self) -> tuple[Guarded, Guarded, Guarded]:
        assert isinstance(self.main, Guarded)
        assert isinstance(self.backup, Guarded)
        return self.main, self.backup, self.relay


def run(
    base: Path,
    scenario: Callable[[Guarded, Guarded, Guarded], Awaitable[None]],
    failover: FailoverSettings = ThreeNodes.failover,
) -> None:
    async def whole() -> None:
        nodes = ThreeNodes(base, failover)
        try:
            await nodes.up()
            await scenario(*nodes.all)
        finally:
            await nodes.down()

    asyncio.run(asyncio.wait_for(whole(), SCENARIO_SECONDS_MAX))


def test_a_primary_whose_words_do_not_arrive_stops_and_is_replaced_and_rejoins(tmp_path: Path) -> None:
    async def scenario(main: Guarded, backup: Guarded, relay: Guarded) -> None:
        main.hear_nothing_from()

        def stops_first() -> bool:
            assert not (main.serves and backup.serves)
            return not main.serves

        await wait_until(stops_first, lambda: "main serves on")
        await wait_until(lambda: backup.serves, lambda: f"backup: {backup.node.decided}")
        assert main.said("the one cut off")
        assert backup.said("confirmed by votes: relay miss main too")
        main.bus.connected = True
        await main.wait_role(Role.STANDBY)
        assert main.said("rejoins by itself")
        assert backup.serves
        assert backup.node.epoch == 2

    run(tmp_path, scenario)


def test_a_primary_left_alone_serves_again_by_a_record_of_its_own(tmp_path: Path) -> None:
    async def scenario(main: Guarded, backup: Guarded, relay: Guarded) -> None:
        last = main.site.store.state().last
        backup.hear_nothing_from()
        relay.hear_nothing_from()
        await wait_until(lambda: not main.serves, lambda: "main serves on")
        backup.bus.connected = relay.bus.connected = True
        await wait_until(lambda: main.serves, lambda: main.node.reason)
        assert main.site.store.state().last > last
        assert main.node.epoch == 1
        assert backup.node.standby is not None
        await main.site.assert_equal()

    run(tmp_path, scenario)


@pytest.mark.parametrize(("policy", "stop"), [("automatic", True), ("manual", True), ("manual", False)])
def test_a_primary_whose_log_takes_nothing_serves_or_stops_as_configured_and_serves_again(
    tmp_path: Path, policy: Literal["automatic", "manual"], stop: bool
) -> None:
    failover = FailoverSettings(
        policy=policy, without_quorum="stop" if stop else "serve", without_quorum_seconds=1.0 if stop else 0.2
    )

    async def scenario(main: Guarded, backup: Guarded, relay: Guarded) -> None:
        main.site.store.set_available(False)
        main.write("a message")
        if stop:
            await wait_until(lambda: not main.serves, lambda: "main serves on")
            await wait_until(lambda: "without_quorum says to stop" in main.node.reason, lambda: main.node.reason)
            assert main.said("stops serving: the log takes nothing")
        else:
            await wait_until(lambda: main.node.beat().waiting_seconds > 1.0, lambda: "the log is not away")
            assert main.serves
        main.site.store.set_available(True)
        await wait_until(lambda: main.serves, lambda: main.node.reason)
        await main.site.assert_equal()

    run(tmp_path, scenario, failover)


@pytest.mark.parametrize("policy", ["automatic", "manual"])
def test_a_primary_whose_log_takes_nothing_refuses_changes_where_it_is_to_and_takes_them_again(
    tmp_path: Path, policy: Literal["automatic", "manual"]
) -> None:
    failover = FailoverSettings(policy=policy, without_quorum="read-only", without_quorum_seconds=1.0)

    async def scenario(main: Guarded, backup: Guarded, relay: Guarded) -> None:
        mark = ReadOnlyMark(main.base)
        main.site.store.set_available(False)
        main.write("a message")
        await wait_until(lambda: mark.present, lambda: f"changes are taken: {main.node.decided}")
        await wait_until(lambda: main.node.beat().read_only, lambda: "nobody is told")
        assert main.serves
        assert "without_quorum says read-only" in main.node.reason
        assert main.said("refuses changes: the log takes nothing")
        main.site.store.set_available(True)
        await wait_until(lambda: not mark.present, lambda: "changes are refused for ever")
        assert main.serves
        assert not main.node.beat().read_only
        assert main.said("takes changes again")
        assert main.node.reason == IS_PRIMARY
        await main.site.assert_equal()

    run(tmp_path, scenario, failover)


def test_a_primary_that_is_cut_off_stops_although_it_was_to_serve_read_only(tmp_path: Path) -> None:
    failover = FailoverSettings(policy="automatic", without_quorum="read-only", without_quorum_seconds=1.0)

    async def scenario(main: Guarded, backup: Guarded, relay: Guarded) -> None:
        main.site.store.set_available(False)
        main.write("a message")
        await wait_until(lambda: main.node.world.serving.read_only, lambda: "changes are taken")
        backup.hear_nothing_from()
        relay.hear_nothing_from()
        await wait_until(lambda: not main.serves, lambda: "main serves on")
        backup.bus.connected = relay.bus.connected = True
        main.site.store.set_available(True)
        await wait_until(lambda: main.serves, lambda: main.node.reason)
        assert not main.node.world.serving.read_only

    run(tmp_path, scenario, failover)


def test_what_was_proved_while_nobody_heard_is_proved_again(tmp_path: Path) -> None:
    async def scenario(main: Guarded, backup: Guarded, relay: Guarded) -> None:
        await backup.guard.stop()  # nobody takes over
        await main.end()
        main.hear_nothing_from()
        await main.begin()
        await main.wait_role(Role.PRIMARY)
        await wait_until(lambda: not main.node.proved, lambda: "proved, although nobody hears it")
        last = main.site.store.state().last
        assert not main.serves
        main.bus.connected = True
        await wait_until(lambda: main.serves, lambda: main.node.reason)
        assert main.site.store.state().last > last

    run(tmp_path, scenario)


def test_a_copy_that_lacks_files_does_not_take_over_by_itself(tmp_path: Path) -> None:
    """They are on the primary only, or far back in the log: promoted, this copy would be the truth without them."""

    async def scenario(main: Guarded, backup: Guarded, relay: Guarded) -> None:
        backup.node.copying.lacking = 4
        main.bus.connected = False
        await wait_until(lambda: "not whole" in backup.node.decided.reason, lambda: backup.node.decided.reason)
        assert backup.node.decided.order == Order.ASK
        backup.node.copying.lacking = 0
        await wait_until(lambda: backup.serves, lambda: backup.node.decided.reason)

    run(tmp_path, scenario)


def test_a_takeover_is_given_up_when_the_voters_hear_the_primary_after_all(tmp_path: Path) -> None:
    async def scenario(main: Guarded, backup: Guarded, relay: Guarded) -> None:
        with pytest.raises(Refused, match="main is heard again"):
            await backup.guard.duties.confirm("main")
        outcome = await backup.operations.takeover(
            "a test", force=True, confirm=lambda: backup.guard.duties.confirm("main")
        )
        assert "not confirmed" in outcome.failure
        assert main.serves
        assert backup.node.role is Role.STANDBY

    run(tmp_path, scenario)


def test_a_record_that_comes_after_the_votes_means_new_votes(tmp_path: Path) -> None:
    """A primary that was heard again in between has appended one: a promotion behind it would make two that serve."""

    async def scenario(main: Guarded, backup: Guarded, relay: Guarded) -> None:
        asked = 0

        async def confirm() -> None:
            nonlocal asked
            asked += 1
            if asked == 2:
                raise Refused("main is heard again")
            main.write("meanwhile")
            await main.site.settle()  # in the log, and applied here

        outcome = await backup.operations.takeover("a test", force=True, confirm=confirm)
        assert asked == 2
        assert "heard again" in outcome.failure
        assert main.serves
        assert main.node.epoch == 1
        await backup.wait_role(Role.STANDBY)
        await main.site.assert_equal()

    run(tmp_path, scenario)


def test_without_the_fencing_commands_proof_nobody_is_promoted_and_a_person_is_asked(tmp_path: Path) -> None:
    program = tmp_path / "switch"
    program.write_text(f'#!/bin/sh\necho "$*" >> {tmp_path}/calls\necho said; test $1 = fence -o -e {tmp_path}/off\n')
    program.chmod(0o755)

    async def scenario(main: Guarded, backup: Guarded, relay: Guarded) -> None:
        main.hear_nothing_from()
        await wait_until(lambda: bool(backup.node.not_fenced), lambda: f"{backup.node.decided}")
        assert "no automatic takeover: main was not proven to be off" in await backup.warnings()
        assert backup.node.epoch == 1
        (tmp_path / "off").touch()
        await wait_until(lambda: backup.serves, lambda: f"backup: {backup.node.decided}")
        assert backup.said("the old primary is fenced: main: said")
        await wait_until(lambda: not backup.node.not_fenced, lambda: backup.node.not_fenced)

    failover = FailoverSettings(policy="automatic", fence_command=(str(program),), fence_seconds=0.6)
    run(tmp_path / "site", scenario, failover)
    assert "fence main 192.0.2.11" in (tmp_path / "calls").read_text()


def test_a_pause_holds_from_the_moment_the_order_returns_or_the_order_says_why_not(tmp_path: Path) -> None:
    async def scenario(main: Guarded, backup: Guarded, relay: Guarded) -> None:
        assert set((await relay.guard.duties.pause("work")).values()) == {""}
        main.hear_nothing_from()
        await wait_until(lambda: "paused" in backup.node.decided.reason, lambda: str(backup.node.decided))
        assert not main.said("stops serving")
        main.bus.connected = True
        await wait_until(lambda: backup.node.beats.alive("main"), lambda: "main is not heard")
        assert set((await main.guard.duties.resume()).values()) == {""}
        await backup.end()
        for machine in (relay, main):
            told = await machine.guard.duties.pause("more work")
            assert "not every standby has confirmed" in told["main"]

    run(tmp_path, scenario)


def test_a_pause_is_known_everywhere_and_lifted_only_where_the_primary_knows_of_it(tmp_path: Path) -> None:
    async def scenario(main: Guarded, backup: Guarded, relay: Guarded) -> None:
        assert set((await relay.guard.duties.pause("work")).values()) == {""}
        await wait_until(
            lambda: bool((beat := backup.node.beats.last("main")) and beat.paused), lambda: "not told by main"
        )
        assert "paused: work" in await backup.warnings()
        main.hear_nothing_from()
        await wait_until(lambda: "paused" in backup.node.decided.reason, lambda: str(backup.node.decided))
        assert main.serves, "nobody can replace it"
        for machine in (backup, relay):
            with pytest.raises(Refused, match="may serve on"):
                await machine.guard.duties.resume()
        main.bus.connected = True
        assert not relay.node.beats.alive("main")
        assert set((await backup.guard.duties.resume()).values()) == {""}, (
            "main knows, whether or not it is heard again"
        )
        for machine in (main, backup, relay):
            assert not machine.node.world.local.state.paused
        await wait_until(lambda: backup.node.beats.alive("main"), lambda: "main is not heard")
        assert set((await relay.guard.duties.pause("more work")).values()) == {""}
        assert set((await main.guard.duties.resume()).values()) == {""}
        assert not backup.node.world.local.state.paused

    run(tmp_path, scenario)
