"""A seed's names: rows, directories, symlinks, hard links and what this machine has besides."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence

from holdfast.apply.content import describe_link, described
from holdfast.apply.place import Place
from holdfast.apply.seed_book import Wanted
from holdfast.apply.seed_ground import STEP_FILES, Ground, described_by, no_limit
from holdfast.changes.digest import BLOCK_BYTES, DIGEST_BYTES, ZERO_BLOCK_DIGEST
from holdfast.changes.exchange import Entry, EntryKind, ExchangeDamaged
from holdfast.trees.index import SUPER_ROOT, Node, NodeKind
from holdfast.trees.listing import OrderKey, Walk, joined, names_in, order_key
from holdfast.trees.look import read_digests
from holdfast.trees.spec import RESERVED_NAME, Tree
from holdfast.trees.stat import handle_at, pack_xattrs


class SeedNames:
    """Brings names to a listing, entry by entry. Raises OSError, and ExchangeDamaged for a listing that contradicts
    itself. A row that was not yet seen on disk has inode number 0."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self._index = ground.index
        self._book = ground.book
        self._last: tuple[str, OrderKey] | None = None
        self._parent_known = "", b"", 0

    # -- the listing ---------------------------------------------------------------------------------------------------

    def take_page(self, tree: str, entries: Sequence[Entry]) -> None:
        """Rows for *entries*; directories and symlinks stand afterwards, files that are there already are kept."""
        for entry in entries:
            self._check_order(tree, entry)
            self._entry(tree, self._ground.places[tree], entry)
            self._ground.counts.entries += 1

    def _check_order(self, tree: str, entry: Entry) -> None:
        key = order_key(entry.path)
        if self._last is not None and self._last[0] == tree and key <= self._last[1]:
            raise _hostile(entry, "it is out of order")
        if RESERVED_NAME in entry.path.split(b"/"):
            raise _hostile(entry, "the name is reserved")
        self._last = tree, key

    def _entry(self, tree: str, place: Place, entry: Entry) -> None:
        above, _, name = entry.path.rpartition(b"/")
        parent = self._parent(tree, above) if entry.path else SUPER_ROOT
        if parent is None:
            raise _hostile(entry, "its directory is not in the listing")
        name = name if entry.path else tree.encode()
        several = entry.links > 1 and entry.kind != EntryKind.DIRECTORY
        if several and (first := self._book.first(entry.node)) is not None:
            self._index.bind(parent, name, first)
            self._further_name(tree, place, entry, first)
            return
        node = self._row(entry)
        node = node._replace(id=self._index.add(node))
        self._index.bind(parent, name, node.id)
        if several:
            self._book.set_first(entry.node, node.id)
        match entry.kind:
            case EntryKind.DIRECTORY:
                self._directory(tree, place, entry.path)
            case EntryKind.SYMLINK:
                self._symlink(tree, place, entry, node)
            case EntryKind.FILE:
                self._file(tree, place, entry, node)

    def _parent(self, tree: str, path: bytes) -> int | None:
        """The directory *path* of the listing. Names of one directory stand together: the last answer is kept."""
        if self._parent_known[:2] != (tree, path):
            node_id = self._index.directory(tree, path)
            node = None if node_id is None else self._index.node(node_id)
            if node is None or node.kind != NodeKind.DIRECTORY:
                return None
            self._parent_known = tree, path, node.id
        return self._parent_known[2]

    def _row(self, entry: Entry) -> Node:
        wanted = described(entry.meta, self._ground.owners)
        return Node(
            0,
            int(entry.kind),
            None,
            0,
            wanted.mode,
            wanted.uid,
            wanted.gid,
            entry.size,
            wanted.mtime_ns,
            0,
            entry.content,
            pack_xattrs(wanted.xattrs),
        )

    def _directory(self, tree: str, place: Place, path: bytes) -> None:
        status = place.status(path)
        if status is not None and not stat.S_ISDIR(status.st_mode):
            self._ground.aside.take(place, tree, path, "stood where a directory belongs")
            status = None
        if status is None:
            place.mkdir(path, 0o700)

    def _symlink(self, tree: str, place: Place, entry: Entry, node: Node) -> None:
        status = place.status(entry.path)
        directory, name = place.parent(entry.path)
        if status is not None and not (
            stat.S_ISLNK(status.st_mode) and os.readlink(name, dir_fd=directory) == entry.content
        ):
            self._ground.aside.take(place, tree, entry.path, "stood where a symlink belongs")
            status = None
        if status is None:
            place.symlink(entry.content, entry.path, replace=False)
        describe_link(directory, name, described_by(node))
        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
        self._ground.sight(node, status, handle_at(directory, name))

    def _file(self, tree: str, place: Place, entry: Entry, node: Node) -> None:
        status = place.status(entry.path)
        if status is not None and stat.S_ISREG(status.st_mode):
            if status.st_size == entry.size and self._kept(place, entry, status, node):
                self._ground.counts.reused += 1
                self._ground.counts.done_files += 1
                self._ground.counts.done_bytes += entry.size
                return
        elif status is not None:
            self._ground.aside.take(place, tree, entry.path, "stood where a file belongs")
        wanted = Wanted(node.id, entry.node, tree, entry.path, entry.size)
        self._book.want(wanted, entry.meta.mtime_ns, entry.size - _hole_bytes(entry.content))

    def _kept(self, place: Place, entry: Entry, status: os.stat_result, node: Node) -> bool:
        """Whether the file in place is the listed one; then it is described and sighted."""
        if status.st_mtime_ns != entry.meta.mtime_ns and not self._ground.checksum:
            return False
        fd = place.open(entry.path, os.O_RDONLY)
        try:
            handle = handle_at(fd, b"")
            if status.st_nlink > 1 and handle is not None and self._index.by_handle(handle) is not None:
                return False  # one file here, two in the listing
            since = self._ground.doubt_since_ns
            doubted = self._ground.checksum or (since is not None and status.st_ctime_ns >= since)
            if doubted and read_digests(fd, entry.size, no_limit).digests != entry.content:
                return False
            self._ground.describe(fd, node)
            self._ground.sight(node, os.fstat(fd), handle)
        finally:
            os.close(fd)
        return True

    def _further_name(self, tree: str, place: Place, entry: Entry, first: int) -> None:
        node = self._index.node(first)
        if node is None or node.kind != entry.kind:
            raise _hostile(entry, "its other name is of another kind")
        status = place.status(entry.path)
        if status is None or not node.ino or status.st_ino != node.ino:
            self._book.add_further(first, tree, entry.path)

    # -- what this machine has besides ---------------------------------------------------------------------------------

    def find_extras(self, tree_name: str) -> None:
        """Note what stands in the tree and not in the index."""
        tree, place = self._ground.trees[tree_name], self._ground.places[tree_name]
        walk = Walk(self._index, tree_name)
        while (at := walk.next(self._index)) is not None:
            path, directory = at
            known = names_in(self._index, directory)
            for name, is_directory in place.listing(path):
                if name not in known:
                    self._extra(tree, place, joined(path, name), is_directory=is_directory)

    def _extra(self, tree: Tree, place: Place, path: bytes, *, is_directory: bool) -> None:
        if tree.excluded(path, directory=is_directory):
            if not is_directory and tree.transient(path):
                place.unlink(path)
            return
        if is_directory:
            if _keeps_something(tree, path):
                for name, below_is_directory in place.listing(path):
                    self._extra(tree, place, joined(path, name), is_directory=below_is_directory)
                return
            self._book.add_extra(tree.name, path, top=True, size=0, mtime_ns=0)
            self._candidates(tree, place, path)
        else:
            self._candidate(tree, place, path, top=True)

    def _candidates(self, tree: Tree, place: Place, path: bytes) -> None:
        """Files below an extra directory: the listing may have them under another path."""
        pending = [path]
        while pending:
            at = pending.pop()
            for name, is_directory in place.listing(at):
                if is_directory:
                    pending.append(joined(at, name))
                else:
                    self._candidate(tree, place, joined(at, name), top=False)

    def _candidate(self, tree: Tree, place: Place, path: bytes, *, top: bool) -> None:
        status = place.status(path)
        if status is None:
            return
        regular = stat.S_ISREG(status.st_mode)
        if not regular and not stat.S_ISLNK(status.st_mode):
            return  # sockets, fifos, devices are never protected
        size = status.st_size if regular and status.st_nlink == 1 else 0
        if top or size:
            self._book.add_extra(tree.name, path, top=top, size=size, mtime_ns=status.st_mtime_ns)

    # -- the end -------------------------------------------------------------------------------------------------------

    def link_further(self, after: int) -> int | None:
        """Make names of files with several; the number reached, None at the end."""
        todo = self._book.further_after(after, STEP_FILES)
        for _, local, tree, path in todo:
            self._link(self._ground.places[tree], local, tree, path)
        return todo[-1][0] if todo else None

    def _link(self, place: Place, local: int, tree: str, path: bytes) -> None:
        node = self._index.node(local)
        assert node is not None, "a row of this very transaction"
        status = place.status(path)
        if status is not None and status.st_ino == node.ino:
            return
        if status is not None:
            same = stat.S_ISREG(status.st_mode) and (status.st_size, status.st_mtime_ns) == (node.size, node.mtime_ns)
            if stat.S_ISDIR(status.st_mode) or (self._ground.keep_replaced and not same):
                self._ground.aside.take(place, tree, path, "differs from the primary's")
        place.link(self._standing_name(place, node, tree), path, replace=True)
        after = place.status(path)
        assert after is not None, "it was linked just now"
        self._index.update(node, node._replace(ctime_ns=after.st_ctime_ns))

    def _standing_name(self, place: Place, node: Node, tree: str) -> bytes:
        for parent, name in self._index.names(node.id):
            found = self._index.path(parent, name)
            if found is not None and found[0] == tree:
                status = place.status(found[1])
                if status is not None and status.st_ino == node.ino:
                    return found[1]
        raise ExchangeDamaged(
            f"a file of tree {tree!r} lost its name while it was copied", hint="Start the seed again.", retry=True
        )

    def describe_directories(self, tree: str) -> None:
        """Metadata of all directories, modification times with them: nothing is done in them afterwards."""
        place = self._ground.places[tree]
        walk = Walk(self._index, tree)
        while (at := walk.next(self._index)) is not None:
            path, directory = at
            node = self._index.node(directory)
            assert node is not None, "a row of this very transaction"
            fd = place.open(path, os.O_RDONLY | os.O_DIRECTORY)
            try:
                self._ground.describe(fd, node)
                self._ground.sight(node, os.fstat(fd), handle_at(fd, b""))
            finally:
                os.close(fd)

    def move_extras_aside(self) -> int:
        """How many."""
        count = 0
        for extra in self._book.tops():
            try:
                self._ground.aside.take(
                    self._ground.places[extra.tree], extra.tree, extra.path, "is not on the primary"
                )
                count += 1
            except FileNotFoundError:
                continue  # it went by itself
        return count


def _hostile(entry: Entry, what: str) -> ExchangeDamaged:
    return ExchangeDamaged(
        f"the listing has an impossible entry {entry.path[:200]!r}: {what}",
        hint="Nothing was done with it. The answering machine's index is broken, or its program: let it scan.",
    )


def _keeps_something(tree: Tree, path: bytes) -> bool:
    """Whether a directory that is not in the listing holds things that are this machine's own business."""
    below = os.fsdecode(path) + "/"
    return any(own.strip("/").startswith(below) for own in (*tree.spec.overrides, *tree.spec.include))


def _hole_bytes(digests: bytes) -> int:
    if ZERO_BLOCK_DIGEST not in digests:
        return 0
    blocks = range(0, len(digests), DIGEST_BYTES)
    return BLOCK_BYTES * sum(digests[at : at + DIGEST_BYTES] == ZERO_BLOCK_DIGEST for at in blocks)
