"""The listing of a tree that promise 3 is judged by: it sees every difference, and nothing that is left out."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from holdfast.drill.checkers.findings import What
from holdfast.drill.checkers.prefix import prefix
from holdfast.drill.two_trees import STORE, listed

MESSAGE = "cur/1.M1P1.main,S=5,W=6:2,S"


def mailbox(root: Path) -> Path:
    """Twice the same is the same in every time, too."""
    for folder in ("cur", "new", "tmp"):
        (root / "user" / folder).mkdir(parents=True)
    for name, text in ((MESSAGE, "hello"), ("dovecot-uidlist", "3 V1"), ("dovecot-keywords", "0 todo\n")):
        (root / "user" / name).write_text(text)
        os.utime(root / "user" / name, ns=(1, 1))
    (root / "user/link").symlink_to("cur")
    os.utime(root / "user/link", ns=(1, 1), follow_symlinks=False)
    return root


def found(tmp_path: Path, changed: Path) -> list[What]:
    sides = [listed(root, STORE, ["user"]) for root in (tmp_path / "one", changed)]
    return [difference.what for difference in prefix("store", *sides)]


def two(tmp_path: Path) -> Path:
    mailbox(tmp_path / "one")
    return mailbox(tmp_path / "two")


def test_equal_trees_are_equal_whatever_lies_in_what_is_left_out(tmp_path: Path) -> None:
    other = two(tmp_path)
    for name in ("dovecot.index.cache", "dovecot-uidlist.lock", "tmp/1.M1P1.main"):
        (other / "user" / name).write_text("only here")
    assert found(tmp_path, other) == []


@pytest.mark.parametrize("change", ["content", "time", "name", "mode", "gone", "link"])
def test_every_difference_is_seen(tmp_path: Path, change: str) -> None:
    other = two(tmp_path)
    path = other / "user" / MESSAGE
    match change:
        case "content":
            path.write_text("jello")
            os.utime(path, ns=(1, 1))
        case "time":
            os.utime(path, ns=(1, 2))
        case "name":
            path.rename(path.with_name(path.name + "a"))
        case "mode":
            path.chmod(0o600)
        case "gone":
            path.unlink()
        case "link":
            (other / "user/link").unlink()
            (other / "user/link").symlink_to("new")
            os.utime(other / "user/link", ns=(1, 1), follow_symlinks=False)
    assert set(found(tmp_path, other)) == {What.TREE}
