"""Exit statuses of the vault's commands tell the truth, each with its real fault."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import apsw
import pyrage
import pytest

from holdfast.console.vault_open import INTERRUPTED
from holdfast.errors import ExitStatus
from holdfast.vault.backends.folder import FolderBackend
from holdfast.vault.backup import Clocks, backup_trees
from holdfast.vault.catalog import BUSY_MILLISECONDS
from holdfast.vault.keep import KeepRules
from holdfast.vault.keys import WriterKey
from holdfast.vault.prune import execute_prune, plan_prune
from holdfast.vault.repository import open_vault
from tests.console.vault_site import Desk, as_user
from tests.vault.site import picture, tree

NOBODY: Final = 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounts and users need root")


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    desk = Desk(tmp_path).ready()
    desk.backup()
    return desk


@pytest.fixture
def public_desk() -> Iterator[Desk]:
    """Where others than root may go; given to nobody."""
    with tempfile.TemporaryDirectory(prefix="holdfast-desk-") as base:
        desk = Desk(Path(base)).ready()
        for folder, _, names in os.walk(base):
            for path in (folder, *(os.path.join(folder, name) for name in names)):
                os.chown(path, NOBODY, NOBODY)
        yield desk


@contextmanager
def disk(at: Path, size: str) -> Iterator[None]:
    """A small filesystem of its own."""
    at.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(at)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(at)], check=True)


def objects(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# -- done, with something named ---------------------------------------------------------------------------------------


@needs_root
def test_a_file_that_cannot_be_read_is_named_and_the_rest_is_safe(public_desk: Desk) -> None:
    secret = public_desk.write("cur/3.host:2,")
    secret.chmod(0o000)
    with as_user(NOBODY):
        made = public_desk.backup(ExitStatus.DIFFERENCES)
        assert [(gap["path"], gap["reason"]) for gap in made["gaps"]] == [("cur/3.host:2,", "Permission denied")]
        assert "cur/3.host:2,: Permission denied" in public_desk.done(
            "vault", "backup", str(public_desk.mail), status=ExitStatus.DIFFERENCES
        )
        restored = public_desk.json("restore", "--to", str(public_desk.base / "back"), status=ExitStatus.DIFFERENCES)
    assert restored["restored_files"] == 2
    assert restored["gaps"] == ["maildir/cur/3.host:2,: Permission denied"]


def test_a_tree_that_is_not_there_is_named(desk: Desk) -> None:
    """Of a site's trees; a path that was typed is refused at once."""
    with pytest.raises(AssertionError, match="is not there"):
        desk.done("vault", "backup", str(desk.mail), str(desk.base / "gone"))
    Path(desk.environment["HOLDFAST_CONFIG"]).write_text(
        f"""site = "example"
machine = "main"
machines = [{{ name = "main", role = "mail", address = "127.0.0.1" }}]
[mail]
services = []
state_directory = "{desk.base / "state"}"
trees = [{{ name = "mail", root = "{desk.mail}" }}, {{ name = "calendars", root = "{desk.base / "gone"}" }}]
"""
    )
    made = desk.json("vault", "backup", status=ExitStatus.DIFFERENCES)
    assert any(gap["tree"] == "calendars" and "No such file" in gap["reason"] for gap in made["gaps"])
    assert {"mail", "config", "software"} >= set(made["trees"]) >= {"mail", "software"}
    assert made["machine"] == "main"
    said = desk.json("restore", "--to", str(desk.base / "back"), status=ExitStatus.DIFFERENCES)
    assert any("calendars" in gap for gap in said["gaps"])


def test_what_no_file_can_hold_is_counted(desk: Desk) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(desk.mail / "s"))
        assert desk.backup()["skipped"] == 1


@needs_root
def test_what_does_not_come_back_exactly_is_told_by_reason(public_desk: Desk) -> None:
    for number in range(30):
        os.chown(public_desk.write(f"new/{number}.host"), 54321, 54321)
    public_desk.backup()
    with as_user(NOBODY):
        # The cache is root's: a reader does without.
        restored = public_desk.run("restore", "--to", str(public_desk.base / "back"))
        said = public_desk.done("vault", "backup", str(public_desk.mail), status=ExitStatus.ENVIRONMENT)
        assert "Remove it, give it to this user" in said
    assert restored.exit_code == ExitStatus.DIFFERENCES, restored.output
    lines = [line for line in restored.stderr.splitlines() if "only root can give it to them" in line]
    assert len(lines) < 5
    assert any("(and 29 more)" in line for line in lines)


def test_damage_is_named_by_verify_and_by_restore(desk: Desk) -> None:
    pack = max((desk.location / "packs").rglob("*"), key=lambda path: path.stat().st_size)
    data = bytearray(pack.read_bytes())
    data[300] ^= 1
    pack.chmod(0o600)
    pack.write_bytes(data)
    found = desk.json("vault", "verify", "--all", status=ExitStatus.DIFFERENCES)["findings"]
    assert {one["object"] for one in found if one["object"]} == {f"packs/{pack.name}"}


def test_a_missing_pack_is_named_as_files(desk: Desk) -> None:
    for pack in (desk.location / "packs").iterdir():
        if desk.run("vault", "show", "cur").exit_code == 0:
            shutil.move(pack, desk.base / pack.name)
            if desk.run("vault", "show", "cur").exit_code != 0:  # it was the one with the directories
                shutil.move(desk.base / pack.name, pack)
    found = desk.json("vault", "verify", status=ExitStatus.DIFFERENCES)["findings"]
    assert {one["path"] for one in found if one["path"]} == {"cur/1.host:2,S", "cur/2.host:2,"}
    restored = desk.json("restore", "--to", str(desk.base / "back"), status=ExitStatus.DIFFERENCES)
    assert {one["path"] for one in restored["failures"]} == {"cur/1.host:2,S", "cur/2.host:2,"}


# -- not done: keys, place, format ------------------------------------------------------------------------------------


def _no_identity(desk: Desk) -> None:
    (desk.base / "vaults" / "vault.identity").unlink()


def _no_key(desk: Desk) -> None:
    (desk.base / "vaults" / "vault.key").unlink()


def _other_keys(desk: Desk) -> None:
    desk.done("vault", "init", str(desk.base / "other"))
    for kind in ("key", "identity"):
        (desk.base / "vaults" / f"vault.{kind}").write_bytes((desk.base / "vaults" / f"other.{kind}").read_bytes())


def _cut_key(desk: Desk) -> None:
    (desk.base / "vaults" / "vault.key").write_text('{"vault": "00", ')


def _newer(desk: Desk) -> None:
    path = desk.location / "vault.json"
    path.chmod(0o600)
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 2}))


def _vanished(desk: Desk) -> None:
    desk.location.rename(desk.base / "elsewhere")


def _bare_mount_point(desk: Desk) -> None:
    _vanished(desk)
    desk.location.mkdir()


def _scribbled(desk: Desk) -> None:
    path = desk.location / "vault.json"
    path.chmod(0o600)
    path.write_text("{")


@pytest.mark.parametrize(
    ("fault", "reading", "writing", "says"),
    [
        (_no_identity, ExitStatus.WRONG_KEY, ExitStatus.DONE, "--identity FILE"),
        (_no_key, ExitStatus.DONE, ExitStatus.WRONG_KEY, "--key FILE"),
        (_other_keys, ExitStatus.WRONG_KEY, ExitStatus.WRONG_KEY, "another vault"),
        (_cut_key, ExitStatus.WRONG_KEY, ExitStatus.WRONG_KEY, "no writer key"),
        (_newer, ExitStatus.NEWER_FORMAT, ExitStatus.NEWER_FORMAT, "Update Holdfast"),
        (_vanished, ExitStatus.UNREACHABLE, ExitStatus.UNREACHABLE, "is mounted"),
        (_bare_mount_point, ExitStatus.CONFIGURATION, ExitStatus.CONFIGURATION, "no vault at this place"),
        (_scribbled, ExitStatus.DAMAGED, ExitStatus.DAMAGED, "vault.json is unreadable"),
    ],
)
def test_what_stands_in_the_way_is_said_and_has_its_status(
    desk: Desk, fault: Callable[[Desk], None], reading: ExitStatus, writing: ExitStatus, says: str
) -> None:
    fault(desk)
    before = objects(desk.location) if desk.location.is_dir() else {}
    vault = () if fault is not _other_keys else ("--vault", "vault")
    said = ""
    for command in (("vault", "show"), ("restore", "--to", str(desk.base / "back"))):
        said += desk.done(*command, *vault, status=reading)
    if writing is not ExitStatus.DONE:
        said += desk.done("vault", "backup", str(desk.mail), *vault, status=writing)
        assert (objects(desk.location) if desk.location.is_dir() else {}) == before
    assert says in said
    assert "Traceback" not in said


def test_a_damaged_snapshot_is_damage(desk: Desk) -> None:
    record = next((desk.location / "snapshots").iterdir())
    record.chmod(0o600)
    record.write_bytes(record.read_bytes()[:-3])
    desk.done("vault", "show", status=ExitStatus.DAMAGED)
    assert "DAMAGED" in desk.done("vault", "list", status=ExitStatus.DIFFERENCES)


def test_another_backup_at_work_locks_and_readers_do_not_wait(desk: Desk) -> None:
    cache = next((desk.base / "cache").glob("*-write.sqlite"))
    other = apsw.Connection(str(cache))
    other.execute("BEGIN IMMEDIATE")
    assert "Wait for the other" in desk.done("vault", "backup", str(desk.mail), status=ExitStatus.LOCKED)
    began = time.monotonic()
    desk.done("restore", "--to", str(desk.base / "back"))
    desk.done("vault", "pin")
    assert time.monotonic() - began < BUSY_MILLISECONDS / 1000
    other.close()
    desk.backup()


def test_a_clock_set_back_is_refused(desk: Desk) -> None:
    key = WriterKey.from_bytes((desk.base / "vaults" / "vault.key").read_bytes())
    ahead = Clocks(wall_ns=lambda: time.time_ns() + 3 * 86_400 * 10**9)
    with open_vault(FolderBackend(desk.location), writer=key) as vault:
        backup_trees(vault, [tree(desk.mail)], "main", clocks=ahead)
    said = desk.done("vault", "backup", str(desk.mail), status=ExitStatus.REFUSED)
    assert "3.0 days ahead of this clock" in said
    assert "Set this machine's clock" in said


# -- not done: room and rights ----------------------------------------------------------------------------------------


@pytest.mark.system
@needs_root
def test_a_full_store_says_so_and_a_larger_one_goes_on(tmp_path: Path) -> None:
    with disk(tmp_path / "disk", "2m"):
        desk = Desk(tmp_path)
        desk.location = tmp_path / "disk" / "vault"
        desk.ready()
        desk.backup()
        (desk.mail / "large").write_bytes(os.urandom(4_000_000))
        said = desk.done("vault", "backup", str(desk.mail), status=ExitStatus.NO_SPACE)
        assert "Free space" in said
        assert desk.json("vault", "verify", "--all")["findings"] == []
        subprocess.run(["mount", "-o", "remount,size=20m", str(tmp_path / "disk")], check=True)
        desk.backup()
        assert desk.json("vault", "verify", "--all")["findings"] == []


@pytest.mark.system
@needs_root
def test_a_full_target_and_a_full_cache_say_so(tmp_path: Path) -> None:
    desk = Desk(tmp_path).ready()
    (desk.mail / "large").write_bytes(os.urandom(4_000_000))
    with disk(tmp_path / "cache", "256k"):
        (tmp_path / "cache" / "filler").write_bytes(bytes(200_000))
        said = desk.done("vault", "backup", str(desk.mail), status=ExitStatus.NO_SPACE)
        assert "Traceback" not in said
    desk.backup()
    with disk(tmp_path / "target", "2m"):
        said = desk.done("restore", "--to", str(tmp_path / "target" / "back"), status=ExitStatus.NO_SPACE)
        assert "Free space there, remove the folder, and repeat" in said


@pytest.mark.system
@needs_root
def test_a_read_only_store_can_be_read_and_not_added_to(tmp_path: Path) -> None:
    with disk(tmp_path / "disk", "20m"):
        desk = Desk(tmp_path)
        desk.location = tmp_path / "disk" / "vault"
        desk.ready()
        desk.backup()
        desk.write("new/3.host")
        subprocess.run(["mount", "-o", "remount,ro", str(tmp_path / "disk")], check=True)
        desk.done("vault", "backup", str(desk.mail), status=ExitStatus.REFUSED)
        desk.done("vault", "prune", "--keep-last", "1")
        desk.done("restore", "--to", str(tmp_path / "back"))
        said = desk.done("restore", "--to", str(tmp_path / "disk" / "back"), status=ExitStatus.ENVIRONMENT)
        assert "Read-only" in said
        said = desk.done("vault", "init", str(tmp_path / "disk" / "second"), status=ExitStatus.REFUSED)
        assert sorted(path.name for path in (tmp_path / "vaults").iterdir()) == [
            "vault.identity",
            "vault.json",
            "vault.key",
        ]


@needs_root
def test_a_store_of_somebody_else_is_refused(public_desk: Desk) -> None:
    with as_user(NOBODY):
        public_desk.backup()
    os.chown(public_desk.location, 0, 0)
    for folder in [public_desk.location, *public_desk.location.iterdir()]:
        if folder.is_dir():
            os.chown(folder, 0, 0)
            folder.chmod(0o555)
    public_desk.write("new/3.host")
    os.chown(public_desk.mail / "new", NOBODY, NOBODY)
    with as_user(NOBODY):
        said = public_desk.done("vault", "backup", str(public_desk.mail), status=ExitStatus.REFUSED)
        assert "Permission denied" in said


# -- interrupted ------------------------------------------------------------------------------------------------------


class _Cut(FolderBackend):
    """Stops, as a kill would, at the change number *at*."""

    def __init__(self, root: Path, at: int) -> None:
        super().__init__(root)
        self.left = at

    def put(self, name: str, data: bytes) -> None:
        self._count()
        super().put(name, data)

    def delete(self, name: str) -> None:
        self._count()
        super().delete(name)

    def _count(self) -> None:
        if self.left == 0:
            raise KeyboardInterrupt
        self.left -= 1


@pytest.mark.parametrize("at", range(4))
def test_an_interrupted_prune_is_run_again_and_nothing_is_lost(desk: Desk, at: int) -> None:
    desk.write("cur/2.host:2,").unlink()
    desk.write("cur/3.host:2,")
    desk.backup()
    key = WriterKey.from_bytes((desk.base / "vaults" / "vault.key").read_bytes())
    identity = (desk.base / "vaults" / "vault.identity").read_text().splitlines()[-1]
    with open_vault(_Cut(desk.location, at), writer=key, identities=(identity,)) as vault:
        plan = plan_prune(vault, KeepRules(last=1))
        try:
            execute_prune(vault, plan)
        except KeyboardInterrupt:
            pass
        else:
            assert at >= 2
    assert desk.json("vault", "verify", "--all")["findings"] == []
    desk.done("vault", "prune", "--keep-last", "1", "--yes")
    assert desk.json("vault", "list")["total"] == 1
    assert desk.json("vault", "verify", "--all")["findings"] == []
    desk.done("restore", "--to", str(desk.base / "back"))
    assert picture(desk.base / "back" / "maildir") == picture(desk.mail)


def _large_mail(desk: Desk) -> None:
    for number in range(30):
        (desk.mail / "cur" / f"m{number}.host:2,").write_bytes(os.urandom(3_000_000))


def _wait_for_packs(desk: Desk, count: int) -> None:
    """Until the store holds more than *count* packs."""
    deadline = time.monotonic() + 60
    while len(list((desk.location / "packs").iterdir())) <= count:
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_a_store_that_vanishes_in_the_middle_is_said_and_the_next_backup_goes_on(desk: Desk) -> None:
    _large_mail(desk)
    before = len(list((desk.location / "packs").iterdir()))

    def unmount() -> None:
        _wait_for_packs(desk, before)
        desk.location.rename(desk.base / "unplugged")

    thread = threading.Thread(target=unmount)
    thread.start()
    said = desk.done("vault", "backup", str(desk.mail), status=ExitStatus.UNREACHABLE)
    thread.join()
    assert "is mounted" in said
    assert not desk.location.exists(), "nothing was written into the bare mount point"
    (desk.base / "unplugged").rename(desk.location)
    assert desk.json("vault", "list")["total"] == 1
    assert desk.backup()["written_bytes"] < 90_000_000
    assert desk.json("vault", "verify", "--all")["findings"] == []


def test_a_killed_backup_leaves_no_lock_and_nothing_half_done(desk: Desk) -> None:
    _large_mail(desk)
    before = len(list((desk.location / "packs").iterdir()))
    command = [sys.executable, "-P", "-m", "holdfast.console.main", "vault", "backup", str(desk.mail)]
    process = subprocess.Popen(
        command, env={**os.environ, **desk.environment}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    _wait_for_packs(desk, before)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert desk.json("vault", "list")["total"] == 1
    assert desk.json("vault", "verify", "--all")["findings"] == []
    assert desk.backup()["written_bytes"] < 90_000_000
    desk.done("restore", "--to", str(desk.base / "back"))
    assert picture(desk.base / "back" / "maildir") == picture(desk.mail)


def test_an_interrupt_ends_a_command_whose_store_does_not_answer(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    identity = tmp_path / "identity"
    identity.write_text(str(pyrage.x25519.Identity.generate()))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(60)
        location = f"s3://bucket/mail?endpoint=http://127.0.0.1:{silent.getsockname()[1]}&region=us-east-1"
        command = [sys.executable, "-P", "-m", "holdfast.console.main", "vault", "list", "--vault", location]
        environment = {**os.environ, **desk.environment, "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "y"}

        def take_interrupts() -> None:
            """A test run in the background ignores them, and so would what it starts."""
            signal.signal(signal.SIGINT, signal.SIG_DFL)

        process = subprocess.Popen(
            [*command, "--identity", str(identity)],
            env=environment,
            stderr=subprocess.DEVNULL,
            preexec_fn=take_interrupts,
        )
        connection, _ = silent.accept()
        with connection:
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == INTERRUPTED


# -- the page ---------------------------------------------------------------------------------------------------------


def test_the_page_names_every_exit_status() -> None:
    page = Path(__file__).resolve().parents[2] / "docs/operations/exit-statuses.md"
    rows = re.findall(r"^\| (\d+) \| ([a-z ]+) \|", page.read_text(), re.MULTILINE)
    assert {int(number) for number, _ in rows} == {status.value for status in ExitStatus}
    assert len(rows) == len(ExitStatus)
