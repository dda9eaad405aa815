"""What a machine of a real lab is: its names, addresses, trees, processes, and commands run in it."""

from __future__ import annotations

import os
import signal
import socket
import threading
from pathlib import Path

import pytest

from holdfast.drill.lab import installation, probes
from holdfast.drill.lab.lab import Lab
from holdfast.drill.lab.spec import LabError
from holdfast.drill.lab.tools import wait_until

pytestmark = pytest.mark.system


def test_a_machine_has_its_own_hostname_and_addresses(lab: Lab) -> None:
    for machine in lab.machines():
        seen = machine.run(["sh", "-c", "hostname; cat /etc/hostname; ip -o address show dev eth0"]).stdout
        assert seen.splitlines()[:2] == [machine.name, machine.name]
        assert f" {machine.state.ipv4}/24 " in seen
        assert f" {machine.state.ipv6}/64 " in seen
        assert lab.state.service_ipv4 not in seen
        assert "tentative" not in seen
    assert os.uname().nodename not in {machine.name for machine in lab.machines()}


def test_machines_reach_each_other_by_name_over_both_protocols(lab: Lab) -> None:
    backup = lab.machine("backup")
    names = backup.run(["getent", "ahosts", "main.example.test"]).stdout
    main = lab.machine("main").state
    assert main.ipv4 in names
    assert main.ipv6 in names
    for family, address in ((socket.AF_INET, main.ipv4), (socket.AF_INET6, main.ipv6)):
        with lab.machine("main").network():
            listener = socket.create_server((address, 7001), family=family)
        with listener, probes.connect(backup, address, 7001) as connection:
            accepted, peer = listener.accept()
            accepted.close()
            assert peer[0] == (backup.state.ipv4 if family == socket.AF_INET else backup.state.ipv6)
            assert connection.recv(1) == b""


def test_what_one_machine_writes_no_other_and_not_the_host_sees(lab: Lab) -> None:
    for tree in ("/etc", "/var", "/root", "/run", "/tmp", "/srv", "/home", "/dev/shm"):
        lab.machine("main").run(["touch", f"{tree}/of-main"])
        assert lab.machine("backup").run(["test", "-e", f"{tree}/of-main"], check=False).returncode == 1
        assert not Path(tree, "of-main").exists()
        lab.machine("main").run(["rm", f"{tree}/of-main"])


def test_programs_are_the_hosts_and_cannot_be_changed_from_a_machine(lab: Lab) -> None:
    for path in ("/usr", "/opt", str(Path(__file__).parent), "/var/lib/dpkg"):
        done = lab.machine("main").run(["touch", f"{path}/x"], check=False)
        assert "Read-only file system" in done.stderr


def test_secrets_of_the_host_stay_outside(lab: Lab) -> None:
    main = lab.machine("main")
    shadow = main.run(["cut", "-d:", "-f2", "/etc/shadow"]).stdout
    assert set(shadow.split()) == {"*"}
    kept = main.run(["find", "/root", "/etc/ssl/private", "-xdev", "-type", "f"]).stdout
    assert kept == "/root/.bashrc\n"
    assert not main.path("/etc/dovecot/private").exists()


def test_vmail_is_a_user_of_the_machines_only(lab: Lab) -> None:
    assert lab.machine("main").run(["id", "-u", "vmail"]).stdout.strip() == str(installation.VMAIL_ID)
    assert "\nvmail:" not in Path("/etc/passwd").read_text()


def test_processes_are_the_machines_own_and_orphans_are_reaped(lab: Lab) -> None:
    main = lab.machine("main")
    main.run(["sh", "-c", "(sleep 0.01 &) ; (setsid true &)"])
    numbers = main.run(["sh", "-c", "ls /proc | grep '^[0-9]*$'"]).stdout.split()
    assert "1" in numbers
    assert len(numbers) < 10
    wait_until(
        lambda: main.run(["sh", "-c", "cat /proc/[0-9]*/stat | grep -c ') Z '"], check=False).stdout == "0\n",
        5,
        "reaping",
    )


def test_output_status_and_input_of_a_command_come_through(lab: Lab) -> None:
    main = lab.machine("main")
    done = main.run(["sh", "-c", "cat; echo bad >&2; exit 7"], input="good", check=False)
    assert (done.returncode, done.stdout, done.stderr) == (7, "good", "bad\n")
    with pytest.raises(LabError, match="ended with 7"):
        main.run(["sh", "-c", "exit 7"])
    with pytest.raises(LabError, match="no-such-program"):
        main.run(["no-such-program"])
    assert main.run(["sh", "-c", "kill -9 $$"], check=False).returncode == -signal.SIGKILL


def test_a_command_can_run_as_another_user(lab: Lab) -> None:
    assert lab.machine("main").run(["id", "-un"], user="vmail").stdout == "vmail\n"
    with pytest.raises(LabError, match="no user nobody-at-all"):
        lab.machine("main").run(["true"], user="nobody-at-all")


def test_a_command_that_leaves_a_daemon_behind_does_not_hold_run_up(lab: Lab) -> None:
    main = lab.machine("main")
    done = main.run(["sh", "-c", "sleep 1000 & echo $!"], timeout=5)
    main.run(["kill", done.stdout.strip()])


def test_a_command_that_takes_too_long_is_killed(lab: Lab) -> None:
    main = lab.machine("main")
    with pytest.raises(TimeoutError):
        main.run(["sleep", "4321"], timeout=0.2)
    wait_until(lambda: main.run(["pgrep", "-f", "sleep 4321"], check=False).returncode == 1, 5, "sleep to be killed")


def test_spawned_processes_write_to_a_log_and_take_signals(lab: Lab) -> None:
    main = lab.machine("main")
    process = main.spawn(["sh", "-c", "echo begun; exec sleep 1000"], log="/var/log/spawned.log")
    wait_until(lambda: main.path("/var/log/spawned.log").read_text() == "begun\n", 5, "the log")
    assert process.poll() is None
    process.signal(signal.SIGTERM)
    assert process.wait(5) == -signal.SIGTERM


def test_a_thread_in_a_machines_network_leaves_other_threads_at_home(lab: Lab) -> None:
    outside = os.readlink("/proc/thread-self/ns/net")
    seen = []
    with lab.machine("main").network():
        inside = os.readlink("/proc/thread-self/ns/net")
        thread = threading.Thread(target=lambda: seen.append(lab.name))
        thread.start()
        thread.join()
    assert inside != outside
    assert os.readlink("/proc/thread-self/ns/net") == outside


def test_a_machine_may_change_its_own_network(lab: Lab) -> None:
    main = lab.machine("main")
    main.run(["ip", "address", "add", f"{lab.state.service_ipv4}/32", "dev", "eth0"])
    with main.network():
        listener = socket.create_server((lab.state.service_ipv4, 7002))
    with listener:
        probes.connect(lab.machine("relay"), lab.state.service_ipv4, 7002).close()
    main.run(["ip", "address", "del", f"{lab.state.service_ipv4}/32", "dev", "eth0"])


LISTEN = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
CREATE, NAMES, ADD_FILESYSTEM, HERE = 0x100, 0xC00, 0x101, -100  # fanotify(7)
heard = libc.fanotify_init(NAMES, os.O_RDONLY)
assert heard >= 0, os.strerror(ctypes.get_errno())
assert libc.fanotify_mark(heard, ADD_FILESYSTEM, ctypes.c_uint64(CREATE), HERE, b"/var") == 0
print("ready", flush=True)
while True:
    name = os.read(heard, 4096)
    print([word for word in (b"of-main", b"of-backup", b"of-host") if word in name], flush=True)
"""


def test_a_filesystem_mark_hears_its_own_machine_and_no_other(lab: Lab, tmp_path: Path) -> None:
    main, backup = lab.machine("main"), lab.machine("backup")
    listener = main.spawn(["python", "-c", LISTEN], log="/dev/shm/heard")
    heard = main.path("/dev/shm/heard")
    wait_until(lambda: "ready" in heard.read_text(), 10, "the mark")
    backup.run(["touch", "/var/of-backup"])
    (tmp_path / "of-host").touch()
    main.run(["touch", "/etc/of-main"])
    wait_until(lambda: len(heard.read_text().splitlines()) > 1, 10, "an event")
    assert heard.read_text().splitlines() == ["ready", "[b'of-main']"]
    listener.signal(signal.SIGKILL)
    listener.wait(5)
