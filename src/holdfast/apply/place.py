"""Places in a tree: every step in the filesystem that an applier, a seed or a repair makes.

A :class:`Place` is one tree's root, opened. All paths are relative to it, reached by descriptors of directories and
through no symlink; a path whose directory is a symlink is refused (ELOOP) and nothing is touched. Primitives raise
``OSError`` as the kernel gave it; :func:`world_error` makes a HoldfastError of it.

Directories' descriptors are remembered, so a directory is resolved once. One that this program renames or removes is
forgotten; one that somebody else moves meanwhile keeps its descriptor, and what is written goes where it went: the
tree's owner may move directories, but no one gets a write *through* a link.

Our own folder ``.holdfast`` at the root holds ``staging`` (new files before they get their name) and ``aside``.
The modification times of directories are nobody's concern here.
"""

from __future__ import annotations

import errno
import os
from collections import OrderedDict
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Final, NamedTuple

from holdfast.apply.syscalls import open_directory, rename_to_free, sync_filesystem
from holdfast.errors import EnvironmentUnfit, HoldfastError, NoSpace, Refused
from holdfast.trees.spec import RESERVED_NAME
from holdfast.trees.stat import HandleReader

DIRECTORIES_OPEN_MAX: Final = 400
"""Descriptors kept per tree: the usual limit of a process is 1024, and there are four or five trees."""
STAGING: Final = RESERVED_NAME + b"/staging"
ASIDE: Final = RESERVED_NAME + b"/aside"
_FILE_FLAGS: Final = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
"""NONBLOCK: a fifo that stands where a file should must not hang us."""
_NEW_FILE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
PRIVATE_MODE: Final = 0o600


class SymlinkInTheWay(Refused):
    """A change's path leads through a symlink: applying it could write outside the tree."""


class Staged(NamedTuple):
    """A new file without a place yet: open for writing, owned by us, mode ``PRIVATE_MODE``."""

    fd: int
    name: bytes


class Place:
    """A tree's root, opened for changes. Not for several threads, except :meth:`sync`."""

    def __init__(self, root: Path, *, directories_open_max: int = DIRECTORIES_OPEN_MAX) -> None:
        """Open *root*, which must exist, and make our folder in it. Raises OSError."""
        self.root = root
        self.fd: Final = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self.device: Final = os.fstat(self.fd).st_dev
        self.handles: Final = HandleReader(self.fd)
        self._open: OrderedDict[bytes, int] = OrderedDict()
        self._open_max = directories_open_max
        self._numbers = count(1)
        self._make_own_folder(RESERVED_NAME)
        self._make_own_folder(STAGING)
        self.staging_fd: Final = open_directory(self.fd, STAGING)

    def close(self) -> None:
        self.forget(b"")
        os.close(self.staging_fd)
        os.close(self.fd)

    # -- directories ---------------------------------------------------------------------------------------------------

    def directory(self, path: bytes) -> int:
        """A descriptor (``O_PATH``, ours: do not close) of the directory *path*. Raises OSError (ELOOP, ENOENT...)."""
        if not path:
            return self.fd
        fd = self._open.get(path)
        if fd is not None:
            self._open.move_to_end(path)
            return fd
        if len(self._open) >= self._open_max:
            os.close(self._open.popitem(last=False)[1])
        fd = self._open[path] = open_directory(self.fd, path)
        return fd

    def parent(self, path: bytes) -> tuple[int, bytes]:
        """The descriptor of the directory *path* stands in, and its name there (``.`` for the root itself)."""
        above, _, name = path.rpartition(b"/")
        return self.directory(above), name or b"."

    def forget(self, path: bytes) -> None:
        """The directory *path* has another place, or none: drop the descriptors of it and of all below."""
        below = path + b"/"
        for known in [p for p in self._open if not path or p == path or p.startswith(below)]:
            os.close(self._open.pop(known))

    def _make_own_folder(self, path: bytes) -> None:
        directory, name = self.parent(path)
        try:
            os.mkdir(name, 0o700, dir_fd=directory)
        except FileExistsError:
            return
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | _FILE_FLAGS, dir_fd=directory)
        try:
            os.removexattr(fd, "system.posix_acl_default")  # or what we make in it would inherit an ACL
        except OSError as error:
            if error.errno not in (errno.ENODATA, errno.EOPNOTSUPP):
                raise
        finally:
            os.close(fd)

    # -- looking -------------------------------------------------------------------------------------------------------

    def status(self, path: bytes) -> os.stat_result | None:
        """What stands at *path*, not followed; None when nothing does. Raises OSError (ELOOP...)."""
        try:
            directory, name = self.parent(path)
            return os.stat(name, dir_fd=directory, follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def open(self, path: bytes, flags: int) -> int:
        """A descriptor of what stands at *path*, not followed. Raises OSError (ELOOP for a symlink)."""
        directory, name = self.parent(path)
        return os.open(name, flags | _FILE_FLAGS, dir_fd=directory)

    # -- new files -----------------------------------------------------------------------------------------------------

    def stage(self) -> Staged:
        """A new, empty file; :meth:`settle` gives it a place, :meth:`discard` takes it away."""
        name = b"%d" % next(self._numbers)
        return Staged(os.open(name, _NEW_FILE, PRIVATE_MODE, dir_fd=self.staging_fd), name)

    def settle(self, staged: Staged, path: bytes, *, replace: bool) -> None:
        """Give *staged* its place; its descriptor stays open. Without *replace*, FileExistsError when it is taken."""
        directory, name = self.parent(path)
        if replace:
            os.rename(staged.name, name, src_dir_fd=self.staging_fd, dst_dir_fd=directory)
        else:
            rename_to_free(self.staging_fd, staged.name, directory, name)

    def discard(self, staged: Staged) -> None:
        """Close *staged* and take it away."""
        os.close(staged.fd)
        os.unlink(staged.name, dir_fd=self.staging_fd)

    def clear_staging(self) -> int:
        """Take away what an unclean stop left in staging; how many that were."""
        names = os.listdir(self._readable(STAGING))
        for name in names:
            os.unlink(os.fsencode(name), dir_fd=self.staging_fd)
        return len(names)

    def _readable(self, path: bytes) -> Path:
        return Path(os.fsdecode(b"/proc/self/fd/%d" % self.directory(path)))

    # -- names ---------------------------------------------------------------------------------------------------------

    def rename(self, path: bytes, to: bytes, *, replace: bool) -> None:
        """rename(2). Without *replace*, FileExistsError when *to* is taken. The caller forgets moved directories."""
        directory, name = self.parent(path)
        to_directory, to_name = self.parent(to)
        if replace:
            os.rename(name, to_name, src_dir_fd=directory, dst_dir_fd=to_directory)
        else:
            rename_to_free(directory, name, to_directory, to_name)

    def link(self, path: bytes, to: bytes, *, replace: bool) -> None:
        """Give what stands at *path* the further name *to*. Without *replace*, FileExistsError when it is taken."""
        directory, name = self.parent(path)
        to_directory, to_name = self.parent(to)
        if not replace:
            os.link(name, to_name, src_dir_fd=directory, dst_dir_fd=to_directory, follow_symlinks=False)
            return
        temporary = b"%d" % next(self._numbers)
        os.link(name, temporary, src_dir_fd=directory, dst_dir_fd=self.staging_fd, follow_symlinks=False)
        self._settle_name(temporary, to_directory, to_name)

    def symlink(self, target: bytes, path: bytes, *, replace: bool) -> None:
        """A symbolic link. Without *replace*, FileExistsError when *path* is taken."""
        directory, name = self.parent(path)
        if not replace:
            os.symlink(target, name, dir_fd=directory)
            return
        temporary = b"%d" % next(self._numbers)
        os.symlink(target, temporary, dir_fd=self.staging_fd)
        self._settle_name(temporary, directory, name)

    def _settle_name(self, temporary: bytes, directory: int, name: bytes) -> None:
        try:
            os.rename(temporary, name, src_dir_fd=self.staging_fd, dst_dir_fd=directory)
        finally:  # rename(2) onto another name of the same file does nothing and leaves the old name
            with suppress(FileNotFoundError):
                os.unlink(temporary, dir_fd=self.staging_fd)

    def unlink(self, path: bytes) -> None:
        directory, name = self.parent(path)
        os.unlink(name, dir_fd=directory)

    def mkdir(self, path: bytes, mode: int) -> None:
        """A new directory; *mode* is subject to the umask."""
        directory, name = self.parent(path)
        os.mkdir(name, mode, dir_fd=directory)

    def rmdir(self, path: bytes) -> None:
        """Remove an empty directory, and forget its descriptor."""
        directory, name = self.parent(path)
        os.rmdir(name, dir_fd=directory)
        self.forget(path)

    def listing(self, path: bytes) -> list[tuple[bytes, bool]]:
        """Names in the directory *path*, and whether each is a directory. Raises OSError."""
        with os.scandir(self._readable(path)) as entries:
            return [(os.fsencode(e.name), e.is_dir(follow_symlinks=False)) for e in entries]

    def move_aside(self, path: bytes, label: bytes) -> bytes:
        """Take what stands at *path* (with all below) out of the tree; where it is now, relative to the root.

        It keeps its path below ``.holdfast/aside/<label>/<number>/``; nothing there is ever overwritten.
        """
        for number in count():
            box = b"%s/%s/%d" % (ASIDE, label, number)
            above, _, name = (box + b"/" + path).rpartition(b"/")
            try:
                self.make_directories(above)
                directory, own_name = self.parent(path)
                rename_to_free(directory, own_name, self.directory(above), name)
            except (FileExistsError, NotADirectoryError):
                continue
            self.forget(path)
            return above + b"/" + name
        raise AssertionError("unreachable")

    def make_directories(self, path: bytes) -> None:
        """The directory *path* of ours, and those above it, exist (mode 0700)."""
        at = b""
        for name in path.split(b"/"):
            at = at + b"/" + name if at else name
            self._make_own_folder(at)

    def sync(self) -> None:
        """Everything done so far is on disk: syncfs(2). May run in another thread."""
        sync_filesystem(self.fd)


def world_error(error: OSError, what: str) -> HoldfastError:
    """The HoldfastError for what the kernel said while doing *what* (a sentence's subject with names)."""
    reason = os.strerror(error.errno) if error.errno else str(error)
    message = f"{what}: {reason}"
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            return NoSpace(message, hint="Free space on that filesystem, or raise the quota; it goes on.", retry=True)
        case errno.ELOOP:
            return SymlinkInTheWay(
                message, hint="Nothing was written. Find out who put a symlink there; a re-seed puts the tree right."
            )
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return EnvironmentUnfit(message, hint="The agent needs root's rights on a writable filesystem.")
        case errno.EXDEV:
            return EnvironmentUnfit(
                message, hint="A tree must be on one filesystem; protect the mount as its own tree."
            )
        case errno.EMFILE | errno.ENFILE | errno.ENOMEM | errno.EINTR:
            return HoldfastError(message, hint="The machine is short of descriptors or memory.", retry=True)
        case _:
            return HoldfastError(message, hint="See the kernel's log (dmesg) for trouble with that disk.")
