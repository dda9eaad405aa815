"""Mailboxes told from names: folders, flags, keywords, subscriptions, and whose they are."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.mail import doveconf
from holdfast.mail.dovecot_layout import layout
from holdfast.mail.mailboxes import (
    Accounts,
    Format,
    Mailbox,
    base_name,
    dbox,
    folder_name,
    folder_on_disk,
    guessed_account,
    maildir,
    maildir_flags,
    maildir_keywords,
    subscribed,
)


def test_folders_of_a_maildir() -> None:
    root = b"example.org/alice/Maildir"
    assert maildir(root, None) == Mailbox(Format.MAILDIR, root, root, "INBOX")
    assert maildir(root + b"/.Projects.K&APY-ln", root).folder == "Projects/Köln"
    assert maildir(root + b"/Projects/2026", root).folder == "Projects/2026"
    assert maildir(b"", None).folder == "INBOX"
    assert maildir(b".Sent", b"").folder == "Sent"
    assert maildir(b"alice/.maildir", None).folder == "INBOX"


def test_folders_of_dbox() -> None:
    found = dbox(b"alice/mdbox/mailboxes/Projects/K&APY-ln/dbox-Mails", multi=True)
    assert found == Mailbox(
        Format.MDBOX, b"alice/mdbox", b"alice/mdbox/mailboxes/Projects/K&APY-ln/dbox-Mails", "Projects/Köln"
    )
    assert dbox(b"elsewhere/dbox-Mails", multi=False) is None


def test_flags_and_keywords() -> None:
    words = maildir_keywords(b"0 $Forwarded\n1 todo\nbad\n99 no\n25 last\n")
    assert maildir_flags(b"1.M2P3.host,S=4:2,FSabz", words) == ("\\Flagged", "\\Seen", "$Forwarded", "last", "todo")
    assert maildir_flags(b"1.M2P3.host", words) == ()
    assert base_name(b"1.M2P3.host,S=4:2,FS") == b"1.M2P3.host,S=4"


def test_subscriptions_in_both_forms() -> None:
    assert subscribed(b"A.B\nK&APY-ln\n", ".") == ("A/B", "Köln")
    assert subscribed(b"V\t2\n\nA\tB.c\nK&APY-ln\n") == ("A/B.c", "Köln")
    assert subscribed(b"V\t2\n\nwith\x01ttab\n") == ("with\ttab",)
    assert subscribed(b"") == ()


@pytest.mark.parametrize(
    ("path", "account"),
    [
        ("/srv/mail/example.org/alice/Maildir", "alice@example.org"),
        ("/srv/mail/example.org/a/al/alice", "alice@example.org"),
        ("/srv/mail/example.org/first.last/mdbox", "first.last@example.org"),
        ("/var/vmail/alice@example.org", "alice@example.org"),
        ("/home/alice/Maildir", "alice"),
        ("/home/alice/.maildir", "alice"),
        ("/srv/mail/example.org/mail/mdbox", "mail@example.org"),
        ("/Maildir", "Maildir"),
    ],
)
def test_accounts_guessed(path: str, account: str) -> None:
    assert guessed_account(path) == account


@pytest.mark.parametrize(
    ("location", "home", "path", "account"),
    [
        ("maildir:/srv/%d/%n/Maildir", "", "/srv/example.org/alice/Maildir", "alice@example.org"),
        ("maildir:/srv/%2.1Hn/%u", "", "/srv/0f/alice@example.org", "alice@example.org"),
        ("mdbox:~/mdbox", "/srv/mail/%Ld/%Ln", "/srv/mail/b.example/bob/mdbox", "bob@b.example"),
        ("maildir:/var/mail/by.name/%n", "", "/var/mail/by.name/alice", "alice"),
        ("maildir:/srv/%{domain}/%{username}", "", "/srv/example.org/alice", "alice@example.org"),
        ("maildir:/srv/%{user | domain}/%{user | username | lower}", "", "/srv/example.org/alice", "alice@example.org"),
    ],
)
def test_accounts_by_the_servers_templates(location: str, home: str, path: str, account: str) -> None:
    text = f"mail_location = {location}\n" + (f"mail_home = {home}\n" if home else "")
    assert Accounts(layout(doveconf.parse(text))).account(path.encode()) == account


@given(
    st.text(
        alphabet=st.characters(exclude_characters="/.\\\0", exclude_categories=("Cs", "Cc")), min_size=1, max_size=40
    )
)
def test_folder_names_to_disk_and_back(name: str) -> None:
    assert folder_name(folder_on_disk(name).encode()) == name


@given(st.binary(max_size=120))
def test_any_bytes_are_read(data: bytes) -> None:
    maildir_keywords(data)
    subscribed(data)
    folder_name(data)
    maildir_flags(data, {"a": "x"})
    Accounts().account(b"/" + data)
