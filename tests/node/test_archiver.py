"""The archiver on whole nodes: who feeds, what can be restored afterwards, and that a vault's trouble stays its own."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import threading
from pathlib import Path
from typing import Any

import msgspec
import pyrage
import pytest

from holdfast.changes.frame import SegmentKey
from holdfast.changes.names import Position
from holdfast.log.memory import MemoryBusNetwork, MemoryLogStore
from holdfast.node.archiver import VaultFeeder
from holdfast.node.metrics import render_metrics
from holdfast.node.roles import Role
from holdfast.node.settings import LogSettings
from holdfast.node.vaults import VaultView
from holdfast.vault.archive import covering
from holdfast.vault.backends.folder import FolderBackend
from holdfast.vault.difference import differences
from holdfast.vault.instant import Archive, InstantUnknown, Target, open_instant
from holdfast.vault.repository import Vault, init_vault, open_vault
from holdfast.vault.restore import restore_snapshot
from holdfast.vault.settings import VaultSettings
from tests.node.two_nodes import DEADLINE_SECONDS, SCENARIO_SECONDS_MAX, Machine, TwoNodes, run, wait_until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="watching and owners need root")
IDENTITY = str(pyrage.x25519.Identity.generate())
RECIPIENT = str(pyrage.x25519.Identity.from_str(IDENTITY).to_public())


def make_vault(base: Path, name: str = "near", **options: Any) -> VaultSettings:
    key = init_vault(FolderBackend(base / name, create=True), (RECIPIENT,))
    (base / f"{name}.key").write_bytes(key.to_bytes())
    facts = {"archive_seconds": 0.1, "objective_seconds": 5.0, **options}
    return VaultSettings(name=name, location=str(base / name), key=str(base / f"{name}.key"), **facts)


def reader(settings: VaultSettings) -> Vault:
    return open_vault(FolderBackend(Path(settings.location)), identities=(IDENTITY,))


async def said(machine: Machine, number: int = 0) -> VaultView:
    return (await machine.status()).vaults[number]


class Recorder:
    """What stood in the primary's tree at positions of the log."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.states: dict[Position, dict[str, bytes]] = {}

    async def note(self) -> Position:
        """Nothing else may write meanwhile."""
        contents = self.machine.contents()
        assert self.machine.node.primary is not None
        position = Position(*await self.machine.node.primary.barrier(DEADLINE_SECONDS))
        self.states[position] = contents
        return position

    async def archived(self, nodes: TwoNodes) -> None:
        """The vault has the last position noted."""
        last = list(self.states)[-1]

        def fed() -> int:
            """By the vault that has least."""
            feeders = zip(feeders_of(nodes.main), feeders_of(nodes.backup), strict=True)
            return min(max(feeder.beat.archived for feeder in pair) for pair in feeders)

        await wait_until(lambda: fed() >= last.sequence, lambda: f"{fed()} of {last.sequence}")

    def check(self, settings: VaultSettings, folder: Path) -> None:
        """Every state noted comes out of the vault."""
        with reader(settings) as vault:
            archive = Archive(vault)
            for position, contents in self.states.items():
                with open_instant(vault, archive.at_position(position)) as instant:
                    target = folder / str(position.sequence)
                    assert restore_snapshot(instant.vault, instant.snapshot, target).failures == []
                found = {
                    str(path.relative_to(target / "store")): path.read_bytes()
                    for path in target.rglob("*")
                    if path.is_file()
                }
                assert found == contents, position


def feeders_of(machine: Machine) -> list[VaultFeeder]:
    archiver = machine.node.archiver
    assert archiver is not None
    return archiver.feeders


def test_the_standby_feeds_two_vaults_and_any_state_comes_back(tmp_path: Path) -> None:
    near, far = make_vault(tmp_path), make_vault(tmp_path, "far", snapshot_minutes=0.002)

    async def scenario(nodes: TwoNodes) -> None:
        recorder = Recorder(nodes.main)
        for number in range(12):
            nodes.main.write(f"user{number % 3}/cur/{number}", f"message {number}\n" * number)
            if number % 4 == 3:
                os.rename(nodes.main.tree / "user0", nodes.main.tree / f"moved{number}")
                (nodes.main.tree / f"moved{number}" / "log").write_text("grows\n" * number)
            await recorder.note()
            await recorder.archived(nodes)
        for number, settings in enumerate((near, far)):
            view = await said(nodes.main, number)
            assert (view.name, view.fed_by, view.problem, view.gap) == (settings.name, "backup", "", "")
        recorder.states.pop(next(iter(recorder.states)))  # the first may be older than the first snapshot
        assert b'holdfast_vault_age_seconds{vault="near"}' in render_metrics(await nodes.main.status())
        assert "vault" not in await nodes.main.warnings()
        recorder.check(near, tmp_path / "from near")
        recorder.check(far, tmp_path / "from far")
        with reader(far) as vault:
            assert len(vault.snapshots()) > 1

    run(tmp_path, scenario, vaults=(near, far))


def test_after_a_takeover_the_other_machine_goes_on(tmp_path: Path) -> None:
    near = make_vault(tmp_path)

    async def scenario(nodes: TwoNodes) -> None:
        first = Recorder(nodes.main)
        nodes.main.write("before")
        await nodes.settle()
        await wait_until(lambda: feeders_of(nodes.backup)[0].beat.archived > 0, lambda: "no first snapshot")
        nodes.main.write("a", "1")
        await first.note()
        await first.archived(nodes)
        outcome = await nodes.backup.operations.switchover("test")
        assert outcome.done, outcome
        await nodes.main.wait_role(Role.STANDBY)
        second = Recorder(nodes.backup)
        nodes.backup.write("b", "2")
        await second.note()
        await second.archived(nodes)
        await wait_until(lambda: feeders_of(nodes.main)[0].beat.feeding, lambda: "main does not feed")
        assert (await said(nodes.main)).fed_by == "main"
        second.states = {**first.states, **second.states}
        second.check(near, tmp_path / "restored")
        with reader(near) as vault:
            assert len(Archive(vault).spans()) == 1, "no gap"

    run(tmp_path, scenario, vaults=(near,))


def test_a_vault_that_is_away_is_said_and_disturbs_nobody(tmp_path: Path) -> None:
    near, far = make_vault(tmp_path), make_vault(tmp_path, "far")

    async def scenario(nodes: TwoNodes) -> None:
        recorder = Recorder(nodes.main)
        nodes.main.write("a", "1")
        await nodes.settle()
        feeders = feeders_of(nodes.backup)
        assert len(feeders) == 2
        await wait_until(lambda: all(feeder.beat.archived for feeder in feeders), lambda: "not begun")
        os.rename(tmp_path / "near", tmp_path / "unplugged")
        nodes.main.write("b", "2")
        at = await recorder.note()
        await wait_until(lambda: feeders[1].beat.archived >= at.sequence, lambda: "far waits for near")
        await wait_until(lambda: bool(feeders[0].beat.problem), lambda: "no problem was noticed")
        assert feeders[1].beat.problem == ""
        assert "vault near is not fed" in await nodes.backup.warnings()
        assert nodes.store.state().first == 1, "the log waits for it"
        recorder.check(far, tmp_path / "from far")
        os.rename(tmp_path / "unplugged", tmp_path / "near")
        await wait_until(lambda: not feeders[0].beat.problem, lambda: feeders[0].beat.problem)
        await wait_until(
            lambda: feeders[0].beat.archived >= list(recorder.states)[-1].sequence, lambda: "not caught up"
        )
        recorder.check(near, tmp_path / "from near")
        assert any("is fed again" in event for event in nodes.backup.events())

    run(tmp_path, scenario, vaults=(near, far))


def test_records_trimmed_before_a_vault_had_them_are_named_and_feeding_goes_on(tmp_path: Path) -> None:
    near = make_vault(tmp_path)

    async def scenario(nodes: TwoNodes) -> None:
        nodes.main.write("a", "1")
        await nodes.settle()
        (feeder,) = feeders_of(nodes.backup)
        await wait_until(lambda: bool(feeder.beat.archived), lambda: "not begun")
        os.rename(tmp_path / "near", tmp_path / "unplugged")
        lost, kept = Recorder(nodes.main), Recorder(nodes.main)
        nodes.main.write("b", "2")
        await wait_until(lambda: bool(feeder.beat.problem), lambda: "no problem was noticed")
        missing = await lost.note()
        nodes.main.write("c", "3")
        await nodes.settle()
        nodes.store.trim(nodes.store.state().last)
        nodes.main.write("d", "4")
        await kept.note()
        os.rename(tmp_path / "unplugged", tmp_path / "near")
        await kept.archived(nodes)
        kept.states.clear()  # the new beginning may be later
        nodes.main.write("e", "5")
        await kept.note()
        await kept.archived(nodes)
        kept.check(near, tmp_path / "restored")
        with reader(near) as vault, pytest.raises(InstantUnknown):
            Archive(vault).at_position(missing)
        assert "vault near has a gap" in await nodes.backup.warnings()
        assert any("vault near has a gap" in event for event in nodes.backup.events())

    run(tmp_path, scenario, vaults=(near,))


class Writers:
    """Mail software that does not wait: appends, new messages, flags, deletions, folders that move."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(number,), daemon=True) for number in range(2)]
        for thread in self._threads:
            thread.start()

    def _run(self, account: int) -> None:
        chance = random.Random(account)
        home = self._root / f"user{account}"
        (home / "cur").mkdir(parents=True)
        for number in itertools.count():
            message = home / "cur" / f"{number}.M:2,"
            message.write_bytes(chance.randbytes(chance.randint(1, 3000)))
            with (home / "dovecot.index.log").open("ab") as file:
                file.write(b"%d appended\n" % number)
            if number % 3 == 0:
                message.rename(message.with_name(message.name + "S"))
            if number % 5 == 4:
                (home / "cur" / f"{number - 1}.M:2,").unlink(missing_ok=True)
            if number % 40 == 39:
                home.rename(home.with_name(home.name + "x"))
                home.with_name(home.name + "x").rename(home)
                (home / "cur").rename(home / f"old{number}")
                (home / "cur").mkdir()
            if self._stop.wait(0.004):
                return

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


@pytest.mark.parametrize("fed_by", ["standby", "primary"])
def test_snapshots_made_under_load_are_what_the_records_say(tmp_path: Path, fed_by: str) -> None:
    """Each snapshot after the first is the first with the records up to it: the same names, bytes and times."""
    near = make_vault(tmp_path, fed_by=fed_by, snapshot_minutes=0.01)

    async def scenario(nodes: TwoNodes) -> None:
        (feeder,) = feeders_of(nodes.backup if fed_by == "standby" else nodes.main)
        await wait_until(lambda: bool(feeder.beat.archived), lambda: "not begun")
        writers = Writers(nodes.main.tree)
        try:
            path = tmp_path / "near" / "snapshots"
            await wait_until(lambda: len(list(path.iterdir())) >= 5, lambda: feeder.beat.problem or "few snapshots")
        finally:
            await asyncio.to_thread(writers.stop)

    run(tmp_path, scenario, vaults=(near,))
    with reader(near) as vault:
        archive = Archive(vault)
        first, *later = archive.snapshots
        for name in later:
            assert name.position is not None
            snapshot = vault.snapshot(name)
            if fed_by == "primary" and snapshot.gaps:
                continue  # a file written to 250 times a second, beside which nothing stands still: named, not hidden
            assert snapshot.gaps == ()
            frames = archive.frames[name.position.incarnation]
            assert first.position is not None
            chosen, reached = covering(frames, first.position.sequence, name.position.sequence)
            if reached < name.position.sequence:
                continue  # its records came after it, and the nodes were stopped
            target = Target(first, tuple(chosen), name.position.sequence, name.taken_at_ns)
            with open_instant(vault, target) as instant:
                told = list(differences(instant.snapshot, snapshot, instant.vault.content))
                assert told == []
                assert [tree[2:] for tree in map(msgspec.structs.astuple, instant.snapshot.trees)] == [
                    tree[2:] for tree in map(msgspec.structs.astuple, snapshot.trees)
                ], "but for where they stood"


class OneMachine(TwoNodes):
    """``main`` alone: the embedded case."""

    machines = TwoNodes.machines[:1]

    def __init__(self, base: Path, vaults: tuple[VaultSettings, ...]) -> None:
        self.log_settings = LogSettings()
        self.vaults = vaults
        self.store = MemoryLogStore()
        self.network = MemoryBusNetwork()
        self.key = SegmentKey.generate()
        self.main = self.backup = Machine(self, "main", base / "main")


def test_one_machine_alone_feeds_its_vault_and_goes_on_after_a_restart(tmp_path: Path) -> None:
    near = make_vault(tmp_path)

    async def scenario() -> None:
        nodes = OneMachine(tmp_path, (near,))
        try:
            nodes.main.start()
            await nodes.main.wait_role(Role.PRIMARY)
            recorder = Recorder(nodes.main)
            await wait_until(lambda: bool(feeders_of(nodes.main)[0].beat.archived), lambda: "not begun")
            for number in range(6):
                nodes.main.write(f"cur/{number}", f"message {number}\n")
                await recorder.note()
                await recorder.archived(nodes)
                if number == 3:
                    await nodes.main.stop()
                    nodes.main.start()
                    await nodes.main.wait_role(Role.PRIMARY)
            recorder.check(near, tmp_path / "restored")
            assert (await said(nodes.main)).fed_by == "main"
        finally:
            await nodes.main.stop()

    asyncio.run(asyncio.wait_for(scenario(), SCENARIO_SECONDS_MAX))
    with reader(near) as vault:
        assert len(vault.snapshots()) == 1, "a restart goes on where the vault ended"


def test_the_primary_feeds_when_it_is_told_to(tmp_path: Path) -> None:
    near = make_vault(tmp_path, fed_by="primary", snapshot_minutes=0.002)

    async def scenario(nodes: TwoNodes) -> None:
        recorder = Recorder(nodes.main)
        nodes.main.write("before")
        await nodes.settle()
        (feeder,) = feeders_of(nodes.main)
        await wait_until(lambda: bool(feeder.beat.archived), lambda: "not begun")
        for number in range(8):
            with (nodes.main.tree / "hot").open("a") as file:
                file.write(f"line {number}\n")
            await recorder.note()
        await recorder.archived(nodes)
        await wait_until(lambda: any("it was time" in event for event in nodes.main.events()), lambda: "no snapshot")
        recorder.check(near, tmp_path / "restored")
        assert (await said(nodes.main)).fed_by == "main"

    run(tmp_path, scenario, vaults=(near,))
