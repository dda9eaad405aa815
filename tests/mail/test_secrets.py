"""Secrets as configurations name them."""

from __future__ import annotations

from pathlib import Path

from holdfast.mail import doveconf
from holdfast.mail.secrets import Secret, SecretKind, of_dovecot, of_filters, of_postfix


def kinds(found: tuple[Secret, ...]) -> dict[str, str]:
    return {secret.path: secret.kind.value for secret in found}


def test_postfix_names_keys_relay_logins_and_database_logins() -> None:
    settings = {
        "smtpd_tls_key_file": "/etc/ssl/private/mail.key",
        "smtpd_tls_cert_file": "/etc/ssl/certs/mail.pem",
        "smtp_tls_cert_file": "/etc/ssl/both.pem",
        "submission/inet/smtpd_tls_chain_files": "/etc/a.key, /etc/a.pem",
        "smtp_sasl_password_maps": "hash:/etc/postfix/sasl_passwd",
        "virtual_mailbox_maps": "proxy:mysql:/etc/postfix/users.cf hash:/etc/postfix/vmailbox",
        "queue_directory": "/var/spool/postfix",
    }
    assert kinds(of_postfix(settings)) == {
        "/etc/ssl/private/mail.key": "TLS key",
        "/etc/ssl/both.pem": "TLS key",
        "/etc/a.key": "TLS key",
        "/etc/a.pem": "TLS key",
        "/etc/postfix/sasl_passwd": "credentials",
        "/etc/postfix/users.cf": "credentials",
    }


def test_dovecot_2_3_names_its_keys_and_password_files() -> None:
    root = doveconf.parse(
        """
ssl_cert = </etc/ssl/mail.pem
ssl_key = </etc/ssl/mail.key
local_name imap.example.org {
  ssl_key = </etc/ssl/imap.key
}
passdb {
  driver = passwd-file
  args = scheme=CRYPT /etc/dovecot/users
}
passdb {
  driver = sql
  args = /etc/dovecot/dovecot-sql.conf.ext
}
passdb {
  driver = pam
}
plugin {
  mail_crypt_global_private_key = </etc/dovecot/crypt/private.pem
  mail_crypt_global_public_key = </etc/dovecot/crypt/public.pem
}
dict {
  quota = mysql:/etc/dovecot/dict.conf
}
"""
    )
    assert kinds(of_dovecot(root)) == {
        "/etc/ssl/mail.key": "TLS key",
        "/etc/ssl/imap.key": "TLS key",
        "/etc/dovecot/users": "password database",
        "/etc/dovecot/dovecot-sql.conf.ext": "credentials",
        "/etc/shadow": "password database",
        "/etc/dovecot/crypt/private.pem": "mail_crypt key",
        "/etc/dovecot/dict.conf": "credentials",
    }


def test_dovecot_2_4_names_them_in_its_own_words() -> None:
    root = doveconf.parse(
        """
dovecot_config_version = 2.4.1
ssl_server_key_file = /etc/ssl/mail.key
crypt_global_private_key main {
  crypt_private_key_file = /etc/dovecot/crypt.pem
}
passdb passwd-file {
  passwd_file_path = /etc/dovecot/users
}
"""
    )
    assert kinds(of_dovecot(root)) == {
        "/etc/ssl/mail.key": "TLS key",
        "/etc/dovecot/crypt.pem": "mail_crypt key",
        "/etc/dovecot/users": "password database",
    }


def test_dkim_keys_of_opendkim_and_rspamd(tmp_path: Path) -> None:
    """A key that a template finds none for is named by the template: it is what is missing."""
    keys = tmp_path / "keys"
    keys.mkdir()
    (keys / "example.org.mail.key").write_text("secret")
    table = tmp_path / "keytable"
    table.write_text(f"# comment\nmail._domainkey.example.org example.org:mail:{keys}/opendkim.key\n")
    etc = tmp_path / "etc"
    (etc / "rspamd/local.d").mkdir(parents=True)
    (etc / "opendkim.conf").write_text(f"Syslog yes\nKeyTable refile:{table}\n#KeyFile /etc/other.key\n")
    (etc / "rspamd/local.d/dkim_signing.conf").write_text(
        f'path = "{keys}/$domain.$selector.key";\nselector = "mail";\n'
    )
    (etc / "rspamd/local.d/arc.conf").write_text('path = "/nowhere/$domain.$selector.key";\n')
    found = of_filters(etc)
    assert {secret.path for secret in found} == {
        f"{keys}/opendkim.key",
        f"{keys}/example.org.mail.key",
        "/nowhere/$domain.$selector.key",
    }
    assert {secret.kind for secret in found} == {SecretKind.DKIM}
