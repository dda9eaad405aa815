"""What is left out of a copy of the store: nothing that a second Dovecot would miss, whatever folders are called."""

from __future__ import annotations

import os
import shutil
import smtplib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import imapclient
import pytest

from holdfast.mail.dovecot_files import store_tree
from holdfast.trees.spec import Tree, TreeSpec
from tests.mail.boxes import MAIL_UID, PASSWORD, USER, DovecotBox

AWKWARD_FOLDERS = ("tmp", "notes.lock", "cur", ".temp", "storage", "Entwürfe", "dovecot.index.cache x")
"""Names that look like files a copy leaves out; some formats refuse some, and those are not made."""


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="hf-", dir="/tmp") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def client_of(box: DovecotBox) -> Any:
    client: Any = imapclient.IMAPClient("127.0.0.1", port=box.imap_port, ssl=False, timeout=10)
    client.login(USER, PASSWORD)
    client.enable("QRESYNC")
    return client


def deliver(box: DovecotBox, count: int) -> None:
    with smtplib.LMTP("127.0.0.1", box.lmtp_port) as connection:
        for number in range(count):
            connection.sendmail("x@example.net", [USER], f"Subject: {number}\r\n\r\n{'text ' * 200}\r\n")


def use(box: DovecotBox) -> None:
    """Everything clients do that makes, changes, renames or removes files."""
    deliver(box, 8)
    client = client_of(box)
    separator = client.namespace().personal[0][1]
    client.select_folder("INBOX")
    uids = client.search()
    made = []
    for name in (*AWKWARD_FOLDERS, f"temp{separator}work", "Old"):
        try:
            client.create_folder(name)
        except imapclient.exceptions.IMAPClientError:
            continue
        made.append(name)
        client.append(name, b"Subject: " + name.encode() + b"\r\n\r\nbody\r\n", flags=[b"\\Flagged", b"keyword"])
    assert "Old" in made
    client.copy(uids[:3], "Old")
    client.move(uids[3:4], "Old")
    client.add_flags(uids[:2], [b"\\Seen", b"other"])
    client.add_flags(uids[5:6], [b"\\Deleted"])
    client.expunge()
    client.subscribe_folder("Old")
    client.rename_folder("Old", "New")
    client.logout()
    deliver(box, 2)


def state(box: DovecotBox) -> dict[str, Any]:
    """What a client with QRESYNC state would notice, by folder."""
    client = client_of(box)
    found: dict[str, Any] = {"subscribed": sorted(name for _, _, name in client.list_sub_folders())}
    for flags, _, name in client.list_folders():
        if {b"\\Noselect", b"\\NonExistent"} & set(flags):
            found[name] = "a folder of folders only"
            continue
        selected = client.select_folder(name, readonly=True)
        messages = client.fetch(client.search(), ["FLAGS", "INTERNALDATE", "BODY.PEEK[]"])
        found[name] = (
            selected[b"UIDVALIDITY"],
            selected[b"UIDNEXT"],
            selected[b"HIGHESTMODSEQ"],
            {uid: (sorted(m[b"FLAGS"]), m[b"INTERNALDATE"], m[b"BODY[]"]) for uid, m in messages.items()},
        )
    client.logout()
    return found


def copy(spec: TreeSpec, target: Path) -> set[str]:
    """Copy what the tree holds. Returns the names of files it left out."""
    tree, left_out = Tree(spec), set()
    for directory, folders, files in os.walk(spec.root):
        relative = os.path.relpath(directory, spec.root)
        for name in list(folders):
            path = os.fsencode(os.path.normpath(os.path.join(relative, name)))
            if tree.excluded(path, directory=True):
                left_out.add(name + "/")
                folders.remove(name)
            else:
                (target / os.fsdecode(path)).mkdir()
                os.chown(target / os.fsdecode(path), MAIL_UID, MAIL_UID)
        for name in files:
            path = os.fsencode(os.path.normpath(os.path.join(relative, name)))
            if tree.excluded(path, directory=False):
                left_out.add(name)
            else:
                shutil.copy2(os.path.join(directory, name), target / os.fsdecode(path), follow_symlinks=False)
                os.chown(target / os.fsdecode(path), MAIL_UID, MAIL_UID, follow_symlinks=False)
    return left_out


@pytest.mark.system
@pytest.mark.skipif(os.geteuid() != 0, reason="mail daemons need root")
@pytest.mark.parametrize("driver", ["maildir", "sdbox", "mdbox"])
@pytest.mark.parametrize("copy_cache", [False, True])
async def test_a_second_dovecot_on_the_copy_shows_the_same(folder: Path, driver: str, copy_cache: bool) -> None:
    first = DovecotBox(folder / "first", driver)
    second = DovecotBox(folder / "second", driver)
    await first.service.start()
    try:
        use(first)
        expected = state(first)
        spec = store_tree("store", str(first.store), drivers=frozenset({driver}), copy_cache=copy_cache)
        left_out = copy(spec, second.store)
        await second.service.start()
        assert state(second) == expected
    finally:
        await first.service.stop(force=True)
        await second.service.stop(force=True)
    assert left_out == (set() if copy_cache else {"dovecot.index.cache"})
    log = (second.folder / "dovecot.log").read_text()
    assert "Error" not in log
    assert "orrupt" not in log


@pytest.mark.parametrize(
    ("path", "left_out"),
    [
        ("example.org/alice/Maildir/tmp/1795359476.M992095P8842.vm", True),
        ("example.org/alice/Maildir/.tmp/tmp/1795359476.M1P2Q3.vm", True),
        ("alice/tmp/1795359476.P8842.vm", True),
        ("alice/Maildir/new/1795359476.M992095P8842.vm,S=2121,W=2284", False),
        ("alice/Maildir/dovecot-uidlist.lock", True),
        ("alice/Maildir/dovecot-uidlist", False),
        ("alice/Maildir/dovecot-keywords.lock", True),
        ("alice/mailboxes.lockcfeb095774edaad3", True),
        ("alice/dovecot.index.log.newlock", True),
        ("alice/dovecot.index.backup.tmp", True),
        ("alice/dovecot.index.backup", False),
        ("alice/dovecot.index.log.2", False),
        ("alice/mdbox/storage/dovecot.map.index.tmp", True),
        ("alice/mdbox/storage/.temp.1795359493.P8908Q0M846829.vm", True),
        ("alice/sieve/tmp/main_1795359491.M201047P8883.vm.sieve", True),
        ("alice/.dovecot.svbin.vm.8875.602055b9c838191b", True),
        ("alice/.dovecot.svbin", False),
        ("alice/sieve/main.sieve", False),
    ],
)
def test_files_left_out_by_name(path: str, left_out: bool) -> None:
    tree = Tree(store_tree("store", "/srv/mail", drivers=frozenset({"maildir", "mdbox"})))
    assert tree.excluded(path.encode(), directory=False) is left_out


@pytest.mark.parametrize("name", ["tmp", ".tmp", ".notes.lock", "mailboxes/notes.lock", ".temp.work", "x.tmp", "cur"])
def test_a_folder_is_never_left_out(name: str) -> None:
    tree = Tree(store_tree("store", "/srv/mail", drivers=frozenset()))
    assert not tree.excluded(f"alice/{name}".encode(), directory=True)


def test_what_grows_and_what_refers_to_others() -> None:
    tree = Tree(store_tree("store", "/srv/mail", drivers=frozenset({"mdbox"}), copy_cache=True))
    for path in (b"a/dovecot.index.log", b"a/mdbox/storage/m.12", b"a/dovecot-uidlist"):
        assert tree.appended(path)
    for path in (b"a/dovecot.index", b"a/dovecot.index.cache", b"a/sieve/m.sieve"):
        assert not tree.appended(path)
    assert tree.read_first(b"a/dovecot.index")
    assert tree.read_first(b"a/storage/dovecot.map.index.log")
    assert not tree.read_first(b"a/dovecot.index.cache")  # the index refers to it, not it to the index
