"""Prune: plan which snapshots and packs go, execute it, and sweep what was marked long enough ago.

The order of writes, and why no lock is needed, stand in docs/formats/vault.md. A prune needs the writer key, an
identity, and a store that permits deleting: usually another machine than the one that backs up.

What is pinned or under a legal hold stays (``keeping``); an unusual loss between snapshots stops it (``brake``).
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from datetime import UTC, tzinfo
from typing import Final, NamedTuple

from holdfast.errors import Refused
from holdfast.vault.archive import FramesName, list_frames
from holdfast.vault.backup import GRACE_SECONDS
from holdfast.vault.brake import SHARE_MAX, Loss, accept, judged, unusual_loss
from holdfast.vault.catalog import Pack, PackState
from holdfast.vault.faults import VaultDamaged, WrongKey
from holdfast.vault.keep import KeepRules, kept_snapshots
from holdfast.vault.keeping import Keepings, held_paths, read_keepings
from holdfast.vault.mark import Marks
from holdfast.vault.port import ObjectMissing
from holdfast.vault.record import Snapshot
from holdfast.vault.remainder import Held, held_entries, still_held, write_remainders
from holdfast.vault.repository import HELD_PREFIX, SnapshotName, Vault
from holdfast.vault.window import archive_window
from holdfast.vault.writer import Writer

_DAMAGED_HINT: Final = "`holdfast vault verify` names all of it. Drop that snapshot by name, or repair it, then prune."
REPACK_BELOW: Final = 0.5
"""A pack with a smaller share of needed bytes is written anew: at most as much is written as is freed."""

_LIVE_BYTES: Final = """
SELECT c.pack, sum(c.length) FROM content c JOIN temp.live l ON l.id = c.id WHERE c.pack = (
    SELECT c2.pack FROM content c2 JOIN pack p ON p.number = c2.pack
    WHERE c2.id = c.id AND p.state < 2 ORDER BY p.state, p.number LIMIT 1)
GROUP BY c.pack
"""
"""What each pack is needed for: of several copies the one a reader takes counts."""


class PruneBraked(Refused):
    """So much of the store was deleted or rewritten that dropping what was before is left to a person."""


class PrunePlan(NamedTuple):
    """What a prune would do. Bytes are those of the store."""

    keep: dict[SnapshotName, tuple[str, ...]]
    drop: tuple[SnapshotName, ...]
    dead: tuple[Pack, ...]
    repack: tuple[Pack, ...]
    freed_bytes: int
    """About, after the grace period: repacked packs count with the share that is not needed."""
    outdated: tuple[FramesName, ...] = ()
    """Archived frames that go."""
    remainders: tuple[SnapshotName, ...] = ()
    """Of *drop*, those of which legal holds keep something."""
    released: tuple[SnapshotName, ...] = ()
    """Remainders that no hold needs any more: they go."""
    loss: Loss | None = None
    """Why the brake stops this prune, unless it is overridden."""
    keepings: frozenset[str] = frozenset()
    """The pins and holds it was made with."""

    @property
    def takes(self) -> bool:
        """Whether it takes away anything that could be restored."""
        return bool(self.drop or self.outdated or self.released)


class Swept(NamedTuple):
    packs: int
    bytes: int
    waiting: int
    """Packs marked, whose grace period is not over."""


def plan_prune(
    vault: Vault,
    rules: KeepRules,
    *,
    pins: Iterable[SnapshotName] = (),
    drop: Iterable[SnapshotName] = (),
    zone: tzinfo = UTC,
    share_max: float = SHARE_MAX,
) -> PrunePlan:
    """Reads, changes nothing. *drop*: go in any case; *pins*: stay in any case but that, as do those pinned in the
    vault (:mod:`keeping`), which not even *drop* takes. *share_max*: see :mod:`brake`.

    The newest snapshot without gaps stays, whatever the rules say. Raises Refused: nothing good would be left, one of
    *drop* is pinned or held, or one that stays is damaged (to delete by a list that cannot be read would be guessing).
    """
    vault.sync()
    keepings = read_keepings(vault)
    held = held_paths(keepings.holds)
    frames = list_frames(vault.backend)  # before the snapshots: the one they begin from is there before they are
    names = vault.snapshots()
    going = frozenset(drop)
    _check_drop(vault, going, keepings, held)
    staying = [name for name in names if name not in going]
    keep = {name: why for name, why in kept_snapshots(names, rules, zone).items() if name not in going}
    _keep_also(keep, (name for name in pins if name not in going), "pinned")
    pinned = {one.keeping.snapshot for one in keepings.pins}
    _keep_also(keep, (name for name in names if name.name in pinned), "pinned")
    good = next((name for name in reversed(staying) if _is_good(vault, name)), None)
    _keep_also(keep, () if good is None else (good,), "newest without gaps")
    if names and not keep:
        raise Refused("no snapshot would be left", hint="Make a new backup first, or keep at least one.")
    known = judged(vault, staying)
    _keep_also(keep, () if known is None else (known,), "compared with by the brake")
    window = archive_window(frames, staying, keep, rules.within_seconds)
    _keep_also(keep, window.bases, "archived records go on from it")
    dropped = tuple(name for name in names if name not in keep)
    marks = Marks(vault)
    _mark_whole(vault, marks, keep)
    remainders = tuple(name for name in dropped if _mark_held(vault, marks, name, held))
    released = tuple(name for name in vault.held() if name in going or not still_held(vault, name, held))
    _mark_whole(vault, marks, (name for name in vault.held() if name not in released))
    loss = unusual_loss(vault, names, share_max=share_max)
    plan = _plan(vault, keep, dropped)
    return plan._replace(
        outdated=window.outdated,
        remainders=remainders,
        released=released,
        loss=loss,
        keepings=frozenset(one.name for one in keepings.kept),
    )


def _keep_also(keep: dict[SnapshotName, tuple[str, ...]], names: Iterable[SnapshotName], why: str) -> None:
    keep.update({name: (*keep.get(name, ()), why) for name in names if why not in keep.get(name, ())})


def _check_drop(vault: Vault, going: frozenset[SnapshotName], keepings: Keepings, held: Held) -> None:
    """Raises Refused."""
    for one in keepings.pins:
        if SnapshotName(one.keeping.snapshot) in going:
            short = SnapshotName(one.keeping.snapshot).short
            hint = f"Release the pin {one.short} first, if you may."
            raise Refused(f"snapshot {short} is pinned ({one.keeping.reason or 'no reason was given'})", hint=hint)
    for name in going:
        if name.name.startswith(HELD_PREFIX) and still_held(vault, name, held) and _opened(vault, name) is not None:
            raise Refused(f"{name.short} is kept by a legal hold", hint="Release the hold first, if you may.")


def _is_good(vault: Vault, name: SnapshotName) -> bool:
    snapshot = _opened(vault, name)
    return snapshot is not None and not snapshot.gaps_total


def _mark_whole(vault: Vault, marks: Marks, names: Iterable[SnapshotName]) -> None:
    """Raises Refused: one of them is damaged."""
    for name in names:
        snapshot = _opened(vault, name)
        if snapshot is None or not marks.add(snapshot):
            why = marks.problems[0] if snapshot is not None else "its record is unreadable"
            raise Refused(f"snapshot {name.short} is damaged ({why}); nothing is deleted", hint=_DAMAGED_HINT)


def _mark_held(vault: Vault, marks: Marks, name: SnapshotName, held: Held) -> bool:
    """Mark what *held* keeps of the snapshot that goes; whether there is anything. Raises Refused: it is damaged."""
    if not held:
        return False
    try:
        entries = held_entries(vault, vault.snapshot(name), held)
        whole = all(marks.add_entry(tree, path, entry) for tree, path, entry in entries)
        why = "" if whole else marks.problems[0]
    except VaultDamaged as error:
        entries, why = [], error.message
    if why:
        hint = "`holdfast vault verify` names all of it. Repair it, or release the hold, then prune."
        raise Refused(f"snapshot {name.short} is damaged in what a hold keeps ({why}); nothing is deleted", hint=hint)
    return bool(entries)


def _opened(vault: Vault, name: SnapshotName) -> Snapshot | None:
    try:
        return vault.snapshot(name)
    except VaultDamaged:
        return None


def _plan(vault: Vault, keep: dict[SnapshotName, tuple[str, ...]], drop: tuple[SnapshotName, ...]) -> PrunePlan:
    live: dict[int, int] = {}
    live.update(vault.catalog.db.execute(_LIVE_BYTES))
    dead: list[Pack] = []
    repack: list[Pack] = []
    freed = 0.0
    for pack in vault.catalog.packs():
        if pack.state is not PackState.GOOD:
            continue
        share = live.get(pack.number, 0) / vault.catalog.plain_bytes(pack)
        if share >= REPACK_BELOW:
            continue
        (repack if share else dead).append(pack)
        freed += pack.size * (1 - share)
    return PrunePlan(keep, drop, tuple(dead), tuple(repack), int(freed))


def execute_prune(vault: Vault, plan: PrunePlan, *, accept_loss: bool = False) -> None:
    """Carry *plan* (of this open vault) out up to the mark; :func:`sweep` deletes the packs later.

    *accept_loss*: the brake is overridden, and from now on later snapshots are compared with the newest one there is.

    Interrupted anywhere, it may simply be planned and executed again. Raises PruneBraked and Refused (pins or holds are
    others than when it was planned) before anything is changed, WrongKey, BackendRefused (the store does not permit
    deleting)."""
    if vault.wrapper is None:
        raise WrongKey("this vault is open for reading only", hint="Give the writer key that `vault init` made.")
    if plan.loss is not None and plan.takes and not accept_loss:
        hint = "Look at what happened. If it was meant, prune once with --accept-loss; else restore from before it."
        raise PruneBraked(f"prune pauses, nothing is deleted: {plan.loss}", hint=hint)
    keepings = read_keepings(vault)
    if plan.keepings != {one.name for one in keepings.kept}:
        hint = "Nothing was changed. Run it again: it plans with what is kept now."
        raise Refused("a pin or a hold was set or released since this prune was planned", hint=hint)
    if plan.remainders:
        write_remainders(vault, plan.remainders, held_paths(keepings.holds))
    if plan.remainders or plan.repack:
        marks = Marks(vault)
        _mark_whole(vault, marks, (*plan.keep, *(name for name in vault.held() if name not in plan.released)))
        plan = _plan(vault, plan.keep, plan.drop)._replace(
            outdated=plan.outdated, released=plan.released, loss=plan.loss
        )
    for frames in plan.outdated:
        vault.backend.delete(frames.name)
    with vault.catalog.transaction(), Writer(vault) as writer:
        for pack in plan.repack:
            _copy_live(vault, writer, pack)
        writer.flush()
    for name in (*plan.drop, *plan.released):
        vault.backend.delete(name.name)
    going = [pack.name for pack in (*plan.dead, *plan.repack)]
    if going:
        trash = vault.codec.trash(going)
        vault.backend.put(trash.name, trash.data)
    vault.sync()
    if (accept_loss or plan.loss is None) and (names := vault.snapshots()):
        accept(vault, names[-1])


def _copy_live(vault: Vault, writer: Writer, pack: Pack) -> None:
    kind, _ = vault.pack_cipher(pack.name)
    live = "SELECT 1 FROM temp.live WHERE id = ?"
    for content_id, _, _, _ in list(vault.catalog.contents_of(pack.number)):
        if vault.catalog.db.execute(live, (content_id,)).get:
            writer.add_new(content_id, vault.content(content_id), kind)


def sweep(vault: Vault, now_seconds: float, *, grace_seconds: float = GRACE_SECONDS) -> Swept:
    """Delete packs that were marked at least *grace_seconds* ago and that no snapshot needs now.

    *now_seconds*: this machine's clock, compared with the store's. A grace period of 0 is right only where nobody else
    writes. Raises Refused when a snapshot is damaged.
    """
    due = [found for found in vault.backend.list("trash/") if now_seconds - found.modified_at_seconds >= grace_seconds]
    candidates: set[str] = set()
    for found in list(due):
        try:
            candidates.update(vault.codec.open_trash(vault.backend.get(found.name), found.name))
        except VaultDamaged:
            continue  # what it named counts as good: it is only deleted
        except ObjectMissing:
            continue  # by another sweep, which deleted the packs before
    vault.sync()  # after the trash was read: what another sweep deletes meanwhile must not count as another copy
    waiting = sum(1 for pack in vault.catalog.packs() if pack.state is PackState.DOOMED and pack.name not in candidates)
    if not due:
        return Swept(0, 0, waiting)
    going = [pack for pack in vault.catalog.packs() if pack.name in candidates and pack.state is PackState.DOOMED]
    going = _unneeded(vault, going)
    if going:
        _delete_packs(vault, going)
    for found in due:
        vault.backend.delete(found.name)
    vault.sync()
    return Swept(len(going), sum(pack.size for pack in going), waiting)


def _unneeded(vault: Vault, candidates: list[Pack]) -> list[Pack]:
    """Of *candidates* those that hold nothing needed which only candidates hold."""
    _mark_whole(vault, Marks(vault), (*vault.snapshots(), *vault.held()))
    db = vault.catalog.db
    db.execute("CREATE TEMP TABLE IF NOT EXISTS going (pack INTEGER PRIMARY KEY)")
    db.execute("DELETE FROM temp.going")
    db.executemany("INSERT INTO temp.going VALUES (?)", [(pack.number,) for pack in candidates])
    needed = db.execute(
        "SELECT DISTINCT c.pack FROM content c JOIN temp.going g ON g.pack = c.pack JOIN temp.live l ON l.id = c.id"
        " WHERE NOT EXISTS (SELECT 1 FROM content c2 JOIN pack p ON p.number = c2.pack"
        " WHERE c2.id = c.id AND p.state < 2 AND c2.pack NOT IN (SELECT pack FROM temp.going))"
    )
    kept = {number for (number,) in needed}
    return [pack for pack in candidates if pack.number not in kept]


def _delete_packs(vault: Vault, going: list[Pack]) -> None:
    """New index objects, then away with the old ones, then with the packs: no index names a pack that is gone."""
    renew_index(vault, without={pack.number for pack in going})
    for pack in going:
        vault.backend.delete(pack.name)


def renew_index(vault: Vault, *, without: Container[int] = (), damaged: Iterable[str] = ()) -> None:
    """Write what is there, but for the packs *without*, into new index objects, and delete those that were known and
    *damaged* ones."""
    old = [found.name for found in vault.backend.list("index/") if vault.catalog.knows_index(found.name)]
    rest = [pack for pack in vault.catalog.packs() if pack.number not in without and pack.state is not PackState.GONE]
    index_packs = vault.sizes.index_packs
    for at in range(0, len(rest), index_packs):
        made = vault.codec.index([vault.catalog.entry(pack) for pack in rest[at : at + index_packs]])
        vault.backend.put(made.name, made.data)
    for name in {*old, *damaged}:
        vault.backend.delete(name)
