"""Snapshots and directories: what they are made of, how a directory is cut into parts and read back. Pure.

The shapes are those of docs/formats/vault.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from typing import Final, NamedTuple

import msgspec
from blake3 import blake3
from msgspec import Struct

from holdfast.changes.change import Meta, check_path
from holdfast.changes.digest import DIGEST_BYTES
from holdfast.changes.exchange import EntryKind
from holdfast.errors import HoldfastError
from holdfast.vault.faults import PathUnknown, VaultDamaged

PART_ENTRIES_MAX: Final = 2048
PART_BYTES_MAX: Final = 512 * 1024
"""A part ends after the entry that reaches it: the ids of large files stand in it."""
FILE_BYTES_MAX: Final = 256 * 1024**3
"""One entry with the ids of a larger file would not fit a block."""
GAPS_NAMED_MAX: Final = 10_000
"""In one snapshot: a broken disk must not make its record endless."""
DEPTH_MAX: Final = 150
"""Directories below each other: each holds a descriptor open, and a few frames of the stack, while it is walked."""


class Entry(Struct, frozen=True, array_like=True):
    """One name in a directory. *content*: ids one behind the other (directory: of its parts; file: of its contents),
    or a link's target. *link*: equal for the names of one file; empty for a file with one name."""

    name: bytes
    kind: EntryKind
    meta: Meta
    size: int
    content: bytes
    link: bytes = b""


class TreeRoot(Struct, frozen=True, array_like=True):
    """One tree of a snapshot. *root*: where it stood."""

    name: str
    root: bytes
    meta: Meta
    content: bytes


class Gap(Struct, frozen=True, array_like=True):
    """Something the snapshot should hold and does not, or not for sure."""

    tree: str
    path: bytes
    reason: str


class Snapshot(Struct, frozen=True):
    taken_at_ns: int
    machine: str
    trees: tuple[TreeRoot, ...]
    files: int
    bytes: int
    """Both -1: not counted, in an instant between snapshots. A snapshot from the log counts hard links once."""
    gaps: tuple[Gap, ...] = ()
    gaps_total: int = 0
    skipped_total: int = 0
    incarnation: str = ""
    """Of the log; empty for a snapshot made by a scan, which is no instant."""
    sequence: int = 0
    """The trees are those of this position of the log, exactly, but for what ``gaps`` name."""

    def tree(self, name: str) -> TreeRoot:
        """Raises PathUnknown."""
        for tree in self.trees:
            if tree.name == name:
                return tree
        known = ", ".join(tree.name for tree in self.trees) or "none"
        raise PathUnknown(f"the snapshot has no tree {name!r}", hint=f"Its trees: {known}.")


class Found(NamedTuple):
    """An entry with its path in its tree."""

    path: bytes
    entry: Entry


Read = Callable[[bytes], bytes]
"""A content by its id."""
_entries_decoder: Final = msgspec.msgpack.Decoder(tuple[Entry, ...])
_encode: Final = msgspec.msgpack.Encoder().encode


def split_ids(content: bytes) -> list[bytes]:
    return [content[at : at + DIGEST_BYTES] for at in range(0, len(content), DIGEST_BYTES)]


def encode_entry(entry: Entry) -> bytes:
    """As it stands in a part."""
    return _encode(entry)


def ends_part(name: bytes) -> bool:
    return blake3(name).digest(length=1) == b"\0"


def directory_parts(entries: Iterable[Entry]) -> Iterator[bytes]:
    """The parts of a directory, encoded. *entries* must be in order of names."""
    encoded, ends = [], bytearray()
    for entry in entries:
        encoded.append(_encode(entry))
        ends.append(ends_part(entry.name))
    yield from encoded_parts(encoded, ends)


def encoded_parts(entries: Sequence[bytes], ends: bytes | bytearray) -> Iterator[bytes]:
    """As :func:`directory_parts`, of encoded entries; *ends*: 1 for each that ends a part by its name, else 0."""
    at = 0
    while at < len(entries):
        end = ends.find(1, at) + 1 or len(entries)
        part = entries[at : min(end, at + PART_ENTRIES_MAX)]
        if sum(map(len, part)) >= PART_BYTES_MAX:
            sizes = accumulate(map(len, part))
            part = part[: next(number for number, size in enumerate(sizes, 1) if size >= PART_BYTES_MAX)]
        yield encoded_array(part)
        at += len(part)


def encoded_array(encoded: Iterable[bytes]) -> bytes:
    """One msgpack array of what is encoded already."""
    return _encode(list(map(msgspec.Raw, encoded)))


def decode_part(data: bytes, content_id: bytes) -> tuple[Entry, ...]:
    """Raises VaultDamaged. A writer key may be in wrong hands: names are checked before anybody makes files of them."""
    try:
        entries = _entries_decoder.decode(data)
        for entry in entries:
            check_path(entry.name)
            if b"/" in entry.name or (entry.kind is not EntryKind.SYMLINK and len(entry.content) % DIGEST_BYTES):
                raise VaultDamaged("a name or a content of impossible shape")
    except (msgspec.DecodeError, UnicodeDecodeError, HoldfastError) as error:
        raise VaultDamaged(f"part {content_id.hex()} of a directory is unreadable ({error})") from None
    return entries


def entries_of(content: bytes, read: Read) -> Iterator[Entry]:
    """The entries of a directory, in order of names. Raises VaultDamaged and what *read* raises."""
    for content_id in split_ids(content):
        yield from decode_part(read(content_id), content_id)


def walk(content: bytes, read: Read, path: bytes = b"", depth: int = 0) -> Iterator[Found]:
    """Everything below a directory, a directory before what is in it. *path*: its own. Raises as entries_of."""
    if depth > DEPTH_MAX:
        raise VaultDamaged(f"directories stand deeper below each other than {DEPTH_MAX}")
    for entry in entries_of(content, read):
        below = path + b"/" + entry.name if path else entry.name
        yield Found(below, entry)
        if entry.kind is EntryKind.DIRECTORY:
            yield from walk(entry.content, read, below, depth + 1)


def lookup(tree: TreeRoot, path: bytes, read: Read) -> Entry:
    """What stands at *path* (``b""``: the tree's root, as an entry without a name). Raises PathUnknown."""
    here = Entry(b"", EntryKind.DIRECTORY, tree.meta, 0, tree.content)
    for component in path.split(b"/") if path else ():
        inside = entries_of(here.content, read) if here.kind is EntryKind.DIRECTORY else iter(())
        found = next((entry for entry in inside if entry.name == component), None)
        if found is None:
            shown = path.decode(errors="backslashreplace")
            raise PathUnknown(f"tree {tree.name}: nothing stands at {shown!r}", hint="`holdfast vault show` lists it.")
        here = found
    return here
