"""Cuts between machines: both ways and one way, IPv4 and IPv6, every address, across kills; and healing."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from holdfast.drill.lab.lab import Lab, Machine
from holdfast.drill.lab.spec import LabError
from holdfast.drill.lab.tools import wait_until

pytestmark = pytest.mark.system

PORT = 7100
NOTHING_SECONDS = 0.1
"""On a veth a datagram arrives before sendto() returns; this is for a loaded machine."""


@pytest.fixture(autouse=True)
def healed(lab: Lab) -> Iterator[None]:
    yield
    lab.heal()


def arrives(sender: Machine, receiver: Machine, address: str, source: str | None = None) -> bool:
    """Does a datagram from *sender* reach *receiver* at its *address*?"""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with ExitStack() as opened:
        with receiver.network():
            inbox = opened.enter_context(socket.socket(family, socket.SOCK_DGRAM))
        inbox.bind((address, PORT))
        inbox.settimeout(NOTHING_SECONDS)
        with sender.network():
            outbox = opened.enter_context(socket.socket(family, socket.SOCK_DGRAM))
        if source is not None:
            outbox.bind((source, 0))
        outbox.sendto(b"?", (address, PORT))
        try:
            return inbox.recv(16) == b"?"
        except TimeoutError:
            return False


def reach(lab: Lab, sender: str, receiver: str) -> list[bool]:
    """Over IPv4 and IPv6."""
    to = lab.machine(receiver).state
    return [arrives(lab.machine(sender), lab.machine(receiver), address) for address in (to.ipv4, to.ipv6)]


BOTH, NEITHER = [True, True], [False, False]


def will_reach(lab: Lab, sender: str, receiver: str) -> None:
    """A neighbour that was asked for in vain during a full cut is asked for again a second later (arp(7))."""
    wait_until(lambda: reach(lab, sender, receiver) == BOTH, 10, f"{receiver} to be reached")


def test_a_cut_holds_both_ways_and_only_between_the_two(lab: Lab) -> None:
    assert reach(lab, "main", "backup") == BOTH
    lab.cut("main", "backup")
    assert reach(lab, "main", "backup") == NEITHER
    assert reach(lab, "backup", "main") == NEITHER
    assert reach(lab, "main", "relay") == BOTH
    assert reach(lab, "relay", "backup") == BOTH
    lab.heal("backup", "main")
    will_reach(lab, "main", "backup")


def test_a_one_way_cut_drops_one_direction_even_when_neighbours_are_forgotten(lab: Lab) -> None:
    lab.cut("main", "backup", one_way=True)
    for machine in ("main", "backup"):
        lab.machine(machine).run(["ip", "neighbour", "flush", "all"])
    assert reach(lab, "main", "backup") == NEITHER
    assert reach(lab, "backup", "main") == BOTH
    lab.heal("main", "backup", one_way=True)
    assert reach(lab, "main", "backup") == BOTH


def test_an_isolated_machine_reaches_nobody_and_nobody_reaches_it(lab: Lab) -> None:
    lab.cut("main")
    for other in ("backup", "relay"):
        assert reach(lab, "main", other) == NEITHER
        assert reach(lab, other, "main") == NEITHER
    assert reach(lab, "backup", "relay") == BOTH
    lab.heal("main")
    will_reach(lab, "main", "relay")


@pytest.mark.parametrize("holder", ["main", "backup"])
def test_a_one_way_cut_holds_for_the_service_address_whoever_has_it(lab: Lab, holder: str) -> None:
    state = lab.state
    assert state.service_ipv6 is not None
    addresses = [(state.service_ipv4, "32"), (state.service_ipv6, "128")]
    machine = lab.machine(holder)
    for address, bits in addresses:
        machine.run(
            ["ip", "address", "add", f"{address}/{bits}", "dev", "eth0", *(["nodad"] if ":" in address else [])]
        )
    lab.cut("main", "backup", one_way=True)
    for address, _ in addresses:
        if holder == "backup":
            assert not arrives(lab.machine("main"), machine, address)
        else:
            to = lab.machine("backup").state
            own = to.ipv6 if ":" in address else to.ipv4
            assert not arrives(machine, lab.machine("backup"), own, source=address)
            assert arrives(lab.machine("backup"), machine, address)
    lab.heal()
    for address, bits in addresses:
        machine.run(["ip", "address", "del", f"{address}/{bits}", "dev", "eth0"])


def test_cuts_outlast_a_power_cut_of_either_side(lab: Lab) -> None:
    lab.cut("main", "backup")
    for name in ("main", "backup"):
        lab.machine(name).kill()
        lab.machine(name).start()
    assert reach(lab, "main", "backup") == NEITHER
    assert reach(lab, "backup", "main") == NEITHER
    will_reach(lab, "relay", "main")


def test_a_cut_named_while_a_machine_is_off_holds_when_it_comes_back(lab: Lab) -> None:
    lab.machine("backup").kill()
    lab.cut("main", "backup")
    lab.machine("backup").start()
    assert reach(lab, "main", "backup") == NEITHER
    lab.heal()
    will_reach(lab, "main", "backup")


def test_a_machine_that_is_not_there_cannot_be_cut(lab: Lab) -> None:
    with pytest.raises(LabError, match="no machine nobody"):
        lab.cut("main", "nobody")
    with pytest.raises(LabError, match="itself"):
        lab.cut("main", "main")
