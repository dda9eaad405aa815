"""The brake: prune pauses when an unusual share of what was backed up is deleted or rewritten.

Somebody who encrypts or deletes the mail leaves backups of the damage, and the good ones before it would expire, day by
day, as the rules say. So each prune compares the newest snapshot with the one that was newest at the last prune which
found nothing unusual (that one stays meanwhile); the first prune on a machine compares every snapshot with the next.
What the log fed and each machine's scans are compared among themselves, tree by tree. Stopped once, it stays stopped
until the share is usual again, or somebody accepts the newest snapshot.

*Lost* are bytes of the older snapshot that the newer one does not have in what changed, and files that are gone with
their bytes: what was moved, renamed or flagged is not lost; of what was rewritten in place the bytes are. Unusual is
more than ``SHARE_MAX`` of the files (and at least ``LOST_FILES_MIN``) or of the bytes (and ``LOST_BYTES_MIN``), of all
trees together or of one that is large (``TREE_FILES_MIN``, ``TREE_BYTES_MIN``).

What it compared last is kept on the machine that prunes, not in the vault: there a broken-into mail server could say
that its own damage was accepted. Slow damage, below the share from prune to prune, passes. mdbox files purged in one go
may trip it, as mbox files do that grow each day: give such a site another share.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Final, NamedTuple

from holdfast.changes.exchange import EntryKind
from holdfast.vault.faults import VaultDamaged
from holdfast.vault.record import Entry, Snapshot, decode_part, split_ids, walk
from holdfast.vault.repository import SnapshotName, Vault

SHARE_MAX: Final = 0.25
"""A site whose users tidy up, or whose rules delete old mail, loses a few percent in a month; who deletes or encrypts
everything passes a quarter."""
LOST_FILES_MIN: Final = 50
LOST_BYTES_MIN: Final = 4 * 1024 * 1024
"""Less is one mailbox tidied up, or the index files of a site that has hardly any mail."""
TREE_FILES_MIN: Final = 1000
TREE_BYTES_MIN: Final = 64 * 1024 * 1024
"""Smaller trees count only as part of all: a generated manifest is rewritten every time."""
_JUDGED: Final = "judged_snapshot"


class Loss(NamedTuple):
    """What *newer* does not have of *older*, in one tree (*tree*; empty: in all together)."""

    older: SnapshotName
    newer: SnapshotName
    tree: str
    files: int
    files_before: int
    bytes: int
    bytes_before: int

    @property
    def share(self) -> float:
        """The larger one of the files' and the bytes'; 0 where what is lost is too little to count."""
        files = self.files / self.files_before if self.files >= LOST_FILES_MIN else 0.0
        return max(files, self.bytes / self.bytes_before if self.bytes >= LOST_BYTES_MIN else 0.0)

    def __str__(self) -> str:
        where = f"tree {self.tree}" if self.tree else "all trees"
        return (
            f"{where}: of {self.files_before:,} files and {self.bytes_before:,} bytes in snapshot {self.older.short},"
            f" {self.files:,} files are gone and {self.bytes:,} bytes gone or rewritten in {self.newer.short}"
        )


def unusual_loss(vault: Vault, names: Sequence[SnapshotName], *, share_max: float = SHARE_MAX) -> Loss | None:
    """The first unusual loss between snapshots of *names* (all there are, oldest first) that nobody has judged; None:
    there is none. Damaged snapshots are passed over: what else they mean is for others."""
    compare = _Compare(vault)
    for older, newer in _pairs(compare.by_source(names), judged(vault, names)):
        try:
            losses = compare.losses(older, newer)
        except VaultDamaged:
            continue
        for loss in losses:
            if loss.share > share_max:
                return loss
    return None


def judged(vault: Vault, names: Sequence[SnapshotName]) -> SnapshotName | None:
    """The newest snapshot at the last prune of this machine that found nothing unusual, if it still stands."""
    told = vault.catalog.text(_JUDGED)
    return next((name for name in names if name.name == told), None)


def accept(vault: Vault, name: SnapshotName) -> None:
    """From now on later snapshots are compared with *name*."""
    vault.catalog.set_text(_JUDGED, name.name)


def _pairs(
    sources: Iterable[Sequence[SnapshotName]], known: SnapshotName | None
) -> Iterator[tuple[SnapshotName, SnapshotName]]:
    for names in sources:
        seen = [name for name in names if known is not None and name.taken_at_ns <= known.taken_at_ns]
        if not seen:
            yield from pairwise(names)
        elif seen[-1] != names[-1]:
            yield seen[-1], names[-1]


class _Size(NamedTuple):
    files: int = 0
    bytes: int = 0

    def and_(self, other: _Size) -> _Size:
        return _Size(self.files + other.files, self.bytes + other.bytes)


class _Compare:
    """Compares snapshots; a part that was measured once is not read again for that."""

    def __init__(self, vault: Vault) -> None:
        self._vault = vault
        self._sizes: dict[bytes, _Size] = {}
        self._opened: dict[SnapshotName, Snapshot] = {}

    def by_source(self, names: Sequence[SnapshotName]) -> list[list[SnapshotName]]:
        """What was fed by a log together, and each machine's scans. Unreadable ones are left out."""
        sources: dict[str, list[SnapshotName]] = {}
        for name in names:
            try:
                self._opened[name] = self._vault.snapshot(name)
            except VaultDamaged:
                continue
            source = "" if name.position is not None else self._opened[name].machine
            sources.setdefault(source, []).append(name)
        return list(sources.values())

    def losses(self, older: SnapshotName, newer: SnapshotName) -> list[Loss]:
        """Of the trees both have; one that could not be backed up is a gap of the newer one."""
        before, after = self._opened[older], self._opened[newer]
        there = {tree.name: tree.content for tree in after.trees}
        found: list[Loss] = []
        all_lost, all_before = _Size(), _Size()
        for tree in before.trees:
            if tree.name not in there:
                continue
            lost = _TreeChange(self._vault).lost(tree.content, there[tree.name])
            size = self._size(tree.content)
            all_lost, all_before = all_lost.and_(lost), all_before.and_(size)
            if size.files >= TREE_FILES_MIN or size.bytes >= TREE_BYTES_MIN:
                found.append(Loss(older, newer, tree.name, lost.files, size.files, lost.bytes, size.bytes))
        total = Loss(older, newer, "", all_lost.files, all_before.files, all_lost.bytes, all_before.bytes)
        return [*found, total]

    def _size(self, content: bytes) -> _Size:
        """Of all files below a directory."""
        size = _Size()
        for part in split_ids(content):
            known = self._sizes.get(part)
            if known is None:
                known = _Size()
                for entry in decode_part(self._vault.content(part), part):
                    if entry.kind is EntryKind.DIRECTORY:
                        known = known.and_(self._size(entry.content))
                    elif entry.kind is EntryKind.FILE:
                        known = known.and_(_Size(1, entry.size))
                self._sizes[part] = known
            size = size.and_(known)
        return size


class _TreeChange:
    """What one tree lost: counts of what left a path less what came to one."""

    def __init__(self, vault: Vault) -> None:
        self._vault = vault
        self._contents: Counter[bytes] = Counter()
        self._files: Counter[bytes] = Counter()
        """By all their contents; those that left."""
        self._came: set[bytes] = set()

    def lost(self, old: bytes, new: bytes) -> _Size:
        self._directories(old, new)
        size = 0
        for content_id, count in self._contents.items():
            if count > 0:
                size += count * (self._vault.catalog.length(content_id) or 0)
        return _Size(sum(count for content, count in self._files.items() if content not in self._came), size)

    def _directories(self, old: bytes, new: bytes) -> None:
        before, after = split_ids(old), split_ids(new)
        shared = set(before) & set(after)
        entries = {entry.name: entry for entry in self._entries(after, shared)}
        for entry in self._entries(before, shared):
            now = entries.pop(entry.name, None)
            if now is not None and now.kind is entry.kind is EntryKind.DIRECTORY:
                self._directories(entry.content, now.content)
            elif now is None or now.content != entry.content:
                self._count(entry, -1, still_there=now is not None)
                if now is not None:
                    self._count(now, +1)
        for now in entries.values():
            self._count(now, +1)

    def _entries(self, parts: list[bytes], shared: set[bytes]) -> Iterator[Entry]:
        for part in parts:
            if part not in shared:
                yield from decode_part(self._vault.content(part), part)

    def _count(self, entry: Entry, sign: int, *, still_there: bool = False) -> None:
        """*sign*: -1 when it left, +1 when it came. *still_there*: another stands at its path."""
        if entry.kind is EntryKind.DIRECTORY:
            for found in walk(entry.content, self._vault.content):
                if found.entry.kind is EntryKind.FILE:
                    self._count(found.entry, sign)
        elif entry.kind is EntryKind.FILE:
            for content_id in split_ids(entry.content):
                self._contents[content_id] -= sign
            if sign > 0:
                self._came.add(entry.content)
            elif not still_there and entry.size:
                self._files[entry.content] += 1
