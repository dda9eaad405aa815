"""System calls that Python 3.11 does not offer: namespaces, mounts, filesystem shutdown. Linux only.

Every call raises OSError with the path or the word that helps.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

CLONE_NEWNS: Final = 0x00020000
CLONE_NEWCGROUP: Final = 0x02000000
CLONE_NEWUTS: Final = 0x04000000
CLONE_NEWIPC: Final = 0x08000000
CLONE_NEWPID: Final = 0x20000000
CLONE_NEWNET: Final = 0x40000000

MS_RDONLY: Final = 0x1
MS_NOSUID: Final = 0x2
MS_NODEV: Final = 0x4
MS_NOEXEC: Final = 0x8
MS_REMOUNT: Final = 0x20
MS_BIND: Final = 0x1000
MS_REC: Final = 0x4000
MS_PRIVATE: Final = 1 << 18
MS_SLAVE: Final = 1 << 19
MNT_DETACH: Final = 0x2

PR_SET_NAME: Final = 15
PR_SET_CHILD_SUBREAPER: Final = 36

FS_IOC_SHUTDOWN: Final = 0x8004587D
SHUTDOWN_NO_LOG_FLUSH: Final = 2
"""The journal's unwritten part is dropped too (EXT4_GOING_FLAGS_NOLOGFLUSH): what a power cut leaves."""

_SYS_PIVOT_ROOT: Final = {"x86_64": 155, "aarch64": 41, "riscv64": 41}
_libc: Final = ctypes.CDLL(None, use_errno=True)


def _checked(result: int, what: str) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), what)


def unshare(flags: int) -> None:
    """unshare(2)."""
    _checked(_libc.unshare(ctypes.c_int(flags)), "unshare")


def setns(descriptor: int, kind: int) -> None:
    """setns(2): this thread joins the namespace of *kind* (a CLONE_NEW flag, or 0 for any)."""
    _checked(_libc.setns(ctypes.c_int(descriptor), ctypes.c_int(kind)), "setns")


def mount(source: str | Path, target: str | Path, kind: str = "", flags: int = 0, options: str = "") -> None:
    """mount(2)."""
    done = _libc.mount(
        os.fsencode(source), os.fsencode(target), kind.encode() or None, ctypes.c_ulong(flags), options.encode() or None
    )
    _checked(done, str(target))


def bind(source: str | Path, target: str | Path, *, read_only: bool) -> None:
    """Show *source* (not what is mounted below it) at *target*, which exists."""
    mount(source, target, flags=MS_BIND)
    if read_only:
        mount("", target, flags=MS_BIND | MS_REMOUNT | MS_RDONLY)


def unmount(target: str | Path, flags: int = 0) -> None:
    """umount2(2)."""
    _checked(_libc.umount2(os.fsencode(target), ctypes.c_int(flags)), str(target))


def pivot_root(new_root: str | Path, put_old: str | Path) -> None:
    """pivot_root(2); glibc has no wrapper."""
    number = _SYS_PIVOT_ROOT[os.uname().machine]
    _checked(_libc.syscall(ctypes.c_long(number), os.fsencode(new_root), os.fsencode(put_old)), str(new_root))


def process_name(name: str) -> None:
    """What ps(1) shows in its short form; the kernel keeps 15 bytes."""
    _checked(_libc.prctl(PR_SET_NAME, name.encode()[:15], 0, 0, 0), "prctl PR_SET_NAME")


def become_subreaper() -> None:
    """Orphaned descendants become children of this process (prctl(2))."""
    _checked(_libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "prctl PR_SET_CHILD_SUBREAPER")


def shut_filesystem_down(path: Path) -> None:
    """Drop everything the filesystem mounted at *path* has not synced; every later write to it fails.

    Needs CAP_SYS_ADMIN and ext4 (or xfs, f2fs).
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(descriptor, FS_IOC_SHUTDOWN, struct.pack("I", SHUTDOWN_NO_LOG_FLUSH))
    finally:
        os.close(descriptor)


def sync_filesystem(path: Path) -> None:
    """syncfs(2) of the filesystem that holds the folder *path*."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _checked(_libc.syncfs(ctypes.c_int(descriptor)), str(path))
    finally:
        os.close(descriptor)


@contextmanager
def network_namespace(path: Path) -> Iterator[None]:
    """Sockets made by this thread inside the block belong to the network namespace *path*; they keep belonging to it
    after.

    Other threads are not touched, so do not await inside.
    """
    home = os.open(f"/proc/self/task/{threading.get_native_id()}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        away = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            setns(away, CLONE_NEWNET)
        finally:
            os.close(away)
        try:
            yield
        finally:
            setns(home, CLONE_NEWNET)
    finally:
        os.close(home)


def process_start_ticks(pid: int) -> int | None:
    """Start time of *pid* in clock ticks since boot (proc(5), field 22): with it a pid names one process for good.

    None when there is no such process (a zombie has none either, as far as we care).
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text[text.rindex(")") + 2 :].split()
    return None if fields[0] in "ZX" else int(fields[19])
