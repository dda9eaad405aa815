"""Events of single directories: inotify(7). Works without rights and on any local filesystem, one watch a directory.

The kernel's limit of watches (fs.inotify.max_user_watches) bounds the number of directories; its queue
(max_queued_events) overflows earlier than fanotify's. A watch is bound to the directory itself, whatever it is called.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterator
from typing import Final

from holdfast.errors import EnvironmentUnfit
from holdfast.watch.hints import (
    ATTRIB,
    CLOSE_WRITE,
    CREATE,
    DELETE,
    MODIFY,
    MOVED_FROM,
    MOVED_TO,
    ON_DIRECTORY,
    OVERFLOW,
    RENAME,
    DirtySet,
    Hint,
)

READ_BYTES: Final = 256 * 1024
_MASK: Final = MODIFY | ATTRIB | CLOSE_WRITE | CREATE | DELETE | MOVED_FROM | MOVED_TO
_ONLYDIR: Final = 0x01000000
_EXCL_UNLINK: Final = 0x04000000
_IGNORED: Final = 0x8000
_MIXED: Final = 1 << 32
"""Ours: events of a directory and of something else came together at one name."""
_EVENT: Final = struct.Struct("=iIII")
_WD: Final = struct.Struct("=i")

_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.inotify_add_watch.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_uint32)


class Inotify:
    """One instance; a watch for each directory it was told of."""

    kind = "inotify"

    def __init__(self) -> None:
        """Raises OSError (EMFILE: fs.inotify.max_user_instances)."""
        self._fd: int = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0:
            number = ctypes.get_errno()
            raise OSError(number, f"inotify_init1: {os.strerror(number)}")
        self._handles: dict[int, bytes] = {}
        self._moved = 0, b""
        self._buffer = bytearray(READ_BYTES)

    def fileno(self) -> int:
        return self._fd

    def drain(self, into: DirtySet, entries_max: int) -> None:
        buffer, view, raw = self._buffer, memoryview(self._buffer), into.raw
        while True:
            try:
                end = os.readv(self._fd, [buffer])
            except BlockingIOError:
                return
            at = 0
            while at < end:
                descriptor, mask, cookie, length = _EVENT.unpack_from(buffer, at)
                name_at = at + _EVENT.size
                at = name_at + length
                if mask & OVERFLOW:
                    into.overflowed = True
                elif mask & _IGNORED:
                    self._handles.pop(descriptor, None)
                else:
                    key = _WD.pack(descriptor) + bytes(view[name_at:at]).rstrip(b"\0")
                    seen = raw.get(key, mask)
                    raw[key] = seen | mask | (_MIXED if (seen ^ mask) & ON_DIRECTORY else 0)
                    if mask & MOVED_FROM:
                        self._moved = cookie, key
                    elif mask & MOVED_TO and cookie == self._moved[0]:
                        into.renamed.append((self._moved[1], key))
            if into.overflowed or len(raw) + len(into.renamed) > entries_max:
                into.overflow()

    def hints(self, dirty: DirtySet) -> Iterator[Hint]:
        for raw, mask in dirty.raw.items():
            place = self._place(raw)
            if place is not None and mask & _MIXED:  # what is left out as a directory may be protected as a file
                yield (*place, None, None), mask & ~_MIXED
                yield (*place, None, None), mask & ~(_MIXED | ON_DIRECTORY)
            elif place is not None:
                yield (*place, None, None), mask
        for raw, to in dirty.renamed:
            place, target = self._place(raw), self._place(to)
            if place is not None and target is not None:
                yield (*place, None, target), RENAME

    def _place(self, raw: bytes) -> tuple[bytes, bytes] | None:
        handle = self._handles.get(_WD.unpack_from(raw)[0])
        return None if handle is None else (handle, raw[_WD.size :])

    def watch(self, directory_fd: int, handle: bytes) -> None:
        path = b"/proc/self/fd/%d" % directory_fd
        descriptor = _libc.inotify_add_watch(self._fd, path, _MASK | _ONLYDIR | _EXCL_UNLINK)
        if descriptor < 0:
            number = ctypes.get_errno()
            if number == errno.ENOSPC:
                raise EnvironmentUnfit(
                    "more directories than this machine lets us watch (fs.inotify.max_user_watches)",
                    hint="Raise it with sysctl, or run the agent where fanotify is permitted (root, CAP_SYS_ADMIN).",
                )
            raise OSError(number, f"inotify_add_watch: {os.strerror(number)}")
        self._handles[descriptor] = handle

    def close(self) -> None:
        os.close(self._fd)
