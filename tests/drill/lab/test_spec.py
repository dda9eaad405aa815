"""Names, addresses and accounts of a lab."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from holdfast.drill.lab.spec import LabSpec, LabState, MachineSpec, accounts, new_state
from holdfast.errors import ConfigurationError


def test_machines_of_one_lab_have_addresses_apart_from_each_other_and_from_the_service() -> None:
    state = new_state(LabSpec(), "namespaces", 7, Path("/x"))
    assert [machine.ipv4 for machine in state.machines.values()] == [f"10.77.7.{host}" for host in (11, 12, 13, 14)]
    assert state.machines["main"].ipv6 == "fd77:7::11"
    assert (state.service_ipv4, state.service_ipv6) == ("10.77.7.10", "fd77:7::10")
    assert len({machine.mac for machine in state.machines.values()}) == 4


def test_passwords_follow_from_the_seed_and_differ_between_accounts() -> None:
    first = accounts(50, "example.test", "a")
    assert first == accounts(50, "example.test", "a")
    assert first != accounts(50, "example.test", "b")
    assert first[0].address == "user01@example.test"
    assert first[49].address == "user50@example.test"
    assert len({account.password for account in first}) == 50


def test_a_machine_may_have_its_disk_elsewhere() -> None:
    state = new_state(LabSpec(), "namespaces", 1, Path("/x/lab"), {"main": "/y/lab"})
    assert (state.disk("main"), state.disk("backup")) == (Path("/y/lab/main.ext4"), Path("/x/lab/backup.ext4"))
    assert state.disk_folders == [Path("/x/lab"), Path("/y/lab")]


def test_state_survives_writing_and_reading() -> None:
    state = new_state(LabSpec(), "namespaces", 1, Path("/x"))
    assert msgspec.json.decode(msgspec.json.encode(state), type=LabState) == state


@pytest.mark.parametrize("text", ["main", "main:king", "Main:primary", ":primary", "a b:relay"])
def test_a_machine_that_is_not_name_and_role_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError):
        MachineSpec.parse(text)


def test_two_machines_of_one_name_are_refused() -> None:
    twice = (MachineSpec("main", "primary"), MachineSpec("main", "standby"))
    with pytest.raises(ConfigurationError, match="one name"):
        LabSpec(machines=twice).check()
