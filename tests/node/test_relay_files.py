"""A relay's Postfix: what is written is the page's, and Postfix finds nothing wrong with it."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from holdfast.changes.names import MachineName
from holdfast.log.trust import Authority
from holdfast.node.relay_files import TABLES, hand_on_to, main_cf, master_cf
from holdfast.node.relay_install import planned
from holdfast.node.settings import Settings, parse_settings
from tests.docs.pages import DOCS

from .test_settings import GOOD, refusal

GATES = """
[gate]
lmtp = "unix:/var/spool/postfix/private/holdfast-lmtp"
milter = "unix:/var/spool/postfix/private/holdfast-milter"
"""
FRONT = f'{GOOD}\n{GATES}\n[relay]\nmode = "front"\n'.replace('machine = "main"', 'machine = "relay"', 1)
NAME = "mx1.example.org"


def settings(text: str = FRONT) -> Settings:
    return parse_settings(text, "holdfast.toml")


def test_the_files_of_the_page_are_those_that_are_written() -> None:
    """After a change: write them anew, ``python -m tests.node.test_relay_files``."""
    for name, text in documented().items():
        assert (DOCS / "systems" / "relay" / name).read_text(encoding="utf-8") == text, name


def documented() -> dict[str, str]:
    return {"main.cf": main_cf(settings(), NAME), "master.cf": master_cf()}


@pytest.mark.parametrize("mode", ["front", "backup-mx"])
def test_postfix_finds_nothing_wrong(mode: str) -> None:
    text = main_cf(settings(FRONT.replace('"front"', f'"{mode}"')), NAME)
    with tempfile.TemporaryDirectory(prefix="hf-relay-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        for each in ("queue", "data", "tables", "postfix"):
            (folder / each).mkdir()
        shutil.chown(folder / "data", "postfix")
        identity = Authority.create("site", folder / "ca").issue(MachineName("relay"), ["192.0.2.13"])
        identity.write(folder / "tls")
        for table in ("domains", "recipients", "straight", "unlisted"):
            (folder / "tables" / table).write_text("example.org OK\n")
            subprocess.run(["postmap", f"hash:{folder}/tables/{table}"], check=True)
        text = text.replace(TABLES, f"{folder}/tables").replace("/etc/holdfast/tls", f"{folder}/tls")
        text += f"queue_directory = {folder}/queue\ndata_directory = {folder}/data\n"
        (folder / "postfix/main.cf").write_text(text)
        (folder / "postfix/master.cf").write_text(master_cf())
        for argv in (["postfix", "-c", f"{folder}/postfix", "check"], ["postconf", "-c", f"{folder}/postfix", "-n"]):
            done = subprocess.run(argv, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            assert [line for line in done.stderr.splitlines() if "warning" in line or "fatal" in line] == []
        once = re.findall(r"(?m)^([a-z_]+) =", text)
        assert len(once) == len(set(once))


def test_it_hands_on_to_the_service_addresses_or_where_it_is_told() -> None:
    assert hand_on_to(settings()) == ("[192.0.2.10]:25", "[ipv6:2001:db8::10]:25")
    named = settings(FRONT.replace('mode = "front"', 'mode = "front"\nhand_on_to = ["[mail.inside.example]:2525"]'))
    assert "relay_transport = relay:[mail.inside.example]:2525\n" in main_cf(named, NAME)


def test_what_a_person_changed_of_its_own_and_what_the_list_brought_stay(tmp_path: Path) -> None:
    overrides = tmp_path / "overrides.cf"
    overrides.write_text("myhostname = mx2.example.org\nmaillog_file = /var/log/mail.log\n")
    own = f'\n[mail.postfix]\nconfig_directory = "{tmp_path}"\noverrides = "{overrides}"\n'
    made = settings(FRONT + own)
    (tmp_path / "main.cf").write_text(
        main_cf(made, NAME).replace("message_size_limit = 52428800", "message_size_limit = 77")
    )
    (tmp_path / "master.cf").write_text(master_cf())
    (change,) = [change for change in planned(made, None) if change.path.parent == tmp_path]
    assert "message_size_limit = 77" in change.after
    assert "maillog_file = /var/log/mail.log" in change.after
    assert "\nmyhostname = mx2.example.org" in change.after


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ((GATES, ""), "delivered twice"),
        (('role = "relay"', 'role = "mail"'), "no machine has role"),
        (('mode = "front"', 'mode = "fronts"'), "fronts"),
        (('mode = "front"', 'mode = "front"\nhold_days = 0'), "hold_days"),
        (('mode = "front"', 'mode = "front"\nalso_from = ["192.0.2.0/24"]'), "also_from"),
        (('mode = "front"', 'mode = "front"\ncertificate = "/x.pem"'), "belong together"),
        (('addresses = ["192.0.2.10/24", "2001:db8::10/64"]', "addresses = []"), "hand_on_to"),
    ],
)
def test_a_relay_that_could_not_work_is_refused_by_name(change: tuple[str, str], named: str) -> None:
    assert change[0] in FRONT
    assert named in refusal(FRONT.replace(change[0], change[1], 1))


if __name__ == "__main__":
    for file, content in documented().items():
        (DOCS / "systems" / "relay" / file).write_text(content, encoding="utf-8")
