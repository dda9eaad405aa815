"""Files that grow with every message are kept open: by identity, and no longer than they have a name."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast.changes.change import Patch
from holdfast.watch.limits import Limits
from tests.watch.ground import Ground

NAME = "dovecot.index.log"


def open_below(root: Path) -> list[str]:
    """What this process has open there, files only."""
    found = []
    for fd in Path("/proc/self/fd").iterdir():
        try:
            target = os.readlink(fd)
        except OSError:
            continue
        if target.startswith(f"{root}/") and not os.path.isdir(target):
            found.append(target)
    return found


def grow(path: Path, data: bytes = b"more") -> None:
    with path.open("ab") as file:
        file.write(data)


@pytest.fixture
def ground(tmp_path: Path) -> Iterator[Ground]:
    made = Ground(tmp_path, limits=Limits(settle_seconds=0.0, limbo_seconds=0.005, file_fds_max=2))
    if not made.watcher._reconciler.scene.disk.opens_handles:
        made.close()
        pytest.skip("files are not kept open where handles cannot be opened")
    yield made
    made.close()


def test_a_file_that_went_is_not_kept_open(ground: Ground) -> None:
    path = ground.root / NAME
    path.write_bytes(b"begin")
    ground.collect()
    grow(path)
    ground.collect()
    assert open_below(ground.root) == [str(path)]
    path.unlink()
    ground.collect()
    assert open_below(ground.root) == []


def test_a_file_that_was_replaced_is_read_anew(ground: Ground) -> None:
    path = ground.root / NAME
    path.write_bytes(b"begin")
    ground.collect()
    grow(path)
    ground.collect()
    other = ground.root / "other"
    other.write_bytes(b"quite another")
    other.replace(path)
    ground.collect()
    assert [f for f in open_below(ground.root) if "deleted" in f] == []
    grow(path)
    ground.settle()
    ground.check()


def test_a_file_is_followed_by_identity(ground: Ground) -> None:
    path = ground.root / NAME
    path.write_bytes(b"begin")
    ground.collect()
    grow(path)
    ground.collect()
    moved = ground.root / "dovecot.index.log.2"
    path.rename(moved)
    grow(moved, b"at its new name")
    path.write_bytes(b"a new one")
    ground.collect()
    grow(path)
    grow(moved)
    assert sum(isinstance(change, Patch) for change in ground.collect()) == 2
    ground.settle()
    ground.check()


def test_only_so_many_are_kept_open(ground: Ground) -> None:
    paths = [ground.root / str(number) / NAME for number in range(4)]
    for path in paths:
        path.parent.mkdir()
        path.write_bytes(b"begin")
    ground.collect()
    for path in paths:
        grow(path)
        ground.collect()
    assert sorted(open_below(ground.root)) == [str(path) for path in paths[2:]]
    ground.watcher.forget()
    assert open_below(ground.root) == []
    ground.scan()
    ground.check()


@pytest.mark.parametrize("allowed", [256, 1024, 65_536])
def test_what_is_kept_open_leaves_room(allowed: int) -> None:
    limits = Limits.of_process(allowed)
    assert limits.directory_fds_max + limits.file_fds_max <= max(allowed, 1024) // 2
