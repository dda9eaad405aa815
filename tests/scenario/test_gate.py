"""Deliveries through the LMTP gate: what was acknowledged survives the machine, and what is repeated comes once."""

from __future__ import annotations

import random
import re
import smtplib
import threading
import time
from collections import Counter
from collections.abc import Iterator

import pytest

from holdfast.drill.lab.tools import wait_until
from holdfast.errors import ExitStatus

from .site import Site, protected_site

pytestmark = pytest.mark.system

GATE_PORT = 2424
CONFIGURATION = f'[gate]\nlmtp = "0.0.0.0:{GATE_PORT}"\nlmtp_server = "127.0.0.1:24"\n'
CLIENTS = 6
ANSWER_SECONDS = 5.0
ID = re.compile(rb"^Holdfast-Delivery: (\w+)", re.MULTILINE)
SEED = random.randrange(2**32)


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with protected_site(
        "maildir", more_configuration=CONFIGURATION, deliver_to=f"inet:[127.0.0.1]:{GATE_PORT}"
    ) as made:
        yield made


def content(delivery: str) -> str:
    return f"Holdfast-Delivery: {delivery}\r\nSubject: {delivery}\r\n\r\n" + "text of the message\r\n" * 40


def deliver(client: smtplib.LMTP, delivery: str, recipient: str) -> None:
    """Raises smtplib.SMTPException, OSError: not acknowledged."""
    refused = client.sendmail("sender@outside.example", [recipient], content(delivery))
    assert refused == {}


class Load(threading.Thread):
    """One LMTP client: delivers until its server is gone; what was acknowledged, and what was under way then."""

    def __init__(self, site: Site, number: int) -> None:
        super().__init__()
        self.site, self.number = site, number
        self.acknowledged: list[tuple[str, str]] = []
        self.doubtful: tuple[str, str] | None = None

    def run(self) -> None:
        with self.site.machine("client").network():
            client = smtplib.LMTP(self.site.machine("main").state.ipv4, GATE_PORT, timeout=ANSWER_SECONDS)
        for count in range(100_000):
            recipient = self.site.accounts[(count + self.number) % len(self.site.accounts)].name
            one = (f"load{self.number}x{count}", recipient)
            try:
                deliver(client, *one)
            except (smtplib.SMTPException, OSError):
                self.doubtful = one
                return
            self.acknowledged.append(one)


def delivered(site: Site, machine: str) -> Counter[str]:
    """How often each delivery id stands in the mailboxes there."""
    store = site.machine(machine).path("/var/vmail")
    files = [path for folder in ("new", "cur") for path in store.rglob(f"{folder}/*") if path.is_file()]
    found = (ID.search(path.read_bytes()[:4096]) for path in files)
    return Counter(match[1].decode() for match in found if match)


def test_a_machine_dies_under_load_and_nothing_acknowledged_is_lost_or_doubled(site: Site) -> None:
    chance = random.Random(SEED)
    print(f"seed {SEED}")
    clients = [Load(site, number) for number in range(CLIENTS)]
    for client in clients:
        client.start()
    enough = chance.randrange(50, 400)
    wait_until(lambda: sum(len(client.acknowledged) for client in clients) >= enough, 60, "deliveries")
    time.sleep(chance.random() * 0.02)  # anywhere within a delivery
    site.machine("main").kill()
    for client in clients:
        client.join(4 * ANSWER_SECONDS)
        assert not client.is_alive()
    taken = site.holdfast("backup", "takeover")
    assert taken.returncode in (ExitStatus.DONE, ExitStatus.DIFFERENCES), taken.stderr
    acknowledged = [one for client in clients for one in client.acknowledged]
    doubtful = [client.doubtful for client in clients if client.doubtful is not None]
    print(f"{len(acknowledged)} acknowledged, {len(doubtful)} under way when main died")
    found = delivered(site, "backup")
    assert {delivery: found[delivery] for delivery, _ in acknowledged if found[delivery] != 1} == {}
    # their sender delivers again what had no answer, and, having been killed itself, some of what had
    with site.machine("client").network():
        sender = smtplib.LMTP(site.machine("backup").state.ipv4, GATE_PORT, timeout=30)
    again = [*doubtful, *chance.sample(acknowledged, 20)]
    for delivery, recipient in again:
        deliver(sender, delivery, recipient)
    found = delivered(site, "backup")
    assert {delivery: found[delivery] for delivery, _ in [*acknowledged, *doubtful] if found[delivery] != 1} == {}


def test_postfix_delivers_through_the_gate_of_the_new_primary(site: Site) -> None:
    before = sum(delivered(site, "backup").values())
    with site.machine("client").network():
        client = smtplib.SMTP(site.lab.state.service_ipv4, 25, timeout=30)
    client.sendmail("sender@outside.example", [site.accounts[0].name], content("bysmtp"))
    wait_until(lambda: sum(delivered(site, "backup").values()) == before + 1, 30, "the message")
    journal = site.machine("backup").path("/var/lib/holdfast/deliveries")
    lines = b"".join(path.read_bytes() for path in sorted(journal.glob("deliveries-*"))).splitlines()
    kinds = [line[:1] for line in lines if b" bysmtp " in line]
    wait_until(lambda: kinds == [b"I", b"D"], 5, "the journal's lines")
