"""An audit names every kind of damage, and nothing that is only in motion."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from holdfast.changes.digest import BLOCK_BYTES
from holdfast.trees.audit import ROUNDS_MAX, Audit, Cursor
from holdfast.trees.index import Index, IndexReader
from holdfast.trees.rate import TokenBucket
from holdfast.trees.spec import Tree, TreeSpec
from tests.trees.small_scan import scan_into, scanned


class Ground:
    """A tree and its index."""

    def __init__(self, folder: Path, **spec: tuple[str, ...]) -> None:
        self.root = folder / "store"
        self.root.mkdir()
        self.tree = Tree(TreeSpec("store", str(self.root), **spec))
        for name in ("a", "d/b", "d/e/c", "z/y"):
            path = self.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(name.encode() * 1000)
        (self.root / "large").write_bytes(os.urandom(3 * BLOCK_BYTES + 5))
        os.link(self.root / "a", self.root / "d" / "a again")
        (self.root / "link").symlink_to("there")
        self.index: Index = scanned(folder / "index", (self.tree,))
        self.snapshots = 0

    def snapshot(self) -> IndexReader:
        self.snapshots += 1
        return self.index.reader()

    def audit(
        self, *, full: bool = True, after: Cursor | None = None, snapshot: Callable[[], IndexReader] | None = None
    ) -> Audit:
        return Audit(
            (self.tree,),
            snapshot or self.snapshot,
            full=full,
            rate=TokenBucket(0, time.monotonic),
            clock=time.monotonic,
            pause=time.sleep,
            after=after,
        )

    def found(self, *, full: bool = True) -> set[tuple[bytes, str]]:
        return {(finding.path, finding.what) for finding in self.audit(full=full).run()}


@pytest.fixture
def ground(tmp_path: Path) -> Ground:
    return Ground(tmp_path)


def keep_mtime(path: Path, change: Callable[[], object]) -> None:
    before = path.stat().st_mtime_ns
    change()
    os.utime(path, ns=(before, before))


@pytest.mark.parametrize("full", [False, True])
def test_a_sound_tree_has_no_findings(ground: Ground, full: bool) -> None:
    audit = ground.audit(full=full)
    assert list(audit.run()) == []
    assert audit.progress.entries == audit.progress.entries_total + 1, "one file has two names"
    assert (audit.progress.bytes > 3 * BLOCK_BYTES, audit.progress.unsettled) == (True, 0)


def test_times_of_directories_say_nothing(ground: Ground) -> None:
    os.utime(ground.root / "d", ns=(1, 1))
    assert ground.found() == set()


@pytest.mark.parametrize("full", [False, True])
def test_every_kind_of_damage_is_named(ground: Ground, full: bool) -> None:
    root = ground.root
    (root / "d/b").unlink()
    (root / "new").write_bytes(b"x")
    (root / "new directory" / "below").mkdir(parents=True)
    (root / "link").unlink()
    (root / "link").symlink_to("elsewhere")
    keep_mtime(root / "large", lambda: os.truncate(root / "large", 5))
    keep_mtime(root / "z/y", lambda: os.chmod(root / "z/y", 0o600 ^ 0o111))
    os.chown(root / "d/e", 12, 34)
    os.utime(root / "d/e/c", ns=(5, 5))
    os.setxattr(root / "d/e/c", "user.x", b"1")
    found = ground.found(full=full)
    assert found - {(b"link", "mtime")} == {
        (b"d/b", "missing"),
        (b"new", "extra"),
        (b"new directory", "extra"),
        (b"link", "target"),
        (b"large", "size"),
        (b"z/y", "mode"),
        (b"d/e", "owner"),
        (b"d/e/c", "mtime"),
        (b"d/e/c", "xattrs"),
    }


def test_changed_bytes_are_found_by_a_full_audit_only(ground: Ground) -> None:
    def change() -> None:
        with (ground.root / "large").open("r+b") as file:
            file.seek(2 * BLOCK_BYTES + 3)
            file.write(b"\0damage")

    keep_mtime(ground.root / "large", change)
    assert ground.found(full=False) == set()
    findings = list(ground.audit().run())
    assert [(f.path, f.what, f.detail) for f in findings] == [(b"large", "content", f"from byte {2 * BLOCK_BYTES} on")]


def test_a_missing_directory_names_what_was_in_it(ground: Ground) -> None:
    (ground.root / "d/e/c").unlink()
    (ground.root / "d/e").rmdir()
    assert ground.found() == {(b"d/e", "missing"), (b"d/e/c", "missing")}


def test_a_directory_behind_a_symlink_is_not_looked_into(ground: Ground) -> None:
    (ground.root / "z").rename(ground.root.parent / "moved")
    (ground.root / "z").symlink_to(ground.root.parent / "moved")
    assert ground.found() == {(b"z", "kind"), (b"z/y", "missing")}


def test_a_fifo_where_a_file_was_does_not_hang(ground: Ground) -> None:
    (ground.root / "z/y").unlink()
    os.mkfifo(ground.root / "z/y")
    assert ground.found() == {(b"z/y", "kind")}


def test_names_of_one_file_that_are_two_now(ground: Ground) -> None:
    path = ground.root / "d" / "a again"
    content, status = path.read_bytes(), path.stat()
    path.unlink()
    path.write_bytes(content)
    os.utime(path, ns=(0, status.st_mtime_ns))
    assert {what for _, what in ground.found()} == {"links"}


def test_two_files_that_are_one_now(ground: Ground) -> None:
    for name in ("one", "two"):
        (ground.root / name).write_bytes(b"same")
        os.utime(ground.root / name, ns=(0, 7))
    scan_into(ground.index, (ground.tree,), 2)
    (ground.root / "two").unlink()
    os.link(ground.root / "one", ground.root / "two")
    assert ground.found() == {(b"two", "links")}


def test_what_is_left_out_is_not_looked_at(tmp_path: Path) -> None:
    ground = Ground(tmp_path, exclude=("*.cache", "tmp/"), overrides=("own",))
    for name in ("x.cache", "own", "tmp/deep", ".holdfast/staging/1"):
        path = ground.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    os.mkfifo(ground.root / "fifo")
    assert ground.found() == set()


def test_what_the_index_learns_meanwhile_is_no_finding(ground: Ground) -> None:
    """On a primary the tree is ahead of the index: by the second look the index has caught up."""

    def snapshot() -> IndexReader:
        if ground.snapshots == 1:  # the first look is over
            scan_into(ground.index, (ground.tree,), 2)
        return ground.snapshot()

    (ground.root / "d" / "new").write_bytes(b"arrived")
    (ground.root / "a").rename(ground.root / "renamed")
    (ground.root / "large").write_bytes(b"rewritten")
    assert list(ground.audit(snapshot=snapshot).run()) == []
    assert ground.snapshots > 1


def test_what_is_away_for_two_looks_and_comes_back_is_no_finding(ground: Ground) -> None:
    """A rename away and back again, each of which the index has yet to hear of."""

    def snapshot() -> IndexReader:
        if ground.snapshots == 2:
            (ground.root.parent / "elsewhere").rename(ground.root / "z/y")
        return ground.snapshot()

    (ground.root / "z/y").rename(ground.root.parent / "elsewhere")
    audit = ground.audit(snapshot=snapshot)
    assert list(audit.run()) == []
    assert audit.progress.unsettled == 0


def test_what_changes_at_every_look_is_counted_and_not_judged(ground: Ground) -> None:
    def snapshot() -> IndexReader:
        os.truncate(ground.root / "large", ground.snapshots)
        return ground.snapshot()

    audit = ground.audit(snapshot=snapshot)
    assert list(audit.run()) == []
    assert audit.progress.unsettled == 1
    assert ground.snapshots == ROUNDS_MAX + 1


def test_it_goes_on_after_its_cursor(ground: Ground) -> None:
    audit = ground.audit()
    looked = audit.run()
    for name in ("d/b", "z/y"):
        (ground.root / name).unlink()
    audit.stop_wanted = True
    list(looked)
    assert audit.progress.cursor is None, "nothing was finished"
    rest = ground.audit(after=Cursor("store", b"d/e"))
    assert [finding.path for finding in rest.run()] == [b"z/y"]
    assert rest.progress.cursor == Cursor("store", b"z")
    assert [finding.path for finding in ground.audit(after=Cursor("no such tree", b"")).run()] == [b"d/b", b"z/y"]


def test_contents_are_read_at_the_rate(ground: Ground) -> None:
    now = 0.0

    def pause(seconds: float) -> None:
        nonlocal now
        now += seconds

    rate = TokenBucket(BLOCK_BYTES, lambda: now)
    audit = Audit((ground.tree,), ground.snapshot, full=True, rate=rate, clock=lambda: now, pause=pause)
    assert list(audit.run()) == []
    size = sum(path.stat().st_size for path in ground.root.rglob("*") if path.is_file() and not path.is_symlink())
    assert now > (size - 4 * BLOCK_BYTES) / BLOCK_BYTES
