"""A machine is destroyed and rebuilt from the vault, interrupted on the way: real Postfix, Dovecot and Radicale."""

from __future__ import annotations

import imaplib
import json
import os
import signal
import smtplib
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pyrage
import pytest

from holdfast.drill.checkers.exact_state import compare
from holdfast.drill.checkers.facts import Mailboxes
from holdfast.drill.lab import mailhost
from holdfast.drill.lab.lab import Lab, Machine
from holdfast.drill.lab.spec import LabSpec, MachineSpec
from holdfast.drill.lab.tools import wait_until
from holdfast.drill.workload.journal import Journal, read
from holdfast.drill.workload.net import Endpoint
from holdfast.drill.workload.plan import Deliveries, Groupware, Login, Plan, Service
from holdfast.drill.workload.plan import Mailboxes as MailboxPlan
from holdfast.drill.workload.run import Workload
from holdfast.drill.workload.settle import settled
from holdfast.drill.workload.witness import observe
from holdfast.errors import ExitStatus
from tests.scenario.site import without_tags

pytestmark = pytest.mark.system

ACCOUNTS = 8
NEW_MAIL = 2
"""Of the accounts that are not back so many get mail meanwhile; they are not compared."""
BACK = 4
"""Units in place when the rebuild is interrupted: groupware, the probes' account, and two."""
VAULT = "/media/shared/vault"
IDENTITY = "/media/shared/identity"
REPOSITORY = Path(__file__).resolve().parents[2]


class Server:
    """One machine with mail software and no agent, and what the test knows of it."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.machine: Machine = lab.machine("main")
        self.logins = [Login(account.address, account.password) for account in lab.accounts]
        host = self.machine.state.ipv4
        self.service = Service(
            smtp=Endpoint(host, 25), imap=Endpoint(host, 143), dav=Endpoint(host, 5232), sieve=Endpoint(host, 4190)
        )

    def holdfast(self, *argv: str, status: int = 0) -> dict[str, Any]:
        done = self.machine.run(["holdfast", *argv, "--json"], check=False, timeout=120)
        assert done.returncode == status, (argv, done.returncode, done.stdout[-2000:], done.stderr[-2000:])
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    def observe(self) -> Mailboxes:
        with self.lab.machine("client").network():
            return without_tags(observe(self.service, self.logins))

    def login(self, name: str) -> tuple[str, str]:
        """Log in, and select the INBOX: what the server says to each."""
        password = next(login.password for login in self.logins if login.name == name)
        with self.lab.machine("client").network():
            client = imaplib.IMAP4(self.service.imap.host, self.service.imap.port)
        try:
            client.login(name, password)
        except imaplib.IMAP4.error as error:
            return str(error), ""
        answer, said = client.select("INBOX")
        count = said[0].decode() if said[0] else ""
        client.logout()
        return answer, count

    def send(self, *names: str, subject: str) -> None:
        with self.lab.machine("client").network():
            client = smtplib.SMTP(self.service.smtp.host, self.service.smtp.port)
        for name in names:
            head = f"From: x@outside.example\r\nTo: {name}\r\nSubject: {subject}\r\nMessage-ID: <{subject}.{name}>\r\n"
            text = f"{head}\r\nx\r\n"
            assert client.sendmail("x@outside.example", [name], text) == {}
        client.quit()

    def queued(self) -> set[str]:
        """Recipients of deferred messages."""
        lines = self.machine.run(["postqueue", "-j"]).stdout.splitlines()
        messages = [json.loads(line) for line in lines]
        return {r["address"] for m in messages if m["queue_name"] == "deferred" for r in m["recipients"]}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """With mail, folders, flags and calendars, all in the vault."""
    machines = tuple(MachineSpec.parse(text) for text in ("main:primary", "client:client"))
    lab = Lab.up(LabSpec(name=f"reb-{os.getpid()}", machines=machines, accounts=ACCOUNTS, seed="rebuild"))
    try:
        made = Server(lab)
        mailhost.configure(made.machine, mailhost.MailSettings(plaintext=True))
        mailhost.start(made.machine)
        _load(made, tmp_path_factory.mktemp("load") / "journal.jsonl")
        _archive(made)
        yield made
    finally:
        Lab.down(lab.name)


def _load(server: Server, path: Path) -> None:
    plan = Plan(
        server.service,
        tuple(server.logins),
        seed=3,
        deliveries=Deliveries(messages=40, connections=2),
        mailboxes=MailboxPlan(clients=2, operations=80),
        groupware=Groupware(clients=1, operations=20),
    )
    with server.lab.machine("client").network():
        journal = Journal(path)
        Workload(plan, journal, threading.Event()).run()
        journal.close()
        _, verdict = settled(server.service, server.logins, read(path), seconds_max=30)
    assert verdict.clean, verdict


def _archive(server: Server) -> None:
    user, state = server.lab.accounts[0], server.lab.state
    mailhost.put(server.machine, "/etc/holdfast/probe.password", user.password + "\n", mode=0o600)
    lines = f'[mail.probe]\nuser = "{user.address}"\npassword_file = "/etc/holdfast/probe.password"\n'
    mailhost.put(server.machine, "/etc/holdfast/mail-lines.toml", lines)
    address = f"{state.service_ipv4}/24"
    machine = f"main={server.machine.state.ipv4}"
    server.holdfast(
        *("init", "--site", "rebuilt", "--machine", machine, "--service-address", address),
        *("--mail", "/etc/holdfast/mail-lines.toml"),
    )
    server.holdfast("vault", "init", VAULT, "--identity-out", IDENTITY)
    made = server.holdfast("vault", "backup")
    assert made["gaps_total"] == 0, made["gaps"]
    shown = server.holdfast("vault", "show")
    assert {secret["state"] for secret in shown["secrets"]} == {"present"}
    assert {"/etc/dovecot/users", "/etc/radicale/users"} <= {secret["path"] for secret in shown["secrets"]}


def without(state: Mailboxes, names: frozenset[str]) -> Mailboxes:
    accounts = {name: account for name, account in state.accounts.items() if name not in names}
    return msgspec.structs.replace(state, accounts=accounts)


def make_bare(machine: Machine) -> None:
    """A new disk; and what a system without our user and folders has."""
    machine.wipe()
    machine.start()
    machine.run(["sh", "-c", "userdel vmail; rm -rf /var/vmail /var/lib/radicale"])
    mailhost.put(machine, "/var/log/mail.log", "", mode=0o640, owner="postfix", group="adm")


def test_a_destroyed_machine_is_rebuilt_account_by_account(server: Server) -> None:
    before = server.observe()
    make_bare(server.machine)
    plan = server.holdfast("rebuild", "--vault", VAULT, "--identity", IDENTITY, "--ordered", "--dry-run")
    assert plan["refusals"] == []
    assert plan["users"] == ["vmail"]
    assert plan["units"][1]["name"] == server.logins[0].name, "the probes' account comes first"
    assert not server.machine.path("/var/vmail").exists(), "a plan changes nothing"

    marked = _interrupted(server)
    missing = [name for name in marked["missing"] if "@" in name]
    back = [name for name in marked["back"] if "@" in name]
    assert len(missing) == ACCOUNTS - len(back)
    _who_is_back_is_served_the_others_wait(server, back, missing, before)

    done = server.holdfast("rebuild", "--vault", VAULT, "--identity", IDENTITY, "--yes")
    assert done["failures_total"] == 0
    assert [account["name"] for account in done["accounts"]] == missing, "what was in place is not restored again"
    assert all(probe["ok"] for probe in done["probes"])
    assert done["milestones"]["mail is accepted"] < done["milestones"]["every account is back"]
    wait_until(lambda: not server.queued(), 20, "the waiting mail to be delivered")
    got_mail = frozenset(missing[-NEW_MAIL:])
    after = server.observe()
    for name in got_mail:
        assert len(after.accounts[name].folders["INBOX"].messages) == 1 + len(
            before.accounts[name].folders["INBOX"].messages
        )
    assert [str(found) for found in compare(without(before, got_mail), without(after, got_mail))] == []
    assert "holdfast" not in server.machine.path("/etc/dovecot/dovecot.conf").read_text().partition("listen")[0]
    again = server.machine.run(["holdfast", "rebuild", "--vault", VAULT, "--identity", IDENTITY, "--yes"], check=False)
    assert again.returncode == ExitStatus.REFUSED
    assert "was rebuilt from it already" in again.stderr


def _interrupted(server: Server) -> dict[str, list[str]]:
    mark = server.machine.path("/run/paused.json")
    argv = [sys.executable, "-m", "tests.rebuild.paused", VAULT, IDENTITY, str(BACK), "/run/paused.json"]
    process = server.machine.spawn(argv, cwd=str(REPOSITORY), attached=True, log="/var/log/paused.log")
    try:
        wait_until(lambda: mark.exists() or process.poll() is not None, 60, "the rebuild to bring some back")
        log = server.machine.path("/var/log/paused.log").read_text()
        assert mark.exists(), log
        marked: dict[str, list[str]] = json.loads(mark.read_text())
    finally:
        process.signal(signal.SIGKILL)
        process.detach()
    return marked


def _who_is_back_is_served_the_others_wait(
    server: Server, back: list[str], missing: list[str], before: Mailboxes
) -> None:
    for name in back:
        assert server.login(name) == ("OK", str(len(before.accounts[name].folders["INBOX"].messages)))
    for name in (missing[0], missing[-1]):  # each takes Dovecot's two seconds
        answer, _ = server.login(name)
        assert "UNAVAILABLE" in answer, answer
    new = missing[-NEW_MAIL:]
    server.send(*new, subject="meanwhile")
    wait_until(lambda: set(new) <= server.queued(), 20, "their mail to wait")
    for name in missing:
        local, _, domain = name.partition("@")
        wall = server.machine.path(f"/var/vmail/{domain}/{local}")
        assert wall.stat().st_mode & 0o777 == 0
        assert os.listdir(wall) == [], "nothing was made where an account will be"


def test_what_stands_there_is_not_replaced(server: Server) -> None:
    """On a machine that has mail, a rebuild refuses; told to move it aside, it keeps it."""
    make_bare(server.machine)
    kept = server.machine.path("/var/vmail/example.test/user03/Maildir/new/1")
    kept.parent.mkdir(parents=True)
    kept.write_text("precious")
    argv = ["rebuild", "--vault", VAULT, "--identity", IDENTITY, "--yes"]
    refused = server.holdfast(*argv, status=ExitStatus.REFUSED)
    assert "would be replaced" in refused["refusals"][0]
    assert kept.read_text() == "precious"
    done = server.holdfast(*argv, "--move-aside")
    assert all(probe["ok"] for probe in done["probes"])
    aside = list(server.machine.path("/var/vmail/example.test/.holdfast").glob("aside-*/user03/Maildir/new/1"))
    assert [path.read_text() for path in aside] == ["precious"]


def test_a_wrong_identity_changes_nothing(server: Server) -> None:
    make_bare(server.machine)
    server.machine.path("/root/other").write_text(f"{pyrage.x25519.Identity.generate()}\n")
    argv = ["holdfast", "rebuild", "--vault", VAULT, "--identity", "/root/other", "--yes"]
    done = server.machine.run(argv, check=False)
    assert done.returncode == ExitStatus.WRONG_KEY
    assert not server.machine.path("/var/vmail").exists()
    assert not server.machine.path("/etc/holdfast/holdfast.toml").exists()
