"""Cut off at every write, before it and after it: the vault verifies, and everything listed can be restored."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from holdfast.vault import backup, prune, restore
from holdfast.vault.backends.memory import MemoryBackend
from holdfast.vault.keep import KeepRules
from holdfast.vault.keys import WriterKey
from holdfast.vault.objects import Sizes
from holdfast.vault.port import BackendUnavailable
from holdfast.vault.repository import Vault, init_vault, open_vault
from holdfast.vault.verify import EVERYTHING, verify
from tests.vault import site

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="owners need root")

SMALL = Sizes(block_bytes=2000, parts_block_bytes=400, pack_blocks=2, index_packs=2)
"""Many writes for a small store."""


class World:
    """A vault with a history, and the pictures of its snapshots."""

    def __init__(self, tmp_path: Path) -> None:
        self.backend = MemoryBackend()
        self.key: WriterKey = init_vault(self.backend, (site.RECIPIENT,))
        self.store = tmp_path / "store"
        self.pictures: dict[str, dict[bytes, tuple[Any, ...]]] = {}
        self.clocks = site.clocks()
        self.checks = 0
        self._tmp = tmp_path
        chance = random.Random(7)
        for account in ("anna", "bert"):
            (self.store / account / "cur").mkdir(parents=True)
            for number in range(4):
                site.message(self.store / account / "cur", number, chance)
        os.link(self.store / "anna" / "cur" / "0.host:2,S", self.store / "bert" / "copy")

    def open(self, backend: MemoryBackend) -> Vault:
        return open_vault(backend, writer=self.key, identities=(site.IDENTITY,), sizes=SMALL)

    def back_up(self, backend: MemoryBackend) -> None:
        with self.open(backend) as vault:
            backup.backup_trees(vault, [site.tree(self.store)], "main", clocks=self.clocks)

    def remember(self, backend: MemoryBackend) -> None:
        """The newest snapshot is what stands in the store now."""
        with self.open(backend) as vault:
            self.pictures[vault.snapshots()[-1].name] = site.picture(self.store)

    def change(self, seed: int) -> None:
        chance = random.Random(seed)
        folder = self.store / "anna" / "cur"
        site.message(folder, 10 + seed, chance)
        site.message(folder, 20 + seed, chance)
        sorted(folder.iterdir())[0].unlink()

    def check(self, backend: MemoryBackend) -> None:
        """Verifies, and restores every snapshot it lists."""
        self.checks += 1
        with self.open(backend) as vault:
            assert verify(vault, EVERYTHING).findings == []
            for name in vault.snapshots():
                out = self._tmp / f"out{self.checks}-{name.short}"
                restore.restore_snapshot(vault, vault.snapshot(name), out)
                assert site.picture(out / "store") == self.pictures.get(name.name, site.picture(self.store))

    def cut_everywhere(self, work: Callable[[MemoryBackend], None]) -> int:
        """Do *work* on copies of the vault, cut at each of its writes; then once more, to its end."""
        whole = self.backend.fork()
        work(whole)
        writes = len(whole.calls)
        for after in (False, True):
            for number in range(writes):
                backend = self.backend.fork()
                backend.fail(number, after=after)
                with pytest.raises(BackendUnavailable):
                    work(backend)
                backend.recover()
                self.check(backend)
                work(backend)
                if not after:
                    self.check(backend)
        return writes


def test_a_backup_may_be_cut_off_at_every_write(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.back_up(world.backend)
    world.remember(world.backend)
    world.change(1)
    assert world.cut_everywhere(world.back_up) >= 4


def test_a_first_backup_cut_off_goes_on_with_what_it_stored(tmp_path: Path) -> None:
    world = World(tmp_path)
    whole = world.backend.fork()
    world.back_up(whole)
    packs = len([call for call in whole.calls if call.name.startswith("packs/")])
    world.backend.fail(len(whole.calls) - 1)
    with pytest.raises(BackendUnavailable):
        world.back_up(world.backend)
    world.backend.recover()
    world.backend.calls.clear()
    world.back_up(world.backend)
    assert packs > 4
    assert [call.name.partition("/")[0] for call in world.backend.calls] == ["snapshots"]


def test_a_prune_may_be_cut_off_at_every_write(tmp_path: Path) -> None:
    world = World(tmp_path)
    for seed in range(3):
        world.change(seed)
        world.back_up(world.backend)
        world.remember(world.backend)

    def work(backend: MemoryBackend) -> None:
        with world.open(backend) as vault:
            prune.execute_prune(vault, prune.plan_prune(vault, KeepRules(last=1)))
            prune.sweep(vault, 1.0, grace_seconds=0)

    assert world.cut_everywhere(work) >= 10
    before = sum(map(len, world.backend.objects.values()))
    work(world.backend)
    after = sum(map(len, world.backend.objects.values()))
    assert after < before
    with world.open(world.backend) as vault:
        assert len(vault.snapshots()) == 1
        plan = prune.plan_prune(vault, KeepRules(last=1))
        assert (plan.drop, plan.dead) == ((), ())


def test_init_may_be_cut_off_at_every_write() -> None:
    for after in (False, True):
        for number in range(2):
            backend = MemoryBackend()
            backend.fail(number, after=after)
            with pytest.raises(BackendUnavailable):
                init_vault(backend, (site.RECIPIENT,))
            backend.recover()
            if not (after and number == 1):  # else it is there: its secret comes back from a reader's key
                init_vault(backend, (site.RECIPIENT,))
            with site.reader(backend) as vault:
                assert verify(vault, EVERYTHING).findings == []
