"""The whole workload against real Postfix, Dovecot and Radicale, broken and put right in the middle."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from imapclient import IMAPClient

from holdfast.drill.checkers.exact_state import compare, consistent, resynchronised
from holdfast.drill.checkers.expected import expected
from holdfast.drill.checkers.facts import Begin, End, Mailboxes, Probe, Protocol, Record, Trouble
from holdfast.drill.checkers.findings import What
from holdfast.drill.checkers.in_time import longest_outage
from holdfast.drill.workload import journal, lmtp, messages, witness
from holdfast.drill.workload import plan as plans
from holdfast.drill.workload.plan import Deliveries, Groupware, Meter, Plan
from holdfast.drill.workload.plan import Mailboxes as MailboxPlan
from holdfast.drill.workload.settle import settled
from tests.drill.mail_server import PASSWORD, MailServer, fit, running

pytestmark = [pytest.mark.system, pytest.mark.skipif(bool(fit()), reason=fit())]
DEADLINE_SECONDS = 60.0


@pytest.fixture(scope="module", params=["maildir:~/Maildir", "mdbox:~/mdbox"])
def server(request: pytest.FixtureRequest) -> Iterator[MailServer]:
    # Not pytest's own folder: only root may pass that, and the mail software's users must.
    with tempfile.TemporaryDirectory(prefix="drill-mail-") as folder, running(Path(folder), request.param) as up:
        yield up


def a_plan(server: MailServer, **fields: object) -> Plan:
    """A load with seed 11; large attachments come after message 125 only, so small loads are quick."""
    made = Plan(
        server.service,
        server.accounts(6),
        seed=11,
        deliveries=Deliveries(messages=60, connections=3),
        mailboxes=MailboxPlan(clients=2, operations=160),
        groupware=Groupware(clients=1, operations=30),
        meter=Meter(server.probe),
    )
    return msgspec.structs.replace(made, **fields)


class Run:
    """A workload in its own process, as inside a lab's machine."""

    def __init__(self, plan: Plan, folder: Path) -> None:
        self.journal = folder / "journal"
        (folder / "plan.json").write_text(plans.to_json(plan))
        command = [sys.executable, "-m", "holdfast.drill.workload"]
        command += ["--plan", str(folder / "plan.json"), "--journal", str(self.journal)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ)

    def records(self) -> list[Record]:
        return journal.read(self.journal) if self.journal.exists() else []

    def finish(self) -> list[Record]:
        out, _ = self.process.communicate(timeout=DEADLINE_SECONDS)
        assert self.process.returncode == 0, out
        assert json.loads(out.splitlines()[0])["seed"] == 11
        return self.records()


def wait_until(fact: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not fact():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture(scope="module")
def judged(server: MailServer, tmp_path_factory: pytest.TempPathFactory) -> tuple[Plan, list[Record], Mailboxes]:
    """One run, with Dovecot stopped and started in its middle; its state once settled is clean."""
    plan = a_plan(server)
    run = Run(plan, tmp_path_factory.mktemp("run"))
    wait_until(lambda: sum(isinstance(record, Probe) and record.good for record in run.records()) > 8)
    server.stop_dovecot()
    wait_until(lambda: any(isinstance(record, Probe) and not record.good for record in run.records()))
    server.start_dovecot()
    records = run.finish()
    server.empty_queue()
    mailboxes, verdict = settled(server.service, (*plan.accounts, server.probe), records, seconds_max=30)
    assert verdict.lost == []
    assert verdict.state_differences == []
    # Postfix, too, sends again what Dovecot took and did not answer when it was stopped: nothing else may be doubled.
    assert {double.message_id for double in verdict.duplicates} <= server.perhaps_delivered_twice()
    assert verdict.accepted_by_kind["smtp"] >= 60
    assert verdict.accepted_by_kind["append"] > 5
    assert verdict.accepted_by_kind["probe"] > 5
    return plan, records, mailboxes


Judged = tuple[Plan, list[Record], Mailboxes]


def test_a_run_is_recorded_from_begin_to_end_with_its_outage(judged: Judged) -> None:
    _, records, mailboxes = judged
    assert isinstance(records[0], Begin)
    assert isinstance(records[-1], End)
    assert any(isinstance(record, Trouble) for record in records)
    outage = longest_outage([record for record in records if isinstance(record, Probe)], Protocol.IMAP)
    assert outage is not None
    assert 0 < outage.seconds < DEADLINE_SECONDS
    # Stopped in the middle of a DELETE, Dovecot may go on listing the folder; nothing else may be odd.
    assert [one for one in consistent(mailboxes) if one.what is not What.FOLDER_UNOPENABLE] == []
    folders = {name for account in mailboxes.accounts.values() for name in account.folders}
    assert any(not name.isascii() for name in folders)
    assert any(account.items for account in mailboxes.accounts.values())
    keywords = {
        flag for box in mailboxes.accounts.values() for one in box.folders["INBOX"].messages for flag in one.flags
    }
    assert keywords & {"$Forwarded", "todo", "Projekt-7"}


def test_looking_changes_nothing_and_a_restart_neither(server: MailServer, judged: Judged) -> None:
    plan, _, before = judged
    server.stop_dovecot()
    server.start_dovecot()
    told = witness.resynchronise(server.service, plan.accounts, before)
    after = witness.observe(server.service, (*plan.accounts, server.probe))
    assert compare(before, after, ignore=frozenset()) == []
    assert resynchronised(before, told, after) == []
    assert sum(len(folders) for folders in told.values()) >= len(plan.accounts)


def test_the_witness_sees_what_another_client_sees(server: MailServer, judged: Judged) -> None:
    plan, _, state = judged
    login = plan.accounts[0]
    with IMAPClient("127.0.0.1", server.service.imap.port, ssl=False) as client:
        client.login(login.name, PASSWORD)
        listed = {name for flags, _, name in client.list_folders() if b"\\Noselect" not in flags}
        assert listed == set(state.accounts[login.name].folders)
        for name, folder in state.accounts[login.name].folders.items():
            selected = client.select_folder(name, readonly=True)
            assert (selected[b"UIDVALIDITY"], selected[b"UIDNEXT"]) == (folder.uid_validity, folder.uid_next)
            assert selected[b"HIGHESTMODSEQ"] == folder.highest_modseq
            if not folder.messages:
                continue
            fetched = client.fetch([one.uid for one in folder.messages], ["FLAGS", "BODY.PEEK[]", "RFC822.SIZE"])
            assert {uid: (messages.digest(data[b"BODY[]"]), data[b"RFC822.SIZE"]) for uid, data in fetched.items()} == {
                one.uid: (one.digest, one.size_bytes) for one in folder.messages
            }
            for one in folder.messages:
                flags = {flag.decode() for flag in fetched[one.uid][b"FLAGS"]} - {"\\Recent"}
                assert flags == set(one.flags)


def test_what_happens_behind_the_journals_back_is_found(server: MailServer, judged: Judged) -> None:
    """Last on this server: an expunge, a flag, a subscription, a script and an item that no journal knows of."""
    plan, records, before = judged
    login = max(plan.accounts, key=lambda one: len(before.accounts[one.name].folders["INBOX"].messages))
    inbox = before.accounts[login.name].folders["INBOX"]
    with IMAPClient("127.0.0.1", server.service.imap.port, ssl=False) as client:
        client.login(login.name, PASSWORD)
        client.select_folder("INBOX")
        everywhere = Counter(m.message_id for f in before.accounts[login.name].folders.values() for m in f.messages)
        # Whose answer never came, nobody misses; and of two copies one may be such a try.
        missed = {copy.message_id for copy in expected(records).accounts[login.name].copies if copy.required}
        once = [one for one in inbox.messages if everywhere[one.message_id] == 1 and one.message_id in missed]
        gone, flagged = once[0], once[1]
        client.delete_messages([gone.uid])
        client.uid_expunge([gone.uid])
        client.set_flags([flagged.uid], ["x_strange"])
        client.create_folder("behind")
    mailboxes, verdict = settled(server.service, (*plan.accounts, server.probe), records, seconds_max=0)
    assert [(one.account, one.message_id) for one in verdict.lost] == [(login.name, gone.message_id)]
    found = {(one.folder, one.uid, one.what) for one in compare(before, mailboxes)}
    assert found >= {
        ("INBOX", gone.uid, What.MESSAGE_MISSING),
        ("INBOX", flagged.uid, What.KEYWORDS),
        ("behind", 0, What.FOLDER_EXTRA),
    }
    told = witness.resynchronise(server.service, [login], before)
    assert gone.uid in told[login.name]["INBOX"].vanished
    assert resynchronised(before, told, mailboxes) == []


def test_the_witness_can_be_restricted(server: MailServer, judged: Judged, tmp_path: Path) -> None:
    plan, _, _ = judged
    (tmp_path / "plan.json").write_text(plans.to_json(plan))
    arguments = ["--plan", str(tmp_path / "plan.json"), "--out", str(tmp_path / "state.json")]
    witness.main([*arguments, "--account", plan.accounts[1].name, "--folder", "INBOX", "--no-contents"])
    state = msgspec.json.decode((tmp_path / "state.json").read_bytes(), type=Mailboxes)
    assert list(state.accounts) == [plan.accounts[1].name]
    assert list(state.accounts[plan.accounts[1].name].folders) == ["INBOX"]
    assert all(
        one.digest == "" and one.message_id for one in state.accounts[plan.accounts[1].name].folders["INBOX"].messages
    )


def test_a_stop_ends_a_run_in_good_order(server: MailServer, tmp_path: Path) -> None:
    plan = a_plan(server, deliveries=Deliveries(messages=10_000, rate_per_second=20), seed=11)
    run = Run(plan, tmp_path)
    wait_until(lambda: len(run.records()) > 20)
    run.process.terminate()
    assert isinstance(run.finish()[-1], End)


@pytest.mark.parametrize("chunking", [True, False], ids=["chunking", "data"])
def test_the_load_generator_delivers_all_it_says(server: MailServer, chunking: bool) -> None:
    login = plans.Login(f"load-{chunking}@example.org", PASSWORD)
    load = lmtp.Load(server.lmtp, (login.name,), connections=2, messages=40, size="mix", chunking=chunking, seed=21)
    result, acknowledged = lmtp.run(load)
    assert (result.accepted_total, result.failed, result.chunking) == (40, 0, chunking)
    assert sorted(acknowledged.numbers) == list(range(40))
    inbox = witness.observe(server.service, [login]).accounts[login.name].folders["INBOX"]
    assert {one.message_id for one in inbox.messages} == {lmtp.message_id(number, 21) for number in range(40)}
    pool = {messages.body_digest(content) for content in lmtp.contents(load)}
    assert {one.body_digest for one in inbox.messages} <= pool


def test_the_load_generator_speaks_smtp_too(server: MailServer) -> None:
    load = lmtp.Load(server.service.smtp, ("user00@example.org",), connections=2, messages=10, smtp=True, seed=22)
    assert lmtp.run(load)[0].accepted_total == 10


def test_a_second_thread_may_stop_a_workload_that_cannot_reach_anything(tmp_path: Path) -> None:
    """No server at all: clients keep trying, and a stop is heard at once."""
    from holdfast.drill.workload.journal import Journal
    from holdfast.drill.workload.net import Endpoint
    from holdfast.drill.workload.run import Workload

    nobody = Endpoint("127.0.0.1", 1)
    service = plans.Service(nobody, nobody, nobody)
    plan = Plan(service, (plans.Login("a@example.org", "x"),), seed=1, meter=Meter(plans.Login("p@example.org", "x")))
    stop = threading.Event()
    thread = threading.Thread(target=Workload(plan, Journal(tmp_path / "j"), stop).run)
    thread.start()
    wait_until(lambda: sum(isinstance(record, Trouble) for record in journal.read(tmp_path / "j")) > 5)
    stop.set()
    thread.join(10)
    assert not thread.is_alive()
