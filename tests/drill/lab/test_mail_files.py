"""The configuration as text: the same for every machine, nothing of one machine in it."""

from __future__ import annotations

from holdfast.drill.lab import mail_files
from holdfast.drill.lab.mail_files import Site
from holdfast.drill.lab.spec import accounts

SITE = Site(domain="example.test", service_name="mail.example.test", accounts=tuple(accounts(2, "example.test", "s")))


def test_no_password_is_in_any_file() -> None:
    hashes = ["$6$x$one", "$6$x$two"]
    texts = [mail_files.dovecot_users(SITE, hashes), mail_files.radicale_users(SITE, hashes), mail_files.vmailbox(SITE)]
    for account in SITE.accounts:
        assert all(account.password not in text for text in texts)
        assert all(account.address in text for text in texts)


def test_what_is_one_machines_own_stays_in_the_overrides() -> None:
    shared = mail_files.main_cf(SITE) + mail_files.master_cf() + mail_files.dovecot_conf(SITE)
    assert "\nmyhostname =" not in shared
    assert "10.77." not in shared
    assert mail_files.postfix_overrides("a.example.test").endswith("myhostname = a.example.test\n")
    assert shared.rstrip().endswith("!include_try /etc/holdfast/overrides/dovecot.conf")


def test_salts_follow_from_the_seed() -> None:
    assert mail_files.salt("a") == mail_files.salt("a") != mail_files.salt("b")
    assert len(mail_files.salt("a")) == 16
