"""What a backup takes, a restore brings back exactly; and what did not change is not read again."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pyrage
import pytest

from holdfast.errors import ExitStatus, Refused
from holdfast.vault import backup, restore
from holdfast.vault.backends.memory import MemoryBackend
from holdfast.vault.difference import Difference, Kind, differences
from holdfast.vault.faults import (
    ClockWrong,
    PathUnknown,
    SnapshotUnknown,
    TargetInUse,
    VaultMissing,
    VaultNewer,
    WrongKey,
)
from holdfast.vault.keys import WriterKey
from holdfast.vault.record import lookup, walk
from holdfast.vault.repository import init_vault, open_vault
from tests.vault import site

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="owners need root")


def test_a_restored_store_is_the_same_in_every_respect(tmp_path: Path) -> None:
    store = site.make_store(tmp_path / "store")
    config = site.make_store(tmp_path / "config", seed=2, accounts=3, messages=2)
    backend = MemoryBackend()
    with site.new_vault(backend) as vault:
        made = backup.backup_trees(vault, [site.tree(store), site.tree(config, "config")], "main", clocks=site.clocks())
    assert made.exit_status is ExitStatus.DONE
    with site.reader(backend) as vault:
        snapshot = vault.snapshot(vault.find_snapshot("latest"))
        restored = restore.restore_snapshot(vault, snapshot, tmp_path / "out")
    assert restored.failures == []
    assert site.picture(tmp_path / "out" / "store") == site.picture(store)
    assert site.picture(tmp_path / "out" / "config") == site.picture(config)
    assert restored.files == snapshot.files
    assert snapshot.machine == "main"


def test_part_of_a_tree_is_restored_alone(tmp_path: Path) -> None:
    store = site.make_store(tmp_path / "store")
    backend = MemoryBackend()
    with site.new_vault(backend) as vault:
        snapshot = backup.backup_trees(vault, [site.tree(store)], "main", clocks=site.clocks()).snapshot
        root = snapshot.tree("store")
        restore.restore_path(vault, root, b"user1/cur", tmp_path / "cur")
        restore.restore_path(vault, root, b"user0/large", tmp_path / "one")
        with pytest.raises(PathUnknown):
            restore.restore_path(vault, root, b"user9", tmp_path / "none")
        with pytest.raises(TargetInUse):
            restore.restore_path(vault, root, b"user1", tmp_path / "cur")
        assert [found.path for found in walk(lookup(root, b"user2/new", vault.content).content, vault.content)] == [
            b"copy"
        ]
    assert site.picture(tmp_path / "cur") == site.picture(store / "user1" / "cur")
    assert (tmp_path / "one" / "large").read_bytes() == (store / "user0" / "large").read_bytes()


def test_what_did_not_change_is_not_read_again(tmp_path: Path) -> None:
    store = site.make_store(tmp_path / "store")
    backend = MemoryBackend()
    clocks = site.clocks()
    with site.new_vault(backend, tmp_path / "cache") as vault:
        first = backup.backup_trees(vault, [site.tree(store)], "main", clocks=clocks)
        second = backup.backup_trees(vault, [site.tree(store)], "main", clocks=clocks)
        assert (first.files_read, second.files_read, second.added_bytes) == (first.snapshot.files, 0, 0)
        assert first.snapshot.trees == second.snapshot.trees
        changed = site.message(store / "user1" / "cur", 5, random.Random(99))
        changed.with_name("6.host:2,S").rename(changed.with_name("6.host:2,RS"))
        third = backup.backup_trees(vault, [site.tree(store)], "main", clocks=clocks)
        assert third.files_read == 2  # rename(2) changes the ctime
        found = set(differences(second.snapshot, third.snapshot, vault.content))
        assert {(d.path, d.kind) for d in found if not d.path.endswith(b"cur")} == {
            (b"user1/cur/5.host:2,S", Kind.CONTENT),
            (b"user1/cur/6.host:2,S", Kind.REMOVED),
            (b"user1/cur/6.host:2,RS", Kind.ADDED),
        }
        restore.restore_path(vault, third.snapshot.tree("store"), b"", tmp_path / "out")
    assert site.picture(tmp_path / "out") == site.picture(store)


def test_a_file_written_to_in_the_tick_it_was_read_in_is_read_again(tmp_path: Path) -> None:
    """Same size, same mtime: only that its ctime was too fresh to trust tells."""
    (tmp_path / "store").mkdir()
    path = tmp_path / "store" / "uidlist"
    path.write_bytes(b"before")
    now = backup.Clocks(wall_ns=lambda: path.stat().st_ctime_ns + 10**6)
    with site.new_vault(MemoryBackend(), tmp_path / "cache") as vault:
        assert backup.backup_trees(vault, [site.tree(tmp_path / "store")], "main", clocks=now).files_read == 1
        assert backup.backup_trees(vault, [site.tree(tmp_path / "store")], "main", clocks=now).files_read == 1


def test_a_lost_or_foreign_cache_costs_time_only(tmp_path: Path) -> None:
    store = site.make_store(tmp_path / "store")
    backend = MemoryBackend()
    key = init_vault(backend, (site.RECIPIENT,))
    clocks = site.clocks()
    (tmp_path / "cache").write_bytes(b"this is no database at all, whatever it was before" * 100)
    for cache in (tmp_path / "cache", None, tmp_path / "cache2"):
        with open_vault(backend, writer=key, identities=(site.IDENTITY,), cache=cache) as vault:
            made = backup.backup_trees(vault, [site.tree(store)], "main", clocks=clocks)
    assert (made.files_read, made.added_bytes) == (made.snapshot.files, 0)


def test_excluded_names_and_sockets_are_left_out_and_unreadable_things_named(tmp_path: Path) -> None:
    store = site.make_store(tmp_path / "store", accounts=3, messages=2)
    os.mkfifo(store / "fifo")
    spec = site.tree(store, exclude=("tmp/", "/user2"))
    gone = site.tree(tmp_path / "nowhere", "gone")
    with site.new_vault(MemoryBackend()) as vault:
        made = backup.backup_trees(vault, [spec, gone], "main", clocks=site.clocks())
        paths = {found.path for found in walk(made.snapshot.tree("store").content, vault.content)}
    assert made.exit_status is ExitStatus.DIFFERENCES
    assert [(gap.tree, gap.path) for gap in made.snapshot.gaps] == [("gone", b"")]
    assert made.snapshot.skipped_total == 1
    assert b"user0/cur" in paths
    assert not {b"user0/tmp", b"user2", b"fifo"} & paths
    with site.new_vault(MemoryBackend()) as vault, pytest.raises(Refused):
        backup.backup_trees(vault, [gone], "main")


def test_a_writer_can_add_and_not_read(tmp_path: Path) -> None:
    store = site.make_store(tmp_path / "store", messages=2)
    backend = MemoryBackend()
    key = WriterKey.from_bytes(init_vault(backend, (site.RECIPIENT,)).to_bytes())
    with open_vault(backend, writer=key) as vault:
        made = backup.backup_trees(vault, [site.tree(store)], "main", clocks=site.clocks())
        with pytest.raises(WrongKey):
            vault.snapshot(made.name)
        with pytest.raises(WrongKey):
            lookup(made.snapshot.tree("store"), b"user0", vault.content)
    with site.reader(backend) as vault:
        assert vault.snapshot(vault.find_snapshot(made.name.short[:6])) == made.snapshot
        with pytest.raises(WrongKey):
            backup.backup_trees(vault, [site.tree(store)], "main", clocks=site.clocks())
        with pytest.raises(SnapshotUnknown):
            vault.find_snapshot("zz")


def test_wrong_places_keys_and_versions_say_so() -> None:
    backend, other = MemoryBackend(), MemoryBackend()
    with pytest.raises(VaultMissing):
        open_vault(backend)
    key, foreign = init_vault(backend, (site.RECIPIENT,)), init_vault(other, (site.RECIPIENT,))
    with pytest.raises(Refused):
        init_vault(backend, (site.RECIPIENT,))
    with pytest.raises(WrongKey):
        open_vault(backend, writer=foreign)
    with pytest.raises(WrongKey):
        open_vault(backend)
    with pytest.raises(WrongKey):
        open_vault(backend, identities=(str(pyrage.x25519.Identity.generate()),))
    for nonsense in (b"", b"{}", b"\xff", key.to_bytes()[:-9]):
        with pytest.raises(WrongKey):
            WriterKey.from_bytes(nonsense)
    backend.objects["vault.json"] = backend.objects["vault.json"].replace(b'"format": 1', b'"format": 2')
    with pytest.raises(VaultNewer):
        open_vault(backend, writer=key)


def test_a_clock_set_back_is_refused(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    with site.new_vault(MemoryBackend()) as vault:
        backup.backup_trees(vault, [site.tree(tmp_path / "store")], "main", clocks=site.clocks(10**18))
        with pytest.raises(ClockWrong):
            backup.backup_trees(vault, [site.tree(tmp_path / "store")], "main", clocks=site.clocks(10**17))


def test_differences_tell_metadata_from_content(tmp_path: Path) -> None:
    store = site.make_store(tmp_path / "store", messages=2)
    with site.new_vault(MemoryBackend()) as vault:
        clocks = site.clocks()
        old = backup.backup_trees(vault, [site.tree(store)], "main", clocks=clocks).snapshot
        (store / "user0" / "large").chmod(0o600)
        (store / "user0" / "link").unlink()
        new = backup.backup_trees(vault, [site.tree(store)], "main", clocks=clocks).snapshot
        assert list(differences(old, new, vault.content)) == [
            Difference("store", b"user0", Kind.META),
            Difference("store", b"user0/large", Kind.META),
            Difference("store", b"user0/link", Kind.REMOVED),
        ]
        assert list(differences(new, new, vault.content)) == []
