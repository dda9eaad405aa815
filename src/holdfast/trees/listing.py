"""Listings: all names of a tree in one fixed order, which can be left and taken up anywhere.

The order: a directory's own entry stands among those of its parent; all names of a directory stand together, by the
bytes of the name; the directories follow one another from the root down (a directory before those in it, siblings by
name). So everything in a directory is seen at once, a directory is known before its contents, and two listings can be
compared side by side without holding either.

Memory: the names of the directories still to come, and LISTING_CHUNK rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from holdfast.changes.change import Meta
from holdfast.changes.exchange import DIGESTS_INLINE_BYTES_MAX, Entry, EntryKind
from holdfast.trees.index import IndexReader, Node, NodeKind
from holdfast.trees.stat import Owners, unpack_xattrs

LISTING_CHUNK: Final = 1000
"""Rows read at once: a directory of a million messages costs no more memory than one of a thousand."""

_CHILDREN: Final = (
    "SELECT entry.name, (SELECT count(*) FROM entry AS other WHERE other.node = node.id), "
    + ", ".join(f"node.{column}" for column in Node._fields)
    + " FROM entry JOIN node ON node.id = entry.node WHERE parent = ? AND entry.name > ? ORDER BY entry.name LIMIT ?"
)
_DIRECTORIES: Final = (
    "SELECT entry.name, node.id FROM entry JOIN node ON node.id = entry.node "
    f"WHERE parent = ? AND entry.name > ? AND kind = {int(NodeKind.DIRECTORY)} ORDER BY entry.name"
)

OrderKey = tuple[tuple[bytes, ...], bytes]


class Named(NamedTuple):
    """One name in a directory, what it is, and how many names that has."""

    name: bytes
    node: Node
    links: int


def order_key(path: bytes) -> OrderKey:
    """Sorts paths of one tree in listing order."""
    above, _, name = path.rpartition(b"/")
    return (tuple(above.split(b"/")) if above else ()), name


def joined(directory: bytes, name: bytes) -> bytes:
    return directory + b"/" + name if directory else name


def children_after(reader: IndexReader, directory: int, after: bytes = b"", limit: int = LISTING_CHUNK) -> list[Named]:
    """Up to *limit* names of *directory* that follow the name *after*."""
    rows = reader._execute(_CHILDREN, (directory, after, limit))
    return [Named(row[0], Node._make(row[2:]), row[1]) for row in rows]


def children(reader: IndexReader, directory: int, after: bytes = b"") -> Iterator[Named]:
    """All names of *directory* that follow *after*, a chunk at a time; the index may change meanwhile."""
    while True:
        chunk = children_after(reader, directory, after)
        yield from chunk
        if len(chunk) < LISTING_CHUNK:
            return
        after = chunk[-1].name


def directories_in(reader: IndexReader, directory: int, after: bytes = b"") -> list[tuple[bytes, int]]:
    """The directories (name, node) in *directory* that follow the name *after*."""
    return list(reader._execute(_DIRECTORIES, (directory, after)))


class Walk:
    """The directories of a tree in listing order: a stack of those still to come.

    :meth:`next` gives (path, node id). Start *after* a directory to go on there: what was there before it is not
    given again, what is in it is.
    """

    def __init__(self, reader: IndexReader, tree: str, after: bytes | None = None) -> None:
        self._todo: list[tuple[bytes, int]] = []
        root = reader.directory(tree, b"")
        if root is None:
            return
        if after is None:
            self._todo.append((b"", root))
            return
        self._push(reader, b"", root, after=b"" if not after else after.partition(b"/")[0])
        path, directory = b"", root
        parts = after.split(b"/") if after else []
        for at, part in enumerate(parts):
            child = reader.child(directory, part)
            if child is None or child.kind != NodeKind.DIRECTORY:
                return
            path, directory = joined(path, part), child.id
            self._push(reader, path, directory, after=parts[at + 1] if at + 1 < len(parts) else b"")

    def _push(self, reader: IndexReader, path: bytes, directory: int, after: bytes = b"") -> None:
        found = directories_in(reader, directory, after)
        self._todo.extend((joined(path, name), node) for name, node in reversed(found))

    def next(self, reader: IndexReader) -> tuple[bytes, int] | None:
        """The next directory; those in it come after it. None at the end."""
        if not self._todo:
            return None
        path, directory = self._todo.pop()
        self._push(reader, path, directory)
        return path, directory


def walk_listing(reader: IndexReader, tree: str, after: bytes | None = None) -> Iterator[tuple[bytes, Node, int]]:
    """(path, node, links) of everything in *tree* that follows the path *after*, in listing order, the root first."""
    root = reader.directory(tree, b"")
    if root is None:
        return
    walk = Walk(reader, tree)
    if after is None:
        root_node = reader.node(root)
        assert root_node is not None, "an entry without its node: the index is broken"
        yield b"", root_node, 1
    else:
        above, _, name = after.rpartition(b"/")
        directory = reader.directory(tree, above)
        if directory is not None:
            for named in children(reader, directory, name):
                yield joined(above, named.name), named.node, named.links
        walk = Walk(reader, tree, above)
    while (place := walk.next(reader)) is not None:
        path, directory = place
        for named in children(reader, directory):
            yield joined(path, named.name), named.node, named.links


def meta_of(node: Node, owners: Owners) -> Meta:
    """The metadata a row says."""
    return Meta(node.mode, owners.user(node.uid), owners.group(node.gid), node.mtime_ns, unpack_xattrs(node.xattrs))


def entry_of(path: bytes, node: Node, links: int, owners: Owners, *, whole: bool = False) -> Entry:
    """The row in the words of the exchange; digests of a large file are left out, unless *whole*."""
    large = not whole and node.kind == NodeKind.FILE and len(node.content) > DIGESTS_INLINE_BYTES_MAX
    content = b"" if large else node.content
    return Entry(path, EntryKind(node.kind), meta_of(node, owners), node.size, content, node.id, links)


def listing_entries(
    reader: IndexReader, tree: str, owners: Owners, after: bytes | None = None, *, whole: bool = False
) -> Iterator[Entry]:
    """The listing of one tree as entries; *whole*: with all digests of large files too."""
    for path, node, links in walk_listing(reader, tree, after):
        yield entry_of(path, node, links, owners, whole=whole)


def names_in(reader: IndexReader, directory: int) -> set[bytes]:
    """All names in *directory*."""
    return {name for (name,) in reader._execute("SELECT name FROM entry WHERE parent = ?", (directory,))}
