"""Flipped bits, truncated and missing objects are found, and named as files."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from holdfast.errors import ExitStatus, HoldfastError
from holdfast.vault import backup, keeping, prune, restore
from holdfast.vault.backends.memory import MemoryBackend
from holdfast.vault.catalog import PackState
from holdfast.vault.keep import KeepRules
from holdfast.vault.objects import Sizes
from holdfast.vault.repository import init_vault, open_vault
from holdfast.vault.verify import EVERYTHING, STRUCTURE, Depth, Verified, share, verify
from tests.apply.model import Op
from tests.vault import site
from tests.vault.history import History, first_snapshot

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="owners need root")
SMALL = Sizes(block_bytes=4000, parts_block_bytes=800, pack_blocks=3, index_packs=2)


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> MemoryBackend:
    store = tmp_path_factory.mktemp("damage") / "store"
    for account in ("anna", "bert"):
        (store / account).mkdir(parents=True)
        for number in range(6):
            site.message(store / account, number, random.Random(account + str(number)))
    backend = MemoryBackend()
    key = init_vault(backend, (site.RECIPIENT,))
    with open_vault(backend, writer=key, sizes=SMALL) as vault:
        backup.backup_trees(vault, [site.tree(store)], "main", clocks=site.clocks())
    return backend


def _verified(backend: MemoryBackend, depth: Depth = EVERYTHING) -> Verified:
    with site.reader(backend) as vault:
        return verify(vault, depth)


def _named(result: Verified) -> set[str]:
    return {finding.what for finding in result.findings}


def test_a_sound_vault_has_no_findings(filled: MemoryBackend) -> None:
    result = _verified(filled)
    assert (result.findings, result.exit_status) == ([], ExitStatus.DONE)
    assert result.entries == 14
    assert result.packs_read == len([name for name in filled.objects if name.startswith("packs/")])


def test_a_flipped_bit_anywhere_is_found_and_named(filled: MemoryBackend) -> None:
    chance = random.Random(3)
    for name, data in filled.objects.items():
        places = {0, 3, 5, 30, len(data) - 1, len(data) - 5, *(chance.randrange(len(data)) for _ in range(6))}
        for at in places:
            backend = filled.fork()
            flipped = bytearray(data)
            flipped[at] ^= 1 << chance.randrange(8)
            backend.objects[name] = bytes(flipped)
            if name == "vault.json" or name.startswith("keys/"):
                with pytest.raises(HoldfastError):
                    site.reader(backend)
                continue
            result = _verified(backend)
            assert name in _named(result), (name, at)
            assert result.exit_status is ExitStatus.DIFFERENCES


def test_missing_and_truncated_objects_are_found_without_reading_data(filled: MemoryBackend) -> None:
    for name, data in filled.objects.items():
        if not name.startswith("packs/"):
            continue
        for rest in (None, b"", data[:-1]):
            backend = filled.fork()
            if rest is None:
                del backend.objects[name]
            else:
                backend.objects[name] = rest
            result = _verified(backend, STRUCTURE)
            assert name in _named(result)
            assert any(finding.tree == "store" for finding in result.findings)


def test_what_is_damaged_is_named_and_the_rest_restored(filled: MemoryBackend, tmp_path: Path) -> None:
    backend = filled.fork()
    with site.reader(backend) as vault:
        snapshot = vault.snapshot(vault.find_snapshot("latest"))
        block = min(
            place.block
            for (i,) in vault.catalog.db.execute("SELECT id FROM content WHERE length > 500")
            for place in vault.catalog.places(i)
        )
    data = bytearray(backend.objects[block.pack])
    data[block.at + 20] ^= 1
    backend.objects[block.pack] = bytes(data)
    named = {finding.path for finding in _verified(backend).findings if finding.tree}
    with site.reader(backend) as vault:
        restored = restore.restore_snapshot(vault, snapshot, tmp_path / "out")
    there = {os.fsencode(path.relative_to(tmp_path / "out" / "store")) for path in (tmp_path / "out").glob("store/*/*")}
    assert restored.exit_status is ExitStatus.DIFFERENCES
    assert {failure.path for failure in restored.failures} == named != set()
    assert len(there) == 12 - len(named)
    assert not there & named


def test_lost_index_objects_are_read_from_the_packs(filled: MemoryBackend, tmp_path: Path) -> None:
    backend = filled.fork()
    for name in list(backend.objects):
        if name.startswith("index/"):
            del backend.objects[name]
    with site.reader(backend) as vault:
        assert verify(vault, EVERYTHING).findings == []
        assert restore.restore_snapshot(vault, vault.snapshot(vault.snapshots()[0]), tmp_path / "out").files == 12


def test_turns_read_every_pack_once(filled: MemoryBackend) -> None:
    turns = [_verified(filled, share(25, turn)).packs_read for turn in range(4)]
    assert sum(turns) == _verified(filled).packs_read
    assert _verified(filled, STRUCTURE).packs_read == 0


def test_a_backup_stores_anew_what_the_vault_lost(tmp_path: Path) -> None:
    """With a cache that says nothing changed."""
    store = site.make_store(tmp_path / "store", messages=3)
    backend = MemoryBackend()
    clocks = site.clocks()
    with site.new_vault(backend, tmp_path / "cache") as vault:
        backup.backup_trees(vault, [site.tree(store)], "main", clocks=clocks)
        for name in [name for name in backend.objects if name.startswith("packs/")]:
            backend.objects[name] = backend.objects[name][:-1]
        made = backup.backup_trees(vault, [site.tree(store)], "main", clocks=clocks)
        assert made.added_bytes > 0
        restore.restore_path(vault, made.snapshot.tree("store"), b"", tmp_path / "out")
    assert site.picture(tmp_path / "out") == site.picture(store)


@pytest.fixture(scope="module")
def all_kinds(tmp_path_factory: pytest.TempPathFactory) -> MemoryBackend:
    """A vault with an object of every kind: records of the log, a hold, what it holds, a pin, packs that wait to go."""
    store = tmp_path_factory.mktemp("kinds") / "store"
    backend = MemoryBackend()
    key = init_vault(backend, (site.RECIPIENT,))
    clocks = site.clocks()
    with open_vault(backend, writer=key, identities=(site.IDENTITY,), sizes=SMALL) as vault:
        for number in range(3):
            for account in ("anna", "bert"):
                (store / account).mkdir(parents=True, exist_ok=True)
                for path in (store / account).iterdir():
                    path.unlink()
                site.message(store / account, number, random.Random(account + str(number)))
            made = backup.backup_trees(vault, [site.tree(store)], "main", clocks=clocks)
        keeping.hold(vault, "store", b"anna", "case 7")
        keeping.pin(vault, made.name, "before the move")
        prune.execute_prune(vault, prune.plan_prune(vault, KeepRules(last=1)))
        history = History()
        history.do([Op(number, number, number, 99) for number in range(12)])
        first_snapshot(vault)
        history.archive(vault, 1, history.last)
    return backend


def test_damage_in_an_object_of_any_kind_is_found_and_named(all_kinds: MemoryBackend) -> None:
    kinds = {name.partition("/")[0] for name in all_kinds.objects}
    wanted = {"packs", "index", "snapshots", "frames", "trash", "keeping", "held", "keys", "vault.json"}
    assert kinds == wanted, "a kind of objects that this test does not know"
    chance = random.Random(5)
    assert _verified(all_kinds).findings == []
    with site.reader(all_kinds) as vault:
        going = {pack.name for pack in vault.catalog.packs() if pack.state is PackState.DOOMED}
    assert going
    for name, data in all_kinds.objects.items():
        if name in going:
            continue  # nothing that stays needs it
        at = chance.randrange(len(data))
        for damaged in (data[:at] + bytes((data[at] ^ 1 << chance.randrange(8),)) + data[at + 1 :], data[:at], b""):
            backend = all_kinds.fork()
            backend.objects[name] = damaged
            if name == "vault.json" or name.startswith("keys/"):
                with pytest.raises(HoldfastError):
                    site.reader(backend)
            else:
                assert name in _named(_verified(backend)), (name, at)


def test_missing_objects_are_found_where_something_tells_that_they_were_there(all_kinds: MemoryBackend) -> None:
    """Snapshots, what is held, the newest records, pins and holds: nobody knows but who remembers."""
    for name in all_kinds.objects:
        backend = all_kinds.fork()
        del backend.objects[name]
        if name == "vault.json" or name.startswith("keys/"):
            with pytest.raises(HoldfastError):
                site.reader(backend)
        elif name.startswith("packs/"):
            assert name in _named(_verified(backend, STRUCTURE))
        else:
            assert _verified(backend).findings == []
