"""Events of whole filesystems: fanotify(7) with filesystem marks, Linux 5.17 and CAP_SYS_ADMIN.

Events tell the directory's handle, the name in it, and the handle of the thing: its identity at the moment of the
event, whatever it is called when the event is read. One mark serves any number of directories. The kernel's queue is
without a limit of its own: it is emptied all the time (see ``Watcher``), and our dirty set has one.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterator
from typing import Final

from holdfast.trees.stat import TAG_BYTES
from holdfast.watch.hints import (
    ATTRIB,
    CLOSE_WRITE,
    CREATE,
    DELETE,
    MODIFY,
    NAMES,
    ON_DIRECTORY,
    OVERFLOW,
    RENAME,
    DirtySet,
    Hint,
    Where,
)

READ_BYTES: Final = 64 * 1024
"""About 500 events."""
PARSED_MAX: Final = 20_000
"""Events remembered in parsed form: the files that change with every message come by again and again. About 10 MB."""

_CLOEXEC: Final = 0x1
_NONBLOCK: Final = 0x2
_UNLIMITED_QUEUE: Final = 0x10
_REPORT: Final = 0x200 | 0x400 | 0x800 | 0x1000  # FID, DIR_FID, NAME, TARGET_FID: FAN_REPORT_DFID_NAME_TARGET
_MARK_ADD: Final = 0x1
_MARK_FILESYSTEM: Final = 0x100
_MASK: Final = MODIFY | ATTRIB | CLOSE_WRITE | CREATE | DELETE | RENAME | ON_DIRECTORY

_INFO_FID: Final = 1
_INFO_DFID: Final = 3
_INFO_NAMED: Final = frozenset({2, 10, 12})
"""FAN_EVENT_INFO_TYPE_DFID_NAME, OLD_DFID_NAME, NEW_DFID_NAME."""

_EVENT: Final = struct.Struct("=I2xHQ8x")
"""Length of all, of the head, mask; between them version, descriptor and process, fanotify(7)."""
_INFO: Final = struct.Struct("=BxH8xI")
"""Kind, length, handle_bytes; 8 bytes fsid stand before these, the handle's type and the handle after them."""
_HANDLE_AT: Final = 16

_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.fanotify_mark.argtypes = (ctypes.c_int, ctypes.c_uint, ctypes.c_uint64, ctypes.c_int, ctypes.c_char_p)


class Fanotify:
    """One group with a mark on each filesystem."""

    kind = "fanotify"

    def __init__(self, root_fds: list[int], *, queue_unlimited: bool = True) -> None:
        """Raises OSError: EPERM (not permitted), EINVAL (kernel too old), ENODEV, EXDEV, EOPNOTSUPP (filesystem)."""
        flags = _CLOEXEC | _NONBLOCK | _REPORT | (_UNLIMITED_QUEUE if queue_unlimited else 0)
        self._fd = _checked(_libc.fanotify_init(flags, os.O_RDONLY | os.O_LARGEFILE), "fanotify_init")
        try:
            for root_fd in root_fds:
                marked = _libc.fanotify_mark(self._fd, _MARK_ADD | _MARK_FILESYSTEM, _MASK, root_fd, None)
                _checked(marked, "fanotify_mark")
        except OSError:
            os.close(self._fd)
            raise
        self._parsed: dict[bytes, tuple[Where, ...]] = {}

    def fileno(self) -> int:
        return self._fd

    def drain(self, into: DirtySet, entries_max: int) -> None:
        raw, known, unpack = into.raw, into.raw.get, _EVENT.unpack_from
        while True:
            try:
                events = os.read(self._fd, READ_BYTES)
            except BlockingIOError:
                return
            at, end = 0, len(events)
            while at < end:
                length, head, mask = unpack(events, at)
                if mask & OVERFLOW:
                    into.overflowed = True
                else:
                    key = events[at + head : at + length]
                    raw[key] = known(key, 0) | mask
                at += length
            if into.overflowed or len(raw) > entries_max:
                into.overflow()

    def hints(self, dirty: DirtySet) -> Iterator[Hint]:
        parsed = self._parsed
        for raw, mask in dirty.raw.items():
            found = parsed.get(raw)
            if found is None:
                found = _parse(raw)
                if not mask & NAMES:
                    if len(parsed) >= PARSED_MAX:
                        parsed.clear()
                    parsed[raw] = found
            for where in found:
                yield where, mask

    def watch(self, directory_fd: int, handle: bytes) -> None:
        """Nothing to do: the filesystem is marked."""

    def close(self) -> None:
        os.close(self._fd)


def _parse(raw: bytes) -> tuple[Where, ...]:
    """What the information records of an event tell: of a rename two places."""
    unpack = _INFO.unpack_from
    child: bytes | None = None
    places: list[tuple[bytes, bytes]] = []
    at, end = 0, len(raw)
    while at < end:
        kind, length, handle_bytes = unpack(raw, at)
        body = at + _HANDLE_AT + 4 + handle_bytes
        handle = raw[at + 4 : at + 4 + TAG_BYTES] + raw[at + _HANDLE_AT : body]
        if kind == _INFO_FID:
            child = handle
        elif kind in _INFO_NAMED:
            name = raw[body : raw.index(0, body)]
            places.append((handle, b"" if name == b"." else name))
        elif kind == _INFO_DFID:
            places.append((handle, b""))
        at += length
    if len(places) == 1:
        return ((*places[0], child, None),)
    if len(places) == 2:  # a rename: from here, to there
        return ((*places[0], child, places[1]), (*places[1], child, None))
    return ((None, b"", child, None),)


def _checked(result: int, call: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}")
    return result


NOT_HERE: Final = frozenset(
    {errno.EPERM, errno.EINVAL, errno.ENODEV, errno.EXDEV, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMFILE, errno.EACCES}
)
"""Errors that mean: use inotify."""
