"""What the parts of the reconciler share: the index and the disk, and what is still to be looked at."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from holdfast.trees.index import Index
from holdfast.trees.spec import Tree
from holdfast.trees.stat import Owners
from holdfast.watch.disk import Directory, Disk, Place, Spot
from holdfast.watch.hints import Where
from holdfast.watch.limbo import Limbo
from holdfast.watch.limits import Limits

THE_DIRECTORY: Final = b"."
"""Names the directory itself where something is wrong with it."""
READ_FIRST: Final = 1
APPENDED: Final = 2
LEFT_OUT: Final = 4
PATTERNS_REMEMBERED_MAX: Final = 20_000
"""Places whose patterns were matched: hot index and list files come by again and again. About 4 MB."""


class Boundary:
    """Stands between changes of a scan where a position may count as whole."""


BOUNDARY: Final = Boundary()


class Trouble(NamedTuple):
    """What could not be read: *reason* for people, *since* on the monotonic clock."""

    tree: str
    path: bytes
    reason: str
    since: float


class Scene:
    """Lives as long as the watcher. One thread."""

    def __init__(
        self,
        index: Index,
        trees: Mapping[str, Tree],
        owners: Owners,
        limits: Limits,
        monotonic: Callable[[], float],
        watch: Callable[[int, bytes], None],
    ) -> None:
        """*watch(fd, handle)* is told of each directory before it is listed."""
        self.index: Final = index
        self.trees: Final = trees
        self.owners: Final = owners
        self.limits: Final = limits
        self.monotonic: Final = monotonic
        self.watch: Final = watch
        self.skipped: dict[tuple[str, bytes], str] = {}
        """Sockets, fifos and devices: what they are, by tree and path."""
        self.disk: Final = Disk(index, trees, limits, self._skip)
        self.limbo: Final = Limbo(index, self.disk, monotonic, limits.limbo_seconds)
        self.troubles: dict[Place, Trouble] = {}
        self.troubles_unnamed = 0
        self.any_read_first: Final = any(tree.spec.read_first for tree in trees.values())
        self.forget()

    def forget(self) -> None:
        """Start anew: the index was rolled back, or is another one's work."""
        self.number = 0
        """Of the batch."""
        self.now = self.monotonic()
        self.deep = False
        """Nobody told of changes of contents: what looks changed is read."""
        self.hurry = False
        """A barrier waits: nothing is put off because it is slow."""
        self.to_scan: list[int] | None = None
        """While a scan runs: the directories it has still to come to."""
        self.fresh: set[int] = set()
        """Nodes made in this batch: what events say of their content is past."""
        self.again: dict[Place, int] = {}
        """Places put off, and the number of the batch that did."""
        self.checks: dict[int, tuple[int, Place]] = {}
        """Files to compare with their rows: what is known to have happened (a mask of hints), and a name."""
        self.directory_checks: set[int] = set()
        self.limbo.forget()
        self.disk.forget()

    def begin_batch(self, *, hurry: bool = False) -> None:
        self.number += 1
        self.now = self.monotonic()
        self.hurry = hurry
        self.fresh.clear()
        self.disk.refresh()
        self.limbo.begin_batch()

    def check(self, node_id: int, mask: int, place: Place) -> None:
        """Compare the file with its row, once the names are right."""
        before = self.checks.get(node_id)
        self.checks[node_id] = (mask | (before[0] if before else 0), place)

    def put_off(self, place: Place) -> None:
        """Look at *place* in the next batch, too."""
        self.again.setdefault(place, self.number)

    def pattern(self, directory: Directory, place: Place) -> int:
        """What the tree's patterns say of a file at *place*, which is in *directory*: LEFT_OUT, or READ_FIRST and
        APPENDED."""
        patterns = self.disk.patterns
        known = patterns.get(place)
        if known is None:
            tree, path = directory.tree, directory.prefix + place[1]
            if self.disk.excluded(directory, place[1], is_directory=False):
                known = LEFT_OUT
            else:
                known = (READ_FIRST if tree.read_first(path) else 0) | (APPENDED if tree.appended(path) else 0)
            if len(patterns) >= PATTERNS_REMEMBERED_MAX:
                patterns.clear()
            patterns[place] = known
        return known

    def remember_spot(self, where: Where, spot: Spot) -> None:
        """What events of content at *where* come to, until directories move."""
        spots = self.disk.spots
        if len(spots) >= PATTERNS_REMEMBERED_MAX:
            spots.clear()
        spots[where] = spot

    def comes_later(self, place: Place) -> bool:
        """A sort key: what is to be read first is False."""
        known = self.disk.patterns.get(place)
        if known is None:  # not remembered: a scan comes by with every name there is
            directory = self.disk.directory(place[0])
            return directory is None or not directory.tree.read_first(directory.prefix + place[1])
        return not known & READ_FIRST

    def in_reading_order(self, places: list[Place]) -> list[Place]:
        return sorted(places, key=self.comes_later) if self.any_read_first else places

    # -- what cannot be protected as it is -----------------------------------------------------------------------------

    def trouble(self, place: Place, reason: str) -> None:
        """What stands at *place* cannot be read: the log keeps what it has, and it is tried again later."""
        directory = self.disk.directory(place[0])
        if directory is None:
            return
        if place not in self.troubles and len(self.troubles) >= self.limits.problems_max:
            self.troubles_unnamed += 1
            return
        path = directory.prefix + place[1]
        self.troubles[place] = Trouble(directory.tree.name, path, reason, self.monotonic())

    def clear_trouble(self, place: Place) -> None:
        if self.troubles:
            self.troubles.pop(place, None)

    def _skip(self, tree: str, path: bytes, what: str) -> None:
        if len(self.skipped) < self.limits.problems_max:
            self.skipped[tree, path] = what

    def clear_skipped(self, directory: Directory, name: bytes) -> None:
        if self.skipped:
            self.skipped.pop((directory.tree.name, directory.prefix + name), None)
