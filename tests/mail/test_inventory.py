"""The inventory: what is there, what protects it, what refers to nothing, and whether a snapshot has it."""

from __future__ import annotations

from pathlib import Path

import pytest

from holdfast.errors import ConfigurationError
from holdfast.mail import inventory
from holdfast.mail.account_places import account_places, all_homes
from holdfast.mail.doveconf import parse
from holdfast.mail.dovecot_layout import layout
from holdfast.mail.inventory import AccountState, Inventory, SecretState, Weight
from holdfast.mail.secrets import Secret, SecretKind
from holdfast.trees.spec import TreeSpec


def key(path: Path | str, kind: SecretKind = SecretKind.TLS) -> Secret:
    return Secret(kind, str(path), "postfix smtpd_tls_key_file")


def test_a_key_is_there_and_protected_or_a_restore_would_lack_it(tmp_path: Path) -> None:
    for name in ("kept.key", "left-out.key", "beside.key"):
        (tmp_path / name).write_text("secret")
    tree = TreeSpec(name="config", root=str(tmp_path), include=("kept.key", "left-out.key"), exclude=("left-out.*",))
    found = inventory.needs([key(tmp_path / f"{n}.key") for n in ("kept", "left-out", "beside", "gone")], [tree])
    assert {Path(need.path).name: (need.there, need.tree) for need in found} == {
        "kept.key": (True, "config"),
        "left-out.key": (True, ""),
        "beside.key": (True, ""),
        "gone.key": (False, ""),
    }
    gaps = Inventory(format=1, secrets=found).gaps()
    assert len(gaps) == 3
    assert all("without their certificate" in gap.words for gap in gaps)


def test_a_link_needs_its_target_too(tmp_path: Path) -> None:
    """As Let's Encrypt makes them: live/ is links into archive/."""
    (tmp_path / "archive").mkdir()
    (tmp_path / "archive/key1.pem").write_text("secret")
    (tmp_path / "key.pem").symlink_to("archive/key1.pem")
    tree = TreeSpec(name="config", root=str(tmp_path), include=("archive",))
    (need,) = inventory.needs([key(tmp_path / "key.pem")], [tree])
    assert (need.real, need.tree) == (str(tmp_path / "archive/key1.pem"), "config")


def test_a_snapshot_is_asked_and_not_believed() -> None:
    need = inventory.Need(SecretKind.DKIM, "/etc/dkim/a.key", "opendkim KeyFile", there=True, tree="config")
    taken = Inventory(format=1, secrets=(need,))
    (present,) = inventory.secrets_in(taken, lambda path: path == "/etc/dkim/a.key")
    (missing,) = inventory.secrets_in(taken, lambda path: False)
    assert (present.state, present.words) == (SecretState.PRESENT, "")
    assert missing.state is SecretState.MISSING
    assert "is not in it: outgoing mail is not signed" in missing.words


def test_an_account_whose_store_went_is_a_gap_until_it_is_back() -> None:
    """An account nobody ever wrote to has none either: that is only remarked."""
    places = {"a@x": ("/m/a",), "b@x": ("/m/b",), "c@x": ()}
    first = inventory.accounts_with(places, None, exists=lambda path: path == "/m/a")
    assert [account.state for account in first] == [AccountState.STORED, AccountState.UNUSED, AccountState.UNUSED]
    before = Inventory(format=1, accounts=first)
    second = inventory.accounts_with(places, before, exists=lambda path: False)
    third = inventory.accounts_with(places, Inventory(format=1, accounts=second), exists=lambda path: False)
    assert [account.state for account in third] == [AccountState.GONE, AccountState.UNUSED, AccountState.UNUSED]
    found = inventory.account_findings(third)
    assert [finding.weight for finding in found] == [Weight.GAP, Weight.REMARK, Weight.REMARK]
    back = inventory.accounts_with(places, Inventory(format=1, accounts=third), exists=lambda path: True)
    assert back[0].state is AccountState.STORED


def test_calendars_have_owners_or_are_named(tmp_path: Path) -> None:
    for name in ("alice@x", "left@x", ".Radicale.cache"):
        (tmp_path / "collection-root" / name).mkdir(parents=True)
    (tmp_path / "users").write_text("alice@x:hash\n")
    (found,) = inventory.calendar_findings(str(tmp_path), str(tmp_path / "users"))
    assert "left@x" in found.words
    assert inventory.calendar_findings(str(tmp_path), "") == ()


def test_places_of_accounts() -> None:
    text = """
mail_location = maildir:~/Maildir:INDEX=/var/indexes/%d/%n
userdb {
  driver = passwd-file
  args = /etc/dovecot/users
  default_fields = home=/srv/mail/%d/%n
}
"""
    found = layout(parse(text), {})
    homes = all_homes({"/etc/dovecot/users": "b@x.org:{PLAIN}x::::/data/b::\n"})
    assert account_places(found, "a@x.org", homes) == ("/srv/mail/x.org/a", "/var/indexes/x.org/a")
    assert account_places(found, "b@x.org", homes) == ("/data/b", "/var/indexes/x.org/b")


def test_it_is_written_for_root_alone_and_only_when_it_changed(tmp_path: Path) -> None:
    taken = Inventory(format=1, users=inventory.machine_users(), groups=inventory.machine_groups())
    assert inventory.write(taken, tmp_path)
    assert not inventory.write(taken, tmp_path)
    assert (tmp_path / "inventory.json").stat().st_mode & 0o777 == 0o600
    assert inventory.read(tmp_path) == taken
    (tmp_path / "inventory.json").write_text("{")
    with pytest.raises(ConfigurationError, match="writes it anew"):
        inventory.read(tmp_path)


def test_own_keys_only_where_there_is_a_site(tmp_path: Path) -> None:
    assert inventory.own_tree(str(tmp_path)) is None
    assert inventory.own_secrets(str(tmp_path)) == ()
    (tmp_path / "holdfast.toml").write_text("")
    (tmp_path / "segment.key").write_text("")
    assert [secret.path for secret in inventory.own_secrets(str(tmp_path))] == [str(tmp_path / "segment.key")]
    tree = inventory.own_tree(str(tmp_path))
    assert tree is not None
    assert tree.name == "holdfast"
