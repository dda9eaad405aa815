"""Process 1 of a machine: reaps, supervises the units, and runs the commands that are sent to it.

``python -m holdfast.drill.lab.init FD`` reads its :class:`InitConfig` from standard input. ``FD`` is a socket to
whoever starts the machine: init sends ``made`` as soon as its namespaces exist (the kernel adds its pid as the
receiver sees it), waits for ``go`` (network and control group are then in place), starts the boot units, and sends
``ready``.

SIGTERM is an orderly shutdown: units are stopped with their on_exit, everything else gets SIGTERM, the disk is synced.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from holdfast.drill.lab import control, linux, rootfs
from holdfast.drill.lab.supervisor import Supervisor, Unit

SHUTDOWN_SECONDS_MAX: Final = 30.0
"""For the units; what then still runs is killed with the namespace."""
LEFTOVER_SECONDS_MAX: Final = 5.0
"""For everything else, between SIGTERM and the end."""
CONNECTIONS_MAX: Final = 512
"""Commands under way at once; far more than a test wants, far less than the limit on descriptors."""


class InitConfig(msgspec.Struct, kw_only=True):
    """What init is told. ``root`` and ``disk`` are None with the processes backend."""

    lab: str
    machine: str
    domain: str
    root: str | None
    disk: str | None
    shared: str | None = None
    """A folder of the lab that every machine sees as ``/media/shared``."""
    socket: str
    logs: str
    env: dict[str, str]
    units: list[Unit]


@dataclass
class Command:
    """A command someone has sent: its process, and the connection to report to (None when the caller has gone)."""

    process: subprocess.Popen[bytes]
    connection: socket.socket | None
    attached: bool


class Processes:
    """The supervisor's world: real processes, logs as files."""

    def __init__(self, logs: Path, env: Mapping[str, str]) -> None:
        self._logs = logs
        self._env = dict(env)
        self.units: dict[int, subprocess.Popen[bytes]] = {}
        """Kept until reaped: a forgotten Popen would reap by itself, and the exit status would be lost."""

    def spawn(self, unit: Unit, argv: Sequence[str], env: Mapping[str, str]) -> int:
        with (self._logs / f"{unit.name}.log").open("ab") as log:
            process = popen(
                argv, {**self._env, **env}, "/", unit.user, (subprocess.DEVNULL, log.fileno(), log.fileno())
            )
        self.units[process.pid] = process
        return process.pid

    def signal_group(self, pid: int, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, number)

    def note(self, text: str) -> None:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime())
        with (self._logs / "supervisor.log").open("a") as log:
            log.write(f"{stamp} {text}\n")


def popen(
    argv: Sequence[str], env: Mapping[str, str], cwd: str, user: str | None, files: tuple[int, int, int]
) -> subprocess.Popen[bytes]:
    """Start *argv* as leader of its own session. Raises OSError, ValueError (no such user)."""
    uid, gid, groups = _identity(user) if user is not None else (None, None, None)
    return subprocess.Popen(
        argv,
        env=dict(env),
        cwd=cwd,
        stdin=files[0],
        stdout=files[1],
        stderr=files[2],
        start_new_session=True,
        user=uid,
        group=gid,
        extra_groups=groups,
    )


def _identity(user: str) -> tuple[int, int, list[int]]:
    try:
        entry = pwd.getpwnam(user)
    except KeyError as error:
        raise ValueError(f"no user {user} on this machine") from error
    return entry.pw_uid, entry.pw_gid, os.getgrouplist(user, entry.pw_gid)


class Init:
    """The event loop: children, commands, deadlines."""

    def __init__(self, config: InitConfig, listener: socket.socket) -> None:
        self._env = config.env
        self._processes = Processes(Path(config.logs), config.env)
        self._supervisor = Supervisor(self._processes)
        self._commands: dict[int, Command] = {}
        self._listener = listener
        self._selector = selectors.DefaultSelector()
        self._asked_to_end = False
        self._wakeup, ours = socket.socketpair()
        for end in (self._wakeup, ours):
            end.setblocking(False)
        self._ours = ours
        signal.set_wakeup_fd(ours.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, self._end)
        self._selector.register(self._wakeup, selectors.EVENT_READ)
        self._selector.register(listener, selectors.EVENT_READ)

    def boot(self, units: Sequence[Unit]) -> None:
        """Start *units* in their order."""
        self._processes.note("boot")
        for unit in units:
            self._supervisor.add(unit)
            self._supervisor.start(unit.name, time.monotonic())

    def run(self) -> None:
        """Until SIGTERM, then shut down."""
        while not self._asked_to_end:
            self._step(None)
        self._processes.note("shutdown")
        self._supervisor.stop_all(time.monotonic())
        self._until(self._supervisor.at_rest, SHUTDOWN_SECONDS_MAX)
        self._end_leftovers()
        self._processes.note("off")
        if os.getpid() == 1:
            os.sync()

    def _end(self, *_: object) -> None:
        self._asked_to_end = True

    def _end_leftovers(self) -> None:
        if os.getpid() == 1:  # -1 is then this machine only (kill(2), pid_namespaces(7))
            with contextlib.suppress(ProcessLookupError):
                os.kill(-1, signal.SIGTERM)
        else:
            for pid in self._commands:
                self._processes.signal_group(pid, signal.SIGTERM)
        self._until(lambda: not _has_children(), LEFTOVER_SECONDS_MAX)

    def _until(self, fact: Callable[[], bool], seconds_max: float) -> None:
        deadline = time.monotonic() + seconds_max
        while not fact() and time.monotonic() < deadline:
            self._step(deadline)

    def _step(self, deadline: float | None) -> None:
        due = [moment for moment in (deadline, self._supervisor.next_deadline()) if moment is not None]
        timeout = max(0.0, min(due) - time.monotonic()) if due else None
        for key, _ in self._selector.select(timeout):
            if key.fileobj is self._listener:
                self._accept()
            elif key.fileobj is self._wakeup:
                with contextlib.suppress(BlockingIOError):
                    self._wakeup.recv(4096)
            else:
                assert isinstance(key.fileobj, socket.socket)
                self._hear(key.fileobj)
        self._reap()
        self._supervisor.tick(time.monotonic())

    def _reap(self) -> None:
        while True:
            try:
                dead = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if dead is None:
                return
            pid = dead.si_pid
            code = dead.si_status if dead.si_code == os.CLD_EXITED else -dead.si_status
            process = self._processes.units.pop(pid, None)
            if process is not None:
                process.returncode = code
                self._supervisor.exited(pid, code, time.monotonic())
            command = self._commands.pop(pid, None)
            if command is not None:
                command.process.returncode = code
                self._report(command, code)
            os.waitpid(pid, 0)

    def _report(self, command: Command, code: int) -> None:
        if command.connection is not None:
            with contextlib.suppress(OSError):  # the caller has gone
                command.connection.send(control.encode(control.Exited(code)))
            # The caller closes: closing here with a packet of its unread would turn our answer into ECONNRESET.

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        if len(self._selector.get_map()) > CONNECTIONS_MAX:
            self._answer(connection, control.Refusal(f"more than {CONNECTIONS_MAX} commands at once"))
            connection.close()
            return
        self._selector.register(connection, selectors.EVENT_READ)

    def _hear(self, connection: socket.socket) -> None:
        try:
            packet, descriptors, _, _ = socket.recv_fds(connection, control.PACKET_BYTES_MAX, 3)
        except OSError:
            packet, descriptors = b"", []
        try:
            if not packet:
                self._gone(connection)
            else:
                self._serve(connection, packet, descriptors)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def _serve(self, connection: socket.socket, packet: bytes, descriptors: Sequence[int]) -> None:
        try:
            request = control.decode_request(packet)
        except msgspec.DecodeError as error:
            self._answer(connection, control.Refusal(f"not a request: {error}"))
            return
        match request:
            case control.Run():
                self._run(connection, request, descriptors)
            case control.Signal(number=number):
                for pid, command in self._commands.items():
                    if command.connection is connection:
                        self._processes.signal_group(pid, number)
            case control.UnitCall():
                self._answer(connection, self._call_unit(request))

    def _run(self, connection: socket.socket, request: control.Run, descriptors: Sequence[int]) -> None:
        if len(descriptors) != 3:
            self._answer(connection, control.Refusal(f"a command needs 3 descriptors, not {len(descriptors)}"))
            return
        files = (descriptors[0], descriptors[1], descriptors[2])
        try:
            process = popen(request.argv, {**self._env, **request.env}, request.cwd, request.user, files)
        except (OSError, ValueError) as error:
            self._answer(connection, control.Refusal(f"cannot run {request.argv[0]}: {error}"))
            return
        self._commands[process.pid] = Command(process, connection, request.attached)
        self._answer(connection, control.Started(process.pid))

    def _call_unit(self, call: control.UnitCall) -> control.Reply:
        now = time.monotonic()
        try:
            match call.verb:
                case "add" if call.unit is not None:
                    self._supervisor.add(call.unit)
                case "remove":
                    self._supervisor.remove(call.name)
                case "start":
                    self._supervisor.start(call.name, now)
                case "stop":
                    self._supervisor.stop(call.name, now)
                case _:
                    pass
        except KeyError:
            return control.Refusal(f"no unit {call.name}")
        except ValueError as error:
            return control.Refusal(str(error))
        return control.Units(self._supervisor.status())

    def _answer(self, connection: socket.socket, reply: control.Reply) -> None:
        with contextlib.suppress(OSError):  # the caller has gone; _gone() hears of it
            connection.send(control.encode(reply))

    def _gone(self, connection: socket.socket) -> None:
        for pid, command in self._commands.items():
            if command.connection is connection:
                command.connection = None
                if command.attached:
                    self._processes.signal_group(pid, signal.SIGKILL)
        self._selector.unregister(connection)
        connection.close()


def _has_children() -> bool:
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def _fork_away() -> None:
    """Go on as a child (process 1 of the new process namespace, if there is one); whoever started us is released."""
    if os.fork():
        os._exit(0)


def _become_machine(config: InitConfig) -> None:
    """Namespaces and root; this process is process 1 after it, and the caller's parent has ended."""
    kinds = linux.CLONE_NEWNS | linux.CLONE_NEWPID | linux.CLONE_NEWNET | linux.CLONE_NEWUTS | linux.CLONE_NEWIPC
    linux.unshare(kinds)
    _fork_away()
    for setting in ("conf/all/accept_dad", "conf/default/accept_dad", "conf/default/dad_transmits"):
        Path("/proc/sys/net/ipv6", setting).write_text("0")  # addresses are usable at once
    assert config.root is not None
    assert config.disk is not None
    rootfs.enter(Path(config.root), Path(config.disk), None if config.shared is None else Path(config.shared))
    socket.sethostname(config.machine)


def main() -> None:
    parent = socket.socket(fileno=int(sys.argv[1]))
    config = msgspec.json.decode(sys.stdin.buffer.read(), type=InitConfig)
    os.umask(0o022)
    if config.root is not None:
        _become_machine(config)
    else:
        _fork_away()
        linux.become_subreaper()
    os.setsid()
    linux.process_name(f"init-{config.machine}")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    Path(config.socket).unlink(missing_ok=True)
    listener.bind(config.socket)
    os.chmod(config.socket, 0o600)
    listener.listen(128)
    parent.send(b"made")
    if parent.recv(16) != b"go":
        return
    log = os.open(Path(config.logs, "supervisor.log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    for source, target in ((null, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    init = Init(config, listener)
    init.boot(config.units)
    parent.send(b"ready")
    parent.close()
    init.run()


if __name__ == "__main__":
    main()
