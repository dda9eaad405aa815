"""The supervisor's table, with processes and clock made up by the test."""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.drill.lab.supervisor import RULES, Event, Phase, Supervisor, Unit


class Machine:
    """A world in which processes do nothing until told how they end."""

    def __init__(self) -> None:
        self.now = 0.0
        self.started: list[tuple[str, ...]] = []
        self.environments: list[Mapping[str, str]] = []
        self.running: dict[int, tuple[str, ...]] = {}
        self.signals: list[tuple[int, int]] = []
        self.missing: set[str] = set()
        self.log: list[str] = []

    def spawn(self, unit: Unit, argv: Sequence[str], env: Mapping[str, str]) -> int:
        if argv[0] in self.missing:
            raise FileNotFoundError(argv[0])
        self.started.append(tuple(argv))
        self.environments.append(env)
        pid = len(self.started)
        self.running[pid] = tuple(argv)
        return pid

    def signal_group(self, pid: int, number: int) -> None:
        self.signals.append((pid, number))

    def note(self, text: str) -> None:
        self.log.append(text)

    def end(self, supervisor: Supervisor, pid: int, code: int = 0) -> None:
        del self.running[pid]
        supervisor.exited(pid, code, self.now)

    def wait(self, supervisor: Supervisor, seconds: float) -> None:
        self.now += seconds
        supervisor.tick(self.now)


AGENT = Unit(name="agent", argv=("agent",), on_exit=("clean",), restart_delay_seconds=1.0)


def running(unit: Unit = AGENT) -> tuple[Machine, Supervisor]:
    machine = Machine()
    supervisor = Supervisor(machine)
    supervisor.add(unit)
    supervisor.start(unit.name, machine.now)
    return machine, supervisor


def phase(supervisor: Supervisor) -> str:
    return supervisor.status()[0].phase


def test_a_unit_that_ends_is_cleaned_up_after_and_then_restarted() -> None:
    machine, supervisor = running()
    machine.end(supervisor, 1, -signal.SIGKILL)
    assert machine.started == [("agent",), ("clean",)]
    assert phase(supervisor) == "cleaning"
    machine.end(supervisor, 2)
    assert phase(supervisor) == "waiting"
    machine.wait(supervisor, 0.9)
    assert len(machine.started) == 2
    machine.wait(supervisor, 0.2)
    assert machine.started[2:] == [("agent",)]


@pytest.mark.parametrize(
    ("code", "told"),
    [
        (0, {"SERVICE_RESULT": "success", "EXIT_CODE": "exited", "EXIT_STATUS": "0"}),
        (3, {"SERVICE_RESULT": "exit-code", "EXIT_CODE": "exited", "EXIT_STATUS": "3"}),
        (-signal.SIGKILL, {"SERVICE_RESULT": "signal", "EXIT_CODE": "killed", "EXIT_STATUS": "KILL"}),
        (-signal.SIGTERM, {"SERVICE_RESULT": "success", "EXIT_CODE": "killed", "EXIT_STATUS": "TERM"}),
    ],
)
def test_on_exit_is_told_how_it_ended_in_the_words_of_systemd(code: int, told: dict[str, str]) -> None:
    machine, supervisor = running()
    machine.end(supervisor, 1, code)
    assert machine.environments[1] == told


def test_what_is_left_of_its_process_group_is_killed_before_on_exit_runs() -> None:
    machine, supervisor = running()
    machine.end(supervisor, 1)
    assert machine.signals == [(1, signal.SIGKILL)]


def test_a_unit_asked_to_stop_is_terminated_then_killed_then_cleaned_up_after_and_stays_stopped() -> None:
    machine, supervisor = running()
    supervisor.stop("agent", machine.now)
    assert machine.signals == [(1, signal.SIGTERM)]
    machine.wait(supervisor, AGENT.stop_timeout_seconds + 0.1)
    assert machine.signals[-1] == (1, signal.SIGKILL)
    machine.end(supervisor, 1, -signal.SIGKILL)
    machine.end(supervisor, 2)
    machine.wait(supervisor, 60)
    assert phase(supervisor) == "stopped"
    assert supervisor.at_rest()


def test_on_exit_that_hangs_is_killed_and_the_unit_goes_on() -> None:
    machine, supervisor = running()
    machine.end(supervisor, 1)
    machine.wait(supervisor, AGENT.on_exit_timeout_seconds + 0.1)
    assert machine.signals[-1] == (2, signal.SIGKILL)
    machine.end(supervisor, 2, -signal.SIGKILL)
    assert phase(supervisor) == "waiting"


def test_a_unit_that_cannot_stay_up_is_given_up_and_can_be_asked_for_again() -> None:
    machine, supervisor = running(Unit(name="agent", argv=("agent",), starts_max=3, starts_window_seconds=10.0))
    for _ in range(3):
        machine.end(supervisor, max(machine.running), 1)
        machine.wait(supervisor, 0.2)
    assert phase(supervisor) == "failed"
    assert len(machine.started) == 3
    supervisor.start("agent", machine.now)
    assert phase(supervisor) == "running"


def test_a_program_that_is_not_there_counts_as_an_end() -> None:
    machine = Machine()
    machine.missing = {"agent"}
    supervisor = Supervisor(machine)
    supervisor.add(AGENT)
    supervisor.start("agent", 0.0)
    assert machine.started == [("clean",)]
    assert machine.environments[0]["SERVICE_RESULT"] == "exec"


def test_on_failure_does_not_restart_what_ended_well() -> None:
    machine, supervisor = running(Unit(name="agent", argv=("agent",), restart="on-failure"))
    machine.end(supervisor, 1, 0)
    assert phase(supervisor) == "stopped"


@given(st.lists(st.sampled_from(["start", "stop", "end", "crash", "time", "long"]), max_size=40))
def test_whatever_happens_one_process_runs_and_every_end_is_cleaned_up_after(events: list[str]) -> None:
    machine = Machine()
    supervisor = Supervisor(machine)
    supervisor.add(AGENT)
    for event in events:
        if event == "start":
            supervisor.start("agent", machine.now)
        elif event == "stop":
            supervisor.stop("agent", machine.now)
        elif event in ("end", "crash") and machine.running:
            machine.end(supervisor, min(machine.running), 0 if event == "end" else 1)
        else:
            machine.wait(supervisor, 0.5 if event == "time" else 40.0)
        assert len(machine.running) <= 1
        assert len(machine.running) == 1 or supervisor.at_rest() or supervisor.next_deadline() is not None
    for first, second in zip(machine.started, machine.started[1:], strict=False):
        assert first != second, "an end of the main process is followed by on_exit, and that by a start"


def test_every_phase_knows_what_to_do_on_start_and_stop() -> None:
    for event in (Event.START, Event.STOP):
        assert {rule.phase for rule in RULES if rule.event is event} == set(Phase)
    assert all(rule.reason for rule in RULES)
