"""Units on a real machine: started at boot, restarted, cleaned up after, stopped in order."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from holdfast.drill.lab.lab import Lab, Machine
from holdfast.drill.lab.spec import LabError
from holdfast.drill.lab.supervisor import Unit
from holdfast.drill.lab.tools import wait_until

pytestmark = pytest.mark.system

MAIN = ("sh", "-c", "echo started; sleep 1000 & exec sleep 1001")
HOOK = (
    "sh",
    "-c",
    "echo $SERVICE_RESULT $EXIT_STATUS >> /var/log/hook; ! pgrep -f '^sleep 1000' || echo left >> /var/log/hook",
)


@pytest.fixture
def main(lab: Lab) -> Machine:
    return lab.machine("main")


def hook_lines(machine: Machine) -> list[str]:
    path = machine.path("/var/log/hook")
    return path.read_text().splitlines() if path.exists() else []


def test_a_unit_is_restarted_after_its_on_exit_and_at_every_boot(main: Machine) -> None:
    main.boot(Unit(name="agent", argv=MAIN, on_exit=HOOK))
    log = main.path("/var/log/agent.log")
    wait_until(lambda: log.exists() and log.read_text() == "started\n", 5, "the unit to run")
    first = main.unit("agent").pid
    main.run(["kill", "-9", str(first)])
    wait_until(lambda: main.unit("agent").pid not in (None, first), 5, "a restart")
    assert hook_lines(main) == ["signal KILL"]
    assert main.unit("agent").last_exit == -9
    wait_until(lambda: log.read_text() == "started\nstarted\n", 5, "both starts in the log")

    main.kill()
    main.start()
    wait_until(lambda: main.unit("agent").phase == "running", 5, "the unit to run after the boot")
    main.shut_down()
    main.start()
    assert hook_lines(main)[-1] == "success TERM"

    main.stop_unit("agent")
    wait_until(lambda: main.unit("agent").phase == "stopped", 5, "the unit to stop")
    main.unboot("agent")
    main.kill(soft=True)
    main.start()
    assert main.units() == []


def test_a_daemon_the_unit_started_outlives_it(main: Machine) -> None:
    """As another systemd service would: Dovecot is not to die with the agent unless on_exit says so."""
    main.boot(Unit(name="starter", argv=("sh", "-c", "setsid sleep 2222 & exec sleep 1001"), restart="no"))
    wait_until(lambda: main.run(["pgrep", "-f", "^sleep 2222"], check=False).returncode == 0, 5, "the daemon")
    main.run(["kill", "-9", str(main.unit("starter").pid)])
    wait_until(lambda: main.unit("starter").phase == "stopped", 5, "the unit to end")
    assert main.run(["pgrep", "-f", "^sleep 2222"], check=False).returncode == 0
    main.run(["pkill", "-f", "^sleep 2222"])
    main.unboot("starter")


def test_a_unit_that_does_not_exist_is_named(main: Machine) -> None:
    with pytest.raises(LabError, match="no unit nothing"):
        main.start_unit("nothing")


def test_the_supervisor_log_says_why(main: Machine) -> None:
    main.boot(Unit(name="brief", argv=("false",), starts_max=2))
    wait_until(lambda: main.unit("brief").phase == "failed", 5, "the unit to be given up")
    log = main.path("/var/log/supervisor.log").read_text()
    assert "brief: failed: given up: started 2 times within 10 s (last exit 1)" in log
    main.unboot("brief")


def test_only_root_of_the_host_can_command_a_machine(main: Machine) -> None:
    path = main.path("/run/holdfast-lab.sock")
    assert Path(path).is_socket()
    assert os.stat(path).st_mode & 0o077 == 0
