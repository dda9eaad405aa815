"""``down`` leaves nothing behind, whatever state the lab is in; several labs live beside each other."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from holdfast.drill.lab import backend, freezer, store
from holdfast.drill.lab.lab import Lab
from holdfast.drill.lab.spec import LabError
from holdfast.drill.lab.tools import wait_until

from .conftest import MachineLab, fresh_name, small

pytestmark = pytest.mark.system


def traces(name: str) -> list[str]:
    """Everything on this host that has the lab's name in it, or is a loop device or mount of it."""
    found = [
        str(path)
        for path in (store.lab_folder(name), *(folder / name for folder in store.DISKS_FOLDERS))
        if path.exists()
    ]
    found += [str(path) for path in store.run_folder().glob(f"{name}*")]
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):
            if f"/{name}/" in backing.read_text():
                found.append(str(backing))
    found += [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if f"/{name}/" in line]
    hierarchy = freezer.hierarchy()
    if hierarchy is not None and (hierarchy / freezer.FOLDER / name).exists():
        found.append(f"control group {name}")
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            text = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            mounts = (process / "mountinfo").read_text()
            if f"lab.holder {name} " in text or f"/{name}/" in mounts:
                found.append(f"process {process.name}: {text}")
    return found


def test_down_leaves_nothing_behind_and_may_be_repeated(make_lab: MachineLab) -> None:
    lab = make_lab()
    lab.machine("main").spawn(["sleep", "1000"])
    lab.machine("main").spawn(["setsid", "sleep", "1000"])
    lab.cut("main", "backup")
    lab.machine("relay").freeze()
    lab.machine("backup").kill()
    assert traces(lab.name)
    assert Lab.down(lab.name)
    assert traces(lab.name) == []
    assert not Lab.down(lab.name)
    with pytest.raises(LabError, match="no lab"):
        Lab.open(lab.name)


@pytest.mark.parametrize("point", ["holder", "first machine", "last machine"])
def test_down_cleans_up_after_an_up_that_was_killed(point: str) -> None:
    name = fresh_name()
    program = (
        "from holdfast.drill.lab.lab import Lab\n"
        "from holdfast.drill.lab.spec import LabSpec\n"
        f"Lab.up(LabSpec(name={name!r}, disk_bytes=256 << 20))\n"
    )
    reached = {
        "holder": lambda: bool(holders(name)),
        "first machine": lambda: bool(list(store.lab_folder(name).glob("main/start.log"))),
        "last machine": lambda: bool(list(store.lab_folder(name).glob("client/start.log"))),
    }[point]
    env = {**os.environ, "PYTHONPATH": backend.source_folder()}
    up = subprocess.Popen([sys.executable, "-c", program], env=env)
    try:
        wait_until(reached, 20, point)
    finally:
        up.send_signal(signal.SIGKILL)
        up.wait()
    assert traces(name)
    assert Lab.down(name)
    assert traces(name) == []


def holders(name: str) -> list[str]:
    return [trace for trace in traces(name) if "lab.holder" in trace]


def test_up_makes_a_lab_anew_where_a_crash_left_half_of_one() -> None:
    spec = small("main:primary")
    lab = Lab.up(spec)
    try:
        holder = lab.state.holder
        assert holder is not None
        os.kill(holder.pid, signal.SIGKILL)
        wait_until(lambda: not lab.machine("main").running, 5, "the lab to die with its holder")
        Lab.up(spec)
        assert lab.machine("main").run(["hostname"]).stdout == "main\n"
    finally:
        Lab.down(spec.name)
    assert traces(spec.name) == []


def test_down_manages_without_the_state_file(make_lab: MachineLab) -> None:
    lab = make_lab("main:primary")
    (store.lab_folder(lab.name) / store.STATE_FILE).write_text("not json")
    assert Lab.down(lab.name)
    assert traces(lab.name) == []


def test_an_up_that_fails_leaves_nothing(tmp_path: Path) -> None:
    spec = small("main:primary")
    full = tmp_path / "not-a-folder"
    full.write_text("")
    failing = type(spec)(name=spec.name, machines=spec.machines, disk_bytes=spec.disk_bytes, disks=str(full))
    with pytest.raises(OSError, match="not-a-folder"):
        Lab.up(failing)
    assert traces(spec.name) == []


def test_a_lab_that_is_up_is_not_made_again(make_lab: MachineLab) -> None:
    lab = make_lab("main:primary")
    with pytest.raises(LabError, match="up already"):
        Lab.up(small("main:primary", name=lab.name))
    assert lab.machine("main").running


def test_two_labs_at_once_have_networks_of_their_own(make_lab: MachineLab) -> None:
    one, two = make_lab("main:primary", "backup:standby"), make_lab("main:primary", "backup:standby")
    assert one.state.network != two.state.network
    assert one.state.service_ipv4 != two.state.service_ipv4
    one.machine("main").kill()
    assert two.machine("main").run(["hostname"]).stdout == "main\n"
    one.machine("main").start()
    Lab.down(one.name)
    assert traces(one.name) == []
    two.machine("main").run(["touch", "/var/still-there"])
    two.machine("main").kill()
    two.machine("main").start()


def test_machines_by_option_and_disks_elsewhere(tmp_path: Path) -> None:
    spec = small("one:primary", "two:standby", "three:standby", "four:relay", "five:router")
    most, own = tmp_path / "most", tmp_path / "own"
    elsewhere = type(spec)(
        name=spec.name,
        machines=spec.machines,
        disk_bytes=spec.disk_bytes,
        disks=str(most),
        disks_of={"one": str(own)},
    )
    lab = Lab.up(elsewhere)
    try:
        assert [machine.name for machine in lab.machines()] == ["one", "two", "three", "four", "five"]
        assert len(list((most / spec.name).glob("*.ext4"))) == 4
        assert [image.name for image in (own / spec.name).iterdir()] == ["one.ext4"]
        lab.machine("one").kill()
        lab.machine("one").start()
    finally:
        Lab.down(lab.name)
    assert list(most.iterdir()) == list(own.iterdir()) == []
