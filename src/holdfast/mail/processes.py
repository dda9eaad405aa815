"""Finding the processes of a service, and ending them with certainty.

Dovecot's and Postfix's masters lead a process group that all their daemons stay in (seen on 2.3.19 and 3.7.11), so one
signal to the group reaches all of them at one moment, and none can fork out of it unseen. What is left without a
master (its master was killed alone) is found by its executable and its working directory.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from msgspec import Struct

from holdfast.mail.port import ServiceFailed

_POLL_SECONDS: Final = 0.01
KILL_SECONDS_MAX: Final = 5.0
"""A killed process that is still there after this long hangs in the kernel (dead disk or network filesystem)."""


class Seen(Struct, frozen=True):
    """One process, as ``/proc`` shows it. *executable* and *directory* are empty where they may not be read."""

    pid: int
    parent: int
    group: int
    started: int
    """Clock ticks since boot: with the pid, the identity of a process."""
    executable: str
    directory: str
    root: str


def seen(pid: int) -> Seen | None:
    """The process, or None when it is gone or a zombie (a zombie serves nobody). See proc(5), /proc/pid/stat."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    if fields[0] in (b"Z", b"X"):
        return None
    return Seen(
        pid=pid,
        parent=int(fields[1]),
        group=int(fields[2]),
        started=int(fields[19]),
        executable=_link(pid, "exe").removesuffix(" (deleted)"),
        directory=_link(pid, "cwd"),
        root=_link(pid, "root"),
    )


def _link(pid: int, name: str) -> str:
    try:
        return os.readlink(f"/proc/{pid}/{name}")
    except OSError:
        return ""


def command_line(pid: int) -> list[bytes]:
    """Its words; none for a process that is gone (also one that goes while it is read: ESRCH), or for the kernel's."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return []


def find(wanted: Callable[[Seen], bool]) -> list[Seen]:
    """All processes of this process namespace that *wanted* accepts.

    Those of namespaces below it are seen, too, and are others': a container's mail server, or our own rehearsal.
    """
    found = []
    ours = _link(os.getpid(), "ns/pid")
    for name in os.listdir("/proc"):
        process = seen(int(name)) if name.isdigit() else None
        if process is not None and wanted(process) and _link(process.pid, "ns/pid") in (ours, ""):
            found.append(process)
    return found


def pid_in_file(path: Path) -> int | None:
    """The first word of a pid file as a number; None when there is no such file or no number."""
    try:
        first = path.read_text(errors="replace").split()
    except OSError:
        return None
    return int(first[0]) if first and first[0].isdigit() and int(first[0]) > 1 else None


def below(path: str, folder: str) -> bool:
    """Whether *path* is *folder* or lies below it."""
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _only_ours(group: int, pids: set[int]) -> bool:
    return {p.pid for p in find(lambda process: process.group == group)} <= pids


def signal_all(processes: list[Seen], number: signal.Signals) -> None:
    """To whole groups where the leader or all members are among them, so that no child slips away while we look.

    A master kept in the foreground by a script shares the script's group: then each process is signalled by itself.
    """
    pids = {p.pid for p in processes}
    groups = {g for g in {p.group for p in processes} if g > 1 and (g in pids or _only_ours(g, pids))}
    groups.discard(os.getpgrp())
    for group in groups:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, number)
    for process in processes:
        if process.group not in groups:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, number)


async def gone(who: Callable[[], list[Seen]], *, seconds_max: float) -> bool:
    """Wait until *who* finds nobody; False when somebody is left after *seconds_max*."""
    began = time.monotonic()
    while who():
        if time.monotonic() - began > seconds_max:
            return False
        await asyncio.sleep(_POLL_SECONDS)
    return True


def _same(process: Seen) -> bool:
    now = seen(process.pid)
    return now is not None and now.started == process.started


async def end(who: Callable[[], list[Seen]], name: str, *, grace_seconds: float) -> None:
    """Ask all processes that *who* finds to leave, kill those that have not within *grace_seconds* (0: kill at once).

    On return what they listened at is free. A process that ends gives up its memory, by which its program is known,
    before it closes its files: so one that was found is waited for by its number.

    Raises ServiceFailed when one is still there after :data:`KILL_SECONDS_MAX`.
    """
    began = time.monotonic()
    known: dict[int, Seen] = {}

    def still() -> list[Seen]:
        known.update((process.pid, process) for process in who())
        return [process for process in known.values() if _same(process)]

    if not (left := still()):
        return
    if grace_seconds > 0:
        signal_all(left, signal.SIGTERM)
        while left and time.monotonic() - began < grace_seconds:
            await asyncio.sleep(_POLL_SECONDS)
            left = still()
    killed_at = time.monotonic()
    while left:
        signal_all(left, signal.SIGKILL)
        if time.monotonic() - killed_at > KILL_SECONDS_MAX:
            pids = ", ".join(str(p.pid) for p in left)
            raise ServiceFailed(
                f"{name}: processes {pids} are still there {KILL_SECONDS_MAX:.0f} s after being killed",
                hint="A process that cannot be killed waits for a disk or a network filesystem: power the machine off.",
            )
        await asyncio.sleep(_POLL_SECONDS)
        left = still()
