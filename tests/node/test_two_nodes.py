"""Whole nodes: what a damaged log, a wrong clock, a long absence and a promotion elsewhere lead to."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from holdfast.changes.frame import CHAIN_START, Chain, FrameKind, FrameWriter, pack_changes, read_header, seal
from holdfast.changes.names import Epoch, MachineName, SegmentName, Sequence
from holdfast.errors import Refused
from holdfast.log.memory import MemoryLog, MemoryLogStore
from holdfast.node.address import Addresses, AddressFailed
from holdfast.node.keeping import LogKeeper
from holdfast.node.netlink import Interface
from holdfast.node.roles import Role
from holdfast.node.settings import LogSettings
from holdfast.node.status import UNLOGGED_SECONDS_MAX
from holdfast.node.unseen import FlagChange, Report, left
from holdfast.watch.watcher import ScanProgress

from .two_nodes import TwoNodes, run, wait_until

SMALL_LOG = LogSettings(retention_bytes=20_000, limit_bytes=40_000)


def test_a_standby_seeds_itself_and_follows(tmp_path: Path) -> None:
    async def scenario(nodes: TwoNodes) -> None:
        for number in range(20):
            nodes.main.write(f"a/{number}")
        await nodes.assert_equal()

    run(tmp_path, scenario)


# -- a log that is not what it was ---


def gone(nodes: TwoNodes, sequence: Sequence) -> None:
    nodes.store.lose(sequence)


def flipped(nodes: TwoNodes, sequence: Sequence) -> None:
    payload = nodes.store.get(sequence).payload
    nodes.store.spoil(sequence, payload[:-1] + bytes([payload[-1] ^ 1]))


def forked(nodes: TwoNodes, sequence: Sequence) -> None:
    """A frame of the right number, properly sealed, that follows another history."""
    header, _ = read_header(nodes.store.get(sequence).payload)
    writer = FrameWriter(SegmentName("main"), MachineName("main"), header.epoch, nodes.key)
    elsewhere = Chain(header.incarnation, Sequence(sequence - 1), CHAIN_START)
    nodes.store.spoil(sequence, seal(writer, elsewhere, FrameKind.CHANGES, pack_changes(()), captured_at_ns=1))


def repeated(nodes: TwoNodes, sequence: Sequence) -> None:
    nodes.store.spoil(sequence, nodes.store.get(Sequence(sequence - 1)).payload)


@pytest.mark.parametrize("damage", [gone, flipped, forked, repeated])
def test_a_standby_that_meets_a_damaged_record_seeds_itself_again_and_is_equal(
    tmp_path: Path, damage: Callable[[TwoNodes, Sequence], None]
) -> None:
    async def scenario(nodes: TwoNodes) -> None:
        nodes.main.write("before")
        await nodes.settle()
        await nodes.backup.stop()
        for number in range(5):
            nodes.main.write(f"missed/{number}")
            assert nodes.main.node.primary is not None
            await nodes.main.node.primary.barrier(10.0)
        damage(nodes, Sequence(nodes.store.state().last - 2))
        seeds = sum(event.startswith("seed done") for event in nodes.backup.events())
        nodes.backup.start()
        nodes.main.write("after")
        await wait_until(
            lambda: sum(event.startswith("seed done") for event in nodes.backup.events()) > seeds,
            lambda: "\n".join(nodes.backup.events()),
        )
        await nodes.backup.wait_role(Role.STANDBY)
        await nodes.assert_equal()
        assert "standby ended" in "\n".join(nodes.backup.events()), "the history says what was wrong"

    run(tmp_path, scenario)


def test_a_primary_whose_own_last_records_are_damaged_says_so_and_appends_nothing(tmp_path: Path) -> None:
    async def scenario(nodes: TwoNodes) -> None:
        nodes.main.write("before")
        await nodes.settle()
        await nodes.main.stop()
        state, kept = nodes.main.base / "state", nodes.main.base / "kept"
        shutil.copytree(state, kept)
        nodes.main.start()
        await nodes.main.wait_role(Role.PRIMARY)
        for number in range(3):
            nodes.main.write(f"later/{number}")
            await nodes.settle()
        await nodes.main.stop()
        shutil.rmtree(state)
        kept.rename(state)  # as an agent leaves it that died before its next commit
        last = nodes.store.state().last
        flipped(nodes, last)
        nodes.main.start()
        await wait_until(
            lambda: nodes.main.node.role is Role.WAITING and "damaged" in nodes.main.node.reason,
            lambda: f"{nodes.main.node.role}: {nodes.main.node.reason}",
        )
        assert nodes.store.state().last == last
        warned = await nodes.main.warnings()
        assert "damaged" in warned
        assert "holdfast takeover" in warned
        assert "holdfast found" in warned

    run(tmp_path, scenario)


# -- a log that is away, or full ---


def test_what_is_done_while_the_log_is_away_reaches_the_standby_when_it_is_back(tmp_path: Path) -> None:
    async def scenario(nodes: TwoNodes) -> None:
        nodes.store.set_available(False)
        for number in range(50):
            nodes.main.write(f"away/{number}")
        assert nodes.main.node.primary is not None
        assert "the log cannot be reached" in await nodes.main.warnings()
        assert nodes.main.node.role is Role.PRIMARY, "mail is served all the same"
        nodes.store.set_available(True)
        await nodes.assert_equal()

    run(tmp_path, scenario)


def test_a_full_log_is_warned_of_and_nothing_is_lost_when_there_is_room(tmp_path: Path) -> None:
    async def scenario(nodes: TwoNodes) -> None:
        nodes.main.write("before")
        await nodes.settle()
        nodes.store.bytes_max = nodes.store.state().stored_bytes + 10
        for number in range(50):
            nodes.main.write(f"full/{number}")
        capture = nodes.main.node.primary.capture if nodes.main.node.primary is not None else None
        assert capture is not None
        await wait_until(lambda: (capture.status().log_away_seconds or 0) > UNLOGGED_SECONDS_MAX, lambda: "it succeeds")
        assert "the log is full" in await nodes.main.warnings()
        assert "the log is full" in (await nodes.main.status()).lost_if_primary_died
        nodes.store.bytes_max = None
        await nodes.assert_equal()
        assert "the log is full" not in await nodes.main.warnings()

    run(tmp_path, scenario)


# -- long away ---


def test_a_standby_away_for_longer_than_the_log_is_kept_is_seeded_again_and_status_says_so(tmp_path: Path) -> None:
    async def scenario(nodes: TwoNodes) -> None:
        nodes.main.write("before")
        await nodes.settle()
        position = nodes.backup.node.standby
        assert position is not None
        applied = position.follow.chain.sequence
        await nodes.backup.stop()
        assert nodes.main.node.primary is not None
        assert nodes.main.node.log is not None
        for number in range(200):
            nodes.main.write(f"missed/{number}", os.urandom(1000).hex())
            if number % 10 == 9:
                await nodes.main.node.primary.barrier(10.0)
        assert nodes.store.state().stored_bytes > SMALL_LOG.limit_bytes
        keeper = LogKeeper(nodes.main.node.world, nodes.main.node.log, nodes.main.node.beats)
        await keeper.tick()
        state = nodes.store.state()
        assert state.first > applied + 1
        assert "backup is left behind by the log and will be seeded again" in "\n".join(nodes.main.events())
        nodes.backup.start()
        await nodes.backup.wait_role(Role.STANDBY)
        assert any("trimmed past it" in event for event in nodes.backup.events())
        await nodes.assert_equal()

    run(tmp_path, scenario, SMALL_LOG)


def test_the_log_waits_for_a_standby_that_is_alive(tmp_path: Path) -> None:
    async def scenario(nodes: TwoNodes) -> None:
        assert nodes.main.node.primary is not None
        assert nodes.main.node.log is not None
        for number in range(50):
            nodes.main.write(f"kept/{number}", os.urandom(1000).hex())
            await nodes.main.node.primary.barrier(10.0)
        keeper = LogKeeper(nodes.main.node.world, nodes.main.node.log, nodes.main.node.beats)
        await keeper.tick()
        following = nodes.backup.node.standby
        assert following is not None
        assert nodes.store.state().first <= following.follow.chain.sequence + 1
        await nodes.assert_equal()

    run(tmp_path, scenario, SMALL_LOG)


# -- clocks ---


@pytest.mark.parametrize("name", ["main", "backup"])
@pytest.mark.parametrize("seconds", [-3600.0, 3600.0])
def test_a_clock_set_back_or_forward_an_hour_changes_nothing_and_is_said(
    tmp_path: Path, name: str, seconds: float
) -> None:
    async def scenario(nodes: TwoNodes) -> None:
        nodes.main.write("before")
        await nodes.settle()
        wrong = nodes.main if name == "main" else nodes.backup
        wrong.clock.wrong_by_seconds = seconds
        for number in range(20):
            nodes.main.write(f"after/{number}")
        nodes.main.write("before", "again\n")
        await nodes.assert_equal()
        await wait_until(lambda: nodes.main.node.beats.alive("backup"), lambda: "backup is not heard")
        for machine in (nodes.main, nodes.backup):
            warned = await machine.warnings()
            assert "ms behind" not in warned, warned
            assert "the clock of" in warned, "a person is told that the clocks differ"
            view = next(view for view in (await machine.status()).machines if view.name == "backup")
            assert 0 <= view.lag_ms_p99 < 60_000
        done = await nodes.backup.operations.switchover("the clocks differ")
        assert done.done, done.failure
        nodes.backup.write("served here")
        await nodes.main.wait_role(Role.STANDBY)
        await nodes.settle(nodes.backup, nodes.main)
        assert nodes.main.contents() == nodes.backup.contents()

    run(tmp_path, scenario)


# -- a promotion elsewhere ---


def test_a_fenced_primary_appends_nothing_and_what_only_it_had_is_kept_aside_and_named(tmp_path: Path) -> None:
    async def scenario(nodes: TwoNodes) -> None:
        nodes.main.write("both")
        nodes.main.write("changed", "as both knew it\n")
        nodes.main.write("box/dovecot-keywords", "0 urgent\n")
        for name in ("box/cur/1:2,S", "box/cur/2:2,Sa", "box/new/3", "box/cur/4:2,"):
            nodes.main.write(name)
        await nodes.settle()
        done = await nodes.backup.operations.takeover("a test", force=True)
        assert done.done, done.failure
        promoted = nodes.store.state().last
        nodes.main.write("only here")
        nodes.main.write("changed", "as only main knows it\n")
        await nodes.main.wait_role(Role.RETURNED)
        nodes.backup.write("new")
        nodes.main.write("later, only here")
        for name, flags in (("box/cur/1:2,S", ":2,FSa"), ("box/cur/2:2,Sa", ":2,R"), ("box/new/3", ":2,S")):
            path = nodes.main.tree / name
            path.rename(nodes.main.tree / "box/cur" / (path.name.partition(":")[0] + flags))
        (nodes.main.tree / "box/cur/4:2,").unlink()
        assert nodes.backup.node.primary is not None
        await nodes.backup.node.primary.barrier(10.0)
        for sequence in range(promoted, nodes.store.state().last + 1):
            header, _ = read_header(nodes.store.get(Sequence(sequence)).payload)
            assert (header.writer, header.epoch) == ("backup", Epoch(2))
        assert "join --rejoin" in await nodes.main.warnings()
        (refusal,) = (await nodes.main.operations.plan_switchover("")).refusals
        assert "main is not a standby, its role is returned" in refusal

        nodes.main.node.orders.rejoin()
        await nodes.main.wait_role(Role.STANDBY)
        await nodes.settle(nodes.backup, nodes.main)
        assert nodes.main.contents() == nodes.backup.contents()
        (named,) = (nodes.main.base / "state").glob("rejoin-*.json")
        report = msgspec.json.decode(named.read_bytes(), type=Report)
        unlogged = {change.path for change in report.unlogged}
        assert {"only here", "later, only here"} <= unlogged
        assert sorted(report.flags, key=lambda change: change.name) == [
            FlagChange("store", "box", "1", ("\\Flagged", "urgent"), ()),
            FlagChange("store", "box", "2", ("\\Answered",), ("\\Seen", "urgent")),
            FlagChange("store", "box", "3", ("\\Seen",), ()),
        ]
        assert [(each.what, each.path) for each in left(report, ()) if each.path.startswith("box/")] == [
            ("deletion", "box/cur/4:2,")
        ]
        kept = kept_aside(nodes)
        assert kept["only here"] == b"only here of main\n"
        assert kept["later, only here"] == b"later, only here of main\n"
        assert kept["changed"] == b"as only main knows it\n"

    run(tmp_path, scenario)


def kept_aside(nodes: TwoNodes) -> dict[str, bytes]:
    """What main keeps aside: contents by the path it stood at."""
    found = {}
    for manifest in (nodes.main.base / "state" / "aside").glob("*/manifest"):
        for line in manifest.read_text().splitlines():
            entry = json.loads(line)
            if "kept" in entry:
                found[entry["path"]] = (nodes.main.tree / entry["kept"]).read_bytes()
    return found


def test_orders_are_refused_where_they_would_not_be_safe(tmp_path: Path) -> None:
    async def scenario(nodes: TwoNodes) -> None:
        with pytest.raises(Refused, match="main is alive"):
            await nodes.backup.operations.takeover("a test")
        with pytest.raises(Refused, match="nothing to rejoin"):
            nodes.backup.node.orders.rejoin()
        with pytest.raises(Refused, match="primary"):
            await nodes.main.node.orders.found()
        again = await nodes.main.operations.takeover("again")
        assert again.done
        for plan in (
            await nodes.main.operations.plan_switchover(""),
            await nodes.backup.operations.plan_switchover(""),
        ):
            assert plan.refusals == ()
            assert "is gone" not in plan.why, "nobody said so"
        assert again.nothing_to_do

    run(tmp_path, scenario)


def test_a_scan_given_up_while_the_log_is_away_breaks_nothing(tmp_path: Path) -> None:
    """The scan's last commit waits for the log when another machine's promotion ends it."""

    async def scenario(nodes: TwoNodes) -> None:
        primary = nodes.main.node.primary
        assert primary is not None
        assert primary.capture is not None
        await wait_until(lambda: primary.scan_done, lambda: "the first scan goes on")
        nodes.store.set_available(False)
        nodes.main.write("more")
        seen = asyncio.Event()
        loop = asyncio.get_running_loop()

        def progress(_: ScanProgress) -> None:
            loop.call_soon_threadsafe(seen.set)

        scan = asyncio.ensure_future(primary.capture.scan(progress, None))
        with contextlib.suppress(TimeoutError):  # capturing itself may wait for the log already, and the scan for it
            await asyncio.wait_for(seen.wait(), 2.0)
        scan.cancel()
        nodes.store.set_available(True)
        await nodes.assert_equal()
        assert nodes.main.node.role is Role.PRIMARY

    run(tmp_path, scenario)


def test_an_agent_stops_in_time_while_the_log_is_away_and_nothing_is_lost(tmp_path: Path) -> None:
    async def scenario(nodes: TwoNodes) -> None:
        nodes.main.write("before")
        await nodes.settle()
        nodes.store.set_available(False)
        for number in range(50):
            nodes.main.write(f"away/{number}")
        await asyncio.wait_for(nodes.main.stop(), 8.0)  # supervisors kill after ten seconds
        nodes.store.set_available(True)
        nodes.main.start()
        await nodes.main.wait_role(Role.PRIMARY)
        await nodes.assert_equal()

    run(tmp_path, scenario)


def test_a_barrier_asked_for_at_once_after_a_restart_covers_what_was_done_while_the_agent_was_away(
    tmp_path: Path,
) -> None:
    """It passes after the first scan, however early it is asked for: a gate answers a retried delivery by it."""

    async def scenario(nodes: TwoNodes) -> None:
        for number in range(5):  # the moment between watching and scanning is short
            await nodes.main.stop()
            nodes.main.write(f"away/{number}")
            nodes.main.start()
            await nodes.main.wait_role(Role.PRIMARY)
            await nodes.settle()
            assert nodes.backup.contents() == nodes.main.contents()

    run(tmp_path, scenario)


def test_a_primary_whose_index_cannot_be_opened_says_so_and_still_learns_that_it_was_replaced(tmp_path: Path) -> None:
    """A full or failing disk of its own: the log can be read all the same, and says who serves."""

    async def scenario(nodes: TwoNodes) -> None:
        nodes.main.write("before")
        await nodes.settle()
        await nodes.main.stop()
        (nodes.main.base / "state" / "index.db").write_bytes(b"no index " * 1000)
        nodes.main.start()
        serving = nodes.main.node.world.serving
        await serving.start()  # as it was when its disk failed
        await nodes.main.wait_role(Role.WAITING)
        await wait_until(lambda: "the tree index" in nodes.main.node.reason, lambda: nodes.main.node.reason)
        assert "the log cannot be reached" not in await nodes.main.warnings()
        assert serving.on, "mail is served while nobody else is primary"
        done = await nodes.backup.operations.takeover("its disk is broken", force=True)
        assert done.done, done.failure
        await wait_until(lambda: not serving.on, lambda: nodes.main.node.reason)

    run(tmp_path, scenario)


class ImpatientStore(MemoryLogStore):
    """Says at once that there is no quorum."""

    def open(self, *, append_seconds_max: float = 0.5) -> MemoryLog:
        return super().open(append_seconds_max=append_seconds_max)


class Impatient(TwoNodes):
    store_type = ImpatientStore


def test_a_primary_whose_log_is_lost_for_good_begins_it_anew_on_order(tmp_path: Path) -> None:
    async def scenario(nodes: TwoNodes) -> None:
        nodes.main.write("before")
        await nodes.settle()
        before = nodes.store.state().incarnation
        with pytest.raises(Refused, match="the log goes on"):
            await nodes.main.node.orders.found()
        nodes.store.set_available(False)
        nodes.main.write("while it is away")
        await wait_until(lambda: nodes.main.node.beat().log_away_seconds >= 0, lambda: "the log answers")
        await nodes.main.node.orders.found()
        nodes.store.set_available(True)
        await wait_until(lambda: nodes.store.state().incarnation != before, lambda: nodes.main.node.reason)
        await nodes.main.wait_role(Role.PRIMARY)
        now = nodes.store.state().incarnation
        await wait_until(
            lambda: (standby := nodes.backup.node.standby) is not None and standby.follow.chain.incarnation == now,
            lambda: f"backup: {nodes.backup.node.reason}",
        )
        await nodes.assert_equal()
        assert nodes.main.node.epoch == 2
        assert any("the log was founded anew: a person said" in event for event in nodes.main.events())

    run(tmp_path, scenario, nodes_type=Impatient)


def test_of_two_machines_only_the_one_that_served_last_begins_a_lost_log_anew(tmp_path: Path) -> None:
    async def scenario(nodes: TwoNodes) -> None:
        nodes.main.write("of both")
        await nodes.settle()
        await nodes.main.stop()
        assert (await nodes.backup.operations.takeover("main is dead", force=True)).done
        nodes.backup.write("later")
        await nodes.backup.stop()
        before = nodes.store.state().incarnation
        nodes.store.lose_all()
        nodes.main.start()
        await wait_until(lambda: "may have served later" in nodes.main.node.reason, lambda: nodes.main.node.reason)
        assert not nodes.store.state().last
        nodes.backup.start()
        await nodes.backup.wait_role(Role.PRIMARY)
        assert nodes.backup.node.epoch == 3
        assert nodes.store.state().incarnation != before, "a number in a log is given once"
        await nodes.main.wait_role(Role.RETURNED)
        with pytest.raises(Refused, match="backup knows of a later primary"):
            await nodes.main.node.orders.found()
        nodes.main.node.orders.rejoin()
        await nodes.main.wait_role(Role.STANDBY)
        await nodes.settle(nodes.backup, nodes.main)
        assert nodes.main.contents() == nodes.backup.contents()
        await nodes.main.stop()
        await nodes.backup.stop()
        nodes.store.replace(nodes.store.state().incarnation)
        nodes.main.start()
        await wait_until(lambda: "holds a copy of it" in nodes.main.node.reason, lambda: nodes.main.node.reason)
        await nodes.main.node.orders.found()
        await nodes.main.wait_role(Role.PRIMARY)
        assert nodes.main.node.epoch == 4

    run(tmp_path, scenario)


class Stuck(Addresses):
    """An address that is not given back the first time."""

    taken = 0
    stuck = True

    def take(self) -> None:
        self.taken += 1

    def release(self) -> tuple[Interface, ...]:
        if self.stuck:
            self.stuck = False
            raise AddressFailed("it is stuck")
        return ()


def test_a_primary_that_cannot_stop_for_a_switchover_serves_again(tmp_path: Path) -> None:
    async def scenario(nodes: TwoNodes) -> None:
        await nodes.settle()
        nodes.main.node.world.serving.addresses = stuck = Stuck("lo", ())
        done = await nodes.backup.operations.switchover("a test")
        assert "it is stuck" in done.failure
        assert nodes.main.node.role is Role.PRIMARY
        assert stuck.taken == 1

    run(tmp_path, scenario)
