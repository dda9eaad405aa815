"""What only a folder has: mount points, full and read-only disks, leftovers, permissions."""

from __future__ import annotations

import errno
import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from holdfast.vault.backends.folder import TEMPORARY_FOLDER, TEMPORARY_SECONDS_MAX, FolderBackend
from holdfast.vault.port import BackendFull, BackendRefused, BackendUnavailable, ObjectExists, ObjectMissing

ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")
VAULT = b'{"id": "one"}'


@contextmanager
def mounted(at: Path, options: str = "size=1m") -> Iterator[None]:
    at.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", at], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", at], check=True)


def made(root: Path) -> FolderBackend:
    backend = FolderBackend(root, create=True)
    backend.put("vault.json", VAULT)
    return backend


def test_a_folder_without_a_vault_is_not_written_to(tmp_path: Path) -> None:
    backend = FolderBackend(tmp_path)
    with pytest.raises(BackendUnavailable, match="holds no vault"):
        backend.put("packs/a", b"x")
    with pytest.raises(BackendUnavailable, match="is not there"):
        FolderBackend(tmp_path / "gone").size("vault.json")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ObjectMissing):
        backend.get("vault.json")


@ROOT
def test_an_unmounted_disk_is_neither_written_to_nor_taken_for_empty(tmp_path: Path) -> None:
    at = tmp_path / "disk"
    with mounted(at):
        backend = made(at)
        backend.put("packs/a", b"x")
    for call in (
        lambda: backend.put("packs/b", b"x"),
        lambda: backend.list("packs/"),
        lambda: backend.size("packs/a"),
        lambda: backend.get("packs/a"),
        lambda: backend.delete("packs/a"),
    ):
        with pytest.raises(BackendUnavailable, match="holds no vault"):
            call()
    assert list(at.iterdir()) == []
    with mounted(at):
        FolderBackend(at, create=True).put("vault.json", b'{"id": "two"}')
        with pytest.raises(BackendUnavailable, match="another vault"):
            backend.put("packs/b", b"x")
    with mounted(at):
        FolderBackend(at, create=True).put("vault.json", VAULT)
        backend.put("packs/b", b"x")


@ROOT
def test_a_full_disk_is_named_and_leaves_nothing_half(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk"):
        backend = made(tmp_path / "disk")
        backend.put("packs/a", b"x" * 500_000)
        with pytest.raises(BackendFull, match="No space left"):
            backend.put("packs/b", b"y" * 800_000)
        assert backend.size("packs/b") is None
        assert list((tmp_path / "disk" / TEMPORARY_FOLDER).iterdir()) == []
        assert [found.name for found in backend.list("packs/")] == ["packs/a"]


@ROOT
def test_a_read_only_target_is_named_and_can_be_read(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk"):
        made(tmp_path / "disk").put("packs/a", b"x")
        subprocess.run(["mount", "-o", "remount,ro", tmp_path / "disk"], check=True)
        backend = FolderBackend(tmp_path / "disk")
        with pytest.raises(BackendRefused, match="Read-only"):
            backend.put("packs/b", b"y")
        with pytest.raises(BackendRefused, match="Read-only"):
            backend.delete("packs/a")
        assert backend.get("packs/a") == b"x"


def test_leftovers_of_killed_writers_go_after_a_day_and_are_never_listed(tmp_path: Path) -> None:
    backend = made(tmp_path)
    old, young = tmp_path / TEMPORARY_FOLDER / "old", tmp_path / TEMPORARY_FOLDER / "young"
    old.write_bytes(b"half")
    young.write_bytes(b"half")
    long_ago = young.stat().st_mtime - TEMPORARY_SECONDS_MAX - 60
    os.utime(old, (long_ago, long_ago))
    FolderBackend(tmp_path).put("packs/a", b"x")
    assert not old.exists()
    assert young.exists()
    assert {found.name for found in backend.list("")} == {"vault.json", "packs/a"}


def test_objects_are_private_and_not_writable(tmp_path: Path) -> None:
    made(tmp_path / "new" / "deep").put("packs/a", b"x")
    assert (tmp_path / "new" / "deep" / "packs" / "a").stat().st_mode & 0o777 == 0o400
    assert (tmp_path / "new" / "deep" / "packs").stat().st_mode & 0o777 == 0o700


def test_of_two_writers_of_one_name_one_is_told(tmp_path: Path) -> None:
    backend = made(tmp_path)
    outcomes: list[str] = []

    def write(data: bytes) -> None:
        try:
            FolderBackend(tmp_path).put("packs/a", data)
            outcomes.append("written")
        except ObjectExists:
            outcomes.append("exists")

    contents = [bytes((number,)) * 300_000 for number in range(6)]
    threads = [threading.Thread(target=write, args=(content,)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(outcomes) == ["exists"] * 5 + ["written"]
    assert backend.get("packs/a") in contents


def test_without_hard_links_it_renames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    backend = made(tmp_path)
    backend.put("packs/a", b"x")
    backend.put("packs/a", b"x")
    with pytest.raises(ObjectExists):
        backend.put("packs/a", b"y")
    assert backend.get("packs/a") == b"x"
    assert list((tmp_path / TEMPORARY_FOLDER).iterdir()) == []


def test_an_answer_lost_by_nfs_is_success(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server made the link, the client repeated the request and hears that the name is taken."""
    link = os.link

    def made_and_told_twice(*args: str, **options: int) -> None:
        link(*args, **options)  # type: ignore[arg-type]
        raise FileExistsError(errno.EEXIST, "exists")

    backend = made(tmp_path)
    monkeypatch.setattr(os, "link", made_and_told_twice)
    backend.put("packs/a", b"x")
    assert backend.get("packs/a") == b"x"


def test_everything_is_synced_before_a_put_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file before it gets its name, the folders after: by what was synced when."""
    steps: list[str] = []
    fsync, link = os.fsync, os.link

    def note_sync(fd: int) -> None:
        steps.append("sync " + os.readlink(f"/proc/self/fd/{fd}").removeprefix(str(tmp_path)))
        fsync(fd)

    def note_link(*args: str, **options: int) -> None:
        steps.append("link")
        link(*args, **options)  # type: ignore[arg-type]

    backend = made(tmp_path)
    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(os, "link", note_link)
    backend.put("packs/a", b"x")
    at = steps.index("link")
    assert steps[0] == "sync "  # packs/ was made in the root
    assert steps[at - 1].startswith("sync /" + TEMPORARY_FOLDER)
    assert steps[at + 1 :] == ["sync /packs"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_what_root_writes_belongs_to_whom_the_folder_belongs(tmp_path: Path) -> None:
    root = tmp_path / "vault"
    root.mkdir()
    os.chown(root, 65534, 65534)
    backend = FolderBackend(root, create=True)
    backend.put("vault.json", b"{}")
    backend.put("packs/aa", b"pack")
    assert {path.stat().st_uid for path in root.rglob("*")} == {65534}
