"""Contents and metadata of one thing, written through its descriptor or its name in an open directory."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable
from typing import Final, NamedTuple

from holdfast.changes.change import Extent, Meta
from holdfast.trees.stat import Owners, read_xattrs

CAPABILITY_XATTR: Final = b"security.capability"
"""Every write and chown takes it away: capabilities(7)."""


class Described(NamedTuple):
    """:class:`Meta` in the numbers of this machine."""

    mode: int
    uid: int
    gid: int
    mtime_ns: int
    xattrs: tuple[tuple[bytes, bytes], ...]


def described(meta: Meta, owners: Owners) -> Described:
    return Described(meta.mode, owners.uid(meta.owner), owners.gid(meta.group), meta.mtime_ns, meta.xattrs)


def write_extents(fd: int, extents: Iterable[Extent]) -> int:
    """Write all bytes, leaving holes between; the end of the last one (0 without any). Raises OSError."""
    end = 0
    for extent in extents:
        offset, data = extent.offset, extent.data
        written = os.pwrite(fd, data, offset)
        if written != len(data):
            rest = memoryview(data)[written:]
            at = offset + written
            while rest:
                step = os.pwrite(fd, rest, at)
                rest, at = rest[step:], at + step
        end = max(end, offset + len(data))
    return end


def describe_new(fd: int, wanted: Described) -> None:
    """Metadata of a file from :meth:`Place.stage`: owner first (chown clears set-user-ID bits), mtime last."""
    if wanted.uid or wanted.gid:
        os.fchown(fd, wanted.uid, wanted.gid)
    if wanted.mode != 0o600:
        os.fchmod(fd, wanted.mode)
    for name, value in wanted.xattrs:
        os.setxattr(fd, name, value)
    os.utime(fd, ns=(wanted.mtime_ns, wanted.mtime_ns))


def describe(
    fd: int, seen: os.stat_result, wanted: Described, *, xattrs_differ: bool, mtime_differs: bool = False
) -> None:
    """Metadata of an open file or directory that stands as *seen*; only what differs is written.

    *mtime_differs*: the file was written since it was seen.
    """
    chowned = seen.st_uid != wanted.uid or seen.st_gid != wanted.gid
    if chowned:
        os.fchown(fd, wanted.uid, wanted.gid)
    if stat.S_IMODE(seen.st_mode) != wanted.mode or (chowned and wanted.mode & 0o6000):
        os.fchmod(fd, wanted.mode)
    if xattrs_differ:
        set_xattrs(fd, wanted.xattrs)
    if mtime_differs or seen.st_mtime_ns != wanted.mtime_ns:
        os.utime(fd, ns=(wanted.mtime_ns, wanted.mtime_ns))


def describe_link(directory_fd: int, name: bytes, wanted: Described) -> None:
    """Metadata of a symlink: it has no permission bits of its own on Linux, symlink(7)."""
    os.chown(name, wanted.uid, wanted.gid, dir_fd=directory_fd, follow_symlinks=False)
    path = b"/proc/self/fd/%d/%s" % (directory_fd, name)
    if wanted.xattrs or read_xattrs(path):
        set_xattrs(path, wanted.xattrs)
    os.utime(name, ns=(wanted.mtime_ns, wanted.mtime_ns), dir_fd=directory_fd, follow_symlinks=False)


def set_xattrs(target: int | bytes, wanted: tuple[tuple[bytes, bytes], ...]) -> None:
    """Exactly these extended attributes stand on *target* (a descriptor, or a path that is not followed)."""
    follow = isinstance(target, int)
    present = dict(read_xattrs(target))
    for name in present.keys() - dict(wanted).keys():
        try:
            os.removexattr(target, name, follow_symlinks=follow)
        except OSError as error:
            if error.errno != errno.ENODATA:
                raise
    for name, value in wanted:
        if present.get(name) != value:
            os.setxattr(target, name, value, follow_symlinks=follow)
