"""The worst cases by hand, as docs/operations/ says what to do: the whole site off, the log lost on one machine and on
two, a corrupt copy, an ended certificate, two machines of three gone for good; and a site with copies at intervals.

In this order: the last but one leaves a site of one machine. `make worst-cases` runs them.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from holdfast.changes.names import MachineName
from holdfast.drill.lab.lab import Machine
from holdfast.drill.lab.spec import LabError
from holdfast.drill.lab.tools import wait_until
from holdfast.log.trust import Authority

from .site import Site, protected_site
from .test_failover import cause, count, put_message, wait_serving

pytestmark = pytest.mark.system

SECONDS_MAX = 120.0
ITSELF_SECONDS = 40.0


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with protected_site("maildir", failover="automatic") as made:
        fill(made, tmp_path_factory.mktemp("fill"))
        yield made


def fill(site: Site, folder: Path) -> None:
    """Every mailbox is there."""
    site.work(site.plan(messages=10, operations=0, seed=9), folder / "fill")
    site.settle()


@pytest.fixture
def whole(site: Site) -> None:
    site.make_main_primary()
    wait_serving(site, "main")


def put(site: Site, machine: str, name: str) -> str:
    """A message as mail software leaves it: on the disk, whatever becomes of the power."""
    message = put_message(site, machine, name)
    site.machine(machine).sync()
    return message


def wait_there(site: Site, machine: str, name: str) -> None:
    """Dovecot there has the message, once it has started."""

    def there() -> bool:
        with contextlib.suppress(LabError):
            return count(site, machine, name) == 1
        return False

    wait_until(there, SECONDS_MAX, f"{name} on {machine}", 0.2)


def lose_log(machine: Machine) -> None:
    """The log server's data is gone."""
    stop_agent(machine)
    machine.run(["rm", "-rf", "/var/lib/holdfast/log"])


def stop_agent(machine: Machine) -> None:
    machine.stop_unit("holdfast")
    wait_until(lambda: machine.unit("holdfast").pid is None, SECONDS_MAX, "the agent's end", 0.05)


@pytest.mark.usefixtures("whole")
@pytest.mark.parametrize("order", [("relay", "backup", "main"), ("main", "backup", "relay")])
def test_the_whole_site_off_and_on_again_in_any_order_serves_as_before(site: Site, order: tuple[str, ...]) -> None:
    name = put(site, "main", "before-" + order[0])
    site.settle()
    for machine in reversed(order):
        site.machine(machine).kill()
    for machine in order:
        site.machine(machine).start()
    wait_serving(site, "main")
    site.protected.wait_role("backup", "standby")
    wait_there(site, "main", name)
    site.verify_clean()


@pytest.mark.usefixtures("whole")
@pytest.mark.parametrize("machine", ["relay", "backup"])
def test_a_log_lost_on_one_machine_is_filled_again_by_the_others(site: Site, machine: str) -> None:
    incarnation = site.status("main")["log"]["incarnation"]
    lose_log(site.machine(machine))
    name = put(site, "main", f"without-{machine}")
    site.protected.barrier("main")
    site.protected.wait_for("main", lambda facts: facts["log"]["lacking"] == [machine], "a copy less", SECONDS_MAX)
    site.machine(machine).start_unit("holdfast")
    site.protected.wait_role(machine, "relay" if machine == "relay" else "standby")
    site.verify_clean()
    site.protected.wait_for("main", lambda facts: facts["log"]["lacking"] == [], "the log filled again", SECONDS_MAX)
    other = "backup" if machine == "relay" else "relay"
    site.machine(other).kill()  # now the one that was filled is needed
    put(site, "main", f"with-{machine}-again")
    site.protected.barrier("main")
    site.machine(other).start()
    assert site.status("main")["log"]["incarnation"] == incarnation
    wait_there(site, "main", name)


@pytest.mark.usefixtures("whole")
def test_a_corrupt_copy_is_named_file_by_file_and_mended(site: Site) -> None:
    names = [put(site, "main", f"corrupt-{number}") for number in range(3)]
    site.settle()
    folder = site.machine("backup").path("/var/vmail")
    files = sorted(path for path in folder.rglob("*corrupt-*") if path.is_file())
    assert len(files) == len(names)
    before = files[0].stat()
    files[0].write_bytes(b"\0" * before.st_size)  # as a bad disk does: neither size nor time tells
    os.utime(files[0], ns=(before.st_atime_ns, before.st_mtime_ns))
    files[1].unlink()
    report = site.protected.order("backup", "verify", "--full", "--heal")
    assert report["found"] >= 2
    assert report["remaining"] == 0
    site.verify_clean()


@pytest.mark.usefixtures("whole")
@pytest.mark.parametrize("machines", [("backup", "relay"), ("main", "backup")])
def test_a_log_lost_on_two_machines_goes_on_by_itself_or_when_it_is_founded_anew(
    site: Site, machines: tuple[str, str]
) -> None:
    for machine in machines:
        lose_log(site.machine(machine))
    for machine in machines:
        site.machine(machine).start_unit("holdfast")
    name = put(site, "main", f"lost-on-{machines[0]}")
    with contextlib.suppress(LabError):  # not by itself: the two empty servers have found each other first
        site.protected.wait_for("main", serves_with_standby, "going on by itself", ITSELF_SECONDS)
    if not serves_with_standby(site.status("main")):
        print(site.holdfast("main", "found", "--yes"))
        site.protected.wait_for("main", serves_with_standby, "going on by order", SECONDS_MAX)
    site.protected.barrier("main")
    site.verify_clean()
    wait_there(site, "main", name)


def serves_with_standby(facts: dict[str, Any]) -> bool:
    roles = {view["name"]: view["role"] for view in facts["machines"]}
    return bool(facts["serving"] and facts["log"]["reachable"]) and roles["backup"] == "standby"


@pytest.mark.usefixtures("whole")
def test_a_machine_whose_certificate_has_ended_is_away_until_it_has_a_new_one(site: Site) -> None:
    main, backup = site.machine("main"), site.machine("backup")
    ended = datetime.now(UTC) - timedelta(days=30)
    authority = Authority(main.path("/etc/holdfast/authority"))
    identity = authority.issue(MachineName("backup"), [str(backup.state.ipv4)], days=1, now=ended)
    identity.write(backup.path("/etc/holdfast/tls"))
    restart(backup)
    site.protected.wait_for("main", lambda facts: "backup is silent" in warned(facts), "without backup")
    name = put(site, "main", "without-a-certificate")
    site.protected.barrier("main")  # the other two carry the log
    assert f"{ended + timedelta(days=1):%Y-%m-%d}" in site.holdfast("backup", "trust", "show").stdout
    renewed = json.loads(site.holdfast("main", "trust", "renew", "--json").stdout)
    site.protected.join(backup, main, renewed["bundles"]["backup"])
    restart(backup)
    site.protected.wait_role("backup", "standby")
    site.verify_clean()
    site.protected.order("backup", "switchover", "--why", "it is needed now")
    wait_serving(site, "backup")
    wait_there(site, "backup", name)


def warned(facts: dict[str, Any]) -> str:
    return " ".join(each["what"] for each in facts["warnings"])


def restart(machine: Machine) -> None:
    stop_agent(machine)
    machine.start_unit("holdfast")


@pytest.mark.usefixtures("whole")
def test_the_last_of_three_machines_goes_on_alone_with_what_it_holds(site: Site) -> None:
    name = put(site, "main", "before-the-fire")
    site.settle()
    site.machine("relay").kill()
    site.machine("main").kill()
    site.protected.wait_for("backup", lambda facts: bool(facts["primary"] == "main"), "left")
    refused = site.protected.order("backup", "takeover", check=False)
    assert not refused.get("done"), "without a quorum nobody is promoted"
    plan = site.protected.order("backup", "takeover", "--alone", "--dry-run")
    assert any("stands at record" in warning for warning in plan["warnings"])
    done = site.protected.order("backup", "takeover", "--alone", "--yes", "--why", "a fire", timeout=SECONDS_MAX * 2)
    assert done["done"]
    status = site.status("backup")
    assert (status["role"], status["serving"], len(status["machines"])) == ("primary", True, 1)
    wait_there(site, "backup", name)
    with site.client():
        site.imap().close()
    assert "alone: a fire" in cause(site, "backup")
    assert list(site.machine("backup").path("/var/lib/holdfast").glob("log.before-alone-*"))


def copies_at_intervals(site: Site) -> None:
    """As an administrator changes the policy of a running site."""
    for name in ("relay", "backup", "main"):
        machine = site.machine(name)
        file = machine.path("/etc/holdfast/holdfast.toml")
        text = file.read_text().replace('policy = "manual"', 'policy = "interval"', 1)
        file.write_text(text.replace("[copy]", "[copy]\nevery_hours = 24", 1))
        machine.run(["holdfast", "check"])
        machine.stop_unit("holdfast")
        machine.start_unit("holdfast")
    wait_serving(site, "main")
    site.protected.wait_role("backup", "standby")


def test_with_copies_at_intervals_a_takeover_serves_the_last_one_and_what_came_later_is_added_afterwards(
    tmp_path: Path,
) -> None:
    with protected_site("maildir", failover="manual") as site:
        fill(site, tmp_path)
        copies_at_intervals(site)
        site.settle()
        copied = put(site, "main", "copied")
        site.settle()
        later = put(site, "main", "later")
        assert "everything done since" in site.status("backup")["lost_if_primary_died"]
        site.machine("main").kill()
        site.protected.wait_for(
            "backup", lambda facts: any("main is silent" in each["what"] for each in facts["warnings"]), "without main"
        )
        assert site.protected.order("backup", "takeover", "--why", "main is dead")["done"]
        assert [count(site, "backup", name) for name in (copied, later)] == [1, 0]
        assert "main is dead" in cause(site, "backup")
        site.machine("main").start()
        site.protected.wait_role("main", "returned")
        site.protected.order("main", "join", "--rejoin")
        site.protected.wait_role("main", "standby")
        site.protected.order("main", "merge")
        wait_there(site, "backup", later)
        site.protected.order("main", "switchover", "--why", "home")
        wait_serving(site, "main")
        assert [count(site, "main", name) for name in (copied, later)] == [1, 1]
