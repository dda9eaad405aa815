"""Deliberate damage of each kind is found by verify and put right by heal; what is in motion is neither."""

from __future__ import annotations

import os
import random
import shutil
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from holdfast.apply.heal import HealReport, heal
from holdfast.apply.verify import Difference, VerifyProgress, VerifyReport, compare_listings, verify
from holdfast.changes.change import Meta
from holdfast.changes.digest import BLOCK_BYTES
from holdfast.changes.exchange import Entry, EntryKind
from holdfast.changes.names import Position
from holdfast.errors import HoldfastError
from holdfast.trees.audit import Audit
from holdfast.trees.index import Index, IndexReader
from holdfast.trees.listing import order_key
from holdfast.trees.rate import TokenBucket
from holdfast.trees.stat import Owners
from tests.apply.model import picture_of
from tests.apply.two_machines import Joiner, Primary, fill, no_pause, run_async, write
from tests.trees.small_scan import scan_into


class Stand:
    """The pump of a standby that has applied everything."""

    def __init__(self, joiner: Joiner) -> None:
        self.joiner = joiner
        self.held = False

    async def hold(self) -> None:
        self.held = True

    async def reach(self, position: Position) -> IndexReader:
        if not self.held or self.joiner.index.position != position:
            raise HoldfastError(f"it stands at {self.joiner.index.position}, not {position}")
        return self.joiner.index.reader()

    async def release(self) -> None:
        self.held = False


class Pair:
    """A seeded pair of machines."""

    def __init__(self, folder: Path) -> None:
        self.primary, self.joiner = Primary.made(folder), Joiner.made(folder)
        self.told: list[VerifyProgress] = []
        self.pauses = 0

    async def seed(self) -> None:
        self.primary.rescan(5)
        await self.joiner.seed(self.primary.peer())

    def audit(self, full: bool) -> Audit:
        rate = TokenBucket(0, time.monotonic)
        return Audit(
            (self.joiner.tree,),
            self.joiner.index.reader,
            full=full,
            rate=rate,
            clock=time.monotonic,
            pause=time.sleep,
        )

    async def verify(self, *, full: bool = True) -> VerifyReport:
        return await verify(
            self.primary.peer(),
            "backup",
            Stand(self.joiner),
            self.audit,
            Owners(),
            full=full,
            progress=self.told.append,
            clock=time.monotonic,
            pause=no_pause,
        )

    @asynccontextmanager
    async def paused(self) -> AsyncIterator[Index]:
        self.pauses += 1
        yield self.joiner.index
        self.joiner.index.commit(self.joiner.index.chain, self.joiner.index.epoch)

    async def heal(self, spots: list[bytes]) -> HealReport:
        trees = {"store": self.joiner.tree}
        damaged = [("store", path) for path in spots]
        return await heal(self.primary.peer(), self.paused, trees, self.joiner.aside, damaged)


@run_async
async def test_a_fresh_copy_is_equal(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    fill(pair.primary.root, random.Random(1))
    await pair.seed()
    for full in (False, True):
        report = await pair.verify(full=full)
        assert report.differences == []
        assert report.equal
        assert report.position == pair.primary.index.position
        assert (report.files, report.bytes) == (pair.primary.index.totals().files, pair.primary.index.totals().bytes)
    assert pair.primary.barriers > 0
    assert pair.told[-1].entries == pair.told[-1].entries_total + 2 * 3, "three further names of files on each side"
    await pair.primary.source.close()


def break_content(root: Path) -> None:
    path = root / "large"
    before = path.stat().st_mtime_ns
    with path.open("r+b") as file:
        file.seek(3 * BLOCK_BYTES + 1)
        file.write(b"\0\0")
    os.utime(path, ns=(before, before))


def replace_file(root: Path) -> None:
    (root / "large").unlink()
    write(root / "large", b"not it")


def break_links(root: Path) -> None:
    status, content = (root / "one").stat(), (root / "one").read_bytes()
    (root / "one").unlink()
    write(root / "one", content, status.st_mtime_ns)
    os.chmod(root / "one", status.st_mode & 0o7777)


def swap_link(root: Path) -> None:
    (root / "link").unlink()
    (root / "link").symlink_to("/etc")


def behind_a_symlink(root: Path) -> None:
    (root / "d").rename(root.parent / "moved")
    (root / "d").symlink_to(root.parent / "moved")


def directory_instead(root: Path) -> None:
    (root / "d/f").unlink()
    (root / "d/f").mkdir()


def fifo_instead(root: Path) -> None:
    (root / "d/f").unlink()
    os.mkfifo(root / "d/f")


DAMAGES: dict[str, tuple[Callable[[Path], object], bytes]] = {
    "content": (break_content, b"large"),
    "truncated": (lambda root: os.truncate(root / "large", 70_000), b"large"),
    "longer": (lambda root: os.truncate(root / "large", 9_000_000), b"large"),
    "missing": (lambda root: (root / "large").unlink(), b"large"),
    "replaced": (replace_file, b"large"),
    "a directory instead": (directory_instead, b"d/f"),
    "a fifo instead": (fifo_instead, b"d/f"),
    "a missing directory": (lambda root: shutil.rmtree(root / "d"), b"d"),
    "a directory moved behind a symlink": (behind_a_symlink, b"d"),
    "mode": (lambda root: os.chmod(root / "d/f", 0o4777), b"d/f"),
    "mode of a directory": (lambda root: os.chmod(root / "d", 0o777), b"d"),
    "owner": (lambda root: os.chown(root / "d/f", 77, 88), b"d/f"),
    "time": (lambda root: os.utime(root / "d/f", ns=(1, 1)), b"d/f"),
    "attribute": (lambda root: os.setxattr(root / "d/f", "user.new", b"1"), b"d/f"),
    "a link's target": (swap_link, b"link"),
    "a missing link": (lambda root: (root / "link").unlink(), b"link"),
    "a missing name": (lambda root: (root / "two").unlink(), b"two"),
    "names parted": (break_links, b"one"),
    "an extra file": (lambda root: write(root / "d/extra", b"x"), b"d/extra"),
    "an extra directory": (lambda root: write(root / "more/deep/x", b"x"), b"more"),
    "holes": (lambda root: os.truncate(root / "sparse", 0), b"sparse"),
}


@pytest.mark.parametrize("kind", DAMAGES)
@run_async
async def test_damage_is_found_and_healed(tmp_path: Path, kind: str) -> None:
    pair = Pair(tmp_path)
    root = pair.primary.root
    write(root / "large", random.Random(1).randbytes(1_000_000))
    write(root / "d" / "f", b"content")
    write(root / "d" / "e" / "g", b"")
    write(root / "one", b"linked")
    os.link(root / "one", root / "two")
    os.link(root / "one", root / "d" / "three")
    (root / "link").symlink_to("there")
    with (root / "sparse").open("wb") as sparse:
        sparse.seek(2_000_000)
        sparse.write(b"end")
    await pair.seed()
    damage, path = DAMAGES[kind]
    damage(pair.joiner.root)
    report = await pair.verify()
    assert not report.equal
    assert path in {difference.path for difference in report.differences}
    assert {difference.machine for difference in report.differences} == {"backup"}
    healed = await pair.heal([difference.path for difference in report.differences])
    assert healed.left == {}
    assert ("store", path) in healed.healed
    assert picture_of(pair.joiner.root) == picture_of(root)
    after = await pair.verify()
    assert after.differences == []
    assert after.equal
    if kind == "content":
        assert healed.fetched_bytes == BLOCK_BYTES, "only the block that was bad"
    assert (pair.joiner.root / "d").stat().st_mtime_ns == (root / "d").stat().st_mtime_ns or kind == "an extra file"
    await pair.primary.source.close()


@run_async
async def test_damage_at_the_primary_is_named_there_and_not_copied(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    write(pair.primary.root / "large", random.Random(1).randbytes(1_000_000))
    await pair.seed()
    break_content(pair.primary.root)
    report = await pair.verify()
    assert report.differences == [
        Difference("main", "store", b"large", "content", f"from byte {3 * BLOCK_BYTES} on"),
    ]
    break_content(pair.joiner.root)
    healed = await pair.heal([b"large"])
    assert healed.healed == []
    assert "primary's content" in healed.left["store", b"large"]
    await pair.primary.source.close()


@run_async
async def test_what_the_log_has_not_brought_yet_is_not_healed(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    write(pair.primary.root / "a", b"old")
    await pair.seed()
    write(pair.primary.root / "a", b"newer")
    pair.primary.rescan(6)
    (pair.joiner.root / "a").write_bytes(b"bad")
    healed = await pair.heal([b"a"])
    assert "log has not brought" in healed.left["store", b"a"]
    assert (pair.joiner.root / "a").read_bytes() == b"bad"
    await pair.primary.source.close()


@run_async
async def test_what_changes_while_it_is_healed_is_left(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    write(pair.primary.root / "a", b"old")
    await pair.seed()
    (pair.joiner.root / "a").write_bytes(b"bad")

    @asynccontextmanager
    async def paused() -> AsyncIterator[Index]:
        pair.pauses += 1
        if pair.pauses == 2:  # the applier brought the next state
            (pair.joiner.root / "a").write_bytes(b"next")
            scan_into(pair.joiner.index, (pair.joiner.tree,), 6)
        yield pair.joiner.index

    trees = {"store": pair.joiner.tree}
    healed = await heal(pair.primary.peer(), paused, trees, pair.joiner.aside, [("store", b"a")])
    assert healed.left == {("store", b"a"): "it changed while it was healed"}
    assert (pair.joiner.root / "a").read_bytes() == b"next"
    assert not list((pair.joiner.root / ".holdfast" / "staging").iterdir())
    await pair.primary.source.close()


@run_async
async def test_a_place_that_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    await pair.seed()
    write(pair.joiner.root / ".holdfast" / "cookies" / "1", b"")
    trees = {"store": pair.joiner.tree}
    spots = [("store", b".holdfast/cookies/1"), ("other", b"x")]
    healed = await heal(pair.primary.peer(), pair.paused, trees, pair.joiner.aside, spots)
    assert healed.left.keys() == set(spots)
    assert (pair.joiner.root / ".holdfast" / "cookies" / "1").exists()
    await pair.primary.source.close()


@run_async
async def test_a_standby_at_another_position_is_not_compared(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    await pair.seed()
    pair.primary.rescan(9)
    with pytest.raises(HoldfastError, match="stands at"):
        await pair.verify()
    await pair.primary.source.close()


META = Meta(0o600, "a", "b", 1)


def file(path: bytes, node: int = 1, links: int = 1, size: int = 0, content: bytes = b"", meta: Meta = META) -> Entry:
    return Entry(path, EntryKind.FILE, meta, size, content, node, links)


def test_listings_are_compared_name_by_name() -> None:
    ones = [
        Entry(b"", EntryKind.DIRECTORY, META, 0, b"", 1, 1),
        file(b"equal"),
        file(b"gone"),
        file(b"kind"),
        file(b"size", size=3, content=bytes(16)),
        file(b"content", size=3, content=bytes(16)),
        file(b"meta"),
        Entry(b"link", EntryKind.SYMLINK, META, 0, b"x", 3, 1),
        file(b"names/1", 9, 2),
        file(b"names/2", 9, 2),
        file(b"count", 10, 2),
    ]
    others = [
        Entry(b"", EntryKind.DIRECTORY, Meta(0o600, "a", "b", 2), 0, b"", 5, 1),
        file(b"equal", 77),
        file(b"new"),
        Entry(b"kind", EntryKind.DIRECTORY, META, 0, b"", 1, 1),
        file(b"size", size=2, content=bytes(16)),
        file(b"content", size=3, content=b"\1" * 16),
        file(b"meta", meta=Meta(0o644, "x", "b", 2, ((b"user.x", b""),))),
        Entry(b"link", EntryKind.SYMLINK, Meta(0o777, "a", "b", 1), 0, b"y", 3, 1),
        file(b"names/1", 20, 2),
        file(b"names/2", 21, 2),
        file(b"count", 22, 1),
    ]
    ones.sort(key=lambda entry: order_key(entry.path))
    others.sort(key=lambda entry: order_key(entry.path))
    found = {(finding.path, finding.what) for finding in compare_listings("store", iter(ones), iter(others))}
    assert found == {
        (b"gone", "missing"),
        (b"new", "extra"),
        (b"kind", "kind"),
        (b"size", "size"),
        (b"content", "content"),
        (b"meta", "mode"),
        (b"meta", "owner"),
        (b"meta", "mtime"),
        (b"meta", "xattrs"),
        (b"link", "target"),
        (b"names/2", "links"),
        (b"count", "links"),
    }
    assert list(compare_listings("store", ones, ones)) == []
