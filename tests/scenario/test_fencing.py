"""An old primary that was replaced behind its back: it stops, appends nothing, and comes back losing nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from holdfast.drill.checkers.facts import Appended
from holdfast.drill.checkers.one_writer import one_writer
from holdfast.drill.lab import probes
from holdfast.drill.lab.spec import LabError
from holdfast.drill.lab.tools import wait_until
from holdfast.errors import ExitStatus

from .site import Site, protected_site

pytestmark = pytest.mark.system

ONLY_ON_MAIN = b"Message-ID: <only-on-main@test>\r\nSubject: only on main\r\n\r\nx\r\n"


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    """Main was cut off from everybody, went on serving who could reach it, and backup was promoted."""
    with protected_site("maildir") as made:
        probes.send(
            made.machine("client"), made.lab.state.service_ipv4, [made.accounts[0].name], b"Subject: 1\r\n\r\nx"
        )
        made.settle()
        made.lab.cut("main")
        deliver_locally(made)
        wait_until(lambda: "main is silent" in made.warnings("backup"), 20, "main's silence to be noticed", 0.1)
        done = made.holdfast("backup", "takeover", "--why", "main is cut off")
        assert done.returncode in (ExitStatus.DONE, ExitStatus.DIFFERENCES), done.stdout + done.stderr
        yield made


def deliver_locally(site: Site) -> None:
    """What a primary accepts that nobody can reach: a message of its own, in the mailbox."""
    main = site.machine("main")
    main.run(["sendmail", "-f", "root@example.test", site.accounts[1].name], input=ONLY_ON_MAIN)
    account = site.accounts[1].name
    home = main.path(f"/var/vmail/{account.partition('@')[2]}/{account.partition('@')[0]}/Maildir")

    def there() -> bool:
        return any(b"only-on-main" in path.read_bytes() for path in home.glob("new/*"))

    wait_until(there, 20, "local delivery on main", 0.05)


def holds_address(site: Site, machine: str) -> bool:
    shown = site.machine(machine).run(["ip", "-o", "address", "show"]).stdout
    return f" {site.lab.state.service_ipv4}/" in shown


def serves(site: Site, machine: str) -> bool:
    """Whether anybody answers on the machine's own address."""
    host = site.lab.state.machines[machine].ipv4
    for port in (25, 143):
        try:
            probes.greeting(site.machine(machine), host, port)
        except LabError:
            continue
        return True
    return False


def test_while_cut_off_the_old_primary_says_that_the_log_cannot_be_reached(site: Site) -> None:
    wait_until(lambda: "the log" in site.warnings("main"), 30, "main to notice that the log is away", 0.2)
    assert "backup is silent" in site.warnings("main")
    assert site.primary_of("backup") == "backup"


def test_it_stops_serving_and_gives_the_address_up_when_it_learns_of_the_promotion(site: Site) -> None:
    site.lab.heal()
    site.protected.wait_role("main", "returned", 60)
    assert not holds_address(site, "main")
    assert not serves(site, "main")
    assert holds_address(site, "backup")
    assert serves(site, "backup")
    assert site.status("backup")["role"] == "primary"
    assert "join --rejoin" in site.warnings("main")


def test_it_has_appended_nothing_after_the_promotion(site: Site) -> None:
    appends = [
        Appended(record["sequence"], record["epoch"], record["writer"], promotion=record["kind"] == "promotion")
        for record in site.records("backup")
    ]
    assert one_writer(appends) == []
    assert appends[-1].machine == "backup"


def test_a_restart_of_its_agent_changes_nothing_of_that(site: Site) -> None:
    main = site.machine("main")
    main.stop_unit("holdfast")
    wait_until(lambda: main.unit("holdfast").phase == "stopped", 20, "the agent to stop", 0.05)
    main.start_unit("holdfast")
    site.protected.wait_role("main", "returned", 60)
    assert not serves(site, "main")


def test_it_comes_back_by_rejoin_and_what_only_it_had_is_kept_aside_and_named(site: Site) -> None:
    done = site.holdfast("main", "join", "--rejoin")
    assert done.returncode == ExitStatus.DONE, done.stderr
    site.protected.wait_role("main", "standby")
    site.verify_clean()
    main = site.machine("main")
    events = json.dumps(site.history("main"))
    assert "differs from what it had logged" in events
    (report,) = main.path("/var/lib/holdfast").glob("rejoin-*.json")
    named = json.loads(report.read_bytes())["unlogged"]
    user = site.accounts[1].name.partition("@")[0]
    assert any(user in change["path"] and "/new/" in change["path"] for change in named)
    kept = main.run(["sh", "-c", "grep -rl only-on-main /var/vmail/.holdfast/aside || true"]).stdout
    assert kept.strip(), "the message itself is kept"


def test_and_is_the_primary_again_by_switchover(site: Site) -> None:
    assert site.holdfast("main", "switchover").returncode in (ExitStatus.DONE, ExitStatus.DIFFERENCES)
    site.protected.wait_role("backup", "standby")
    assert holds_address(site, "main")
    assert not holds_address(site, "backup")
    site.verify_clean()
