"""Finding deleted mail and bringing it back, as an administrator does it on the command line."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast.errors import ExitStatus
from holdfast.mail.imap_session import ImapSession, session_command
from tests.console.vault_site import Desk
from tests.mail.boxes import PASSWORD, USER, DovecotBox
from tests.recover.site import ACCOUNT, Store, event

CONFIGURATION = """
site = "test"
machine = "main"
[[machines]]
name = "main"
address = "127.0.0.1"
role = "mail"
[mail.dovecot]
config = "{dovecot}"
[mail.radicale]
config = "{radicale}"
"""


class Office(Desk):
    """Two Maildirs and a calendar, a vault, and mail deleted between two snapshots."""

    def __init__(self, base: Path) -> None:
        super().__init__(base)
        self.store = Store(base)
        self.store.message(1, Subject="Budget 2027")
        self.store.message(2, "Projects/2026", flags="F")
        self.meeting = self.store.item("work", "1.ics", event("uid-1", "Board meeting"))
        self.done("vault", "init", str(self.location))
        self.backup()
        (self.store.mail / "cur/1767225601.M1.host:2,").unlink()
        self.meeting.unlink()
        self.backup()

    def backup(self, status: int = 0) -> dict[str, object]:
        trees = (f"store={self.store.root}", f"groupware={self.store.groupware}")
        made: dict[str, object] = self.json("vault", "backup", *trees, status=status)
        return made


@pytest.fixture
def office(tmp_path: Path) -> Office:
    return Office(tmp_path)


def test_find_tells_when_it_went_and_restore_takes_its_id(office: Office, tmp_path: Path) -> None:
    said = office.done("vault", "find", "budget")
    assert "Budget 2027" in said
    assert "gone between" in said
    (found,) = office.json("vault", "find", "--deleted", "--account", ACCOUNT)["found"]
    assert (found["subject"], found["folder"], found["gone_by"] is None) == ("Budget 2027", "INBOX", False)
    office.done("restore", "--message", found["id"], "--to", str(tmp_path / "one"))
    (file,) = (tmp_path / "one" / ACCOUNT / "INBOX").iterdir()
    assert b"Subject: Budget 2027\n" in file.read_bytes()
    assert file.stat().st_mtime == 1767225601
    assert "2 messages found in 2 snapshots" in office.done("vault", "find")
    assert "(1 older ones are not shown" in office.done("vault", "find", "--limit", "1")


def test_an_event_is_found_and_restored(office: Office, tmp_path: Path) -> None:
    assert "Board meeting" in office.done("vault", "find", "--items", "board")
    (found,) = office.json("vault", "find", "--items", "--deleted")["found"]
    office.done("restore", "--item", found["id"], "--to", str(tmp_path / "out"))
    assert (tmp_path / "out" / ACCOUNT / "Work" / "1.ics").read_bytes().decode() == event("uid-1", "Board meeting")
    first = office.json("vault", "list")["snapshots"][0]["snapshot"]
    wanted = ("restore", "--account", ACCOUNT, "--collection", "work", "--at", first)
    assert office.json(*wanted, "--to", str(tmp_path / "all"))["items"] == 1
    office.done(*wanted[:4], "other", "--at", first, "--to", str(tmp_path / "no"), status=ExitStatus.USAGE)


def test_an_account_as_files_and_a_folder_as_maildir(office: Office, tmp_path: Path) -> None:
    first = office.json("vault", "list")["snapshots"][0]["snapshot"]
    office.done("restore", "--account", ACCOUNT, "--at", first, "--to", str(tmp_path / "account"))
    restored = tmp_path / "account" / ACCOUNT / "Maildir"
    assert {path.name for path in (restored / "cur").iterdir()} == {"1767225601.M1.host:2,"}
    assert (restored / ".Projects.2026" / "cur" / "1767225602.M2.host:2,F").exists()
    office.done("restore", "--account", ACCOUNT, "--folder", "Projects", "--to", str(tmp_path / "folder"))
    (message,) = (tmp_path / "folder" / ACCOUNT / ".Projects.2026" / "cur").iterdir()
    assert message.name.endswith(":2,F")
    refused = office.done("restore", "--account", ACCOUNT, "--to", str(tmp_path / "folder"), status=ExitStatus.REFUSED)
    assert "not empty" in refused
    planned = office.done("restore", "--account", ACCOUNT, "--to", str(tmp_path / "plan"), "--dry-run")
    assert "Nothing was written" in planned
    assert not (tmp_path / "plan").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("--account", ACCOUNT),
        ("--folder", "INBOX", "--to", "/x"),
        ("--account", ACCOUNT, "--message", "a", "--to", "/x"),
        ("--account", ACCOUNT, "--into-server", "--to", "/x"),
        ("--account", ACCOUNT, "--into-folder", "X", "--to", "/x"),
        ("--account", "*", "--into-server", "--into-account", "bob"),
        ("--message", "nonsense", "--to", "/x"),
        ("--message", "00000000-0123456789", "--to", "/x"),
        ("--account", "nobody@example.org", "--to", "/x"),
        ("--account", ACCOUNT, "--folder", "Nowhere", "--to", "/x"),
        ("store", "--account", ACCOUNT, "--to", "/x"),
    ],
)
def test_what_makes_no_sense_is_usage(office: Office, arguments: tuple[str, ...]) -> None:
    office.done("restore", *arguments, status=ExitStatus.USAGE)
    assert not Path("/x").exists()


# -- into a running server --------------------------------------------------------------------------------------------


@pytest.fixture
def server() -> Iterator[DovecotBox]:
    with tempfile.TemporaryDirectory(prefix="hf-cli-") as name:
        sieve = "plugin {\n  sieve = file:~/sieve;active=~/.dovecot.sieve\n}\n"
        box = DovecotBox(Path(name), "maildir", extra=sieve)
        asyncio.run(box.service.start())
        try:
            yield box
        finally:
            asyncio.run(box.service.stop())


@pytest.mark.system
def test_accounts_into_the_server_and_one_that_is_not_there_any_more(server: DovecotBox, tmp_path: Path) -> None:
    """A bare account gets its subscriptions and scripts; an account the server does not know stops no other."""
    desk = Desk(tmp_path)
    store = Store(tmp_path, USER)
    carol = Store(tmp_path / "carol", "carol@example.org")
    store.message(1)
    store.message(2, "Projects/2026", flags="F")
    carol.message(3)
    (store.mail / "subscriptions").write_bytes(b"V\t2\n\nProjects\t2026\n")
    home = store.mail.parent
    (home / "sieve").mkdir()
    (home / "sieve" / "main.sieve").write_text("keep;\n")
    (home / ".dovecot.sieve").symlink_to("sieve/main.sieve")
    desk.base.joinpath("holdfast.toml").write_text(
        CONFIGURATION.format(dovecot=server.config, radicale=tmp_path / "none")
    )
    carol.mail.parent.rename(store.root / "example.org" / "carol")
    desk.done("vault", "init", str(desk.location))
    desk.json("vault", "backup", f"store={store.root}")
    wanted = ("restore", "--account", "*", "--into-server")
    planned = json.loads(desk.run(*wanted, "--dry-run", "--json").stdout)
    by_name = {one["account"]: one for one in planned["accounts"]}
    assert by_name[USER]["counts"] == {"add": 2}
    assert (by_name[USER]["create"], by_name[USER]["subscribe"]) == (["Projects.2026"], ["Projects.2026"])
    assert by_name[USER]["sieve"] == ["main"]
    assert "carol" in by_name["carol@example.org"]["error"]
    with ImapSession(USER, session_command(USER, str(server.config))) as session:
        assert session.folders() == ["INBOX"], "a plan changes nothing"
    said = desk.done(*wanted, status=ExitStatus.DIFFERENCES)
    assert f"{USER}: added 2 messages; 0 already there" in said
    assert "! carol@example.org: carol@example.org: no IMAP session" in said
    with ImapSession(USER, session_command(USER, str(server.config))) as session:
        assert session.folders() == ["INBOX", "Projects.2026"]
        assert session.subscriptions() == ["Projects.2026"]
    assert (server.store / "example.org/alice/.dovecot.sieve").readlink() == Path("sieve/main.sieve")
    again = desk.done("restore", "--account", USER, "--into-server")
    assert f"{USER}: added 0 messages; 2 already there" in again
    gone = desk.done("restore", "--account", "carol@example.org", "--into-server", status=ExitStatus.UNREACHABLE)
    assert "doveadm user" in gone
    into = ("--into-account", "bob@example.org", "--into-folder", "Carol")
    assert "added 1 message" in desk.done("restore", "--account", "carol@example.org", "--into-server", *into)
    assert PASSWORD not in said
