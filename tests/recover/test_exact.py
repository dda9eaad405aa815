"""A store restored whole, under another Dovecot: a mail client sees the same mailboxes, to the last number."""

from __future__ import annotations

import asyncio
import random
import tempfile
from pathlib import Path

import pytest

from holdfast.drill.checkers.exact_state import HARMLESS, compare, consistent
from holdfast.drill.checkers.facts import Mailboxes
from holdfast.drill.workload.net import Endpoint
from holdfast.drill.workload.plan import Login, Service
from holdfast.drill.workload.witness import Wanted, observe
from holdfast.mail.imap_session import ImapSession, session_command
from holdfast.vault import backup
from holdfast.vault.backends.memory import MemoryBackend
from holdfast.vault.restore import restore_path
from tests.mail.boxes import PASSWORD, USER, DovecotBox
from tests.vault import site

pytestmark = pytest.mark.system
NOWHERE = Endpoint("127.0.0.1", 0)
FLAGS = ("\\Seen", "\\Answered", "\\Flagged", "\\Draft", "$Forwarded", "todo", "Projekt-7")


def seen(box: DovecotBox) -> Mailboxes:
    service = Service(NOWHERE, Endpoint("127.0.0.1", box.imap_port), NOWHERE, NOWHERE)
    return observe(service, [Login(USER, PASSWORD)], wanted=Wanted(sieve=False, dav=False))


def use(box: DovecotBox) -> None:
    """Folders, deliveries, flags, moves, expunges."""
    chance = random.Random(7)
    with ImapSession(USER, session_command(USER, str(box.config))) as session:
        separator = session.namespace().separator
        names = ["Projects", f"Projects{separator}Köln & Bonn", "日本語", "Trash"]
        for name in names:
            session.on_folder("CREATE", name)
            session.on_folder("SUBSCRIBE", name)
        for number in range(40):
            text = f"Message-ID: <{number}@x>\r\nSubject: {number}\r\n\r\n{'line' * number}\r\n".encode()
            flags = tuple(chance.sample(FLAGS, chance.randint(0, 4)))
            session.append(chance.choice(["INBOX", *names]), [(text, flags, 1_700_000_000 + number * 977)])
        session.command("SELECT INBOX")
        session.command("STORE 1:3 +FLAGS (todo later)")
        session.command("MOVE 2:3 Trash")
        session.command("STORE 1 +FLAGS (\\Deleted)")
        session.command("EXPUNGE")
        session.on_folder("UNSUBSCRIBE", "Trash")


@pytest.mark.parametrize("driver", ["maildir", "sdbox", "mdbox"])
def test_a_restored_store_shows_the_same_mailboxes(driver: str) -> None:
    with tempfile.TemporaryDirectory(prefix="hf-exact-") as name:
        folder = Path(name)
        (folder / "a").mkdir()
        (folder / "b").mkdir()
        folder.chmod(0o755)
        old = DovecotBox(folder / "a", driver)
        asyncio.run(old.service.start())
        try:
            use(old)
            before = seen(old)
            trees = asyncio.run(old.service.protection()).trees
        finally:
            asyncio.run(old.service.stop())
        spec = trees[0]
        with site.new_vault(MemoryBackend()) as vault:
            made = backup.backup_trees(
                vault, [site.tree(Path(spec.root), exclude=spec.exclude)], "main", clocks=site.clocks()
            )
            new = DovecotBox(folder / "b", driver)
            new.store.rmdir()
            restored = restore_path(vault, made.snapshot.tree("store"), b"", new.store)
        assert restored.failures == []
        asyncio.run(new.service.start())
        try:
            after = seen(new)
        finally:
            asyncio.run(new.service.stop())
        assert compare(before, after, ignore=HARMLESS) == []
        assert consistent(after) == []
        account = before.accounts[USER]
        assert sum(len(one.messages) for one in account.folders.values()) == 39
        for mailbox, one in account.folders.items():
            assert one.highest_modseq <= after.accounts[USER].folders[mailbox].highest_modseq
