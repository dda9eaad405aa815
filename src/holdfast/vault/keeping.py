"""What must be kept whatever the rules say: pins and legal holds.

They are objects of the vault, so that every machine that prunes obeys them, whoever made them. To take one back is to
delete its object: who may not delete can only add.

A **pin** keeps one snapshot. A **hold** keeps what stands below a path of a tree (an account's mail) in every
snapshot: of a snapshot that rules let go, a remainder with those paths alone stays (see ``remainder``).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from enum import IntEnum
from typing import Final, NamedTuple

from msgspec import Struct

from holdfast.changes.change import check_path
from holdfast.vault.faults import SnapshotUnknown, VaultDamaged, WrongKey
from holdfast.vault.objects import KEEPING_PREFIX
from holdfast.vault.port import ObjectMissing
from holdfast.vault.repository import SnapshotName, Vault

SHORT_DIGITS: Final = 16


class KeepingKind(IntEnum):
    PIN = 1
    HOLD = 2


class Keeping(Struct, frozen=True):
    """*snapshot*: of a pin. *tree*, *path*: of a hold (path ``b""``: the whole tree)."""

    kind: KeepingKind
    made_at_ns: int
    reason: str = ""
    snapshot: str = ""
    tree: str = ""
    path: bytes = b""


class Kept(NamedTuple):
    """One of them, with its object's name."""

    name: str
    keeping: Keeping

    @property
    def short(self) -> str:
        """What people type."""
        return self.name[len(KEEPING_PREFIX) :][:SHORT_DIGITS]


class Keepings(NamedTuple):
    """All of a vault."""

    kept: tuple[Kept, ...]

    @property
    def pins(self) -> tuple[Kept, ...]:
        return tuple(one for one in self.kept if one.keeping.kind is KeepingKind.PIN)

    @property
    def holds(self) -> tuple[Kept, ...]:
        return tuple(one for one in self.kept if one.keeping.kind is KeepingKind.HOLD)


def read_keepings(vault: Vault) -> Keepings:
    """Raises VaultDamaged: to go on without one that cannot be read would be to delete what it keeps."""
    kept: list[Kept] = []
    for found in vault.backend.list(KEEPING_PREFIX):
        try:
            data = vault.backend.get(found.name)
        except ObjectMissing:
            continue  # taken back meanwhile
        try:
            kept.append(Kept(found.name, vault.codec.open_keeping(data, Keeping, found.name)))
        except VaultDamaged as error:
            hint = "It was a pin or a hold. Set it again, then delete this object; until then nothing is pruned."
            raise VaultDamaged(error.message, name=found.name, hint=hint) from None
    return Keepings(tuple(sorted(kept, key=lambda one: (one.keeping.made_at_ns, one.name))))


def pin(vault: Vault, snapshot: SnapshotName, reason: str, *, clock_ns: Callable[[], int] = time.time_ns) -> Kept:
    """Keep *snapshot* until it is released. Raises WrongKey (open for reading only)."""
    return _put(vault, Keeping(KeepingKind.PIN, clock_ns(), reason, snapshot=snapshot.name))


def hold(vault: Vault, tree: str, path: bytes, reason: str, *, clock_ns: Callable[[], int] = time.time_ns) -> Kept:
    """Keep what stands at and below *path* of *tree* in every snapshot there is and will be, until it is released.

    Not kept by it: states between snapshots (archived records leave as the rules say), and what no snapshot caught.
    Raises WrongKey (open for reading only), HoldfastError (*path* is none).
    """
    if path:
        check_path(path)
    return _put(vault, Keeping(KeepingKind.HOLD, clock_ns(), reason, tree=tree, path=path))


def release(vault: Vault, wanted: str) -> Kept:
    """Take the pin or hold back that *wanted* (the beginning of its ``short``) names.

    Raises SnapshotUnknown (none or several), BackendRefused (this account may not delete).
    """
    hits = [one for one in read_keepings(vault).kept if wanted and one.short.startswith(wanted)]
    if len(hits) != 1:
        what = "several pins or holds begin" if hits else "no pin or hold begins"
        raise SnapshotUnknown(f"{what} with {wanted!r}", hint="`holdfast vault list` shows them.")
    vault.backend.delete(hits[0].name)
    return hits[0]


def held_paths(holds: Iterable[Kept]) -> dict[str, tuple[bytes, ...]]:
    """By tree; a path below another one held is left out."""
    by_tree: dict[str, set[bytes]] = {}
    for one in holds:
        by_tree.setdefault(one.keeping.tree, set()).add(one.keeping.path)
    return {tree: tuple(sorted(path for path in paths if not _covered(path, paths))) for tree, paths in by_tree.items()}


def _covered(path: bytes, paths: set[bytes]) -> bool:
    above = path
    while above:
        above = above.rpartition(b"/")[0]
        if above in paths:
            return True
    return False


def _put(vault: Vault, keeping: Keeping) -> Kept:
    if vault.wrapper is None:
        raise WrongKey("this vault is open for reading only", hint="Give the writer key that `vault init` made.")
    made = vault.codec.keeping(keeping)
    vault.backend.put(made.name, made.data)
    return Kept(made.name, keeping)
