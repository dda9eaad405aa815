"""Units restored beside their place, and renamed into it. Until then a wall may stand there."""

from __future__ import annotations

import ctypes
import os
import shutil
import stat
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from holdfast.changes.change import Meta
from holdfast.errors import HoldfastError, Refused
from holdfast.rebuild.survey import Scaffold, Unit
from holdfast.trees.spec import RESERVED_NAME
from holdfast.trees.stat import Owners
from holdfast.vault.repository import Vault
from holdfast.vault.restore import Restored, restore_entry

WALL_MODE: Final = 0o000
"""Only root enters, and no mail program works as root in an account's folder: Dovecot answers a delivery with 451."""
STAGING: Final = Path(os.fsdecode(RESERVED_NAME)) / "rebuild"
_libc: Final = ctypes.CDLL(None, use_errno=True)


def is_wall(path: str) -> bool:
    """An empty directory of root that nobody may enter."""
    try:
        status = os.lstat(path)
    except OSError:
        return False
    closed = stat.S_ISDIR(status.st_mode) and stat.S_IMODE(status.st_mode) == WALL_MODE and status.st_uid == 0
    return closed and not os.listdir(path)


def in_the_way(unit: Unit) -> bool:
    """Whether something stands at the unit's place that a restore must not replace."""
    if is_wall(unit.target) or not os.path.lexists(unit.target):
        return False
    empty = os.path.isdir(unit.target) and not os.path.islink(unit.target) and not os.listdir(unit.target)
    return not (empty and unit.directory)


class Ground:
    """The directories that units stand in, made as they were."""

    def __init__(self, scaffold: Iterable[Scaffold], owners: Owners) -> None:
        self._scaffold = tuple(scaffold)
        self._owners = owners

    def make(self) -> None:
        """A directory before what is in it. One that is there keeps what is in it. Raises OSError."""
        for directory in self._scaffold:
            os.makedirs(directory.target, exist_ok=True)
            self._own(directory.target, directory.meta)

    def finish(self) -> None:
        """Times last: every rename into a directory changes them. Staging folders go. Raises OSError."""
        for directory in reversed(self._scaffold):
            staging = Path(directory.target, STAGING)
            if staging.is_dir():
                shutil.rmtree(staging)
                if not any(staging.parent.iterdir()):
                    staging.parent.rmdir()
            os.utime(directory.target, ns=(directory.meta.mtime_ns, directory.meta.mtime_ns))

    def _own(self, path: str, meta: Meta) -> None:
        os.chown(path, self._owners.uid(meta.owner), self._owners.gid(meta.group))
        for key, value in meta.xattrs:
            os.setxattr(path, key, value)
        os.chmod(path, meta.mode)

    def staging_for(self, unit: Unit) -> Path:
        """On the unit's own filesystem: below the directory it stands in."""
        return Path(os.path.dirname(unit.target)) / STAGING


def build_walls(units: Iterable[Unit]) -> None:
    """Close the places of *units* that are free. Raises OSError."""
    for unit in units:
        if not os.path.lexists(unit.target):
            os.mkdir(unit.target, WALL_MODE)
            os.chmod(unit.target, WALL_MODE)
        elif os.path.isdir(unit.target) and not os.listdir(unit.target) and not is_wall(unit.target):
            os.chown(unit.target, 0, 0)
            os.chmod(unit.target, WALL_MODE)


def place(vault: Vault, unit: Unit, staging: Path, *, progress: Callable[[Restored], None] | None = None) -> Restored:
    """Restore *unit* below *staging*, bring it to disk, rename it into its place.

    Raises Refused (something came into its place meanwhile), and as :func:`~holdfast.vault.restore.restore_entry`.
    """
    folder = staging / "unit"
    if folder.exists():
        shutil.rmtree(folder)
    staging.mkdir(mode=0o700, parents=True, exist_ok=True)
    restored = restore_entry(vault, unit.entry, folder, progress=progress)
    ready = folder if unit.directory else folder / os.fsdecode(unit.entry.name)
    if not os.path.lexists(ready):
        return restored  # its only content is damaged: named in what is returned
    sync_filesystem(folder)
    if in_the_way(unit):
        raise Refused(f"{unit.target} has come into being meanwhile", hint="Move it aside, then repeat the command.")
    if not unit.directory and os.path.isdir(unit.target):
        os.rmdir(unit.target)
    os.rename(ready, unit.target)
    return restored


def sync_filesystem(path: Path) -> None:
    """syncfs(2): what was restored is on disk before anybody relies on it. Raises HoldfastError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if _libc.syncfs(descriptor):
            raise HoldfastError(
                f"{path}: {os.strerror(ctypes.get_errno())}", hint="The disk does not take what is written."
            )
    finally:
        os.close(descriptor)


def move_aside(units: Iterable[Unit], when: str) -> tuple[str, ...]:
    """What stands at the places of *units* goes to ``.holdfast/aside-WHEN`` beside them. Raises OSError."""
    moved = []
    for unit in units:
        if in_the_way(unit):
            folder = Path(os.path.dirname(unit.target), os.fsdecode(RESERVED_NAME), f"aside-{when}")
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.rename(unit.target, folder / os.path.basename(unit.target))
            moved.append(unit.target)
    return tuple(moved)
