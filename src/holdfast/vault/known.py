"""What the last backup of this machine saw, so that files that did not change are not read again.

One row a directory, in the catalog's file, in columns: a folder has hundreds of messages, of which few change, and only
those are decoded and encoded again. A row counts only when the snapshot it was made for was written, and while
everything stored then is still good (``Catalog.losses``).

Invariant: an entry is only kept when the file's ctime was settled before it was read; a file written to in the same
tick of the clock would otherwise pass as unchanged.
"""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Callable
from typing import Any, Final, cast

import msgspec
from msgspec import Struct

from holdfast.changes.exchange import EntryKind
from holdfast.changes.names import Incarnation, Position, Sequence
from holdfast.vault.catalog import Catalog
from holdfast.vault.record import Entry, encode_entry, encoded_array, encoded_parts, ends_part

SETTLED_NS: Final = 2_000_000_000
"""Coarser than any filesystem's timestamps that mail is kept on (FAT has 2 s)."""

_SCHEMA: Final = """
DROP TABLE IF EXISTS known;
CREATE TABLE IF NOT EXISTS seen (tree TEXT, path BLOB, row BLOB NOT NULL, PRIMARY KEY (tree, path)) WITHOUT ROWID;
"""
"""``known`` held rows of another shape: a machine that has some reads its files once more."""


class KnownEntry(Struct, frozen=True, array_like=True):
    """An entry with what tells whether it is still true."""

    ino: int
    ctime_ns: int
    entry: Entry
    digest: bytes = b""
    """Of a file's bytes, as the tree index knows them; empty: by a scan, which did not ask it."""


class _Seen(Struct, frozen=True, array_like=True):
    """What a KnownEntry says beside its entry."""

    ino: int
    ctime_ns: int
    digest: bytes = b""


_encode: Final = msgspec.msgpack.Encoder().encode
_decode_entry: Final = msgspec.msgpack.Decoder(Entry).decode
_decode_entries: Final = msgspec.msgpack.Decoder(list[Entry]).decode
_decode_seen: Final = msgspec.msgpack.Decoder(_Seen).decode
_decode_all_seen: Final = msgspec.msgpack.Decoder(list[_Seen]).decode


class KnownDirectory(Struct, array_like=True):
    """One directory. *parts*: its content, when nothing in or below it changed. The columns are in order of names."""

    parts: bytes = b""
    names: list[bytes] = []
    ends: bytearray = msgspec.field(default_factory=bytearray)
    """Of each name, whether it ends a part: 1 or 0."""
    entries: list[bytes] = []
    """Encoded as they stand in parts."""
    seen: list[bytes] = []

    def entry(self, name: bytes) -> KnownEntry | None:
        at = bisect_left(self.names, name)
        if at == len(self.names) or self.names[at] != name:
            return None
        seen = _decode_seen(self.seen[at])
        return KnownEntry(seen.ino, seen.ctime_ns, _decode_entry(self.entries[at]), seen.digest)

    def all(self) -> list[KnownEntry]:
        entries = _decode_entries(encoded_array(self.entries))
        seen = _decode_all_seen(encoded_array(self.seen))
        return [KnownEntry(one.ino, one.ctime_ns, entry, one.digest) for entry, one in zip(entries, seen, strict=True)]

    def put(self, known: KnownEntry) -> None:
        """Instead of what has its name, if anything."""
        name = known.entry.name
        at = bisect_left(self.names, name)
        if at == len(self.names) or self.names[at] != name:
            self.names.insert(at, name)
            self.ends.insert(at, ends_part(name))
            self.entries.insert(at, b"")
            self.seen.insert(at, b"")
        self.entries[at] = encode_entry(known.entry)
        self.seen[at] = _encode(_Seen(known.ino, known.ctime_ns, known.digest))

    def remove(self, name: bytes) -> None:
        at = bisect_left(self.names, name)
        if at < len(self.names) and self.names[at] == name:
            del self.names[at], self.ends[at], self.entries[at], self.seen[at]

    def written(self, write: Callable[[bytes], bytes]) -> bytes:
        """Its parts through *write*, which gives ids: the content, which is *parts* from now on."""
        self.parts = b"".join(map(write, encoded_parts(self.entries, self.ends)))
        return self.parts


_decode_row: Final = msgspec.msgpack.Decoder(KnownDirectory).decode


class Known:
    """The table of one catalog. Changes are part of the caller's transaction."""

    def __init__(self, catalog: Catalog, hold_bytes_max: int = 0) -> None:
        """*hold_bytes_max*: rows kept in memory, for who reads the same ones several times."""
        self._db = catalog.db
        self._held: dict[tuple[str, bytes], bytes] = {}
        self._room_bytes = hold_bytes_max
        self._db.execute(_SCHEMA)
        if catalog.number("known_losses") != catalog.losses:
            self._db.execute("DELETE FROM seen")

    def directory(self, tree: str, path: bytes) -> KnownDirectory | None:
        row = self._held.get((tree, path)) or self._row(tree, path)
        return None if row is None else _decode_row(row)

    def _row(self, tree: str, path: bytes) -> bytes | None:
        row: Any = self._db.execute("SELECT row FROM seen WHERE tree = ? AND path = ?", (tree, path)).get
        if row is not None and len(row) <= self._room_bytes:
            self._room_bytes -= len(row)
            self._held[tree, path] = row
        return cast("bytes | None", row)

    def keep(self, tree: str, path: bytes, directory: KnownDirectory) -> None:
        self._held.pop((tree, path), None)
        self._db.execute("INSERT OR REPLACE INTO seen VALUES (?, ?, ?)", (tree, path, _encode(directory)))

    def forget_below(self, tree: str, path: bytes) -> None:
        """A directory is gone, with all below."""
        self._held.clear()
        sql = "DELETE FROM seen WHERE tree = ? AND (path = ? OR path > ? AND path < ?)"
        self._db.execute(sql, (tree, path, path + b"/", path + b"0"))

    @property
    def position(self) -> Position | None:
        """Where in the log the rows stand; None: they were made by a scan."""
        value = self._db.execute("SELECT value FROM fact WHERE key = 'known_position'").get
        incarnation, _, sequence = str(value or "").partition(":")
        return Position(Incarnation(incarnation), Sequence(int(sequence))) if incarnation else None

    def stands_at(self, position: Position | None) -> None:
        value = f"{position.incarnation}:{position.sequence}" if position else ""
        self._db.execute("INSERT OR REPLACE INTO fact VALUES ('known_position', ?)", (value,))

    def has(self, tree: str, path: bytes) -> bool:
        """Whether a directory stood at *path*."""
        return self._db.execute("SELECT 1 FROM seen WHERE tree = ? AND path = ?", (tree, path)).get is not None

    def move(self, tree: str, moves: list[tuple[bytes, bytes | None]]) -> None:
        """Directories stand elsewhere, with all below: (path now, path before or None: it was not there), those above
        before those below. What was known of the paths they stand at now is forgotten."""
        self._held.clear()
        between = [f"{tree}\0{number}" for number in range(len(moves))]
        for number, (_, origin) in sorted(enumerate(moves), key=lambda move: -len(move[1][1] or b"")):
            if origin is not None:
                self._rename(tree, origin, between[number], b"")
        for number, (path, _) in enumerate(moves):
            self.forget_below(tree, path)
            self._rename(between[number], b"", tree, path)

    def _rename(self, tree: str, path: bytes, to_tree: str, to: bytes) -> None:
        where = "tree = ? AND (path = ? OR path > ? AND path < ?)" if path else "tree = ?"
        values = (tree, path, path + b"/", path + b"0") if path else (tree,)
        rest = "coalesce(substr(path, ?), x'')"
        sql = f"UPDATE seen SET tree = ?, path = cast(? || {rest} AS BLOB) WHERE {where}"
        self._db.execute(sql, (to_tree, to, len(path) + 1, *values))


def unchanged(known: KnownEntry, status: os.stat_result) -> bool:
    """For a file or a link: whether *status* is that of what was seen."""
    entry = known.entry
    return (
        known.ctime_ns == status.st_ctime_ns
        and known.ino == status.st_ino
        and entry.meta.mtime_ns == status.st_mtime_ns
        and (entry.kind is EntryKind.SYMLINK or entry.size == status.st_size)
    )
