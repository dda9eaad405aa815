"""The real thing: machines of process, mount, network, UTS and IPC namespaces, with disks that can lose power."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final

from holdfast.drill.lab import backend, control, disk, freezer, installation, linux, network, store, tools
from holdfast.drill.lab.init import InitConfig
from holdfast.drill.lab.spec import Backing, LabError, LabState, MachineState, ProcessId

DEATH_SECONDS_MAX: Final = 20.0
"""A killed process in the middle of a large write takes its time."""
LOOP_SECONDS_MAX: Final = 5.0
"""After that a loop device without a user is detached by force."""


class Namespaces:
    """Adapter of :class:`backend.Backend`. Needs root."""

    backing: Backing = "namespaces"
    cannot_show: tuple[str, ...] = ()

    def create(self, state: LabState) -> None:
        env = {**os.environ, "PYTHONPATH": backend.source_folder()}
        argv = backend.python("holder", state.name)
        pipe = subprocess.PIPE
        with subprocess.Popen(argv, env=env, stdin=pipe, stdout=pipe, stderr=pipe, text=True, cwd="/") as starter:
            assert starter.stdin is not None
            assert starter.stdout is not None
            assert starter.stderr is not None
            said = starter.stdout.readline()
            if not said:
                raise LabError(f"the holder of lab {state.name} did not start: {starter.stderr.read().strip()}")
            state.holder = backend.identify(int(said))
            store.save(state)
            starter.stdin.write("stay\n")
        network.make_switch(state.holder.pid)

    def prepare(self, state: LabState, machine: MachineState) -> None:
        holder = _holder(state)
        for name in ("disk", "root"):
            (_folder(state, machine) / name).mkdir(parents=True, exist_ok=True)
        image = state.disk(machine.name)
        disk.format_image(image, state.disk_bytes)
        disk.mount_image(holder, image, _folder(state, machine) / "disk")
        machine.mounted = True
        inside = disk.as_seen_by(holder, _folder(state, machine) / "disk")
        installation.install(inside, state, machine)
        linux.sync_filesystem(inside)  # a system as installed has survived its first boot

    def start(self, state: LabState, machine: MachineState) -> None:
        holder = _holder(state)
        self.power_off(state, machine, soft=True)  # whatever is left if its init died by itself
        folder = _folder(state, machine)
        if not machine.mounted:
            disk.mount_image(holder, state.disk(machine.name), folder / "disk")
            machine.mounted = True
        config = InitConfig(
            lab=state.name,
            machine=machine.name,
            domain=state.domain,
            root=str(folder / "root"),
            disk=str(folder / "disk"),
            shared=str(_shared(state)),
            socket=f"/{control.SOCKET}",
            logs="/var/log",
            env=backend.machine_environment(),
            units=machine.boot,
        )

        def connect(pid: int) -> None:
            freezer.join(state.name, machine.name, pid)
            network.plug(holder, machine, pid)
            network.apply_cuts(holder, state, [machine])

        prefix = ["nsenter", "-t", str(holder), "-m", "-p"]
        machine.init = backend.launch(prefix, config, folder / "start.log", connect)

    def wipe(self, state: LabState, machine: MachineState) -> None:
        self.power_off(state, machine, soft=False)
        state.disk(machine.name).unlink()
        self.prepare(state, machine)

    def power_off(self, state: LabState, machine: MachineState, *, soft: bool) -> None:
        holder = _holder(state)
        network.port_down(holder, machine)
        backend.kill_and_wait(machine.init, signal.SIGKILL, DEATH_SECONDS_MAX)
        machine.init, machine.frozen = None, False
        if machine.mounted and not soft:
            folder = _folder(state, machine) / "disk"
            disk.cut_power(holder, folder)
            disk.unmount_image(holder, state.disk(machine.name), folder)
            machine.mounted = False
        network.unplug(holder, machine)
        freezer.remove(state.name, machine.name)

    def processes(self, machine: MachineState) -> list[int]:
        assert machine.init is not None
        wanted = Path(f"/proc/{machine.init.pid}/ns/pid").stat().st_ino
        found = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):  # it ended while we looked
                if entry.name.isdigit() and (entry / "ns/pid").stat().st_ino == wanted:
                    found.append(int(entry.name))
        return found

    def set_frozen(self, state: LabState, machine: MachineState, *, frozen: bool) -> None:
        freezer.set_frozen(state.name, machine.name, self.processes(machine), frozen=frozen)

    def apply_cuts(self, state: LabState, receivers: Iterable[MachineState]) -> None:
        network.apply_cuts(_holder(state), state, receivers)

    def root(self, state: LabState, machine: MachineState) -> Path:
        if machine.init is not None:
            return Path(f"/proc/{machine.init.pid}/root")
        if machine.mounted:
            return disk.as_seen_by(_holder(state), _folder(state, machine) / "disk")
        raise LabError(
            f"{machine.name} is off and its disk is not mounted", hint=f"'holdfast lab start {machine.name}'"
        )

    def control(self, state: LabState, machine: MachineState) -> Path:
        return self.root(state, machine) / control.SOCKET

    def network(self, machine: MachineState) -> AbstractContextManager[None]:
        assert machine.init is not None
        return linux.network_namespace(Path(f"/proc/{machine.init.pid}/ns/net"))

    def destroy(self, state: LabState) -> None:
        while holders := _holders(state.name):
            for holder in holders:
                _drop_unsynced(holder.pid, state)
                backend.kill_and_wait(holder, signal.SIGKILL, DEATH_SECONDS_MAX)
        for folder in state.disk_folders:
            for image in sorted(folder.glob("*.ext4")):
                _release(image)
        freezer.remove(state.name)
        store.remove_disks(state)


def what_is_missing() -> str | None:
    """Why machines of namespaces are not possible here; None: they are. Tries it, in a process of its own."""
    packages = tools.missing_tools()
    if packages:
        return f"packages are missing: {' '.join(packages)}"
    if not Path("/dev/loop-control").exists():
        return "there are no loop devices"
    probe = ["unshare", "-m", "-n", "-p", "-u", "-i", "-f", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    done = subprocess.run(probe, capture_output=True, text=True, check=False)
    return done.stderr.strip() or None if done.returncode else None


def _folder(state: LabState, machine: MachineState) -> Path:
    return store.lab_folder(state.name) / machine.name


def _shared(state: LabState) -> Path:
    folder = state.shared_folder
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    return folder


def _holder(state: LabState) -> int:
    if state.holder is None or not backend.alive(state.holder):
        raise LabError(
            f"lab {state.name} is dead: its holder has ended",
            hint=f"'holdfast lab down --lab {state.name}', then up again.",
        )
    return state.holder.pid


def _holders(lab: str) -> list[ProcessId]:
    """Holders of *lab*, found by their command line: there may be one that no state file knows."""
    tail = f"\0-m\0holdfast.drill.lab.holder\0{lab}\0".encode()
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, LabError):  # it ended while we looked
            if entry.name.isdigit() and (entry / "cmdline").read_bytes().endswith(tail):
                found.append(backend.identify(int(entry.name)))
    return found


def _drop_unsynced(holder: int, state: LabState) -> None:
    """Spares the unmount writing back what is deleted next."""
    for machine in state.machines.values():
        folder = disk.as_seen_by(holder, _folder(state, machine) / "disk")
        with contextlib.suppress(OSError):  # the holder has just ended
            if folder.is_mount():
                linux.shut_filesystem_down(folder)


def _release(image: Path) -> None:
    try:
        tools.wait_until(lambda: not disk.loop_devices(image), LOOP_SECONDS_MAX, f"{image} to be released")
    except LabError:
        for name in disk.loop_devices(image):
            tools.run_tool(["losetup", "--detach", f"/dev/{name}"])
        disk.wait_released(image)
