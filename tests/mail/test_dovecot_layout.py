"""Where mail is kept, read out of configurations of both syntaxes."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.errors import ConfigurationError
from holdfast.mail import doveconf
from holdfast.mail.dovecot_layout import (
    Layout,
    Location,
    expand,
    homes_in,
    layout,
    parse_location,
    passwd_files,
    static_prefix,
)


def read(text: str, passwd: str = "") -> Layout:
    root = doveconf.parse(text)
    return layout(root, dict.fromkeys(passwd_files(root), passwd))


DEBIAN_23 = r"""
# 2.3.19.1 (9b53102964): /etc/dovecot/dovecot.conf
mail_home = /srv/vmail/%d/%n
mail_location = mdbox:~/mdbox:INDEX=/srv/index/%d/%n:ALT=/cold/%u
namespace inbox {
  inbox = yes
  location =
  mailbox "Sent Messages" {
    special_use = \Sent
  }
}
namespace public {
  location = maildir:/srv/public:INDEXPVT=~/public
  type = public
}
passdb {
  args = scheme=SHA512-CRYPT username_format=%u /etc/dovecot/users
  driver = passwd-file
}
plugin {
  sieve = file:~/sieve;active=~/.dovecot.sieve
  sieve_before = /var/lib/dovecot/sieve/before.d
  quota = dict:User quota::file:%h/dovecot-quota
  acl_shared_dict = file:/var/lib/dovecot/shared-mailboxes.db
}
protocols = " imap lmtp sieve"
service auth {
  unix_listener /var/spool/postfix/private/auth {
    mode = 0660
  }
}
service imap-login {
  inet_listener imaps {
    port = 9993
    ssl = yes
  }
}
ssl_cert = </etc/letsencrypt/live/mail.example.org/fullchain.pem
ssl_client_ca_dir = /etc/ssl/certs
ssl_dh = </usr/share/dovecot/dh.pem
ssl_key = </etc/letsencrypt/live/mail.example.org/privkey.pem
userdb {
  args = uid=vmail gid=vmail home=/srv/vmail/%d/%n
  driver = static
}
local_name other.example.net {
  ssl_cert = </etc/dovecot/other.pem
}
"""


def test_23_with_everything() -> None:
    found = read(DEBIAN_23)
    assert found.syntax == "2.3"
    assert found.drivers == {"mdbox", "maildir"}
    assert found.roots == ("/cold", "/srv/index", "/srv/public", "/srv/vmail")
    assert found.config_paths == (
        "/etc/dovecot/users",
        "/var/lib/dovecot/shared-mailboxes.db",
        "/var/lib/dovecot/sieve/before.d",
    )
    assert found.tls_files == (
        "/etc/dovecot/other.pem",
        "/etc/letsencrypt/live/mail.example.org/fullchain.pem",
        "/etc/letsencrypt/live/mail.example.org/privkey.pem",
    )
    assert [(entry.name, entry.port, entry.tls) for entry in found.listeners] == [
        ("imap", 143, False),
        ("imaps", 9993, True),
    ]
    assert found.passwd_files == ("/etc/dovecot/users",)
    assert not found.warnings


DEBIAN_24 = r"""
# 2.4.1-4 (7d8c0e5759): /etc/dovecot/dovecot.conf
# Pigeonhole version 2.4.1-4 (0a86619f)
dovecot_config_version = 2.4.1
dovecot_storage_version = 2.4.1
mail_driver = sdbox
mail_home = /srv/vmail/%{user | domain | lower}/%{user | username}
mail_index_path = /fast/index/%{user}
mail_path = ~/mail
namespace inbox {
  inbox = yes
  mailbox Drafts {
    special_use = "\\Drafts"
  }
}
namespace shared {
  mail_driver = maildir
  mail_path = /srv/shared
  separator = /
}
passdb passwd-file {
  passwd_file_path = /etc/dovecot/passwd
}
protocols {
  imap = yes
  lmtp = yes
}
service imap-login {
  inet_listener imap {
    port = 0
  }
}
sieve_script personal {
  active_path = ~/.dovecot.sieve
  driver = file
  path = ~/sieve
}
sieve_script before {
  path = /etc/dovecot/sieve/before.sieve
  type = before
}
ssl_server {
  cert_file = /etc/ssl/mail/cert.pem
  key_file = /etc/ssl/mail/key.pem
}
ssl_server_dh_file = /etc/ssl/mail/dh.pem
userdb static {
  fields {
    gid = vmail
    home = /srv/vmail/%{user | domain}/%{user | username}
    uid = vmail
  }
}
"""


def test_24_with_everything() -> None:
    found = read(DEBIAN_24)
    assert found.syntax == "2.4"
    assert found.drivers == {"sdbox", "maildir"}
    assert found.roots == ("/fast/index", "/srv/shared", "/srv/vmail")
    assert found.tls_files == ("/etc/ssl/mail/cert.pem", "/etc/ssl/mail/dh.pem", "/etc/ssl/mail/key.pem")
    assert found.passwd_files == ("/etc/dovecot/passwd",)
    assert set(found.config_paths) == {"/etc/dovecot/passwd", "/etc/dovecot/sieve/before.sieve"}
    assert [(entry.name, entry.port) for entry in found.listeners] == [("imaps", 993)]
    assert not found.warnings


@pytest.mark.parametrize(
    "protocols", ["protocols = imap pop3 sieve", "protocols {\nimap = yes\npop3 = yes\nsieve = yes\n}"]
)
def test_who_changes_something_past_the_gates_is_named_where_there_are_gates(protocols: str) -> None:
    def gated(service: str) -> str:
        return f"service {service} {{\nexecutable = {service} /run/holdfast/{service}-gate\n}}\n"

    assert read(f"{protocols}\n").past_gates == ()
    pop3, sieve = read(f"{protocols}\n{gated('imap')}").past_gates
    assert "POP3 has no gate" in pop3
    assert "ManageSieve passes no gate" in sieve
    assert read(f"{protocols}\n{gated('imap')}{gated('managesieve')}").past_gates == (pop3,)
    assert read(f"{protocols}\n{gated('imap')}".replace("pop3", "lmtp")).past_gates == (sieve,)


def test_both_syntaxes_of_one_set_up_give_the_same_roots() -> None:
    old = read("mail_location = maildir:/srv/mail/%d/%n\nmail_home = /srv/home/%d/%n\n")
    new = read(
        "dovecot_config_version = 2.4.0\nmail_driver = maildir\nmail_path = /srv/mail/%{user|domain}/%{user|username}\n"
        "mail_home = /srv/home/%{user|domain}/%{user|username}\n"
    )
    assert old.roots == new.roots == ("/srv/home", "/srv/mail")


def test_homes_in_a_passwd_file_are_covered_with_domains_still_to_come() -> None:
    text = "alice@example.org:{PLAIN}x:5000:5000::/var/vmail/example.org/alice::\n# bob:x\n"
    config = "mail_location = maildir:~/Maildir\nuserdb {\n  driver = passwd-file\n  args = /etc/dovecot/users\n}\n"
    assert read(config, text).roots == ("/var/vmail",)
    two = text + "bob:x:1:1::/data/bob::userdb_home=/data/mail/bob userdb_quota_rule=*:storage=1G\n"
    assert homes_in(two) == ["/var/vmail/example.org/alice", "/data/mail/bob"]


def test_mail_of_system_users_takes_all_of_home_and_says_so() -> None:
    found = read("mail_location = mbox:~/mail:INBOX=/var/mail/%u\nuserdb {\n  driver = passwd\n}\n")
    assert found.roots == ("/home", "/var/mail")
    assert any("store_paths" in warning for warning in found.warnings)
    assert any("mbox" in warning for warning in found.warnings)


@pytest.mark.parametrize("config", ["mail_location = maildir:~/Maildir\n", "mail_location = maildir:/%d/%n\n"])
def test_what_cannot_be_told_is_no_root_and_a_warning(config: str) -> None:
    found = read(config)
    assert found.roots == ()
    assert found.warnings


@pytest.mark.parametrize(
    ("text", "location"),
    [
        ("maildir:~/Maildir", Location("maildir", "~/Maildir")),
        ("mdbox:~/m:INDEX=MEMORY:LAYOUT=fs", Location("mdbox", "~/m")),
        ("maildir:/a::b/%u:CONTROL=/c::d", Location("maildir", "/a:b/%u", control="/c:d")),
        ("~/Maildir", Location("", "~/Maildir")),
    ],
)
def test_mail_location(text: str, location: Location) -> None:
    assert parse_location(text) == location


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("/srv/%d/%n", "/srv/Example.org/alice"),
        ("/srv/%Ld/%Un", "/srv/example.org/ALICE"),
        ("/srv/%{user | domain | lower}/%{user|username}", "/srv/example.org/alice"),
        ("/srv/100%%/%u", "/srv/100%/alice@Example.org"),
        ("/srv/%h", ""),
        ("/srv/%{user | md5}", ""),
    ],
)
def test_expanding_for_one_account(template: str, expected: str) -> None:
    assert expand(template, "alice@Example.org") == expected


@pytest.mark.parametrize(
    ("path", "prefix"),
    [("/srv/mail/%d/%n", "/srv/mail"), ("/srv/mail-%d/x", "/srv"), ("/%d", ""), ("~/x", ""), ("/srv/%{user}", "/srv")],
)
def test_static_prefix(path: str, prefix: str) -> None:
    assert static_prefix(path) == prefix


@given(st.text())
def test_any_text_is_parsed_or_refused(text: str) -> None:
    with contextlib.suppress(ConfigurationError):
        doveconf.parse(text)


def test_a_24_setting_is_found_with_and_without_its_filter_prefix() -> None:
    for line in ("passwd_file_path = /x", "passdb_passwd_file_path = /x"):
        section = doveconf.parse(f"passdb passwd-file {{\n{line}\n}}\n").sections[0]
        assert section.value("passwd_file_path") == "/x"
