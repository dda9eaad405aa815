"""A restore by two processes brings back what one does, and never says that it is whole when the other failed."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from holdfast.errors import HoldfastError
from holdfast.vault import backup
from holdfast.vault.backends.folder import FolderBackend
from holdfast.vault.pace import Pace
from holdfast.vault.repository import Vault, init_vault, open_vault
from holdfast.vault.restore import Restored, restore_path
from holdfast.vault.second import can_share
from tests.vault import site

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="owners need root")
ACCOUNTS = 12
DEADLINE_SECONDS = 30.0


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """With files that have names in several accounts, the first and the last among them."""
    root = site.make_store(tmp_path / "store", accounts=ACCOUNTS, messages=6)
    os.link(root / "user0" / "large", root / "user9" / "also-large")
    os.link(root / "user0" / "large", root / "user9" / "cur" / "once-more")
    os.link(root / "user8" / "cur" / "3.host:2,S", root / "user9" / "cur" / "moved")
    os.utime(root / "user9" / "cur", ns=(7, 1_500_000_000_000_000_007))
    return root


@pytest.fixture
def vault(store: Path, tmp_path: Path) -> Iterator[Vault]:
    backend = FolderBackend(tmp_path / "vault", create=True)
    key = init_vault(backend, (site.RECIPIENT,))
    with open_vault(backend, writer=key, identities=(site.IDENTITY,), cache=tmp_path / "cache") as opened:
        backup.backup_trees(opened, [site.tree(store)], "main", clocks=site.clocks())
        yield opened


def restored_when(vault: Vault, target: Path, fact: Callable[[], bool]) -> Restored:
    """Restore everything; after its first file this process waits for *fact*."""
    waited = False

    def wait(_: Restored) -> None:
        nonlocal waited
        until = time.monotonic() + DEADLINE_SECONDS
        while not waited and not fact():
            assert time.monotonic() < until, "the second process does nothing"
            time.sleep(0.01)
        waited = True

    tree = vault.snapshot(vault.find_snapshot("latest")).tree("store")
    return restore_path(vault, tree, b"", target, progress=wait)


def second_processes() -> list[int]:
    """Of this process; what other tests in it have started is nothing to these."""
    children = [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]
    return [pid for pid in children if b"holdfast.vault.second_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def test_two_processes_restore_what_was_there(vault: Vault, store: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    restored = restored_when(vault, out, lambda: (out / "user8" / "cur").exists())
    assert restored.failures == []
    assert site.picture(out) == site.picture(store), "names of one file are names of one file"
    whole = vault.snapshot(vault.find_snapshot("latest"))
    assert (restored.files, restored.bytes) == (whole.files, counted(store))
    assert second_processes() == []


def counted(store: Path) -> int:
    """Bytes of files, each once."""
    files = {status.st_ino: status.st_size for path in store.rglob("*") if (status := path.lstat()) and path.is_file()}
    return sum(files.values()) - sum(path.lstat().st_size for path in store.rglob("*") if path.is_symlink())


def test_a_second_process_that_dies_is_no_success(vault: Vault, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def killed() -> bool:
        if not (out / "user9").exists():
            return False
        os.kill(second_processes()[0], signal.SIGKILL)
        return True

    with pytest.raises(HoldfastError, match="second process of the restore ended"):
        restored_when(vault, out, killed)


def test_damage_is_named_once_whoever_met_it(vault: Vault, store: Path, tmp_path: Path) -> None:
    packs = sorted((tmp_path / "vault" / "packs").rglob("*"))
    damaged = next(pack for pack in packs if pack.is_file() and pack.stat().st_size > 100_000)
    damaged.chmod(0o600)
    with damaged.open("r+b") as file:
        file.seek(damaged.stat().st_size // 2)
        file.write(bytes(64))
    out = tmp_path / "out"
    restored = restored_when(vault, out, lambda: (out / "user9").exists())
    named = {failure.path for failure in restored.failures}
    assert named
    assert len(named) == len(restored.failures) == restored.failures_total
    here, there = site.picture(out), site.picture(store)
    missing = {path.lstrip(b"/") for path in there if path not in here}
    assert missing <= named


def test_one_process_where_two_are_no_quicker(vault: Vault, tmp_path: Path) -> None:
    assert can_share(vault)
    with open_vault(vault.backend, identities=(site.IDENTITY,)) as in_memory:
        assert not can_share(in_memory)
    slow = FolderBackend(tmp_path / "vault", pace=Pace(1e6))
    with open_vault(slow, identities=(site.IDENTITY,), cache=tmp_path / "other") as limited:
        assert not can_share(limited)
