"""What the applier accepts, refuses, and does with what it finds in its way."""

from __future__ import annotations

import json
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from holdfast.apply.applier import Applier, clean_marker
from holdfast.apply.aside import Aside
from holdfast.apply.divergence import Diverged, EpochOver, RecoveryNeeded
from holdfast.apply.place import SymlinkInTheWay
from holdfast.changes.change import (
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
    Rmdir,
    SetMeta,
    Symlink,
)
from holdfast.changes.digest import BLOCK_BYTES, ZERO_BLOCK_DIGEST, content_digests
from holdfast.changes.frame import FrameDamaged
from holdfast.changes.names import Incarnation
from holdfast.errors import ConfigurationError, Refused
from holdfast.trees.index import Index
from holdfast.trees.replay import ReplayGap
from tests.apply.model import TREE, LogWriter, index_agrees, picture_of
from tests.apply.standby import Standby

META = Meta(0o640, "#0", "#0", 10**18)
FOLDER = Meta(0o750, "#0", "#0", 10**18)


@pytest.fixture
def standby(tmp_path: Path) -> Iterator[Standby]:
    with Standby(tmp_path, exclude=("*.cache", "tmp/"), overrides=("own", "d/own")) as standby:
        yield standby


@pytest.fixture
def log() -> LogWriter:
    return LogWriter()


def put(path: bytes, content: bytes = b"content") -> Put:
    return Put(TREE, path, len(content), META, content_digests(content), (Extent(0, content),) if content else ())


def patch(path: bytes, content: bytes, at: int = 0) -> Patch:
    """*content* is the whole after the patch; the bytes from *at* on are sent."""
    return Patch(TREE, path, len(content), META, content_digests(content), (Extent(at, content[at:]),))


def do(standby: Standby, log: LogWriter, *changes: Change) -> None:
    assert standby.applier.apply(*log.changes(changes))


# -- the chain -------------------------------------------------------------------------------------------------------


def test_a_frame_applied_already_does_nothing(standby: Standby, log: LogWriter) -> None:
    first, second = log.changes([put(b"a")]), log.changes([Remove(TREE, b"a")])
    assert standby.applier.apply(*first)
    assert standby.applier.apply(*second)
    assert not standby.applier.apply(*first)
    assert not standby.applier.apply(*second)
    assert picture_of(standby.root) == {}
    assert standby.applier.applied == second.chain.position


def test_gaps_and_forks_are_damage(standby: Standby, log: LogWriter) -> None:
    log.changes([put(b"lost")])
    with pytest.raises(FrameDamaged, match="does not follow"):
        standby.applier.apply(*log.changes([put(b"b")]))
    one, other = LogWriter(), LogWriter()
    standby.applier.apply(*one.changes([put(b"a")]))
    forked = other.changes([put(b"z")])
    with pytest.raises(FrameDamaged, match="forks"):
        standby.applier.apply(*forked)
    with pytest.raises(FrameDamaged, match="forks"):
        standby.applier.apply(*other.changes([put(b"y")]))
    header = msgspec.structs.replace(forked.frame.header, incarnation=Incarnation("cd" * 16))
    elsewhere = forked.frame._replace(header=header)
    with pytest.raises(FrameDamaged, match="re-seed"):
        standby.applier.apply(elsewhere, forked.chain)
    assert list(picture_of(standby.root)) == [b"a"]


def test_an_older_epoch_is_refused(standby: Standby, log: LogWriter) -> None:
    standby.applier.apply(*log.promotion("backup", 2))
    assert standby.applier.epoch == 2
    log.writer = log.writer._replace(epoch=type(log.writer.epoch)(1))
    before = log.chain
    old = log.changes([put(b"a")])
    with pytest.raises(EpochOver, match="epoch 1"):
        standby.applier.apply(*old)
    log.chain = before
    with pytest.raises(EpochOver):
        standby.applier.apply(*log.promotion("main", 2))
    log.chain = before
    assert standby.applier.apply(*log.promotion("main", 3))
    standby.applier.make_durable()
    assert standby.index.epoch == 3
    assert picture_of(standby.root) == {}


def test_the_index_is_committed_at_whole_instants_only(standby: Standby, log: LogWriter) -> None:
    do(standby, log, put(b"a"))
    whole = standby.applier.make_durable()
    assert standby.applier.apply(*log.changes([put(b"b")], more=True))
    assert not standby.applier.whole
    assert standby.applier.make_durable() == whole
    standby.crash()
    standby.start()
    assert standby.applier.durable == whole
    assert list(picture_of(standby.root)) == [b"a"]


def test_a_batch_its_writer_never_finished_ends_with_the_promotion(standby: Standby, log: LogWriter) -> None:
    do(standby, log, put(b"known", b"0123456789"))
    unfinished = Put(TREE, b"big", 3, META, b"", (Extent(0, b"abc"),), True)
    half = Patch(TREE, b"known", 10, META, b"", (Extent(0, b"xx"),), 0, True)
    standby.applier.apply(*log.changes([put(b"b"), unfinished, half], more=True))
    assert standby.applier.apply(*log.promotion("backup", 2))
    assert standby.applier.whole
    assert set(picture_of(standby.root)) == {b"b", b"known"}
    assert standby.applier.steps.unfinished == {(TREE, b"known")}, "the new primary reads it again"
    assert os.listdir(standby.root / ".holdfast/staging") == []
    do(standby, log, put(b"big", b"other"), patch(b"known", b"xx23456789"))
    assert (standby.root / "big").read_bytes() == b"other"
    assert standby.applier.steps.unfinished == set()
    index_agrees(standby.index, standby.root)


@pytest.mark.parametrize("between", [(), (put(b"other"),)], ids=["empty", "another"])
def test_a_file_in_parts_ends_unfinished_when_something_else_comes(
    standby: Standby, log: LogWriter, between: tuple[Change, ...]
) -> None:
    """A patch of the known file at its path is then a patch of that one, and not a further part."""
    do(standby, log, put(b"f", b"known"))
    known = os.stat(standby.root / "f").st_ino
    standby.applier.apply(*log.changes([Put(TREE, b"f", 3, META, b"", (Extent(0, b"new"),), True)], more=True))
    standby.applier.apply(*log.changes(between, more=True))
    do(standby, log, patch(b"f", b"knows"))
    assert (standby.root / "f").read_bytes() == b"knows"
    assert os.stat(standby.root / "f").st_ino == known
    assert os.listdir(standby.root / ".holdfast/staging") == []
    index_agrees(standby.index, standby.root)


def test_a_machine_that_was_never_seeded_refuses(tmp_path: Path, standby: Standby) -> None:
    with Standby(tmp_path / "root") as inner:
        inner.crash()
        applier = Applier(Index.open(tmp_path / "new-index"), [inner.tree], inner.owners, Aside(tmp_path / "aside"))
        with pytest.raises(Refused, match="never seeded"):
            applier.recover()
        with pytest.raises(RecoveryNeeded):
            applier.apply(*LogWriter().changes([]))
        applier.close(clean=False)


def test_a_tree_this_machine_does_not_have_is_named(standby: Standby, log: LogWriter) -> None:
    with pytest.raises(ConfigurationError, match="'queue'"):
        do(standby, log, Mkdir("queue", b"a", FOLDER))


def test_a_clean_stop_is_good_once(standby: Standby, log: LogWriter) -> None:
    do(standby, log, put(b"a"))
    standby.stop()
    standby.start()
    assert not standby.report.needed
    assert not clean_marker(standby.state / "index").exists()
    standby.crash()
    standby.start()
    assert standby.report.needed


def test_a_stop_before_a_recovery_is_settled_is_durable_and_recovers_again(standby: Standby, log: LogWriter) -> None:
    first, second = log.changes([put(b"a")]), log.changes([put(b"b")])
    standby.applier.apply(*first)
    standby.crash()
    standby.start()
    assert standby.report.unknown == 1
    standby.applier.apply(*first)
    (standby.root / "foreign").write_text("x")
    standby.applier.apply(*second)
    standby.crash()
    standby.start()
    standby.follow([first, second])
    standby.stop()
    standby.start()
    assert standby.applier.durable == second.chain.position
    assert standby.report.needed
    assert set(picture_of(standby.root)) == {b"a", b"b"}


def test_a_batch_given_up_for_a_promotion_counts_as_it_stands(standby: Standby, log: LogWriter) -> None:
    do(standby, log, put(b"known", b"0123456789"))
    parts: list[Change] = [
        put(b"whole"),
        Patch(TREE, b"known", 10, META, b"", (Extent(0, b"xx"),), 0, True),
        Put(TREE, b"big", 3, META, b"", (Extent(0, b"abc"),), True),
    ]
    record = log.changes(parts, more=True)
    standby.applier.apply(*record)
    standby.applier.give_up_batch()
    assert standby.applier.make_durable() == record.chain.position
    node = standby.index.at(TREE, b"known")
    assert node is not None
    assert (node.mtime_ns, node.ctime_ns) == (0, 0), "the scan of the new primary reads it"
    assert set(picture_of(standby.root)) == {b"known", b"whole"}


def test_a_root_that_is_not_the_one_is_refused(standby: Standby, log: LogWriter) -> None:
    """An unmounted filesystem is no reason to take the index for wrong, nor to write on the mount point."""
    do(standby, log, put(b"a"))
    standby.applier.make_durable()
    standby.crash()
    standby.root.rename(standby.root.with_name("elsewhere"))
    standby.root.mkdir()
    with pytest.raises(Refused, match="mounted"):
        standby.start()
    assert os.listdir(standby.root) == [".holdfast"]


# -- what stands in the way ------------------------------------------------------------------------------------------


def test_unknown_things_in_the_way_are_moved_aside(standby: Standby, log: LogWriter) -> None:
    do(standby, log, put(b"old"), put(b"src"), Mkdir(TREE, b"d", FOLDER))
    made = ("put", "link", "rename", "symlink", "mkdir")
    for name in made:
        (standby.root / name).write_text(f"precious {name}")
    (standby.root / "old").unlink()
    (standby.root / "old").write_text("precious old")  # the name is known, the thing is not
    (standby.root / "mkdir").unlink()
    (standby.root / "mkdir").mkdir()
    (standby.root / "mkdir/below").write_text("precious mkdir")
    do(
        standby,
        log,
        put(b"put"),
        Link(TREE, b"src", b"link"),
        Rename(TREE, b"src", b"rename"),
        Symlink(TREE, b"symlink", b"to", META),
        Mkdir(TREE, b"mkdir", FOLDER),
        put(b"old", b"new"),
    )
    index_agrees(standby.index, standby.root)
    kept = {path.read_text() for path in (standby.root / ".holdfast/aside").rglob("*") if path.is_file()}
    assert kept == {f"precious {name}" for name in (*made, "old")}
    assert standby.aside.count == 6
    assert standby.applier.steps.oddities_count == 6
    lines = [json.loads(line) for line in (standby.aside.folder / "manifest").read_text().splitlines()]
    assert {line["path"] for line in lines} == {*made, "old"}
    for line in lines:
        assert (standby.root / line["kept"]).exists()
        below = Path(line["kept"]).relative_to(f".holdfast/aside/{standby.aside.folder.name}")
        assert (standby.aside.folder / TREE / below).exists()


def test_what_is_missing_is_named_and_nothing_is_touched(standby: Standby, log: LogWriter) -> None:
    do(standby, log, put(b"a"), put(b"b"), Mkdir(TREE, b"d", FOLDER), put(b"d/f"))
    (standby.root / "a").unlink()
    (standby.root / "b").unlink()
    (standby.root / "b").write_text("another")
    (standby.root / "d/f").unlink()
    (standby.root / "d").rmdir()
    before = picture_of(standby.root)
    changes: list[Change] = [
        patch(b"a", b"content!"),
        SetMeta(TREE, b"a", META),
        Rename(TREE, b"a", b"x"),
        Link(TREE, b"a", b"x"),
        patch(b"b", b"content!"),
        Rename(TREE, b"b", b"x"),
        put(b"d/new"),
        Rename(TREE, b"d", b"x"),
        Mkdir(TREE, b"d/e", FOLDER),
    ]
    chain = log.chain
    for change in changes:
        log.chain = chain
        with pytest.raises(Diverged) as caught:
            do(standby, log, change)
        assert caught.value.path == change.path
    assert picture_of(standby.root) == before
    assert standby.applier.chain == chain
    log.chain = chain
    do(standby, log, Remove(TREE, b"a"), Remove(TREE, b"d/f"), Rmdir(TREE, b"d"), Remove(TREE, b"b"))
    assert standby.applier.steps.oddities_count == 4
    assert picture_of(standby.root) == {}
    assert [path.read_text() for path in (standby.root / ".holdfast/aside").rglob("b")] == ["another"]


def test_after_the_missing_thing_was_fetched_the_frame_goes_on(standby: Standby, log: LogWriter) -> None:
    do(standby, log, put(b"a"))
    away = standby.root.parent / "away"
    (standby.root / "a").rename(away)
    record = log.changes([put(b"b"), patch(b"a", b"content and more", 7), put(b"c")])
    with pytest.raises(Diverged):
        standby.applier.apply(*record)
    assert not standby.applier.whole
    away.rename(standby.root / "a")
    assert standby.applier.apply(*record)
    assert (standby.root / "a").read_bytes() == b"content and more"
    index_agrees(standby.index, standby.root)


def test_a_change_that_does_not_fit_the_index_touches_nothing(standby: Standby, log: LogWriter) -> None:
    do(standby, log, put(b"a"), Mkdir(TREE, b"d", FOLDER), put(b"d/f"))
    before = picture_of(standby.root)
    chain = log.chain
    for change in (
        Remove(TREE, b"nothing"),
        Rename(TREE, b"nothing", b"x"),
        put(b"nowhere/x"),
        put(b"a/x"),
        put(b"d"),
        Rename(TREE, b"a", b"d"),
        Mkdir(TREE, b"a", FOLDER),
        Rmdir(TREE, b"d"),
        Rmdir(TREE, b"a"),
        Remove(TREE, b"d"),
        Symlink(TREE, b"d", b"x", META),
    ):
        log.chain = chain
        with pytest.raises(ReplayGap):
            do(standby, log, change)
    assert picture_of(standby.root) == before
    assert standby.aside.count == 0


@pytest.mark.parametrize("path", [b"", b"..", b"../out", b"a/../../out", b"/etc/x", b"a//b", b".", b"a\0b", b"x" * 256])
def test_impossible_paths_are_refused(standby: Standby, log: LogWriter, path: bytes) -> None:
    for change in (put(path), Mkdir(TREE, path, FOLDER), Remove(TREE, path), Rename(TREE, b"a", path)):
        chain = log.chain
        with pytest.raises(ChangeInvalid):
            do(standby, log, put(b"before"), change)
        log.chain = chain
    assert picture_of(standby.root) == {}, "nothing of such a frame is applied"


def test_nothing_is_written_through_a_symlink(standby: Standby, log: LogWriter) -> None:
    outside = standby.root.parent / "outside"
    outside.mkdir()
    (outside / "f").write_text("untouched")
    status = os.stat(outside / "f")
    do(standby, log, Mkdir(TREE, b"d", FOLDER), put(b"d/f"), Mkdir(TREE, b"e", FOLDER), put(b"file"))
    standby.stop()  # or directories would still be open from before
    standby.start()
    (standby.root / "d").rename(standby.root / "away")
    (standby.root / "d").symlink_to(outside)
    (standby.root / "file").unlink()
    (standby.root / "file").symlink_to(outside / "f")
    chain = log.chain
    for change in (
        put(b"d/f", b"x"),
        put(b"d/g", b"x"),
        patch(b"d/f", b"x"),
        SetMeta(TREE, b"d/f", META),
        Remove(TREE, b"d/f"),
        Rename(TREE, b"d/f", b"e/f"),
        Rename(TREE, b"file", b"d/x"),
        Link(TREE, b"d/f", b"e/f"),
        Mkdir(TREE, b"d/x", FOLDER),
        Symlink(TREE, b"d/x", b"x", META),
        patch(b"file", b"x"),
        SetMeta(TREE, b"file", META),
        SetMeta(TREE, b"d", FOLDER),
    ):
        log.chain = chain
        with pytest.raises((SymlinkInTheWay, Diverged)):
            do(standby, log, change)
    assert os.listdir(outside) == ["f"]
    assert (outside / "f").read_text() == "untouched"
    after = os.stat(outside / "f")
    assert (after.st_mode, after.st_mtime_ns, after.st_ctime_ns) == (
        status.st_mode,
        status.st_mtime_ns,
        status.st_ctime_ns,
    )


def test_what_the_rules_exclude_goes_with_its_directory(standby: Standby, log: LogWriter) -> None:
    do(standby, log, Mkdir(TREE, b"d", FOLDER))
    (standby.root / "d/index.cache").write_text("made again by itself")
    (standby.root / "d/own").write_text("this machine's own")
    (standby.root / "d/unknown").write_text("unknown")
    (standby.root / "d/tmp").mkdir()
    (standby.root / "d/tmp/half").write_text("half a delivery")
    (standby.root / "d/sub").mkdir()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(standby.root / "d/socket"))
    do(standby, log, Rmdir(TREE, b"d"))
    assert picture_of(standby.root) == {}
    kept = {path.name for path in (standby.root / ".holdfast/aside").rglob("*") if not path.is_dir()}
    assert kept == {"own", "unknown", "half", "socket"}


# -- exactness -------------------------------------------------------------------------------------------------------


def test_owners_bits_attributes_and_times(standby: Standby, log: LogWriter) -> None:
    rich = Meta(0o4750, "#1234", "#2345", 1_000_000_000_000_000_001, ((b"user.a", b"1"), (b"user.b", b"")))
    changes: list[Change] = [
        Put(TREE, b"f", 1, rich, content_digests(b"x"), (Extent(0, b"x"),)),
        Mkdir(TREE, b"d", rich),
        Symlink(TREE, b"l", b"\xff/\n", Meta(0o777, "#1234", "#2345", rich.mtime_ns, ((b"trusted.t", b"v"),))),
        put(b"g"),
        SetMeta(TREE, b"g", rich),
        put(b"h"),
        Patch(TREE, b"h", 1, rich, content_digests(b"y"), (Extent(0, b"y"),)),
    ]
    do(standby, log, *changes)
    for name in ("f", "d", "g", "h"):
        seen = os.lstat(standby.root / name)
        assert (stat.S_IMODE(seen.st_mode), seen.st_uid, seen.st_gid) == (0o4750, 1234, 2345)
        assert seen.st_mtime_ns == rich.mtime_ns
        assert {a: os.getxattr(standby.root / name, a) for a in os.listxattr(standby.root / name)} == {
            "user.a": b"1",
            "user.b": b"",
        }
    link = os.lstat(standby.root / "l")
    assert (link.st_uid, link.st_gid, link.st_mtime_ns) == (1234, 2345, rich.mtime_ns)
    do(standby, log, SetMeta(TREE, b"f", META), SetMeta(TREE, b"l", META))
    assert os.listxattr(standby.root / "f") == []
    index_agrees(standby.index, standby.root)


def test_a_capability_survives_a_patch(standby: Standby, log: LogWriter) -> None:
    """The kernel takes it away at each write: capabilities(7)."""
    capability = bytes.fromhex("0100000200040000000000000000000000000000")
    able = Meta(0o755, "#0", "#0", 10**18, ((b"security.capability", capability),))
    do(standby, log, Put(TREE, b"f", 1, able, content_digests(b"x"), (Extent(0, b"x"),)))
    do(standby, log, Patch(TREE, b"f", 1, able, content_digests(b"y"), (Extent(0, b"y"),)))
    assert os.getxattr(standby.root / "f", "security.capability") == capability


def test_a_name_this_machine_does_not_know_is_reported(standby: Standby, log: LogWriter) -> None:
    do(standby, log, Mkdir(TREE, b"d", Meta(0o700, "no-such-user", "no-such-group", 1)))
    assert standby.owners.unknown == {"user no-such-user", "group no-such-group"}
    assert os.stat(standby.root / "d").st_uid == 0


def test_metadata_of_the_root(standby: Standby, log: LogWriter) -> None:
    do(standby, log, SetMeta(TREE, b"", Meta(0o711, "#77", "#78", 5)))
    seen = os.stat(standby.root)
    assert (stat.S_IMODE(seen.st_mode), seen.st_uid, seen.st_gid) == (0o711, 77, 78)


@pytest.mark.parametrize("name", [b"new\nline", b"\xff\xfe\x80", b"n" * 255, b"\xe2\x80\xae", b"-rf", b"*"])
def test_any_name_linux_allows(standby: Standby, log: LogWriter, name: bytes) -> None:
    deep = b"/".join([name] * 8)
    for depth in range(1, 8):
        do(standby, log, Mkdir(TREE, b"/".join([name] * depth), FOLDER))
    do(standby, log, put(deep), Link(TREE, deep, deep[:-1] + b"x"), Rename(TREE, deep, b"moved"))
    index_agrees(standby.index, standby.root)
    standby.crash()
    standby.start()
    assert picture_of(standby.root) == {}


def test_a_large_file_in_parts(standby: Standby, log: LogWriter) -> None:
    """100 MB, which appear at once and only when whole; then grown by a hole and a tail, in parts as well."""
    part = bytes(range(256)) * 4096
    digests = content_digests(part) * 100
    size = 100 * len(part)
    standby.applier.apply(*log.changes([Put(TREE, b"f", len(part), META, b"", (Extent(0, part),), True)], more=True))
    for number in range(1, 100):
        last = number == 99
        extents = (Extent(number * len(part), part),)
        change = Patch(TREE, b"f", (number + 1) * len(part), META, digests if last else b"", extents, 0, not last)
        assert not (standby.root / "f").exists()
        standby.applier.apply(*log.changes([change], more=not last))
    assert (standby.root / "f").stat().st_size == size
    assert standby.applier.steps.unfinished == set()
    hole = 1 << 30
    first_block, end = size // BLOCK_BYTES, size + hole
    tail = ZERO_BLOCK_DIGEST * (hole // BLOCK_BYTES) + content_digests(b"tail")
    more = Patch(TREE, b"f", end, META, b"", (Extent(0, part),), 0, True)
    done = Patch(TREE, b"f", end + 4, META, tail, (Extent(end, b"tail"),), first_block)
    standby.applier.apply(*log.changes([more, done]))
    seen = (standby.root / "f").stat()
    assert seen.st_size == end + 4
    assert seen.st_blocks * 512 < size + (1 << 20)
    node = standby.index.at(TREE, b"f")
    assert node is not None
    assert node.content == digests + tail


def test_a_name_used_again_is_another_thing(standby: Standby, log: LogWriter) -> None:
    """The undoing goes by identity: of two things that had the same name, each is found."""
    do(standby, log, put(b"a", b"one"), Mkdir(TREE, b"d", FOLDER), put(b"d/f", b"in the first"))
    standby.applier.make_durable()
    before = picture_of(standby.root)
    reuse = log.changes(
        [
            Rename(TREE, b"a", b"b"),
            put(b"a", b"two"),
            Rename(TREE, b"d", b"e"),
            Mkdir(TREE, b"d", FOLDER),
            put(b"d/f", b"in the second"),
            Rename(TREE, b"e/f", b"d/g"),
            Rmdir(TREE, b"e"),
        ]
    )
    standby.applier.apply(*reuse)
    after = picture_of(standby.root)
    standby.crash()
    standby.start()
    undone = picture_of(standby.root)
    assert undone == before
    assert standby.report.unknown == 2
    standby.applier.apply(*reuse)
    assert picture_of(standby.root) == after
    settlement = standby.applier.settle()
    assert settlement == ((), ())
    assert standby.aside.count == 0
    assert [path for path in (standby.root / ".holdfast/aside").rglob("*") if path.is_file()] == []


def test_what_the_log_does_not_bring_again_stays_aside(standby: Standby, log: LogWriter) -> None:
    do(standby, log, put(b"a"))
    standby.applier.make_durable()
    (standby.root / "foreign").write_text("nobody logged me")
    standby.crash()
    standby.start()
    assert list(picture_of(standby.root)) == [b"a"]
    (kept,) = standby.applier.settle().kept
    assert kept.path == b"foreign"
    assert (standby.root / os.fsdecode(kept.kept)).read_text() == "nobody logged me"


def test_a_stop_during_recovery_is_recovered_from(standby: Standby, log: LogWriter) -> None:
    do(standby, log, Mkdir(TREE, b"d", FOLDER), put(b"d/a", b"1"), put(b"d/b", b"2"), put(b"gone", b"3"))
    standby.applier.make_durable()
    before = picture_of(standby.root)
    standby.crash()
    undo = standby.root / ".holdfast/undo"
    undo.mkdir()
    (standby.root / "d/a").rename(undo / "7")
    (standby.root / "d").rename(undo / "8")
    (undo / "1").write_text("a stranger")
    standby.start()
    assert picture_of(standby.root) == before
    assert not undo.exists()
    assert standby.report.unknown == 1
