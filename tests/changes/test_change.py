"""What a sound change is, and names of machines, segments and trees."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.changes.change import (
    KIND_NAMES,
    Change,
    ChangeInvalid,
    Extent,
    Link,
    Meta,
    Mkdir,
    Patch,
    Put,
    Remove,
    Rename,
    SetMeta,
    check_change,
    check_path,
)
from holdfast.changes.digest import BLOCK_BYTES, DIGEST_BYTES
from holdfast.changes.names import Incarnation, Position, Sequence, checked_name
from holdfast.errors import ConfigurationError
from tests.changes.fuzz_frame import ALL_KINDS

META = Meta(0o600, "a", "b", 1)
components = st.binary(min_size=1, max_size=255).filter(
    lambda n: b"/" not in n and b"\0" not in n and n not in (b".", b"..")
)


@given(st.lists(components, min_size=1, max_size=8))
def test_every_name_linux_allows_makes_a_path(parts: list[bytes]) -> None:
    check_path(b"/".join(parts))


@given(st.binary(max_size=600))
def test_a_path_is_refused_exactly_when_the_kernel_could_take_it_elsewhere(path: bytes) -> None:
    names = path.split(b"/")
    sound = all(0 < len(name) <= 255 and name not in (b".", b"..") and b"\0" not in name for name in names)
    try:
        check_path(path)
        assert sound
    except ChangeInvalid:
        assert not sound


@pytest.mark.parametrize(
    "path",
    [
        b"",
        b"/",
        b"/a",
        b"a/",
        b"a//b",
        b".",
        b"..",
        b"../a",
        b"a/..",
        b"a/./b",
        b"a\0",
        b"x" * 256,
        b"a/" * 2048 + b"a",
    ],
)
def test_impossible_paths(path: bytes) -> None:
    with pytest.raises(ChangeInvalid):
        check_path(path)
    with pytest.raises(ChangeInvalid):
        check_change(Rename("t", b"a", path))
    with pytest.raises(ChangeInvalid):
        check_change(Link("t", b"a", path))


@pytest.mark.parametrize(
    "path", [b"...", b"..a", b".a", b"a\n", b"\n", b".\n", b"..\n/a", b"\xff", b"x" * 255, b"-rf", b" "]
)
def test_odd_but_possible_paths(path: bytes) -> None:
    check_path(path)


def test_the_root_has_metadata_and_nothing_else() -> None:
    check_change(SetMeta("t", b"", META))
    for change in (Remove("t", b""), Mkdir("t", b"", META), Rename("t", b"", b"a"), Rename("t", b"a", b"")):
        with pytest.raises(ChangeInvalid):
            check_change(change)


def test_every_kind_has_a_name_and_a_sound_example() -> None:
    assert {type(change) for change in ALL_KINDS} == set(KIND_NAMES)
    for change in ALL_KINDS:
        check_change(change)


def digests(blocks: int) -> bytes:
    return bytes(DIGEST_BYTES * blocks)


@pytest.mark.parametrize(
    "change",
    [
        Put("t", b"a", 1, META, b"", ()),
        Put("t", b"a", 0, META, digests(1), ()),
        Put("t", b"a", -1, META, b"", ()),
        Put("t", b"a", BLOCK_BYTES + 1, META, digests(1), ()),
        Put("t", b"a", 3, META, digests(1), (Extent(0, b"four"),)),
        Put("t", b"a", 3, META, digests(1), (Extent(-1, b"x"),)),
        Put("t", b"a", 3, META, b"", (Extent(3, b"x"),), True),
        Patch("t", b"a", BLOCK_BYTES * 3, META, digests(3), (), 1),
        Patch("t", b"a", 1, META, digests(1), (), -1),
    ],
)
def test_sizes_digests_and_extents_that_disagree(change: Change) -> None:
    with pytest.raises(ChangeInvalid):
        check_change(change)


@pytest.mark.parametrize(
    "change",
    [
        Put("t", b"a", 0, META, b"", ()),
        Put("t", b"a", 1 << 40, META, b"", (), True),
        Put("t", b"a", 10, META, digests(1), (Extent(10, b""),)),
        Patch("t", b"a", BLOCK_BYTES * 3, META, digests(2), (Extent(BLOCK_BYTES, b"x"),), 1),
        Patch("t", b"a", BLOCK_BYTES, META, b"", (), 1),
        Patch("t", b"a", 0, META, b"", (), 0),
        Patch("t", b"a", 7, META, b"", (Extent(0, b"x"),), 0, True),
    ],
)
def test_sizes_digests_and_extents_that_agree(change: Change) -> None:
    check_change(change)


@pytest.mark.parametrize("name", ["a", "mail-1", "x" * 32, "0"])
def test_usable_names(name: str) -> None:
    assert checked_name(name, "tree") == name


@pytest.mark.parametrize("name", ["", "A", "-a", "a-", "a.b", "a/b", "x" * 33, "a\n", "é", "a b", "*", ">"])
def test_unusable_names_are_told_with_their_noun(name: str) -> None:
    with pytest.raises(ConfigurationError, match="tree name"):
        checked_name(name, "tree")


def test_a_position_is_told_short() -> None:
    assert str(Position(Incarnation("abcdef0123" + "0" * 22), Sequence(7))) == "abcdef01:7"
