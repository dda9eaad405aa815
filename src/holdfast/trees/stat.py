"""What the filesystem tells of one thing, in the words of changes and of the tree index.

Handles are those of ``name_to_handle_at(2)``: a file's identity on its filesystem that outlives renames and, by the
generation number in it, does not come back with a reused inode. Stored as 4 bytes handle type, then the handle.
Where the filesystem has none (overlayfs without an index, some network filesystems) device and inode number stand in,
as handle type ``NO_HANDLE_TYPE``.
"""

from __future__ import annotations

import ctypes
import errno
import grp
import os
import pwd
import stat
import struct
import sys
from typing import Final, NamedTuple

import msgspec

from holdfast.changes.change import Meta
from holdfast.trees.index import NodeKind

HANDLE_BYTES_MAX: Final = 128
"""MAX_HANDLE_SZ, fcntl.h."""
NO_HANDLE_TYPE: Final = 0x7FFFFFFF
AT_EMPTY_PATH: Final = 0x1000
_libc: Final = ctypes.CDLL(None, use_errno=True)
_HEAD: Final = struct.Struct("=Ii")


class Observed(NamedTuple):
    """One thing as it stands on this machine."""

    kind: NodeKind
    ino: int
    mode: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    ctime_ns: int
    links: int


_KINDS: Final = {stat.S_IFREG: NodeKind.FILE, stat.S_IFDIR: NodeKind.DIRECTORY, stat.S_IFLNK: NodeKind.SYMLINK}


def observed(status: os.stat_result) -> Observed | None:
    """The words for a ``stat_result``; None for what is not protected: sockets, fifos, devices."""
    kind = _KINDS.get(status.st_mode & 0o170000)
    if kind is None:
        return None
    return Observed(
        kind,
        status.st_ino,
        status.st_mode & 0o7777,
        status.st_uid,
        status.st_gid,
        status.st_size if kind is NodeKind.FILE else 0,
        status.st_mtime_ns,
        status.st_ctime_ns,
        status.st_nlink,
    )


def handle_at(directory_fd: int, name: bytes) -> bytes | None:
    """The handle of *name* in an open directory (of the open thing itself when *name* is empty); None when it is gone.

    Raises OSError for everything but "gone" and "this filesystem has no handles".
    """
    buffer = ctypes.create_string_buffer(_HEAD.size + HANDLE_BYTES_MAX)
    _HEAD.pack_into(buffer, 0, HANDLE_BYTES_MAX, 0)
    mount_id = ctypes.c_int()
    flags = 0 if name else AT_EMPTY_PATH
    if _libc.name_to_handle_at(directory_fd, name, buffer, ctypes.byref(mount_id), flags) == 0:
        raw: bytes = buffer.raw
        size = int.from_bytes(raw[:4], sys.byteorder)
        return raw[4 : _HEAD.size + size]
    number = ctypes.get_errno()
    if number in (errno.ENOENT, errno.ESTALE, errno.ENOTDIR):
        return None
    if number == errno.EOPNOTSUPP:
        return _inode_handle(directory_fd, name)
    raise OSError(number, os.strerror(number), name)


def _inode_handle(directory_fd: int, name: bytes) -> bytes | None:
    try:
        status = os.stat(name, dir_fd=directory_fd, follow_symlinks=False) if name else os.fstat(directory_fd)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return NO_HANDLE_TYPE.to_bytes(4, "little") + struct.pack("=QQ", status.st_dev, status.st_ino)


def has_handles(handle: bytes) -> bool:
    """Whether :func:`open_handle` can work with *handle*."""
    return int.from_bytes(handle[:4], "little") != NO_HANDLE_TYPE


def open_handle(mount_fd: int, handle: bytes, flags: int) -> int | None:
    """Open what *handle* names (open_by_handle_at(2), needs CAP_DAC_READ_SEARCH); None when it is no more.

    *mount_fd*: anything open on the same filesystem. Raises OSError otherwise (EPERM: not permitted here).
    """
    body = handle[4:]
    buffer = ctypes.create_string_buffer(
        _HEAD.pack(len(body), int.from_bytes(handle[:4], "little", signed=True)) + body
    )
    fd = _libc.open_by_handle_at(mount_fd, buffer, flags | os.O_CLOEXEC)
    if fd >= 0:
        return int(fd)
    number = ctypes.get_errno()
    if number in (errno.ESTALE, errno.ENOENT):
        return None
    raise OSError(number, os.strerror(number))


def read_xattrs(target: int | bytes) -> tuple[tuple[bytes, bytes], ...]:
    """Extended attributes, sorted, of an open file or of a path (not followed). Empty where there are none."""
    follow = isinstance(target, int)
    try:
        names = os.listxattr(target, follow_symlinks=follow)
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EPERM):
            return ()
        raise
    pairs = []
    for name in names:
        try:
            pairs.append((os.fsencode(name), os.getxattr(target, name, follow_symlinks=follow)))
        except OSError as error:
            if error.errno != errno.ENODATA:  # taken away between the two calls
                raise
    return tuple(sorted(pairs))


def pack_xattrs(xattrs: tuple[tuple[bytes, bytes], ...]) -> bytes:
    """The form the tree index stores."""
    return msgspec.msgpack.encode(xattrs) if xattrs else b""


def unpack_xattrs(packed: bytes) -> tuple[tuple[bytes, bytes], ...]:
    return msgspec.msgpack.decode(packed, type=tuple[tuple[bytes, bytes], ...]) if packed else ()


class Owners:
    """Names of users and groups to numbers of this machine, and back. Remembers; :meth:`forget` after they changed."""

    def __init__(self) -> None:
        self._uids: dict[str, int] = {}
        self._gids: dict[str, int] = {}
        self._users: dict[int, str] = {}
        self._groups: dict[int, str] = {}
        self.unknown: set[str] = set()
        """Names that came in a change and do not exist on this machine: what they own stands under root meanwhile."""

    def forget(self) -> None:
        for cache in (self._uids, self._gids, self._users, self._groups, self.unknown):
            cache.clear()

    def user(self, uid: int) -> str:
        name = self._users.get(uid)
        if name is None:
            try:
                name = pwd.getpwuid(uid).pw_name
            except KeyError:
                name = f"#{uid}"
            self._users[uid] = name
        return name

    def group(self, gid: int) -> str:
        name = self._groups.get(gid)
        if name is None:
            try:
                name = grp.getgrgid(gid).gr_name
            except KeyError:
                name = f"#{gid}"
            self._groups[gid] = name
        return name

    def uid(self, user: str) -> int:
        uid = self._uids.get(user)
        if uid is None:
            try:
                uid = int(user[1:]) if user.startswith("#") else pwd.getpwnam(user).pw_uid
            except (KeyError, ValueError):
                self.unknown.add(f"user {user}")
                return 0
            self._uids[user] = uid
        return uid

    def gid(self, group: str) -> int:
        gid = self._gids.get(group)
        if gid is None:
            try:
                gid = int(group[1:]) if group.startswith("#") else grp.getgrnam(group).gr_gid
            except (KeyError, ValueError):
                self.unknown.add(f"group {group}")
                return 0
            self._gids[group] = gid
        return gid

    def meta(self, seen: Observed, xattrs: tuple[tuple[bytes, bytes], ...]) -> Meta:
        return Meta(seen.mode, self.user(seen.uid), self.group(seen.gid), seen.mtime_ns, xattrs)
