"""What the last backup of this machine saw, so that files that did not change are not read again.

One row a directory, in the catalog's file. A row counts only when the snapshot it was made for was written, and while
everything stored then is still good (``Catalog.losses``).

Invariant: an entry is only kept when the file's ctime was settled before it was read; a file written to in the same
tick of the clock would otherwise pass as unchanged.
"""

from __future__ import annotations

import os
from typing import Final

import msgspec
from msgspec import Struct

from holdfast.changes.exchange import EntryKind
from holdfast.changes.names import Incarnation, Position, Sequence
from holdfast.vault.catalog import Catalog
from holdfast.vault.record import Entry

SETTLED_NS: Final = 2_000_000_000
"""Coarser than any filesystem's timestamps that mail is kept on (FAT has 2 s)."""

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS known (tree TEXT, path BLOB, seen BLOB NOT NULL, PRIMARY KEY (tree, path)) WITHOUT ROWID;
"""


class KnownEntry(Struct, frozen=True, array_like=True):
    """An entry with what tells whether it is still true."""

    ino: int
    ctime_ns: int
    entry: Entry
    digest: bytes = b""
    """Of a file's bytes, as the tree index knows them; empty: by a scan, which did not ask it."""


class KnownDirectory(Struct, frozen=True, array_like=True):
    """*parts*: the directory's content, when nothing in or below it changed."""

    parts: bytes
    entries: tuple[KnownEntry, ...]


_encode: Final = msgspec.msgpack.Encoder().encode
_decoder: Final = msgspec.msgpack.Decoder(KnownDirectory)


class Known:
    """The table of one catalog. Changes are part of the caller's transaction."""

    def __init__(self, catalog: Catalog) -> None:
        self._db = catalog.db
        self._db.execute(_SCHEMA)
        if catalog.number("known_losses") != catalog.losses:
            self._db.execute("DELETE FROM known")

    def directory(self, tree: str, path: bytes) -> KnownDirectory | None:
        seen = self._db.execute("SELECT seen FROM known WHERE tree = ? AND path = ?", (tree, path)).get
        return None if seen is None else _decoder.decode(seen)  # type: ignore[arg-type, unused-ignore]

    def keep(self, tree: str, path: bytes, directory: KnownDirectory) -> None:
        self._db.execute("INSERT OR REPLACE INTO known VALUES (?, ?, ?)", (tree, path, _encode(directory)))

    def forget_below(self, tree: str, path: bytes) -> None:
        """A directory is gone, with all below."""
        sql = "DELETE FROM known WHERE tree = ? AND (path = ? OR path > ? AND path < ?)"
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
        return self._db.execute("SELECT 1 FROM known WHERE tree = ? AND path = ?", (tree, path)).get is not None

    def move(self, tree: str, moves: list[tuple[bytes, bytes | None]]) -> None:
        """Directories stand elsewhere, with all below: (path now, path before or None: it was not there), those above
        before those below. What was known of the paths they stand at now is forgotten."""
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
        sql = f"UPDATE known SET tree = ?, path = cast(? || {rest} AS BLOB) WHERE {where}"
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
