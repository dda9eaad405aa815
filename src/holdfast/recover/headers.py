"""What messages' headers say, and how folders changed, remembered by content: in SQLite, for the next search."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import apsw
import msgspec
from msgspec import Struct

from holdfast.files import PRIVATE
from holdfast.mail import headers, stored
from holdfast.mail.headers import HEADER_BYTES_MAX, Envelope
from holdfast.mail.mailboxes import Format
from holdfast.mail.stored import Unreadable
from holdfast.recover.messages import Stored
from holdfast.vault.faults import VaultDamaged
from holdfast.vault.record import Read, split_ids

SCHEMA_VERSION: Final = 1
BUSY_MILLISECONDS: Final = 2_000
COMMIT_EVERY: Final = 5_000
"""Things read anew between two commits: a search broken off keeps what it read."""
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS header (identity BLOB PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS item (identity BLOB PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS turn (identity BLOB PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
"""


_SELECT: Final = {table: f"SELECT value FROM {table} WHERE identity = ?" for table in ("header", "item", "turn")}


class Header(Struct, frozen=True, array_like=True):
    """Of one message. *received_s*: what its own file says (dbox); None: the file's time counts. *problem*: why the
    rest is empty."""

    envelope: Envelope
    received_s: int | None = None
    problem: str = ""


_encode: Final = msgspec.msgpack.Encoder().encode
_decoder: Final = msgspec.msgpack.Decoder(Header)


class Headers:
    """The cache. *path*: its file; without one it is in memory, as when another search has it."""

    def __init__(self, path: Path | None = None) -> None:
        self.read_total = 0
        """Headers that were not remembered and had to be read."""
        self._kept = 0
        try:
            self._open(path)
        except (apsw.BusyError, apsw.CantOpenError, apsw.ReadOnlyError, OSError):
            self._open(None)
        except (apsw.NotADBError, apsw.CorruptError):
            assert path is not None
            for suffix in ("", "-wal", "-shm"):
                path.with_name(path.name + suffix).unlink(missing_ok=True)
            self._open(path)

    def _open(self, path: Path | None) -> None:
        if path is not None:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, PRIVATE))
        self.db = apsw.Connection(str(path) if path else ":memory:")
        self.db.set_busy_timeout(BUSY_MILLISECONDS)
        self.db.execute("PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; PRAGMA cache_size = -32768")
        if self.db.pragma("user_version") not in (0, SCHEMA_VERSION):
            self.db.execute("; ".join(f"DROP TABLE IF EXISTS {table}" for table in ("header", "item", "turn")))
        self.db.execute(_SCHEMA)
        self.db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}; BEGIN IMMEDIATE")

    def close(self) -> None:
        self.db.execute("COMMIT")
        self.db.close()

    def header(self, form: Format, found: Stored, read: Read) -> Header:
        """Of a message; what is damaged gives a header with a problem, which is not remembered. Raises WrongKey."""
        identity = found.identity
        known = self.recall("header", identity)
        if known is not None:
            return _decoder.decode(known)
        try:
            header = _read(form, found, read)
        except VaultDamaged as error:
            return Header(Envelope(), problem=error.message)
        self.read_total += 1
        self.keep("header", identity, _encode(header))
        return header

    def recall(self, table: str, identity: bytes) -> bytes | None:
        return self.db.execute(_SELECT[table], (identity,)).get  # type: ignore[no-any-return, unused-ignore]

    def keep(self, table: str, identity: bytes, value: bytes) -> None:
        self.db.execute(f"INSERT OR REPLACE INTO {table} VALUES (?, ?)", (identity, value))
        self._kept += 1
        if self._kept % COMMIT_EVERY == 0:
            self.db.execute("COMMIT; BEGIN IMMEDIATE")


def _read(form: Format, found: Stored, read: Read) -> Header:
    if form is Format.MAILDIR:
        ids = split_ids(found.content)
        beginning: bytes | Unreadable = read(ids[0]) if ids else b""
        received_s = None
    else:
        raw = found.raw(read)
        part = stored.dbox_message(b"2 M1e C0\n" + raw if found.length else raw)
        beginning = part if isinstance(part, Unreadable) else part.stored
        received_s = None if isinstance(part, Unreadable) else part.received_s
    plain = beginning if isinstance(beginning, Unreadable) else stored.plain(beginning, HEADER_BYTES_MAX)
    if isinstance(plain, Unreadable):
        return Header(Envelope(), received_s, plain.reason)
    return Header(headers.envelope(plain), received_s)
