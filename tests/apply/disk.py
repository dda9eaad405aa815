"""A small ext4 filesystem in a file: it can be full, and its power can be cut. Needs root and loop devices."""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
import subprocess
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from pathlib import Path
from typing import Final, ParamSpec

from holdfast.apply.syscalls import sync_filesystem

P = ParamSpec("P")
CLONE_NEWNS: Final = 0x00020000
FS_IOC_SHUTDOWN: Final = 0x8004587D
NO_LOG_FLUSH: Final = struct.pack("=I", 2)
"""EXT4_GOING_FLAGS_NOLOGFLUSH: what the journal has not written is gone."""


def in_own_namespace(test: Callable[P, None]) -> Callable[P, None]:
    """Run *test* in a child process with mounts of its own.

    A filesystem is gone only when its last mount is: a mount namespace that somebody else makes meanwhile (a lab, a
    container) would hold a copy of ours, and with it the filesystem whose power was cut.
    """

    @wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                libc = ctypes.CDLL(None, use_errno=True)
                if libc.unshare(CLONE_NEWNS) != 0:
                    raise OSError(ctypes.get_errno(), "unshare")
                subprocess.run(["mount", "--make-rprivate", "/"], check=True)
                test(*args, **kwargs)
                status = 0
            finally:
                if status:
                    traceback.print_exc()
                sys.stderr.flush()
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, "see the child's traceback"

    return run


class Disk:
    """Mounted at ``folder/disk``."""

    def __init__(self, folder: Path, mebibytes: int, *options: str) -> None:
        self.image = folder / "disk.img"
        self.path = folder / "disk"
        self.path.mkdir()
        with self.image.open("wb") as file:
            file.truncate(mebibytes << 20)
        subprocess.run(["mkfs.ext4", "-q", "-F", *options, self.image], check=True)
        self._mounted = False
        self.mount()

    def mount(self) -> None:
        subprocess.run(["mount", "-o", "loop", self.image, self.path], check=True)
        self._mounted = True

    def unmount(self) -> None:
        if self._mounted:
            subprocess.run(["umount", self.path], check=True)
            self._mounted = False

    def cut_power(self) -> None:
        """Everything not yet synced is gone, and every write fails from now on."""
        fd = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.ioctl(fd, FS_IOC_SHUTDOWN, NO_LOG_FLUSH)
        finally:
            os.close(fd)

    def restore_power(self) -> None:
        """After everything on it was closed."""
        self.unmount()
        self.mount()
        fd = os.open(self.path, os.O_RDONLY)
        with suppress(OSError):  # a loop device remembers, and tells once, that writes failed without power
            sync_filesystem(fd)
        os.close(fd)
