"""Files written once."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from holdfast.errors import EnvironmentUnfit, HoldfastError, NoSpace
from holdfast.files import PRIVATE, write_once


def test_content_and_mode_are_as_asked_whatever_the_umask(tmp_path: Path) -> None:
    path = tmp_path / "key"
    before = os.umask(0o077)
    try:
        write_once(path, b"secret", PRIVATE)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        write_once(path, b"public", 0o644)
    finally:
        os.umask(before)
    assert path.read_bytes() == b"public"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_leaves_the_old_file_and_no_rest(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "inside").touch()
    with pytest.raises(HoldfastError):
        write_once(tmp_path / "folder", b"data")
    assert [entry.name for entry in tmp_path.iterdir()] == ["folder"]
    with pytest.raises(HoldfastError):
        write_once(tmp_path / "absent" / "file", b"data")


def test_a_full_disk_and_a_read_only_place_are_told_apart() -> None:
    with pytest.raises((EnvironmentUnfit, HoldfastError)):
        write_once(Path("/proc/holdfast-test"), b"data")
    assert issubclass(NoSpace, HoldfastError)
