"""Backups, pins, holds, prunes, sweeps and copies in any order, cut off now and then, by machines that know of each
other only the vault: what is listed can be restored, what is pinned or held is there, and the newest is."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from holdfast.changes.exchange import EntryKind
from holdfast.errors import Refused
from holdfast.vault import backup, keeping, prune
from holdfast.vault.backends.memory import MemoryBackend
from holdfast.vault.copy import execute_copy, plan_copy
from holdfast.vault.faults import SnapshotUnknown
from holdfast.vault.keep import KeepRules
from holdfast.vault.objects import Sizes
from holdfast.vault.port import BackendUnavailable
from holdfast.vault.record import Snapshot, split_ids, walk
from holdfast.vault.repository import SnapshotName, Vault, init_vault, open_vault
from holdfast.vault.verify import EVERYTHING, verify
from tests.examples import examples
from tests.vault import site

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="owners need root")
SEEDS = examples(12)
STEPS = 40
SMALL = Sizes(block_bytes=3000, parts_block_bytes=600, pack_blocks=2, index_packs=2)
ACCOUNTS = (b"anna", b"bert", b"carl")
HOUR = 3600.0

Files = dict[bytes, bytes]


class Anything:
    """A vault, what ought to be in it, and two machines that prune."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.chance = random.Random(seed)
        self.clock = [1000.0]
        self.backend = MemoryBackend(clock=lambda: self.clock[0])
        self.key = init_vault(self.backend, (site.RECIPIENT,))
        self.store = folder / "store"
        self.caches = [folder / "one", folder / "two"]
        self.clocks = site.clocks()
        self.files: dict[int, Files] = {}
        """Of each snapshot ever made, by its time: what stood in the store."""
        self.pins: dict[str, SnapshotName] = {}
        self.holds: dict[str, tuple[bytes, set[int]]] = {}
        """By what takes it back: the account, and the times of the snapshots it applies to."""
        self.plans: list[prune.PrunePlan] = []
        self.copy = MemoryBackend()
        self.number = 0
        for account in ACCOUNTS:
            (self.store / account.decode()).mkdir(parents=True)

    def open(self, backend: MemoryBackend | None = None) -> Vault:
        cache = None if backend else self.chance.choice([*self.caches, None])
        return open_vault(
            backend or self.backend, writer=self.key, identities=(site.IDENTITY,), cache=cache, sizes=SMALL
        )

    def step(self) -> None:
        steps = [self.back_up] * 4 + [self.prune] * 3 + [self.pin, self.hold, self.release, self.sweep, self.pass_on]
        self.chance.choice(steps)()
        self.clock[0] += self.chance.choice((0.1, 1.0, 20.0)) * HOUR

    def back_up(self) -> None:
        for _ in range(self.chance.randrange(4)):
            self.number += 1
            site.message(self.store / self.chance.choice(ACCOUNTS).decode(), self.number, self.chance)
        files = sorted(self.store.glob("*/*"))
        for path in self.chance.sample(files, min(self.chance.randrange(3), len(files))):
            path.unlink()
        with self.open() as vault:
            made = backup.backup_trees(vault, [site.tree(self.store)], "main", clocks=self.clocks)
        found = {os.fsencode(path.relative_to(self.store)): path.read_bytes() for path in self.store.glob("*/*")}
        self.files[made.name.taken_at_ns] = found
        for _, times in self.holds.values():
            times.add(made.name.taken_at_ns)

    def prune(self) -> None:
        """In the middle of it another machine may do something else."""
        rules = KeepRules(last=self.chance.randrange(3), within_seconds=self.chance.choice((0, 300)))
        with self.open() as vault:
            plan = prune.plan_prune(vault, rules)
            if self.chance.random() < 0.3:
                self.chance.choice((self.back_up, self.pin, self.hold, self.prune))()
            with self.cut_off_now_and_then(), suppress(Refused, SnapshotUnknown):
                prune.execute_prune(vault, plan, accept_loss=True)

    def sweep(self) -> None:
        with self.open() as vault, self.cut_off_now_and_then():
            prune.sweep(vault, self.clock[0] + self.chance.choice((0.0, 49 * HOUR)))

    @contextmanager
    def cut_off_now_and_then(self) -> Iterator[None]:
        """Killed at one of its writes."""
        if self.chance.random() < 0.4:
            self.backend.fail(self.chance.randrange(8), after=self.chance.random() < 0.5)
        with suppress(BackendUnavailable):
            yield
        self.backend.recover()

    def pin(self) -> None:
        with self.open() as vault:
            names = vault.snapshots()
            if names:
                name = self.chance.choice(names)
                self.pins[keeping.pin(vault, name, "").short] = name

    def hold(self) -> None:
        account = self.chance.choice(ACCOUNTS)
        with self.open() as vault:
            made = keeping.hold(vault, "store", account, "")
            self.holds[made.short] = account, {name.taken_at_ns for name in vault.snapshots()}

    def release(self) -> None:
        shorts = [*self.pins, *self.holds]
        if shorts:
            short = self.chance.choice(shorts)
            with self.open() as vault:
                keeping.release(vault, short)
            self.pins.pop(short, None)
            self.holds.pop(short, None)

    def pass_on(self) -> None:
        execute_copy(self.backend, self.copy, plan_copy(self.backend, self.copy))
        with self.open(self.copy) as vault:
            assert verify(vault, EVERYTHING).findings == []

    def check(self) -> None:
        with open_vault(self.backend, identities=(site.IDENTITY,)) as vault:
            assert verify(vault, EVERYTHING).findings == []
            names = vault.snapshots()
            if self.files:
                assert names[-1].taken_at_ns == max(self.files)
            assert set(self.pins.values()) <= set(names)
            whole = {name.taken_at_ns: _files(vault, vault.snapshot(name)) for name in names}
            assert whole == {at: self.files[at] for at in whole}
            held: dict[int, Files] = {}
            for name in vault.held():
                held.setdefault(name.taken_at_ns, {}).update(_files(vault, vault.snapshot(name)))
            for account, times in self.holds.values():
                for at in times:
                    wanted = {path: data for path, data in self.files[at].items() if path.startswith(account + b"/")}
                    there = whole.get(at, held.get(at, {}))
                    assert wanted.items() <= there.items()


def _files(vault: Vault, snapshot: Snapshot) -> Files:
    return {
        found.path: b"".join(vault.content(content_id) for content_id in split_ids(found.entry.content))
        for found in walk(snapshot.tree("store").content, vault.content)
        if found.entry.kind is EntryKind.FILE
    }


@pytest.mark.parametrize("seed", range(SEEDS))
def test_in_any_order_nothing_kept_is_lost(seed: int, tmp_path: Path) -> None:
    world = Anything(tmp_path, seed)
    for _ in range(STEPS):
        world.step()
        world.check()
