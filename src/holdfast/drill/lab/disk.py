"""Disks: ext4 in a sparse file, loop-mounted in the holder's mount namespace. They can lose power."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from holdfast.drill.lab import linux
from holdfast.drill.lab.tools import run_tool, wait_until

RELEASE_SECONDS_MAX: Final = 20.0
"""An unmount that has to write back gigabytes takes seconds."""


def format_image(image: Path, size_bytes: int) -> None:
    """An empty ext4 of *size_bytes* at *image*. Raises LabError."""
    with image.open("wb") as file:
        os.truncate(file.fileno(), size_bytes)
    lazy = "lazy_itable_init=1,lazy_journal_init=1,nodiscard"
    run_tool(["mkfs.ext4", "-q", "-F", "-m", "1", "-L", image.stem[:16], "-E", lazy, str(image)])


def mount_image(holder: int, image: Path, folder: Path) -> None:
    """Mount *image* on *folder* for process *holder*; ext4 replays its journal if need be. Raises LabError."""
    options = "loop,noinit_itable"  # no kernel thread filling inode tables behind a benchmark
    run_tool(["nsenter", "-t", str(holder), "-m", "mount", "-t", "ext4", "-o", options, str(image), str(folder)])


def as_seen_by(holder: int, folder: Path) -> Path:
    """*folder* with what process *holder* has mounted on it, as a path of the host."""
    return Path(f"/proc/{holder}/root", folder.relative_to("/"))


def cut_power(holder: int, folder: Path) -> None:
    """What was not synced is gone; the filesystem stays mounted, dead. Raises OSError."""
    linux.shut_filesystem_down(as_seen_by(holder, folder))


def unmount_image(holder: int, image: Path, folder: Path) -> None:
    """Unmount, and wait until the kernel has really let go: mounting again must replay the journal. Raises LabError."""
    run_tool(["nsenter", "-t", str(holder), "-m", "umount", str(folder)])
    wait_released(image)


def wait_released(image: Path) -> None:
    """Raises LabError when a loop device still holds *image*: some process keeps a mount of it alive."""
    wait_until(lambda: not loop_devices(image), RELEASE_SECONDS_MAX, f"{image} to be released by its loop device")


def loop_devices(image: Path) -> list[str]:
    """Names (``loop0``) of the loop devices that stand for *image*, or for what was *image* before it was removed."""
    names = []
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            held = backing.read_text()
        except OSError:  # detached meanwhile
            continue
        if stands_for(held, image):
            names.append(backing.parts[3])
    return names


def stands_for(held: str, image: Path) -> bool:
    """Whether a loop device's ``backing_file`` says *image*.

    The kernel gives the path as the mounts lead to it that the device was made through. When the lab's mount namespace
    has ended and the device has not yet, those mounts hang in the air, and what was above the innermost of them is
    missing: ``/holdfast-lab/x/main.ext4`` of an image in ``/dev/shm``. The folder named after the lab is still there.
    """
    path = held.strip().removesuffix(" (deleted)")
    return path.endswith(f"/{image.parent.name}/{image.name}") and str(image).endswith(path)
