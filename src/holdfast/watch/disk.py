"""The trees on this machine's disk, by identity: directories by node id and handle, and what stands in them.

Nothing here follows a symlink. Where handles can be opened (CAP_DAC_READ_SEARCH) a directory is found by its handle,
whatever it is called now; elsewhere by its path in the index, and only when its identity is the expected one.
"""

from __future__ import annotations

import errno
import os
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from holdfast.errors import EnvironmentUnfit, Refused
from holdfast.trees.index import SUPER_ROOT, Index, Node, NodeKind
from holdfast.trees.spec import RESERVED_NAME, Tree
from holdfast.trees.stat import (
    TAG_BYTES,
    HandleReader,
    Observed,
    has_handles,
    observed,
    open_handle,
    read_xattrs,
)
from holdfast.watch.hints import Where
from holdfast.watch.limits import Limits

Place = tuple[int, bytes]
"""A name in a directory: node id and name."""

Spot = tuple[Place | None, bytes | None, bool]
"""A file in a directory the index knows: place, handle, whether it is to be read first. Without place: what is left
out, of which only the handle counts."""

LINKS_UNKNOWN: Final = 1 << 30
_GONE: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ESTALE})
_DIRECTORY_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE_FLAGS: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


class Found(NamedTuple):
    """What stands at a place: its identity and how it looks."""

    handle: bytes
    seen: Observed


class Unreadable(Exception):
    """What stands at a place cannot be told or read: *reason* for people. Leaves the log's view of it as it is."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Directory:
    """A directory the index knows."""

    __slots__ = ("handle", "id", "path", "prefix", "tree")

    def __init__(self, node_id: int, tree: Tree, path: bytes, handle: bytes | None) -> None:
        self.id = node_id
        self.tree = tree
        self.path = path
        self.prefix = path + b"/" if path else b""
        self.handle = handle


class _Root:
    """A tree's root, open."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self.fd = os.open(tree.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self.handles = HandleReader(self.fd)
        handle = self.handles.read(self.fd, b"")
        self.mount_id = self.handles.mount_id
        assert handle is not None, "an open directory has a handle"
        self.handle = handle
        self.device = os.fstat(self.fd).st_dev


class Disk:
    """Looks at the trees. Single-threaded, like the index it stands on."""

    def __init__(
        self, index: Index, trees: Mapping[str, Tree], limits: Limits, skip: Callable[[str, bytes, str], None]
    ) -> None:
        """*skip(tree, path, what)* is told of what is not protected because of its kind."""
        self._index = index
        self._trees = trees
        self._limits = limits
        self._skip = skip
        self._roots: dict[str, _Root] = {}
        self._by_tag: dict[bytes, _Root] = {}
        self._by_handle: dict[bytes, Directory | None] = {}
        self._by_id: dict[int, Directory | None] = {}
        self._fds: OrderedDict[int, int] = OrderedDict()
        self._files: OrderedDict[int, int] = OrderedDict()
        """Files kept open by node id, those used last."""
        self.patterns: dict[Place, int] = {}
        """For the reconciler: which patterns match a file there. Forgotten with the paths."""
        self.spots: dict[Where, Spot] = {}
        """For the reconciler: what events of a file's content come to. Forgotten with the paths, too."""
        self._noatime = os.O_NOATIME if os.geteuid() == 0 else 0
        self.opens_handles = True

    # -- roots ---------------------------------------------------------------------------------------------------------

    def open_roots(self) -> None:
        """Open every tree's root, and make the directory of ours in it. Raises Refused, EnvironmentUnfit."""
        for name, tree in self._trees.items():
            if name not in self._roots:
                self._open_root(name, tree)

    def _open_root(self, name: str, tree: Tree) -> None:
        try:
            root = _Root(tree)
        except OSError as error:
            raise EnvironmentUnfit(
                f"tree {name!r}: its root {tree.root} cannot be opened ({error.strerror})",
                hint="Is its filesystem mounted? The log keeps what it has; start again when the directory is there.",
            ) from error
        self._check_same_root(name, root)
        for parts in ((RESERVED_NAME,), (RESERVED_NAME, b"cookies"), (RESERVED_NAME, b"staging")):
            try:
                os.mkdir(b"/".join(parts), 0o700, dir_fd=root.fd)
            except FileExistsError:
                continue
            except OSError as error:
                if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT):
                    raise
        self._roots[name] = root
        self._by_tag[root.handle[:TAG_BYTES]] = root
        if not has_handles(root.handle) or not self._may_open(root):
            self.opens_handles = False

    def _check_same_root(self, name: str, root: _Root) -> None:
        """An empty mount point must not be taken for a tree whose files were all deleted."""
        node_id = self._index.directory(name, b"")
        node = None if node_id is None else self._index.node(node_id)
        if node is None or node.handle is None or node.handle == root.handle or not self._index.has_children(node.id):
            return
        try:
            os.stat(RESERVED_NAME, dir_fd=root.fd, follow_symlinks=False)
        except FileNotFoundError:
            os.close(root.fd)
            raise Refused(
                f"tree {name!r}: another directory stands at {root.tree.root}, and it was never protected",
                hint=f"Mount the right filesystem; if it is to replace the old one, mkdir {root.tree.root}/.holdfast",
            ) from None

    def _may_open(self, root: _Root) -> bool:
        try:
            fd = open_handle(root.fd, root.handle, os.O_PATH)
        except OSError:
            return False
        if fd is None:
            return False
        os.close(fd)
        return True

    def root(self, name: str) -> tuple[int, bytes]:
        """An open descriptor of a tree's root, and its handle."""
        root = self._roots[name]
        return root.fd, root.handle

    def close(self) -> None:
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()
        self.close_files()
        for root in self._roots.values():
            os.close(root.fd)
        self._roots.clear()
        self._by_tag.clear()

    # -- directories ---------------------------------------------------------------------------------------------------

    def directory(self, node_id: int) -> Directory | None:
        """The directory, by node id; None when the index has it no more."""
        try:
            return self._by_id[node_id]
        except KeyError:
            pass
        known: Directory | None = None
        place = self._index.path(node_id)
        if place is not None:
            node, tree = self._index.node(node_id), self._trees.get(place[0])
            if node is not None and tree is not None:
                known = Directory(node_id, tree, place[1], node.handle)
        if len(self._by_id) >= self._limits.directories_cached_max:
            self._by_id.clear()
        self._by_id[node_id] = known
        return known

    def directory_of(self, handle: bytes) -> Directory | None:
        """The directory, by handle; None when it is not protected (or not yet known)."""
        try:
            return self._by_handle[handle]
        except KeyError:
            pass
        node = self._index.by_handle(handle)
        known = None if node is None or node.kind != NodeKind.DIRECTORY else self.directory(node.id)
        if len(self._by_handle) >= self._limits.directories_cached_max:
            self._by_handle.clear()
        self._by_handle[handle] = known
        return known

    def forget(self) -> None:
        """Directories came, went or were renamed: what is remembered of paths may be wrong."""
        self.patterns.clear()
        self.spots.clear()
        self._by_id.clear()
        self._by_handle.clear()

    def came(self, node_id: int, handle: bytes | None) -> None:
        """A directory is new in the index, or now has this handle."""
        self._by_id.pop(node_id, None)
        if handle is not None:
            self._by_handle.pop(handle, None)

    def refresh(self) -> None:
        """Another batch begins. Without handles, an open directory may be an old one whose inode number came again."""
        if not self.opens_handles:
            for fd in self._fds.values():
                os.close(fd)
            self._fds.clear()

    def close_directory(self, node_id: int) -> None:
        fd = self._fds.pop(node_id, None)
        if fd is not None:
            os.close(fd)

    def fd(self, directory: Directory) -> int | None:
        """An open descriptor of the directory, ours to keep; None when it is no more. Raises Unreadable."""
        fd = self._fds.get(directory.id)
        if fd is not None:
            self._fds.move_to_end(directory.id)
            return fd
        try:
            fd = self._open_directory(directory)
        except OSError as error:
            if error.errno in _GONE or error.errno == errno.ELOOP:
                return None
            raise Unreadable(os.strerror(error.errno or 0)) from error
        if fd is not None:
            if len(self._fds) >= self._limits.directory_fds_max:
                os.close(self._fds.popitem(last=False)[1])
            self._fds[directory.id] = fd
        return fd

    def _open_directory(self, directory: Directory) -> int | None:
        root = self._roots[directory.tree.name]
        if not directory.path:
            return os.dup(root.fd)
        if self.opens_handles and directory.handle is not None:
            return open_handle(root.fd, directory.handle, os.O_RDONLY | os.O_DIRECTORY)
        fd = os.dup(root.fd)
        for name in directory.path.split(b"/"):
            above = fd
            try:
                fd = os.open(name, _DIRECTORY_FLAGS, dir_fd=above)
            finally:
                os.close(above)
        if directory.handle is not None and root.handles.read(fd, b"") != directory.handle:
            os.close(fd)
            return None
        return fd

    def handle_of_open(self, directory: Directory, fd: int) -> bytes | None:
        return self._roots[directory.tree.name].handles.read(fd, b"")

    # -- things --------------------------------------------------------------------------------------------------------

    def look(self, directory: Directory, name: bytes) -> Found | None:
        """What stands at *name*; None for nothing, or what is not protected. Raises Unreadable."""
        fd = self.fd(directory)
        if fd is None:
            return None
        root = self._roots[directory.tree.name]
        for _ in range(3):
            try:
                status = os.stat(name, dir_fd=fd, follow_symlinks=False)
            except OSError as error:
                if error.errno in _GONE:
                    return None
                raise Unreadable(os.strerror(error.errno or 0)) from error
            seen = observed(status)
            if self.excluded(directory, name, is_directory=seen is not None and seen.kind is NodeKind.DIRECTORY):
                return None
            if seen is None:
                self._skip(directory.tree.name, directory.prefix + name, _KIND_NAMES[status.st_mode & 0o170000])
                return None
            try:
                handle = root.handles.read(fd, name)
            except OSError as error:
                raise Unreadable(os.strerror(error.errno or 0)) from error
            if root.handles.mount_id != root.mount_id and has_handles(root.handle):
                raise Unreadable("another filesystem is mounted here: protect it as a tree of its own")
            if status.st_dev != root.device and seen.kind is NodeKind.DIRECTORY and not has_handles(root.handle):
                raise Unreadable("another filesystem is mounted here: protect it as a tree of its own")
            if handle is not None:
                return Found(handle, seen)
        return None

    def status(self, directory: Directory, name: bytes) -> os.stat_result | None:
        """How what stands at *name* looks; None when nothing does, or it cannot be told."""
        try:
            fd = self.fd(directory)
            return None if fd is None else os.stat(name, dir_fd=fd, follow_symlinks=False)
        except (OSError, Unreadable):
            return None

    @staticmethod
    def excluded(directory: Directory, name: bytes, *, is_directory: bool) -> bool:
        """Whether a thing at *name* is left out."""
        tree = directory.tree
        if tree.decides_by_name:
            return tree.excluded_name(name, directory=is_directory)
        return tree.excluded(directory.prefix + name, directory=is_directory)

    def names(self, directory: Directory) -> list[bytes] | None:
        """All names in a directory, unsorted; None when it is no more. Raises Unreadable."""
        fd = self.fd(directory)
        if fd is None:
            return None
        try:
            return [os.fsencode(name) for name in os.listdir(fd)]
        except OSError as error:
            if error.errno in _GONE:
                return None
            raise Unreadable(os.strerror(error.errno or 0)) from error

    def open_file(self, directory: Directory, name: bytes) -> int | None:
        """Open for reading what stands at *name*; None when nothing stands there. Raises Unreadable."""
        fd = self.fd(directory)
        if fd is None:
            return None
        try:
            return os.open(name, _FILE_FLAGS | self._noatime, dir_fd=fd)
        except OSError as error:
            if error.errno in _GONE or error.errno in (errno.ELOOP, errno.ENXIO):
                return None
            raise Unreadable(os.strerror(error.errno or 0)) from error

    def xattrs(self, directory: Directory, name: bytes) -> tuple[tuple[bytes, bytes], ...]:
        """Extended attributes of what stands at *name* (of a symlink itself). Raises Unreadable."""
        fd = self.fd(directory)
        try:
            return () if fd is None else read_xattrs(b"/proc/self/fd/%d/%s" % (fd, name))
        except OSError as error:
            if error.errno in _GONE:
                return ()
            raise Unreadable(os.strerror(error.errno or 0)) from error

    def kept_open(self, node_id: int) -> tuple[int, os.stat_result] | None:
        """A file that :meth:`keep_open` took, to be given back to it, and how it looks; None when there is none, or it
        has no name any more."""
        fd = self._files.pop(node_id, None)
        if fd is None:
            return None
        try:
            status = os.fstat(fd)
        except OSError:
            os.close(fd)
            return None
        if not status.st_nlink:
            os.close(fd)
            return None
        return fd, status

    def keep_open(self, node_id: int, fd: int) -> None:
        """Take an open file: it is of those that change again and again. Ours to close."""
        if not self.opens_handles:  # an inode number is all that tells a file from the next one
            os.close(fd)
            return
        self._files[node_id] = fd
        if len(self._files) > self._limits.file_fds_max:
            os.close(self._files.popitem(last=False)[1])

    def close_file(self, node_id: int) -> None:
        """The file has no name any more: its space must not be kept for us."""
        fd = self._files.pop(node_id, None)
        if fd is not None:
            os.close(fd)

    def close_files(self) -> None:
        while self._files:
            os.close(self._files.popitem()[1])

    def open_node(self, node: Node) -> int | None:
        """Open a file for reading by its identity; None when it is no more, or cannot be opened so here."""
        if node.handle is None or not self.opens_handles:
            return None
        root = self._by_tag.get(node.handle[:TAG_BYTES])
        if root is None:
            return None
        try:
            return open_handle(root.fd, node.handle, os.O_RDONLY | os.O_NONBLOCK | self._noatime)
        except OSError as error:
            raise Unreadable(os.strerror(error.errno or 0)) from error

    def links(self, node: Node) -> int:
        """How many names the node has now, wherever: 0 when it is no more, many when that cannot be told here. A
        directory counts as one."""
        if node.handle is None:
            return 0
        links = self._links_of(node.handle)
        return min(links, 1) if node.kind == NodeKind.DIRECTORY else links

    def exists(self, handle: bytes) -> bool:
        """Whether what *handle* names has a name anywhere."""
        return self._links_of(handle) > 0

    def _links_of(self, handle: bytes) -> int:
        if not self.opens_handles:
            return LINKS_UNKNOWN
        root = self._by_tag.get(handle[:TAG_BYTES])
        if root is None:
            return 0
        try:
            fd = open_handle(root.fd, handle, os.O_PATH)
        except OSError:
            return LINKS_UNKNOWN
        if fd is None:
            return 0
        try:
            return os.fstat(fd).st_nlink
        finally:
            os.close(fd)

    def link_target(self, directory: Directory, name: bytes) -> bytes | None:
        """Where the symlink *name* points to; None when there is none (any more)."""
        try:
            fd = self.fd(directory)
            return None if fd is None else os.readlink(name, dir_fd=fd)
        except (OSError, Unreadable):
            return None


def ensure_root(index: Index, tree: Tree, node: Node) -> int:
    """Bring a tree's root into the index; its node id."""
    node_id = index.add(node)
    index.bind(SUPER_ROOT, tree.name.encode(), node_id)
    index.forget_paths()
    return node_id


_KIND_NAMES: Final = {0o140000: "socket", 0o010000: "fifo", 0o060000: "block device", 0o020000: "character device"}
