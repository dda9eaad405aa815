"""Configuration errors name the file, the key and what was expected."""

from __future__ import annotations

import pytest

from holdfast.errors import ConfigurationError
from holdfast.node.enrol import configuration_for, initial_configuration
from holdfast.node.settings import parse_settings

GOOD = initial_configuration(
    site="example",
    machine="main",
    machines={"main": ("mail", "192.0.2.11"), "backup": ("mail", "192.0.2.12"), "relay": ("relay", "192.0.2.13")},
    service_addresses=("192.0.2.10/24", "2001:db8::10/64"),
    interface="eth0",
)


def refusal(text: str) -> str:
    with pytest.raises(ConfigurationError) as caught:
        parse_settings(text, "holdfast.toml")
    return str(caught.value)


def test_what_init_writes_is_accepted_and_means_what_was_asked() -> None:
    settings = parse_settings(GOOD, "holdfast.toml")
    assert settings.starts_log
    assert [machine.name for machine in settings.relays] == ["relay"]
    assert settings.service.addresses == ("192.0.2.10/24", "2001:db8::10/64")


def test_the_other_machines_get_the_same_file_with_their_own_name() -> None:
    settings = parse_settings(configuration_for(GOOD, "backup"), "holdfast.toml")
    assert settings.machine == "backup"
    assert not settings.starts_log


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (('site = "example"', 'site = "example"\nsiet = "x"'), "siet"),
        (("retention_hours = 72 ", 'retention_hours = "long" '), "log.retention_hours"),
        (('role = "relay"', 'role = "rellay"'), "rellay"),
        (('address = "192.0.2.12"', 'address = "backup"'), "'backup' is no IP address"),
        (('machine = "main"', 'machine = "mian"'), "mian"),
        (('"192.0.2.10/24"', '"192.0.2.300/24"'), "service.addresses"),
        (('"192.0.2.10/24"', '"192.0.2.11/24"'), "a machine's own"),
        (('name = "backup"', 'name = "main"'), "same name"),
        (('name = "backup"', 'name = "Back_up"'), "Back_up"),
        (('site = "example"', "site = "), "not valid TOML"),
    ],
)
def test_a_wrong_file_is_refused_by_name(change: tuple[str, str], named: str) -> None:
    assert GOOD.count(change[0]) >= 1
    message = refusal(GOOD.replace(change[0], change[1], 1))
    assert "holdfast.toml" in message or "name" in message
    assert named in message


VAULT = """
[[vaults]]
name = "offsite"
location = "/backup"
key = "/etc/holdfast/vaults/offsite.key"
snapshot_times = ["02:30"]
[vaults.keep]
every_second_days = 3
"""


def test_a_vault_has_defaults_and_rules() -> None:
    (vault,) = parse_settings(GOOD + VAULT, "holdfast.toml").vaults
    assert vault.fed_by == "standby"
    assert vault.keep.rules().within_seconds == 3 * 86_400
    assert vault.keep.rules().daily == 30


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (('location = "/backup"', 'location = "backup"'), "absolute path"),
        (('"offsite"', '"Off site"'), "Off site"),
        (('"02:30"', '"2:30"'), "2:30"),
        (('key = "/etc', 'key = "etc'), "whole paths"),
        (("every_second_days", "every_second_day"), "every_second_day"),
        (("snapshot_times", "objective_seconds = 1\nsnapshot_times"), "objective_seconds"),
        (("[[vaults]]", '[[vaults]]\nname = "offsite"\nlocation = "/a"\nkey = "/b"\n[[vaults]]'), "taken"),
    ],
)
def test_a_wrong_vault_is_refused_by_name(change: tuple[str, str], named: str) -> None:
    message = refusal(GOOD + VAULT.replace(*change))
    assert "holdfast.toml" in message
    assert named in message


def test_three_machines_take_over_by_themselves_and_two_never_can() -> None:
    def made(count: int, failover: str = "") -> str:
        machines = {f"m{number}": ("mail" if number < 2 else "relay", f"192.0.2.1{number}") for number in range(count)}
        return initial_configuration(
            site="x", machine="m0", machines=machines, service_addresses=(), interface="eth0", failover=failover
        )

    assert parse_settings(made(3), "holdfast.toml").failover.policy == "automatic"
    assert parse_settings(made(2), "holdfast.toml").failover.policy == "manual"
    message = refusal(made(2, "automatic"))
    assert "only two machines" in message
    assert "neither can tell" in message
    assert "third machine" in message


def test_a_preferred_standby_must_hold_the_mail() -> None:
    assert "nobody" in refusal(GOOD.replace("policy = ", 'prefer = ["nobody"]\npolicy = '))


def test_the_hour_of_the_failback_is_a_time() -> None:
    assert parse_settings(GOOD.replace("policy = ", 'failback_at = "03:30"\npolicy = '), "x").failover.failback_at
    assert "3:30" in refusal(GOOD.replace("policy = ", 'failback_at = "3:30"\npolicy = '))


TWO = GOOD.replace('policy = "automatic"', 'policy = "interval"')


def with_copy(lines: str) -> str:
    return TWO + f"\n[copy]\n{lines}\n" if "[copy]" not in TWO else TWO.replace("[copy]", f"[copy]\n{lines}", 1)


@pytest.mark.parametrize("lines", ['at = ["06:00", "14:00"]', "every_hours = 4"])
def test_copies_at_intervals_are_configured_by_times_or_by_a_distance(lines: str) -> None:
    assert parse_settings(with_copy(lines), "holdfast.toml").at_intervals


@pytest.mark.parametrize(
    ("text", "because"),
    [
        (TWO, "needs one of copy.at and copy.every_hours"),
        (with_copy('every_hours = 4\nat = ["06:00"]'), "needs one of copy.at and copy.every_hours"),
        (with_copy('at = ["6:00"]'), "'6:00' is no time"),
        (with_copy("every_hours = 0.01"), "is not between"),
        (with_copy("every_hours = 4").replace('"interval"', '"interval"\nwithout_quorum = "stop"'), "without_quorum"),
        (with_copy("every_hours = 4") + '[gate]\nlmtp = "unix:/x"\n', "between two copies nothing comes into the log"),
        (with_copy("every_hours = 4").replace('"interval"', '"automatic"'), "every change is copied at once"),
        (with_copy("every_hours = 4").replace('"interval"', '"manual"'), "every change is copied at once"),
    ],
)
def test_copies_at_intervals_are_refused_where_they_make_no_sense(text: str, because: str) -> None:
    assert because in refusal(text)


def test_dovecot_hands_clients_over_at_a_socket_file_only() -> None:
    assert parse_settings(GOOD + '[gate]\nimap = "unix:/run/holdfast/imap-gate"\n', "holdfast.toml").gate.used
    assert "gate.sieve = '127.0.0.1:4191'" in refusal(GOOD + '[gate]\nsieve = "127.0.0.1:4191"\n')


ALL_GATES = "[gate]\n" + "".join(f'{name} = "unix:/{name}"\n' for name in ("lmtp", "milter", "imap", "sieve", "dav"))


def read_only(gates: str) -> str:
    text = GOOD.replace("policy = ", 'without_quorum = "read-only"\npolicy = ')
    return text + gates


def test_read_only_without_a_quorum_is_refused_where_something_passes_no_gate() -> None:
    assert parse_settings(read_only(ALL_GATES), "holdfast.toml").failover.without_quorum == "read-only"
    for name in ("milter", "imap", "sieve", "dav"):
        without = ALL_GATES.replace(f'{name} = "unix:/{name}"\n', "")
        assert f"without gate.{name}: what does not pass a gate would be changed" in refusal(read_only(without))
    assert "gate.lmtp and gate.milter and gate.imap and gate.sieve and gate.dav" in refusal(read_only(""))
    no_calendars = ALL_GATES.replace('dav = "unix:/dav"\n', "")
    text = read_only(no_calendars).replace("[mail]", '[mail]\nservices = ["dovecot", "postfix"]')
    assert parse_settings(text, "holdfast.toml").failover.without_quorum == "read-only"
