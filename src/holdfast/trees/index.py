"""The tree index: for every protected path, what the log knows (see the package page for its invariants).

Tables: ``node`` (a file, directory or symlink), ``entry`` (a name in a directory), ``state`` (position, roots, totals).
A tree's root is a directory node named by the tree in the super-root 0.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from enum import IntEnum
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias

import apsw

from holdfast.changes.frame import CHAIN_START, Chain
from holdfast.changes.names import NO_INCARNATION, Epoch, Incarnation, Position, Sequence, TreeName
from holdfast.errors import HoldfastError, NoSpace

SCHEMA_VERSION: Final = 1
CACHE_KIB: Final = 64 * 1024
"""SQLite's page cache: the index's share of the agent's memory, whatever the number of files."""
DIRECTORIES_CACHED_MAX: Final = 50_000
"""Paths of directories kept in memory: about 10 MB."""
REMEMBERED_MAX: Final = 16_384
"""Names and nodes kept in memory, of those used last: the files that change with every message come by again and again.
About 20 MB; each mailbox in use takes some six."""
REMEMBERED_CONTENT_BYTES_MAX: Final = 1024
"""Digests of files up to 2 MiB."""
UNWRITTEN_MAX: Final = 4096
"""Rows updated in memory: about 3 MB. Those of large files are not kept."""
SUPER_ROOT: Final = 0

_SCHEMA: Final = f"""
CREATE TABLE IF NOT EXISTS node(
  id INTEGER PRIMARY KEY, kind INTEGER NOT NULL, handle BLOB, ino INTEGER NOT NULL, mode INTEGER NOT NULL,
  uid INTEGER NOT NULL, gid INTEGER NOT NULL, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL,
  ctime_ns INTEGER NOT NULL, content BLOB NOT NULL, xattrs BLOB NOT NULL);
CREATE UNIQUE INDEX IF NOT EXISTS node_handle ON node(handle) WHERE handle IS NOT NULL;
CREATE TABLE IF NOT EXISTS entry(
  parent INTEGER NOT NULL, name BLOB NOT NULL, node INTEGER NOT NULL, PRIMARY KEY(parent, name)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS entry_node ON entry(node);
CREATE TABLE IF NOT EXISTS state(key TEXT PRIMARY KEY, value) WITHOUT ROWID;
PRAGMA user_version = {SCHEMA_VERSION};
"""
_COLUMNS: Final = "id, kind, handle, ino, mode, uid, gid, size, mtime_ns, ctime_ns, content, xattrs"
_INSERT: Final = f"INSERT INTO node({_COLUMNS}) VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_ROWS: Final = (
    "SELECT entry.name, node.id, kind, ino, size, mtime_ns, ctime_ns "
    "FROM entry JOIN node ON node.id = entry.node WHERE parent = ? ORDER BY entry.name"
)
_UPDATE: Final = (  # without the handle: naming it would cost its index a deletion and an insertion
    "UPDATE node SET ino = ?, mode = ?, uid = ?, gid = ?, size = ?, mtime_ns = ?, ctime_ns = ?, content = ?, "
    "xattrs = ? WHERE id = ?"
)
_RESIGHT: Final = "UPDATE node SET handle = ?, ino = ?, ctime_ns = ? WHERE id = ?"
_NODE_COLUMNS: Final = ", ".join(f"node.{column}" for column in _COLUMNS.split(", "))


class IndexUnusable(HoldfastError):
    """The index file is damaged or of another version: it can be made anew by a scan."""


class NodeKind(IntEnum):
    DIRECTORY = 1
    FILE = 2
    SYMLINK = 3


class Node(NamedTuple):
    """One row of ``node``. ``content`` holds a file's block digests, or a symlink's target."""

    id: int
    kind: int
    handle: bytes | None
    ino: int
    mode: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    ctime_ns: int
    content: bytes
    xattrs: bytes
    """msgpack of the pairs (name, value), sorted; empty when there are none."""


Row: TypeAlias = tuple[bytes, int, int, int, int, int, int]
"""What tells a scan that a thing is unchanged: name, node id, kind, ino, size, mtime_ns, ctime_ns."""


class Totals(NamedTuple):
    """What the index holds: counts of nodes, and the sum of the files' sizes."""

    directories: int
    files: int
    symlinks: int
    bytes: int


class IndexReader:
    """Reads one consistent state of the index. :meth:`Index.reader` makes one that stays as it was."""

    def __init__(self, connection: apsw.Connection) -> None:
        self._connection = connection
        self._execute: Callable[..., Any] = connection.cursor().execute
        self._executemany: Callable[..., Any] = connection.cursor().executemany
        self._parents: dict[int, tuple[int, bytes]] = {}
        self._directories: dict[tuple[str, bytes], int] = {}

    # -- state ---------------------------------------------------------------------------------------------------------

    def _state(self, key: str, default: Any) -> Any:
        row = self._execute("SELECT value FROM state WHERE key = ?", (key,)).fetchone()
        return default if row is None else row[0]

    @property
    def chain(self) -> Chain:
        """The place in the log this index stands for; sequence 0 of NO_INCARNATION when it stands for none."""
        return Chain(
            Incarnation(self._state("incarnation", NO_INCARNATION)),
            Sequence(self._state("sequence", 0)),
            self._state("digest", CHAIN_START),
        )

    @property
    def position(self) -> Position:
        return self.chain.position

    @property
    def epoch(self) -> Epoch:
        return Epoch(self._state("epoch", 0))

    def totals(self) -> Totals:
        return Totals(*(self._state(key, 0) for key in ("directories", "files", "symlinks", "bytes")))

    # -- nodes and names -----------------------------------------------------------------------------------------------

    def node(self, node_id: int) -> Node | None:
        row = self._execute(f"SELECT {_COLUMNS} FROM node WHERE id = ?", (node_id,)).fetchone()
        return None if row is None else Node._make(row)

    def by_handle(self, handle: bytes) -> Node | None:
        row = self._execute(f"SELECT {_COLUMNS} FROM node WHERE handle = ?", (handle,)).fetchone()
        return None if row is None else Node._make(row)

    def child(self, parent: int, name: bytes) -> Node | None:
        """What *name* in the directory *parent* is."""
        node_id = self.child_id(parent, name)  # two statements: measured five times faster than their join
        return None if node_id is None else self.node(node_id)

    def child_id(self, parent: int, name: bytes) -> int | None:
        row = self._execute("SELECT node FROM entry WHERE parent = ? AND name = ?", (parent, name)).fetchone()
        return None if row is None else row[0]

    def children(self, parent: int) -> dict[bytes, Node]:
        """All names in a directory, in the order of their bytes."""
        rows = self._execute(
            f"SELECT entry.name, {_NODE_COLUMNS} FROM entry JOIN node ON node.id = entry.node WHERE parent = ? "
            "ORDER BY entry.name",
            (parent,),
        )
        return {row[0]: Node._make(row[1:]) for row in rows}

    def rows(self, parent: int) -> Iterator[Row]:
        """What a scan compares, of all names in a directory, in the order of their bytes. Do not change the index
        before the last one was taken."""
        rows: Iterator[Row] = self._execute(_ROWS, (parent,))
        return rows

    def directories_in(self, parent: int) -> list[int]:
        """The node ids of the directories in a directory."""
        rows = self._execute(
            "SELECT node.id FROM entry JOIN node ON node.id = entry.node WHERE parent = ? AND kind = 1", (parent,)
        )
        return [row[0] for row in rows]

    def has_children(self, parent: int) -> bool:
        return self._execute("SELECT 1 FROM entry WHERE parent = ? LIMIT 1", (parent,)).fetchone() is not None

    def names(self, node_id: int) -> list[tuple[int, bytes]]:
        """All (directory, name) of a node."""
        return list(self._execute("SELECT parent, name FROM entry WHERE node = ?", (node_id,)))

    def several_names(self) -> set[int]:
        """The nodes with more than one name: files with hard links."""
        return {node for (node,) in self._execute("SELECT node FROM entry GROUP BY node HAVING count(*) > 1")}

    def roots(self) -> dict[TreeName, int]:
        rows = self._execute("SELECT name, node FROM entry WHERE parent = ?", (SUPER_ROOT,))
        return {TreeName(name.decode()): node for name, node in rows}

    def walk(self, directory: int, prefix: bytes = b"") -> Iterator[tuple[bytes, Node]]:
        """Everything below *directory*, parents before children: (path, node). Reads a directory at a time."""
        pending = [(prefix, directory)]
        while pending:
            path, node_id = pending.pop()
            for name, node in self.children(node_id).items():
                child_path = path + b"/" + name if path else name
                yield child_path, node
                if node.kind == NodeKind.DIRECTORY:
                    pending.append((child_path, node.id))

    # -- paths ---------------------------------------------------------------------------------------------------------

    def _parent(self, directory: int) -> tuple[int, bytes] | None:
        known = self._parents.get(directory)
        if known is None:
            row = self._execute("SELECT parent, name FROM entry WHERE node = ?", (directory,)).fetchone()
            if row is None:
                return None
            if len(self._parents) >= DIRECTORIES_CACHED_MAX:
                self._parents.clear()
            known = self._parents[directory] = row
        return known

    def path(self, directory: int, name: bytes = b"") -> tuple[TreeName, bytes] | None:
        """The tree and path of *name* in *directory* (of the directory itself without); None when it has no name."""
        parts = [name] if name else []
        at = directory
        while True:
            above = self._parent(at)
            if above is None:
                return None
            if above[0] == SUPER_ROOT:
                return TreeName(above[1].decode()), b"/".join(reversed(parts))
            parts.append(above[1])
            at = above[0]

    def directory(self, tree: str, path: bytes) -> int | None:
        """The node id of the directory at *path* (``b""``: the tree's root)."""
        known = self._directories.get((tree, path))
        if known is not None:
            return known
        if path:
            above, _, name = path.rpartition(b"/")
            parent = self.directory(tree, above)
            node = None if parent is None else self.child(parent, name)
            node_id = node.id if node is not None and node.kind == NodeKind.DIRECTORY else None
        else:
            node_id = self.child_id(SUPER_ROOT, tree.encode())
        if node_id is not None:
            if len(self._directories) >= DIRECTORIES_CACHED_MAX:
                self._directories.clear()
            self._directories[tree, path] = node_id
        return node_id

    def at(self, tree: str, path: bytes) -> Node | None:
        """What stands at *path*."""
        if not path:
            root = self.directory(tree, b"")
            return None if root is None else self.node(root)
        above, _, name = path.rpartition(b"/")
        parent = self.directory(tree, above)
        return None if parent is None else self.child(parent, name)

    def forget_paths(self) -> None:
        """Drop the caches of paths: after a directory got another name or none."""
        self._parents.clear()
        self._directories.clear()

    def close(self) -> None:
        self._connection.close()


class Index(IndexReader):
    """The index, writable: one per agent. Every change is in the open transaction until :meth:`commit`."""

    def __init__(self, connection: apsw.Connection, file: Path) -> None:
        super().__init__(connection)
        self.file = file
        self._totals = list(super().totals())
        self._next_id: int = self._execute("SELECT coalesce(max(id), 0) + 1 FROM node").fetchone()[0]
        self._entries: dict[tuple[int, bytes], int | None] = {}
        """What is known to stand at a place (None: nothing), for as long as it is true."""
        self._nodes: dict[int, Node] = {}
        self._handles: dict[bytes, int | None] = {}
        """Whose a handle is (None: nobody's), for as long as it is true or its node shows that it is not."""
        self._unwritten: dict[int, Node] = {}
        """Rows to be updated: a file that changes with every message is written once a commit."""
        self._execute("BEGIN IMMEDIATE")

    @classmethod
    def open(cls, path: Path) -> Index:
        """Open or make the index file, mode 0600: it names everybody's mail. Raises IndexUnusable."""
        try:
            if str(path) != IN_MEMORY:
                _keep_private(path)
            connection = apsw.Connection(str(path))
            connection.set_busy_timeout(10_000)
            version = connection.pragma("user_version")
            if version not in (0, SCHEMA_VERSION):
                raise IndexUnusable(
                    f"the tree index {path} has version {version}, this program knows {SCHEMA_VERSION}",
                    hint="Move the file away: the next start makes a new one by a scan.",
                )
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
            connection.execute(_SCHEMA)
            return cls(connection, path)
        except (apsw.NotADBError, apsw.CorruptError) as error:
            raise IndexUnusable(
                f"the tree index {path} is damaged ({error})",
                hint="Move the file away: the next start makes a new one by a scan.",
            ) from error
        except apsw.FullError as error:
            raise _no_space(path) from error

    def reader(self) -> IndexReader:
        """The last committed state, which stays as it is for as long as the reader lives; usable in another thread."""
        connection = apsw.Connection(str(self.file), flags=apsw.SQLITE_OPEN_READONLY)
        connection.set_busy_timeout(10_000)
        connection.execute("BEGIN")
        connection.execute("SELECT count(*) FROM state").fetchone()
        return IndexReader(connection)

    def commit(self, chain: Chain, epoch: Epoch) -> None:
        """Everything since the last commit, and the place in the log it brought the trees to, durable together."""
        values: list[tuple[str, Any]] = [
            ("incarnation", chain.incarnation),
            ("sequence", int(chain.sequence)),
            ("digest", chain.digest),
            ("epoch", int(epoch)),
            *zip(("directories", "files", "symlinks", "bytes"), self._totals, strict=True),
        ]
        try:
            self._write()
            self._executemany("INSERT OR REPLACE INTO state VALUES(?, ?)", values)
            self._execute("COMMIT")
        except (apsw.FullError, apsw.IOError) as error:
            raise _no_space(self.file) from error
        self._execute("BEGIN IMMEDIATE")

    def rollback(self) -> None:
        """Back to the last commit."""
        if self._connection.in_transaction:  # SQLite ends it by itself when the disk is full
            self._execute("ROLLBACK")
        self._forget()
        self._totals = list(super().totals())
        self._execute("BEGIN IMMEDIATE")

    def clear(self) -> None:
        """Forget everything (in the open transaction): for a scan or a seed from nothing."""
        self._forget()
        for table in ("node", "entry", "state"):
            self._execute(f"DELETE FROM {table}")
        self._totals = [0, 0, 0, 0]

    def close(self) -> None:
        """Close; what was not committed is gone."""
        try:
            if self._connection.in_transaction:
                self._execute("ROLLBACK")
        finally:
            super().close()

    # -- memory --------------------------------------------------------------------------------------------------------

    def child_id(self, parent: int, name: bytes) -> int | None:
        place = parent, name
        try:
            return self._entries[place]
        except KeyError:
            node_id = super().child_id(parent, name)
            self._remember_entry(place, node_id)
            return node_id

    def child(self, parent: int, name: bytes) -> Node | None:
        node_id = self.child_id(parent, name)
        if node_id is None:
            return None
        return self._nodes.get(node_id) or self.node(node_id)

    def node(self, node_id: int) -> Node | None:
        known = self._nodes.get(node_id) or self._unwritten.get(node_id)
        if known is None:
            known = super().node(node_id)
            if known is not None:
                self._remember(known)
        return known

    def by_handle(self, handle: bytes) -> Node | None:
        try:
            node_id = self._handles[handle]
        except KeyError:
            pass
        else:
            if node_id is None:
                return None
            known = self.node(node_id)
            if known is not None and known.handle == handle:
                return known
        row = self._execute("SELECT id FROM node WHERE handle = ?", (handle,)).fetchone()
        self._remember_handle(handle, None if row is None else row[0])
        return None if row is None else self.node(row[0])

    def _remember_handle(self, handle: bytes | None, node_id: int | None) -> None:
        if handle is not None:
            if len(self._handles) >= REMEMBERED_MAX:
                self._handles.clear()
            self._handles[handle] = node_id

    def _remember_entry(self, place: tuple[int, bytes], node_id: int | None) -> None:
        if len(self._entries) >= REMEMBERED_MAX:
            self._entries.clear()
        self._entries[place] = node_id

    def _remember(self, node: Node) -> None:
        if len(node.content) > REMEMBERED_CONTENT_BYTES_MAX:
            self._nodes.pop(node.id, None)
            return
        if len(self._nodes) >= REMEMBERED_MAX:
            self._nodes.clear()
        self._nodes[node.id] = node

    def _forget(self) -> None:
        for remembered in (self._entries, self._nodes, self._handles, self._unwritten):
            remembered.clear()
        self.forget_paths()

    def _write(self) -> None:
        """Bring updated rows into the tables: before others than their own are asked of them."""
        if self._unwritten:
            rows = [(*node[3:], node.id) for node in self._unwritten.values()]
            self._unwritten.clear()
            self._executemany(_UPDATE, rows)

    def children(self, parent: int) -> dict[bytes, Node]:
        self._write()
        return super().children(parent)

    def rows(self, parent: int) -> Iterator[Row]:
        self._write()
        return super().rows(parent)

    def _take_handle(self, handle: bytes | None) -> None:
        """Whoever has *handle* has it no more: the kernel reused it."""
        self._write()
        self._execute("UPDATE node SET handle = NULL WHERE handle = ?", (handle,))
        self._nodes.clear()
        self._handles.clear()

    # -- changes -------------------------------------------------------------------------------------------------------

    def _count(self, kind: int, nodes: int, size: int) -> None:
        self._totals[kind - 1] += nodes
        if kind == NodeKind.FILE:
            self._totals[3] += size

    def totals(self) -> Totals:
        """As of now, uncommitted changes included."""
        return Totals(*self._totals)

    def add(self, node: Node) -> int:
        """Insert *node* (its id is ignored); the new id. A node that had its handle loses it: the kernel reused it.

        Ids do not come again while the index is open, whatever is deleted or rolled back.
        """
        node_id = self._next_id
        self._next_id += 1
        try:
            self._execute(_INSERT, (node_id, *node[1:]))
        except apsw.ConstraintError:
            self._take_handle(node.handle)
            self._execute(_INSERT, (node_id, *node[1:]))
        self._remember_handle(node.handle, node_id)
        self._count(node.kind, 1, node.size)
        return node_id

    def update(self, old: Node, new: Node) -> None:
        """The node ``old.id`` is as *new* says (same id and kind)."""
        if new.handle != old.handle:
            if new.handle is not None:
                self._take_handle(new.handle)
            self._execute("UPDATE node SET handle = ? WHERE id = ?", (new.handle, old.id))
            self._remember_handle(new.handle, old.id)
        self._unwritten[old.id] = new
        if len(self._unwritten) >= UNWRITTEN_MAX or len(new.content) > REMEMBERED_CONTENT_BYTES_MAX:
            self._write()
        self._remember(new)
        self._count(old.kind, 0, new.size - old.size)

    def resight(self, node_id: int, handle: bytes | None, ino: int, ctime_ns: int) -> None:
        """The node was seen, unchanged in all that travels."""
        self._write()
        try:
            self._execute(_RESIGHT, (handle, ino, ctime_ns, node_id))
        except apsw.ConstraintError:
            self._take_handle(handle)
            self._execute(_RESIGHT, (handle, ino, ctime_ns, node_id))
        self._nodes.pop(node_id, None)
        self._remember_handle(handle, node_id)

    def doubt(self, node_id: int) -> None:
        """The node's content may not be what it was: the next look reads it, whatever size and times say."""
        self._write()
        self._execute("UPDATE node SET ctime_ns = 0 WHERE id = ?", (node_id,))
        self._nodes.pop(node_id, None)

    def bind(self, parent: int, name: bytes, node_id: int) -> None:
        """*name* in *parent* is *node_id*; the name must be free."""
        self._execute("INSERT INTO entry VALUES(?, ?, ?)", (parent, name, node_id))
        self._remember_entry((parent, name), node_id)

    def unbind(self, parent: int, name: bytes) -> None:
        self._execute("DELETE FROM entry WHERE parent = ? AND name = ?", (parent, name))
        self._remember_entry((parent, name), None)

    def move(self, parent: int, name: bytes, to_parent: int, to_name: bytes, *, directory: bool) -> None:
        """Give an entry another place; the new name must be free."""
        self._execute(
            "UPDATE entry SET parent = ?, name = ? WHERE parent = ? AND name = ?", (to_parent, to_name, parent, name)
        )
        self._entries.pop((to_parent, to_name), None)
        self._entries.pop((parent, name), None)
        if directory:
            self.forget_paths()

    def drop_if_nameless(self, node: Node) -> bool:
        """Delete the node when no name is left; True when it was deleted."""
        if self._execute("SELECT 1 FROM entry WHERE node = ? LIMIT 1", (node.id,)).fetchone() is not None:
            return False
        self._execute("DELETE FROM node WHERE id = ?", (node.id,))
        self._nodes.pop(node.id, None)
        self._unwritten.pop(node.id, None)
        if node.handle is not None:
            self._handles.pop(node.handle, None)
        self._count(node.kind, -1, -node.size)
        if node.kind == NodeKind.DIRECTORY:
            self.forget_paths()
        return True


IN_MEMORY: Final = ":memory:"
"""SQLite's name for a database without a file."""


def _keep_private(path: Path) -> None:
    """The file, made if there is none, and SQLite's beside it: mode 0600. SQLite makes those like the first.

    A file that is there is not opened for it: closing it would drop the locks of this process's other connections
    (https://sqlite.org/howtocorrupt.html section 2.2).
    """
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    for file in (path, Path(f"{path}-wal"), Path(f"{path}-shm")):
        with contextlib.suppress(FileNotFoundError):
            file.chmod(0o600)


def _no_space(path: Path) -> NoSpace:
    return NoSpace(
        f"the tree index {path} cannot be written: its disk is full or failing",
        hint="Free space on that disk; the agent goes on from the last committed position.",
        retry=True,
    )
