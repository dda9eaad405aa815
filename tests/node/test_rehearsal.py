"""A whole rehearsal without a site: the real Postfix and Dovecot on a stage, with the configuration of the lab."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from holdfast.drill.lab import mail_files
from holdfast.mail.mailboxes import Format
from holdfast.mail.rehearse import Performance, Play, Sampled
from holdfast.mail.settings import MailSettings
from holdfast.node import stage
from holdfast.node.sample import Sampler

pytestmark = pytest.mark.system

ACCOUNT = "anna@example.test"
STORE = "/tmp/holdfast-vmail"
"""Covered on the stage, so it need not be there on this machine."""
UID = 5000
MAIL = f"{STORE}/example.test/anna/Maildir"
SITE = mail_files.Site(
    domain="example.test",
    service_name="mail.example.test",
    accounts=(),
    plaintext=True,
    deliver_to="inet:[127.0.0.1]:2424",
    milter="unix:private/holdfast-milter",
)


def without(text: str, *beginnings: str) -> str:
    return "".join(f"{line}\n" for line in text.splitlines() if not line.startswith(beginnings))


def write_etc(etc: Path) -> None:
    """This machine's ``/etc``, and in it a mail server of one account, without certificates."""
    dovecot = without(mail_files.dovecot_conf(SITE), "ssl").replace("/var/vmail/", f"{STORE}/") + "ssl = no\n"
    postfix = without(mail_files.main_cf(SITE), "smtpd_tls_") + "myhostname = main.example.test\n"
    for path, text in {
        "dovecot/dovecot.conf": dovecot,
        "dovecot/users": f"{ACCOUNT}:{{PLAIN}}x::::::\n",
        "postfix/main.cf": postfix,
        "postfix/master.cf": mail_files.master_cf(),
        "postfix/vmailbox": f"{ACCOUNT} -\n",
        "postfix/virtual": "",
        "aliases": "",
    }.items():
        (etc / path).parent.mkdir(exist_ok=True)
        (etc / path).write_text(text)
    for name, line in (("passwd", f"vmail:x:{UID}:{UID}::/tmp:/bin/false\n"), ("group", f"vmail:x:{UID}:\n")):
        rest = without((etc / name).read_text(), "vmail:")
        (etc / name).write_text(rest + line)


def rehearse(base: Path) -> Performance:
    sampler = Sampler(base / "stage", [], [], random.Random(1))
    (base / "stage").mkdir()
    sampler.prepare()
    (etc,) = (base / "stage").iterdir()
    write_etc(etc)
    for path in (base / "vmail", *(base / "vmail").rglob("*")):
        os.chown(path, UID, UID)
    play = Play(
        MailSettings(services=("postfix", "dovecot")),
        ("192.0.2.10/24",),
        (Sampled(ACCOUNT, Format.MAILDIR, MAIL),),
        gate="0.0.0.0:2424",
        behind_gate="127.0.0.1:24",
    )
    setting = stage.Setting(play, ((str(etc), "/etc"), (str(base / "vmail"), STORE)))
    argv = [*stage.UNSHARE, sys.executable, "-m", "holdfast.node.stage"]
    done = subprocess.run(argv, input=msgspec.json.encode(setting), capture_output=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr.decode()
    return msgspec.json.decode(done.stdout, type=Performance)


def test_accounts_log_in_and_get_what_is_stored_and_a_probe_arrives_beside_gates_that_are_not_there(
    tmp_path: Path,
) -> None:
    for folder in ("cur", "new", "tmp"):
        (tmp_path / "vmail/example.test/anna/Maildir" / folder).mkdir(parents=True)
    for number in range(3):
        path = tmp_path / f"vmail/example.test/anna/Maildir/cur/{number}.M1P1.main:2,S"
        path.write_text(f"Subject: {number}\n\nhello\n")
    performance = rehearse(tmp_path)
    assert performance.problems == ()
    assert performance.messages == 3
    assert [part.name for part in performance.parts] == ["prepare", "check", "start", "login", "fetch", "delivery"]
    assert [note for note in performance.notes if "smtpd_milters" in note]
    left = [path.name for path in (tmp_path / "vmail/example.test/anna/Maildir").rglob("*.main:2,S")]
    assert len(left) == 3
    assert not Path(STORE).exists()
