"""What patterns leave out, by name and by path, is not looked at; what only seems left out is."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast.trees.spec import TreeSpec
from tests.watch.ground import Ground

EXCLUDE = ("*.lock", "tmp/*.M*")


def _spec(base: Path) -> TreeSpec:
    return TreeSpec("store", str(base / "tree"), exclude=EXCLUDE, read_first=("index*",))


@pytest.fixture
def ground(tmpfs: Path) -> Iterator[Ground]:
    made = Ground(tmpfs, sources=("fanotify",), spec=_spec(tmpfs))
    yield made
    made.close()


@pytest.mark.system
@pytest.mark.parametrize("other", ["a.lock", "tmp/1.M2"])
def test_a_protected_file_is_written_through_a_name_that_is_left_out(ground: Ground, other: str) -> None:
    (ground.root / "tmp").mkdir()
    (ground.root / "a").write_text("one")
    os.link(ground.root / "a", ground.root / other)
    ground.collect()
    with (ground.root / other).open("a") as file:
        file.write(" and two")
    assert ground.collect()
    ground.check()


@pytest.mark.system
def test_what_was_left_out_by_its_directorys_path_counts_when_that_is_renamed(ground: Ground) -> None:
    (ground.root / "tmp").mkdir()
    (ground.root / "tmp/1.M1").write_text("before")
    ground.collect()
    (ground.root / "tmp/2.M1").write_text("in the same batch")
    (ground.root / "tmp").rename(ground.root / "box")
    (ground.root / "box/3.M1").write_text("after")
    ground.collect()
    ground.check()
    assert ground.index.at("store", b"box/2.M1") is not None
    with (ground.root / "box/2.M1").open("a") as file:
        file.write(", and more")
    ground.collect()
    ground.check()


@pytest.mark.system
def test_what_counted_is_left_out_once_its_directory_has_that_path(ground: Ground) -> None:
    (ground.root / "box").mkdir()
    (ground.root / "box/1.M1").write_text("x")
    ground.collect()
    (ground.root / "box/2.M1").write_text("x")
    (ground.root / "box").rename(ground.root / "tmp")
    ground.collect()
    ground.check()
    assert ground.index.at("store", b"tmp/1.M1") is None


@pytest.mark.system
def test_a_directory_made_again_has_patterns_of_its_own(ground: Ground) -> None:
    for name in ("tmp", "box", "tmp"):
        (ground.root / name).mkdir()
        (ground.root / name / "1.M1").write_text("x")
        ground.collect()
        (ground.root / name / "1.M1").write_text("more")
        ground.collect()
        ground.check()
        (ground.root / name / "1.M1").unlink()
        (ground.root / name).rmdir()
        ground.collect()


@pytest.mark.system
@pytest.mark.parametrize("source", ["fanotify", "inotify"])
def test_a_file_in_the_place_of_a_directory_that_is_left_out_counts(tmpfs: Path, source: str) -> None:
    """Both came between two looks, and inotify tells of a name, not of what stood there."""
    spec = TreeSpec("store", str(tmpfs / "tree"), exclude=("tmp/",))
    ground = Ground(tmpfs, sources=(source,), spec=spec)
    try:
        (ground.root / "tmp").mkdir()
        (ground.root / "tmp").rename(tmpfs / "elsewhere")
        (ground.root / "tmp").write_text("a file")
        ground.collect()
        ground.check()
        assert ground.index.at("store", b"tmp") is not None
    finally:
        ground.close()
