"""What is different between two snapshots. Parts and directories both share are not even read."""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from typing import NamedTuple

from holdfast.changes.exchange import EntryKind
from holdfast.vault.record import Entry, Read, Snapshot, TreeRoot, decode_part, split_ids


class Kind(StrEnum):
    ADDED = "added"
    REMOVED = "removed"
    CONTENT = "content"
    """Bytes, target, or what it is (a file became a directory)."""
    META = "meta"
    """Only mode, owner, times, attributes or hard links."""


class Difference(NamedTuple):
    tree: str
    path: bytes
    kind: Kind


def differences(old: Snapshot, new: Snapshot, read: Read) -> Iterator[Difference]:
    """In order of trees and paths. What is below an added or removed directory is told too. Raises VaultDamaged."""
    before = {tree.name: tree for tree in old.trees}
    after = {tree.name: tree for tree in new.trees}
    for name in sorted(before.keys() | after.keys()):
        yield from _both(name, b"", _root(before.get(name)), _root(after.get(name)), read)


def _root(tree: TreeRoot | None) -> Entry | None:
    return None if tree is None else Entry(b"", EntryKind.DIRECTORY, tree.meta, 0, tree.content)


def _both(tree: str, path: bytes, old: Entry | None, new: Entry | None, read: Read) -> Iterator[Difference]:
    if old is None or new is None:
        yield Difference(tree, path, Kind.ADDED if old is None else Kind.REMOVED)
    elif old.kind is not new.kind or _other_content(old, new):
        yield Difference(tree, path, Kind.CONTENT)
    elif old.meta != new.meta or old.link != new.link:
        yield Difference(tree, path, Kind.META)
    yield from _below(tree, path, old, new, read)


def _other_content(old: Entry, new: Entry) -> bool:
    return old.kind is not EntryKind.DIRECTORY and (old.content, old.size) != (new.content, new.size)


def _below(tree: str, path: bytes, old: Entry | None, new: Entry | None, read: Read) -> Iterator[Difference]:
    old_parts, new_parts = _parts(old), _parts(new)
    if old_parts == new_parts:
        return
    shared = set(old_parts) & set(new_parts)
    before = {entry.name: entry for part in old_parts if part not in shared for entry in decode_part(read(part), part)}
    after = {entry.name: entry for part in new_parts if part not in shared for entry in decode_part(read(part), part)}
    for name in sorted(before.keys() | after.keys()):
        below = path + b"/" + name if path else name
        was, is_now = before.get(name), after.get(name)
        if was != is_now:
            yield from _both(tree, below, was, is_now, read)


def _parts(entry: Entry | None) -> list[bytes]:
    return split_ids(entry.content) if entry is not None and entry.kind is EntryKind.DIRECTORY else []
