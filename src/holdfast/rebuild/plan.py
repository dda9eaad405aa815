"""What a rebuild will do, as a value: shown before anything happens, and carried out as it was shown."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from msgspec import Struct

from holdfast.changes.exchange import EntryKind
from holdfast.mail.inventory import OWN_TREE, Inventory
from holdfast.mail.port import Commands
from holdfast.mail.vault_inventory import Completeness, completeness, read_inventory, read_manifest
from holdfast.node.enrol import CONFIGURATION_FOLDER
from holdfast.rebuild.own import OwnPlan, plan_own
from holdfast.rebuild.place import in_the_way
from holdfast.rebuild.software import SoftwarePlan, plan_software
from holdfast.rebuild.survey import Survey, Unit, in_order, survey
from holdfast.rebuild.users import UserPlan, plan_users
from holdfast.rebuild.users import here as users_here
from holdfast.vault.faults import VaultDamaged
from holdfast.vault.record import Entry, TreeRoot, split_ids, walk
from holdfast.vault.repository import Vault

SNAPSHOTS_LOOKED_MAX: Final = 1000
SAMPLE_BYTES_MAX: Final = 32 << 20
SAMPLE_SECONDS_MAX: Final = 3.0
BLOCK_BYTES: Final = 4096
"""What a file takes beyond its size, at most, on a usual filesystem."""
FILE_SECONDS: Final = 0.0002
"""Making one file, beside reading it: for estimates before anything was measured."""


class Rate(NamedTuple):
    """How fast contents come out of the vault. *bytes_per_second* 0: nothing was measured."""

    bytes_per_second: float
    sampled_bytes: int

    def seconds(self, size: int, files: int) -> float:
        return (size / self.bytes_per_second if self.bytes_per_second else 0.0) + files * FILE_SECONDS


class UnitEstimate(Struct, frozen=True):
    """*usable_after_seconds*: from the beginning of the store's restore."""

    name: str
    tree: str
    place: str
    files: int
    bytes: int
    active_ns: int
    usable_after_seconds: float


class Plan(NamedTuple):
    source: str
    machine: str
    ordered: bool
    survey: Survey
    units: tuple[Unit, ...]
    software: SoftwarePlan | None
    """None: packages are left to the administrator."""
    users: UserPlan
    own: OwnPlan
    completeness: Completeness
    rate: Rate
    refusals: tuple[str, ...]
    notes: tuple[str, ...]
    inventory: Inventory | None = None
    system_units: tuple[str, ...] = ()
    """systemd units that were enabled there."""

    @property
    def differences(self) -> tuple[str, ...]:
        """What the rebuilt machine will lack or have otherwise; the exit status tells of it."""
        software = self.software.differences if self.software else ()
        lost = (f"account {name} had a store, and this snapshot has none of it" for name in self.survey.lost_accounts)
        return (*self.completeness.gaps, *lost, *software, *self.users.differences)

    def estimates(self) -> tuple[UnitEstimate, ...]:
        at = 0.0
        found = []
        for unit in self.units:
            at += self.rate.seconds(unit.bytes, unit.files)
            found.append(
                UnitEstimate(unit.name, unit.tree, unit.target, unit.files, unit.bytes, unit.active_ns, round(at, 1))
            )
        return tuple(found)


class Wish(NamedTuple):
    """What the administrator asked for. *machine*: the name to have; empty: the archived one's."""

    ordered: bool = False
    machine: str = ""
    packages: bool = True
    offline: bool = False
    move_aside: bool = False


async def make_plan(
    vault: Vault,
    trees: Sequence[TreeRoot],
    source: str,
    wish: Wish,
    placed: frozenset[str],
    commands: Commands,
    *,
    folder: Path = CONFIGURATION_FOLDER,
) -> Plan:
    """Look at the instant and at this machine; changes nothing. *trees*: of the instant; *placed*: by an earlier run.

    Raises VaultDamaged, WrongKey, ConfigurationError, Refused, EnvironmentUnfit, and what the backend raises.
    """
    read = vault.content
    inventory, manifest = read_inventory(trees, read), read_manifest(trees, read)
    found = survey(trees, inventory, read)
    elsewhere: tuple[str, ...] = ()
    if found.own is None and (other := _own_elsewhere(vault)) is not None:
        found = found._replace(own=other.tree)
        elsewhere = (other.words,)
    own = plan_own(found.own, inventory, read, machine=wish.machine, folder=folder)
    software = None
    if wish.packages and manifest is not None:
        software = await plan_software(manifest, commands, offline=wish.offline)
    users = UserPlan()
    if inventory is not None:
        users = plan_users(inventory, found.owners, found.groups, users_here())
    probe_account = own.settings.mail.probe.user if own.settings else ""
    units = in_order(found.units, probe_account)
    refusals = objections(found, placed, software, ordered=wish.ordered, move_aside=wish.move_aside)
    return Plan(
        source=source,
        machine=own.settings.machine if own.settings else "",
        ordered=wish.ordered,
        survey=found,
        units=units,
        software=software,
        users=users,
        own=own,
        completeness=completeness((*trees, *([found.own] if elsewhere and found.own else ())), read),
        rate=sample(vault, (unit for unit in units if unit.target not in placed)),
        refusals=(*refusals, *_no_room(found, placed)),
        notes=(*elsewhere, *remarks(found, inventory, software, own)),
        inventory=inventory,
        system_units=manifest.units if manifest is not None else (),
    )


class _Own(NamedTuple):
    tree: TreeRoot
    words: str


def _own_elsewhere(vault: Vault) -> _Own | None:
    """The newest snapshot that has the site's keys: what the log feeds has none, a scan (`vault backup`) has them."""
    for name in reversed(vault.snapshots()[-SNAPSHOTS_LOOKED_MAX:]):
        for tree in vault.snapshot(name).trees:
            if tree.name == OWN_TREE:
                when = time.strftime("%Y-%m-%d %H:%M", time.localtime(name.taken_at_ns / 1e9))
                return _Own(tree, f"the site's keys come from snapshot {name.short[:8]} of {when}")
    return None


def _no_room(found: Survey, placed: frozenset[str]) -> tuple[str, ...]:
    """Filesystems that cannot hold what is to come."""
    wanted: dict[int, tuple[str, int]] = {}
    for unit in found.units:
        if unit.target not in placed:
            there = _existing(unit.target)
            path, size = wanted.get(os.stat(there).st_dev, (there, 0))
            wanted[os.stat(there).st_dev] = (path, size + unit.bytes + BLOCK_BYTES * unit.files)
    return tuple(
        f"the filesystem of {path} has {_free(path) >> 20} MiB free, about {size >> 20} MiB are needed"
        for path, size in wanted.values()
        if _free(path) < size
    )


def objections(
    survey: Survey, placed: Iterable[str], software: SoftwarePlan | None, *, ordered: bool, move_aside: bool
) -> tuple[str, ...]:
    """Why it must not begin. *placed*: units an earlier run has put in place."""
    found = []
    done = set(placed)
    if not move_aside:
        ways = [unit.target for unit in survey.units if unit.target not in done and in_the_way(unit)]
        if ways:
            more = f" and {len(ways) - 1} more" if len(ways) > 1 else ""
            found.append(f"{ways[0]}{more} would be replaced: --move-aside keeps what is there beside it")
    if ordered and not survey.divided:
        found.append("the snapshot does not tell where accounts lie: they cannot come back one by one (no --ordered)")
    found += software.refusals if software else ()
    return tuple(found)


def remarks(survey: Survey, inventory: Inventory | None, software: SoftwarePlan | None, own: OwnPlan) -> list[str]:
    """What the administrator should know, in sentences."""
    notes = list(own.notes)
    if "queue" in survey.left:
        notes.append("the mail queue is not put back, its messages may have been delivered: `holdfast restore queue`")
    dumps = [unit.target for unit in survey.units if unit.tree == "outputs"]
    if dumps:
        notes.append(f"outputs of commands come back as files; load them by hand: {', '.join(dumps[:5])}")
    if software and software.by_hand:
        shown = ", ".join(software.by_hand[:8])
        more = f" and {len(software.by_hand) - 8} more" if len(software.by_hand) > 8 else ""
        notes.append(f"also installed there, and left to you: {shown}{more}")
    if inventory is None:
        notes.append("the snapshot has no inventory: users are not made, and nothing is known about keys")
    return notes


def sample(vault: Vault, units: Iterable[Unit], *, monotonic: Callable[[], float] = time.monotonic) -> Rate:
    """Read some of what will be read, and time it. Damage is left to the restore, which names it."""
    began, size = monotonic(), 0
    for unit in units:
        for entry in _files(unit.entry, vault):
            for content_id in split_ids(entry.content):
                try:
                    size += len(vault.content(content_id))
                except VaultDamaged:
                    continue
                if size >= SAMPLE_BYTES_MAX or monotonic() - began >= SAMPLE_SECONDS_MAX:
                    return Rate(size / max(monotonic() - began, 1e-6), size)
    seconds = monotonic() - began
    return Rate(size / seconds if size and seconds > 0 else 0.0, size)


def _files(entry: Entry, vault: Vault) -> Iterable[Entry]:
    if entry.kind is EntryKind.FILE:
        return (entry,)
    if entry.kind is not EntryKind.DIRECTORY:
        return ()
    return (found.entry for found in walk(entry.content, vault.content) if found.entry.kind is EntryKind.FILE)


def _existing(path: str) -> str:
    """*path*, or the nearest directory above it that exists."""
    while not os.path.exists(path):
        path = os.path.dirname(path)
    return path


def _free(path: str) -> int:
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize
