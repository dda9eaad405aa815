"""A copy at a second place: the same vault, brought up to date again and again, and never worse than its source."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast.errors import ExitStatus, Refused
from holdfast.vault import backup, restore
from holdfast.vault.backends.memory import MemoryBackend
from holdfast.vault.copy import Copied, Copying, execute_copy, plan_copy
from holdfast.vault.faults import VaultMissing
from holdfast.vault.keys import WriterKey
from holdfast.vault.objects import Sizes
from holdfast.vault.port import BackendUnavailable, Found
from holdfast.vault.repository import VAULT_NAME, init_vault, open_vault
from holdfast.vault.verify import EVERYTHING, verify
from tests.vault import site

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="owners need root")
SMALL = Sizes(block_bytes=4000, parts_block_bytes=800, pack_blocks=2, index_packs=2)


class Source:
    def __init__(self, tmp_path: Path) -> None:
        self.backend = MemoryBackend()
        self.key: WriterKey = init_vault(self.backend, (site.RECIPIENT,))
        self.store = site.make_store(tmp_path / "store", messages=4)
        self.clocks = site.clocks()
        self.back_up()

    def back_up(self) -> None:
        with open_vault(self.backend, writer=self.key, identities=(site.IDENTITY,), sizes=SMALL) as vault:
            backup.backup_trees(vault, [site.tree(self.store)], "main", clocks=self.clocks)

    def change(self, seed: int) -> None:
        site.message(self.store / "user0" / "cur", 100 + seed, random.Random(seed))
        self.back_up()


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return Source(tmp_path)


def copied(source: MemoryBackend, target: MemoryBackend) -> Copied:
    return execute_copy(source, target, plan_copy(source, target))


def sound(backend: MemoryBackend) -> int:
    """Snapshots of a vault in which nothing is missing or damaged."""
    with site.reader(backend) as vault:
        result = verify(vault, EVERYTHING)
        assert result.findings == []
        return result.snapshots


def test_a_copy_is_the_same_vault_and_needs_no_key(source: Source, tmp_path: Path) -> None:
    target = MemoryBackend()
    assert copied(source.backend, target).exit_status is ExitStatus.DONE
    assert target.objects == source.backend.objects
    with site.reader(target) as vault:
        snapshot = vault.snapshot(vault.find_snapshot("latest"))
        restore.restore_path(vault, snapshot.tree("store"), b"", tmp_path / "out")
    assert site.picture(tmp_path / "out") == site.picture(source.store)


def test_it_brings_only_what_is_new_and_takes_nothing_away(source: Source) -> None:
    target = MemoryBackend()
    copied(source.backend, target)
    before = dict(target.objects)
    source.change(1)
    new = source.backend.objects.keys() - before.keys()
    heard: list[Copying] = []
    plan = plan_copy(source.backend, target)
    assert {found.name for step in plan.steps for found in step} == new
    done = execute_copy(source.backend, target, plan, heard.append)
    assert (done.objects, done.bytes) == heard[-1] == (len(new), plan.bytes)
    assert plan_copy(source.backend, target).objects == 0
    dropped = next(name for name in source.backend.objects if name.startswith("snapshots/"))
    del source.backend.objects[dropped]
    assert copied(source.backend, target).objects == 0
    assert dropped in target.objects


def test_cut_off_at_every_write_it_is_sound_and_goes_on(source: Source) -> None:
    source.change(1)
    writes = len(source.backend.objects)
    for after in (False, True):
        for number in range(writes):
            target = MemoryBackend()
            target.fail(number, after=after)
            with pytest.raises(BackendUnavailable):
                copied(source.backend, target)
            target.recover()
            if VAULT_NAME in target.objects:
                sound(target)
            copied(source.backend, target)
            assert target.objects == source.backend.objects


def test_damage_is_named_and_not_spread(source: Source) -> None:
    packs = sorted(name for name in source.backend.objects if name.startswith("packs/"))
    data = source.backend.objects[packs[0]]
    source.backend.objects[packs[0]] = data[:-1] + bytes((data[-1] ^ 1,))
    target = MemoryBackend()
    done = copied(source.backend, target)
    assert [name for name, _ in done.failures] == [packs[0]]
    assert done.exit_status is ExitStatus.DIFFERENCES
    assert target.objects.keys() == source.backend.objects.keys() - {packs[0]}
    source.backend.objects[packs[0]] = data
    assert copied(source.backend, target).failures == ()
    assert target.objects == source.backend.objects


def test_what_is_cut_short_at_the_target_is_replaced(source: Source) -> None:
    target = MemoryBackend()
    copied(source.backend, target)
    name = next(name for name in target.objects if name.startswith("packs/"))
    target.objects[name] = target.objects[name][:-5]
    assert plan_copy(source.backend, target).stale == {name}
    assert copied(source.backend, target).objects == 1
    assert target.objects == source.backend.objects


def test_other_vaults_are_left_alone(source: Source) -> None:
    other = MemoryBackend()
    init_vault(other, (site.RECIPIENT,))
    with pytest.raises(Refused, match="another vault"):
        plan_copy(source.backend, other)
    with pytest.raises(Refused, match="not empty"):
        plan_copy(source.backend, MemoryBackend({"photos/1": b"x"}))
    with pytest.raises(VaultMissing):
        plan_copy(MemoryBackend(), MemoryBackend())


def test_a_backup_while_copying_is_not_half_there(source: Source) -> None:
    """A snapshot listed has all its packs in the plan: whatever is written between the listings."""

    class Busy(MemoryBackend):
        def list(self, prefix: str) -> Iterator[Found]:
            found = list(super().list(prefix))
            source.change(len(self.objects))
            self.objects.update(source.backend.objects)
            return iter(found)

    target = MemoryBackend()
    copied(Busy(source.backend.objects), target)
    assert sound(target) >= 1
