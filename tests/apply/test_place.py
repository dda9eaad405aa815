"""Steps in the filesystem stay inside the tree, destroy nothing unasked, and clean up after themselves."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from holdfast.apply import syscalls
from holdfast.apply.content import Described, describe, describe_link, describe_new, set_xattrs, write_extents
from holdfast.apply.place import DIRECTORIES_OPEN_MAX, Place, SymlinkInTheWay, world_error
from holdfast.changes.change import Extent
from holdfast.errors import NoSpace
from holdfast.trees.stat import read_xattrs


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    (tmp_path / "root").mkdir()
    (tmp_path / "outside").mkdir()
    place = Place(tmp_path / "root")
    yield place
    assert os.listdir(tmp_path / "root/.holdfast/staging") == []
    place.close()


def put(place: Place, path: bytes, content: bytes, *, replace: bool = False) -> None:
    staged = place.stage()
    write_extents(staged.fd, [Extent(0, content)])
    try:
        place.settle(staged, path, replace=replace)
        os.close(staged.fd)
    except OSError:
        place.discard(staged)
        raise


@pytest.mark.parametrize("way", ["openat2", "walk"])
def test_a_symlink_on_the_way_is_refused(place: Place, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    outside = place.root.parent / "outside"
    (outside / "victim").write_bytes(b"untouched")
    (place.root / "way").symlink_to(outside)
    (place.root / "inner").mkdir()
    (place.root / "inner/way").symlink_to("../../outside")
    resolve = syscalls.open_directory if way == "openat2" else syscalls.walk_directory
    for path in (b"way", b"inner/way"):
        with pytest.raises(OSError) as caught:
            resolve(place.fd, path)
        assert isinstance(world_error(caught.value, "x"), SymlinkInTheWay)
    for path in (b"..", b"inner/../../outside", b"/etc"):
        with pytest.raises(OSError):
            resolve(place.fd, path)
    if way == "openat2":
        steps: list[Callable[[], object]] = [
            lambda: put(place, b"way/new", b"x"),
            lambda: place.open(b"way/victim", os.O_WRONLY),
            lambda: place.unlink(b"way/victim"),
            lambda: place.rename(b"way/victim", b"mine", replace=True),
            lambda: place.link(b"way/victim", b"mine", replace=False),
            lambda: place.mkdir(b"inner/way/new", 0o700),
            lambda: place.symlink(b"t", b"way/new", replace=False),
            lambda: place.status(b"way/victim"),
            lambda: place.open(b"way", os.O_WRONLY),
        ]
        for step in steps:
            with pytest.raises(OSError, match="symbolic links"):
                step()
    assert os.listdir(outside) == ["victim"]
    assert (outside / "victim").read_bytes() == b"untouched"


def test_nothing_is_replaced_unasked(place: Place) -> None:
    put(place, b"a", b"first")
    put(place, b"b", b"second")
    steps: list[Callable[[], object]] = [
        lambda: put(place, b"a", b"x"),
        lambda: place.rename(b"b", b"a", replace=False),
        lambda: place.link(b"b", b"a", replace=False),
        lambda: place.symlink(b"t", b"a", replace=False),
    ]
    for step in steps:
        with pytest.raises(FileExistsError):
            step()
    assert (place.root / "a").read_bytes() == b"first"
    place.link(b"b", b"a", replace=True)
    assert (place.root / "a").read_bytes() == b"second"
    place.link(b"b", b"a", replace=True)  # already so: stays, and leaves nothing in staging
    assert (place.root / "a").stat().st_nlink == 2
    place.symlink(b"\xff to", b"a", replace=True)
    assert os.readlink(os.fsencode(place.root) + b"/a") == b"\xff to"
    put(place, b"a", b"third", replace=True)
    assert (place.root / "a").read_bytes() == b"third"


def test_a_directory_renamed_and_made_again_is_two_directories(place: Place) -> None:
    place.mkdir(b"d", 0o755)
    place.mkdir(b"d/e", 0o755)
    put(place, b"d/e/one", b"1")
    place.rename(b"d", b"moved", replace=False)
    place.forget(b"d")
    place.mkdir(b"d", 0o755)
    place.mkdir(b"d/e", 0o755)
    put(place, b"d/e/two", b"2")
    assert os.listdir(place.root / "moved/e") == ["one"]
    assert os.listdir(place.root / "d/e") == ["two"]


def test_descriptors_are_bounded(place: Place, tmp_path: Path) -> None:
    small = Place(tmp_path / "root", directories_open_max=10)
    before = len(os.listdir("/proc/self/fd"))
    for number in range(50):
        small.mkdir(b"d%d" % number, 0o700)
        put(small, b"d%d/f" % number, b"x")
    assert len(os.listdir("/proc/self/fd")) - before <= 10
    for number in range(50):
        small.unlink(b"d%d/f" % number)
        small.rmdir(b"d%d" % number)
    small.close()
    assert DIRECTORIES_OPEN_MAX * 2 < 1024


@pytest.mark.parametrize("name", [b"new\nline", b"\xff\xfe", b"x" * 255, b" ", b"-rf", b"\xe2\x80\xae"])
def test_any_name_linux_allows(place: Place, name: bytes) -> None:
    place.mkdir(name, 0o755)
    put(place, name + b"/" + name, b"x")
    place.link(name + b"/" + name, name + b"/l", replace=False)
    place.rename(name + b"/l", b"l", replace=False)
    assert place.listing(name) == [(name, False)]
    kept = place.move_aside(name, b"test")
    assert os.listdir(os.fsencode(place.root) + b"/" + kept) == [name]


def test_what_is_moved_aside_is_never_overwritten(place: Place) -> None:
    place.mkdir(b"d", 0o755)
    kept = []
    for number in range(3):
        put(place, b"d/f", b"%d" % number)
        kept.append(place.move_aside(b"d/f", b"when"))
    put(place, b"d/f", b"3")
    kept.append(place.move_aside(b"d", b"when") + b"/f")
    assert [(place.root / os.fsdecode(k)).read_bytes() for k in kept] == [b"0", b"1", b"2", b"3"]


def test_metadata_in_an_order_that_works(place: Place) -> None:
    """A set-user-ID bit survives the chown, the mtime survives everything, an xattr that is gone is gone."""
    wanted = Described(0o4755, 1234, 2345, 1_234_567_890_123_456_789, ((b"user.a", b"1"), (b"user.b", b"\0\xff")))
    staged = place.stage()
    write_extents(staged.fd, [Extent(5, b"x")])
    describe_new(staged.fd, wanted)
    place.settle(staged, b"f", replace=False)
    again = wanted._replace(uid=77, mtime_ns=5, xattrs=((b"user.b", b"2"),))
    for expected in (wanted, again):
        describe(staged.fd, os.fstat(staged.fd), expected, xattrs_differ=True)
        seen = os.fstat(staged.fd)
        assert (seen.st_mode & 0o7777, seen.st_uid, seen.st_gid, seen.st_mtime_ns) == expected[:4]
        assert read_xattrs(staged.fd) == expected.xattrs
    os.close(staged.fd)
    place.symlink(b"nowhere", b"l", replace=False)
    link = Described(0o777, 12, 13, 99, ((b"trusted.t", b"v"),))
    describe_link(*place.parent(b"l"), link)
    seen = os.lstat(place.root / "l")
    assert (seen.st_uid, seen.st_gid, seen.st_mtime_ns) == (12, 13, 99)
    assert read_xattrs(os.fsencode(place.root / "l")) == link.xattrs


def test_our_folder_inherits_no_acl(tmp_path: Path) -> None:
    """A default ACL at the root would be given to every file made in staging."""
    acl = bytes.fromhex("02000000 01000700ffffffff 02000700d2040000 04000500ffffffff 10000700ffffffff 20000500ffffffff")
    root = os.open(tmp_path, os.O_RDONLY)
    set_xattrs(root, ((b"system.posix_acl_default", acl),))
    os.close(root)
    place = Place(tmp_path)
    put(place, b"f", b"")
    assert read_xattrs(os.fsencode(tmp_path / "f")) == ()
    place.close()


def test_extents_leave_holes(place: Place) -> None:
    staged = place.stage()
    assert write_extents(staged.fd, [Extent(0, b"a"), Extent(1 << 30, b"z")]) == (1 << 30) + 1
    place.settle(staged, b"sparse", replace=False)
    seen = os.fstat(staged.fd)
    assert seen.st_size == (1 << 30) + 1
    assert seen.st_blocks * 512 < 1 << 20
    os.close(staged.fd)


def test_what_an_unclean_stop_left_is_cleared(place: Place) -> None:
    for _ in range(3):
        os.close(place.stage().fd)
    assert place.clear_staging() == 3


def test_errors_say_what_helps() -> None:
    full = world_error(OSError(28, "x"), "writing 'a'")
    assert isinstance(full, NoSpace)
    assert full.retry
    assert "No space left" in str(full)
