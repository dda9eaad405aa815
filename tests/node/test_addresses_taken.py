"""Service addresses on a real interface: who uses them, and that they come and go."""

from __future__ import annotations

import json

import pytest

from .network import PYTHON, in_namespace, needs_root

pytestmark = [pytest.mark.system, needs_root]
SERVICE = ("192.0.2.10/24", "2001:db8::10/64")
OWN = "ip address add 192.0.2.200/24 dev hf0; ip address add 2001:db8::200/64 dev hf0 nodad"
SHOW = ("ip", "-json", "address", "show", "dev", "hf0")
LEAST = f"from holdfast.node.address import Addresses; a = Addresses('hf0', {SERVICE!r}); "


def test_the_machines_own_connections_do_not_start_from_a_service_address() -> None:
    """They would break when it moves; and the other machine would look like this one to whom it writes."""
    steps = [("sh", "-ec", OWN), (*PYTHON, LEAST + "a.take()"), SHOW]
    routes = [("ip", "-json", "route", "get", "192.0.2.77"), ("ip", "-6", "-json", "route", "get", "2001:db8::77")]
    *done, shown, four, six = in_namespace(*steps, *routes)
    assert not any(step.returncode for step in done), done
    lives = {a["local"]: a["preferred_life_time"] for a in json.loads(shown.stdout)[0]["addr_info"]}
    assert lives["2001:db8::10"] == 0
    assert lives["2001:db8::200"] > 0
    assert [json.loads(route.stdout)[0]["prefsrc"] for route in (four, six)] == ["192.0.2.200", "2001:db8::200"]


def test_taking_and_giving_back_may_be_repeated_and_touch_nothing_else() -> None:
    """Also what a person added, with another prefix length."""
    again = "a.take(); a.take(); assert len(a.held()) == 2; print(*a.release()); assert not a.release() + a.held()"
    by_hand = ("ip", "address", "add", "192.0.2.10/32", "dev", "hf0")
    *done, released, shown = in_namespace(("sh", "-ec", OWN), by_hand, (*PYTHON, LEAST + again), SHOW)
    assert not any(step.returncode for step in (*done, released)), (done, released)
    assert set(released.stdout.split()) == {"192.0.2.10/32", "2001:db8::10/64"}
    left = {a["local"] for a in json.loads(shown.stdout)[0]["addr_info"] if a["scope"] == "global"}
    assert left == {"192.0.2.200", "2001:db8::200"}


def test_what_is_wrong_is_said() -> None:
    there_is_none = "from holdfast.node.address import Addresses; a = Addresses('eth7', ('192.0.2.10/24',)); "
    (taken, released) = in_namespace((*PYTHON, there_is_none + "a.take()"), (*PYTHON, there_is_none + "a.release()"))
    assert "AddressFailed: there is no interface 'eth7'" in taken.stderr
    assert released.returncode == 0, "what is not there need not be given back"
