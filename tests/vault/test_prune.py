"""What prune keeps, what it refuses, and that it and backups at the same time lose nothing."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple
from zoneinfo import ZoneInfo

import pytest

from holdfast.errors import Refused
from holdfast.vault import backup, prune, restore
from holdfast.vault.backends.memory import MemoryBackend
from holdfast.vault.catalog import PackState
from holdfast.vault.keep import KeepRules, kept_snapshots
from holdfast.vault.keys import WriterKey
from holdfast.vault.objects import Sizes
from holdfast.vault.port import Found
from holdfast.vault.repository import SnapshotName, Vault, init_vault, open_vault
from holdfast.vault.scan import Counts
from holdfast.vault.verify import EVERYTHING, verify
from holdfast.vault.writer import Writer
from tests.vault import site

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="owners need root")
SMALL = Sizes(block_bytes=4000, parts_block_bytes=800, pack_blocks=2, index_packs=2)
HOUR = 3600.0


def _names(*times: datetime) -> list[SnapshotName]:
    return [
        SnapshotName(f"snapshots/{int(time.timestamp()) * 10**9:020d}-{number:016x}")
        for number, time in enumerate(times)
    ]


def test_rules_keep_the_newest_of_each_period() -> None:
    names = _names(
        *(datetime(2026, month, day, hour, tzinfo=UTC) for month in (1, 2) for day in (1, 2, 9) for hour in (3, 15))
    )
    kept = kept_snapshots(names, KeepRules(last=1, daily=2, monthly=5, within_seconds=13 * HOUR))
    assert [names.index(name) for name in kept] == [5, 9, 10, 11]
    assert kept[names[11]] == ("last", "within", "daily", "monthly")
    assert kept[names[5]] == ("monthly",)
    assert kept_snapshots(names, KeepRules()) == {}


def test_days_are_those_of_the_sites_zone() -> None:
    names = _names(datetime(2026, 1, 1, 22, tzinfo=UTC), datetime(2026, 1, 1, 23, 30, tzinfo=UTC))
    assert len(kept_snapshots(names, KeepRules(daily=9))) == 1
    assert len(kept_snapshots(names, KeepRules(daily=9), ZoneInfo("Europe/Berlin"))) == 2


class World(NamedTuple):
    backend: MemoryBackend
    key: WriterKey
    store: Path
    clocks: backup.Clocks
    clock: list[float]

    def open(self, cache: Path | None = None) -> Vault:
        return open_vault(self.backend, writer=self.key, identities=(site.IDENTITY,), cache=cache, sizes=SMALL)

    def back_up(self) -> backup.BackupResult:
        with self.open() as vault:
            return backup.backup_trees(vault, [site.tree(self.store)], "main", clocks=self.clocks)

    def sound(self) -> None:
        with self.open() as vault:
            assert verify(vault, EVERYTHING).findings == []


@pytest.fixture
def world(tmp_path: Path) -> World:
    clock = [1000.0]
    backend = MemoryBackend(clock=lambda: clock[0])
    store = tmp_path / "store"
    (store / "cur").mkdir(parents=True)
    for number in range(12):
        site.message(store / "cur", number, random.Random(number))
    return World(backend, init_vault(backend, (site.RECIPIENT,)), store, site.clocks(), clock)


def test_packs_go_after_the_grace_period_and_not_before(world: World) -> None:
    world.back_up()
    for number in range(2, 12):
        (world.store / "cur" / f"{number}.host:2,S").unlink()
    world.back_up()
    with world.open() as vault:
        plan = prune.plan_prune(vault, KeepRules(last=1))
        assert len(plan.drop) == 1
        assert plan.freed_bytes > 0
        assert plan.dead
        prune.execute_prune(vault, plan)
        assert prune.sweep(vault, world.clock[0] + HOUR).packs == 0
        swept = prune.sweep(vault, world.clock[0] + 49 * HOUR)
        assert swept.packs == len(plan.dead) + len(plan.repack)
        assert {pack.state for pack in vault.catalog.packs()} == {PackState.GOOD}
    assert not [name for name in world.backend.objects if name.startswith("trash/")]
    world.sound()


def test_nothing_good_is_dropped_for_a_snapshot_with_gaps(world: World) -> None:
    good = world.back_up().name
    with world.open() as vault:
        trees = [site.tree(world.store), site.tree(world.store / "gone", "gone")]
        gappy = backup.backup_trees(vault, trees, "main", clocks=world.clocks).name
        plan = prune.plan_prune(vault, KeepRules(last=1))
        assert plan.keep == {gappy: ("last",), good: ("newest without gaps",)}
        with pytest.raises(Refused):
            prune.plan_prune(vault, KeepRules(), drop=(good, gappy))


def test_a_damaged_snapshot_stops_a_prune_until_it_is_dropped_by_name(world: World) -> None:
    old = world.back_up().name
    for path in (world.store / "cur").iterdir():
        path.unlink()
    site.message(world.store / "cur", 99, random.Random(99))
    new = world.back_up().name
    newest_pack = [call.name for call in world.backend.calls if call.name.startswith("packs/")][-2]
    del world.backend.objects[newest_pack]
    with world.open() as vault:
        with pytest.raises(Refused, match="damaged"):
            prune.plan_prune(vault, KeepRules(last=1))
        assert prune.plan_prune(vault, KeepRules(last=2), drop=(new,)).keep == {old: ("last", "newest without gaps")}


def test_a_backup_during_a_prune_keeps_what_it_counts_on(world: World) -> None:
    """It began before packs were marked, and ends after: the sweep sees that they are needed."""
    world.back_up()
    kept = {path.name: path.read_bytes() for path in (world.store / "cur").iterdir()}
    for path in (world.store / "cur").iterdir():
        path.unlink()
    world.back_up()
    for name, content in kept.items():
        (world.store / "cur" / name).write_bytes(content)
    marked: list[prune.PrunePlan] = []

    def mark(_: Counts) -> None:
        if not marked:
            with world.open() as pruning:
                marked.append(prune.plan_prune(pruning, KeepRules(last=1)))
                prune.execute_prune(pruning, marked[0])

    with world.open() as vault:
        trees = [site.tree(world.store)]
        made = backup.backup_trees(vault, trees, "main", clocks=world.clocks, progress=mark)
    assert marked[0].dead
    with world.open() as vault:
        prune.sweep(vault, world.clock[0] + 49 * HOUR)
        out = world.store.with_name("out")
        assert restore.restore_path(vault, made.snapshot.tree("store"), b"cur", out).failures == []
    assert {path.name: path.read_bytes() for path in out.iterdir()} == kept
    world.sound()


def test_a_backup_longer_than_half_the_grace_period_is_refused_and_its_repetition_quick(world: World) -> None:
    seconds = iter((0.0, 25 * HOUR))
    slow = backup.Clocks(world.clocks.wall_ns, lambda: next(seconds))
    with world.open() as vault, pytest.raises(Refused):
        backup.backup_trees(vault, [site.tree(world.store)], "main", clocks=slow)
    with world.open() as vault:
        assert vault.snapshots() == []
    assert world.back_up().added_bytes == 0


def test_marked_packs_are_not_counted_on(world: World) -> None:
    world.back_up()
    moved = world.store.with_name("moved")
    (world.store / "cur").rename(moved)
    world.back_up()
    with world.open() as vault:
        prune.execute_prune(vault, prune.plan_prune(vault, KeepRules(last=1)))
    moved.rename(world.store / "cur")
    assert world.back_up().added_bytes > 0
    with world.open() as vault:
        assert prune.sweep(vault, world.clock[0] + 49 * HOUR).packs > 0
    world.sound()


def test_two_writers_at_once_both_finish(world: World, tmp_path: Path) -> None:
    other = site.make_store(tmp_path / "other", messages=3)
    results: list[backup.BackupResult] = []

    def work(root: Path, machine: str) -> None:
        with world.open() as vault:
            results.append(backup.backup_trees(vault, [site.tree(root)], machine, clocks=world.clocks))

    threads = [threading.Thread(target=work, args=pair) for pair in ((world.store, "a"), (other, "b"), (other, "c"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(result.snapshot.machine for result in results) == ["a", "b", "c"]
    with world.open() as vault:
        assert {listed.name for listed in vault.snapshots()} == {result.name.name for result in results}
    world.sound()


def test_two_sweeps_at_once_leave_one_copy_of_everything(world: World) -> None:
    """Contents lie in two packs, both marked, by two prunes. While one sweep looks, another deletes what was first."""
    world.back_up()
    first = [name for name in world.backend.objects if name.startswith("packs/")]
    with world.open() as vault:
        with vault.catalog.transaction(), Writer(vault) as writer:
            for pack in list(vault.catalog.packs()):
                for content_id, _, _, _ in list(vault.catalog.contents_of(pack.number)):
                    writer.add_new(content_id, vault.content(content_id), vault.pack_cipher(pack.name)[0])
            writer.flush()
        second = [name for name in world.backend.objects if name.startswith("packs/") and name not in first]
        for packs in (first, second):
            trash = vault.codec.trash(packs)
            vault.backend.put(trash.name, trash.data)
            world.clock[0] += HOUR
    early, late = world.clock[0] + 46.5 * HOUR, world.clock[0] + 49 * HOUR
    listings: list[str] = []

    class Slow(MemoryBackend):
        """Between two looks at the trash somebody else sweeps."""

        def list(self, prefix: str) -> Iterator[Found]:
            if prefix == "trash/":
                listings.append(prefix)
                if len(listings) == 2:
                    with world.open() as other:
                        assert prune.sweep(other, early).packs == len(first)
            return world.backend.list(prefix)

    slow = Slow()
    with open_vault(world.backend, writer=world.key, identities=(site.IDENTITY,), sizes=SMALL) as vault:
        slow.objects = world.backend.objects
        vault.backend = slow
        prune.sweep(vault, late)
    world.sound()


def test_two_backups_with_one_cache_one_is_refused(world: World, tmp_path: Path) -> None:
    with world.open(tmp_path / "cache") as first, world.open(tmp_path / "cache") as second:
        second.catalog.db.set_busy_timeout(10)
        with first.catalog.transaction(), pytest.raises(Refused, match="in use"):
            backup.backup_trees(second, [site.tree(world.store)], "main", clocks=world.clocks)
