"""The inventory of a snapshot: read from its tree ``software``, and held against what the snapshot holds."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Final

from msgspec import Struct

from holdfast.mail import inventory
from holdfast.mail.inventory import Inventory, SecretInSnapshot, SecretState
from holdfast.mail.packages import MANIFEST_NAME, Manifest
from holdfast.mail.packages import decode as decode_manifest
from holdfast.mail.processes import below
from holdfast.vault.faults import PathUnknown
from holdfast.vault.record import TreeRoot, lookup, split_ids

SOFTWARE_TREE: Final = "software"
Read = Callable[[bytes], bytes]
"""A content of the vault by its id."""


class Completeness(Struct, frozen=True):
    """What a restore of a snapshot would bring back, and what it would lack."""

    known: bool
    """False: the snapshot has no inventory (it was taken before there was one, or of other trees alone)."""
    secrets: tuple[SecretInSnapshot, ...] = ()
    gaps: tuple[str, ...] = ()
    """In sentences: secrets it lacks, and what the machine missed when it was taken."""
    remarks: tuple[str, ...] = ()


def completeness(trees: Sequence[TreeRoot], read: Read) -> Completeness:
    """*trees*: of one snapshot or instant. Raises VaultDamaged, WrongKey, ConfigurationError (damaged inventory)."""
    taken = read_inventory(trees, read)
    if taken is None:
        words = "it holds no inventory of secrets, so nothing can be said about keys and passwords"
        return Completeness(known=False, remarks=(words,))
    secrets = inventory.secrets_in(taken, lambda path: holds(trees, path, read))
    missing = [secret.words for secret in secrets if secret.state is SecretState.MISSING]
    found = [finding.words for finding in taken.findings if finding.weight is inventory.Weight.GAP]
    return Completeness(known=True, secrets=secrets, gaps=(*missing, *found), remarks=taken.remarks())


def read_inventory(trees: Sequence[TreeRoot], read: Read) -> Inventory | None:
    """None where the snapshot has none. Raises as :func:`completeness`."""
    content = file_content(trees, SOFTWARE_TREE, inventory.INVENTORY_NAME, read)
    return None if content is None else inventory.decode(content, f"{SOFTWARE_TREE}/{inventory.INVENTORY_NAME}")


def read_manifest(trees: Sequence[TreeRoot], read: Read) -> Manifest | None:
    """None where the snapshot has none. Raises as :func:`completeness`."""
    content = file_content(trees, SOFTWARE_TREE, MANIFEST_NAME, read)
    return None if content is None else decode_manifest(content, f"{SOFTWARE_TREE}/{MANIFEST_NAME}")


def file_content(trees: Sequence[TreeRoot], tree: str, path: str, read: Read) -> bytes | None:
    """A small file whole; None where it is not there."""
    root = next((each for each in trees if each.name == tree), None)
    if root is None:
        return None
    try:
        entry = lookup(root, os.fsencode(path), read)
    except PathUnknown:
        return None
    return b"".join(read(content_id) for content_id in split_ids(entry.content))


def holds(trees: Sequence[TreeRoot], path: str, read: Read) -> bool:
    """Whether something stands at the absolute *path* in one of *trees*."""
    for tree in trees:
        root = os.fsdecode(tree.root)
        if below(path, root) and path != root:
            try:
                lookup(tree, os.fsencode(os.path.relpath(path, root)), read)
            except PathUnknown:
                continue
            return True
    return False
