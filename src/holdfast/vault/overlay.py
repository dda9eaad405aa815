"""Changes made on top of a snapshot: what differs from it is held here, the rest stays in the vault.

Directories and files are taken up when a change touches them. Bytes of files that were written to lie in a
temporary file without a name; memory holds names and metadata of what is different.

What a change means is fixed in ``holdfast.changes.change``; ``apply`` does it to a filesystem, ``trees.replay`` to the
index.
"""

from __future__ import annotations

import ctypes
import os
import tempfile
from collections import OrderedDict
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Final

from blake3 import blake3

from holdfast.changes.change import Change, Link, Meta, Mkdir, Patch, Put, Remove, Rename, Rmdir, SetMeta, Symlink
from holdfast.changes.digest import DIGEST_BYTES
from holdfast.changes.exchange import EntryKind
from holdfast.vault.cut import pieces
from holdfast.vault.faults import VaultDamaged
from holdfast.vault.record import (
    DEPTH_MAX,
    Entry,
    Read,
    TreeRoot,
    decode_part,
    directory_parts,
    entries_of,
    split_ids,
    walk,
)
from holdfast.vault.writer import Writer

FALLOC_FL_KEEP_SIZE: Final = 1
FALLOC_FL_PUNCH_HOLE: Final = 2
SLOT_BYTES: Final = 1024 * 1024
PARTS_CACHED_MAX: Final = 256
"""About 50 MB at most: a part has 256 entries in the middle."""
LINK_BYTES: Final = 16
"""Longer than a scan's: never the same as one of those."""
_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


class ChangeMisfit(VaultDamaged):
    """A change does not fit what the snapshot and the changes before it say: one of them is not what was written."""


class _Slots:
    """A temporary file cut into places of ``SLOT_BYTES``; what was never written reads as zeros."""

    def __init__(self, folder: Path | None) -> None:
        self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115  # closed with the overlay
        self._free: list[int] = []
        self._next = 0

    def take(self) -> int:
        if self._free:
            return self._free.pop()
        self._next += 1
        return self._next - 1

    def write(self, slot: int, at: int, data: bytes | memoryview) -> None:
        rest = memoryview(data)
        while rest:
            written = os.pwrite(self._file.fileno(), rest, slot * SLOT_BYTES + at)
            rest, at = rest[written:], at + written

    def read(self, slot: int, at: int, length: int) -> bytes:
        data = os.pread(self._file.fileno(), length, slot * SLOT_BYTES + at)
        return data + bytes(length - len(data))

    def clear(self, slot: int, start: int = 0) -> None:
        """Zeros from *start* to the slot's end."""
        at, length = slot * SLOT_BYTES + start, SLOT_BYTES - start
        mode = FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE
        if length and _libc.fallocate(self._file.fileno(), mode, at, length) != 0:
            self.write(slot, start, bytes(length))  # a filesystem without holes

    def give_back(self, slot: int) -> None:
        self.clear(slot)
        self._free.append(slot)

    def close(self) -> None:
        self._file.close()


class _Thing:
    """Something with metadata. *link*: as in an entry."""

    def __init__(self, meta: Meta, link: bytes = b"") -> None:
        self.meta = meta
        self.link = link


class _File(_Thing):
    """*base*: ids, while its bytes are those of the snapshot; None: they lie in *slots*, one a MiB, None for zeros."""

    def __init__(self, meta: Meta, size: int, base: bytes | None, link: bytes = b"") -> None:
        super().__init__(meta, link)
        self.size = size
        self.base = base
        self.slots: list[int | None] = []
        self.names = 0
        """Given to it here; what it has in the snapshot is not counted."""


class _Symlink(_Thing):
    def __init__(self, meta: Meta, target: bytes, link: bytes = b"") -> None:
        super().__init__(meta, link)
        self.target = target


class _Directory(_Thing):
    """*base*: its parts in the snapshot. *names*: what is different; None: nothing stands there any more."""

    def __init__(self, meta: Meta, base: bytes) -> None:
        super().__init__(meta)
        self.base = base
        self.names: dict[bytes, _Thing | None] = {}


class Overlay:
    """The trees of a snapshot, and changes made to them. Use as a context manager. *read*: the vault's contents.

    *folder*: where the temporary file lies; it must hold what changed since the snapshot.
    """

    def __init__(self, trees: tuple[TreeRoot, ...], read: Read, folder: Path | None = None) -> None:
        self._read = read
        self._roots = {tree.name: _Directory(tree.meta, tree.content) for tree in trees}
        self._where = {tree.name: tree.root for tree in trees}
        self._slots = _Slots(folder)
        self._linked: dict[tuple[str, bytes], _Thing] = {}
        """Of the snapshot's files with several names those that were taken up."""
        self._changed_links: dict[str, set[bytes]] = {}
        self._links = 0
        self._parts_seen = _PartsCache(read)
        self._begun: tuple[str, bytes, _File] | None = None
        """The new file whose parts are coming."""

    def __enter__(self) -> Overlay:
        return self

    def __exit__(self, *_: object) -> None:
        self._slots.close()

    # -- changes -------------------------------------------------------------------------------------------------------

    def abandon(self) -> None:
        """The open batch will not go on: a file whose parts were coming never comes to be."""
        if self._begun is not None:
            self._release(self._begun[2])
            self._begun = None

    def apply(self, change: Change) -> None:
        """One change, in the order of the log. Raises ChangeMisfit, and what reading the vault raises."""
        begun = self._begun
        if begun is not None and isinstance(change, Patch) and (change.tree, change.path) == begun[:2]:
            self._continue(begun[2], change)
            return
        self.abandon()
        match change:
            case Put():
                self._put(change)
            case Patch():
                file = self._there(change, change.path)
                if not isinstance(file, _File):
                    raise self._misfit(change, "a patch for what is no file")
                self._touched(change, file)
                self._patch(file, change)
            case Rename():
                self._rename(change)
            case Link():
                self._link(change)
            case Remove() | Rmdir():
                thing = self._there(change, change.path)
                if isinstance(thing, _Directory) and any(True for _ in self._entries(change.tree, thing)):
                    raise self._misfit(change, "the directory is not empty")
                self._bind(change, change.path, None)
            case Mkdir():
                self._bind_new(change, change.path, _Directory(change.meta, b""))
            case SetMeta(path=b"") if change.tree not in self._roots:
                self._roots[change.tree] = _Directory(change.meta, b"")
            case SetMeta():
                thing = self._there(change, change.path)
                self._touched(change, thing)
                thing.meta = change.meta
            case Symlink():
                self._bind_new(change, change.path, _Symlink(change.meta, change.target))

    def _put(self, change: Put) -> None:
        file = _File(change.meta, 0, None)
        for extent in change.extents:
            self._write(file, extent.offset, extent.data)
        if change.more:
            self._begun = change.tree, change.path, file
            return
        self._resize(file, change.size)
        self._bind_new(change, change.path, file)

    def _continue(self, file: _File, change: Patch) -> None:
        if not change.more:
            self._begun = None
            file.meta = change.meta
        self._patch(file, change)
        if not change.more:
            self._bind_new(change, change.path, file)

    def _patch(self, file: _File, change: Patch) -> None:
        for extent in change.extents:
            self._write(file, extent.offset, extent.data)
        if not change.more:
            self._resize(file, change.size)
        file.meta = change.meta

    def _rename(self, change: Rename) -> None:
        thing = self._there(change, change.path)
        if self._standing(change, change.to) is thing:  # two names of one file: rename(2) does nothing
            return
        self._bind_new(change, change.to, thing)
        self._bind(change, change.path, None)

    def _link(self, change: Link) -> None:
        thing = self._there(change, change.path)
        if self._standing(change, change.to) is thing:
            return
        if not thing.link:
            self._links += 1
            thing.link = blake3(b"overlay %d" % self._links).digest(length=LINK_BYTES)
        self._bind_new(change, change.to, thing)

    def _touched(self, change: Change, thing: _Thing) -> None:
        """Its other names in the snapshot are to show the change, too."""
        if thing.link and self._linked.get((change.tree, thing.link)) is thing:
            self._changed_links.setdefault(change.tree, set()).add(thing.link)

    # -- names ---------------------------------------------------------------------------------------------------------

    def _misfit(self, change: Change, what: str) -> ChangeMisfit:
        kind = type(change).__name__.lower()
        return ChangeMisfit(f"a {kind} of {change.path!r} in tree {change.tree!r} does not fit: {what}")

    def _parent(self, change: Change, path: bytes) -> tuple[_Directory, bytes]:
        here = self._roots.get(change.tree)
        if here is None or not path:
            raise self._misfit(change, "there is no such tree, or it is its root")
        *above, name = path.split(b"/")
        for component in above:
            below = self._child(change.tree, here, component)
            if not isinstance(below, _Directory):
                raise self._misfit(change, f"there is no directory {component!r} on the way to {path!r}")
            here = below
        return here, name

    def _child(self, tree: str, directory: _Directory, name: bytes) -> _Thing | None:
        if name in directory.names:
            return directory.names[name]
        entry = self._parts_seen.find(directory.base, name)
        if entry is None:
            return None
        thing = directory.names[name] = self._taken_up(tree, entry)
        if isinstance(thing, _File):
            thing.names += 1
        return thing

    def _taken_up(self, tree: str, entry: Entry) -> _Thing:
        if entry.kind is EntryKind.DIRECTORY:
            return _Directory(entry.meta, entry.content)
        if entry.link and (tree, entry.link) in self._linked:
            return self._linked[tree, entry.link]
        thing: _Thing
        if entry.kind is EntryKind.SYMLINK:
            thing = _Symlink(entry.meta, entry.content, entry.link)
        else:
            thing = _File(entry.meta, entry.size, entry.content, entry.link)
        if entry.link:
            self._linked[tree, entry.link] = thing
        return thing

    def _there(self, change: Change, path: bytes) -> _Thing:
        if not path and change.tree in self._roots:
            return self._roots[change.tree]
        thing = self._standing(change, path)
        if thing is None:
            raise self._misfit(change, f"nothing stands at {path!r}")
        return thing

    def _standing(self, change: Change, path: bytes) -> _Thing | None:
        directory, name = self._parent(change, path)
        return self._child(change.tree, directory, name)

    def _bind_new(self, change: Change, path: bytes, thing: _Thing) -> None:
        if isinstance(self._standing(change, path), _Directory):
            raise self._misfit(change, f"a directory stands at {path!r}")
        self._bind(change, path, thing)

    def _bind(self, change: Change, path: bytes, thing: _Thing | None) -> None:
        directory, name = self._parent(change, path)
        before = directory.names.get(name)
        directory.names[name] = thing
        if isinstance(thing, _File):
            thing.names += 1
        if isinstance(before, _File):
            before.names -= 1
            if before.names == 0 and not before.link:
                self._release(before)

    def _entries(self, tree: str, directory: _Directory) -> Iterator[tuple[bytes, _Thing | Entry]]:
        """What stands in *directory*, in order of names; what was not taken up as its entry."""
        news = iter(sorted((name, thing) for name, thing in directory.names.items()))
        new = next(news, None)
        for entry in entries_of(directory.base, self._read):
            while new is not None and new[0] < entry.name:
                if new[1] is not None:
                    yield new[0], new[1]
                new = next(news, None)
            if new is None or new[0] != entry.name:
                yield entry.name, entry
        while new is not None:
            if new[1] is not None:
                yield new[0], new[1]
            new = next(news, None)

    # -- contents ------------------------------------------------------------------------------------------------------

    def _write(self, file: _File, at: int, data: bytes) -> None:
        self._load(file)
        if at + len(data) > file.size:
            self._resize(file, at + len(data))
        rest = memoryview(data)
        while rest:
            number, inside = divmod(at, SLOT_BYTES)
            some = rest[: SLOT_BYTES - inside]
            slot = file.slots[number]
            if slot is None:
                slot = file.slots[number] = self._slots.take()
            self._slots.write(slot, inside, some)
            rest, at = rest[len(some) :], at + len(some)

    def _load(self, file: _File) -> None:
        """Bring the snapshot's bytes into slots: they will be changed."""
        if file.base is None:
            return
        ids, file.base, size, file.size = split_ids(file.base), None, file.size, 0
        at = 0
        for content_id in ids:
            content = self._read(content_id)
            self._write(file, at, content)
            at += len(content)
        if at != size:
            raise VaultDamaged(f"a file's contents have {at} bytes instead of {size}")

    def _resize(self, file: _File, size: int) -> None:
        if size == file.size:
            return
        self._load(file)
        number, inside = divmod(min(size, file.size), SLOT_BYTES)
        if inside and (slot := file.slots[number]) is not None:
            self._slots.clear(slot, inside)  # behind the shorter of both sizes are zeros
        count = -(-size // SLOT_BYTES)
        for slot in file.slots[count:]:
            if slot is not None:
                self._slots.give_back(slot)
        del file.slots[count:]
        file.slots += [None] * (count - len(file.slots))
        file.size = size

    def _release(self, file: _File) -> None:
        for slot in file.slots:
            if slot is not None:
                self._slots.give_back(slot)
        file.slots = []

    def _read_at(self, file: _File, at: int, length: int) -> bytes:
        """As a scan reads: fewer bytes only at the end of the file."""
        end = min(at + length, file.size)
        parts = []
        while at < end:
            number, inside = divmod(at, SLOT_BYTES)
            some = min(SLOT_BYTES - inside, end - at)
            slot = file.slots[number]
            parts.append(bytes(some) if slot is None else self._slots.read(slot, inside, some))
            at += some
        return b"".join(parts)

    # -- the result ----------------------------------------------------------------------------------------------------

    def write(self, writer: Writer) -> tuple[TreeRoot, ...]:
        """Add to *writer* what the vault does not have; the trees as they stand now. Once, as the last call."""
        self.abandon()
        for tree, links in self._changed_links.items():
            self._spread(tree, self._roots[tree], links)
        written: dict[int, bytes] = {}
        return tuple(
            TreeRoot(name, self._where.get(name, b""), root.meta, self._parts(name, root, writer, written, 0))
            for name, root in self._roots.items()
        )

    def _spread(self, tree: str, directory: _Directory, links: set[bytes]) -> None:
        """Take up every name of the files that have *links*."""
        for name, thing in list(self._entries(tree, directory)):
            if isinstance(thing, _Directory):
                self._spread(tree, thing, links)
            elif isinstance(thing, Entry):
                if thing.kind is EntryKind.DIRECTORY:
                    paths = [found.path for found in walk(thing.content, self._read) if found.entry.link in links]
                    for path in paths:
                        self._take_up_below(tree, directory, name + b"/" + path)
                elif thing.link in links:
                    self._child(tree, directory, name)

    def _take_up_below(self, tree: str, directory: _Directory, path: bytes) -> None:
        here: _Thing | None = directory
        for component in path.split(b"/"):
            assert isinstance(here, _Directory)
            here = self._child(tree, here, component)

    def _parts(self, tree: str, directory: _Directory, writer: Writer, written: dict[int, bytes], depth: int) -> bytes:
        if depth > DEPTH_MAX:
            raise VaultDamaged(f"directories stand deeper below each other than {DEPTH_MAX}")
        if not directory.names:
            return directory.base
        entries = (
            thing if isinstance(thing, Entry) else self._entry(tree, name, thing, writer, written, depth)
            for name, thing in self._entries(tree, directory)
        )
        return b"".join(map(writer.add_part, directory_parts(entries)))

    def _entry(
        self, tree: str, name: bytes, thing: _Thing, writer: Writer, written: dict[int, bytes], depth: int
    ) -> Entry:
        if isinstance(thing, _Directory):
            content = self._parts(tree, thing, writer, written, depth + 1)
            return Entry(name, EntryKind.DIRECTORY, thing.meta, 0, content)
        if isinstance(thing, _Symlink):
            return Entry(name, EntryKind.SYMLINK, thing.meta, 0, thing.target, thing.link)
        assert isinstance(thing, _File)
        content = written.get(id(thing), b"")
        if not content:
            content = thing.base or b"".join(writer.add(piece) for piece in pieces(partial(self._read_at, thing)))
            if thing.link:
                written[id(thing)] = content
        return Entry(name, EntryKind.FILE, thing.meta, thing.size, content, thing.link)


class _PartsCache:
    """Parts of directories as they were looked into last."""

    def __init__(self, read: Read) -> None:
        self._read = read
        self._seen: OrderedDict[bytes, dict[bytes, Entry]] = OrderedDict()

    def _part(self, part: bytes) -> dict[bytes, Entry]:
        known = self._seen.get(part)
        if known is None:
            known = {entry.name: entry for entry in decode_part(self._read(part), part)}
            self._seen[part] = known
            if len(self._seen) > PARTS_CACHED_MAX:
                self._seen.popitem(last=False)
        else:
            self._seen.move_to_end(part)
        return known

    def find(self, base: bytes, name: bytes) -> Entry | None:
        """*name* in the directory of the parts *base*, which are in order of names."""
        low, high = 0, len(base) // DIGEST_BYTES
        while low < high:
            middle = (low + high) // 2
            entries = self._part(base[middle * DIGEST_BYTES : (middle + 1) * DIGEST_BYTES])
            if name in entries:
                return entries[name]
            if not entries or name < next(iter(entries)):
                high = middle
            else:
                low = middle + 1
        return None
