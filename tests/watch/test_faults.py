"""What must not be taken for a change, and what must be named."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import stat
import subprocess
import tempfile
from pathlib import Path

import pytest

from holdfast.errors import ConfigurationError, EnvironmentUnfit, Refused
from holdfast.trees.index import Index
from holdfast.trees.spec import Tree, TreeSpec
from holdfast.trees.stat import Owners
from holdfast.watch.limits import Limits
from holdfast.watch.watcher import Watcher
from tests.watch.conftest import mounted, own_ext4
from tests.watch.ground import Ground, kinds

NOBODY = 65534


def test_sockets_fifos_and_devices_are_named_and_skipped(ground: Ground) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(ground.root / "socket"))
        os.mkfifo(ground.root / "fifo")
        os.mknod(ground.root / "device", stat.S_IFCHR | 0o600, os.makedev(1, 3))
        (ground.root / "file").write_text("x")
        assert kinds(ground.collect()) == ["Put"]
    assert {(path, what) for _, path, what in ground.watcher.status().skipped} == {
        (b"socket", "socket"),
        (b"fifo", "fifo"),
        (b"device", "character device"),
    }
    os.unlink(ground.root / "fifo")
    ground.collect()
    assert len(ground.watcher.status().skipped) == 2
    ground.check()


@pytest.mark.skipif(os.geteuid() != 0, reason="changes its user")
def test_unreadable_files_are_named_and_come_when_they_can_be_read(tmp_path: Path) -> None:
    os.chmod(tmp_path, 0o777)
    for parent in tmp_path.parents:
        if parent != Path("/"):
            os.chmod(parent, stat.S_IMODE(os.stat(parent).st_mode) | 0o111)
    os.seteuid(NOBODY)
    try:
        ground = Ground(tmp_path)
        (ground.root / "a").write_text("secret")
        (ground.root / "folder").mkdir()
        (ground.root / "folder/x").write_text("x")
        ground.collect()
        (ground.root / "new").write_text("never seen")
        os.chmod(ground.root / "new", 0)
        (ground.root / "a").write_text("changed")
        os.chmod(ground.root / "a", 0)
        os.chmod(ground.root / "folder", 0)
        assert "Remove" not in kinds(ground.collect())
        assert {problem.path for problem in ground.watcher.status().problems} >= {b"new", b"a"}
        ground.take(ground.watcher.scan(lambda progress: None))
        assert (ground.base / "mirror/folder/x").exists()
        for name in ("new", "a", "folder"):
            os.chmod(ground.root / name, 0o700)
        ground.collect()
        ground.collect()
        ground.check()
        assert not ground.watcher.status().problems
        ground.close()
    finally:
        os.seteuid(0)


def test_lost_events_end_in_a_scan(ground: Ground) -> None:
    for name in "abcdef":
        (ground.root / name).write_text(name)
    ground.collect()
    before = ground.watcher.status().overflows
    ground.watcher._drain()
    (ground.root / "a").write_text("changed")
    os.rename(ground.root / "b", ground.root / "moved")
    (ground.root / "c").unlink()
    ground.watcher._drain()
    ground.watcher._dirty.overflow()
    changes = ground.collect()
    assert ground.watcher.status().overflows == before + 1
    assert sorted(kinds(changes)) == ["Patch", "Remove", "Rename"]
    ground.check()


def test_more_events_than_the_dirty_set_holds(tmp_path: Path) -> None:
    ground = Ground(tmp_path, limits=Limits(dirty_entries_max=50, settle_seconds=0.0))
    for number in range(200):
        (ground.root / str(number)).write_text("x")
    ground.collect()
    assert ground.watcher.status().overflows >= 1
    ground.check()
    ground.close()


@pytest.mark.system
def test_the_kernels_queue_overflows(tmpfs: Path) -> None:
    """Without FAN_UNLIMITED_QUEUE the kernel keeps 16,384 events."""
    ground = Ground(tmpfs, sources=("fanotify",), start=False)
    ground.watcher = Watcher(
        ground.index, [ground.tree], Owners(), batch_seconds=0.0, limits=ground.limits, queue_unlimited=False
    )
    ground.watcher.start()
    ground.scan()
    ground.watcher._busy_since = None  # nobody reads meanwhile
    for number in range(9000):
        (ground.root / str(number)).touch()
        os.rename(ground.root / str(number), ground.root / f"n{number}")
    ground.collect()
    assert ground.watcher.status().overflows >= 1
    ground.check()
    ground.close()


def test_the_order_of_times_means_nothing(ground: Ground) -> None:
    """The clock was set back an hour: what is written now is older than what was written before."""
    file = ground.root / "a"
    file.write_text("one")
    ground.collect()
    before = os.stat(file).st_mtime_ns
    file.write_text("two")
    os.utime(file, ns=(before - 3600 * 10**9,) * 2)
    ground.collect()
    ground.check()
    ground.crash()
    file.write_text("six")
    os.utime(file, ns=(before - 7200 * 10**9,) * 2)
    ground.crash()
    ground.check()


@pytest.mark.system
def test_an_unmounted_tree_is_not_an_empty_tree(tmp_path: Path) -> None:
    point = tmp_path / "point"
    spec = TreeSpec("store", str(point))
    index = Index.open(tmp_path / "index.db")
    with mounted("tmpfs", point):
        (point / "mail").write_text("mail")
        watcher = Watcher(index, [Tree(spec)], Owners())
        watcher.start()
        assert list(watcher.scan(lambda progress: None))
        watcher.stop()
    with pytest.raises(Refused):
        Watcher(index, [Tree(spec)], Owners()).start()
    (point / ".holdfast").mkdir()  # "it is to replace the old one"
    watcher = Watcher(index, [Tree(spec)], Owners(), sources=("inotify",))
    watcher.start()
    changes = [change for part in watcher.scan(lambda progress: None) for change in part.changes]
    assert "Remove" in kinds(changes)
    watcher.stop()
    index.close()


@pytest.mark.system
def test_what_is_mounted_inside_a_tree_is_named_and_left_alone(tmpfs: Path) -> None:
    ground = Ground(tmpfs, sources=("fanotify",))
    (ground.root / "point").mkdir()
    (ground.root / "point/mail").write_text("below")
    ground.collect()
    with mounted("tmpfs", ground.root / "point"):
        (ground.root / "point/other").write_text("on the other filesystem")
        assert "Remove" not in kinds(ground.scan())
        assert "mounted" in ground.watcher.status().problems[0].reason
    ground.scan()
    ground.check()
    ground.close()


@pytest.mark.system
def test_a_failing_filesystem_empties_nothing() -> None:
    """ext4 shut down under us (FS_IOC_SHUTDOWN, as a failing disk does): no file is taken for removed."""
    with own_ext4() as at:
        root = at / "tree"
        root.mkdir()
        for number in range(20):
            (root / str(number)).write_text("mail")
        os.sync()
        index = Index.open(Path(str(at.parent / "index.db")))
        watcher = Watcher(index, [Tree(TreeSpec("store", str(root)))], Owners(), limits=Limits(settle_seconds=0))
        watcher.start()
        list(watcher.scan(lambda progress: None))
        fd = os.open(at, os.O_RDONLY)
        fcntl.ioctl(fd, 0x8004587D, (2).to_bytes(4, "little"))
        os.close(fd)
        changes = [change for part in watcher.scan(lambda progress: None) for change in part.changes]
        assert not {"Remove", "Rmdir"} & set(kinds(changes))
        assert index.totals().files == 20
        watcher.stop()
        index.close()


def test_a_missing_root_says_what_to_do(tmp_path: Path) -> None:
    index = Index.open(tmp_path / "index.db")
    with pytest.raises(EnvironmentUnfit, match="mounted"):
        Watcher(index, [Tree(TreeSpec("store", str(tmp_path / "nowhere")))], Owners()).start()
    index.close()


def test_no_source_of_events_says_what_still_works(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    index = Index.open(tmp_path / "index.db")
    with pytest.raises(EnvironmentUnfit, match="intervals"):
        Watcher(index, [Tree(TreeSpec("store", str(tmp_path / "tree")))], Owners(), sources=()).start()
    index.close()


def test_trees_inside_each_other_are_refused(tmp_path: Path) -> None:
    index = Index.open(tmp_path / "index.db")
    trees = [Tree(TreeSpec("outer", str(tmp_path))), Tree(TreeSpec("inner", str(tmp_path / "inner")))]
    with pytest.raises(ConfigurationError):
        Watcher(index, trees, Owners())
    index.close()


@pytest.mark.system
def test_overlay_falls_back_to_inotify_and_says_so(overlay: Path) -> None:
    ground = Ground(overlay, sources=("fanotify", "inotify"))
    status = ground.watcher.status()
    assert status.source == "inotify"
    assert "fanotify" in status.source_note
    (ground.root / "a").write_text("x")
    ground.collect()
    ground.check()
    ground.close()


@pytest.mark.system
def test_ext4(ext4: Path) -> None:
    ground = Ground(ext4, sources=("fanotify",))
    assert ground.watcher.status().source == "fanotify"
    for number in range(50):
        (ground.root / f"a{number}").write_text("x" * number)
    ground.collect()
    for number in range(50):
        os.rename(ground.root / f"a{number}", ground.root / f"b{number}")
    assert kinds(ground.collect()) == ["Rename"] * 50
    shutil.rmtree(ground.root)
    ground.root.mkdir()
    ground.close()


@pytest.mark.slow
def test_a_directory_of_a_hundred_thousand_files() -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as base:
        ground = Ground(Path(base))
        folder = ground.root / "folder"
        folder.mkdir()
        for number in range(100_000):
            (folder / f"{number}").touch()

        def changes() -> list[str]:
            ground.watcher.barrier()
            return [kind for part in ground.watcher.collect(wait_seconds=0) for kind in kinds(part.changes)]

        assert changes().count("Put") == 100_000
        assert ground.index.totals().files == 100_000
        (folder / "77777").write_text("changed")
        assert changes() == ["Patch"]
        os.rename(folder, ground.root / "renamed")
        assert changes() == ["Rename"]
        assert not [kind for part in ground.watcher.scan(lambda progress: None) for kind in kinds(part.changes)]
        subprocess.run(["rm", "-rf", str(ground.root / "renamed")], check=True)
        assert sorted(set(changes())) == ["Remove", "Rmdir"]
        assert ground.index.totals().files == 0
        ground.close()
