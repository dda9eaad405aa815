"""Machines that are mere process groups: what works, and what is refused with its reason."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast.drill.lab import linux, mailhost, store
from holdfast.drill.lab.lab import Lab
from holdfast.drill.lab.spec import LabSpec, MachineSpec
from holdfast.drill.lab.supervisor import Unit
from holdfast.drill.lab.tools import wait_until
from holdfast.errors import EnvironmentUnfit

from .conftest import fresh_name

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def plain() -> Iterator[Lab]:
    machines = (MachineSpec("main", "primary"), MachineSpec("backup", "standby"))
    made = Lab.up(LabSpec(name=fresh_name(), machines=machines, backend="processes", accounts=1))
    yield made
    disks = Path(made.state.disks)
    Lab.down(made.name)
    assert not disks.exists()
    assert not store.lab_folder(made.name).exists()


def test_commands_run_with_the_machines_address_and_trees_in_their_environment(plain: Lab) -> None:
    for machine in plain.machines():
        script = "echo $HOLDFAST_LAB_ADDRESS; touch $HOLDFAST_LAB_ROOT/etc/own"
        assert machine.run(["sh", "-c", script]).stdout.strip() == machine.state.ipv4
        assert machine.state.ipv4.startswith("127.0.")
        assert machine.path("/etc/own").exists()


def test_a_soft_kill_ends_every_process_of_one_machine_and_start_boots_its_units(plain: Lab) -> None:
    main, backup = plain.machine("main"), plain.machine("backup")
    main.boot(Unit(name="sleeper", argv=("sleep", "1000")))
    stray = main.spawn(["sleep", "1000"])
    assert linux.process_start_ticks(stray.pid) is not None
    main.kill(soft=True)
    assert linux.process_start_ticks(stray.pid) is None
    assert not main.running
    assert backup.running
    main.start()
    wait_until(lambda: main.unit("sleeper").phase == "running", 5, "the unit")


def test_freezing_stops_and_thawing_goes_on(plain: Lab) -> None:
    main = plain.machine("main")
    process = main.spawn(["sh", "-c", "sleep 0.05; exit 3"])
    main.freeze()
    with pytest.raises(TimeoutError):
        process.wait(0.3)
    main.thaw()
    assert process.wait(5) == 3


def test_what_it_cannot_show_is_refused_and_listed(plain: Lab) -> None:
    with pytest.raises(EnvironmentUnfit, match="cannot cut power"):
        plain.machine("main").kill()
    with pytest.raises(EnvironmentUnfit, match="no network to cut"):
        plain.cut("main", "backup")
    with pytest.raises(EnvironmentUnfit):
        mailhost.configure(plain.machine("main"))
    assert len(plain.cannot_show) >= 5
    assert plain.machine("main").running
