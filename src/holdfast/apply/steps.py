"""One change, made in the filesystem: the rules for each kind, and for what is found in its way.

========================================  ============================================================================
found                                     done
========================================  ============================================================================
what the change needs is missing          :class:`Diverged`, nothing changed
another thing (another inode) than the    as missing for what would be changed; moved aside where it would be replaced
index knows                               or removed
something unknown where something new     moved aside
comes
what is to be removed is already gone     noted as an oddity
in a directory to be removed stands       files that a pattern excludes are deleted with it; the rest, a machine's
something                                 own files included, is moved aside
========================================  ============================================================================

The index is asked before, so that a change that does not fit it touches nothing; it is told after, by the caller, with
what was seen here. Each step can be repeated after it failed for want of space.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Final, NamedTuple

from holdfast.apply.aside import Aside
from holdfast.apply.content import (
    CAPABILITY_XATTR,
    Described,
    describe,
    describe_link,
    describe_new,
    described,
    write_extents,
)
from holdfast.apply.divergence import ODDITIES_MAX, Diverged, Oddity, RecoveryNeeded
from holdfast.apply.place import Place, Staged
from holdfast.changes.change import (
    Change,
    Link,
    Meta,
    Mkdir,
    Patch,
    Put,
    Remove,
    Rename,
    Rmdir,
    SetMeta,
    Symlink,
)
from holdfast.errors import ConfigurationError
from holdfast.trees.index import Index, Node, NodeKind
from holdfast.trees.replay import ReplayGap, Sighting
from holdfast.trees.spec import PatternSet, Tree
from holdfast.trees.stat import Owners, pack_xattrs


class _Begun(NamedTuple):
    """A new file whose parts are coming."""

    tree: str
    path: bytes
    staged: Staged


class Steps:
    """Makes changes in the trees' filesystems."""

    def __init__(
        self, index: Index, trees: Mapping[str, Tree], places: Mapping[str, Place], owners: Owners, aside: Aside
    ) -> None:
        self._index = index
        self._places = places
        self._excluded = {name: PatternSet(tree.spec.exclude) for name, tree in trees.items()}
        self._own = {name: {os.fsencode(p.strip("/")) for p in tree.spec.overrides} for name, tree in trees.items()}
        self._owners = owners
        self._aside = aside
        self._begun: _Begun | None = None
        self.unfinished: set[tuple[str, bytes]] = set()
        """Known files whose patch in parts has begun: their bytes are between two states."""
        self.oddities: deque[Oddity] = deque(maxlen=ODDITIES_MAX)
        self.oddities_count = 0
        self._makers: dict[type, Callable[[Any, Place], Sighting | None]] = {
            Put: self._put,
            Patch: self._patch,
            Rename: self._rename,
            Link: self._link,
            Remove: self._remove,
            Mkdir: self._mkdir,
            Rmdir: self._rmdir,
            SetMeta: self._set_meta,
            Symlink: self._symlink,
        }

    def make(self, change: Change) -> Sighting | None:
        """Make *change*; what then stands there, where the index has to know. Raises Diverged, ReplayGap, OSError."""
        place = self._places.get(change.tree)
        if place is None:
            raise ConfigurationError(
                f"the log has changes of tree {change.tree!r}, which this machine does not have",
                hint="Give this machine the same trees as the primary (the [tree] sections), or re-seed it.",
            )
        if self._begun is not None and not self._continues(change):
            self.abandon()
        return self._makers[type(change)](change, place)

    def _continues(self, change: Change) -> bool:
        """Whether *change* is a further part of the new file begun; its parts follow each other at once."""
        begun = self._begun
        return begun is not None and isinstance(change, Patch) and (change.tree, change.path) == begun[:2]

    def abandon(self) -> None:
        """The file in parts will not be finished: take away what there is of it."""
        if self._begun is not None:
            self._places[self._begun.tree].discard(self._begun.staged)
            self._begun = None

    def drop(self) -> None:
        """Close what is open and leave the rest: recovery clears it."""
        if self._begun is not None:
            os.close(self._begun.staged.fd)
            self._begun = None

    # -- what the index and the filesystem say -------------------------------------------------------------------------

    def _expected(self, change: Change, path: bytes) -> Node:
        node = self._index.at(change.tree, path)
        if node is None:
            raise ReplayGap(change, f"nothing stands at {path!r}")
        return node

    @staticmethod
    def _is(seen: os.stat_result, node: Node, path: bytes, place: Place) -> bool:
        """Whether what was seen at *path* is the thing the index knows. Inode numbers are used again at once (ext4);
        an inode whose ctime is the one we saw last was not."""
        if not _alike(seen, node):
            return False
        return seen.st_ctime_ns == node.ctime_ns or _handle_is(place, *place.parent(path), node)

    def _replaceable(self, change: Change, path: bytes, place: Place) -> bool:
        """Whether *path* is taken by a file the index knows; what else the index does not know is moved aside."""
        above, _, name = path.rpartition(b"/")
        parent = self._index.directory(change.tree, above)
        if parent is None:
            raise ReplayGap(change, f"there is no directory {above!r}")
        standing = self._index.child(parent, name)
        if standing is None:
            return False
        if standing.kind == NodeKind.DIRECTORY:
            raise ReplayGap(change, f"a directory stands at {path!r}")
        seen = place.status(path)
        if seen is None:
            return False
        if self._is(seen, standing, path, place):
            return True
        self._move_aside(change, path, place)
        return False

    def _move_aside(self, change: Change, path: bytes, place: Place) -> None:
        self._aside.take(place, change.tree, path, "stood where the log put something else")
        self._note(change.tree, path, "something the log does not know stood there; moved aside")

    def _note(self, tree: str, path: bytes, what: str) -> None:
        self.oddities.append(Oddity(tree, path, what))
        self.oddities_count += 1

    def _place_new(self, change: Change, path: bytes, place: Place, make: Callable[[bool], None]) -> None:
        """Run *make* (its argument: replace) so that something new stands at *path*."""
        replace = self._replaceable(change, path, place)
        try:
            make(replace)
        except FileExistsError:
            self._move_aside(change, path, place)
            make(False)

    # -- files ---------------------------------------------------------------------------------------------------------

    def _put(self, change: Put, place: Place) -> Sighting | None:
        if not change.more:
            return self._complete(change, place, place.stage())
        self._begun = _Begun(change.tree, change.path, place.stage())
        write_extents(self._begun.staged.fd, change.extents)
        return None

    def _patch(self, change: Patch, place: Place) -> Sighting | None:
        if self._begun is None:
            return self._patch_known(change, place)
        if change.more:
            write_extents(self._begun.staged.fd, change.extents)
            return None
        # Should space run out now, this last part is asked for again: the earlier ones must not go with it.
        sighting = self._complete(change, place, self._begun.staged, keep=True)
        self._begun = None
        return sighting

    def _complete(self, change: Put | Patch, place: Place, staged: Staged, *, keep: bool = False) -> Sighting:
        """Write the (last) part of a new file and give it its name."""
        try:
            if write_extents(staged.fd, change.extents) != change.size or keep:
                os.ftruncate(staged.fd, change.size)
            describe_new(staged.fd, described(change.meta, self._owners))
            self._place_new(
                change, change.path, place, lambda replace: place.settle(staged, change.path, replace=replace)
            )
        except BaseException:
            if not keep:
                place.discard(staged)
            raise
        sighting = _sighting(os.fstat(staged.fd), place.handles.read(staged.fd, b""))
        os.close(staged.fd)
        return sighting

    def _patch_known(self, change: Patch, place: Place) -> Sighting:
        node = self._expected(change, change.path)
        fd, before = self._open_known(change, node, place, os.O_WRONLY)
        try:
            end = write_extents(fd, change.extents)
            if not change.more and max(before.st_size, end) != change.size:
                os.ftruncate(fd, change.size)
            self._describe(fd, before, change.meta, node, written=True)
            after = os.fstat(fd)
        finally:
            os.close(fd)
        key = change.tree, change.path
        if change.more:
            self.unfinished.add(key)
        elif self.unfinished:
            self.unfinished.discard(key)
        return _sighting(after)

    def _open_known(self, change: Change, node: Node, place: Place, flags: int) -> tuple[int, os.stat_result]:
        try:
            fd = place.open(change.path, flags)
        except OSError as error:
            if error.errno == errno.ELOOP and self._is_link(change.path, place):
                raise Diverged(change.tree, change.path, "a symlink stands there") from None
            raise
        seen = os.fstat(fd)
        if not _alike(seen, node) or (seen.st_ctime_ns != node.ctime_ns and not _handle_is(place, fd, b"", node)):
            os.close(fd)
            raise Diverged(change.tree, change.path, "another thing stands there")
        return fd, seen

    @staticmethod
    def _is_link(path: bytes, place: Place) -> bool:
        seen = place.status(path)
        return seen is not None and stat.S_ISLNK(seen.st_mode)

    def _describe(self, fd: int, seen: os.stat_result, meta: Meta, node: Node, *, written: bool) -> None:
        xattrs_differ = pack_xattrs(meta.xattrs) != node.xattrs
        if meta.xattrs and not xattrs_differ:
            xattrs_differ = any(name == CAPABILITY_XATTR for name, _ in meta.xattrs)
        describe(fd, seen, described(meta, self._owners), xattrs_differ=xattrs_differ, mtime_differs=written)

    def _set_meta(self, change: SetMeta, place: Place) -> Sighting:
        if not change.path and self._index.directory(change.tree, b"") is None:  # the first change of a tree
            return describe_directory(place, b"", described(change.meta, self._owners))
        node = self._expected(change, change.path)
        if node.kind == NodeKind.SYMLINK:
            self._checked(change, change.path, node, place)
            describe_link(*place.parent(change.path), described(change.meta, self._owners))
            return _sighting(self._checked(change, change.path, node, place))
        fd, before = self._open_known(change, node, place, os.O_RDONLY)
        try:
            self._describe(fd, before, change.meta, node, written=False)
            return _sighting(os.fstat(fd))
        finally:
            os.close(fd)

    # -- names ---------------------------------------------------------------------------------------------------------

    def _checked(self, change: Change, path: bytes, node: Node, place: Place) -> os.stat_result:
        seen = place.status(path)
        if seen is None:
            raise Diverged(change.tree, path, "it is missing")
        if not self._is(seen, node, path, place):
            raise Diverged(change.tree, path, "another thing stands there")
        return seen

    def _arrived(self, change: Rename | Link, node: Node, place: Place) -> Sighting:
        seen = place.status(change.to)
        if seen is None or not _alike(seen, node):
            raise RecoveryNeeded(
                f"somebody else changes tree {change.tree!r} at {change.to!r} while the log is applied",
                hint="Stop what writes to this standby's copy; the agent recovers by itself.",
                retry=True,
            )
        return _sighting(seen)

    def _rename(self, change: Rename, place: Place) -> Sighting:
        node = self._expected(change, change.path)
        self._checked(change, change.path, node, place)
        self._place_new(change, change.to, place, lambda replace: place.rename(change.path, change.to, replace=replace))
        if node.kind == NodeKind.DIRECTORY:
            place.forget(change.path)
        return self._arrived(change, node, place)

    def _link(self, change: Link, place: Place) -> Sighting:
        node = self._expected(change, change.path)
        self._checked(change, change.path, node, place)
        self._place_new(change, change.to, place, lambda replace: place.link(change.path, change.to, replace=replace))
        return self._arrived(change, node, place)

    def _symlink(self, change: Symlink, place: Place) -> Sighting:
        wanted = described(change.meta, self._owners)

        def make(replace: bool) -> None:
            place.symlink(change.target, change.path, replace=replace)

        self._place_new(change, change.path, place, make)
        directory, name = place.parent(change.path)
        try:
            describe_link(directory, name, wanted)
        except OSError:
            place.unlink(change.path)
            raise
        seen = os.stat(name, dir_fd=directory, follow_symlinks=False)
        return _sighting(seen, place.handles.read(directory, name))

    def _remove(self, change: Remove, place: Place) -> None:
        node = self._expected(change, change.path)
        if node.kind == NodeKind.DIRECTORY:
            raise ReplayGap(change, "a directory stands there")
        seen = place.status(change.path)
        if seen is None:
            self._note(change.tree, change.path, "was already gone when the log removed it")
        elif self._is(seen, node, change.path, place):
            place.unlink(change.path)
        else:
            self._move_aside(change, change.path, place)

    # -- directories ---------------------------------------------------------------------------------------------------

    def _mkdir(self, change: Mkdir, place: Place) -> Sighting:
        if self._replaceable(change, change.path, place):
            raise ReplayGap(change, "a file stands there")
        try:
            place.mkdir(change.path, 0o700)
        except FileExistsError:
            self._move_aside(change, change.path, place)
            place.mkdir(change.path, 0o700)
        wanted = described(change.meta, self._owners)
        try:
            return describe_directory(place, change.path, wanted)
        except OSError:
            with suppress(OSError):
                place.rmdir(change.path)
            raise

    def _rmdir(self, change: Rmdir, place: Place) -> None:
        node = self._expected(change, change.path)
        if node.kind != NodeKind.DIRECTORY or self._index.has_children(node.id):
            raise ReplayGap(change, "no directory, or not an empty one")
        seen = place.status(change.path)
        if seen is None:
            self._note(change.tree, change.path, "was already gone when the log removed it")
            place.forget(change.path)
        elif not self._is(seen, node, change.path, place):
            self._move_aside(change, change.path, place)
        else:
            try:
                place.rmdir(change.path)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                self._empty(change, change.path, place)
                place.rmdir(change.path)

    def _empty(self, change: Rmdir, path: bytes, place: Place) -> None:
        """Clear a directory of what the log does not know."""
        excluded = self._excluded[change.tree]
        for name, is_directory in place.listing(path):
            below = path + b"/" + name
            own = below in self._own[change.tree]
            try:
                if own or not excluded.matches(below, directory=is_directory):
                    self._move_aside(change, below, place)
                elif is_directory:
                    place.rmdir(below)
                else:
                    place.unlink(below)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                self._move_aside(change, below, place)


def describe_directory(place: Place, path: bytes, wanted: Described) -> Sighting:
    """Metadata of a new directory, which may have inherited an ACL or a group from the one above it."""
    fd = place.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        describe(fd, os.fstat(fd), wanted, xattrs_differ=True)
        return _sighting(os.fstat(fd), place.handles.read(fd, b""))
    finally:
        os.close(fd)


_FORMATS: Final = {
    int(NodeKind.DIRECTORY): stat.S_IFDIR,
    int(NodeKind.FILE): stat.S_IFREG,
    int(NodeKind.SYMLINK): stat.S_IFLNK,
}


def _alike(seen: os.stat_result, node: Node) -> bool:
    return seen.st_ino == node.ino and stat.S_IFMT(seen.st_mode) == _FORMATS[node.kind]


def _handle_is(place: Place, directory: int, name: bytes, node: Node) -> bool:
    return node.handle is None or place.handles.read(directory, name) == node.handle


def _sighting(status: os.stat_result, handle: bytes | None = None) -> Sighting:
    return Sighting(status.st_ino, status.st_ctime_ns, handle)
