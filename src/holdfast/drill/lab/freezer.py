"""Freezing a machine: control groups (version 2) where there are any, else SIGSTOP to each process."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

from holdfast.drill.lab.tools import wait_until

FOLDER: Final = "holdfast-lab"
FREEZE_SECONDS_MAX: Final = 10.0
"""A process in an uninterruptible wait for the disk freezes after it."""


def hierarchy() -> Path | None:
    """Where version 2 control groups are mounted and may be made, or None."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        if after.startswith("cgroup2 "):
            path = Path(before.split()[4])
            if os.access(path, os.W_OK) and "rw" in before.split()[5].split(","):
                return path
    return None


def join(lab: str, machine: str, pid: int) -> None:
    """Put *pid* (and so what it will start) into the machine's control group. Nothing happens where there are none."""
    top = hierarchy()
    if top is None:
        return
    group = top / FOLDER / lab / machine
    group.mkdir(parents=True, exist_ok=True)
    (group / "cgroup.procs").write_text(str(pid))


def set_frozen(lab: str, machine: str, pids: Iterable[int], *, frozen: bool) -> None:
    """Stop every process of the machine, or let them go on. *pids* are its processes, for where there are no control
    groups.

    Raises LabError (could not be frozen in time).
    """
    top = hierarchy()
    group = top / FOLDER / lab / machine if top is not None else None
    if group is None or not (group / "cgroup.freeze").exists():
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP if frozen else signal.SIGCONT)
        return
    (group / "cgroup.freeze").write_text("1" if frozen else "0")
    wanted = f"frozen {int(frozen)}"
    events = group / "cgroup.events"
    wait_until(lambda: wanted in events.read_text().splitlines(), FREEZE_SECONDS_MAX, f"{machine} to become {wanted}")


def remove(lab: str, machine: str | None = None) -> None:
    """Remove the control group of *machine*, or of the whole lab. Its processes are gone."""
    top = hierarchy()
    if top is None:
        return
    base = top / FOLDER / lab
    if machine is not None:
        if (base / machine).is_dir():
            wait_until(lambda: _removed(base / machine), FREEZE_SECONDS_MAX, f"control group of {machine} to empty")
        return
    if base.is_dir():
        for group in base.iterdir():
            if group.is_dir():
                remove(lab, group.name)
        base.rmdir()
    with suppress(OSError):  # another lab is in it
        base.parent.rmdir()


def _removed(group: Path) -> bool:
    try:
        group.rmdir()
    except OSError:  # EBUSY: a dead process is not yet gone
        return False
    return True
