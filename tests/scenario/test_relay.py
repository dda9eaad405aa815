"""Relays that take mail: what they accept is nobody's disk's alone, comes once, and only for who is there.

``relay`` is a front, ``relay2`` a backup MX.
"""

from __future__ import annotations

import json
import random
import smtplib
from collections.abc import Iterator
from typing import Any

import pytest

from holdfast.drill.lab.tools import wait_until
from holdfast.errors import ExitStatus

from .site import Site, protected_site
from .test_gate import ANSWER_SECONDS, CONFIGURATION, GATE_PORT, delivered, take_over

pytestmark = pytest.mark.system

MACHINES = ("main:primary", "backup:standby", "relay:relay", "relay2:relay", "client:client")
SEED = random.randrange(2**32)


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with protected_site(
        "maildir",
        machines=MACHINES,
        more_configuration=CONFIGURATION,
        deliver_to=f"inet:[127.0.0.1]:{GATE_PORT}",
        milter="unix:private/holdfast-milter",
        relays={"relay": "front", "relay2": "backup-mx"},
        straight_port=2425,
    ) as made:
        for name in ("relay", "relay2"):
            wait_for_list(made, name)
        yield made


def facts(site: Site, relay: str) -> dict[str, Any]:
    done = site.holdfast(relay, "relay", "status", "--json")
    told: dict[str, Any] = json.loads(done.stdout) if done.stdout else {}
    return told


def wait_for_list(site: Site, relay: str) -> None:
    wait_until(lambda: bool(facts(site, relay).get("list", {}).get("at")), 60, f"the list of recipients at {relay}")


def hand_in(site: Site, machine: str, name: str, recipient: str | None = None, size: int = 1000) -> tuple[int, bytes]:
    """The answer to a message to *recipient*, or to its recipient when that was refused."""
    text = f"From: a@outside.example\r\nSubject: {name}\r\n\r\n" + ("x" * 76 + "\r\n") * (size // 78)
    with site.client():
        client = smtplib.SMTP(site.machine(machine).state.ipv4, 25, timeout=4 * ANSWER_SECONDS)
    with client:
        client.ehlo("client.example")
        code, said = client.mail("a@outside.example")
        if code == 250:
            code, said = client.rcpt(recipient or site.accounts[0].name)
        if code != 250:
            return code, said
        try:
            return client.data(text.encode())
        except smtplib.SMTPDataError as error:
            return error.smtp_code, bytes(error.smtp_error) if isinstance(error.smtp_error, bytes) else b""


def wait_delivered(site: Site, machine: str, names: list[str]) -> None:
    """Each stands in a mailbox there; once."""
    wait_until(lambda: all(delivered(site, machine)[name] for name in names), 60, f"{names} at {machine}", 0.2)
    found = delivered(site, machine)
    assert {name: found[name] for name in names if found[name] != 1} == {}


def wait_handed_on(site: Site, relay: str) -> None:
    wait_until(lambda: facts(site, relay)["waiting"]["messages"] == 0, 60, f"an empty queue on {relay}")
    wait_until(lambda: facts(site, relay)["shadows"] == 0, 60, f"no shadows of {relay}")


def test_a_front_relay_takes_mail_for_who_is_there_and_hands_it_on(site: Site) -> None:
    code, said = hand_in(site, "relay", "front1")
    assert code == 250, said
    assert hand_in(site, "relay", "front2", f"postmaster@{site.lab.state.domain}")[0] == 250
    user, _, domain = site.accounts[1].name.partition("@")
    assert hand_in(site, "relay", "front3", f"{user}+folder@{domain}")[0] == 250
    code, said = hand_in(site, "relay", "nobody", f"nobody@{site.lab.state.domain}")
    assert (code, b"5.1.1" in said) == (550, True)
    code, said = hand_in(site, "relay", "elsewhere", "x@elsewhere.example")
    assert (code, b"5.7.1" in said) == (554, True)
    wait_delivered(site, "main", ["front1", "front2", "front3"])
    wait_handed_on(site, "relay")
    messages = [path.read_bytes() for path in site.machine("main").path("/var/vmail").rglob("new/*")]
    received = {}
    for name in ("front1", "front2", "front3"):
        message = next(each for each in messages if f"\nSubject: {name}".encode() in each.replace(b"\r", b""))
        assert message.count(b"Holdfast-Delivery:") == 1
        received[name] = message.count(b"\nReceived:")
    # Mailboxes: straight into main's gate. What its Postfix has an alias for goes through that.
    assert received["front1"] == received["front3"] == received["front2"] - 1, received


def test_what_users_submit_has_a_copy_before_it_is_accepted(site: Site) -> None:
    """Port 587: the milter of main.cf counts for it, too. Nothing leaves: the outside is not there."""
    login = site.accounts[0]
    with site.client():
        client = smtplib.SMTP(site.lab.state.service_ipv4, 587, timeout=4 * ANSWER_SECONDS)
    with client:
        client.starttls()
        client.login(login.name, login.password)
        client.sendmail(login.name, ["x@192-0-2-1.example"], "Subject: submitted\r\n\r\ntext\r\n")
    folder = site.machine("main").path("/var/lib/holdfast/shadows")
    shadows = [path.read_bytes() for path in folder.glob("main.*")]
    assert any(b"Subject: submitted" in shadow for shadow in shadows)
    site.machine("main").run(["postsuper", "-d", "ALL"])


def test_a_backup_mx_takes_nothing_while_the_primary_serves(site: Site) -> None:
    code, said = hand_in(site, "relay2", "roundabout")
    assert code == 450
    assert b"is up" in said


def test_mail_is_held_by_order_and_handed_on_in_order(site: Site) -> None:
    held = site.holdfast("relay", "relay", "hold", "--why", "a test", "--json")
    assert held.returncode == ExitStatus.DONE, held.stderr
    names = [f"held{number}" for number in range(12)]
    for number, name in enumerate(names):
        assert hand_in(site, "relay", name, site.accounts[number % 2].name)[0] == 250
    told = facts(site, "relay")
    assert told["waiting"]["on_hold"] == 12
    assert told["held_why"] == "a test"
    assert told["shadows"] == 12
    shown = site.holdfast("relay", "relay", "status")
    assert "12 on hold" in shown.stdout
    site.protected.wait_for(
        "main",
        lambda told: any("12 messages wait, 12 of them on hold" in view["progress"] for view in told["machines"]),
        "telling of what its relay holds",
    )
    exported = site.holdfast("relay2", "relay", "export", "/root/export", "--json")
    assert json.loads(exported.stdout)["messages"] == 12
    contents = [path.read_bytes() for path in site.machine("relay2").path("/root/export").glob("*.eml")]
    assert sum(b"Subject: held" in content for content in contents) == 12
    drained = site.holdfast("relay", "relay", "drain", "--first", site.accounts[1].name, "--json")
    assert drained.returncode == ExitStatus.DONE, drained.stderr
    last = json.loads(drained.stdout.splitlines()[-1])
    assert (last["done"], last["handed_on"], last["left"]) == (True, 12, 0)
    wait_delivered(site, "main", names)
    wait_handed_on(site, "relay")


def test_a_relay_that_dies_right_after_its_answer_loses_nothing_and_doubles_nothing(site: Site) -> None:
    """It held the mail, so only the log has it besides; the primary delivers it; the relay, back, throws it out."""
    site.holdfast("relay", "relay", "hold")
    names = [f"dead{number}" for number in range(6)]
    for name in names[:-1]:
        assert hand_in(site, "relay", name)[0] == 250
    assert hand_in(site, "relay", names[-1], size=3_000_000)[0] == 250
    site.machine("relay").kill()
    wait_delivered(site, "main", names)
    site.machine("relay").start()
    wait_until(lambda: "waiting" in facts(site, "relay"), 60, "the relay to be back")
    wait_handed_on(site, "relay")
    drained = site.holdfast("relay", "relay", "drain")
    assert drained.returncode == ExitStatus.DONE, drained.stderr
    assert hand_in(site, "relay", "again")[0] == 250
    wait_delivered(site, "main", [*names, "again"])


def test_a_full_disk_is_said(site: Site) -> None:
    machine = site.machine("relay")
    machine.run(["sh", "-c", "dd if=/dev/zero of=/var/spool/full bs=1M 2>/dev/null; true"])
    try:
        code, _ = hand_in(site, "relay", "full")
        assert code == 452
    finally:
        machine.path("/var/spool/full").unlink()
    wait_until(lambda: hand_in(site, "relay", "roomy")[0] == 250, 60, "mail to be taken again", 0.5)
    wait_delivered(site, "main", ["roomy"])


def test_what_relays_take_while_the_primary_is_dead_comes_once_after_the_takeover(site: Site) -> None:
    chance = random.Random(SEED)
    print(f"seed {SEED}")
    site.machine("main").kill()
    wait_until(lambda: bool(facts(site, "relay2").get("taking")), 30, "the backup MX to take mail")
    names = [f"while{number}" for number in range(20)]
    for name in names:
        assert hand_in(site, chance.choice(["relay", "relay2"]), name)[0] == 250
    assert hand_in(site, "relay2", "nobody", f"nobody@{site.lab.state.domain}")[0] == 550
    told = facts(site, "relay")
    assert told["waiting"]["messages"] > 0
    take_over(site)
    wait_delivered(site, "backup", names)
    for relay in ("relay", "relay2"):
        wait_handed_on(site, relay)
    assert hand_in(site, "relay2", "roundabout")[0] == 450


def test_the_ledger_tells_of_what_relays_took(site: Site) -> None:
    """From which relay it came, and that it is in the mailbox; nothing is lost, and nothing unknown."""
    primary = site.primary

    def relayed() -> set[tuple[str, str]]:
        said = site.holdfast(primary, "ledger", "export", "--format", "json").stdout
        return {(row["machine"], row["state"]) for row in json.loads(said) if row["machine"] in ("relay", "relay2")}

    wait_until(lambda: ("relay", "durable") in relayed(), 30, "the relay's lines")
    made = site.holdfast(primary, "ledger", "report", "--json")
    report = json.loads(made.stdout)
    print(report["sums"], relayed())
    assert made.returncode == ExitStatus.DONE, report["named"]
    assert sum(report["sums"].values()) == report["accepted"]
