"""Copies at intervals: a standby holds whole copies and nothing else, whenever the primary dies."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Awaitable, Callable
from datetime import datetime
from pathlib import Path

import pytest

from holdfast.changes.change import Put
from holdfast.changes.frame import open_frame
from holdfast.changes.names import Sequence
from holdfast.errors import HoldfastError
from holdfast.log.memory import MemoryLogStore
from holdfast.log.port import LogUnavailable
from holdfast.node.desk import desk
from holdfast.node.roles import Role
from holdfast.node.settings import CopySettings, FailoverSettings

from .two_nodes import DEADLINE_SECONDS, SCENARIO_SECONDS_MAX, TwoNodes, wait_until


class CutStore(MemoryLogStore):
    """Takes so many records more, and then none: as a primary's death in the middle of a copy leaves the log."""

    left: int | None = None

    def put(self, payload: bytes) -> None:
        if self.left is not None:
            if self.left == 0:
                raise LogUnavailable("cut")
            self.left -= 1
        super().put(payload)


class IntervalNodes(TwoNodes):
    failover = FailoverSettings(policy="interval")
    copy = CopySettings(durable_seconds=0.2, every_hours=24.0)
    store_type = CutStore
    store: CutStore

    async def whole(self) -> None:
        """Backup holds a whole copy of what main has now."""
        await self.settle()
        await wait_until(lambda: self.backup.node.copying.whole, lambda: "\n".join(self.backup.events()))

    async def die_in_copy(self, records: int) -> None:
        """Main makes a copy, and dies when the log has taken so many records of it."""
        self.store.left = records
        assert self.main.node.primary is not None
        with pytest.raises(HoldfastError):
            await self.main.node.primary.barrier(0.5)
        await self.main.stop()
        self.store.left = None


def run(base: Path, scenario: Callable[[IntervalNodes], Awaitable[None]]) -> None:
    async def whole() -> None:
        nodes = IntervalNodes(base)
        try:
            await nodes.up()
            await nodes.whole()
            await scenario(nodes)
        finally:
            nodes.store.left = None
            await nodes.down()

    asyncio.run(asyncio.wait_for(whole(), SCENARIO_SECONDS_MAX))


def test_nothing_is_copied_between_two_copies_and_status_says_what_would_be_lost(tmp_path: Path) -> None:
    async def scenario(nodes: IntervalNodes) -> None:
        nodes.main.write("one")
        await nodes.whole()
        before, last = nodes.backup.contents(), nodes.store.state().last
        copied_at = (await nodes.backup.status()).copied_at
        at = datetime.fromtimestamp(copied_at)
        nodes.main.write("two")
        assert nodes.main.node.primary is not None
        assert nodes.main.node.primary.watcher.status().source == "none"
        assert nodes.store.state().last == last
        await wait_until(
            lambda: (beat := nodes.main.node.beats.last("backup")) is not None and beat.copied_at == copied_at,
            lambda: "main does not hear of the copy",
        )
        for machine in (nodes.main, nodes.backup):
            status = await machine.status()
            assert f"everything done since {at:%Y-%m-%d %H:%M:%S}, 0 min ago" == status.lost_if_primary_died
            assert status.next_copy_at > time.time() + 23 * 3600
        assert "everything done since" in desk(await nodes.backup.status(), None, 60.0, []).choices[0].lost
        await nodes.whole()
        assert before != nodes.backup.contents() == nodes.main.contents()

    run(tmp_path, scenario)


async def fail_to_take_over(nodes: IntervalNodes) -> None:
    """The log does not take the promotion, and then the agent ends and begins again.

    By then the index has passed over the unfinished copy, and must not be taken for the trees.
    """
    nodes.store.left = 0
    assert not (await nodes.backup.operations.takeover("main is gone")).done
    await nodes.backup.stop()
    nodes.store.left = None
    nodes.backup.start()
    await nodes.backup.wait_role(Role.STANDBY)


def test_a_takeover_in_the_middle_of_a_copy_serves_the_last_whole_one_and_says_which(tmp_path: Path) -> None:
    async def scenario(nodes: IntervalNodes) -> None:
        for number in range(30):
            nodes.main.write(f"kept/{number}")
        await nodes.whole()
        last_whole = nodes.backup.contents()
        for number in range(30):
            nodes.main.write(f"kept/{number}", "changed " * 100)
            nodes.main.write(f"late/{number}", "x" * 200_000)
        await nodes.die_in_copy(3)
        await wait_until(lambda: not nodes.backup.node.beats.alive("main"), lambda: "main is heard")
        assert nodes.backup.contents() == last_whole
        plan = await nodes.backup.operations.plan_takeover("", force=False)
        assert "since the last whole copy" in plan.warnings[0]
        await fail_to_take_over(nodes)
        assert nodes.backup.contents() == last_whole
        outcome = await nodes.backup.operations.takeover("main is gone")
        assert outcome.done, outcome
        assert "3 records behind it are of a copy that is not whole" in outcome.steps[0].words
        assert nodes.backup.contents() == last_whole
        assert any("main is gone; from the copy of 20" in event for event in nodes.backup.events())
        # The log says what the new primary holds, to whoever reads it from the beginning.
        nodes.backup.write("after the takeover")
        assert nodes.backup.node.primary is not None
        await nodes.backup.node.primary.barrier(DEADLINE_SECONDS)
        nodes.main.start()
        await nodes.main.wait_role(Role.RETURNED)
        nodes.main.node.orders.rejoin()
        await nodes.main.wait_role(Role.STANDBY)
        await nodes.settle(nodes.backup, nodes.main)
        assert nodes.main.contents() == nodes.backup.contents()
        assert {**last_whole, "after the takeover": b"after the takeover of backup\n"} == nodes.backup.contents()

    run(tmp_path, scenario)


def test_a_copy_that_was_cut_short_goes_on_after_a_restart(tmp_path: Path) -> None:
    async def scenario(nodes: IntervalNodes) -> None:
        last_whole = nodes.backup.contents()
        for number in range(20):
            nodes.main.write(f"late/{number}", "x" * 200_000)
        before = nodes.store.state().last
        await nodes.die_in_copy(2)
        assert nodes.backup.contents() == last_whole
        nodes.main.start()
        await nodes.main.wait_role(Role.PRIMARY)
        await nodes.whole()
        assert nodes.backup.contents() == nodes.main.contents()
        new = range(before + 1, nodes.store.state().last + 1)
        frames = [open_frame(nodes.store.get(Sequence(number)).payload, nodes.key) for number in new]
        paths = [change.path for frame in frames for change in frame.changes if isinstance(change, Put)]
        assert len(paths) == len(set(paths)) == 20, "what was in the log before the restart is not sent again"

    run(tmp_path, scenario)


def test_a_switchover_copies_while_mail_is_served_and_loses_nothing(tmp_path: Path) -> None:
    async def scenario(nodes: IntervalNodes) -> None:
        nodes.main.write("since the last copy")
        outcome = await nodes.backup.operations.switchover("work")
        assert outcome.done, outcome
        assert [step.name for step in outcome.steps] == [
            "copy",
            "yield",
            "drain",
            "promote",
            "prepare",
            "serve",
            "probe",
        ]
        assert nodes.backup.contents() == nodes.main.contents()
        assert "since the last copy" in nodes.backup.contents()
        nodes.backup.write("on the new primary")
        await wait_until(lambda: nodes.main.node.standby is not None, lambda: nodes.main.node.reason)
        await nodes.settle(nodes.backup, nodes.main)
        assert nodes.backup.contents() == nodes.main.contents()

    run(tmp_path, scenario)


def test_a_seeded_standby_is_whole_with_the_first_copy_after_the_seed(tmp_path: Path) -> None:
    async def scenario(nodes: IntervalNodes) -> None:
        await nodes.backup.stop()
        nodes.main.write("one")
        shutil.rmtree(nodes.backup.base / "state")
        (nodes.backup.base / "state").mkdir()
        nodes.backup.start()
        await nodes.backup.wait_role(Role.STANDBY)
        warnings = await nodes.backup.warnings()
        if not nodes.backup.node.copying.whole:  # still: so it was not when they were asked for
            assert "files are of different moments" in warnings
        await wait_until(lambda: nodes.backup.node.copying.whole, lambda: "\n".join(nodes.backup.events()))
        assert nodes.backup.contents() == nodes.main.contents()

    run(tmp_path, scenario)


def test_verify_makes_a_copy_and_finds_nothing(tmp_path: Path) -> None:
    async def scenario(nodes: IntervalNodes) -> None:
        nodes.main.write("since the last copy")
        await nodes.assert_equal()

    run(tmp_path, scenario)
