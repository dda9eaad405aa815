"""What the port promises, on every store, as people get it: with retries around (rclone breaks the reading of what is
put a second time in that moment)."""

from __future__ import annotations

import random
import secrets
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast.vault import backup, restore
from holdfast.vault.abilities import may_delete
from holdfast.vault.backends.folder import FolderBackend
from holdfast.vault.backends.memory import MemoryBackend
from holdfast.vault.backends.s3 import S3Backend, S3Keys
from holdfast.vault.backends.sftp import SftpAccount, SftpBackend
from holdfast.vault.copy import execute_copy, plan_copy
from holdfast.vault.patient import PatientBackend
from holdfast.vault.port import Backend, ObjectExists, ObjectMissing
from holdfast.vault.repository import init_vault, open_vault
from holdfast.vault.verify import EVERYTHING, verify
from tests.vault import site
from tests.vault.backends import servers

KINDS = ("memory", "folder", "moto", "rclone", "sftp", "sftp add-only")
CLOCKS_APART_SECONDS = 5.0


def s3(server: servers.S3Server, keys: tuple[str, str] | None = None) -> S3Backend:
    prefix = secrets.token_hex(4)
    return S3Backend(servers.BUCKET, prefix, S3Keys(*(keys or server.keys)), endpoint=server.endpoint)


def sftp(server: servers.SftpServer) -> SftpBackend:
    account = SftpAccount("root", "127.0.0.1", server.port, server.key, server.known_hosts)
    return SftpBackend(account, f"{server.folder}/{secrets.token_hex(4)}/vault", create=True)


def add_only(server: servers.SftpServer) -> SftpBackend:
    account = SftpAccount(servers.APPEND_ONLY_USER, "127.0.0.1", server.port, server.key, server.known_hosts)
    return SftpBackend(account, f"{server.add_only}/{secrets.token_hex(4)}", create=True)


@pytest.fixture(params=KINDS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Backend]:
    backend: Backend
    match request.param:
        case "memory":
            backend = MemoryBackend(clock=time.time)
        case "folder":
            backend = FolderBackend(tmp_path / "vault", create=True)
        case "moto":
            backend = s3(request.getfixturevalue("moto"))
        case "rclone":
            backend = s3(request.getfixturevalue("rclone"))
        case "sftp":
            backend = sftp(request.getfixturevalue("sshd"))
        case _:
            backend = add_only(request.getfixturevalue("sshd"))
    patient = PatientBackend(backend, wait=lambda seconds: time.sleep(seconds / 50))
    yield patient
    patient.close()


@pytest.fixture
def deletes(request: pytest.FixtureRequest) -> None:
    if request.node.callspec.params["store"] == "sftp add-only":
        pytest.skip("this account may not delete")


def test_what_was_put_is_there(store: Backend) -> None:
    data = random.Random(1).randbytes(200_000)
    store.put("packs/0a", data)
    store.put("empty", b"")
    assert store.get("packs/0a") == data
    assert store.get("empty") == b""
    assert (store.size("packs/0a"), store.size("empty")) == (200_000, 0)
    assert store.size("packs/none") is None
    assert store.size("packs") is None


def test_parts_of_an_object(store: Backend) -> None:
    store.put("packs/0a", b"0123456789")
    assert store.get("packs/0a", 3) == b"3456789"
    assert store.get("packs/0a", 3, 4) == b"3456"
    assert store.get("packs/0a", 8, 4) == b"89"
    assert store.get("packs/0a", 10) == store.get("packs/0a", 99, 5) == store.get("packs/0a", 2, 0) == b""


def test_what_is_missing_is_said(store: Backend) -> None:
    store.put("packs/0a", b"x")
    for name, start, length in (
        ("packs/0b", 0, None),
        ("packs/0b", 1, 2),
        ("packs/0b", 0, 0),
        ("nothing/here", 0, None),
    ):
        with pytest.raises(ObjectMissing):
            store.get(name, start, length)


def test_objects_are_written_once(store: Backend) -> None:
    store.put("packs/0a", b"first")
    store.put("packs/0a", b"first")
    for other in (b"other", b"longer than that", b""):
        with pytest.raises(ObjectExists):
            store.put("packs/0a", other)
    assert store.get("packs/0a") == b"first"


def test_lists_tell_names_sizes_and_times(store: Backend) -> None:
    assert list(store.list("")) == []
    before = time.time()
    sizes = {"vault.json": 3, "packs/0a": 1, "packs/0b": 0, "packs/1a": 2, "packs-old/0a": 4, "deep/er/x": 5}
    for name, size in sizes.items():
        store.put(name, b"x" * size)
    assert {found.name: found.size for found in store.list("")} == sizes
    assert {found.name for found in store.list("packs/")} == {"packs/0a", "packs/0b", "packs/1a"}
    assert {found.name for found in store.list("packs/0")} == {"packs/0a", "packs/0b"}
    assert {found.name for found in store.list("packs")} == {name for name in sizes if name.startswith("packs")}
    assert {found.name for found in store.list("deep/e")} == {"deep/er/x"}
    assert list(store.list("none/")) == []
    for found in store.list(""):
        assert before - CLOCKS_APART_SECONDS < found.modified_at_seconds < time.time() + CLOCKS_APART_SECONDS


@pytest.mark.usefixtures("deletes")
def test_what_was_deleted_is_gone(store: Backend) -> None:
    store.put("packs/0a", b"x")
    store.put("packs/0b", b"y")
    store.delete("packs/0a")
    store.delete("packs/0a")
    store.delete("nothing/here")
    assert [found.name for found in store.list("")] == ["packs/0b"]
    with pytest.raises(ObjectMissing):
        store.get("packs/0a")
    store.put("packs/0a", b"other")
    assert store.get("packs/0a") == b"other"


def test_many_threads_at_once(store: Backend) -> None:
    chance = random.Random(2)
    contents = {f"packs/{number:02}": chance.randbytes(60_000) for number in range(6)}
    errors: list[BaseException] = []

    def work(turn: int) -> None:
        try:
            for name in sorted(contents, key=lambda name: hash((name, turn))):
                store.put(name, contents[name])
                assert store.get(name, 100, 50) == contents[name][100:150]
        except BaseException as error:
            errors.append(error)
            raise

    threads = [threading.Thread(target=work, args=(turn,)) for turn in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == []
    assert {found.name: found.size for found in store.list("packs/")} == dict.fromkeys(contents, 60_000)


def test_copied_there(store: Backend, tmp_path: Path) -> None:
    root = site.make_store(tmp_path / "store", accounts=3, messages=2)
    near = FolderBackend(tmp_path / "near", create=True)
    key = init_vault(near, (site.RECIPIENT,))
    with open_vault(near, writer=key) as vault:
        backup.backup_trees(vault, [site.tree(root)], "main", clocks=site.clocks())
    execute_copy(near, store, plan_copy(near, store))
    assert plan_copy(near, store).objects == 0
    assert {found.name: found.size for found in store.list("")} == {found.name: found.size for found in near.list("")}
    with open_vault(store, identities=(site.IDENTITY,)) as vault:
        assert verify(vault, EVERYTHING).findings == []


def test_a_whole_vault(store: Backend, tmp_path: Path) -> None:
    root = site.make_store(tmp_path / "store", accounts=3, messages=4)
    key = init_vault(store, (site.RECIPIENT,))
    with open_vault(store, writer=key, identities=(site.IDENTITY,)) as vault:
        made = backup.backup_trees(vault, [site.tree(root)], "main", clocks=site.clocks())
        restore.restore_path(vault, made.snapshot.tree("store"), b"", tmp_path / "out")
        assert verify(vault, EVERYTHING).findings == []
    assert site.picture(tmp_path / "out") == site.picture(root)


def test_whether_the_account_may_delete_is_known(store: Backend, request: pytest.FixtureRequest) -> None:
    store.put("packs/0a", b"x")
    assert may_delete(store) == (request.node.callspec.params["store"] != "sftp add-only")
    assert [found.name for found in store.list("")] == ["packs/0a"]


def test_an_s3_account_that_may_only_add_is_known(moto: servers.S3Server) -> None:
    store = s3(moto, moto.add_only)
    store.put("packs/0a", b"x")
    assert not may_delete(store)
