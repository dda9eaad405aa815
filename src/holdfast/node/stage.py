"""``python -m holdfast.node.stage``: the program of a rehearsal, in namespaces of its own: it reads, plays, tells.

It is started by unshare(1) with new mount, network, process, IPC and UTS namespaces, and makes of them a stage:

* *Nothing gets out.* The network has a loopback interface and no other; the service addresses are put on it. Sockets in
  the filesystem do not belong to a network namespace (unix(7)): ``/run`` and what else they stand in is covered.
* *Nothing is written* but what is thrown away: all mounts are made read-only at once (mount_setattr(2), recursively),
  then empty memory is put over what programs write to, and the sample over ``/etc`` and the trees' roots.
* *Nothing stays.* Mounts, network and memory go with the namespaces; these go with their process 1, which is this
  program, and is killed when the agent ends (``--kill-child``) or has waited long enough.
"""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import ipaddress
import os
import socket
import stat
import struct
import subprocess
import sys
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from holdfast.mail.rehearse import Company, Performance, Play
from holdfast.node import netlink

UNSHARE: Final = (
    *("unshare", "--mount", "--net", "--pid", "--ipc", "--uts"),
    *("--fork", "--kill-child", "--mount-proc", "--propagation", "private"),
)
NO_STAGE: Final = 75
"""Exit status when the stage could not be made: EX_TEMPFAIL of sysexits.h."""
COVERED: Final = ("/run", "/tmp", "/var/tmp", "/var/log", "/dev/shm", "/var/lib/dovecot", "/dev/log")
MEMORY_BYTES_MAX: Final = 256 * 1024 * 1024
SKELETON_DEPTH: Final = 2
"""Programs expect some folders in what is covered (``/run/dovecot``, the hashed queue's): these are made again."""
_AT_FDCWD: Final = -100
_AT_RECURSIVE: Final = 0x8000
_SYS_MOUNT_SETATTR: Final = 442
"""The same number on every architecture; Linux 5.12."""
_READ_ONLY: Final = 1
_MS_NOSUID, _MS_NODEV, _MS_BIND, _MS_REC = 2, 4, 4096, 16384
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1
_libc = ctypes.CDLL(None, use_errno=True)


class Setting(Struct, frozen=True):
    """What the agent hands over. *binds*: folder of the sample, and where it is to be seen."""

    play: Play
    binds: tuple[tuple[str, str], ...]


class _Attributes(ctypes.Structure):
    """struct mount_attr of linux/mount.h."""

    _fields_ = (
        ("set", ctypes.c_uint64),
        ("clear", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("namespace", ctypes.c_uint64),
    )


def main() -> int:
    setting = msgspec.json.decode(sys.stdin.buffer.read(), type=Setting)
    try:
        build(setting)
    except OSError as error:
        print(f"no stage could be made: {error}", file=sys.stderr)
        return NO_STAGE
    performance: Performance = asyncio.run(Company(setting.play).perform())
    sys.stdout.buffer.write(msgspec.json.encode(performance))
    return 0


def build(setting: Setting) -> None:
    """Make this process's namespaces the stage. Raises OSError."""
    sources = [(os.open(source, os.O_PATH | os.O_DIRECTORY), target) for source, target in setting.binds]
    covered = [path for path in (*COVERED, *_postfix_folders(setting.play)) if os.path.exists(path)]
    _set_attributes("/", set_=_READ_ONLY, recursive=True)
    for path in covered:
        _cover(path)
    for descriptor, target in sources:
        os.makedirs(target, exist_ok=True)
        _mount(f"/proc/self/fd/{descriptor}", target, "", _MS_BIND)
        _set_attributes(target, clear=_READ_ONLY)
        os.close(descriptor)
    _loopback(setting.play.addresses)


def _postfix_folders(play: Play) -> list[str]:
    """The queue and data folders: messages that wait in the real queue are not to be delivered by a rehearsal."""
    argv = ["postconf", "-c", play.mail.postfix.config_directory, "-h", "-x", "queue_directory", "data_directory"]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return []  # no Postfix here, or one whose configuration cannot be read: its check says so
    return [line for line in done.stdout.splitlines() if line.startswith("/")]


def _cover(path: str) -> None:
    if not stat.S_ISDIR(os.stat(path).st_mode):
        _mount("/dev/null", path, "", _MS_BIND)  # a log's socket: what is said on the stage is not the machine's
        return
    made = [(Path(path), os.stat(path)), *_folders(Path(path))]
    _mount("tmpfs", path, "tmpfs", _MS_NOSUID | _MS_NODEV, f"size={MEMORY_BYTES_MAX}")
    for folder, like in made:
        folder.mkdir(exist_ok=True)
        os.chown(folder, like.st_uid, like.st_gid)
        folder.chmod(stat.S_IMODE(like.st_mode))


def _folders(top: Path, depth: int = SKELETON_DEPTH) -> list[tuple[Path, os.stat_result]]:
    found = []
    for each in os.scandir(top) if depth else ():
        if each.is_dir(follow_symlinks=False):
            found.append((Path(each.path), each.stat()))
            found += _folders(Path(each.path), depth - 1)
    return found


def _loopback(addresses: tuple[str, ...]) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as door:
        request = struct.pack("16sh14x", b"lo", 0)
        (flags,) = struct.unpack_from("16xh", fcntl.ioctl(door, _SIOCGIFFLAGS, request))
        fcntl.ioctl(door, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", flags | _IFF_UP))
    for address in addresses:
        ip = ipaddress.ip_interface(address).ip
        netlink.add("lo", ipaddress.ip_interface(str(ip)))


def _mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    words = (source.encode(), os.fsencode(target), kind.encode())
    if _libc.mount(*words, ctypes.c_ulong(flags), data.encode()):
        number = ctypes.get_errno()
        raise OSError(number, f"mount on {target}: {os.strerror(number)}")


def _set_attributes(path: str, *, set_: int = 0, clear: int = 0, recursive: bool = False) -> None:
    wanted = _Attributes(set_, clear, 0, 0)
    flags = _AT_RECURSIVE if recursive else 0
    size = ctypes.c_size_t(ctypes.sizeof(wanted))
    if _libc.syscall(_SYS_MOUNT_SETATTR, _AT_FDCWD, os.fsencode(path), flags, ctypes.byref(wanted), size):
        number = ctypes.get_errno()
        raise OSError(number, f"mount_setattr of {path}: {os.strerror(number)}")


if __name__ == "__main__":
    sys.exit(main())
