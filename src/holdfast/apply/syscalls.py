"""The three system calls an applier needs that Python does not offer: openat2, renameat2, syncfs (section 2 pages)."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
from typing import Final

_libc: Final = ctypes.CDLL(None, use_errno=True)
_SYS_OPENAT2: Final = 437
"""The same number on every architecture: openat2 is newer than their divergence (asm-generic/unistd.h)."""
_RESOLVE_NO_MAGICLINKS: Final = 0x02
_RESOLVE_NO_SYMLINKS: Final = 0x04
_RESOLVE_BENEATH: Final = 0x08
_HOW: Final = struct.Struct("=QQQ")
_DIRECTORY_FLAGS: Final = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_RENAME_NOREPLACE: Final = 1
_BENEATH: Final = _HOW.pack(_DIRECTORY_FLAGS, 0, _RESOLVE_BENEATH | _RESOLVE_NO_SYMLINKS | _RESOLVE_NO_MAGICLINKS)

_libc.renameat2.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)


def _failed(path: bytes) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number), path)


def open_directory(root_fd: int, path: bytes) -> int:
    """An ``O_PATH`` descriptor of the directory *path* below *root_fd*, reached through no symlink.

    Raises OSError: ELOOP when a component is a symlink, ENOENT, ENOTDIR.
    """
    fd: int = _libc.syscall(_SYS_OPENAT2, root_fd, path or b".", _BENEATH, _HOW.size)
    if fd >= 0:
        return fd
    error = _failed(path)
    if error.errno in (errno.ENOSYS, errno.EPERM):  # before Linux 5.6, or a container whose filter does not know it
        return walk_directory(root_fd, path)
    raise error


def walk_directory(root_fd: int, path: bytes) -> int:
    """:func:`open_directory` without openat2: one component at a time, each not followed."""
    fd = os.open(b".", _DIRECTORY_FLAGS, dir_fd=root_fd)
    for name in path.split(b"/") if path else ():
        if name in (b"", b".", b".."):
            os.close(fd)
            raise OSError(errno.EXDEV, "leaves the tree", path)
        try:
            below = os.open(name, _DIRECTORY_FLAGS | os.O_NOFOLLOW, dir_fd=fd)
        except NotADirectoryError:
            if stat.S_ISLNK(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode):
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path) from None
            raise
        finally:
            os.close(fd)
        fd = below
    return fd


def rename_to_free(from_fd: int, name: bytes, to_fd: int, to_name: bytes) -> None:
    """Rename to a name that must be free. Raises OSError: EEXIST when it is not, else as rename(2)."""
    if _libc.renameat2(from_fd, name, to_fd, to_name, _RENAME_NOREPLACE) == 0:
        return
    error = _failed(to_name)
    if error.errno != errno.EINVAL:
        raise error
    # A filesystem without RENAME_NOREPLACE; EINVAL also means "into itself", which the plain rename tells again.
    try:
        os.stat(to_name, dir_fd=to_fd, follow_symlinks=False)
    except FileNotFoundError:
        os.rename(name, to_name, src_dir_fd=from_fd, dst_dir_fd=to_fd)
        return
    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), to_name)


def sync_filesystem(fd: int) -> None:
    """Write out everything of the filesystem *fd* (not ``O_PATH``) is on. Raises OSError: EIO, ENOSPC, EDQUOT."""
    if _libc.syncfs(fd) != 0:
        raise _failed(b"")
