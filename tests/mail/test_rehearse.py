"""What a rehearsal writes into copied configurations, and which messages it expects to be served."""

from __future__ import annotations

from pathlib import Path

from blake3 import blake3

from holdfast.mail.mailboxes import Format
from holdfast.mail.radicale import parse
from holdfast.mail.rehearse import Sampled, dovecot_conf, messages_of, postfix_lines, radicale_conf


def test_the_master_user_stands_in_a_file_of_its_own_behind_the_copied_one() -> None:
    old, new = dovecot_conf("dovecot.conf", "2.3", "secret"), dovecot_conf("dovecot.conf", "2.4", "secret")
    assert old.startswith("!include dovecot.conf\n")
    assert "driver = static\n  master = yes\n  args = password=secret\n" in old
    assert "passdb static {\n  master = yes\n  password = secret\n" in new
    assert "executable" not in old
    gated = dovecot_conf("dovecot.conf", "2.3", "secret", imap_gate=True)
    assert gated.endswith("service imap {\n  executable = imap\n}\n")


def test_a_gate_is_stepped_over_and_nothing_is_sent_away() -> None:
    unix = "unix:/var/spool/postfix/private/holdfast-lmtp"
    lines = postfix_lines({"virtual_transport": f"lmtp:{unix}"}, unix, "unix:/run/dovecot/lmtp")
    assert lines["virtual_transport"] == "lmtp:unix:/run/dovecot/lmtp"
    assert lines["default_transport"] == "error:rehearsal"
    assert lines["smtpd_milters"] == ""
    tcp = {"mailbox_transport": "lmtp:inet:[127.0.0.1]:2424", "virtual_transport": "lmtp:inet:[127.0.0.1]:24"}
    lines = postfix_lines(tcp, "127.0.0.1:2424", "127.0.0.1:24")
    assert lines["mailbox_transport"] == "lmtp:inet:[127.0.0.1]:24"
    assert "virtual_transport" not in lines
    assert "virtual_transport" not in postfix_lines(tcp, "", "")


def test_radicale_lets_anybody_in_and_is_otherwise_as_copied() -> None:
    copied = "[server]\nhosts = 0.0.0.0:5232\n[auth]\ntype = htpasswd\nhtpasswd_filename = /etc/radicale/users\n"
    made = radicale_conf(copied)
    assert parse(made).hosts == parse(copied).hosts
    assert parse(made).users_file == ""
    assert "type = none" in made
    assert "type = none" in radicale_conf("[storage]\nfilesystem_folder = /srv/dav\n")


def test_messages_are_expected_as_imap_gives_them(tmp_path: Path) -> None:
    for place in ("cur", "new", "tmp", ".Work/cur"):
        (tmp_path / place).mkdir(parents=True)
    (tmp_path / "new/1").write_bytes(b"Subject: x\n\nhello\n")
    (tmp_path / ".Work/cur/2:2,S").write_bytes(b"Subject: x\r\n\r\nhello\r\n")
    (tmp_path / "cur/3:2,S").write_bytes(b"CRYPTED\x03\x07...")
    (tmp_path / "tmp/4").write_bytes(b"half a mess")
    (tmp_path / "dovecot-uidlist").write_bytes(b"3 V1 N4\n")
    found, unreadable = messages_of(Sampled("a@example.test", Format.MAILDIR, str(tmp_path)))
    assert found == {blake3(b"Subject: x\r\n\r\nhello\r\n").digest(): 2}
    assert unreadable == 1
