"""Slow links and clocks that jump: what is slower, what is moved, and that both are as before afterwards."""

from __future__ import annotations

import socket
import threading
import time

import pytest

from holdfast.drill.lab import clock
from holdfast.drill.lab.lab import Lab, Machine
from holdfast.drill.lab.slow import SlowLink
from holdfast.drill.lab.tools import wait_until

pytestmark = pytest.mark.system

PORT = 7200
DELAY_SECONDS = 0.15
MEGABYTE = 1 << 20
CLOCK_SECONDS_MAX = 5.0
"""Of two looks at one clock, a Python's start between them."""


def round_trip(lab: Lab, near: str, far: str, payload: bytes = b"?") -> tuple[float, bytes]:
    """Seconds of a connection, *payload* there, and back; and what came back."""
    address = lab.machine(far).state.ipv4
    with lab.machine(far).network():
        listener = socket.create_server((address, PORT), backlog=1)

    def echo() -> None:
        connection, _ = listener.accept()
        with connection:
            while data := connection.recv(65536):
                connection.sendall(data)

    thread = threading.Thread(target=echo, daemon=True)
    thread.start()
    with listener:
        began = time.monotonic()
        with lab.machine(near).network():
            connection = socket.create_connection((address, PORT), timeout=20)
        with connection:
            sender = threading.Thread(target=connection.sendall, args=(payload,), daemon=True)
            sender.start()
            back = bytearray()
            while len(back) < len(payload):
                back += connection.recv(65536)
        thread.join(10)
    return time.monotonic() - began, bytes(back)


def test_over_a_slow_link_everything_comes_whole_and_later_and_cuts_hold(lab: Lab) -> None:
    payload = bytes(range(256)) * (MEGABYTE // 256)
    link = SlowLink(lab.machine("main"), DELAY_SECONDS)
    try:
        seconds, back = round_trip(lab, "main", "backup", payload)
        assert back == payload
        assert seconds >= 4 * DELAY_SECONDS, "the connection's round trip, and the payload's"
        assert round_trip(lab, "backup", "main")[0] >= 4 * DELAY_SECONDS
        assert round_trip(lab, "backup", "relay")[0] < DELAY_SECONDS, "the others' links are as they were"
        lab.cut("main", "backup")
        with lab.machine("main").network(), pytest.raises(OSError, match=r"timed out|unreachable|No route"):
            socket.create_connection((lab.machine("backup").state.ipv4, PORT), timeout=0.5)
        lab.heal()
    finally:
        link.close()
    wait_until(lambda: round_trip(lab, "main", "backup")[0] < DELAY_SECONDS, 10, "a fast link again")


def test_a_machine_that_is_killed_behind_a_slow_link_comes_back_with_a_fast_one(lab: Lab) -> None:
    link = SlowLink(lab.machine("backup"), DELAY_SECONDS)
    try:
        lab.machine("backup").kill(soft=True)
        lab.machine("backup").start()
    finally:
        link.close()
    wait_until(lambda: round_trip(lab, "main", "backup")[0] < DELAY_SECONDS, 10, "a fast link")


def clocks(machine: Machine) -> tuple[float, float]:
    """What a Python with a movable clock there takes for the time, and how long it says the machine is up."""
    program = "import time; print(time.time(), time.time_ns() / 1e9, time.monotonic())"
    said = machine.run(["python3", "-c", program], env=clock.environment()).stdout.split()
    assert abs(float(said[0]) - float(said[1])) < 1
    return float(said[0]), float(said[2])


@pytest.mark.parametrize("seconds", [3600, -90])
def test_a_clock_jumps_for_one_machine_alone_and_is_right_after_a_restart(lab: Lab, seconds: int) -> None:
    main, backup = lab.machine("main"), lab.machine("backup")
    clock.jump(main, seconds)
    moved, up = clocks(main)
    assert abs(moved - seconds - time.time()) < CLOCK_SECONDS_MAX
    assert abs(up - time.monotonic()) < CLOCK_SECONDS_MAX
    assert abs(clocks(backup)[0] - time.time()) < CLOCK_SECONDS_MAX
    main.kill(soft=True)
    main.start()
    assert abs(clocks(main)[0] - time.time()) < CLOCK_SECONDS_MAX
