"""When each message appeared on the second machine, for as little CPU as Python allows.

A thread reads inotify events of the ``new`` and ``cur`` directories every few milliseconds and keeps name and time;
which message a file is, is read after the load has ended. The same instrument serves Dovecot's replicator and Holdfast.
"""

from __future__ import annotations

import ctypes
import os
import struct
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

POLL_SECONDS: Final = 0.005
"""Resolution of the times; 200 looks a second cost about one percent of a processor."""
QUIET_SECONDS: Final = 0.3
HEAD_BYTES: Final = 4096
"""A delivered message begins with Return-Path, Delivered-To and Received, then comes what the load wrote first."""
_MOVED_TO: Final = 0x80
_CREATE: Final = 0x100
_OVERFLOW: Final = 0x4000
_EVENT: Final = struct.Struct("=iIII")
_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.inotify_add_watch.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_uint32)


class Arrivals:
    """Watches from the beginning of a ``with`` block to its end."""

    def __init__(self, directories: Iterable[Path]) -> None:
        """Raises OSError."""
        self._fd: int = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "inotify_init1")
        self._directories: dict[int, Path] = {}
        for directory in directories:
            watch = _libc.inotify_add_watch(self._fd, os.fsencode(directory), _MOVED_TO | _CREATE)
            if watch < 0:
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number), str(directory))
            self._directories[watch] = directory
        self._seen: dict[tuple[int, bytes], int] = {}
        self._overflowed = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="arrivals", daemon=True)

    def __enter__(self) -> Arrivals:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        os.close(self._fd)

    @property
    def count(self) -> int:
        """Files seen so far."""
        return len(self._seen)

    def wait(self, count: int, seconds_max: float) -> None:
        """Until *count* files have been seen and then, for a moment, no more; at most *seconds_max*."""
        began = quiet_since = time.monotonic()
        before = -1
        while (now := time.monotonic()) - began < seconds_max:
            if self.count < count or self.count != before:
                quiet_since, before = now, self.count
            if now - quiet_since > QUIET_SECONDS:
                return
            time.sleep(0.02)

    @property
    def last_ns(self) -> int:
        """When the last file was seen; 0: none was."""
        return max(self._seen.values(), default=0)

    def by_message(self) -> dict[str, int]:
        """Message-ID (without ``<>``) to CLOCK_MONOTONIC ns of its first appearance. Raises OSError on overflow."""
        if self._overflowed:
            raise OSError("inotify overflowed: arrivals were missed")
        found: dict[str, int] = {}
        for (watch, name), at_ns in list(self._seen.items()):
            try:
                with (self._directories[watch] / os.fsdecode(name)).open("rb") as file:
                    head = file.read(HEAD_BYTES)
            except FileNotFoundError:  # renamed since: its other name was seen, too
                continue
            start = head.lower().find(b"message-id: <")
            end = head.find(b">", start)
            if start >= 0 and end >= 0:
                message = head[start + 13 : end].decode("ascii", "replace")
                found[message] = min(at_ns, found.get(message, at_ns))
        return found

    def _run(self) -> None:
        buffer = bytearray(1 << 18)
        while not self._stop.wait(POLL_SECONDS):
            try:
                end = os.readv(self._fd, [buffer])
            except BlockingIOError:
                continue
            now_ns = time.monotonic_ns()
            at = 0
            while at < end:
                watch, mask, _, length = _EVENT.unpack_from(buffer, at)
                at += _EVENT.size
                if mask & _OVERFLOW:
                    self._overflowed = True
                else:
                    name = bytes(buffer[at : at + length]).rstrip(b"\0")
                    self._seen.setdefault((watch, name), now_ns)
                at += length
