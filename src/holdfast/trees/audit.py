"""Audit: does the tree on disk equal what the index says? For the scrub, a standby's self-check, verify and heal.

An audit reads; it repairs nothing. Modification times of directories are not compared (they are set late, on purpose),
nor what the tree's spec leaves out, nor sockets, fifos and devices.

Trees and index change while it looks, and on a primary the tree is always a little ahead of the index. So a difference
is at first only a *suspect*. Suspects are judged in rounds: a snapshot of the index is taken that holds everything that
happened before (on a primary: behind a barrier); then the thing is looked at again. A difference is reported when two
rounds running found the same row, the same file (inode, size, times) and the same difference: then nothing happened
that could explain it. What changes in every one of ``ROUNDS_MAX`` rounds is not judged, and counted as unsettled.

The cursor is the last directory finished: an audit begun *after* it goes on there. Memory: the names of one directory,
the names of directories still to come, ``SUSPECTS_MAX`` suspects. The snapshot of the index is renewed every
``SNAPSHOT_SECONDS``, so that a slow scrub does not make SQLite keep days of old pages.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from holdfast.changes.exchange import AuditFinding
from holdfast.trees.index import IndexReader, Node, NodeKind
from holdfast.trees.listing import Walk, children_after, joined
from holdfast.trees.look import Comparison, Signature, Trait, What, open_directory, signature, status_at
from holdfast.trees.rate import TokenBucket
from holdfast.trees.spec import Tree
from holdfast.trees.stat import handle_at

ROUNDS_MAX: Final = 6
SUSPECTS_MAX: Final = 256
"""Judged together: one barrier for all of them."""
SNAPSHOT_SECONDS: Final = 10.0


class Cursor(NamedTuple):
    """The directory *path* of *tree*, and all before it in listing order, have been audited."""

    tree: str
    path: bytes


class AuditProgress(NamedTuple):
    """*entries_total* and *bytes_total* are the index's totals of all trees; *bytes* counts contents (a quick audit:
    the sizes)."""

    entries: int
    entries_total: int
    bytes: int
    bytes_total: int
    unsettled: int
    cursor: Cursor | None


class _Suspect(NamedTuple):
    tree: str
    path: bytes
    row: Node | None
    seen: Signature | None
    traits: tuple[Trait, ...]


class Audit:
    """One pass over *trees*. Runs in the thread that takes from :meth:`run`.

    *snapshot*: a reader of the index that holds everything done before the call; it may block, and is closed here.
    *rate* limits the bytes of contents read a second; *pause* sleeps.
    """

    def __init__(
        self,
        trees: tuple[Tree, ...],
        snapshot: Callable[[], IndexReader],
        *,
        full: bool,
        rate: TokenBucket,
        clock: Callable[[], float],
        pause: Callable[[float], None],
        after: Cursor | None = None,
    ) -> None:
        self._trees = trees
        self._by_name = {str(tree.name): tree for tree in trees}
        self._take_snapshot = snapshot
        self._rate = rate
        self._clock = clock
        self._pause = pause
        self._compare = Comparison(full=full, taken=self._taken)
        self._full = full
        self._start = after
        self._suspects: list[_Suspect] = []
        self._reader: IndexReader | None = None
        self._reader_since = 0.0
        self._entries = 0
        self._bytes = 0
        self._totals = (0, 0)
        self._unsettled = 0
        self._cursor = after
        self._looked = after
        self.stop_wanted = False
        """Set (from any thread) to end the run early, at the next directory."""

    @property
    def progress(self) -> AuditProgress:
        done = self._compare.bytes_read if self._full else self._bytes
        return AuditProgress(self._entries, self._totals[0], done, self._totals[1], self._unsettled, self._cursor)

    def run(self) -> Iterator[AuditFinding]:
        """The differences, as they are found. Raises OSError when a tree's root cannot be read."""
        try:
            start = self._start
            for tree in self._trees:
                if self.stop_wanted:
                    break
                if start is not None and start.tree in self._by_name and start.tree != tree.name:
                    continue
                yield from self._audit_tree(tree, None if start is None else start.path)
                start = None
            yield from self._judge()
        finally:
            if self._reader is not None:
                self._reader.close()
                self._reader = None

    def _taken(self, size_bytes: int) -> None:
        wait = self._rate.take(size_bytes)
        if wait > 0:
            self._pause(wait)

    def _renew(self, *, age_seconds_max: float = SNAPSHOT_SECONDS) -> IndexReader:
        """The snapshot of the index, a new one when it has grown old: nothing of the old one may be in use."""
        now = self._clock()
        if self._reader is None or now - self._reader_since >= age_seconds_max:
            if self._reader is not None:
                self._reader.close()
            self._reader = self._take_snapshot()
            self._reader_since = now
            totals = self._reader.totals()
            self._totals = (totals.directories + totals.files + totals.symlinks, totals.bytes)
        return self._reader

    # -- first look ----------------------------------------------------------------------------------------------------

    def _audit_tree(self, tree: Tree, after: bytes | None) -> Iterator[AuditFinding]:
        walk = Walk(self._renew(), tree.name, after)
        if after is None:
            self._audit_root(tree)
        while (place := walk.next(self._renew())) is not None:
            self._audit_directory(tree, *place)
            if self.stop_wanted:
                return
            self._looked = Cursor(tree.name, place[0])
            if len(self._suspects) >= SUSPECTS_MAX:
                yield from self._judge()
            elif not self._suspects:
                self._cursor = self._looked

    def _audit_root(self, tree: Tree) -> None:
        fd = open_directory(os.fsencode(tree.root), b"")
        try:
            self._look(tree, b"", self._renew().at(tree.name, b""), fd, b"", 1)
        finally:
            if fd is not None:
                os.close(fd)

    def _audit_directory(self, tree: Tree, path: bytes, directory: int) -> None:
        fd = open_directory(os.fsencode(tree.root), path)
        try:
            extras = set(map(os.fsencode, os.listdir(f"/proc/self/fd/{fd}"))) if fd is not None else set()
            after = b""
            while chunk := children_after(self._renew(), directory, after):
                after = chunk[-1].name
                for name, row, links in chunk:
                    if self.stop_wanted:
                        return
                    extras.discard(name)
                    child = joined(path, name)
                    if not tree.excluded(child, directory=row.kind == NodeKind.DIRECTORY):
                        self._look(tree, child, row, fd, name, links)
            for name in extras:
                self._look(tree, joined(path, name), None, fd, name, 0)
        finally:
            if fd is not None:
                os.close(fd)

    def _look(self, tree: Tree, path: bytes, row: Node | None, fd: int | None, name: bytes, links: int) -> None:
        if row is not None:
            self._entries += 1
            self._bytes += row.size
        suspect = self._suspect(tree, path, row, fd, name, links)
        if suspect is not None:
            self._suspects.append(suspect)

    def _suspect(
        self, tree: Tree, path: bytes, row: Node | None, fd: int | None, name: bytes, links: int
    ) -> _Suspect | None:
        """What differs at one place; None when nothing does."""
        status = status_at(fd, name)
        if row is None:
            if status is None or not _protected(tree, path, status):
                return None
            return _Suspect(tree.name, path, None, signature(status), (Trait(What.EXTRA, ""),))
        traits = tuple(self._compare.differences(row, fd, name, status))
        if status is not None and row.kind == NodeKind.FILE and (links > 1 or status.st_nlink > 1):
            traits += self._link_differences(tree, row, fd, name, status)
        return _Suspect(tree.name, path, row, signature(status), traits) if traits else None

    def _link_differences(
        self, tree: Tree, row: Node, fd: int | None, name: bytes, status: os.stat_result
    ) -> tuple[Trait, ...]:
        """Whether the names of *row* are one file on disk, and this file is no other row."""
        reader = self._reader
        assert reader is not None, "looked at without a snapshot"
        for parent, other in reader.names(row.id):
            place = reader.path(parent, other)
            found = None if place is None else self._status(tree, place[1])
            if found is not None and place is not None and found.st_ino != status.st_ino:
                return (Trait(What.LINKS, f"not the same file as {os.fsdecode(place[1])!r}"),)
        if status.st_nlink > 1 and fd is not None:
            handle = handle_at(fd, name)
            other_row = None if handle is None else reader.by_handle(handle)
            if other_row is not None and other_row.id != row.id:
                return (Trait(What.LINKS, "the same file as another path, should be its own"),)
        return ()

    def _status(self, tree: Tree, path: bytes) -> os.stat_result | None:
        above, _, name = path.rpartition(b"/")
        fd = open_directory(os.fsencode(tree.root), above)
        try:
            return status_at(fd, name)
        finally:
            if fd is not None:
                os.close(fd)

    # -- judging -------------------------------------------------------------------------------------------------------

    def _judge(self) -> Iterator[AuditFinding]:
        """Rounds over the suspects, until each is explained, confirmed or given up."""
        suspects, self._suspects = self._suspects, []
        settled: set[tuple[str, bytes]] = set()
        for _ in range(ROUNDS_MAX):
            if not suspects:
                break
            reader = self._renew(age_seconds_max=0)
            still = []
            for suspect in suspects:
                again = self._look_again(suspect, reader)
                place = (suspect.tree, suspect.path)
                if again is None:
                    continue
                if place in settled and again == suspect:
                    yield from (AuditFinding(*place, str(what), detail) for what, detail in again.traits)
                else:
                    settled.add(place)
                    still.append(again)
            suspects = still
        self._unsettled += len(suspects)
        self._cursor = self._looked

    def _look_again(self, suspect: _Suspect, reader: IndexReader) -> _Suspect | None:
        tree = self._by_name[suspect.tree]
        row = reader.at(suspect.tree, suspect.path)
        above, _, name = suspect.path.rpartition(b"/")
        fd = open_directory(os.fsencode(tree.root), above)
        try:
            links = 2 if any(trait.what is What.LINKS for trait in suspect.traits) else 1
            return self._suspect(tree, suspect.path, row, fd, name, links)
        finally:
            if fd is not None:
                os.close(fd)


def _protected(tree: Tree, path: bytes, status: os.stat_result) -> bool:
    kind = status.st_mode & 0o170000
    if kind not in (0o100000, 0o040000, 0o120000):
        return False
    return not tree.excluded(path, directory=kind == 0o040000)
