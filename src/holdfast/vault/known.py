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


def unchanged(known: KnownEntry, status: os.stat_result) -> bool:
    """For a file or a link: whether *status* is that of what was seen."""
    entry = known.entry
    return (
        known.ctime_ns == status.st_ctime_ns
        and known.ino == status.st_ino
        and entry.meta.mtime_ns == status.st_mtime_ns
        and (entry.kind is EntryKind.SYMLINK or entry.size == status.st_size)
    )
