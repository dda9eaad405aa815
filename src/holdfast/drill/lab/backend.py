"""The port behind which machines are made, the choice of adapter, and starting an init (which both adapters do
alike).
"""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final, Protocol

import msgspec

from holdfast.drill.lab import linux, tools
from holdfast.drill.lab.init import InitConfig
from holdfast.drill.lab.spec import Backing, LabError, LabState, MachineState, ProcessId
from holdfast.errors import EnvironmentUnfit

INIT_SECONDS_MAX: Final = 30.0
"""A tenth of a second on an idle machine."""
SYSTEM_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_CREDENTIALS: Final = struct.Struct("3i")
"""struct ucred: pid, uid, gid (unix(7))."""


class Backend(Protocol):
    """How machines are made. ``state`` is changed in place; the caller holds the lab's lock and saves.

    Every step may be repeated: what is done already is left as it is. All raise LabError.
    """

    backing: Backing
    cannot_show: tuple[str, ...]
    """What a drill on this backend says nothing about."""

    def create(self, state: LabState) -> None:
        """What all machines share."""

    def prepare(self, state: LabState, machine: MachineState) -> None:
        """A fresh disk."""

    def wipe(self, state: LabState, machine: MachineState) -> None:
        """Off, and with a fresh disk: nothing of what was on it is left."""

    def start(self, state: LabState, machine: MachineState) -> None:
        """Switch it on; returns when its init has started the boot units."""

    def power_off(self, state: LabState, machine: MachineState, *, soft: bool) -> None:
        """All processes die at once. Not ``soft``: what the disk had not synced is lost."""

    def processes(self, machine: MachineState) -> list[int]:
        """Pids, as the host sees them, of what runs in the machine (init included)."""

    def set_frozen(self, state: LabState, machine: MachineState, *, frozen: bool) -> None: ...

    def apply_cuts(self, state: LabState, receivers: Iterable[MachineState]) -> None:
        """Make the network as ``state.cuts`` says, towards *receivers*."""

    def root(self, state: LabState, machine: MachineState) -> Path:
        """Where the host sees the machine's ``/``; of a machine that is off, only the trees on its disk."""

    def control(self, state: LabState, machine: MachineState) -> Path:
        """The socket of its init."""

    def network(self, machine: MachineState) -> AbstractContextManager[None]:
        """Inside the block, sockets that this thread makes are the machine's."""

    def destroy(self, state: LabState) -> None:
        """Remove everything but the lab's folder, whatever state it is in."""


def choose(wanted: Backing | None) -> Backend:
    """The adapter *wanted*, or the best one that works here. Raises EnvironmentUnfit (wanted, but not possible)."""
    from holdfast.drill.lab.namespaces import Namespaces, what_is_missing
    from holdfast.drill.lab.processes import Processes

    if wanted == "processes":
        return Processes()
    missing = what_is_missing()
    if missing is None:
        return Namespaces()
    if wanted == "namespaces":
        raise EnvironmentUnfit(
            f"machines cannot be made of namespaces here: {missing}", hint="--backend processes works with less."
        )
    return Processes()


def of(state: LabState) -> Backend:
    """The adapter the lab was made with."""
    from holdfast.drill.lab.namespaces import Namespaces
    from holdfast.drill.lab.processes import Processes

    return Namespaces() if state.backend == "namespaces" else Processes()


def python(module: str, *arguments: str) -> list[str]:
    """Command that runs one of our modules with the Python, and the source, that run now."""
    return [sys.executable, "-P", "-m", f"holdfast.drill.lab.{module}", *arguments]


def machine_environment() -> dict[str, str]:
    """What every process of a machine starts with: nothing of the caller's environment gets in."""
    return {
        "PATH": f"{Path(sys.prefix) / 'bin'}:{SYSTEM_PATH}",
        "PYTHONPATH": source_folder(),
        "HOME": "/root",
        "USER": "root",
        "LOGNAME": "root",
        "SHELL": "/bin/bash",
        "LANG": "C.UTF-8",
    }


def source_folder() -> str:
    """Where the package ``holdfast`` lies."""
    return str(Path(__file__).resolve().parents[3])


def launch(prefix: Sequence[str], config: InitConfig, log: Path, on_made: Callable[[int], None]) -> ProcessId:
    """Start an init by *prefix* (what brings it to the right place). *on_made* gets its pid before its units start.

    Raises LabError with what init wrote to *log*.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs, log.open("w+b") as output:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        ours.settimeout(INIT_SECONDS_MAX)
        argv = [*prefix, *python("init", str(theirs.fileno()))]
        env = {**os.environ, "PYTHONPATH": source_folder()}
        descriptors = (theirs.fileno(),)
        starter = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=output, stderr=output, pass_fds=descriptors, env=env, cwd="/"
        )
        theirs.close()
        try:
            assert starter.stdin is not None
            starter.stdin.write(msgspec.json.encode(config))
            starter.stdin.close()
            pid = _expect(ours, b"made")
            init = identify(pid)
            on_made(pid)
            ours.send(b"go")
            _expect(ours, b"ready")
            starter.wait()  # it has forked init and ended
        except OSError as error:
            starter.kill()
            starter.wait()
            said = log.read_text(errors="replace").strip()
            raise LabError(f"{config.machine} did not start: {error}", hint=said or f"Nothing in {log}.") from error
    return init


def _expect(connection: socket.socket, word: bytes) -> int:
    """The sender's pid as we see it: the kernel translates it across process namespaces."""
    packet, ancillary, _, _ = connection.recvmsg(16, socket.CMSG_SPACE(_CREDENTIALS.size))
    if packet != word or not ancillary:
        raise OSError(f"init said {packet!r} instead of {word!r}")
    pid: int = _CREDENTIALS.unpack(ancillary[0][2])[0]
    return pid


def identify(pid: int) -> ProcessId:
    """Raises LabError: there is no such process (any more)."""
    ticks = linux.process_start_ticks(pid)
    if ticks is None:
        raise LabError(f"process {pid} ended as soon as it had started")
    return ProcessId(pid, ticks)


def alive(process: ProcessId | None) -> bool:
    return process is not None and linux.process_start_ticks(process.pid) == process.start_ticks


def kill_and_wait(process: ProcessId | None, number: int, seconds_max: float) -> None:
    """Send signal *number* and wait until the process is gone. Raises LabError (it is not)."""
    if process is None or not alive(process):
        return
    try:
        os.kill(process.pid, number)
    except ProcessLookupError:
        return
    tools.wait_until(lambda: not alive(process), seconds_max, f"process {process.pid} to end")
