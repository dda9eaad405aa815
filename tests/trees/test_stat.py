"""What the filesystem tells of one thing."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.trees.index import NodeKind
from holdfast.trees.stat import (
    HandleReader,
    Owners,
    handle_at,
    has_handles,
    observed,
    open_handle,
    pack_xattrs,
    read_xattrs,
    unpack_xattrs,
)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, os.O_RDONLY)
    yield fd
    os.close(fd)


def test_a_handle_follows_a_rename_and_not_a_name(tmp_path: Path, folder: int) -> None:
    (tmp_path / "a").write_text("one")
    first = handle_at(folder, b"a")
    (tmp_path / "a").rename(tmp_path / "b")
    (tmp_path / "a").write_text("two")
    assert handle_at(folder, b"b") == first
    assert handle_at(folder, b"a") not in (first, None)
    fd = os.open(tmp_path / "b", os.O_RDONLY)
    assert handle_at(fd, b"") == first
    os.close(fd)


def test_a_reused_inode_has_another_handle(tmp_path: Path, folder: int) -> None:
    """ext4 gives the number of a removed file to the next one."""
    seen: dict[int, bytes | None] = {}
    for _ in range(20):
        (tmp_path / "a").write_text("x")
        ino, handle = (tmp_path / "a").stat().st_ino, handle_at(folder, b"a")
        assert seen.get(ino) != handle
        seen[ino] = handle
        (tmp_path / "a").unlink()


def test_what_is_gone_has_no_handle(folder: int) -> None:
    assert handle_at(folder, b"gone") is None
    assert HandleReader(folder).read(folder, b"gone") is None
    with pytest.raises(OSError):
        handle_at(-5, b"x")


@pytest.mark.system
def test_a_handle_opens_what_it_names_until_that_is_removed(tmp_path: Path, folder: int) -> None:
    (tmp_path / "a").write_text("content")
    handle = handle_at(folder, b"a")
    assert handle is not None
    assert has_handles(handle)
    (tmp_path / "a").rename(tmp_path / "b")
    fd = open_handle(folder, handle, os.O_RDONLY)
    assert fd is not None
    assert os.read(fd, 99) == b"content"
    os.close(fd)
    (tmp_path / "b").unlink()
    assert open_handle(folder, handle, os.O_RDONLY) is None


def test_kinds(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("abc")
    (tmp_path / "l").symlink_to("nowhere")
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
    kinds = {name: observed(os.lstat(tmp_path / name)) for name in ("f", "l", ".", "fifo", "socket")}
    assert kinds["fifo"] is None
    assert kinds["socket"] is None
    expected = {"f": (NodeKind.FILE, 3), "l": (NodeKind.SYMLINK, 0), ".": (NodeKind.DIRECTORY, 0)}
    for name, (kind, size) in expected.items():
        seen = kinds[name]
        assert seen is not None
        assert (seen.kind, seen.size) == (kind, size)


pairs = st.lists(st.tuples(st.binary(), st.binary()), max_size=4).map(lambda p: tuple(sorted(p)))


@given(pairs)
def test_xattrs_are_packed_and_unpacked(xattrs: tuple[tuple[bytes, bytes], ...]) -> None:
    assert unpack_xattrs(pack_xattrs(xattrs)) == xattrs
    assert (pack_xattrs(xattrs) == b"") == (xattrs == ())


def test_xattrs_are_read_sorted_and_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    for name in ("user.b", "user.a"):
        os.setxattr(tmp_path / "f", name, name.encode())
    (tmp_path / "l").symlink_to("f")
    expected = ((b"user.a", b"user.a"), (b"user.b", b"user.b"))
    assert read_xattrs(os.fsencode(tmp_path / "f")) == expected
    assert read_xattrs(os.fsencode(tmp_path / "l")) == ()


def test_owners_travel_by_name_and_without_one_by_number() -> None:
    owners = Owners()
    assert owners.user(0) == "root"
    assert owners.uid("root") == 0
    assert owners.user(3_999_999) == "#3999999"
    assert owners.uid("#3999999") == 3_999_999
    assert owners.gid(owners.group(3_999_998)) == 3_999_998
    assert owners.unknown == set()


def test_an_owner_this_machine_lacks_is_remembered_until_told_to_look_again() -> None:
    owners = Owners()
    assert owners.uid("no-such-user") == 0
    assert owners.gid("#nonsense") == 0
    assert owners.unknown == {"user no-such-user", "group #nonsense"}
    owners.forget()
    assert owners.unknown == set()
