"""Which contents snapshots need, and whether they are all there: the walk under verify's structure and under prune.

A part that was walked once is not walked again, so the cost is that of what is different between snapshots.
"""

from __future__ import annotations

from typing import Final

from holdfast.changes.exchange import EntryKind
from holdfast.vault.faults import VaultDamaged
from holdfast.vault.record import DEPTH_MAX, Entry, Snapshot, decode_part, split_ids
from holdfast.vault.repository import Vault

PROBLEMS_PER_SNAPSHOT_MAX: Final = 100


class Marks:
    """Contents needed, in a temporary table ``live`` of the catalog; made anew with each object."""

    def __init__(self, vault: Vault) -> None:
        self._vault = vault
        self._db = vault.catalog.db
        self._db.execute("DROP TABLE IF EXISTS temp.live")
        self._db.execute("CREATE TEMP TABLE live (id BLOB PRIMARY KEY) WITHOUT ROWID")
        self._bad: set[bytes] = set()
        """Parts in or below which something is missing."""
        self.problems: list[str] = []

    def add(self, snapshot: Snapshot) -> bool:
        """Mark what *snapshot* needs; whether all of it is there (lengths and places; contents are not read)."""
        self.problems = []
        whole = True
        for tree in snapshot.trees:
            whole = self._directory(tree.content, tree.name.encode(), 0) and whole
        return whole

    def add_entry(self, tree: str, path: bytes, entry: Entry) -> bool:
        """The same for one entry and what is below it."""
        self.problems = []
        where = tree.encode() + b"/" + path
        if entry.kind is EntryKind.DIRECTORY:
            return self._directory(entry.content, where, 0)
        return entry.kind is EntryKind.SYMLINK or self._file(entry, where)

    def _file(self, entry: Entry, path: bytes) -> bool:
        ids = split_ids(entry.content)
        self._db.executemany("INSERT OR IGNORE INTO live VALUES (?)", [(content_id,) for content_id in ids])
        reason = missing_in_file(self._vault, entry)
        return self._problem(path, reason) if reason else True

    def _directory(self, content: bytes, path: bytes, depth: int) -> bool:
        if depth > DEPTH_MAX:
            return self._problem(path, f"deeper than {DEPTH_MAX}")
        whole = True
        for part in split_ids(content):
            if self._db.execute("SELECT 1 FROM live WHERE id = ?", (part,)).get:
                whole = whole and part not in self._bad
                continue
            sound = self._part(part, path, depth)
            self._db.execute("INSERT OR IGNORE INTO live VALUES (?)", (part,))
            if not sound:
                self._bad.add(part)
                whole = False
        return whole

    def _part(self, part: bytes, path: bytes, depth: int) -> bool:
        try:
            entries = decode_part(self._vault.content(part), part)
        except VaultDamaged as error:
            return self._problem(path, error.message)
        whole = True
        for entry in entries:
            below = path + b"/" + entry.name
            if entry.kind is EntryKind.DIRECTORY:
                whole = self._directory(entry.content, below, depth + 1) and whole
            elif entry.kind is EntryKind.FILE:
                whole = self._file(entry, below) and whole
        return whole

    def _problem(self, path: bytes, reason: str) -> bool:
        if len(self.problems) < PROBLEMS_PER_SNAPSHOT_MAX:
            self.problems.append(f"{path.decode(errors='backslashreplace')}: {reason}")
        return False


def missing_in_file(vault: Vault, entry: Entry) -> str:
    """Why the file of *entry* cannot be restored, as far as the catalog knows; empty when it can."""
    size = 0
    for content_id in split_ids(entry.content):
        length = vault.catalog.length(content_id)
        if length is None:
            return f"content {content_id.hex()} is missing"
        size += length
    return "" if size == entry.size else f"its contents have {size} bytes instead of {entry.size}"
