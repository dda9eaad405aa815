"""Into a running Dovecot, additively, in each format: what is missing comes, what is there stays, twice is once."""

from __future__ import annotations

import asyncio
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from holdfast.mail.imap_exchange import bytes_of, flags_of
from holdfast.mail.imap_session import ImapLost, ImapSession, session_command
from holdfast.mail.mailboxes import Accounts
from holdfast.recover import folder as folders
from holdfast.recover.boxes import Moment
from holdfast.recover.headers import Headers
from holdfast.recover.running import BATCH_MESSAGES_MAX, AccountPlan, Target, Verdict, execute, plan
from holdfast.recover.search import Query, search
from holdfast.recover.wanted import Chosen, folders_of
from holdfast.vault import backup
from holdfast.vault.backends.memory import MemoryBackend
from tests.mail.boxes import MAIL_UID, USER, DovecotBox
from tests.vault import site

pytestmark = pytest.mark.system


class Mail(NamedTuple):
    flags: tuple[str, ...]
    received: bytes
    content: bytes


class Running:
    """A Dovecot with one account's mail, and a vault."""

    def __init__(self, box: DovecotBox) -> None:
        self.box = box
        self.vault = site.new_vault(MemoryBackend())
        self.clocks = site.clocks()

    def session(self, user: str = USER) -> ImapSession:
        return ImapSession(user, session_command(user, str(self.box.config)))

    def snapshot(self) -> Moment:
        made = backup.backup_trees(self.vault, [site.tree(self.box.store)], "main", clocks=self.clocks)
        return Moment(made.name.short[:8], made.snapshot.taken_at_ns, made.snapshot.trees, self.vault.content)

    def state(self, session: ImapSession) -> dict[str, list[Mail]]:
        """Everything a client sees, but UIDs."""
        found: dict[str, list[Mail]] = {}
        for name in session.folders():
            found[name] = []
            if session.examine(name):
                messages = session.fetch("1:*", "(FLAGS INTERNALDATE BODY.PEEK[])")
                found[name] = sorted(
                    Mail(flags_of(items), bytes_of(items, "INTERNALDATE"), bytes_of(items, "BODY[]"))
                    for items in messages.values()
                )
        return found

    def restore(self, chosen: Chosen, target: Target | None = None, user: str = USER) -> AccountPlan:
        with self.session(user) as session:
            boxes = chosen.boxes[USER]
            made = plan(session, USER, chosen.wanted[USER], boxes, target or Target())
            execute(session, made)
            return made


@pytest.fixture(scope="module", params=["maildir", "sdbox", "mdbox"])
def running(request: pytest.FixtureRequest) -> Iterator[Running]:
    with tempfile.TemporaryDirectory(prefix="hf-run-") as name:
        box = DovecotBox(Path(name), request.param)
        asyncio.run(box.service.start())
        try:
            yield Running(box)
        finally:
            asyncio.run(box.service.stop())


def text(number: int, body: str = "") -> bytes:
    return (
        f"From: bob@example.net\r\nSubject: number {number}\r\nMessage-ID: <{number}@example.net>\r\n\r\n"
        f"{body or 'body'} {number}\r\n"
    ).encode()


ODD = (
    b"\r\nno header at all\r\n",
    b"Subject: no end of line",
    b"Subject: eight bits \xff\xfe\r\n\r\n\x80\x81\r\n",
    b"Subject: same twice\r\n\r\nx\r\n",
    b"Subject: same twice\r\n\r\nx\r\n",
    b"Message-ID: <1@example.net>\r\nSubject: another with this id\r\n\r\n\r\n",
    b"Subject: long\r\n\r\n" + b"0123456789abcdef\r\n" * 100_000,
)


def fill(session: ImapSession, *, odd: bool = False) -> str:
    """Messages in INBOX and in Projects/Köln; that folder's name as the server has it."""
    name = session.namespace().server_name("Projects/Köln & Bonn")
    if name not in session.folders():
        session.on_folder("CREATE", name)
    flags = (("\\Seen",), ("\\Flagged", "$Forwarded", "todo"), (), ("\\Answered", "\\Draft", "Projekt-7"))
    session.append("INBOX", [(text(n), flags[n % 4], 1_700_000_000 + n * 3600) for n in range(20)])
    session.append(name, [(text(n + 100), flags[n % 4], 1_600_000_000 + n) for n in range(6)])
    if odd:
        session.append("INBOX", [(one, ("\\Seen",), 1_650_000_000) for one in ODD])
    return name


def test_deleted_mail_comes_back_once_and_nothing_else_changes(running: Running) -> None:
    with running.session() as session:
        folder = fill(session, odd=True)
        before = running.state(session)
        moment = running.snapshot()
        session.command("SELECT INBOX")
        session.command("STORE 3:9 +FLAGS (\\Deleted)")
        session.command("STORE 22:27 +FLAGS (\\Deleted)")
        session.command("STORE 1 FLAGS (\\Flagged later)")
        session.command("EXPUNGE")
        session.command("CLOSE")
        session.on_folder("DELETE", folder)
        session.append("INBOX", [(text(500, "newer"), ("\\Seen", "fresh"), 1_790_000_000)])
        between = running.state(session)
    chosen = folders_of(moment, USER, "", Accounts())
    made = running.restore(chosen)
    assert (made.count(Verdict.ADDED), made.notes) == (7 + 6 + 6, [])
    with running.session() as session:
        after = running.state(session)
        for name, messages in between.items():
            missing = list(messages)
            for one in after[name]:
                if one in missing:
                    missing.remove(one)
            assert missing == [], "what was there is there, flags and all"
        for name, messages in before.items():
            lost = list(messages)
            for one in after[name]:
                if one in lost:
                    lost.remove(one)
            changed = [one for one in lost if b"Subject: number 0\r\n" in one.content]
            assert lost == changed, "all that was then is there, but for a flag changed since, which stays changed"
        total = sum(map(len, after.values()))
        assert total == sum(map(len, before.values())) + 1
    again = running.restore(chosen)
    assert (again.count(Verdict.ADDED), again.count(Verdict.THERE)) == (0, chosen.total)
    with running.session() as session:
        assert running.state(session) == after


def test_other_bytes_under_the_same_id_are_another_message(running: Running) -> None:
    """A draft saved again, of the same length: both are kept."""
    with running.session() as session:
        name = session.namespace().server_name("Drafts")
        session.on_folder("CREATE", name)
        session.append(name, [(text(900, "first"), (), 1_700_000_000)])
        moment = running.snapshot()
        session.command(f"SELECT {name}")
        session.command("STORE 1 +FLAGS (\\Deleted)")
        session.command("EXPUNGE")
        session.append(name, [(text(900, "other"), (), 1_700_000_000)])
    chosen = folders_of(moment, USER, "Drafts", Accounts())
    with running.session() as session:
        made = plan(session, USER, chosen.wanted[USER], chosen.boxes[USER], Target())
        assert [(step.verdict, "other contents" in step.reason) for step in made.steps] == [(Verdict.ADD, True)]
    running.restore(chosen)
    again = running.restore(chosen)
    assert again.count(Verdict.THERE) == 1
    with running.session() as session:
        assert len(running.state(session)[name]) == 2


def test_into_another_folder_and_another_account(running: Running) -> None:
    with running.session() as session:
        fill(session)
        moment = running.snapshot()
        session.command("SELECT INBOX")
        session.command("STORE 2 +FLAGS (\\Deleted)")
        session.command("EXPUNGE")
    chosen = folders_of(moment, USER, "INBOX", Accounts())
    made = running.restore(chosen, Target("Restored/Tuesday", flat=True))
    assert made.count(Verdict.ADDED) == 1, "the others are still in their own folder"
    copies = running.restore(chosen, Target("Copies", flat=True, copies=True))
    assert copies.count(Verdict.ADDED) == chosen.total
    with running.session() as session:
        name = session.namespace().server_name("Restored/Tuesday")
        assert len(running.state(session)[name]) == 1
        assert name in session.subscriptions()
    other = running.restore(chosen, user="bob@example.org")
    assert other.count(Verdict.ADDED) == chosen.total
    with running.session("bob@example.org") as session, running.session() as mine:
        assert running.state(session)["INBOX"] == running.state(mine)["Copies"]


def test_a_killed_session_is_finished_by_the_next(running: Running) -> None:
    user = "bob@example.org"
    with running.session() as session:
        session.append("INBOX", [(text(n), (), 1_700_000_000 + n) for n in range(2 * BATCH_MESSAGES_MAX)])
        moment = running.snapshot()
    chosen = folders_of(moment, USER, "INBOX", Accounts())
    with running.session(user) as session:
        made = plan(session, USER, chosen.wanted[USER], chosen.boxes[USER], Target("Killed", flat=True, copies=True))
        total = made.count(Verdict.ADD)

        def kill(_bytes: int, _messages: int) -> None:
            session._process.kill()

        with pytest.raises(ImapLost):
            execute(session, made, kill)
        added = made.count(Verdict.ADDED)
    assert 0 < added < total
    rest = running.restore(chosen, Target("Killed", flat=True, copies=True), user)
    assert rest.count(Verdict.ADDED) == total - added


def test_leaving_in_the_middle_of_a_message_leaves_none(running: Running) -> None:
    """Ctrl-C: what the server was told of a message must not be completed by whatever is sent last."""
    with running.session() as session:
        before = session.examine("INBOX")
        for missing in range(1, 16):
            with running.session() as interrupted:
                interrupted._between = False  # as within command()
                os.write(interrupted._in, b"x APPEND INBOX {%d+}\r\nSubject: half\r\n" % (15 + missing))
        assert session.examine("INBOX") == before


def test_what_find_shows_is_what_the_server_has(running: Running) -> None:
    with running.session() as session:
        fill(session)
        state = running.state(session)
    found = search([running.snapshot()], Query(account=USER), Headers(), Accounts())
    assert found.problems == {}
    seen: dict[str, int] = {}
    for one in found.presences:
        seen[one.box.mailbox.folder] = seen.get(one.box.mailbox.folder, 0) + 1
    separator = "/" if running.box.config.read_text().find("dbox") > 0 else "."
    assert seen == {name.replace(separator, "/"): len(messages) for name, messages in state.items() if messages}


def test_a_broken_index_is_named_and_is_no_deletion(running: Running, tmp_path: Path) -> None:
    if "dbox" not in running.box.config.read_text():
        return  # a Maildir's names tell all
    with running.session() as session:
        fill(session)
    moments = [running.snapshot()]
    copy = tmp_path / "store"
    subprocess.run(["cp", "-a", str(running.box.store), str(copy)], check=True)
    for log in copy.rglob("INBOX/dbox-Mails/dovecot.index.log"):
        log.write_bytes(b"\xff" * 100)
    made = backup.backup_trees(running.vault, [site.tree(copy)], "main", clocks=running.clocks)
    moments.append(Moment("broken00", made.snapshot.taken_at_ns, made.snapshot.trees, running.vault.content))
    found = search(moments, Query(account=USER), Headers(), Accounts())
    assert [place for place in found.problems if "INBOX" in place]
    assert [one for one in found.presences if one.gone is not None] == []
    chosen = folders_of(moments[1], USER, "INBOX", Accounts())
    assert chosen.problems
    expected = len(list(copy.glob("*/alice/*/mailboxes/INBOX/dbox-Mails/u.*")))
    assert chosen.total == expected, "sdbox: the files are there, without flags; mdbox: nothing says what is in it"


def test_a_folder_restored_as_maildir_is_that_folder(running: Running, tmp_path: Path) -> None:
    with running.session() as session:
        fill(session)
        moment = running.snapshot()
        state = running.state(session)
    chosen = folders_of(moment, USER, "", Accounts())
    written = folders.as_maildir(chosen, tmp_path / "out")
    assert written.failed == {}
    with tempfile.TemporaryDirectory(prefix="hf-mdir-") as name:
        box = DovecotBox(Path(name), location=f"maildir:{name}/mail")
        subprocess.run(["cp", "-a", str(tmp_path / "out" / USER), f"{name}/mail"], check=True)
        subprocess.run(["chown", "-R", f"{MAIL_UID}:{MAIL_UID}", f"{name}/mail"], check=True)
        asyncio.run(box.service.start())
        try:
            with ImapSession(USER, session_command(USER, str(box.config))) as session:
                restored = Running(box).state(session)
        finally:
            asyncio.run(box.service.stop())
    assert sorted(map(len, restored.values())) == sorted(map(len, state.values()))
    assert restored["INBOX"] == state["INBOX"]


def test_an_unknown_account_and_a_server_that_is_not_there_say_so(running: Running) -> None:
    with pytest.raises(ImapLost, match=r"nobody@example\.org"):
        running.session("nobody@example.org")
    with pytest.raises(ImapLost, match="configuration"):
        ImapSession(USER, session_command(USER, "/nonexistent.conf"))
