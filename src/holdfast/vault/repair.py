"""Repair: what the vault lost is written again, from where it still is.

Two places may have it: a copy of the vault (see ``copy``), whose objects replace the damaged ones byte by byte; and the
trees themselves, on a primary or standby, whose files still hold what the vault stored. What is written has the id that
is asked for, so nothing can come back wrong, whatever changed in the trees meanwhile.

What is readable in a damaged pack is written to new packs, too, and the pack is marked for deletion like a dead one:
from then on no backup counts on it. A directory's list of names comes back from a copy only; the next backup writes
those that still are as they were.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Final, NamedTuple

from holdfast.errors import ExitStatus
from holdfast.vault.catalog import Pack, PackState
from holdfast.vault.copy import gives_its_name
from holdfast.vault.faults import VaultDamaged, WrongKey
from holdfast.vault.objects import CONTENT_BYTES_MAX, ObjectKind
from holdfast.vault.port import Backend, ObjectMissing
from holdfast.vault.prune import renew_index
from holdfast.vault.record import split_ids
from holdfast.vault.repository import Vault
from holdfast.vault.verify import EVERYTHING, Lost, Verified, verify
from holdfast.vault.writer import Writer

_FILE_FLAGS: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Repaired(NamedTuple):
    """*objects*: replaced from a copy; *contents*: written again from the trees; *saved*: moved out of damaged packs.
    *after*: what a verify finds now."""

    objects: tuple[str, ...]
    contents: int
    saved: int
    after: Verified

    @property
    def exit_status(self) -> ExitStatus:
        return self.after.exit_status


def repair(
    vault: Vault,
    found: Verified,
    *,
    copy: Backend | None = None,
    trees: Mapping[str, Path] | None = None,
    progress: Callable[[Verified], None] | None = None,
) -> Repaired:
    """Repair what *found* (a verify of this open vault) names. *trees*: where they stand on this machine, by name.

    Needs the writer key, an identity, and a store that permits deleting; interrupted, it may be run again. Afterwards
    everything is verified (*progress*). Raises WrongKey, BackendRefused, and what the backends raise.
    """
    if vault.wrapper is None:
        raise WrongKey("this vault is open for reading only", hint="Give the writer key that `vault init` made.")
    vault.forget()
    objects = _from_copy(vault, copy, found) if copy is not None else ()
    if objects:
        vault.sync()
    contents, saved = _write_again(vault, found, trees or {})
    return Repaired(objects, contents, saved, verify(vault, EVERYTHING, progress=progress))


def _from_copy(vault: Vault, copy: Backend, found: Verified) -> tuple[str, ...]:
    """Objects that *found* names, as the copy has them."""
    replaced: list[str] = []
    for name in sorted({finding.what for finding in found.findings if finding.what}):
        try:
            data = copy.get(name)
        except ObjectMissing:
            continue
        if gives_its_name(name, data):
            vault.backend.delete(name)
            vault.backend.put(name, data)
            replaced.append(name)
    return tuple(replaced)


def _write_again(vault: Vault, found: Verified, trees: Mapping[str, Path]) -> tuple[int, int]:
    """Contents from the trees, and what is readable of damaged packs. How many of each."""
    named = {finding.what for finding in found.findings}
    damaged = [pack for pack in vault.catalog.packs() if pack.name in named and not _is_sound(vault, pack)]
    marked = [pack for pack in damaged if pack.state is not PackState.GONE]
    needed = {content_id for lost in found.lost for content_id in split_ids(lost.entry.content)}
    wanted = {content_id for content_id in needed if not _readable(vault, content_id)}
    with vault.catalog.transaction(), Writer(vault) as writer:
        contents = 0
        for content_id, content in _in_trees(vault, found.lost, wanted, trees):
            writer.add_new(content_id, content, ObjectKind.CONTENTS)
            contents += 1
        saved = sum(_save(vault, writer, pack) for pack in damaged)
        writer.flush()
    if marked:
        trash = vault.codec.trash([pack.name for pack in marked])
        vault.backend.put(trash.name, trash.data)
    if len(damaged) > len(marked) or any(name.startswith("index/") for name in named):
        renew_index(vault, damaged={name for name in named if name.startswith("index/")})
    for pack in damaged:
        if pack.state is PackState.GONE:  # what is left of it is of another size than it was written with
            vault.backend.delete(pack.name)
    vault.sync()
    return contents, saved


def _is_sound(vault: Vault, pack: Pack) -> bool:
    """After a copy gave it back."""
    if pack.state is PackState.GONE:
        return False
    try:
        return gives_its_name(pack.name, vault.backend.get(pack.name))
    except ObjectMissing:
        return False


def _readable(vault: Vault, content_id: bytes) -> bool:
    try:
        vault.content(content_id)
    except VaultDamaged:
        return False
    return True


def _save(vault: Vault, writer: Writer, pack: Pack) -> int:
    """Write what is readable in *pack*, and nowhere else, again."""
    try:
        data = vault.backend.get(pack.name)
        kind, cipher = vault.pack_cipher(pack.name)
    except (VaultDamaged, ObjectMissing):
        return 0  # with its key all in it is lost
    blocks = vault.catalog.blocks_of(pack)
    saved = 0
    for number, contents in groupby(list(vault.catalog.contents_of(pack.number)), key=lambda row: row[1]):
        sealed = data[blocks[number].at : blocks[number].at + blocks[number].sealed_bytes]
        try:
            plain = vault.codec.open_block(cipher, kind, number, sealed, pack.name)
        except VaultDamaged:
            continue
        for content_id, _, at, length in contents:
            content = plain[at : at + length]
            sound = vault.codec.secrets.content_id(content) == content_id
            if sound and not any(place.block.pack != pack.name for place in vault.catalog.places(content_id)):
                writer.add_new(content_id, content, kind)
                saved += 1
    return saved


# -- contents in the trees ---------------------------------------------------------------------------------------------


class _Candidate(NamedTuple):
    """A file that may hold what is wanted of an entry."""

    path: bytes
    lost: Lost


def _in_trees(
    vault: Vault, lost: Sequence[Lost], wanted: set[bytes], trees: Mapping[str, Path]
) -> Iterator[tuple[bytes, bytes]]:
    """Those of *wanted* that files of the trees hold. At the same path first; then in every file of the same size:
    flags and folders are names, and change."""
    left = set(wanted)
    by_size: dict[str, dict[int, list[Lost]]] = {}
    for one in lost:
        root = trees.get(one.tree)
        if root is None:
            continue
        yield from _taken(vault, _Candidate(os.fsencode(root) + b"/" + one.path, one), left)
        if not left.isdisjoint(split_ids(one.entry.content)):
            by_size.setdefault(one.tree, {}).setdefault(one.entry.size, []).append(one)
    for tree, sizes in by_size.items():
        for path, size in _files(os.fsencode(trees[tree])):
            for one in sizes.get(size, ()):
                yield from _taken(vault, _Candidate(path, one), left)


def _files(folder: bytes) -> Iterator[tuple[bytes, int]]:
    """All files below, with their sizes; what cannot be read is not there."""
    try:
        with os.scandir(folder) as entries:
            found = list(entries)
    except OSError:
        return
    for entry in found:
        try:
            if entry.is_dir(follow_symlinks=False):
                yield from _files(entry.path)
            elif entry.is_file(follow_symlinks=False):
                yield entry.path, entry.stat(follow_symlinks=False).st_size
        except OSError:
            continue


def _taken(vault: Vault, candidate: _Candidate, left: set[bytes]) -> Iterator[tuple[bytes, bytes]]:
    """What the file holds of *left*, which it is taken from."""
    if left.isdisjoint(split_ids(candidate.lost.entry.content)):
        return
    try:
        fd = os.open(candidate.path, _FILE_FLAGS)
    except OSError:
        return
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return
        for content_id, at, length in _places(vault, candidate.lost):
            if content_id not in left:
                continue
            content = os.pread(fd, length, at)
            if vault.codec.secrets.content_id(content) == content_id:
                left.discard(content_id)
                yield content_id, content
    except OSError:
        return
    finally:
        os.close(fd)


def _places(vault: Vault, lost: Lost) -> list[tuple[bytes, int, int]]:
    """Id, offset and length of the entry's contents, as far as the lengths are known: one unknown is what the others
    leave; with several, files are taken for cut at every MiB."""
    ids = split_ids(lost.entry.content)
    known = [vault.catalog.known_length(content_id) for content_id in ids]
    unknown = [number for number, length in enumerate(known) if length is None]
    if len(unknown) == 1:
        known[unknown[0]] = lost.entry.size - sum(length for length in known if length is not None)
    places: list[tuple[bytes, int, int]] = []
    at = 0
    for content_id, length in zip(ids, known, strict=True):
        length = min(CONTENT_BYTES_MAX, lost.entry.size - at) if length is None else length
        places.append((content_id, at, max(length, 0)))
        at += length
    return places
