"""What a vault lost comes back from a copy, or from the trees that still hold it; and never wrong."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from holdfast.errors import ExitStatus
from holdfast.vault import backup, keeping, prune, restore
from holdfast.vault.backends.memory import MemoryBackend
from holdfast.vault.copy import execute_copy, plan_copy
from holdfast.vault.faults import WrongKey
from holdfast.vault.keep import KeepRules
from holdfast.vault.objects import Sizes
from holdfast.vault.port import BackendUnavailable
from holdfast.vault.remainder import write_remainders
from holdfast.vault.repair import Repaired, repair
from holdfast.vault.repository import Vault, init_vault, open_vault
from holdfast.vault.turns import DAY_SECONDS, next_turn, took_turn, turning
from holdfast.vault.verify import EVERYTHING, STRUCTURE, verify
from tests.vault import site

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="owners need root")
SMALL = Sizes(block_bytes=4000, parts_block_bytes=800, pack_blocks=2, index_packs=2)


class World:
    def __init__(self, folder: Path, *, messages: int = 0) -> None:
        """A store with everything, or with so many small messages alone."""
        self.backend = MemoryBackend()
        self.key = init_vault(self.backend, (site.RECIPIENT,))
        self.store = folder / "store"
        if messages:
            self.store.mkdir()
            for number in range(messages):
                site.message(self.store, number, random.Random(number))
        else:
            site.make_store(self.store, messages=8)
        self.out = folder / "out"
        with self.open() as vault:
            backup.backup_trees(vault, [site.tree(self.store)], "main", clocks=site.clocks())
        self.sound = self.backend.fork()
        self.picture = site.picture(self.store)

    def open(self, backend: MemoryBackend | None = None) -> Vault:
        return open_vault(backend or self.backend, writer=self.key, identities=(site.IDENTITY,), sizes=SMALL)

    def names(self, prefix: str) -> list[str]:
        return sorted(name for name in self.backend.objects if name.startswith(prefix))

    def flip(self, name: str, at: int = 500) -> None:
        data = bytearray(self.backend.objects[name])
        data[min(at, len(data) // 2)] ^= 1
        self.backend.objects[name] = bytes(data)

    def repair(self, *, copy: MemoryBackend | None = None, trees: bool = True) -> Repaired:
        with self.open() as vault:
            found = verify(vault, EVERYTHING)
            assert found.findings
            return repair(vault, found, copy=copy, trees={"store": self.store} if trees else {})

    def check(self) -> None:
        with self.open() as vault:
            assert verify(vault, EVERYTHING).findings == []
            snapshot = vault.snapshot(vault.find_snapshot("latest"))
            restored = restore.restore_path(vault, snapshot.tree("store"), b"", self.out)
            assert restored.failures == []
        assert site.picture(self.out) == self.picture


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def _contents_packs(world: World) -> list[str]:
    """Those with contents of files, in which a flipped bit in the middle hits one."""
    return [name for name in world.names("packs/") if world.backend.objects[name][3] == 1]


def test_files_come_back_from_the_trees(world: World) -> None:
    packs = _contents_packs(world)
    world.flip(packs[0])
    del world.backend.objects[packs[1]]
    world.backend.objects[packs[2]] = world.backend.objects[packs[2]][:-1]
    with world.open() as vault:
        before = verify(vault, EVERYTHING)
    assert before.lost
    done = world.repair()
    assert done.exit_status is ExitStatus.DONE
    assert min(done.contents, done.saved) > 0
    world.check()
    with world.open() as vault:
        prune.sweep(vault, 1e12)
    assert packs[0] not in world.backend.objects
    world.out = world.out.with_name("again")
    world.check()


def test_mail_that_got_flags_or_moved_is_found_by_its_size_and_content(world: World) -> None:
    for path in list((world.store / "user0" / "cur").iterdir()):
        path.rename(world.store / "user0" / "new" / (path.name + "RS"))
    for name in _contents_packs(world):
        world.flip(name)
    done = world.repair()
    assert done.after.findings == []
    world.check()


def test_what_no_tree_has_stays_named(world: World) -> None:
    gone = world.store / "user1" / "cur" / "3.host:2,S"
    changed = world.store / "user2" / "cur" / "3.host:2,S"
    gone.unlink()
    changed.write_bytes(os.urandom(changed.stat().st_size))
    for name in _contents_packs(world):
        del world.backend.objects[name]
    done = world.repair()
    assert done.exit_status is ExitStatus.DIFFERENCES
    assert {(one.tree, one.path) for one in done.after.findings if one.tree} == {
        ("store", b"user1/cur/3.host:2,S"),
        ("store", b"user2/cur/3.host:2,S"),
    }


@pytest.mark.parametrize("damage", ["flip", "cut", "delete"])
def test_every_object_comes_back_from_a_copy(world: World, damage: str) -> None:
    with world.open() as vault:
        keeping.pin(vault, vault.find_snapshot("latest"), "")
        keeping.hold(vault, "store", b"user0", "")
        write_remainders(vault, vault.snapshots(), {"store": (b"user0",)})
    copy = MemoryBackend()
    execute_copy(world.backend, copy, plan_copy(world.backend, copy))
    prefixes = ("packs/", "index/", "snapshots/", "keeping/", "held/")
    names = [name for prefix in prefixes for name in world.names(prefix)]
    assert len({name.partition("/")[0] for name in names}) == len(prefixes)
    for name in names:
        if damage == "flip":
            world.flip(name)
        elif damage == "cut":
            world.backend.objects[name] = world.backend.objects[name][:-9]
        elif name.startswith("packs/"):
            del world.backend.objects[name]
    done = world.repair(copy=copy, trees=False)
    assert done.after.findings == []
    assert set(done.objects) >= {name for name in names if name.startswith("packs/")}
    world.check()


def test_cut_off_anywhere_a_repair_is_simply_run_again(tmp_path: Path) -> None:
    world = World(tmp_path, messages=12)
    packs = _contents_packs(world)
    world.flip(packs[0])
    del world.backend.objects[packs[1]]
    damaged = world.backend.fork()
    world.repair()
    writes = len(world.backend.calls)
    for after in (False, True):
        for number in range(writes):
            world.backend = damaged.fork()
            world.backend.fail(number, after=after)
            try:
                world.repair()
            except BackendUnavailable:
                world.backend.recover()
                with world.open() as vault:
                    found = verify(vault, EVERYTHING)
                    if found.findings:
                        assert repair(vault, found, trees={"store": world.store}).after.findings == []
            with world.open() as vault:
                assert verify(vault, EVERYTHING).findings == []


def test_a_damaged_index_is_written_again(world: World) -> None:
    for name in world.names("index/"):
        world.flip(name)
    done = world.repair(trees=False)
    assert done.after.findings == []
    world.check()


def test_it_needs_the_writer_key(world: World) -> None:
    with site.reader(world.backend) as vault, pytest.raises(WrongKey):
        repair(vault, verify(vault))


def test_findings_say_whose_they_are(world: World) -> None:
    for name in _contents_packs(world):
        del world.backend.objects[name]
    with world.open() as vault:
        found = verify(vault, STRUCTURE, whose=lambda tree, path: f"{tree}:{path.split(b'/')[0].decode()}")
    assert {one.whose for one in found.findings if one.tree} >= {"store:user0", "store:user1"}


# -- turns ---------------------------------------------------------------------------------------------------------


def _turn(vault: Vault, days: float, day: float) -> int:
    result = verify(vault, next_turn(vault, days, day * DAY_SECONDS))
    took_turn(vault, result, day * DAY_SECONDS)
    return result.packs_read


def test_turns_read_everything_once_in_so_many_days(world: World) -> None:
    total = len(world.names("packs/"))
    with world.open() as vault:
        read = [_turn(vault, 5, day) for day in range(1, 6)]
        assert sum(read) >= total
        assert max(read) < total
        assert turning(vault).unread_bytes == 0
        assert next_turn(vault, 5, 5 * DAY_SECONDS).bytes == 0
        assert _turn(vault, 5, 5.5) <= max(read), "twice a day reads half as much each time"


def test_missed_days_are_caught_up_and_new_packs_come_first(world: World) -> None:
    with world.open() as vault:
        for day in range(1, 6):
            _turn(vault, 5, day)
        site.message(world.store / "user0" / "cur", 99, random.Random(9))
        before = set(world.names("packs/"))
        backup.backup_trees(vault, [site.tree(world.store)], "main", clocks=site.clocks(10**19))
        new = set(world.names("packs/")) - before
        assert next_turn(vault, 5, 6 * DAY_SECONDS).names & new
        assert next_turn(vault, 5, 30 * DAY_SECONDS).names == set(world.names("packs/"))
        assert turning(vault).unread_bytes == sum(len(world.backend.objects[name]) for name in new)


def test_what_was_damaged_stays_first_in_the_line(world: World) -> None:
    with world.open() as vault:
        for day in range(1, 4):
            _turn(vault, 3, day)
        first = min(next_turn(vault, 3, 4 * DAY_SECONDS).names)
        world.flip(first)
        result = verify(vault, EVERYTHING)
        took_turn(vault, result, 4 * DAY_SECONDS)
        assert first not in result.sound
        assert first in next_turn(vault, 3, 5 * DAY_SECONDS).names


def test_archived_records_are_read_too(world: World) -> None:
    name = f"frames/{'a' * 32}-{1:016d}-{2:016d}-{1:020d}-{2:020d}-{'0' * 16}"
    world.backend.objects[name] = b"not what was written"
    with world.open() as vault:
        assert verify(vault, STRUCTURE).findings == []
        (finding,) = verify(vault, EVERYTHING).findings
    assert finding.what == name


def test_what_a_prune_marks_may_be_damaged(world: World) -> None:
    """It goes anyway."""
    with world.open() as vault:
        for path in (world.store / "user0" / "cur").iterdir():
            path.unlink()
        for path in (world.store / "user1" / "cur").iterdir():
            path.unlink()
        backup.backup_trees(vault, [site.tree(world.store)], "main", clocks=site.clocks(10**19))
        plan = prune.plan_prune(vault, KeepRules(last=1))
        prune.execute_prune(vault, plan, accept_loss=True)
    world.flip((*plan.dead, *plan.repack)[0].name)
    with world.open() as vault:
        assert verify(vault, EVERYTHING).findings == []


def test_progress_counts_to_the_end(world: World) -> None:
    heard: list[tuple[int, int]] = []
    hear: Callable[..., None] = lambda result: heard.append((result.bytes_read, result.bytes_to_read))  # noqa: E731
    with world.open() as vault:
        verify(vault, EVERYTHING, progress=hear)
    assert heard[-1][0] == heard[-1][1] > 0
