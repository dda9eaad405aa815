"""Any archived instant on the command line: by time, by position, by the hint of an error."""

from __future__ import annotations

import os
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import pytest

from holdfast.console.words import path_text
from holdfast.errors import ExitStatus
from holdfast.vault.backends.folder import FolderBackend
from holdfast.vault.keys import WriterKey
from holdfast.vault.repository import open_vault
from tests.apply.model import Op
from tests.console.vault_site import Desk
from tests.vault.history import SECOND, START_NS, History, first_snapshot, position

ARCHIVED = 6


class Fed(NamedTuple):
    desk: Desk
    history: History


@pytest.fixture
def fed(tmp_path: Path) -> Fed:
    """A vault fed from a log: records 1 to 6 and, after a hole, the last one."""
    desk = Desk(tmp_path)
    desk.done("vault", "init", str(desk.location))
    key = WriterKey.from_bytes((tmp_path / "vaults" / "vault.key").read_bytes())
    history = History()
    for number in range(12):
        history.do([Op(0, number, number, 100)])
    assert history.last > ARCHIVED + 2
    with open_vault(FolderBackend(desk.location), writer=key) as vault:
        first_snapshot(vault)
        history.archive(vault, 1, ARCHIVED)
        history.archive(vault, history.last, history.last)
    return Fed(desk, history)


def at_text(sequence: float) -> str:
    return datetime.fromtimestamp(START_NS / SECOND + sequence, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def test_a_time_and_a_position_are_exact(fed: Fed, tmp_path: Path) -> None:
    by_time = fed.desk.json("restore", "--at", at_text(4), "--dry-run")
    by_position = fed.desk.json("restore", "--at", str(position(4)), "--dry-run")
    assert by_time["position"] == by_position["position"] == str(position(4))
    said = fed.desk.done("restore", "--at", str(position(4)), "--to", str(tmp_path / "back"), status=ExitStatus.DONE)
    assert f"the log to {position(4)}" in said
    there = {os.fsencode(path.name) for path in (tmp_path / "back").glob("*/*")}
    assert there == {name for name in fed.history.pictures[4] if b"/" not in name}
    assert fed.desk.json("vault", "list")["any_second"][0]["from"].startswith(at_text(0)[:10])


def test_what_is_not_archived_names_the_nearest_and_what_it_names_can_be_typed(fed: Fed) -> None:
    for at in (at_text(8), at_text(3600), str(position(8))):
        result = fed.desk.run("restore", "--at", at, "--dry-run")
        assert result.exit_code == ExitStatus.USAGE, result.output
        assert "cannot be restored" in result.output
    nearest = re.findall(r"--at (\S+)", fed.desk.run("restore", "--at", at_text(8), "--dry-run").output)
    assert nearest
    assert fed.desk.json("restore", "--at", nearest[0], "--dry-run")["position"] == str(position(ARCHIVED))


def test_two_instants_are_compared(fed: Fed) -> None:
    found = fed.desk.json("vault", "diff", at_text(2), at_text(5), status=ExitStatus.DIFFERENCES)["differences"]
    assert found
    before, after = fed.history.pictures[2], fed.history.pictures[5]
    added = {one["path"] for one in found if one["kind"] == "added"}
    assert added == {path_text(path) for path in after.keys() - before.keys()}


def test_nothing_of_an_instant_stays_behind(fed: Fed, tmp_path: Path) -> None:
    fed.desk.done("vault", "show", "--at", at_text(5))
    assert not list((tmp_path / "cache").glob("holdfast-instant-*"))
