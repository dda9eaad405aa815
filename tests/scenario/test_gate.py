"""Gates: what was acknowledged survives the machine, and what is repeated comes once."""

from __future__ import annotations

import base64
import http.client
import imaplib
import json
import random
import re
import smtplib
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import pytest

from holdfast.drill.lab import mail_files
from holdfast.drill.lab.tools import wait_until
from holdfast.drill.workload.net import Declined
from holdfast.drill.workload.plan import Login
from holdfast.drill.workload.sieve import SieveClient
from holdfast.errors import ExitStatus

from .site import PATIENCE, Site, protected_site

pytestmark = pytest.mark.system

GATE_PORT = 2424
CONFIGURATION = f"""
[gate]
lmtp = "0.0.0.0:{GATE_PORT}"
lmtp_server = "127.0.0.1:24"
milter = "unix:/var/spool/postfix/private/holdfast-milter"
imap = "unix:/run/holdfast/imap-gate"
sieve = "unix:/run/holdfast/sieve-gate"
dav = "0.0.0.0:5233"
barrier_seconds = 90
"""
WITHOUT_QUORUM = """\
without_quorum = "read-only"
without_quorum_seconds = 10
"""
CLIENTS = 6
ANSWER_SECONDS = 5.0
PATIENT_SECONDS = 120.0
EVENT = (
    "BEGIN:VCALENDAR\r\nVERSION:2.0\r\nPRODID:test\r\nBEGIN:VEVENT\r\nUID:{name}\r\nDTSTAMP:20260101T000000Z\r\n"
    "DTSTART:20260101T000000Z\r\nSUMMARY:{name}\r\nEND:VEVENT\r\nEND:VCALENDAR\r\n"
)
SUBJECT = re.compile(rb"^Subject: (\w+)", re.MULTILINE)
SEED = random.randrange(2**32)


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with protected_site(
        "maildir",
        more_configuration=CONFIGURATION,
        more_failover=WITHOUT_QUORUM,
        deliver_to=f"inet:[127.0.0.1]:{GATE_PORT}",
        milter="unix:private/holdfast-milter",
        dovecot_more=mail_files.dovecot_gates(),
    ) as made:
        yield made


def content(name: str) -> str:
    return f"Holdfast-Delivery: {name}\r\nSubject: {name}\r\n\r\n" + "text of the message\r\n" * 40


def deliver(client: smtplib.SMTP, name: str, recipient: str) -> None:
    """Raises smtplib.SMTPException, OSError: not acknowledged."""
    refused = client.sendmail("sender@outside.example", [recipient], content(name))
    assert refused == {}


Deed = Callable[[str, str], None]
"""Something done that has this name, for this account; raises when it was not acknowledged."""
NOT_ACKNOWLEDGED = (smtplib.SMTPException, imaplib.IMAP4.error, http.client.HTTPException, OSError)


def delivering(connect: Callable[[], smtplib.SMTP]) -> Callable[[], Deed]:
    def made() -> Deed:
        client = connect()
        return lambda name, recipient: deliver(client, name, recipient)

    return made


class Load(threading.Thread):
    """One client: does something until its server is gone; what was acknowledged, and what was under way then."""

    def __init__(self, site: Site, connect: Callable[[], Deed], prefix: str) -> None:
        super().__init__()
        self.site, self.connect, self.prefix = site, connect, prefix
        self.acknowledged: list[tuple[str, str]] = []
        self.doubtful: tuple[str, str] | None = None

    def run(self) -> None:
        with self.site.machine("client").network():
            do = self.connect()
        for count in range(100_000):
            one = (f"{self.prefix}x{count}", self.site.accounts[count % len(self.site.accounts)].name)
            try:
                do(*one)
            except NOT_ACKNOWLEDGED:
                self.doubtful = one
                return
            self.acknowledged.append(one)


def _head(path: Path) -> bytes:
    """Nothing when Dovecot has just renamed it: who counts looks again."""
    try:
        return path.read_bytes()[:4096]
    except FileNotFoundError:
        return b""


def delivered(site: Site, machine: str) -> Counter[str]:
    """How often each message stands in the mailboxes there, by subject."""
    store = site.machine(machine).path("/var/vmail")
    files = [path for folder in ("new", "cur") for path in store.rglob(f"{folder}/*") if path.is_file()]
    found = (SUBJECT.search(_head(path)) for path in files)
    return Counter(match[1].decode() for match in found if match)


def killed_under_load(
    site: Site, connect: Sequence[Callable[[], Deed]], prefix: str, chance: random.Random
) -> list[Load]:
    """What the clients of main had when its power was cut, somewhere within a message."""
    clients = [Load(site, one, f"{prefix}{number}") for number, one in enumerate(connect)]
    for client in clients:
        client.start()
    enough = chance.randrange(50, 300)
    wait_until(lambda: sum(len(client.acknowledged) for client in clients) >= enough, 60, "deliveries")
    time.sleep(chance.random() * 0.02)
    site.machine("main").kill()
    for client in clients:
        client.join(4 * ANSWER_SECONDS)
        assert not client.is_alive()
    print(f"{sum(len(client.acknowledged) for client in clients)} acknowledged when main died")
    return clients


def take_over(site: Site) -> None:
    taken = site.holdfast("backup", "takeover")
    assert taken.returncode in (ExitStatus.DONE, ExitStatus.DIFFERENCES), taken.stderr


def not_once(site: Site, names: Iterable[str]) -> dict[str, int]:
    """Messages that are not in the mailboxes of backup exactly once."""
    found = delivered(site, "backup")
    return {name: found[name] for name in names if found[name] != 1}


def test_a_machine_dies_under_load_and_no_delivery_is_lost_or_doubled(site: Site) -> None:
    chance = random.Random(SEED)
    print(f"seed {SEED}")
    main = site.machine("main").state.ipv4
    connect = delivering(lambda: smtplib.LMTP(main, GATE_PORT, timeout=ANSWER_SECONDS))
    clients = killed_under_load(site, [connect] * CLIENTS, "lmtp", chance)
    take_over(site)
    acknowledged = [one for client in clients for one in client.acknowledged]
    assert not_once(site, [name for name, _ in acknowledged]) == {}
    # their sender delivers again what had no answer, and, having been killed itself, some of what had
    with site.machine("client").network():
        sender = smtplib.LMTP(site.machine("backup").state.ipv4, GATE_PORT, timeout=30)
    doubtful = [client.doubtful for client in clients if client.doubtful is not None]
    for name, recipient in [*doubtful, *chance.sample(acknowledged, 20)]:
        deliver(sender, name, recipient)
    assert not_once(site, [name for name, _ in [*acknowledged, *doubtful]]) == {}


def test_what_postfix_accepted_survives_its_machine_and_comes_once(site: Site) -> None:
    """Its queue dies with it; the shadows are in the log, and the new primary's Postfix delivers them."""
    site.make_main_primary()
    chance = random.Random(SEED + 1)
    print(f"seed {SEED}")
    service = site.lab.state.service_ipv4
    connect = delivering(lambda: smtplib.SMTP(service, 25, timeout=ANSWER_SECONDS))
    clients = killed_under_load(site, [connect] * CLIENTS, "smtp", chance)
    take_over(site)
    names = [name for client in clients for name, _ in client.acknowledged]
    shadows = site.machine("backup").path("/var/lib/holdfast/shadows")
    wait_until(
        lambda: not any(path.is_file() and path.stat().st_size for path in shadows.iterdir()), 60, "an empty queue"
    )
    assert not_once(site, names) == {}
    adopted = sum(path.name.startswith("_taken.main.") for path in shadows.iterdir())
    print(f"{adopted} were in the queue of main, or not settled yet")
    site.make_main_primary()
    assert not_once(site, names) == {}
    wait_until(lambda: not site.queue_of("main"), 30, "main's queue to be empty: what backup adopted is thrown out")


def test_the_ledger_of_the_site_says_the_same(site: Site) -> None:
    """After a takeover and a switchover: everything is accounted for, and a report came by itself.

    That of the switchover: the takeover's is not made when its machine yields before it is done.
    """
    ledger = site.machine("main").path("/var/lib/holdfast/ledger")
    wait_until(lambda: any(ledger.glob("report-*.json")), 60, "the report of the switchover")
    made = site.holdfast("main", "ledger", "report", "--json")
    assert made.returncode == ExitStatus.DONE, made.stdout[-2000:] + made.stderr
    report = json.loads(made.stdout)
    print(report["sums"], report["refused"])
    assert sum(report["sums"].values()) == report["accepted"]
    assert report["sums"]["present"] + report["sums"]["re-sent"] == report["accepted"]
    rows = json.loads(site.holdfast("main", "ledger", "export", "--format", "json").stdout)
    assert {row["state"] for row in rows} <= {"durable", "refused"}
    from_outside = [row for row in rows if row["client"]]
    assert {row["machine"] for row in from_outside} == {"main"}
    assert {row["client"] for row in from_outside} == {site.machine("client").state.ipv4}
    facts = json.loads(site.holdfast("main", "status", "--json").stdout)
    assert facts["ledger"]["sums"]["lost"] == 0


def filing(site: Site, account: Login) -> Callable[[], Deed]:
    """A client that saves messages, as drafts are, and flags each."""

    def made() -> Deed:
        client = imaplib.IMAP4(site.lab.state.service_ipv4, 143, timeout=ANSWER_SECONDS)
        client.login(account.name, account.password)
        client.select()

        def file(name: str, _: str) -> None:
            status, said = client.append("INBOX", "", "", content(name).encode())
            assert status == "OK", said
            status, said = client.store("*", "+FLAGS", "(\\Flagged)")
            assert status == "OK", said

        return file

    return made


def planning(site: Site, account: Login) -> Callable[[], Deed]:
    """A client that puts events into a calendar."""
    token = base64.b64encode(f"{account.name}:{account.password}".encode()).decode()

    def ask(method: str, path: str, body: str = "") -> None:
        client = http.client.HTTPConnection(site.lab.state.service_ipv4, 5233, timeout=ANSWER_SECONDS)
        try:
            with site.machine("client").network():
                client.connect()
            client.request(method, path, body, {"Authorization": f"Basic {token}"})
            answer = client.getresponse()
            answer.read()
        finally:
            client.close()
        if answer.status >= 400:
            raise http.client.HTTPException(f"{method} {path}: {answer.status}")

    def made() -> Deed:
        calendar = f"/{account.name}/gated/"
        ask("MKCALENDAR", calendar)
        return lambda name, _: ask("PUT", f"{calendar}{name}.ics", EVENT.format(name=name))

    return made


def test_what_users_file_flag_and_plan_survives_the_machine(site: Site) -> None:
    site.make_main_primary()
    chance = random.Random(SEED + 2)
    print(f"seed {SEED}")
    makers = [filing(site, account) for account in site.accounts[:4]] + [planning(site, site.accounts[4])]
    clients = killed_under_load(site, makers, "own", chance)
    take_over(site)
    *mail, calendar = clients
    assert not_once(site, [name for client in mail for name, _ in client.acknowledged]) == {}
    store = site.machine("backup").path("/var/vmail")
    flagged = [path for path in store.rglob("cur/*") if "F" in path.name.rpartition(",")[2]]
    has_flag = {match[1].decode() for path in flagged if (match := SUBJECT.search(_head(path)))}
    assert {name for client in mail for name, _ in client.acknowledged} - has_flag == set()
    events = {path.stem for path in site.machine("backup").path("/var/lib/radicale").rglob("own*.ics")}
    assert {name for name, _ in calendar.acknowledged} - events == set()
    assert calendar.acknowledged


def test_while_the_log_has_no_majority_all_is_read_and_nothing_is_changed_and_then_everything_is(site: Site) -> None:
    """Both others lose their power. What is under way waits; after ``without_quorum_seconds`` changes are refused, with
    a reason, by every protocol; who reads is served all the time; and the same clients go on when the log is back."""
    site.make_main_primary()
    account, host = site.accounts[0], site.lab.state.service_ipv4
    with site.client():
        waiting, client = (imaplib.IMAP4(host, 143, timeout=PATIENT_SECONDS) for _ in range(2))
        scripts = SieveClient(site.service.sieve, PATIENCE, account.name, account.password)
    for each in (waiting, client):
        each.login(account.name, account.password)
        each.select()
    plan = planning(site, account)()
    assert client.append("INBOX", "", "", content("before").encode())[0] == "OK"
    for name in ("backup", "relay"):
        site.machine(name).kill()
    answers: list[str] = []
    text = content("underway").encode()
    under_way = threading.Thread(target=lambda: answers.append(waiting.append("INBOX", "", "", text)[0]), daemon=True)
    under_way.start()
    wait_until(lambda: site.status("main")["read_only"], 60, "main to refuse changes")
    print(site.status("main")["reason"])
    assert "gates refuse changes" in site.warnings("main")

    with site.client():
        new = imaplib.IMAP4(host, 143, timeout=PATIENT_SECONDS)
    for reader in (client, new):  # whether it was there before or not
        if reader is new:
            reader.login(account.name, account.password)
            reader.select()
        status, (count,) = reader.search(None, "SUBJECT", "before")
        assert (status, len(count.split())) == ("OK", 1)
        assert "text of the message" in str(reader.fetch(count.decode(), "(BODY.PEEK[])"))
        for refused in (
            reader.append("INBOX", "", "", content("refused").encode()),
            reader.store("1", "+FLAGS", "(\\Flagged)"),
            reader.copy("1", "INBOX"),
            reader.create("refused"),
            reader.expunge(),
            reader.subscribe("INBOX"),
        ):
            assert refused[0] == "NO"
            assert "[UNAVAILABLE] nothing can be changed just now" in str(refused[1])
    with pytest.raises(Declined, match="TRYLATER"):
        scripts.put("refused", "keep;")
    assert "refused" not in scripts.scripts()
    with pytest.raises(http.client.HTTPException, match="503"):
        plan("refused", "")
    with site.client():
        sender = smtplib.SMTP(host, 25, timeout=PATIENT_SECONDS)
        deliverer = smtplib.LMTP(site.machine("main").state.ipv4, GATE_PORT, timeout=PATIENT_SECONDS)
    for one in (sender, deliverer):
        with pytest.raises(smtplib.SMTPResponseException) as later:
            deliver(one, "refused", account.name)
        assert later.value.smtp_code == 451
        assert b"nothing can be changed just now" in later.value.smtp_error
    assert delivered(site, "main")["refused"] == 0
    assert answers == []

    for name in ("backup", "relay"):
        site.machine(name).start()
    under_way.join(PATIENT_SECONDS)
    assert answers == ["OK"]
    wait_until(lambda: not site.status("main")["read_only"], 30, "main to take changes again")
    assert client.append("INBOX", "", "", content("after").encode())[0] == "OK"
    assert new.store("1", "+FLAGS", "(\\Flagged)")[0] == "OK"
    scripts.put("after", "keep;")
    plan("afterwards", "")
    deliver(sender, "refused", account.name)
    deliver(deliverer, "later", account.name)
    wait_until(lambda: delivered(site, "main")["refused"] == 1, 30, "the message of the sender who came again")
    site.settle()
    assert not_once(site, ["before", "underway", "after", "refused", "later"]) == {}
    told = site.holdfast("main", "why")
    assert "refuses changes" in told.stdout, told.stdout
