"""What a legal hold keeps of a snapshot that goes: a snapshot of the same time with the held paths alone.

It stands under ``held/`` and is read like any other (``holdfast vault show``, ``restore``), by its name. The
directories above a held path are in it with that path alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from holdfast.changes.exchange import EntryKind
from holdfast.vault.faults import PathUnknown, VaultDamaged, WrongKey
from holdfast.vault.record import Entry, Snapshot, TreeRoot, directory_parts, entries_of, lookup, walk
from holdfast.vault.repository import HELD_PREFIX, SNAPSHOT_PREFIX, SnapshotName, Vault
from holdfast.vault.writer import Writer

Held = Mapping[str, Sequence[bytes]]
"""Paths by tree, none below another; ``b""`` is the whole tree."""


def held_entries(vault: Vault, snapshot: Snapshot, held: Held) -> list[tuple[str, bytes, Entry]]:
    """Tree, path and entry of what *held* finds in *snapshot*. Raises VaultDamaged."""
    found: list[tuple[str, bytes, Entry]] = []
    for tree in snapshot.trees:
        for path in held.get(tree.name, ()):
            try:
                found.append((tree.name, path, lookup(tree, path, vault.content)))
            except PathUnknown:
                continue  # the account was not there then
    return found


def write_remainders(vault: Vault, snapshots: Sequence[SnapshotName], held: Held) -> list[SnapshotName]:
    """Write what *held* keeps of *snapshots*; durable when it returns. What is there already is not written again.

    Raises VaultDamaged (what is held cannot be read), WrongKey, and what the backend raises.
    """
    if vault.wrapper is None:
        raise WrongKey("this vault is open for reading only", hint="Give the writer key that `vault init` made.")
    records: list[Snapshot] = []
    with vault.catalog.transaction(), Writer(vault) as writer:
        for name in snapshots:
            record = _remainder(vault, writer, vault.snapshot(name), held)
            if record.trees:
                records.append(record)
        writer.flush()
    made: list[SnapshotName] = []
    there = vault.held()
    for record in records:
        if any(name.taken_at_ns == record.taken_at_ns and _same(vault, name, record) for name in there):
            continue
        sealed = vault.codec.snapshot(vault.wrapper, record.taken_at_ns, record)
        made.append(SnapshotName(HELD_PREFIX + sealed.name[len(SNAPSHOT_PREFIX) :]))
        vault.backend.put(made[-1].name, sealed.data)
    return made


def _same(vault: Vault, name: SnapshotName, record: Snapshot) -> bool:
    try:
        return vault.snapshot(name).trees == record.trees
    except VaultDamaged:
        return False


def _remainder(vault: Vault, writer: Writer, snapshot: Snapshot, held: Held) -> Snapshot:
    trees: list[TreeRoot] = []
    for tree in snapshot.trees:
        wanted = [path.split(b"/") if path else [] for path in held.get(tree.name, ())]
        content = _reduced(vault, writer, tree.content, wanted) if wanted else None
        if content is not None:
            trees.append(msgspec.structs.replace(tree, content=content))
    inside = [entry for _, _, entry in held_entries(vault, snapshot, held)]
    for entry in [entry for entry in inside if entry.kind is EntryKind.DIRECTORY]:
        inside += (found.entry for found in walk(entry.content, vault.content))
    files = [entry.size for entry in inside if entry.kind is EntryKind.FILE]
    # Not an instant any more: no archived records may be put on top of it.
    return msgspec.structs.replace(
        snapshot, trees=tuple(trees), files=len(files), bytes=sum(files), skipped_total=0, incarnation="", sequence=0
    )


def _reduced(vault: Vault, writer: Writer, content: bytes, wanted: list[list[bytes]]) -> bytes | None:
    """A directory's content with *wanted* (components below it) alone; None when nothing of it is there."""
    if [] in wanted:
        return content
    below: dict[bytes, list[list[bytes]]] = {}
    for components in wanted:
        below.setdefault(components[0], []).append(components[1:])
    kept: list[Entry] = []
    for entry in entries_of(content, vault.content):
        rest = below.get(entry.name)
        if rest is None:
            continue
        if entry.kind is EntryKind.DIRECTORY:
            inside = _reduced(vault, writer, entry.content, rest)
            if inside is not None:
                kept.append(msgspec.structs.replace(entry, content=inside))
        elif [] in rest:
            kept.append(entry)
    if not kept:
        return None
    return b"".join(map(writer.add_part, directory_parts(kept)))


def still_held(vault: Vault, name: SnapshotName, held: Held) -> bool:
    """Whether a hold that stands keeps anything of the remainder *name*; one that is unreadable is kept."""
    try:
        return bool(held_entries(vault, vault.snapshot(name), held))
    except VaultDamaged:
        return True
