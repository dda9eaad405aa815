"""Which names the log's records touched since the last snapshot: where a snapshot from the log has to look.

Only that, never what stands there: the tree index tells. So a name too many costs a look, and nothing else. What must
not happen is a name too few: directories that were moved are followed, with all that was touched in them.

Memory is bounded: past ``NAMES_MAX`` everything counts as touched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from holdfast.changes.change import Change, Link, Mkdir, Rename, Rmdir

NAMES_MAX: Final = 200_000
"""About 60 MB. Looking at everything costs some microseconds a file."""


class TouchedDirectory:
    """*names*: what to look at in it. *below*: directories in which something was touched, or which came to where they
    are. *origin*: its path at the last snapshot; None: it was not there."""

    __slots__ = ("below", "names", "origin")

    def __init__(self, origin: bytes | None) -> None:
        self.origin = origin
        self.names: set[bytes] = set()
        self.below: dict[bytes, TouchedDirectory] = {}

    def origin_of(self, name: bytes) -> bytes | None:
        """The path at the last snapshot of the directory *name* in this one."""
        below = self.below.get(name)
        if below is not None:
            return below.origin
        if self.origin is None:
            return None
        return self.origin + b"/" + name if self.origin else name


_GONE: Final = TouchedDirectory(None)
"""Stands where a directory (or file) was moved away or removed: what comes to stand there is another one."""


class Move(NamedTuple):
    """A directory stands at *path*. *origin*: where it stood at the last snapshot; None: it was not there."""

    path: bytes
    origin: bytes | None


IsDirectory = Callable[[str, bytes], bool]
"""Whether a directory stood at that path of that tree at the last snapshot."""


class Touched:
    """What was touched since the last snapshot. *everything*: look everywhere."""

    def __init__(self, is_directory: IsDirectory, *, everything: bool = False) -> None:
        self._is_directory = is_directory
        self.everything = everything
        self.trees: dict[str, TouchedDirectory] = {}
        self._count = 0

    def __bool__(self) -> bool:
        return self.everything or bool(self.trees)

    def touch_everything(self) -> None:
        self.everything = True
        self.trees = {}
        self._count = 0

    def clear(self) -> None:
        """A snapshot was made: begin anew."""
        self.everything = False
        self.trees = {}
        self._count = 0

    def look(self, tree: str, path: bytes) -> None:
        """The next snapshot is to look at *path*, whether it is touched or not."""
        if not self.everything:
            directory, name = self._place(tree, path)
            directory.names.add(name)

    def add(self, change: Change) -> None:
        """One change, in the order of the log."""
        if self.everything:
            return
        if not change.path:
            self._root(change.tree)  # the root's own metadata is looked at in any case
            return
        directory, name = self._place(change.tree, change.path)
        directory.names.add(name)
        if isinstance(change, Link):
            to, to_name = self._place(change.tree, change.to)
            to.names.add(to_name)
        elif isinstance(change, Rename):
            self._rename(change, directory, name)
        elif isinstance(change, Mkdir):
            directory.below[name] = TouchedDirectory(None)
        elif isinstance(change, Rmdir):
            directory.below[name] = _GONE
        self._count += 1
        if self._count > NAMES_MAX:
            self.touch_everything()

    def _rename(self, change: Rename, directory: TouchedDirectory, name: bytes) -> None:
        moved = directory.below.get(name)
        if moved is None:
            origin = directory.origin_of(name)
            if origin is not None and self._is_directory(change.tree, origin):
                moved = TouchedDirectory(origin)
        if moved is not None:
            directory.below[name] = _GONE
        to, to_name = self._place(change.tree, change.to)
        to.names.add(to_name)
        if moved is not None and moved is not _GONE:
            to.below[to_name] = moved

    def _root(self, tree: str) -> TouchedDirectory:
        root = self.trees.get(tree)
        if root is None:
            root = self.trees[tree] = TouchedDirectory(b"")
        return root

    def _place(self, tree: str, path: bytes) -> tuple[TouchedDirectory, bytes]:
        here = self._root(tree)
        *above, name = path.split(b"/")
        for component in above:
            below = here.below.get(component)
            if below is None or below is _GONE:
                below = here.below[component] = TouchedDirectory(here.origin_of(component))
                self._count += 1
            here = below
        return here, name

    def directories(self, tree: str) -> Iterator[tuple[bytes, TouchedDirectory]]:
        """All directories in which something was touched, with their paths, those above before those below."""
        pending = [(b"", self.trees[tree])] if tree in self.trees else []
        while pending:
            path, directory = pending.pop()
            yield path, directory
            for name, below in directory.below.items():
                if below is not _GONE:
                    pending.append((path + b"/" + name if path else name, below))

    def moves(self, tree: str) -> list[Move]:
        """Directories that do not stand where their parent's origin puts them, those above before those below."""
        found = []
        for path, directory in self.directories(tree):
            for name, below in directory.below.items():
                usual = None
                if directory.origin is not None:
                    usual = directory.origin + b"/" + name if directory.origin else name
                if below.origin != usual or below is _GONE:
                    found.append(Move(path + b"/" + name if path else name, below.origin))
        return sorted(found, key=lambda move: move.path.count(b"/"))
