"""Pins, legal holds, the brake, and archived records at a prune."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from holdfast.changes.names import Incarnation
from holdfast.changes.names import Sequence as LogSequence
from holdfast.errors import ExitStatus, Refused
from holdfast.vault import backup, brake, keeping, prune, restore
from holdfast.vault.archive import FramesName
from holdfast.vault.backends.memory import MemoryBackend
from holdfast.vault.faults import SnapshotUnknown, VaultDamaged, WrongKey
from holdfast.vault.keep import KeepRules
from holdfast.vault.keys import WriterKey
from holdfast.vault.objects import Sizes
from holdfast.vault.port import BackendUnavailable
from holdfast.vault.repository import SnapshotName, Vault, init_vault, open_vault
from holdfast.vault.verify import EVERYTHING, verify
from holdfast.vault.window import archive_window
from tests.vault import site

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="owners need root")
SMALL = Sizes(block_bytes=4000, parts_block_bytes=800, pack_blocks=2, index_packs=2)
HOUR = 3600.0
LAST = KeepRules(last=1)


class World:
    """Two accounts with some mail; snapshots of them."""

    def __init__(self, folder: Path, accounts: tuple[str, ...] = ("anna", "bert"), messages: int = 5) -> None:
        self.clock = [1000.0]
        self.backend = MemoryBackend(clock=lambda: self.clock[0])
        self.key: WriterKey = init_vault(self.backend, (site.RECIPIENT,))
        self.store = folder / "store"
        self.cache = folder / "cache"
        self.clocks = site.clocks()
        for number, account in enumerate(accounts):
            (self.store / account / "cur").mkdir(parents=True)
            for message in range(messages):
                site.message(self.store / account / "cur", message, random.Random(100 * number + message))

    def open(self, backend: MemoryBackend | None = None, *, cache: Path | None = None) -> Vault:
        return open_vault(
            backend or self.backend, writer=self.key, identities=(site.IDENTITY,), cache=cache, sizes=SMALL
        )

    def back_up(self, machine: str = "main") -> SnapshotName:
        with self.open() as vault:
            return backup.backup_trees(vault, [site.tree(self.store)], machine, clocks=self.clocks).name

    def empty(self, account: str) -> None:
        for path in (self.store / account / "cur").iterdir():
            path.unlink()

    def prune(self, rules: KeepRules = LAST, *, accept: bool = False, backend: MemoryBackend | None = None) -> None:
        with self.open(backend) as vault:
            prune.execute_prune(vault, prune.plan_prune(vault, rules), accept_loss=accept)
            prune.sweep(vault, self.clock[0] + 49 * HOUR)

    def sound(self, backend: MemoryBackend | None = None) -> None:
        with self.open(backend) as vault:
            assert verify(vault, EVERYTHING).findings == []


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


# -- pins ----------------------------------------------------------------------------------------------------------


def test_a_pin_is_obeyed_by_every_machine_until_it_is_released(world: World) -> None:
    first = world.back_up()
    with world.open() as vault:
        pinned = keeping.pin(vault, first, "before the migration")
    world.empty("anna")
    last = world.back_up()
    with world.open() as vault:  # another machine, with what the vault holds alone
        plan = prune.plan_prune(vault, LAST)
        assert plan.keep == {last: ("last", "newest without gaps"), first: ("pinned",)}
        with pytest.raises(Refused, match="before the migration"):
            prune.plan_prune(vault, LAST, drop=(first,))
        assert keeping.release(vault, pinned.short[:6]) == pinned
        assert prune.plan_prune(vault, LAST).drop == (first,)
        with pytest.raises(SnapshotUnknown):
            keeping.release(vault, pinned.short)


def test_who_has_no_writer_key_sets_nothing(world: World) -> None:
    first = world.back_up()
    with site.reader(world.backend) as vault, pytest.raises(WrongKey):
        keeping.pin(vault, first, "")


def test_an_unreadable_pin_stops_everything(world: World) -> None:
    first = world.back_up()
    with world.open() as vault:
        pinned = keeping.pin(vault, first, "")
        world.backend.objects[pinned.name] = world.backend.objects[pinned.name][:-1]
        with pytest.raises(VaultDamaged) as refused:
            prune.plan_prune(vault, LAST)
        assert "pin or a hold" in refused.value.hint


# -- holds ---------------------------------------------------------------------------------------------------------


def test_a_hold_keeps_an_accounts_mail_of_snapshots_that_go(world: World, tmp_path: Path) -> None:
    first = world.back_up()
    mail = site.picture(world.store / "anna")
    with world.open() as vault:
        held = keeping.hold(vault, "store", b"anna", "case 7")
    world.empty("anna")
    world.empty("bert")
    world.back_up()
    world.prune()
    world.sound()
    with world.open() as vault:
        assert first not in vault.snapshots()
        (name,) = vault.held()
        assert (name.taken_at_ns, vault.find_snapshot(name.short)) == (first.taken_at_ns, name)
        snapshot = vault.snapshot(name)
        assert (snapshot.files, snapshot.machine) == (5, "main")
        restore.restore_snapshot(vault, snapshot, tmp_path / "out")
        assert site.picture(tmp_path / "out" / "store" / "anna") == mail
        assert [path.name for path in (tmp_path / "out" / "store").iterdir()] == ["anna"]
        with pytest.raises(Refused, match="legal hold"):
            prune.plan_prune(vault, LAST, drop=(name,))
    before = len(world.backend.objects)
    world.prune()
    world.sound()
    assert len(world.backend.objects) == before, "a second prune finds nothing to do"
    with world.open() as vault:
        keeping.release(vault, held.short)
    world.prune()
    with world.open() as vault:
        assert vault.held() == []
    world.sound()
    assert len(world.backend.objects) < before


def test_a_hold_set_after_a_prune_was_planned_is_obeyed(world: World) -> None:
    world.back_up()
    world.empty("anna")
    world.back_up()
    with world.open() as vault:
        plan = prune.plan_prune(vault, LAST)
        with world.open() as other:
            keeping.hold(other, "store", b"anna", "")
        before = dict(world.backend.objects)
        with pytest.raises(Refused, match="since this prune was planned"):
            prune.execute_prune(vault, plan)
    assert world.backend.objects == before


def test_what_is_not_held_is_freed(world: World) -> None:
    world.back_up()
    with world.open() as vault:
        keeping.hold(vault, "store", b"anna", "")
        anna = {path.read_bytes() for path in (world.store / "anna" / "cur").iterdir()}
        bert = {path.read_bytes() for path in (world.store / "bert" / "cur").iterdir()}
    world.empty("anna")
    world.empty("bert")
    world.back_up()
    world.prune()
    with world.open() as vault:
        there = {vault.codec.secrets.content_id(content): content for content in anna | bert}
        kept = {content for content_id, content in there.items() if vault.catalog.has(content_id)}
        assert anna <= kept
        assert not bert <= kept, "but for what shares a pack with mail that is held"


def test_a_prune_under_a_hold_cut_off_anywhere_loses_nothing_held(world: World) -> None:
    world.back_up()
    with world.open() as vault:
        keeping.hold(vault, "store", b"anna/cur", "")
        keeping.hold(vault, "store", b"anna", "")
        keeping.hold(vault, "config", b"etc", "")
    world.empty("anna")
    world.back_up()
    held = {path.name for path in (world.store / "anna" / "cur").iterdir()}
    assert not held
    whole = world.backend.fork()
    whole.calls.clear()
    world.prune(backend=whole)
    for after in (False, True):
        for number in range(len(whole.calls)):
            backend = world.backend.fork()
            backend.fail(number, after=after)
            with pytest.raises(BackendUnavailable):
                world.prune(backend=backend)
            backend.recover()
            for again in (False, True):
                if again:
                    world.prune(backend=backend)
                world.sound(backend)
                with world.open(backend) as vault:
                    files = [vault.snapshot(name).files for name in (*vault.snapshots(), *vault.held())]
                    assert sum(files) >= 10, (number, after, again)
                    assert len(vault.held()) <= 1


def test_paths_below_a_held_path_are_covered() -> None:
    def held(tree: str, path: bytes) -> keeping.Kept:
        return keeping.Kept("", keeping.Keeping(keeping.KeepingKind.HOLD, 0, tree=tree, path=path))

    holds = (held("a", b"x/y"), held("a", b"x"), held("a", b"xy/z"), held("b", b"x/y"), held("c", b""), held("c", b"x"))
    assert keeping.held_paths(holds) == {"a": (b"x", b"xy/z"), "b": (b"x/y",), "c": (b"",)}


# -- the brake -----------------------------------------------------------------------------------------------------


@pytest.fixture
def large(tmp_path: Path) -> World:
    return World(tmp_path, ("anna", "bert", "carl"), messages=60)


def _braked(world: World, rules: KeepRules = LAST) -> str:
    before = dict(world.backend.objects)
    with world.open(cache=world.cache) as vault:
        plan = prune.plan_prune(vault, rules)
        with pytest.raises(prune.PruneBraked) as refused:
            prune.execute_prune(vault, plan)
        assert plan.loss is not None
    assert world.backend.objects == before
    assert refused.value.exit_status is ExitStatus.REFUSED
    assert "--accept-loss" in refused.value.hint
    return refused.value.message


def _pruned(world: World, *, accept: bool = False) -> prune.PrunePlan:
    with world.open(cache=world.cache) as vault:
        plan = prune.plan_prune(vault, LAST)
        prune.execute_prune(vault, plan, accept_loss=accept)
        return plan


def test_an_unusual_loss_stops_it_until_somebody_accepts(large: World) -> None:
    large.back_up()
    large.empty("bert")
    large.back_up()
    large.back_up()
    assert "of 180 files" in _braked(large)
    assert "60 files are gone" in _braked(large)
    large.back_up()
    _braked(large)
    plan = _pruned(large, accept=True)
    assert plan.drop
    large.back_up()
    assert _pruned(large).loss is None


def test_after_a_prune_it_compares_with_what_was_newest_then(large: World) -> None:
    """Half of the accepted loss before, half after: each is below the share from prune to prune, both are not."""
    large.back_up()
    first = _pruned(large)
    assert not first.takes
    for number in range(4):
        for path in sorted((large.store / "anna" / "cur").iterdir())[:13]:
            path.unlink()
        large.back_up()
        if number % 2:
            plan = _pruned(large)
            assert plan.loss is None
            assert "compared with by the brake" in {why for reasons in plan.keep.values() for why in reasons}
    large.empty("bert")
    large.back_up()
    _braked(large)


def test_encrypted_in_place_counts_by_bytes(tmp_path: Path) -> None:
    world = World(tmp_path, messages=1)
    files = [world.store / "anna" / f"mbox{number}" for number in range(6)]
    for path in files:
        path.write_bytes(os.urandom(1_000_000))
    world.back_up()
    for path in files[:5]:
        path.write_bytes(os.urandom(1_000_100))
    world.back_up()
    assert "5,000,0" in _braked(world)


def test_moves_flags_and_new_mail_are_no_loss(large: World) -> None:
    large.back_up()
    for path in list((large.store / "anna" / "cur").iterdir()):
        path.rename(path.with_name(path.name + "R"))
    (large.store / "bert").rename(large.store / "berta")
    (large.store / "new").mkdir()
    for path in list((large.store / "carl" / "cur").iterdir()):
        path.rename(large.store / "new" / path.name)
        site.message(large.store / "carl" / "cur", 1000, random.Random(1))
    large.back_up()
    with large.open() as vault:
        assert brake.unusual_loss(vault, vault.snapshots(), share_max=0.0) is None


def test_machines_are_compared_with_themselves(large: World) -> None:
    large.back_up("main")
    elsewhere = large.store.with_name("elsewhere")
    large.store.rename(elsewhere)
    (large.store / "dora" / "cur").mkdir(parents=True)
    large.back_up("other")
    with large.open() as vault:
        assert brake.unusual_loss(vault, vault.snapshots()) is None
    large.back_up("main")
    with large.open() as vault:
        assert brake.unusual_loss(vault, vault.snapshots()) is not None


def test_where_nothing_would_be_taken_away_it_does_not_pause(large: World) -> None:
    large.back_up()
    large.empty("bert")
    large.back_up()
    with large.open(cache=large.cache) as vault:
        prune.execute_prune(vault, prune.plan_prune(vault, KeepRules(last=9)))
    _braked(large)


# -- archived records ----------------------------------------------------------------------------------------------

LOG, OLD_LOG = Incarnation("a" * 32), Incarnation("b" * 32)
DAY = 86_400


def _at(day: float, sequence: int, incarnation: Incarnation = LOG) -> SnapshotName:
    return SnapshotName(f"snapshots/{int(day * DAY * 1e9):020d}-{incarnation}.{sequence}-{sequence:016x}")


def _frames(day: float, first: int, last: int, incarnation: Incarnation = LOG) -> FramesName:
    at = int(day * DAY * 1e9)
    return FramesName(f"frames/{incarnation}-{first}", incarnation, LogSequence(first), LogSequence(last), at, at)


def test_records_go_when_no_instant_of_the_window_needs_them() -> None:
    snapshots = [_at(day, day * 10) for day in range(1, 8)]
    frames = [_frames(day - 0.5, day * 10 - 9, day * 10) for day in range(1, 9)]
    window = archive_window(frames, snapshots, set(snapshots[-3:]), 2.5 * DAY)
    assert window.bases == (snapshots[3],), "day 4 stands before the window, which begins at 4.5"
    assert window.outdated == tuple(frames[:4])


def test_records_of_a_log_that_is_older_than_the_window_go() -> None:
    old, new = _at(1, 10, OLD_LOG), _at(9, 10)
    frames = [_frames(1.5, 11, 20, OLD_LOG), _frames(9.5, 11, 20)]
    assert archive_window(frames, [old, new], {old, new}, 3 * DAY).outdated == (frames[0],)
    assert archive_window(frames, [old, new], {old, new}, 8 * DAY).outdated == ()


def test_without_a_window_only_records_without_a_snapshot_before_them_go() -> None:
    snapshots = [_at(day, day * 10) for day in range(1, 5)]
    frames = [_frames(day - 0.5, day * 10 - 9, day * 10) for day in range(1, 6)]
    window = archive_window(frames, snapshots, set(snapshots[1:]), 0.0)
    assert (window.bases, window.outdated) == ((snapshots[1],), tuple(frames[:2]))
    assert archive_window(frames, [], set(), 0.0).outdated == tuple(frames)
