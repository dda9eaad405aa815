"""What a seed still has to do, kept in a scratch file beside the index, so that memory does not grow with the tree.

One table outlives a kill: ``partial``, the large files of ours that stand in the tree unfinished. All else is made anew
by the next run. A power cut may damage the file; then it is thrown away, and a partial file counts as any other file.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import apsw

_SCHEMA: Final = """
DROP TABLE IF EXISTS wanted;
DROP TABLE IF EXISTS first;
DROP TABLE IF EXISTS further;
DROP TABLE IF EXISTS extra;
CREATE TABLE wanted(
  local INTEGER PRIMARY KEY, source INTEGER, tree TEXT, path BLOB, size INTEGER, mtime_ns INTEGER,
  needs INTEGER, done INTEGER);
CREATE TABLE first(source INTEGER PRIMARY KEY, local INTEGER);
CREATE TABLE further(id INTEGER PRIMARY KEY, local INTEGER, tree TEXT, path BLOB);
CREATE TABLE extra(
  id INTEGER PRIMARY KEY, tree TEXT, path BLOB, top INTEGER, size INTEGER, mtime_ns INTEGER, used INTEGER);
CREATE INDEX extra_like ON extra(size, mtime_ns) WHERE size > 0;
CREATE TABLE IF NOT EXISTS partial(tree TEXT, path BLOB, PRIMARY KEY(tree, path));
PRAGMA user_version = 1;
"""


class Wanted(NamedTuple):
    """A file whose content is to come: its row here, the source's token, and where it goes."""

    local: int
    source: int
    tree: str
    path: bytes
    size: int


class Extra(NamedTuple):
    """Something this machine has and the listing has not."""

    id: int
    tree: str
    path: bytes


class SeedBook:
    """One seed's notes. All calls from one thread."""

    def __init__(self, file: Path) -> None:
        self._file = file
        try:
            self._connection = _opened(file)
        except (apsw.NotADBError, apsw.CorruptError):
            self._remove()
            self._connection = _opened(file)
        self._execute: Any = self._connection.cursor().execute
        self.partial: Final[set[tuple[str, bytes]]] = set(self._execute("SELECT tree, path FROM partial"))
        self._execute("BEGIN")

    def save(self) -> None:
        """What was noted survives a kill of this process."""
        self._execute("COMMIT; BEGIN")

    def finish(self) -> None:
        """The seed is complete: nothing of it is needed any more."""
        self.close()
        self._remove()

    def close(self) -> None:
        self._execute("COMMIT")
        self._connection.close()

    def _remove(self) -> None:
        for suffix in ("", "-wal", "-shm"):
            self._file.with_name(self._file.name + suffix).unlink(missing_ok=True)

    # -- contents ------------------------------------------------------------------------------------------------------

    def want(self, wanted: Wanted, mtime_ns: int, needs_bytes: int) -> None:
        """*needs_bytes*: what it takes on disk, holes left out."""
        self._execute("INSERT INTO wanted VALUES(?, ?, ?, ?, ?, ?, ?, 0)", (*wanted, mtime_ns, needs_bytes))

    def wanted_after(self, local: int, limit: int) -> list[Wanted]:
        """Files not done, by their row here, that follow *local*."""
        rows = self._execute(
            "SELECT local, source, tree, path, size FROM wanted WHERE local > ? AND done = 0 ORDER BY local LIMIT ?",
            (local, limit),
        )
        return [Wanted._make(row) for row in rows]

    def wanted_sums(self) -> list[tuple[str, int, int]]:
        """(tree, files, bytes on disk) still to come."""
        return list(self._execute("SELECT tree, count(*), sum(needs) FROM wanted WHERE done = 0 GROUP BY tree"))

    def done(self, wanted: Wanted) -> None:
        self._execute("UPDATE wanted SET done = 1 WHERE local = ?", (wanted.local,))

    def add_partial(self, wanted: Wanted) -> None:
        self.partial.add((wanted.tree, wanted.path))
        self._execute("INSERT OR IGNORE INTO partial VALUES(?, ?)", (wanted.tree, wanted.path))
        self.save()

    def drop_partial(self, wanted: Wanted) -> None:
        self.partial.discard((wanted.tree, wanted.path))
        self._execute("DELETE FROM partial WHERE tree = ? AND path = ?", (wanted.tree, wanted.path))

    # -- names ---------------------------------------------------------------------------------------------------------

    def first(self, source: int) -> int | None:
        """The row of a file with several names, when one of them was seen."""
        row = self._execute("SELECT local FROM first WHERE source = ?", (source,)).fetchone()
        return None if row is None else row[0]

    def set_first(self, source: int, local: int) -> None:
        self._execute("INSERT INTO first VALUES(?, ?)", (source, local))

    def add_further(self, local: int, tree: str, path: bytes) -> None:
        """*path* is to become a further name of the file *local*."""
        self._execute("INSERT INTO further VALUES(NULL, ?, ?, ?)", (local, tree, path))

    def further_after(self, number: int, limit: int) -> list[tuple[int, int, str, bytes]]:
        """(number, local, tree, path)"""
        sql = "SELECT id, local, tree, path FROM further WHERE id > ? ORDER BY id LIMIT ?"
        return list(self._execute(sql, (number, limit)))

    # -- extras --------------------------------------------------------------------------------------------------------

    def add_extra(self, tree: str, path: bytes, *, top: bool, size: int, mtime_ns: int) -> None:
        """*top*: to be moved aside itself; else it stands in something that is. Size 0: no content to reuse."""
        self._execute("INSERT INTO extra VALUES(NULL, ?, ?, ?, ?, ?, 0)", (tree, path, top, size, mtime_ns))

    def alike_after(self, local: int, limit: int) -> list[tuple[Wanted, Extra]]:
        """Wanted files, and unused extras of the same size and modification time in the same tree."""
        rows = self._execute(
            "SELECT local, source, wanted.tree, wanted.path, wanted.size, extra.id, extra.tree, extra.path "
            "FROM wanted JOIN extra ON extra.size = wanted.size AND extra.mtime_ns = wanted.mtime_ns "
            "AND extra.tree = wanted.tree AND used = 0 "
            "WHERE done = 0 AND wanted.size > 0 AND local > ? ORDER BY local LIMIT ?",
            (local, limit),
        )
        return [(Wanted._make(row[:5]), Extra._make(row[5:])) for row in rows]

    def use_extra(self, extra: Extra) -> None:
        self._execute("UPDATE extra SET used = 1 WHERE id = ?", (extra.id,))

    def tops(self) -> Iterator[Extra]:
        """Extras to be moved aside."""
        last = 0
        while rows := list(
            self._execute(
                "SELECT id, tree, path FROM extra WHERE top = 1 AND used = 0 AND id > ? ORDER BY id LIMIT 1000", (last,)
            )
        ):
            last = rows[-1][0]
            yield from map(Extra._make, rows)


def _opened(file: Path) -> apsw.Connection:
    connection = apsw.Connection(str(file))
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = OFF")
    connection.execute(_SCHEMA)
    return connection
