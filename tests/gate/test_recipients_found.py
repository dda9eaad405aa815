"""Whom a real Postfix takes mail for, as it says itself."""

from __future__ import annotations

import asyncio
import pwd
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast.errors import HoldfastError
from holdfast.gate.recipients import Recipients
from holdfast.gate.recipients_found import RecipientsFound
from holdfast.gate.serve import Place
from holdfast.mail.commands import SystemCommands

BASE = """
compatibility_level = 3.6
myhostname = mail.example.org
mydestination = $myhostname, localhost.$mydomain, localhost
local_recipient_maps = proxy:unix:passwd.byname $alias_maps
alias_maps = hash:{folder}/aliases
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="hf-found-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "master.cf").write_text("")
        (folder / "aliases").write_text("root: alice\nsales: alice, bob\n")
        (folder / "vmailbox").write_text("Alice@example.org -\nbob@example.org -\nx@elsewhere.example -\n")
        (folder / "virtual").write_text("postmaster@example.org alice@example.org\n@all.example alice@example.org\n")
        (folder / "domains").write_text("all.example anything\n")
        for table in ("vmailbox", "virtual", "domains"):
            subprocess.run(["postmap", f"hash:{folder / table}"], check=True)
        subprocess.run(["postalias", f"hash:{folder}/aliases"], check=True)
        yield folder


def found(folder: Path, more: str) -> Recipients:
    (folder / "main.cf").write_text(BASE.format(folder=folder) + more.format(folder=folder))
    return asyncio.run(RecipientsFound(SystemCommands(), "main", str(folder))(1000.0))


def test_mailboxes_aliases_and_catch_alls_are_listed(folder: Path) -> None:
    listed = found(
        folder,
        """
virtual_mailbox_domains = example.org
virtual_mailbox_maps = hash:{folder}/vmailbox
virtual_alias_domains = hash:{folder}/domains
virtual_alias_maps = proxy:hash:{folder}/virtual
recipient_delimiter = +
message_size_limit = 1000000
""",
    )
    assert listed == Recipients(
        machine="main",
        at=1000.0,
        domains=("all.example", "example.org"),
        recipients=("@all.example", "alice@example.org", "bob@example.org", "postmaster@example.org"),
        delimiter="+",
        message_bytes_max=1_000_000,
    )


def test_an_alias_table_that_stands_for_its_domains_names_only_domains(folder: Path) -> None:
    """virtual_alias_domains is $virtual_alias_maps unless it is set."""
    listed = found(
        folder,
        "virtual_mailbox_domains = example.org\nvirtual_mailbox_maps = hash:{folder}/vmailbox\n"
        "virtual_alias_maps = hash:{folder}/virtual\n",
    )
    assert listed.domains == ("example.org",)
    assert "postmaster@example.org" in listed.recipients


def test_local_users_and_aliases_are_listed_for_domains_and_not_for_the_machines_own_name(folder: Path) -> None:
    listed = found(folder, "mydestination = $myhostname, example.org, localhost\n")
    assert listed.domains == ("example.org",)
    assert {"root@example.org", "sales@example.org"} <= set(listed.recipients)
    assert f"{pwd.getpwuid(0).pw_name}@mail.example.org" not in listed.recipients
    assert not any("yp_" in recipient for recipient in listed.recipients)


def test_what_cannot_be_listed_is_said_and_domains_must_be(folder: Path) -> None:
    listed = found(
        folder,
        "virtual_mailbox_domains = example.org, ldap.example\nvirtual_mailbox_maps = regexp:{folder}/patterns\n"
        "relay_domains = other.example\n",
    )
    assert listed.unlisted == ("example.org", "ldap.example", "other.example")
    assert listed.domains == listed.unlisted
    assert listed.recipients == ()
    with pytest.raises(HoldfastError, match="domains in"):
        found(folder, "virtual_mailbox_domains = regexp:{folder}/patterns\n")


def test_a_configuration_that_is_broken_gives_no_list(folder: Path) -> None:
    with pytest.raises(HoldfastError, match="cannot be listed"):
        found(folder, "virtual_mailbox_domains = example.org\nvirtual_mailbox_maps = hash:{folder}/absent\n")


STRAIGHT = """
virtual_mailbox_domains = example.org
virtual_mailbox_maps = hash:{folder}/vmailbox
virtual_alias_maps = hash:{folder}/virtual
virtual_alias_domains =
recipient_delimiter = +
virtual_transport = lmtp:unix:private/gate
smtpd_milters = unix:private/milter
queue_directory = /var/spool/postfix
"""


def straight(folder: Path, more: str = "", master: str = "") -> tuple[str, ...]:
    """Who is handed straight to the gate, by a Postfix whose configuration has *more*."""
    (folder / "main.cf").write_text((BASE + STRAIGHT + more).format(folder=folder))
    (folder / "master.cf").write_text(master)
    queue = "/var/spool/postfix/private"
    find = RecipientsFound(
        SystemCommands(), "main", str(folder), gate=Place(f"{queue}/gate"), milter=Place(f"{queue}/milter")
    )
    return asyncio.run(find(1000.0)).straight


def test_mailboxes_for_which_postfix_does_nothing_else_are_named(folder: Path) -> None:
    assert straight(folder) == ("alice@example.org", "bob@example.org")


@pytest.mark.parametrize("alias", ["alice@example.org", "alice", "@example.org", "alice+x@example.org"])
def test_who_has_an_alias_is_not(folder: Path, alias: str) -> None:
    (folder / "virtual").write_text(f"{alias} other@elsewhere.example\n")
    subprocess.run(["postmap", f"hash:{folder}/virtual"], check=True)
    assert "alice@example.org" not in straight(folder)


@pytest.mark.parametrize(
    "more",
    [
        "content_filter = scan:[127.0.0.1]:10024",
        "header_checks = regexp:/etc/postfix/checks",
        "mime_header_checks = regexp:/etc/postfix/checks",
        "always_bcc = archive@example.org",
        "transport_maps = hash:/etc/postfix/transport",
        "smtpd_milters = unix:private/milter inet:127.0.0.1:11332",
        "smtpd_milters = inet:127.0.0.1:11332",
        "virtual_transport = lmtp:unix:private/dovecot-lmtp",
        "virtual_transport = virtual",
    ],
)
def test_where_postfix_does_something_with_mail_nobody_is(folder: Path, more: str) -> None:
    assert straight(folder, more + "\n") == ()


def test_what_master_cf_does_counts_too(folder: Path) -> None:
    line = "smtp inet n - y - - smtpd\n  -o content_filter=scan:[127.0.0.1]:10024\n"
    assert straight(folder, master=line) == ()
    assert straight(folder, master="smtp inet n - y - - smtpd\n") != ()
