"""The view of the filesystem that a machine's processes have: built in a new mount namespace, then made its root.

The root itself is a small tmpfs holding mount points. The host's mounts are left behind with the old root, so a
machine pins no disk of another one: that would keep a disk alive after its power cut.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Final

from holdfast.drill.lab import linux

OWN_TREES: Final = ("etc", "var", "root", "home", "srv")
"""On the machine's own disk."""
MEMORY_TREES: Final = ("run", "tmp")
"""Gone after a restart, as on Debian (``/tmp`` since Debian 13)."""
SHARED_TREES: Final = ("usr", "opt", "bin", "sbin", "lib", "lib32", "lib64", "libx32", "nix", "gnu")
"""The host's, read-only. Most are links into ``/usr``."""
EMPTY_TREES: Final = ("boot", "media", "mnt", "proc", "sys", "dev")
SHARED_INSIDE_OWN: Final = ("etc/alternatives", "var/lib/dpkg")
"""The host's too, because they describe the programs, which are the host's."""
SHARED_FOLDER: Final = "media/shared"
"""A folder of the lab's, writable: a disk that every machine can reach and that dies with none. Vaults go there."""
DEVICES: Final = ("null", "zero", "full", "random", "urandom", "tty", "fuse")
MEMORY_OPTIONS: Final = "size=25%,mode=0755"
ROOT_OPTIONS: Final = "size=16m,mode=0755"
"""For mount points only; a runaway write to ``/`` should fail."""


def program_paths() -> list[Path]:
    """What a machine must see of the host to run this program: its source, the virtual environment, the Python behind
    it.
    """
    source = Path(__file__).resolve().parents[3]
    repository = source.parent if (source.parent / "pyproject.toml").exists() else source
    found = {repository, Path(sys.prefix).resolve(), Path(sys.base_prefix).resolve()}
    outside_shared = [path for path in found if path.parts[1] not in SHARED_TREES]
    return sorted(
        path for path in outside_shared if not any(path != other and path.is_relative_to(other) for other in found)
    )


def enter(root: Path, disk: Path, shared: Path | None = None) -> None:
    """Make *root* (an empty folder) this process's root, with the trees of *disk* (a mounted filesystem) in it, and the
    folder *shared* of the lab.

    The process is alone in a new mount namespace and process namespace. Raises OSError.
    """
    linux.mount("", "/", flags=linux.MS_REC | linux.MS_PRIVATE)
    linux.mount("tmpfs", root, "tmpfs", linux.MS_NOSUID, ROOT_OPTIONS)
    for name in EMPTY_TREES:
        (root / name).mkdir()
    _share_host(root)
    if shared is not None:
        (root / SHARED_FOLDER).mkdir()
        linux.bind(shared, root / SHARED_FOLDER, read_only=False)
    for name in OWN_TREES:
        (root / name).mkdir()
        linux.bind(disk / name, root / name, read_only=False)
    for name in MEMORY_TREES:
        (root / name).mkdir()
        linux.mount("tmpfs", root / name, "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, MEMORY_OPTIONS)
    (root / "tmp").chmod(0o1777)
    (root / "run/lock").mkdir()
    (root / "run/lock").chmod(0o1777)
    for name in SHARED_INSIDE_OWN:
        if Path("/", name).is_dir():
            (root / name).mkdir(parents=True, exist_ok=True)
            linux.bind(Path("/", name), root / name, read_only=True)
    for path in program_paths():
        inside = root / path.relative_to("/")
        inside.mkdir(parents=True, exist_ok=True)
        linux.bind(path, inside, read_only=True)
    _system_trees(root)
    _pivot(root)


def _share_host(root: Path) -> None:
    for name in SHARED_TREES:
        host = Path("/", name)
        if host.is_symlink():
            (root / name).symlink_to(host.readlink())
        elif host.is_dir():
            (root / name).mkdir()
            linux.bind(host, root / name, read_only=True)


def _system_trees(root: Path) -> None:
    linux.mount("proc", root / "proc", "proc", linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC)
    quiet = linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC | linux.MS_RDONLY
    linux.mount("sysfs", root / "sys", "sysfs", quiet)
    dev = root / "dev"
    linux.mount("tmpfs", dev, "tmpfs", linux.MS_NOSUID, ROOT_OPTIONS)
    for name in DEVICES:
        if Path("/dev", name).exists():
            (dev / name).touch()
            linux.bind(Path("/dev", name), dev / name, read_only=False)
    for name, target in (("fd", "fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")):
        (dev / name).symlink_to(f"/proc/self/{target}")
    (dev / "pts").mkdir()
    linux.mount("devpts", dev / "pts", "devpts", linux.MS_NOSUID, "newinstance,ptmxmode=0666,mode=0620,gid=5")
    (dev / "ptmx").symlink_to("pts/ptmx")
    (dev / "shm").mkdir()
    linux.mount("tmpfs", dev / "shm", "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, "size=25%,mode=1777")


def _pivot(root: Path) -> None:
    old = root / "mnt"
    linux.pivot_root(root, old)
    os.chdir("/")
    linux.unmount("/mnt", linux.MNT_DETACH)
