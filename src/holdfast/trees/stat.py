"""What the filesystem tells of one thing, in the words of changes and of the tree index.

Handles are those of ``name_to_handle_at(2)``: a file's identity on its filesystem that outlives renames and, by the
generation number in it, does not come back with a reused inode. Stored as 4 bytes that tell the filesystem (the root
directories of two ext4 filesystems have the same handle), 4 bytes handle type, then the handle.
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
_libc.name_to_handle_at.argtypes = (
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.c_void_p,
    ctypes.c_void_p,
    ctypes.c_int,
)
_libc.open_by_handle_at.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_int)
_HEAD: Final = struct.Struct("=Ii")
TAG_BYTES: Final = 4
_TYPE_AT: Final = slice(TAG_BYTES, TAG_BYTES + 4)


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


_new_tuple: Final = tuple.__new__
_KINDS: Final = {stat.S_IFREG: NodeKind.FILE, stat.S_IFDIR: NodeKind.DIRECTORY, stat.S_IFLNK: NodeKind.SYMLINK}


def observed(status: os.stat_result) -> Observed | None:
    """The words for a ``stat_result``; None for what is not protected: sockets, fifos, devices."""
    mode = status.st_mode
    kind = _KINDS.get(mode & 0o170000)
    if kind is None:
        return None
    return _new_tuple(  # what Observed() does, without its call: of each file in each batch
        Observed,
        (
            kind,
            status.st_ino,
            mode & 0o7777,
            status.st_uid,
            status.st_gid,
            status.st_size if kind is NodeKind.FILE else 0,
            status.st_mtime_ns,
            status.st_ctime_ns,
            status.st_nlink,
        ),
    )


def filesystem_tag(fd: int) -> bytes:
    """The first bytes of the handles of the filesystem *fd* is on: the first word of its ``f_fsid``, statfs(2)."""
    return (os.fstatvfs(fd).f_fsid & 0xFFFFFFFF).to_bytes(TAG_BYTES, sys.byteorder)


class HandleReader:
    """Reads handles on one filesystem, with buffers of its own: for one thread. *fd*: anything open there."""

    def __init__(self, fd: int) -> None:
        self.tag: Final = filesystem_tag(fd)
        self._buffer = ctypes.create_string_buffer(_HEAD.size + HANDLE_BYTES_MAX)
        self._address = ctypes.addressof(self._buffer)
        self._mount = ctypes.c_int()
        self._mount_address = ctypes.addressof(self._mount)

    @property
    def mount_id(self) -> int:
        """Of what was read last: another one than its directory's tells that something is mounted there."""
        return self._mount.value

    def read(self, directory_fd: int, name: bytes) -> bytes | None:
        """As :func:`handle_at`."""
        _HEAD.pack_into(self._buffer, 0, HANDLE_BYTES_MAX, 0)
        flags = 0 if name else AT_EMPTY_PATH
        if _libc.name_to_handle_at(directory_fd, name, self._address, self._mount_address, flags) == 0:
            raw: bytes = self._buffer.raw
            return self.tag + raw[4 : _HEAD.size + int.from_bytes(raw[:4], sys.byteorder)]
        number = ctypes.get_errno()
        if number in (errno.ENOENT, errno.ESTALE, errno.ENOTDIR):
            return None
        if number == errno.EOPNOTSUPP:
            return _inode_handle(directory_fd, name)
        raise OSError(number, os.strerror(number), name)


def handle_at(directory_fd: int, name: bytes) -> bytes | None:
    """The handle of *name* in an open directory (of the open thing itself when *name* is empty); None when it is gone.

    Raises OSError for everything but "gone" and "this filesystem has no handles".
    """
    return HandleReader(directory_fd).read(directory_fd, name)


def _inode_handle(directory_fd: int, name: bytes) -> bytes | None:
    try:
        status = os.stat(name, dir_fd=directory_fd, follow_symlinks=False) if name else os.fstat(directory_fd)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return bytes(TAG_BYTES) + struct.pack("=iQQ", NO_HANDLE_TYPE, status.st_dev, status.st_ino)


def has_handles(handle: bytes) -> bool:
    """Whether :func:`open_handle` can work with *handle*."""
    return int.from_bytes(handle[_TYPE_AT], sys.byteorder) != NO_HANDLE_TYPE


def open_handle(mount_fd: int, handle: bytes, flags: int) -> int | None:
    """Open what *handle* names (open_by_handle_at(2), needs CAP_DAC_READ_SEARCH); None when it is no more.

    *mount_fd*: anything open on the same filesystem. Raises OSError otherwise (EPERM: not permitted here).
    """
    body = handle[TAG_BYTES + 4 :]
    head = _HEAD.pack(len(body), int.from_bytes(handle[_TYPE_AT], sys.byteorder, signed=True))
    buffer = ctypes.create_string_buffer(head + body)
    fd = _libc.open_by_handle_at(mount_fd, ctypes.addressof(buffer), flags | os.O_CLOEXEC)
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
