"""The catalog: which content lies where, as the index objects say it, in SQLite on this machine.

A copy of what the store holds, made again when it is lost. With a file it outlives the process, so that only new index
objects are fetched; without, it is in memory.

``state`` of a pack: *good*; *doomed* (in a trash object: readable, but a writer must not count on it); *gone* (missing
in the store, or of another size: a writer stores its contents anew). ``losses`` counts how often contents stopped
being good: what was known as stored before such a moment has to be looked up again.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path
from typing import Final, NamedTuple

import apsw

from holdfast.changes.digest import DIGEST_BYTES
from holdfast.errors import NoSpace
from holdfast.files import PRIVATE
from holdfast.vault.faults import VaultBusy, VaultDamaged
from holdfast.vault.objects import HEAD_BYTES, TAIL_BYTES, Block, Codec, Directory, PackEntry
from holdfast.vault.port import Backend, ObjectMissing

SCHEMA_VERSION: Final = 1
BUSY_MILLISECONDS: Final = 5_000
TAIL_READ_BYTES: Final = 256 * 1024
"""Read from the end of a pack in the first go: most directories are smaller."""
SYNC_ATTEMPTS_MAX: Final = 3
"""A prune may delete an index object between our listing and our reading it."""

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS fact (key TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS index_object (name TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS pack (
    number INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, size INTEGER NOT NULL, state INTEGER NOT NULL,
    blocks_at INTEGER NOT NULL, indexed INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS block (
    pack INTEGER, number INTEGER, at INTEGER NOT NULL, sealed_bytes INTEGER NOT NULL, contents INTEGER NOT NULL,
    plain_bytes INTEGER NOT NULL, PRIMARY KEY (pack, number)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS content (
    id BLOB, pack INTEGER, block INTEGER NOT NULL, at INTEGER NOT NULL, length INTEGER NOT NULL,
    PRIMARY KEY (id, pack)) WITHOUT ROWID;
"""


class PackState(IntEnum):
    GOOD = 0
    DOOMED = 1
    GONE = 2


class Pack(NamedTuple):
    number: int
    name: str
    size: int
    state: PackState


class BlockPlace(NamedTuple):
    """One block: *at* and *sealed_bytes* in its pack."""

    pack: str
    number: int
    at: int
    sealed_bytes: int


class Place(NamedTuple):
    """Where a content lies: *at* and *length* in the plain block."""

    block: BlockPlace
    at: int
    length: int


class Catalog:
    """One vault's catalog. For one thread."""

    def __init__(self, vault: str, path: Path | None = None) -> None:
        self.path = path
        try:
            self._open(vault, path)
        except (apsw.NotADBError, apsw.CorruptError):
            if path is None:
                raise
            for suffix in ("", "-wal", "-shm"):
                path.with_name(path.name + suffix).unlink(missing_ok=True)
            self._open(vault, path)
        except (apsw.BusyError, apsw.CantOpenError) as error:
            raise _in_use(error) from None
        self._seen_version = -1
        self._forget_seen()
        self.problems: list[VaultDamaged] = []
        """Index, trash and pack objects that could not be read in the last :meth:`sync`."""

    def _open(self, vault: str, path: Path | None) -> None:
        if path is not None:  # it names files, and which contents are the same
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, PRIVATE))
        self.db = apsw.Connection(str(path) if path else ":memory:")
        self.db.set_busy_timeout(BUSY_MILLISECONDS)
        self.db.execute("PRAGMA synchronous = OFF" if path is None else "PRAGMA journal_mode = WAL")
        self.db.execute("PRAGMA cache_size = -32768")
        if self._version() not in (0, SCHEMA_VERSION) or self._other_vault(vault):
            self._drop_everything()
        self.db.execute(_SCHEMA)
        self.db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        if self.db.execute("SELECT value FROM fact WHERE key = 'vault'").get is None:
            self.db.execute("INSERT INTO fact VALUES ('vault', ?)", (vault,))

    def _version(self) -> int:
        return int(self.db.pragma("user_version") or 0)

    def _other_vault(self, vault: str) -> bool:
        if not self._version():
            return False
        known = self.db.execute("SELECT value FROM fact WHERE key = 'vault'").get
        return known is not None and known != vault

    def _drop_everything(self) -> None:
        names = self.db.execute("SELECT name FROM sqlite_schema WHERE type = 'table'").fetchall()
        for (name,) in names:
            self.db.execute(f'DROP TABLE "{name}"')

    def close(self) -> None:
        self.db.close()

    def hold_less(self) -> None:
        """A quarter of the pages in memory; the others are the kernel's to keep."""
        self.db.execute("PRAGMA cache_size = -8192")

    def take_over(self, other: Catalog) -> None:
        """Be a copy of *other*; what stood here is gone."""
        with self.db.backup("main", other.db, "main") as copy:
            copy.step()
        self._forget_seen()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing; VaultBusy when another process is in one."""
        try:
            self.db.execute("BEGIN IMMEDIATE")
        except apsw.BusyError as error:
            raise _in_use(error) from None
        self._forget_seen()
        try:
            yield
            self.db.execute("COMMIT")
        except apsw.FullError as error:
            self._roll_back()
            hint = "Free space where the vault's cache file is, then repeat."
            raise NoSpace(f"the vault's cache cannot be written ({error})", hint=hint) from None
        except BaseException:
            self._roll_back()
            raise

    def _roll_back(self) -> None:
        self._forget_seen()
        if self.db.in_transaction:  # SQLite itself rolls back when a disk is full
            self.db.execute("ROLLBACK")

    # -- bringing it up to the store ---------------------------------------------------------------------------------

    def sync(self, backend: Backend, codec: Codec) -> None:
        """Make this the store's state. Damaged objects are named in ``problems``, and what other objects say of the
        same packs counts. Raises what the backend raises."""
        for attempt in range(SYNC_ATTEMPTS_MAX):
            try:
                with self.transaction():
                    self._sync(backend, codec)
                return
            except ObjectMissing:
                if attempt + 1 == SYNC_ATTEMPTS_MAX:
                    raise

    def _sync(self, backend: Backend, codec: Codec) -> None:
        self.problems = []
        # In this order: what was marked is known before it can be deleted, so that it never looks good; and a pack is
        # there before its index object is, so that none looks missing which only is new.
        doomed = self._doomed(backend, codec)
        listed = {found.name for found in backend.list("index/")}
        packs = {found.name: found.size for found in backend.list("packs/")}
        known = {name for (name,) in self.db.execute("SELECT name FROM index_object")}
        if known - listed:
            self._forget()
            known = set()
        for name in sorted(listed - known):
            try:
                for entry in codec.open_index(backend.get(name), name):
                    self.add(entry, indexed=True)
            except VaultDamaged as error:
                self.problems.append(error)
            else:
                self.db.execute("INSERT INTO index_object VALUES (?)", (name,))
        for name in sorted(packs.keys() - {pack.name for pack in self.packs()}):
            try:
                self.add(read_directory(backend, codec, name, packs[name]), indexed=False)
            except VaultDamaged as error:
                self.problems.append(error)
        self._judge(packs, doomed)

    def _doomed(self, backend: Backend, codec: Codec) -> set[str]:
        doomed: set[str] = set()
        for found in backend.list("trash/"):
            try:
                doomed.update(codec.open_trash(backend.get(found.name), found.name))
            except VaultDamaged as error:
                self.problems.append(error)
            except ObjectMissing:
                continue  # swept meanwhile
        return doomed

    def _judge(self, packs: dict[str, int], doomed: set[str]) -> None:
        for pack in list(self.packs()):
            if packs.get(pack.name) != pack.size:
                state = PackState.GONE
            else:
                state = PackState.DOOMED if pack.name in doomed else PackState.GOOD
            if state != pack.state:
                self.db.execute("UPDATE pack SET state = ? WHERE number = ?", (state, pack.number))
                self._packs_seen.pop(pack.number, None)
                if state is not PackState.GOOD:
                    self._lose()

    def _forget(self) -> None:
        for table in ("index_object", "pack", "block", "content"):
            self.db.execute(f"DELETE FROM {table}")
        self._forget_seen()
        self._lose()

    def _lose(self) -> None:
        self.db.execute("INSERT OR REPLACE INTO fact VALUES ('losses', ?)", (self.losses + 1,))

    @property
    def losses(self) -> int:
        return self.number("losses")

    def number(self, key: str) -> int:
        """A number kept under *key*; 0 when there is none."""
        return int(self.db.execute("SELECT value FROM fact WHERE key = ?", (key,)).get or 0)

    def set_number(self, key: str, value: int) -> None:
        self.db.execute("INSERT OR REPLACE INTO fact VALUES (?, ?)", (key, value))

    def text(self, key: str) -> str:
        """A text kept under *key*; empty when there is none."""
        return str(self.db.execute("SELECT value FROM fact WHERE key = ?", (key,)).get or "")

    def set_text(self, key: str, value: str) -> None:
        self.db.execute("INSERT OR REPLACE INTO fact VALUES (?, ?)", (key, value))

    def add(self, entry: PackEntry, *, indexed: bool) -> None:
        """Take up one pack. An indexed one that is known already is marked so. Raises VaultDamaged."""
        _check_entry(entry)
        known = self.db.execute("SELECT number FROM pack WHERE name = ?", (entry.pack,)).get
        if known is not None:
            if indexed:
                self.db.execute("UPDATE pack SET indexed = 1 WHERE number = ?", (known,))
            return
        self.db.execute(
            "INSERT INTO pack (name, size, state, blocks_at, indexed) VALUES (?, ?, ?, ?, ?)",
            (entry.pack, entry.size, PackState.GOOD, entry.directory.blocks_at, indexed),
        )
        number = self.db.last_insert_rowid()
        self._packs_seen[number] = Pack(number, entry.pack, entry.size, PackState.GOOD)
        self.db.executemany("INSERT INTO block VALUES (?, ?, ?, ?, ?, ?)", _block_rows(number, entry))
        self.db.executemany("INSERT INTO content VALUES (?, ?, ?, ?, ?)", _content_rows(number, entry))

    def took_index(self, name: str, entries: Iterable[PackEntry]) -> None:
        """The index object *name* was written, and says *entries*."""
        self.db.execute("INSERT OR IGNORE INTO index_object VALUES (?)", (name,))
        self.db.executemany("UPDATE pack SET indexed = 1 WHERE name = ?", [(entry.pack,) for entry in entries])

    # -- questions ---------------------------------------------------------------------------------------------------

    def has(self, content_id: bytes) -> bool:
        """Whether a writer may count on it."""
        return any(self._pack(number).state is PackState.GOOD for number, _, _, _ in self._rows(content_id))

    def places(self, content_id: bytes) -> list[Place]:
        """Everywhere it lies, good packs first; those that are gone are left out."""
        found = [
            (self._pack(pack).state, pack, Place(self._block(pack, block), at, length))
            for pack, block, at, length in self._rows(content_id)
            if self._pack(pack).state is not PackState.GONE
        ]
        if len(found) > 1:
            found.sort()
        return [place for _, _, place in found]

    def length(self, content_id: bytes) -> int | None:
        """In bytes; None when it is nowhere."""
        for pack, _, _, length in self._rows(content_id):
            if self._pack(pack).state is not PackState.GONE:
                return length
        return None

    def known_length(self, content_id: bytes) -> int | None:
        """The same, also of one that was in packs that are gone."""
        return next((length for _, _, _, length in self._rows(content_id)), None)

    def _rows(self, content_id: bytes) -> list[tuple[int, int, int, int]]:
        version = self.db.data_version()
        if version != self._seen_version:  # another process wrote to the file
            self._seen_version = version
            self._forget_seen()
        sql = "SELECT pack, block, at, length FROM content WHERE id = ?"
        return self.db.execute(sql, (content_id,)).fetchall()  # type: ignore[return-value, unused-ignore]

    def _pack(self, number: int) -> Pack:
        """From memory: joining the tables for each content took four times as long."""
        if number not in self._packs_seen:
            self._packs_seen.update((pack.number, pack) for pack in self.packs())
        return self._packs_seen[number]

    def _block(self, pack: int, number: int) -> BlockPlace:
        if (pack, 0) not in self._blocks_seen:
            places = self.blocks_of(self._pack(pack))
            self._blocks_seen.update(((pack, place.number), place) for place in places)
        return self._blocks_seen[pack, number]

    def _forget_seen(self) -> None:
        self._packs_seen: dict[int, Pack] = {}
        self._blocks_seen: dict[tuple[int, int], BlockPlace] = {}

    def packs(self) -> Iterator[Pack]:
        for number, name, size, state in self.db.execute("SELECT number, name, size, state FROM pack ORDER BY number"):
            yield Pack(number, name, size, PackState(state))

    def plain_bytes(self, pack: Pack) -> int:
        return int(self.db.execute("SELECT sum(plain_bytes) FROM block WHERE pack = ?", (pack.number,)).get or 1)

    def knows_index(self, name: str) -> bool:
        return self.db.execute("SELECT 1 FROM index_object WHERE name = ?", (name,)).get is not None

    def contents_of(self, pack: int) -> Iterator[tuple[bytes, int, int, int]]:
        """(id, block, at, length) of one pack's contents, in their order there."""
        sql = "SELECT id, block, at, length FROM content WHERE pack = ? ORDER BY block, at"
        yield from self.db.execute(sql, (pack,))

    def blocks_of(self, pack: Pack) -> list[BlockPlace]:
        sql = "SELECT number, at, sealed_bytes FROM block WHERE pack = ? ORDER BY number"
        return [BlockPlace(pack.name, *row) for row in self.db.execute(sql, (pack.number,))]

    def entry(self, pack: Pack) -> PackEntry:
        """What the index would say of it."""
        blocks_at = self.db.execute("SELECT blocks_at FROM pack WHERE number = ?", (pack.number,)).get
        rows = self.db.execute(
            "SELECT sealed_bytes, plain_bytes, contents FROM block WHERE pack = ? ORDER BY number", (pack.number,)
        )
        blocks = tuple(Block(*row) for row in rows)
        contents = list(self.contents_of(pack.number))
        ids = b"".join(row[0] for row in contents)
        return PackEntry(pack.name, pack.size, Directory(blocks_at, blocks, ids, tuple(row[3] for row in contents)))

    def unindexed(self) -> list[PackEntry]:
        """Packs that are in no index object: left by an interrupted backup, or their index object is lost."""
        unindexed = {number for (number,) in self.db.execute("SELECT number FROM pack WHERE indexed = 0")}
        return [self.entry(pack) for pack in self.packs() if pack.number in unindexed and pack.state is PackState.GOOD]


def read_directory(backend: Backend, codec: Codec, name: str, size: int) -> PackEntry:
    """What the pack *name* says of itself. Raises VaultDamaged, ObjectMissing."""
    head = backend.get(name, 0, HEAD_BYTES)
    start = max(size - TAIL_READ_BYTES, 0)
    end = backend.get(name, start)
    length = int.from_bytes(end[-TAIL_BYTES:], "big")
    if length > size or len(end) < TAIL_BYTES:
        raise VaultDamaged(f"{name}: it is cut short", name=name)
    if length + TAIL_BYTES > len(end):
        end = backend.get(name, size - TAIL_BYTES - length)
    return PackEntry(name, size, codec.open_directory(head, end[-TAIL_BYTES - length : -TAIL_BYTES], name))


def _in_use(error: apsw.Error) -> VaultBusy:
    hint = "Wait for the other command, or give this one a cache of its own."
    return VaultBusy(f"the vault's cache file is in use, or cannot be opened ({error})", hint=hint)


def _block_rows(pack: int, entry: PackEntry) -> Iterator[tuple[int, int, int, int, int, int]]:
    at = entry.directory.blocks_at
    for number, block in enumerate(entry.directory.blocks):
        yield pack, number, at, block.sealed_bytes, block.contents, block.plain_bytes
        at += block.sealed_bytes


def _content_rows(pack: int, entry: PackEntry) -> Iterator[tuple[bytes, int, int, int, int]]:
    lengths = entry.directory.lengths
    number = 0
    for block_number, block in enumerate(entry.directory.blocks):
        at = 0
        for _ in range(block.contents):
            yield entry.directory.id_at(number), pack, block_number, at, lengths[number]
            at += lengths[number]
            number += 1


def _check_entry(entry: PackEntry) -> None:
    """Somebody with the writer key may have made it: a directory that contradicts itself must not get in."""
    directory = entry.directory
    counts = [block.contents for block in directory.blocks]
    ids = {directory.id_at(number) for number in range(len(directory.lengths))}
    sound = (
        len(directory.ids) == DIGEST_BYTES * len(directory.lengths) == DIGEST_BYTES * len(ids)
        and min(counts, default=1) > 0
        and sum(counts) == len(directory.lengths)
        and min(directory.lengths, default=1) > 0
        and sum(directory.lengths) == sum(block.plain_bytes for block in directory.blocks)
    )
    if not sound:
        raise VaultDamaged(f"{entry.pack}: its directory contradicts itself", name=entry.pack)
