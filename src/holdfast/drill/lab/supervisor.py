"""A small supervisor: keeps units running inside a machine, the way systemd keeps services running.

A *unit* is one program in the foreground. It is started at boot, restarted when it ends, and after every end of its
main process, before any restart, its ``on_exit`` command runs: the equivalent of ExecStopPost= (systemd.service(5)),
which is where an agent that died must have its address released and its services stopped. The command's environment
says how the main process ended, in systemd's words: SERVICE_RESULT (``success``, ``exit-code``, ``signal``,
``exec``), EXIT_CODE (``exited``, ``killed``) and EXIT_STATUS (a number, or a signal's name without SIG).

Like KillMode=control-group, everything still in the unit's process group is killed when the main process ends; what has
made itself a session of its own (a daemon that was started) is left alone.

The table ``RULES`` is the whole behaviour: in *phase*, on *event*, go to *phase*, do *act*, because *reason*. The
reason is the line in the supervisor's log and in the unit's status. Time comes in as a monotonic number of seconds;
processes and the log are behind the port :class:`World`, so that every path can be tested without any.
"""

from __future__ import annotations

import os
import signal
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, Literal, NamedTuple, Protocol

import msgspec

RESTART_DELAY_SECONDS: Final = 0.1
"""RestartSec= of systemd."""
STARTS_MAX: Final = 5
"""StartLimitBurst= of systemd: a unit that cannot stay up is given up, and that is visible, instead of spinning."""
STARTS_WINDOW_SECONDS: Final = 10.0
STOP_TIMEOUT_SECONDS: Final = 10.0
"""Then SIGKILL. systemd waits 90 s; a drill does not."""
ON_EXIT_TIMEOUT_SECONDS: Final = 30.0
CLEAN_SIGNALS: Final = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE})
"""Ends that systemd counts as success."""


class Unit(msgspec.Struct, frozen=True, kw_only=True):
    """What to keep running. ``argv`` stays in the foreground."""

    name: str
    argv: tuple[str, ...]
    restart: Literal["always", "on-failure", "no"] = "always"
    restart_delay_seconds: float = RESTART_DELAY_SECONDS
    starts_max: int = STARTS_MAX
    starts_window_seconds: float = STARTS_WINDOW_SECONDS
    stop_timeout_seconds: float = STOP_TIMEOUT_SECONDS
    on_exit: tuple[str, ...] = ()
    on_exit_timeout_seconds: float = ON_EXIT_TIMEOUT_SECONDS
    env: dict[str, str] = {}
    user: str | None = None


class UnitStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A unit as it stands.

    ``last_exit``: None before the first end, else as subprocess has it (-9: killed by SIGKILL).
    """

    name: str
    phase: str
    reason: str
    pid: int | None
    starts: int
    last_exit: int | None


class World(Protocol):
    """What the supervisor needs from outside."""

    def spawn(self, unit: Unit, argv: Sequence[str], env: Mapping[str, str]) -> int:
        """Start *argv* as leader of its own session, output appended to the unit's log.

        Returns the pid. Raises OSError.
        """

    def signal_group(self, pid: int, number: int) -> None:
        """To every process of the group *pid* leads; nothing happens when there is none."""

    def note(self, text: str) -> None:
        """One line for the log."""


class Phase(StrEnum):
    STOPPED = "stopped"
    RUNNING = "running"
    STOPPING = "stopping"
    CLEANING = "cleaning"
    """The on_exit command runs."""
    WAITING = "waiting"
    """For the restart delay to pass."""
    FAILED = "failed"


class Event(StrEnum):
    START = "start"
    STOP = "stop"
    ENDED = "ended"
    """The main process."""
    CLEANED = "cleaned"
    """The on_exit command has ended, or there is none; what follows is decided by :func:`after_cleaning`."""
    TIME = "time"


class Act(StrEnum):
    SPAWN = "spawn"
    TERMINATE = "terminate"
    KILL = "kill"
    CLEAN = "clean"
    KILL_CLEANER = "kill-cleaner"
    DECIDE = "decide"
    WANT = "want"
    UNWANT = "unwant"
    NOTHING = "nothing"


class Rule(NamedTuple):
    phase: Phase
    event: Event
    then: Phase
    act: Act
    reason: str


RULES: Final = (
    Rule(Phase.STOPPED, Event.START, Phase.RUNNING, Act.SPAWN, "asked to start"),
    Rule(Phase.FAILED, Event.START, Phase.RUNNING, Act.SPAWN, "asked to start again after it had been given up"),
    Rule(Phase.WAITING, Event.START, Phase.RUNNING, Act.SPAWN, "asked to start before the restart delay was over"),
    Rule(Phase.RUNNING, Event.START, Phase.RUNNING, Act.NOTHING, "asked to start, but it runs"),
    Rule(
        Phase.STOPPING, Event.START, Phase.STOPPING, Act.WANT, "asked to start while stopping: it will be started after"
    ),
    Rule(
        Phase.CLEANING,
        Event.START,
        Phase.CLEANING,
        Act.WANT,
        "asked to start while cleaning up: it will be started after",
    ),
    Rule(Phase.STOPPED, Event.STOP, Phase.STOPPED, Act.UNWANT, "asked to stop, but it is stopped"),
    Rule(Phase.FAILED, Event.STOP, Phase.STOPPED, Act.UNWANT, "asked to stop after it had been given up"),
    Rule(Phase.WAITING, Event.STOP, Phase.STOPPED, Act.UNWANT, "asked to stop while waiting to be restarted"),
    Rule(Phase.RUNNING, Event.STOP, Phase.STOPPING, Act.TERMINATE, "asked to stop: SIGTERM"),
    Rule(Phase.STOPPING, Event.STOP, Phase.STOPPING, Act.UNWANT, "asked to stop, and it is stopping"),
    Rule(Phase.CLEANING, Event.STOP, Phase.CLEANING, Act.UNWANT, "asked to stop while cleaning up: no restart"),
    Rule(Phase.RUNNING, Event.ENDED, Phase.CLEANING, Act.CLEAN, "the main process ended by itself"),
    Rule(Phase.STOPPING, Event.ENDED, Phase.CLEANING, Act.CLEAN, "the main process ended as asked"),
    Rule(Phase.CLEANING, Event.CLEANED, Phase.CLEANING, Act.DECIDE, "cleaned up"),
    Rule(Phase.STOPPING, Event.TIME, Phase.STOPPING, Act.KILL, "did not stop in time: SIGKILL"),
    Rule(Phase.CLEANING, Event.TIME, Phase.CLEANING, Act.KILL_CLEANER, "on_exit did not end in time: SIGKILL"),
    Rule(Phase.WAITING, Event.TIME, Phase.RUNNING, Act.SPAWN, "restarted"),
)
_RULE: Final = {(rule.phase, rule.event): rule for rule in RULES}


@dataclass
class Service:
    """A unit and where it stands."""

    unit: Unit
    phase: Phase = Phase.STOPPED
    reason: str = "not started yet"
    wanted: bool = False
    pid: int | None = None
    cleaner: int | None = None
    deadline: float | None = None
    last_exit: int | None = None
    could_exec: bool = True
    starts: int = 0
    recent_starts: deque[float] = field(default_factory=deque)

    def status(self) -> UnitStatus:
        return UnitStatus(
            name=self.unit.name,
            phase=self.phase.value,
            reason=self.reason,
            pid=self.pid,
            starts=self.starts,
            last_exit=self.last_exit,
        )


def after_cleaning(service: Service, now: float) -> tuple[Phase, str]:
    """What follows when the main process is gone and cleaned up after. Pure."""
    unit = service.unit
    if not service.wanted:
        return Phase.STOPPED, "stopped as asked"
    if unit.restart == "no":
        return Phase.STOPPED, "ended, and is not to be restarted"
    if unit.restart == "on-failure" and ended_well(service):
        return Phase.STOPPED, "ended well, and is restarted on failure only"
    recent = [start for start in service.recent_starts if now - start < unit.starts_window_seconds]
    if len(recent) >= unit.starts_max:
        return Phase.FAILED, f"given up: started {len(recent)} times within {unit.starts_window_seconds:g} s"
    return Phase.WAITING, f"to be restarted in {unit.restart_delay_seconds:g} s"


def ended_well(service: Service) -> bool:
    """As systemd counts it: exit status 0, or one of the polite signals."""
    code = service.last_exit
    return service.could_exec and code is not None and (code == 0 or -code in CLEAN_SIGNALS)


def exit_environment(service: Service) -> dict[str, str]:
    """What the on_exit command is told (systemd.exec(5), "Environment Variables Set or Propagated")."""
    code = service.last_exit if service.last_exit is not None else 0
    if not service.could_exec:
        result = "exec"
    elif ended_well(service):
        result = "success"
    else:
        result = "exit-code" if code >= 0 else "signal"
    how = {"EXIT_CODE": "exited", "EXIT_STATUS": str(code)}
    if code < 0:
        how = {"EXIT_CODE": "killed", "EXIT_STATUS": signal.Signals(-code).name.removeprefix("SIG")}
    return {"SERVICE_RESULT": result, **how}


class Supervisor:
    """All units of one machine. Not thread-safe; the owner calls :meth:`exited` and :meth:`tick`."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._services: dict[str, Service] = {}

    def add(self, unit: Unit) -> None:
        """Know *unit*, not started. A unit of the same name takes the new definition at its next start."""
        known = self._services.get(unit.name)
        if known is None:
            self._services[unit.name] = Service(unit)
        else:
            known.unit = unit

    def remove(self, name: str) -> None:
        """Forget a unit that has stopped. Raises KeyError, ValueError (still running)."""
        if self._services[name].phase not in (Phase.STOPPED, Phase.FAILED):
            raise ValueError(f"unit {name} is {self._services[name].phase}: stop it first")
        del self._services[name]

    def start(self, name: str, now: float) -> None:
        """Raises KeyError."""
        self._happen(self._services[name], Event.START, now)

    def stop(self, name: str, now: float) -> None:
        """Ask it to end; :meth:`status` tells when it has. Raises KeyError."""
        self._happen(self._services[name], Event.STOP, now)

    def stop_all(self, now: float) -> None:
        for service in self._services.values():
            self._happen(service, Event.STOP, now)

    def at_rest(self) -> bool:
        """Has nothing of any unit left running or to come?"""
        return all(service.phase in (Phase.STOPPED, Phase.FAILED) for service in self._services.values())

    def status(self) -> list[UnitStatus]:
        return [service.status() for service in self._services.values()]

    def exited(self, pid: int, code: int, now: float) -> bool:
        """Process *pid* is dead but not yet reaped (so that its group's number is still its own). Was it ours?"""
        for service in self._services.values():
            if pid == service.pid:
                self._world.signal_group(pid, signal.SIGKILL)
                service.pid, service.last_exit, service.could_exec = None, code, True
                self._happen(service, Event.ENDED, now)
                return True
            if pid == service.cleaner:
                self._world.signal_group(pid, signal.SIGKILL)
                service.cleaner = None
                self._world.note(f"{service.unit.name}: on_exit ended with {code}")
                self._happen(service, Event.CLEANED, now)
                return True
        return False

    def tick(self, now: float) -> None:
        """Let deadlines that have passed take effect."""
        for service in self._services.values():
            if service.deadline is not None and now >= service.deadline:
                service.deadline = None
                self._happen(service, Event.TIME, now)

    def next_deadline(self) -> float | None:
        """When :meth:`tick` has something to do next."""
        return min((s.deadline for s in self._services.values() if s.deadline is not None), default=None)

    def _happen(self, service: Service, event: Event, now: float) -> None:
        rule = _RULE.get((service.phase, event))
        assert rule is not None, f"{service.unit.name}: {event} cannot happen in phase {service.phase}"
        if event is Event.START:
            service.wanted = True
            if service.phase is Phase.FAILED:
                service.recent_starts.clear()
        elif event is Event.STOP:
            service.wanted = False
        self._enter(service, rule.then, rule.reason)
        self._act(service, rule.act, now)

    def _enter(self, service: Service, phase: Phase, reason: str) -> None:
        service.phase, service.reason = phase, reason
        ending = "" if service.last_exit is None else f" (last exit {service.last_exit})"
        self._world.note(f"{service.unit.name}: {phase}: {reason}{ending}")

    def _act(self, service: Service, act: Act, now: float) -> None:
        match act:
            case Act.SPAWN:
                self._spawn(service, now)
            case Act.TERMINATE:
                service.deadline = now + service.unit.stop_timeout_seconds
                self._signal(service.pid, signal.SIGTERM)
            case Act.KILL:
                self._signal(service.pid, signal.SIGKILL)
            case Act.CLEAN:
                self._clean(service, now)
            case Act.KILL_CLEANER:
                self._signal(service.cleaner, signal.SIGKILL)
            case Act.DECIDE:
                self._decide(service, now)
            case Act.UNWANT:
                if service.phase is Phase.STOPPED:
                    service.deadline = None
            case Act.WANT | Act.NOTHING:
                pass

    def _signal(self, pid: int | None, number: int) -> None:
        if pid is not None:
            self._world.signal_group(pid, number)

    def _spawn(self, service: Service, now: float) -> None:
        service.deadline = None
        service.starts += 1
        service.recent_starts.append(now)
        while len(service.recent_starts) > service.unit.starts_max:
            service.recent_starts.popleft()
        try:
            service.pid = self._world.spawn(service.unit, service.unit.argv, service.unit.env)
        except OSError as error:
            self._world.note(f"{service.unit.name}: cannot run {service.unit.argv[0]}: {error}")
            service.pid, service.last_exit, service.could_exec = None, os.EX_UNAVAILABLE, False
            self._happen(service, Event.ENDED, now)

    def _clean(self, service: Service, now: float) -> None:
        service.deadline = None
        if not service.unit.on_exit:
            self._happen(service, Event.CLEANED, now)
            return
        service.deadline = now + service.unit.on_exit_timeout_seconds
        try:
            env = {**service.unit.env, **exit_environment(service)}
            service.cleaner = self._world.spawn(service.unit, service.unit.on_exit, env)
        except OSError as error:
            self._world.note(f"{service.unit.name}: cannot run on_exit {service.unit.on_exit[0]}: {error}")
            self._happen(service, Event.CLEANED, now)

    def _decide(self, service: Service, now: float) -> None:
        phase, reason = after_cleaning(service, now)
        service.deadline = now + service.unit.restart_delay_seconds if phase is Phase.WAITING else None
        self._enter(service, phase, reason)
