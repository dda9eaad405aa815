"""What the parts of a seed share: the trees opened, the index, the notes, and what was done so far."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from holdfast.apply.aside import Aside
from holdfast.apply.content import Described, describe
from holdfast.apply.place import Place
from holdfast.apply.seed_book import SeedBook, Wanted
from holdfast.trees.index import Index, Node
from holdfast.trees.spec import Tree
from holdfast.trees.stat import Owners, read_xattrs, unpack_xattrs

STEP_FILES: Final = 500
"""Files handled in one go: progress is told and a stop is heard in between."""
INEXACT_MTIME_NS: Final = 1
"""The modification time of a file whose content is newer than the listing, or missing: equal to no real one, so that
the next run does not take it for the listed content. The log brings the true one."""
PROBLEMS_MAX: Final = 1000


@dataclass
class SeedCounts:
    """What was done. Files: *reused* stood in place, *moved* stood elsewhere, *fetched* came over the wire.

    *gone*: were deleted at the source meanwhile; *newer*: changed there meanwhile. The log brings both right.
    *problems*: files the source could not read: damaged here until healed; at most ``PROBLEMS_MAX`` are named.
    """

    entries: int = 0
    reused: int = 0
    moved: int = 0
    fetched: int = 0
    fetched_bytes: int = 0
    done_files: int = 0
    done_bytes: int = 0
    gone: int = 0
    newer: int = 0
    problems_count: int = 0
    problems: list[tuple[str, bytes, str]] = field(default_factory=list)


class Ground:
    """One seed's trees, index and notes. Making it opens the trees (a root that is missing is made)."""

    def __init__(
        self,
        index: Index,
        trees: Mapping[str, Tree],
        owners: Owners,
        aside: Aside,
        book: SeedBook,
        *,
        checksum: bool,
        doubt_since_ns: int | None,
        keep_replaced: bool,
    ) -> None:
        self.index = index
        self.trees = trees
        self.owners = owners
        self.aside = aside
        self.book = book
        self.checksum = checksum
        self.doubt_since_ns = doubt_since_ns
        self.keep_replaced = keep_replaced
        self.counts = SeedCounts()
        self.places: dict[str, Place] = {}
        for name, tree in trees.items():
            tree.root.mkdir(parents=True, exist_ok=True)
            self.places[name] = Place(tree.root)
            self.places[name].clear_staging()

    def close(self) -> None:
        for place in self.places.values():
            place.close()

    def sync(self) -> None:
        """Everything is on disk."""
        for place in {place.device: place for place in self.places.values()}.values():
            place.sync()

    def node(self, wanted: Wanted) -> Node:
        """The row of a wanted file."""
        node = self.index.node(wanted.local)
        assert node is not None, "a row of this very transaction"
        return node

    def describe(self, fd: int, node: Node) -> None:
        """Metadata as the row says; only what differs is written."""
        wanted = described_by(node)
        describe(fd, os.fstat(fd), wanted, xattrs_differ=read_xattrs(fd) != wanted.xattrs)

    def sight(self, node: Node, status: os.stat_result, handle: bytes | None) -> None:
        """The row says which file it is."""
        self.index.update(node, node._replace(handle=handle, ino=status.st_ino, ctime_ns=status.st_ctime_ns))

    def make_room(self, place: Place, wanted: Wanted) -> None:
        """What stands at the path is kept aside when it has to be, else the new file replaces it."""
        status = place.status(wanted.path)
        if status is None or (wanted.tree, wanted.path) in self.book.partial:
            return
        if self.keep_replaced or not stat.S_ISREG(status.st_mode):
            if stat.S_ISREG(status.st_mode) and (status.st_size == 0 or status.st_mtime_ns == INEXACT_MTIME_NS):
                return  # nothing in it, or a placeholder of ours
            self.aside.take(place, wanted.tree, wanted.path, "differs from the primary's")

    def count_lacking(self, wanted: Wanted, problem: str) -> None:
        if not problem:
            self.counts.gone += 1
            return
        self.counts.problems_count += 1
        if len(self.counts.problems) < PROBLEMS_MAX:
            self.counts.problems.append((wanted.tree, wanted.path, problem))

    def finished(self, wanted: Wanted) -> None:
        self.counts.done_files += 1
        self.counts.done_bytes += wanted.size
        self.book.done(wanted)


def described_by(node: Node) -> Described:
    """The metadata a row says."""
    return Described(node.mode, node.uid, node.gid, node.mtime_ns, unpack_xattrs(node.xattrs))


def no_limit(size_bytes: int) -> None:
    """Reading our own disk to save the wire is not held back."""
