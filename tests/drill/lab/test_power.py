"""Power cuts: what was synced is there afterwards, what was not is gone; peers hear nothing of it."""

from __future__ import annotations

import os
import socket

import pytest

from holdfast.drill.lab import disk, probes
from holdfast.drill.lab.lab import Lab, Machine
from holdfast.drill.lab.spec import LabError
from holdfast.drill.lab.tools import wait_until

pytestmark = pytest.mark.system

WRITE = """
import os
for name, synced in (("synced", True), ("unsynced", False)):
    descriptor = os.open(f"/var/{name}", os.O_WRONLY | os.O_CREAT, 0o600)
    os.write(descriptor, b"x" * 100000)
    if synced:
        os.fsync(descriptor)
"""


@pytest.fixture
def main(lab: Lab) -> Machine:
    return lab.machine("main")


def exists(machine: Machine, path: str) -> bool:
    return machine.run(["test", "-s", path], check=False).returncode == 0


def test_a_power_cut_loses_what_was_not_synced_and_keeps_what_was(main: Machine) -> None:
    main.run(["python", "-c", WRITE])
    assert exists(main, "/var/unsynced")
    main.kill()
    assert not main.running
    main.start()
    assert main.path("/var/synced").read_bytes() == b"x" * 100000
    assert not exists(main, "/var/unsynced")


def test_a_soft_kill_keeps_the_page_cache(main: Machine) -> None:
    main.run(["sh", "-c", "echo kept > /var/cached"])
    main.kill(soft=True)
    assert main.path("/var/cached").read_text() == "kept\n"
    main.start()
    assert main.path("/var/cached").read_text() == "kept\n"


def test_a_power_cut_after_a_soft_kill_still_loses_what_was_not_synced(main: Machine) -> None:
    main.run(["sh", "-c", "echo lost > /var/cached-then-cut"])
    main.kill(soft=True)
    main.kill()
    main.start()
    assert not exists(main, "/var/cached-then-cut")


def test_an_orderly_shutdown_loses_nothing(main: Machine) -> None:
    main.run(["sh", "-c", "echo kept > /var/shut-down"])
    main.shut_down()
    main.kill()
    main.start()
    assert main.path("/var/shut-down").read_text() == "kept\n"


def test_every_process_dies_and_nothing_in_memory_survives(main: Machine) -> None:
    main.run(["touch", "/run/gone", "/tmp/gone", "/dev/shm/gone"])
    process = main.spawn(["sleep", "1000"])
    init = main.state.init
    assert init is not None
    main.kill()
    with pytest.raises(LabError, match="died"):
        process.wait(5)
    assert not os.path.exists(f"/proc/{init.pid}/root/etc")
    main.start()
    for folder in ("/run", "/tmp", "/dev/shm"):
        assert not main.path(f"{folder}/gone").exists()


def test_peers_hear_nothing_of_a_power_cut(lab: Lab, main: Machine) -> None:
    """No FIN, no RST: a peer that waits for an answer learns of it by its own timeout only."""
    with main.network():
        listener = socket.create_server((main.state.ipv4, 7003))
    connection = probes.connect(lab.machine("backup"), main.state.ipv4, 7003, timeout=0.2)
    accepted, _ = listener.accept()
    passed = accepted.detach()  # so that the machine's process is the only one to hold the connection
    held = main.spawn(["sleep", "1000"], stdin=passed)
    os.close(passed)
    listener.close()
    main.kill()
    with connection, pytest.raises(TimeoutError):
        connection.recv(1)
    held.detach()
    main.start()


def test_killed_twice_and_started_it_has_the_same_addresses(lab: Lab, main: Machine) -> None:
    before = main.state
    main.kill()
    main.kill()
    main.start()
    seen = main.run(["ip", "-o", "address", "show", "dev", "eth0"]).stdout
    assert before.ipv4 in seen
    assert before.ipv6 in seen
    with main.network():
        listener = socket.create_server((before.ipv4, 7004))
    with listener:
        probes.connect(lab.machine("backup"), before.ipv4, 7004).close()


def test_a_machine_that_is_off_says_so(main: Machine) -> None:
    main.kill()
    with pytest.raises(LabError, match="main is off"):
        main.run(["true"])
    main.start()
    with pytest.raises(LabError, match="main is on"):
        main.start()


def test_the_disk_is_let_go_by_a_power_cut(lab: Lab, main: Machine) -> None:
    image = lab.state.disk("main")
    assert disk.loop_devices(image)
    main.kill()
    assert not disk.loop_devices(image)
    main.start()


def test_a_machine_whose_init_died_by_itself_can_be_started(main: Machine) -> None:
    init = main.state.init
    assert init is not None
    os.kill(init.pid, 9)
    wait_until(lambda: not main.running, 5, "init to die")
    main.start()
    assert main.run(["hostname"]).stdout == "main\n"
