"""Prune: plan which snapshots and packs go, execute it, and sweep what was marked long enough ago.

The order of writes, and why no lock is needed, stand in docs/formats/vault.md. A prune needs the writer key, an
identity, and a store that permits deleting: usually another machine than the one that backs up.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, tzinfo
from typing import Final, NamedTuple

from holdfast.errors import Refused
from holdfast.vault.backup import GRACE_SECONDS
from holdfast.vault.catalog import Pack, PackState
from holdfast.vault.faults import VaultDamaged, WrongKey
from holdfast.vault.keep import KeepRules, kept_snapshots
from holdfast.vault.mark import Marks
from holdfast.vault.record import Snapshot
from holdfast.vault.repository import SnapshotName, Vault
from holdfast.vault.writer import Writer

REPACK_BELOW: Final = 0.5
"""A pack with a smaller share of needed bytes is written anew: at most as much is written as is freed."""

_LIVE_BYTES: Final = """
SELECT c.pack, sum(c.length) FROM content c JOIN temp.live l ON l.id = c.id WHERE c.pack = (
    SELECT c2.pack FROM content c2 JOIN pack p ON p.number = c2.pack
    WHERE c2.id = c.id AND p.state < 2 ORDER BY p.state, p.number LIMIT 1)
GROUP BY c.pack
"""
"""What each pack is needed for: of several copies the one a reader takes counts."""


class PrunePlan(NamedTuple):
    """What a prune would do. Bytes are those of the store."""

    keep: dict[SnapshotName, tuple[str, ...]]
    drop: tuple[SnapshotName, ...]
    dead: tuple[Pack, ...]
    repack: tuple[Pack, ...]
    freed_bytes: int
    """About, after the grace period: repacked packs count with the share that is not needed."""


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
) -> PrunePlan:
    """Reads, changes nothing. *drop*: go in any case; *pins*: stay in any case but that.

    The newest snapshot without gaps stays, whatever the rules say. Raises Refused: nothing good would be left, or one
    that stays is damaged (to delete by a list that cannot be read would be guessing).
    """
    vault.sync()
    names = vault.snapshots()
    going = frozenset(drop)
    keep = {name: why for name, why in kept_snapshots(names, rules, zone).items() if name not in going}
    keep.update({name: (*keep.get(name, ()), "pinned") for name in pins if name not in going})
    opened: dict[SnapshotName, Snapshot] = {}
    for name in reversed(names):
        if name in going:
            continue
        if (snapshot := _opened(vault, name)) is not None and not snapshot.gaps_total:
            opened[name] = snapshot
            keep[name] = (*keep.get(name, ()), "newest without gaps")
            break
    if names and not keep:
        raise Refused("no snapshot would be left", hint="Make a new backup first, or keep at least one.")
    marks = Marks(vault)
    for name in keep:
        opened_snapshot = opened.get(name) or _opened(vault, name)
        if opened_snapshot is None or not marks.add(opened_snapshot):
            why = marks.problems[0] if opened_snapshot is not None else "its record is unreadable"
            hint = "`holdfast vault verify` names all of it. Drop that snapshot by name, or repair it, then prune."
            raise Refused(f"snapshot {name.short} is damaged ({why}); nothing is deleted", hint=hint)
    return _plan(vault, keep, tuple(name for name in names if name not in keep))


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


def execute_prune(vault: Vault, plan: PrunePlan) -> None:
    """Carry *plan* (of this open vault) out up to the mark; :func:`sweep` deletes the packs later.

    Interrupted anywhere, it may simply be planned and executed again. Raises WrongKey, BackendRefused (the store does
    not permit deleting)."""
    if vault.wrapper is None:
        raise WrongKey("this vault is open for reading only", hint="Give the writer key that `vault init` made.")
    if plan.repack:
        marks = Marks(vault)
        for name in plan.keep:
            marks.add(vault.snapshot(name))
    with vault.catalog.transaction(), Writer(vault) as writer:
        for pack in plan.repack:
            _copy_live(vault, writer, pack)
        writer.flush()
    for name in plan.drop:
        vault.backend.delete(name.name)
    going = [pack.name for pack in (*plan.dead, *plan.repack)]
    if going:
        trash = vault.codec.trash(going)
        vault.backend.put(trash.name, trash.data)
    vault.sync()


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
    vault.sync()
    due = [found for found in vault.backend.list("trash/") if now_seconds - found.modified_at_seconds >= grace_seconds]
    candidates: set[str] = set()
    for found in list(due):
        try:
            candidates.update(vault.codec.open_trash(vault.backend.get(found.name), found.name))
        except VaultDamaged:
            continue  # what it named counts as good: it is only deleted
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
    marks = Marks(vault)
    for name in vault.snapshots():
        if not marks.add(vault.snapshot(name)):
            hint = "`holdfast vault verify` names all of it. Drop that snapshot by name, or repair it."
            raise Refused(f"snapshot {name.short} is damaged ({marks.problems[0]}); nothing is deleted", hint=hint)
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
    numbers = {pack.number for pack in going}
    old = [found.name for found in vault.backend.list("index/") if vault.catalog.knows_index(found.name)]
    rest = [pack for pack in vault.catalog.packs() if pack.number not in numbers and pack.state is not PackState.GONE]
    index_packs = vault.sizes.index_packs
    for at in range(0, len(rest), index_packs):
        made = vault.codec.index([vault.catalog.entry(pack) for pack in rest[at : at + index_packs]])
        vault.backend.put(made.name, made.data)
    for name in old:
        vault.backend.delete(name)
    for pack in going:
        vault.backend.delete(pack.name)
