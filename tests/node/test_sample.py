"""A sample of a copy: accounts found by chance, whatever their number; every message beside what the log says of it."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from holdfast.mail.mailboxes import Accounts, Format
from holdfast.node import sample
from holdfast.node.sample import Sampler, Taken, choose
from holdfast.trees.index import Index
from holdfast.trees.spec import Tree, TreeSpec
from tests.trees.small_scan import scan_into

SEED = 7
USERS = ("anna", "ben", "cleo", "dora")


@pytest.fixture
def store(tmp_path: Path) -> TreeSpec:
    root = tmp_path / "vmail"
    for user in USERS:
        home = root / "example.test" / user
        for folder in ("cur", "new", "tmp", ".Work/cur", ".Work/new"):
            (home / "Maildir" / folder).mkdir(parents=True)
        for number in range(60):
            (home / "Maildir/cur" / f"{number}.x:2,S").write_text(f"Subject: {user} {number}\n\nhello\n")
        (home / "Maildir/dovecot-uidlist").write_text("3 V1 N1\n")
        (home / ".dovecot.sieve").write_text("keep;\n")
    (root / ".holdfast/aside/old/0/example.test/gone/Maildir/cur").mkdir(parents=True)
    (root / ".holdfast/aside/old/0/example.test/gone/Maildir/new").mkdir(parents=True)
    return TreeSpec("store", str(root))


def take(tmp_path: Path, store: TreeSpec) -> tuple[Taken, Path]:
    index = Index.open(tmp_path / "index.db")
    scan_into(index, (Tree(store),), 1)
    spoilt = Path(store.root, "example.test/anna/Maildir/cur/0.x:2,S")
    spoilt.write_text("Subject: somebody wrote here\n")
    Path(store.root, "example.test/anna/Maildir/new/stranger").write_text("Subject: not logged\n")
    chance = random.Random(SEED)
    chosen = choose([store], Accounts(), chance)
    stage = tmp_path / "stage"
    stage.mkdir()
    taken = Sampler(stage, [store], chosen, chance).take(index)
    index.close()
    return taken, Path(taken.binds[0][0])


def test_accounts_are_found_whatever_their_number_and_never_what_stands_aside(store: TreeSpec) -> None:
    chosen = choose([store], Accounts(), random.Random(SEED))
    assert len({each.account for each in chosen}) == sample.ACCOUNTS
    assert {each.account for each in chosen} <= {f"{user}@example.test" for user in USERS}
    assert {(each.format, os.path.basename(each.mail)) for each in chosen} == {(Format.MAILDIR, b"Maildir")}
    assert choose([], Accounts(), random.Random(SEED)) == []


def test_of_an_account_some_messages_are_taken_and_all_that_belongs_to_them(
    tmp_path: Path, store: TreeSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample, "ACCOUNTS", len(USERS))
    taken, place = take(tmp_path, store)
    assert len(taken.accounts) == len(USERS)
    for each in taken.accounts:
        home = place / os.path.relpath(each.directory, store.root)
        assert len(list(home.glob("cur/*")) + list(home.glob("new/*"))) == sample.MESSAGES
        assert (home / "dovecot-uidlist").read_text() == "3 V1 N1\n"
        assert (home / ".Work/new").is_dir()
        assert (home.parent / ".dovecot.sieve").exists()
    assert not (place / ".holdfast").exists()


def test_a_message_that_is_not_what_the_log_says_is_named(
    tmp_path: Path, store: TreeSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample, "ACCOUNTS", len(USERS))
    monkeypatch.setattr(sample, "MESSAGES", 1000)
    taken, _ = take(tmp_path, store)
    assert sorted(taken.strange) == [
        "store/example.test/anna/Maildir/cur/0.x:2,S: its bytes are not those of the log",
        "store/example.test/anna/Maildir/new/stranger: the log knows no such file",
    ]
