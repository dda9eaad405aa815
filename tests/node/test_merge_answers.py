"""What a primary does to a mailbox when it is asked to merge: by Dovecot's own imap, on a Maildir, without a server."""

from __future__ import annotations

import base64
import os
import pwd
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from holdfast.mail.imap_session import ImapSession
from holdfast.node import merge_answers as answers
from holdfast.node.merge_answers import GONE, THERE

pytestmark = pytest.mark.system

IMAP = "/usr/lib/dovecot/imap"
NAME = "1795364343.M1P1.main,S=45,W=49"
TEXT = "Message-ID: <{name}@x.test>\nSubject: {name}\n\nhello\n"
CONFIGURATION = """\
base_dir = {base}/run
state_dir = {base}/state
log_path = {base}/log
mail_location = maildir:{base}/mail
mail_uid = mail
mail_gid = mail
first_valid_uid = 1
first_valid_gid = 1
ssl = no
"""


class Box:
    """One account's Maildir, as its user's sessions see it."""

    def __init__(self, base: Path) -> None:
        self.base = base
        for folder in ("run", "state", "mail", "mail/cur", "mail/new", "mail/tmp"):
            (base / folder).mkdir(parents=True)
        (base / "mail/dovecot-keywords").write_text("0 urgent\n")
        (base / "dovecot.conf").write_text(CONFIGURATION.format(base=base))
        self.put(f"cur/{NAME}:2,RS", "old")
        self.put("cur/2.M1P1.main:2,", "other")
        self._own()

    def _own(self) -> None:
        user = pwd.getpwnam("mail")
        for path in (self.base, *self.base.rglob("*")):
            os.chown(path, user.pw_uid, user.pw_gid)

    def put(self, path: str, name: str) -> None:
        (self.base / "mail" / path).write_text(TEXT.format(name=name))

    def ask(self, act: Any, *, dry: bool = False, **request: Any) -> dict[str, Any]:
        argv = ["env", "USER=anna", f"HOME={self.base}", IMAP, "-c", str(self.base / "dovecot.conf")]
        with ImapSession("anna", argv, answer_seconds=20.0) as session:
            found: dict[str, Any] = act(session, {"folder": "INBOX", **request}, dry)
            return found

    def add(self, name: str, *, dry: bool = False, folder: str = "INBOX") -> dict[str, Any]:
        content = base64.b64encode(TEXT.format(name=name).encode()).decode()
        request = {"content": content, "flags": ["\\Seen", "\\Deleted", "urgent"], "received": 1_700_000_000}
        return self.ask(answers._add, dry=dry, **{**request, "folder": folder})

    def files(self) -> list[str]:
        """Letters of flags by the message's own name, of all folders."""
        found = []
        for path in [*self.base.glob("mail/cur/*"), *self.base.glob("mail/.*/cur/*"), *self.base.glob("mail/*/new/*")]:
            name = path.read_text().partition("Subject: ")[2].splitlines()[0]
            found.append(f"{name} {path.name.partition(':2,')[2]}".rstrip())
        return sorted(found)


@pytest.fixture
def box() -> Iterator[Box]:
    base = Path("/var/tmp") / f"holdfast-merge-{os.getpid()}"  # below /tmp, pytest's folders are root's alone
    shutil.rmtree(base, ignore_errors=True)
    try:
        yield Box(base)
    finally:
        shutil.rmtree(base, ignore_errors=True)


def test_a_message_is_added_once_with_its_flags_and_taken_back_by_its_number(box: Box) -> None:
    assert box.add("lone", dry=True) == {"outcome": "would be added", "message_id": "lone@x.test"}
    assert box.files() == ["old RS", "other"]
    added = box.add("lone")
    assert added["outcome"] == "added"
    assert box.files() == ["lone Sa", "old RS", "other"], "a deletion is no flag to be merged"
    assert box.add("lone")["outcome"] == THERE
    assert box.add("old")["outcome"] == THERE
    assert box.add("filed", folder="Work/2026")["outcome"] == "added"
    other = [[added["uid"], "another@x.test"], ["", "x"]]
    assert box.ask(answers._take_back, messages=other, flags=[])["messages"] == [
        *(GONE, "its number is not known: delete it by hand")
    ]
    mine = [[added["uid"], "lone@x.test"]]
    assert box.ask(answers._take_back, dry=True, messages=mine, flags=[])["messages"] == ["taken back"]
    assert "lone Sa" in box.files()
    assert box.ask(answers._take_back, messages=mine, flags=[])["messages"] == ["taken back"]
    assert box.files() == ["filed Sa", "old RS", "other"]


def test_flags_are_changed_where_that_changes_anything_and_changed_back(box: Box) -> None:
    changes = [[NAME, ["\\Flagged", "\\Seen", "urgent"], ["\\Answered"]], ["nobody", ["\\Seen"], []]]
    planned = box.ask(answers._set_flags, dry=True, changes=changes)["outcomes"]
    assert planned == [["would be merged", ["\\Flagged", "urgent"], ["\\Answered"]], [GONE, [], []]]
    assert box.files() == ["old RS", "other"]
    done = box.ask(answers._set_flags, changes=changes)["outcomes"]
    assert done[0] == ["merged", ["\\Flagged", "urgent"], ["\\Answered"]], "\\Seen was set by both"
    assert box.files() == ["old FSa", "other"]
    assert box.ask(answers._set_flags, changes=changes)["outcomes"][0] == [THERE, [], []]
    box.ask(answers._set_flags, changes=[[NAME, [], ["urgent"]]])  # its user, since
    back = [[NAME, done[0][1], done[0][2]], ["nobody", ["\\Seen"], []]]
    assert box.ask(answers._take_back, messages=[], flags=back)["flags"] == ["taken back", GONE]
    assert box.files() == ["old RS", "other"], "what its user changed since stays"
    assert box.ask(answers._take_back, messages=[], flags=back)["flags"][0] == "changed since: left as it is"


def test_a_folder_that_is_gone_is_named_and_no_words_get_into_a_command(box: Box) -> None:
    gone = box.ask(answers._set_flags, folder="Gone", changes=[[NAME, ["\\Seen"], []]])
    assert gone["outcomes"] == [[GONE, [], []]]
    asked = [[NAME, ["x) BODY[]", "\\Seen\r\nb LOGOUT"], []]]
    assert box.ask(answers._set_flags, changes=asked)["outcomes"] == [[THERE, [], []]]
