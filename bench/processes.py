"""CPU of programs, by lab machine and program, from ``/proc/PID/stat`` (proc(5))."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Final

_TICKS: Final = os.sysconf("SC_CLK_TCK")


def cpu_by_program(inits: Mapping[str, int]) -> dict[str, float]:
    """Seconds so far of ``MACHINE PROGRAM``, for the machines whose init has the process ids *inits*.

    Programs are ``agent``, ``gate``, ``nats-server`` and ``mail``: the rest of the machine, ended children included.
    """
    namespaces = {os.readlink(f"/proc/{pid}/ns/pid"): machine for machine, pid in inits.items()}
    ticks: Counter[str] = Counter()
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            machine = namespaces.get(os.readlink(folder / "ns/pid"))
            if machine is None:
                continue
            stat = (folder / "stat").read_text()
            argv = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:  # it has ended
            continue
        fields = stat.rpartition(")")[2].split()
        own, children = int(fields[11]) + int(fields[12]), int(fields[13]) + int(fields[14])
        program = program_of(argv)
        ticks[f"{machine} {program}"] += own + (children if program == "mail" else 0)
    return {program: spent / _TICKS for program, spent in ticks.items()}


def program_of(argv: list[bytes]) -> str:
    words = [os.path.basename(word) for word in argv]
    if b"holdfast.agent" in words or (b"holdfast" in words and b"agent" in words):
        return "agent"
    if b"holdfast.gate" in words:
        return "gate"
    return "nats-server" if argv[0].endswith(b"nats-server") else "mail"


def stolen() -> float:
    """Seconds so far in which a processor was ready for us and the machine beneath gave it to somebody else."""
    return int(Path("/proc/stat").read_text().split("\n", 1)[0].split()[8]) / _TICKS


def cpu_of_system() -> tuple[float, float]:
    """Seconds all processors were busy so far, and seconds there were. Stolen time counts as busy."""
    fields = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    idle = fields[3] + fields[4]
    return (sum(fields) - idle) / _TICKS, sum(fields) / _TICKS
