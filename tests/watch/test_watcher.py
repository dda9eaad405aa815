"""The watcher as a whole: barriers, restarts, scans, several trees, what is left out."""

from __future__ import annotations

import mmap
import os
import shutil
import threading
import time
from pathlib import Path

import pytest

from holdfast.changes.change import Change, Patch, Put
from holdfast.trees.index import Index, NodeKind
from holdfast.trees.spec import Tree, TreeSpec
from holdfast.trees.stat import Owners
from holdfast.watch.limits import Limits
from holdfast.watch.watcher import Cookie, ScanProgress, Watcher
from tests.watch.conftest import own_tmpfs
from tests.watch.ground import Ground, kinds

DEADLINE_SECONDS = 20.0
QUIET = Limits(settle_seconds=3600.0, limbo_seconds=0.005)


# -- barriers ----------------------------------------------------------------------------------------------------------


def test_a_barrier_covers_what_was_done_before_it(ground: Ground) -> None:
    """Eight threads write, ask for a barrier, and find what they wrote in the mirror when it has passed."""
    events = dict[Cookie, threading.Event]()
    lock = threading.Lock()
    missing: list[str] = []
    running = threading.Semaphore(0)

    def client(number: int) -> None:
        for step in range(20):
            path = ground.root / f"{number}-{step}"
            path.write_text("x")
            os.rename(path, ground.root / f"{number}-{step}-done")
            with lock:
                passed = events.setdefault(ground.watcher.barrier(), threading.Event())
            assert passed.wait(DEADLINE_SECONDS)
            if not (ground.base / "mirror" / f"{number}-{step}-done").exists():
                missing.append(f"{number}-{step}")
        running.release()

    threads = [threading.Thread(target=client, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    until = time.monotonic() + DEADLINE_SECONDS
    while any(thread.is_alive() for thread in threads):
        assert time.monotonic() < until
        ground.take(ground.watcher.collect(wait_seconds=0.02))
        with lock:
            for cookie in ground.watcher.passed_cookies():
                events.pop(cookie).set()
    for thread in threads:
        thread.join()
    assert not missing
    ground.collect()
    ground.check()


def test_waiters_share_a_cookie_until_it_is_taken(ground: Ground) -> None:
    first, second = ground.watcher.barrier(), ground.watcher.barrier()
    assert first == second
    batch = ground.watcher.collect(wait_seconds=0)
    assert ground.watcher.barrier() != first
    assert not ground.watcher.passed_cookies()
    ground.take(batch)
    assert ground.watcher.passed_cookies() == (first,)


def test_a_barrier_waits_for_what_is_in_limbo(ground: Ground) -> None:
    (ground.root / "a").write_text("mail")
    ground.collect()
    os.rename(ground.root / "a", ground.root / "b")
    cookie = ground.watcher.barrier()
    batch = ground.watcher.collect(wait_seconds=0)
    os.rename(ground.root / "b", ground.root / "c")
    ground.take(batch)
    assert cookie not in ground.watcher.passed_cookies()
    ground.collect()
    ground.check()


def test_collect_wakes_for_events_and_for_barriers(ground: Ground) -> None:
    for wake in (lambda: (ground.root / "a").write_text("x"), ground.watcher.barrier):
        timer = threading.Timer(0.05, wake)
        timer.start()
        began = time.monotonic()
        ground.take(ground.watcher.collect(wait_seconds=10))
        assert time.monotonic() - began < 5
        timer.join()


@pytest.mark.system
def test_events_are_drained_while_the_consumer_is_busy(tmpfs: Path) -> None:
    """A consumer that holds a batch open for long does not make the kernel's queue (16,384 here) overflow."""
    ground = Ground(tmpfs, sources=("fanotify",), start=False)
    ground.watcher = Watcher(ground.index, [ground.tree], Owners(), batch_seconds=0.0, queue_unlimited=False)
    ground.watcher.start()
    ground.scan()
    (ground.root / "a").write_text("x")
    batch = ground.watcher.collect(wait_seconds=0)
    for number in range(30_000):
        (ground.root / f"n{number}").touch()
        if number % 5000 == 0:
            until = time.monotonic() + DEADLINE_SECONDS
            while ground.watcher.status().waiting_events < number and time.monotonic() < until:
                time.sleep(0.01)
    ground.take(batch)
    ground.collect()
    assert ground.watcher.status().overflows == 0
    assert ground.index.totals().files == 30_001
    ground.close()


# -- restarts ----------------------------------------------------------------------------------------------------------


def populate(root: Path) -> None:
    for folder in range(5):
        (root / f"folder{folder}/cur").mkdir(parents=True)
        for number in range(20):
            (root / f"folder{folder}/cur/{number}").write_text(f"mail {number}")
    os.link(root / "folder0/cur/1", root / "folder1/cur/linked")
    os.symlink("folder0", root / "link")


def test_a_restart_logs_exactly_what_differs(ground: Ground) -> None:
    populate(ground.root)
    ground.collect()
    ground.commit()
    ground.watcher.stop()
    os.rename(ground.root / "folder0", ground.root / "renamed")
    os.rename(ground.root / "folder1/cur/3", ground.root / "folder2/cur/moved")
    (ground.root / "folder3/cur/4").write_text("changed")
    (ground.root / "folder3/cur/5").unlink()
    (ground.root / "folder4/cur/new").write_text("new")
    os.chmod(ground.root / "folder4/cur/6", 0o600)
    before = len(ground.log)
    ground.watcher = ground._watcher()
    ground.watcher.start()
    ground.scan()
    ground.settle()
    named = sorted(kinds(ground.log[before:]))
    if ground.watcher._reconciler.scene.disk.opens_handles:
        assert named == ["Patch", "Put", "Remove", "Rename", "Rename"]
    ground.check()


def test_records_read_again_are_adopted_without_logging(ground: Ground) -> None:
    """The index was never committed: all of it comes back from the log, and a scan gives it identities."""
    populate(ground.root)
    ground.settle()
    before = len(ground.log)
    ground.crash()
    assert kinds(ground.log[before:]) == []
    (ground.root / "folder0/cur/1").write_text("changed")
    os.rename(ground.root / "folder2", ground.root / "renamed")
    assert sorted(kinds(ground.collect())) == ["Patch", "Rename"]
    ground.check()


def test_an_index_kept_until_now_needs_no_scan(ground: Ground) -> None:
    """A standby that is promoted: its applier kept the index, handles included."""
    populate(ground.root)
    ground.collect()
    ground.watcher.stop()
    ground.watcher = ground._watcher()
    ground.watcher.start()
    (ground.root / "folder3/cur/new").write_text("new")
    os.rename(ground.root / "folder0", ground.root / "renamed")
    assert sorted(kinds(ground.collect())) == ["Put", "Rename"]
    ground.check()


def test_after_a_power_cut_what_changed_shortly_before_is_read(tmp_path: Path) -> None:
    """Size and times may be durable where the bytes are not."""
    ground = Ground(tmp_path, limits=QUIET)
    file = ground.root / "a"
    file.write_bytes(b"x" * 1000)
    ground.collect()
    ground.commit()
    node = ground.index.at("store", b"a")
    assert node is not None
    ground.watcher.stop()
    file.write_bytes(b"\0" * 1000)
    os.utime(file, ns=(node.mtime_ns, node.mtime_ns))
    ground.index.resight(node.id, node.handle, node.ino, os.stat(file).st_ctime_ns)  # as if ctime were the same
    ground.watcher = ground._watcher()
    ground.watcher.start()
    assert kinds(ground.scan()) == []
    changes = ground.take(ground.watcher.scan(lambda progress: None, doubt_since_ns=node.mtime_ns - 10**9))
    assert kinds(changes) == ["Patch"]
    ground.check()
    ground.close()


# -- scans -------------------------------------------------------------------------------------------------------------


def test_scans_alone_serve_copies_at_intervals(tmp_path: Path) -> None:
    ground = Ground(tmp_path, start=False)
    populate(ground.root)
    ground.scan()
    ground.check()
    os.rename(ground.root / "folder0", ground.root / "renamed")
    os.rename(ground.root / "folder1/cur/3", ground.root / "folder4/cur/later")
    os.rename(ground.root / "folder4/cur/3", ground.root / "folder1/cur/earlier")
    os.rename(ground.root / "folder2/cur/3", ground.outside / "gone")
    assert sorted(kinds(ground.scan())) == ["Remove", "Rename", "Rename", "Rename"]
    ground.check()
    assert ground.watcher.status().source == "none"
    ground.close()


def test_a_scan_left_in_the_middle_is_taken_up_by_the_next(tmp_path: Path) -> None:
    limits = Limits(settle_seconds=0.0, frame_content_bytes=2000, scan_batch_bytes=4000)
    ground = Ground(tmp_path, start=False, limits=limits)
    populate(ground.root)
    scan = ground.watcher.scan(lambda progress: None)
    whole = 0
    for part in scan:
        ground.take([part])
        whole += not part.more
        if whole == 2:
            break
    ground.commit()
    ground.watcher.stop()
    del scan
    ground.watcher = ground._watcher()
    done = len(ground.log)
    ground.scan()
    ground.check()
    puts = [change.path for change in ground.log if isinstance(change, Put)]
    assert len(puts) == len(set(puts))
    assert 0 < done < len(ground.log)
    ground.close()


def test_what_happens_during_a_scan_is_logged_during_it(tmp_path: Path) -> None:
    limits = Limits(settle_seconds=0.0, events_between_seconds=0.0, frame_content_bytes=500, scan_batch_bytes=1000)
    ground = Ground(tmp_path, limits=limits)
    populate(ground.root)
    ground.collect()
    for folder in range(5):
        (ground.root / f"folder{folder}/cur/more").write_bytes(b"x" * 1000)
    ground.watcher._drain()
    ground.watcher._dirty.overflow()
    for number, part in enumerate(ground.watcher.scan(lambda progress: None)):
        ground.take([part])
        os.rename(ground.root / "folder0", ground.root / "spare")
        os.rename(ground.root / "folder4", ground.root / "folder0")
        os.rename(ground.root / "spare", ground.root / "folder4")
        (ground.root / f"folder2/cur/during-{number}").write_text("x")
        assert number < 200
        if number > 20:
            continue
    ground.collect()
    ground.check()
    ground.close()


def test_a_scan_sees_the_new_attributes_of_what_was_renamed_unseen(tmp_path: Path) -> None:
    ground = Ground(tmp_path, start=False)
    file, folder = ground.root / "a", ground.root / "f"
    file.write_bytes(b"x" * 100)
    folder.mkdir()
    ground.scan()
    for path, to in ((file, ground.root / "b"), (folder, ground.root / "g")):
        os.setxattr(path, "trusted.holdfast", b"1")
        os.rename(path, to)
    ground.scan()
    ground.check()
    ground.close()


def test_a_scan_finds_again_what_was_renamed_to_where_it_comes_last(tmp_path: Path) -> None:
    """Events are looked at between; they tell nothing of what happened before the watcher started."""
    limits = Limits(settle_seconds=0.0, events_between_seconds=0.0, limbo_seconds=0.0)
    ground = Ground(tmp_path, limits=limits)
    for name in "abcz":
        (ground.root / name).mkdir()
    (ground.root / "a/mail").write_text("mail")
    ground.settle()
    ground.commit()
    ground.watcher.stop()
    os.rename(ground.root / "a/mail", ground.root / "z/mail")
    ground.watcher = ground._watcher()
    ground.watcher.start()
    assert kinds(ground.scan()) == ["Rename"]
    ground.check()
    ground.close()


def test_progress_of_a_scan(tmp_path: Path) -> None:
    ground = Ground(tmp_path, start=False)
    populate(ground.root)
    told: list[ScanProgress] = []
    ground.take(ground.watcher.scan(told.append))
    assert told[-1].files >= 101
    assert told[-1].directories == 11
    assert told[-1].bytes > 0
    ground.close()


def test_a_slow_scan_keeps_to_its_rate(tmp_path: Path) -> None:
    ground = Ground(tmp_path, start=False)
    (ground.root / "a").write_bytes(b"x" * 100_000)
    (ground.root / "b").write_bytes(b"x" * 100_000)
    paused: list[float] = []
    ground.watcher._pause = paused.append
    ground.take(ground.watcher.scan(lambda progress: None, bytes_per_second=100_000))
    assert 0.7 < sum(paused) < 2.5
    ground.close()


# -- scrub -------------------------------------------------------------------------------------------------------------


def test_a_write_through_a_memory_map_is_healed_when_marked(ground: Ground) -> None:
    file = ground.root / "m.1"
    file.write_bytes(b"x" * 1_000_000)
    ground.collect()
    with file.open("r+b") as opened, mmap.mmap(opened.fileno(), 0) as view:
        view[200_000:200_005] = b"other"
    ground.collect()
    ground.watcher.mark("store", b"m.1")
    changes = ground.collect()
    assert any(isinstance(change, Patch) for change in changes)
    ground.check()


def test_names_are_healed_when_marked(ground: Ground) -> None:
    populate(ground.root)
    ground.collect()
    (ground.root / "folder0/cur/extra").write_text("x")
    (ground.root / "folder1/cur/4").unlink()
    (ground.root / "new").mkdir()
    (ground.root / "new/x").write_text("x")
    ground.watcher._drain()
    ground.watcher._dirty.raw.clear()  # events lost, and nobody noticed
    ground.watcher.mark("store", b"folder0/cur/extra")
    ground.watcher.mark("store", b"folder1/cur")
    ground.watcher.mark("store", b"new/x")
    ground.collect()
    ground.check()


# -- trees -------------------------------------------------------------------------------------------------------------


@pytest.mark.system
def test_two_trees_on_two_filesystems(tmp_path: Path) -> None:
    """Their root directories have the same inode number, and the files may have."""
    with own_tmpfs() as left, own_tmpfs() as right:
        index = Index.open(tmp_path / "index.db")
        trees = [Tree(TreeSpec("left", str(left))), Tree(TreeSpec("right", str(right)))]
        watcher = Watcher(index, trees, Owners(), batch_seconds=0.0, limits=QUIET)
        watcher.start()
        list(watcher.scan(lambda progress: None))
        (left / "a").write_text("left")
        (right / "a").write_text("right")
        found: list[Change] = [c for part in watcher.collect(wait_seconds=1) for c in part.changes]
        assert {(c.tree, c.path) for c in found} == {("left", b"a"), ("right", b"a")}
        watcher.stop()
        index.close()


def test_moving_between_trees_puts_here_and_removes_there(tmp_path: Path) -> None:
    index = Index.open(tmp_path / "index.db")
    for name in ("left", "right"):
        (tmp_path / name).mkdir()
    trees = [Tree(TreeSpec(name, str(tmp_path / name))) for name in ("left", "right")]
    watcher = Watcher(index, trees, Owners(), batch_seconds=0.0, limits=QUIET)
    watcher.start()
    (tmp_path / "left/folder").mkdir()
    (tmp_path / "left/folder/a").write_text("x")
    list(watcher.scan(lambda progress: None))
    os.rename(tmp_path / "left/folder", tmp_path / "right/folder")
    found: list[tuple[str, str, bytes]] = []
    until = time.monotonic() + DEADLINE_SECONDS
    while len(found) < 4 and time.monotonic() < until:
        parts = watcher.collect(wait_seconds=0.1)
        found += [(type(c).__name__, c.tree, c.path) for part in parts for c in part.changes]
    assert sorted(found) == [
        ("Mkdir", "right", b"folder"),
        ("Put", "right", b"folder/a"),
        ("Remove", "left", b"folder/a"),
        ("Rmdir", "left", b"folder"),
    ]
    assert index.totals().files == 1
    watcher.stop()
    index.close()


def test_patterns_with_paths_and_overrides(tmp_path: Path) -> None:
    spec = TreeSpec(
        "store",
        str(tmp_path / "tree"),
        include=("etc", "var/mail"),
        exclude=("/etc/cache", "private/keys", "*.swp"),
        overrides=("etc/hostname",),
    )
    ground = Ground(tmp_path, spec=spec)
    for path in (
        "etc/hosts",
        "etc/hostname",
        "etc/cache/x",
        "etc/a/private/keys",
        "etc/a/private/other",
        "var/mail/x",
        "var/log/y",
        "etc/.hosts.swp",
    ):
        (ground.root / path).parent.mkdir(parents=True, exist_ok=True)
        (ground.root / path).write_text(path)
    ground.settle()
    found = {os.fsdecode(path) for path, node in ground.index.walk(1) if node.kind == NodeKind.FILE}
    assert found == {"etc/hosts", "etc/a/private/other", "var/mail/x"}
    ground.check()
    os.rename(ground.root / "etc/a", ground.root / "etc/b")
    ground.settle()
    ground.check()
    (ground.root / "etc/b/private/keys2").write_text("x")
    os.rename(ground.root / "etc/b/private", ground.root / "etc/b/public")
    ground.settle()
    ground.check()
    assert ground.index.at("store", b"etc/b/public/keys") is not None
    os.rename(ground.root / "etc/b/public", ground.root / "etc/cache2")
    shutil.rmtree(ground.root / "etc/cache")
    os.rename(ground.root / "etc/cache2", ground.root / "etc/cache")
    ground.settle()
    ground.check()
    ground.close()
