"""Where namespaces are not permitted (a plain container): a machine is a process group, an address 127.0.N.x and a
folder.

Enough to run several agents and log servers beside each other and to kill and freeze them. See ``cannot_show`` for
the rest. A machine's processes are known by a variable in their environment (``HOLDFAST_LAB_MACHINE``), which
children inherit.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Final

from holdfast.drill.lab import backend, store, tools
from holdfast.drill.lab.init import InitConfig
from holdfast.drill.lab.rootfs import OWN_TREES
from holdfast.drill.lab.spec import Backing, LabState, MachineState
from holdfast.errors import EnvironmentUnfit

MARK: Final = "HOLDFAST_LAB_MACHINE"
FOLDERS: Final = (*OWN_TREES, "run", "tmp", "var/log", "var/lib", "var/vmail")
DEATH_SECONDS_MAX: Final = 20.0


class Processes:
    """Adapter of :class:`backend.Backend`. Needs no rights beyond those of its user."""

    backing: Backing = "processes"
    cannot_show: tuple[str, ...] = (
        "a power cut: killed processes leave the page cache, so unsynced data survives (only 'kill --soft' is offered)",
        "partitions: 'cut' is refused, all machines share the host's loopback",
        "the service address moving between machines, gratuitous ARP, IPv6",
        "machines' own hostname, /etc and /var: its trees are under $HOLDFAST_LAB_ROOT, and programs must be told",
        "mail software on its standard ports and places (mailhost is refused)",
        "filesystem-wide fanotify marks of one machine's own: all hear all",
    )

    def create(self, state: LabState) -> None:
        pass

    def prepare(self, state: LabState, machine: MachineState) -> None:
        for name in FOLDERS:
            (state.disk(machine.name) / name).mkdir(parents=True, exist_ok=True)

    def wipe(self, state: LabState, machine: MachineState) -> None:
        self.power_off(state, machine, soft=True)
        shutil.rmtree(state.disk(machine.name))
        self.prepare(state, machine)

    def start(self, state: LabState, machine: MachineState) -> None:
        root = state.disk(machine.name)
        env = {
            **backend.machine_environment(),
            MARK: _mark(state.name, machine),
            "HOLDFAST_LAB_ROOT": str(root),
            "HOLDFAST_LAB_ADDRESS": machine.ipv4,
        }
        config = InitConfig(
            lab=state.name,
            machine=machine.name,
            domain=state.domain,
            root=None,
            disk=None,
            socket=str(self.control(state, machine)),
            logs=str(root / "var/log"),
            env=env,
            units=machine.boot,
        )
        log = store.lab_folder(state.name) / f"{machine.name}.start.log"
        prefix = ["env", f"{MARK}={_mark(state.name, machine)}"]
        machine.init = backend.launch(prefix, config, log, lambda pid: None)

    def power_off(self, state: LabState, machine: MachineState, *, soft: bool) -> None:
        if not soft:
            raise EnvironmentUnfit(
                "this lab cannot cut power: unsynced data would survive, and the drill would prove nothing",
                hint="'kill --soft' kills the processes.",
            )
        _kill_all(_mark(state.name, machine))
        machine.init, machine.frozen = None, False

    def processes(self, machine: MachineState) -> list[int]:
        assert machine.init is not None
        environment = Path(f"/proc/{machine.init.pid}/environ").read_bytes().split(b"\0")
        mark = next(entry for entry in environment if entry.startswith(MARK.encode()))
        return _marked(mark.decode().partition("=")[2])

    def set_frozen(self, state: LabState, machine: MachineState, *, frozen: bool) -> None:
        for pid in self.processes(machine):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP if frozen else signal.SIGCONT)

    def apply_cuts(self, state: LabState, receivers: Iterable[MachineState]) -> None:
        if state.cuts:
            state.cuts = []
            raise EnvironmentUnfit("this lab has no network to cut", hint="Run it where namespaces are permitted.")

    def root(self, state: LabState, machine: MachineState) -> Path:
        return state.disk(machine.name)

    def control(self, state: LabState, machine: MachineState) -> Path:
        return store.lab_folder(state.name) / f"{machine.name}.sock"

    def network(self, machine: MachineState) -> AbstractContextManager[None]:
        return nullcontext()

    def destroy(self, state: LabState) -> None:
        for machine in state.machines.values():
            _kill_all(_mark(state.name, machine))
        store.remove_disks(state)


def _mark(lab: str, machine: MachineState) -> str:
    return f"{lab}/{machine.name}"


def _marked(mark: str) -> list[int]:
    entry = f"{MARK}={mark}".encode()
    found = []
    for process in Path("/proc").iterdir():
        with contextlib.suppress(OSError):  # it ended, or is another user's
            if process.name.isdigit() and entry in (process / "environ").read_bytes().split(b"\0"):
                found.append(int(process.name))
    return found


def _kill_all(mark: str) -> None:
    """Until none is left: a process may have forked between the look and the kill."""

    def none_left() -> bool:
        pids = _marked(mark)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return not pids

    tools.wait_until(none_left, DEATH_SECONDS_MAX, f"processes of {mark} to end")
