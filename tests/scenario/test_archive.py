"""A real site feeds a vault: what stood in the trees at a moment comes back, also after another machine took over."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from holdfast.changes.exchange import EntryKind
from holdfast.changes.names import Incarnation, Position, Sequence
from holdfast.drill.lab import mailhost
from holdfast.drill.lab.tools import wait_until
from holdfast.vault.backends.folder import FolderBackend
from holdfast.vault.instant import Archive, Instant, open_instant
from holdfast.vault.record import split_ids, walk
from holdfast.vault.repository import open_vault
from holdfast.vault.verify import EVERYTHING, verify

from .site import Site, protected_site

pytestmark = pytest.mark.system

PLACE = "/media/shared/vault"
KEY = "/etc/holdfast/vaults/lab.key"
CONFIGURATION = f"""
[[vaults]]
name = "lab"
location = "{PLACE}"
key = "{KEY}"
archive_seconds = 1.0
snapshot_minutes = 0.1
"""
Store = dict[bytes, tuple[bytes, int, int]]


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with protected_site("mdbox", more_configuration=CONFIGURATION) as site:
        main = site.machine("main")
        main.run(["holdfast", "vault", "init", PLACE, "--name", "lab", "--identity-out", "/media/shared/identity"])
        mailhost.put(site.machine("backup"), KEY, main.path(KEY).read_text(), mode=0o600)
        yield site


def store_of(site: Site, machine: str) -> Store:
    """Contents, modes and times of the files of the tree ``store``."""
    root = os.fsencode(site.machine(machine).path(store_root(site)))
    found: Store = {}
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name != b".holdfast"]
        for name in names:
            path = folder + b"/" + name
            status = os.lstat(path)
            if not stat.S_ISREG(status.st_mode):
                continue
            found[path[len(root) + 1 :]] = (Path(os.fsdecode(path)).read_bytes(), status.st_mode, status.st_mtime_ns)
    return found


def store_root(site: Site) -> str:
    with Reading(site) as reading:
        newest = reading.vault.snapshot(reading.vault.snapshots()[-1])
    return os.fsdecode(newest.tree("store").root)


class Reading:
    """The lab's vault, read from outside."""

    def __init__(self, site: Site) -> None:
        folder = site.machine("backup").path("/media/shared")
        identity = [line for line in (folder / "identity").read_text().splitlines() if line.startswith("AGE")]
        self.vault = open_vault(FolderBackend(folder / "vault"), identities=tuple(identity))

    def __enter__(self) -> Reading:
        return self

    def __exit__(self, *_: object) -> None:
        self.vault.close()

    def at(self, position: Position) -> Instant:
        return open_instant(self.vault, Archive(self.vault).at_position(position))


def archived(site: Site, machine: str, sequence: int) -> dict[str, Any]:
    facts = site.protected.wait_for(
        machine, lambda facts: facts["vaults"][0]["archived"] >= sequence, f"archived to {sequence}", 60
    )
    vault: dict[str, Any] = facts["vaults"][0]
    return vault


def settled_position(site: Site) -> Position:
    site.settle()
    said = site.protected.order(site.primary, "barrier")
    return Position(Incarnation(said["incarnation"]), Sequence(said["sequence"]))


def check(site: Site, moments: dict[Position, Store]) -> None:
    with Reading(site) as reading:
        for position, store in moments.items():
            with reading.at(position) as instant:
                found: Store = {}
                for path, entry in walk(instant.snapshot.tree("store").content, instant.vault.content):
                    if entry.kind is EntryKind.FILE:
                        content = b"".join(map(instant.vault.content, split_ids(entry.content)))
                        found[path] = (content, entry.meta.mode | 0o100000, entry.meta.mtime_ns)
            assert found.keys() == store.keys()
            assert [path for path in found if found[path] != store[path]] == []
        assert verify(reading.vault, EVERYTHING).findings == []


def test_moments_before_and_after_a_takeover_come_back_exactly(site: Site, tmp_path: Path) -> None:
    wait_until(lambda: bool(site.status("main")["vaults"][0]["fed_by"]), 30, "the vault to be fed", 0.2)
    archived(site, "main", 1)
    moments: dict[Position, Store] = {}
    for number in range(3):
        site.work(site.plan(messages=30, operations=120, seed=number), tmp_path / f"journal{number}")
        position = settled_position(site)
        moments[position] = store_of(site, "backup")
    view = archived(site, "backup", max(position.sequence for position in moments))
    assert (view["fed_by"], view["problem"], view["gap"]) == ("backup", "", "")
    site.machine("main").kill()
    wait_until(lambda: "main is silent" in site.warnings("backup"), 20, "main's silence to be noticed", 0.1)
    done = site.holdfast("backup", "takeover", "--why", "main has no power")
    assert done.returncode == 0, done.stdout + done.stderr
    before = int(site.status("backup")["log"]["last"])
    archived(site, "backup", before)
    assert site.status("backup")["vaults"][0]["fed_by"] == "backup"
    check(site, moments)
    assert "vault" not in site.warnings("backup")
