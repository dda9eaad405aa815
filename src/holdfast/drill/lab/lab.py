"""The Python face of the lab: :class:`Lab` and :class:`Machine`. Tests, benchmarks, drills and the command line all
use it.

Both are names, not handles: what is true is in the state file, read anew at each call, so several processes may work
on one lab. Calls that change a lab take its lock.
"""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, Final

from holdfast.drill.lab import backend, control, linux, store
from holdfast.drill.lab.backend import Backend
from holdfast.drill.lab.spec import Account, Cut, LabError, LabSpec, LabState, MachineState, new_state
from holdfast.drill.lab.supervisor import Unit, UnitStatus

RUN_SECONDS_MAX: Final = 120.0
"""A command a test waits for; what takes longer is spawned."""
SHUTDOWN_SECONDS_MAX: Final = 45.0
"""Above the sum of init's own limits."""


class Lab:
    """A lab that is up."""

    def __init__(self, name: str) -> None:
        self.name = name

    @classmethod
    def up(cls, spec: LabSpec) -> Lab:
        """Make a lab and switch all machines on. What a crashed ``up`` of that name left is removed first.

        Raises LabError (it is up already, a step failed: then nothing is left), ConfigurationError, EnvironmentUnfit.
        """
        spec.check()
        adapter = backend.choose(spec.backend)
        try:
            with store.locked(spec.name):
                _up_locked(adapter, spec)
        finally:
            if not store.lab_folder(spec.name).exists():
                store.forget_locks(spec.name)
        return cls(spec.name)

    @classmethod
    def open(cls, name: str) -> Lab:
        """A lab someone has made. Raises LabError."""
        store.load(name)
        return cls(name)

    @staticmethod
    def names() -> list[str]:
        return store.names()

    @staticmethod
    def down(name: str) -> bool:
        """End the lab and remove every trace, in whatever state it is. False: there was nothing. Raises LabError."""
        with store.locked(name):
            there = store.lab_folder(name).exists()
            if there:
                state = _state_or_guess(name)
                _remove(backend.of(state), state)
        store.forget_locks(name)
        return there

    @property
    def state(self) -> LabState:
        """As it is now. Raises LabError."""
        return store.load(self.name)

    @property
    def accounts(self) -> list[Account]:
        return self.state.users()

    @property
    def cannot_show(self) -> tuple[str, ...]:
        """What a drill in this lab says nothing about; empty with namespaces."""
        return backend.of(self.state).cannot_show

    @property
    def folder(self) -> Path:
        """The lab's own folder in ``/run``: for small things that belong to the lab and go with it."""
        return store.lab_folder(self.name)

    def machine(self, name: str) -> Machine:
        """Raises LabError."""
        self.state.machine(name)
        return Machine(self, name)

    def machines(self) -> list[Machine]:
        return [Machine(self, name) for name in self.state.machines]

    def cut(self, first: str, second: str | None = None, *, one_way: bool = False) -> None:
        """Partition: *first* from *second*, or from all. ``one_way``: what *first* sends does not arrive; answers
        would.

        Raises LabError, EnvironmentUnfit.
        """
        with store.changing(self.name) as state:
            wanted = _cuts(state, first, second, one_way=one_way)
            replaced = {(cut.sender, cut.receiver) for cut in wanted}
            state.cuts = sorted([cut for cut in state.cuts if (cut.sender, cut.receiver) not in replaced] + wanted)
            backend.of(state).apply_cuts(state, state.machines.values())

    def heal(self, first: str | None = None, second: str | None = None, *, one_way: bool = False) -> None:
        """Undo :meth:`cut`: between two, of one with all, or all of them. Raises LabError."""
        with store.changing(self.name) as state:
            if first is None:
                state.cuts = []
            else:
                pairs = {(cut.sender, cut.receiver) for cut in _cuts(state, first, second, one_way=one_way)}
                state.cuts = [cut for cut in state.cuts if (cut.sender, cut.receiver) not in pairs]
            backend.of(state).apply_cuts(state, state.machines.values())


class Machine:
    """One machine of a lab."""

    def __init__(self, lab: Lab, name: str) -> None:
        self.lab = lab
        self.name = name

    @property
    def state(self) -> MachineState:
        return self.lab.state.machine(self.name)

    @property
    def running(self) -> bool:
        return backend.alive(self.state.init)

    def path(self, inside: str | Path) -> Path:
        """Where the host sees the machine's absolute path *inside*. Of a machine that is off: trees of its disk, if
        mounted.

        Do not keep it over a kill. Symlinks with absolute targets lead into the host's tree. Raises LabError.
        """
        state = self.lab.state
        return backend.of(state).root(state, state.machine(self.name)) / Path(inside).relative_to("/")

    def network(self) -> AbstractContextManager[None]:
        """In the block, sockets this thread makes are this machine's: a client in a test that speaks from there.

        A socket once made stays there after the block. Raises LabError (off).
        """
        state = self._on()
        return backend.of(state).network(state.machine(self.name))

    def spawn(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str = "/",
        user: str | None = None,
        log: str | None = None,
        attached: bool = False,
        stdin: int | IO[bytes] | None = None,
        stdout: int | IO[bytes] | None = None,
        stderr: int | IO[bytes] | None = None,
    ) -> control.RemoteProcess:
        """Start *argv* in the machine. Output goes to *log* (a path in the machine), to the descriptors given, or
        nowhere.

        Raises LabError.
        """
        state = self._on()
        machine = state.machine(self.name)
        adapter = backend.of(state)
        opened = [os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)]
        try:
            if log is not None:
                flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
                opened.append(os.open(adapter.root(state, machine) / Path(log).relative_to("/"), flags, 0o640))
            files = (_number(stdin, opened[0]), _number(stdout, opened[-1]), _number(stderr, opened[-1]))
            request = control.Run(argv=tuple(argv), env=dict(env or {}), cwd=cwd, user=user, attached=attached)
            return control.start(adapter.control(state, machine), f"{self.name} of lab {self.lab.name}", request, files)
        finally:
            for descriptor in opened:
                os.close(descriptor)

    def run(
        self,
        argv: Sequence[str],
        *,
        input: bytes | str = b"",
        check: bool = True,
        timeout: float = RUN_SECONDS_MAX,
        env: Mapping[str, str] | None = None,
        cwd: str = "/",
        user: str | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run *argv* in the machine and wait for it; output as text. Daemons it leaves behind do not hold it up.

        Raises LabError (the machine died, is frozen, has no such program; with ``check``: status not 0), TimeoutError
        (and the command has been killed).
        """
        with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            given.write(input.encode() if isinstance(input, str) else input)
            given.seek(0)
            process = self.spawn(argv, env=env, cwd=cwd, user=user, attached=True, stdin=given, stdout=out, stderr=err)
            try:
                code = process.wait(timeout)
            finally:
                process.detach()
            texts = []
            for file in (out, err):
                file.seek(0)
                texts.append(file.read().decode(errors="replace"))
        if check and code:
            said = texts[1].strip() or texts[0].strip()
            raise LabError(f"{self.name}: {' '.join(argv)} ended with {code}", hint=said)
        return subprocess.CompletedProcess(list(argv), code, texts[0], texts[1])

    def sync(self) -> None:
        """Everything written so far survives a power cut (as sync(1), for this machine's disk alone).

        Raises LabError.
        """
        linux.sync_filesystem(self.path("/etc"))

    def boot(self, unit: Unit) -> None:
        """Start *unit* now (if the machine is on) and at every start of the machine: ``systemctl enable --now``.

        Raises LabError.
        """
        with store.changing(self.lab.name) as state:
            machine = state.machine(self.name)
            machine.boot = [known for known in machine.boot if known.name != unit.name] + [unit]
        if self.running:
            self._unit(control.UnitCall(verb="add", unit=unit))
            self.start_unit(unit.name)

    def unboot(self, name: str) -> None:
        """Do not start unit *name* at boot any more; one that runs is left running. Raises LabError."""
        with store.changing(self.lab.name) as state:
            machine = state.machine(self.name)
            machine.boot = [unit for unit in machine.boot if unit.name != name]

    def start_unit(self, name: str) -> None:
        """Raises LabError."""
        self._unit(control.UnitCall(verb="start", name=name))

    def stop_unit(self, name: str) -> None:
        """Ask it to stop; :meth:`units` tells when it has. Raises LabError."""
        self._unit(control.UnitCall(verb="stop", name=name))

    def units(self) -> list[UnitStatus]:
        """Raises LabError."""
        return self._unit(control.UnitCall(verb="status"))

    def unit(self, name: str) -> UnitStatus:
        """Raises LabError."""
        for status in self.units():
            if status.name == name:
                return status
        raise LabError(f"{self.name} has no unit {name}")

    def kill(self, *, soft: bool = False) -> None:
        """Power cut; ``soft``: the processes die at once, but the page cache survives. Repeating it is harmless.

        Raises LabError, EnvironmentUnfit (this backend cannot cut power).
        """
        with store.changing(self.lab.name) as state:
            backend.of(state).power_off(state, state.machine(self.name), soft=soft)

    def shut_down(self) -> None:
        """Orderly: units stop with their on_exit, other processes get SIGTERM, the disk is synced. Raises LabError."""
        with store.changing(self.lab.name) as state:
            machine = state.machine(self.name)
            adapter = backend.of(state)
            if machine.frozen:
                raise LabError(f"{self.name} is frozen", hint="Thaw it first, or kill it.")
            backend.kill_and_wait(machine.init, signal.SIGTERM, SHUTDOWN_SECONDS_MAX)
            adapter.power_off(state, machine, soft=True)

    def start(self) -> None:
        """Switch it on, with the disk as it is. Raises LabError (it is on)."""
        with store.changing(self.lab.name) as state:
            machine = state.machine(self.name)
            if backend.alive(machine.init):
                raise LabError(f"{self.name} is on")
            backend.of(state).start(state, machine)

    def wipe(self) -> None:
        """Another machine in its place: same name, addresses and programs, a new disk as the system's installer leaves
        it, no units. It is off. Raises LabError.
        """
        with store.changing(self.lab.name) as state:
            machine = state.machine(self.name)
            machine.boot = []
            backend.of(state).wipe(state, machine)

    def freeze(self) -> None:
        """Stop every process, mid-instruction. Its kernel still answers ARP and TCP handshakes. Raises LabError."""
        self._set_frozen(frozen=True)

    def thaw(self) -> None:
        """Let them go on as if no time had passed. Raises LabError."""
        self._set_frozen(frozen=False)

    def _set_frozen(self, *, frozen: bool) -> None:
        with store.changing(self.lab.name) as state:
            machine = state.machine(self.name)
            if not backend.alive(machine.init):
                raise LabError(f"{self.name} is off")
            backend.of(state).set_frozen(state, machine, frozen=frozen)
            machine.frozen = frozen

    def _unit(self, call: control.UnitCall) -> list[UnitStatus]:
        state = self._on()
        path = backend.of(state).control(state, state.machine(self.name))
        return control.call_units(path, f"{self.name} of lab {self.lab.name}", call)

    def _on(self) -> LabState:
        state = self.lab.state
        if not backend.alive(state.machine(self.name).init):
            raise LabError(f"{self.name} is off", hint=f"'holdfast lab start {self.name}'")
        return state


def _up_locked(adapter: Backend, spec: LabSpec) -> None:
    if store.lab_folder(spec.name).exists():
        _refuse_or_clean(spec.name)
    disks = (Path(spec.disks).resolve() if spec.disks else store.disks_folder()) / spec.name
    disks_of = {machine: str(Path(folder).resolve() / spec.name) for machine, folder in spec.disks_of.items()}
    with store.choosing_network() as number:
        state = new_state(spec, adapter.backing, number, disks, disks_of)
        store.lab_folder(spec.name).mkdir(mode=0o755)
        store.save(state)
    try:
        for folder in state.disk_folders:
            folder.mkdir(parents=True, exist_ok=True)
        _build(adapter, state)
    except BaseException:
        _remove(adapter, state)
        raise


def _build(adapter: Backend, state: LabState) -> None:
    adapter.create(state)
    store.save(state)
    for machine in state.machines.values():
        adapter.prepare(state, machine)
        adapter.start(state, machine)
        store.save(state)


def _remove(adapter: Backend, state: LabState) -> None:
    adapter.destroy(state)
    store.forget(state.name)


def _refuse_or_clean(name: str) -> None:
    state = _state_or_guess(name)
    if backend.alive(state.holder) or any(backend.alive(machine.init) for machine in state.machines.values()):
        raise LabError(f"lab {name} is up already", hint=f"'holdfast lab status --lab {name}', or down.")
    _remove(backend.of(state), state)


def _state_or_guess(name: str) -> LabState:
    """The state, or, where the file is missing or damaged, one good enough to clean up by."""
    try:
        return store.load(name)
    except LabError:
        left = [folder / name for folder in store.DISKS_FOLDERS if (folder / name).is_dir()]
        disks, *more = left or [store.DISKS_ON_DISK / name]
        disks_of = {f"unknown, in {folder}": str(folder) for folder in more}
        return new_state(LabSpec(name=name, machines=()), "namespaces", 0, disks, disks_of)


def _cuts(state: LabState, first: str, second: str | None, *, one_way: bool) -> list[Cut]:
    state.machine(first)
    if second is not None:
        state.machine(second)
        if first == second:
            raise LabError(f"{first} cannot be cut from itself")
    others = [second] if second is not None else [name for name in state.machines if name != first]
    if one_way:
        return [Cut(first, other, "packets") for other in others]
    return [cut for other in others for cut in (Cut(first, other, "frames"), Cut(other, first, "frames"))]


def _number(file: int | IO[bytes] | None, default: int) -> int:
    if file is None:
        return default
    return file if isinstance(file, int) else file.fileno()
