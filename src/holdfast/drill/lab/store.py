"""Where labs that are up are written down: ``/run/holdfast-lab/<lab>/lab.json``, and the locks around it."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import msgspec

from holdfast.drill.lab.spec import NETWORKS, LabError, LabState
from holdfast.errors import EnvironmentUnfit
from holdfast.files import PRIVATE, write_once

RUN_FOLDER: Final = Path("/run/holdfast-lab")
DISKS_ON_DISK: Final = Path("/var/tmp/holdfast-lab")
DISKS_IN_MEMORY: Final = Path("/dev/shm/holdfast-lab")
DISKS_FOLDERS: Final = (DISKS_IN_MEMORY, DISKS_ON_DISK)
MEMORY_BYTES_MIN: Final = 8 << 30
"""With so much memory available the images lie in it: a usual lab writes well below 2 GiB."""
STATE_FILE: Final = "lab.json"
NETWORKS_LOCK: Final = ".networks.lock"


def run_folder() -> Path:
    """The folder of all labs; the ordinary user of a plain container has one of their own."""
    return RUN_FOLDER if os.geteuid() == 0 else Path(f"/tmp/holdfast-lab-{os.geteuid()}")


def disks_folder() -> Path:
    """Where disk images go that were not told otherwise: in memory where there is plenty of it, on disk else.

    Four machines on one disk wait for each other's writes as four machines never do: seconds, under load, for a sync
    that takes 0.2 ms when the disk is idle. In memory each has a disk that syncs at once. What a power cut drops is the
    same, for it happens in the image's own filesystem.
    """
    try:
        room = os.statvfs(DISKS_IN_MEMORY.parent)
        lines = Path("/proc/meminfo").read_text().splitlines()
        available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return DISKS_ON_DISK
    plenty = min(room.f_bavail * room.f_frsize, available) >= MEMORY_BYTES_MIN
    return DISKS_IN_MEMORY if plenty else DISKS_ON_DISK


def lab_folder(name: str) -> Path:
    return run_folder() / name


def names() -> list[str]:
    """Labs that are up, or were left half-way."""
    folder = run_folder()
    return sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


def load(name: str) -> LabState:
    """Raises LabError: there is no such lab, or its state cannot be read."""
    path = lab_folder(name) / STATE_FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=LabState)
    except FileNotFoundError as error:
        up = ", ".join(names()) or "none"
        raise LabError(
            f"there is no lab {name}", hint=f"Labs that are up: {up}. 'holdfast lab up' makes one."
        ) from error
    except msgspec.DecodeError as error:
        raise LabError(f"{path} is not readable: {error}", hint=f"'holdfast lab down {name}' cleans up.") from error


def save(state: LabState) -> None:
    write_once(lab_folder(state.name) / STATE_FILE, msgspec.json.format(msgspec.json.encode(state), indent=1), PRIVATE)


@contextmanager
def locked(name: str) -> Iterator[None]:
    """Nobody else changes lab *name* meanwhile. The lock goes with the process, whatever ends it."""
    with _lock(f"{name}.lock"):
        yield


@contextmanager
def changing(name: str) -> Iterator[LabState]:
    """The lab's state, under its lock; saved after the block, and after an error too: what was done was done."""
    with locked(name):
        state = load(name)
        try:
            yield state
        finally:
            if lab_folder(name).is_dir():
                save(state)


@contextmanager
def choosing_network() -> Iterator[int]:
    """A network number no other lab has. Save the state inside the block. Raises LabError (all taken)."""
    with _lock(NETWORKS_LOCK):
        taken = set()
        for name in names():
            try:
                taken.add(load(name).network)
            except LabError:  # being removed, or damaged: it then has no use for its number
                continue
        free = [number for number in NETWORKS if number not in taken]
        if not free:
            raise LabError("all 254 lab networks are taken", hint="'holdfast lab list', then 'holdfast lab down' some.")
        yield free[0]


def remove_disks(state: LabState) -> None:
    """The folders of the lab's images, which nothing uses any more."""
    for folder in state.disk_folders:
        if folder.is_dir():
            shutil.rmtree(folder)
        with suppress(OSError):  # not ours, or another lab's disks are in it
            if folder.parent in DISKS_FOLDERS:
                folder.parent.rmdir()


def forget(name: str) -> None:
    """Remove the lab's folder."""
    shutil.rmtree(lab_folder(name), ignore_errors=False)


def forget_locks(name: str) -> None:
    """Remove lock files too, and the folder when this was the last lab. Called holding no lock."""
    folder = run_folder()
    (folder / f"{name}.lock").unlink(missing_ok=True)
    with suppress(OSError):  # another lab is being made: its down will do this
        if not any(path.is_dir() for path in folder.iterdir()):
            (folder / NETWORKS_LOCK).unlink(missing_ok=True)
            folder.rmdir()


@contextmanager
def _lock(file_name: str) -> Iterator[None]:
    folder = run_folder()
    while True:
        try:
            folder.mkdir(mode=0o755, parents=True, exist_ok=True)
            descriptor = os.open(folder / file_name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:  # the last lab's down removed the folder between the two
            continue
        except PermissionError as error:
            raise EnvironmentUnfit(f"cannot write {folder}", hint="The lab needs root.") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if _is_still(folder / file_name, descriptor):
                yield
                return
        finally:
            os.close(descriptor)


def _is_still(path: Path, descriptor: int) -> bool:
    """Is the file we locked the one others will find? It may have been removed while we waited."""
    try:
        there, ours = path.stat(), os.fstat(descriptor)
    except FileNotFoundError:
        return False
    return (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)
