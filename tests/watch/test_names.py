"""Names: each thing that happens to them is the one change it is, and none is ever absent meanwhile."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from holdfast.changes.change import Link, Put, Remove, Rename
from tests.watch.conftest import exchange
from tests.watch.ground import Ground, kinds

STRANGE = [b"new\nline", b"\xff\xfe not utf-8", b"n" * 255, b" ", b"-rf", b"a:2,S", b"*?[", b".hidden"]


def test_strange_names(ground: Ground) -> None:
    for name in STRANGE:
        (Path(os.fsdecode(os.fsencode(ground.root) + b"/" + name))).write_bytes(name)
        folder = os.fsencode(ground.root) + b"/folder-" + name[:200]
        os.mkdir(folder)
        Path(os.fsdecode(folder + b"/" + name)).write_bytes(name)
    ground.collect()
    ground.check()
    for name in STRANGE:
        os.rename(os.fsencode(ground.root) + b"/" + name, os.fsencode(ground.root) + b"/x" + name[:254])
    assert kinds(ground.collect()) == ["Rename"] * len(STRANGE)
    ground.check()


def test_rename_is_one_change(ground: Ground) -> None:
    (ground.root / "a").write_text("mail")
    ground.collect()
    os.rename(ground.root / "a", ground.root / "b")
    assert kinds(ground.collect()) == ["Rename"]
    ground.check()


def test_renaming_a_folder_is_one_change(ground: Ground) -> None:
    (ground.root / "folder/deep").mkdir(parents=True)
    for number in range(50):
        (ground.root / f"folder/deep/{number}").write_text("mail")
    ground.collect()
    os.rename(ground.root / "folder", ground.root / "renamed")
    assert kinds(ground.collect()) == ["Rename"]
    (ground.root / "renamed/deep/new").write_text("more")
    assert kinds(ground.collect()) == ["Put"]
    ground.check()


def test_rename_over_replaces_in_one_change(ground: Ground) -> None:
    (ground.root / "a").write_text("old")
    (ground.root / "b").write_text("new")
    ground.collect()
    os.rename(ground.root / "b", ground.root / "a")
    assert kinds(ground.collect()) == ["Rename"]
    ground.check()


def test_atomic_replacement_from_an_excluded_name_is_one_put(ground: Ground) -> None:
    (ground.root / "dovecot-uidlist").write_text("3 V1\n")
    ground.collect()
    (ground.root / "dovecot-uidlist.lock").write_text("3 V1 N2\n")
    os.rename(ground.root / "dovecot-uidlist.lock", ground.root / "dovecot-uidlist")
    assert kinds(ground.collect()) == ["Put"]
    ground.check()


def test_a_log_rotated_twice_between_looks(ground: Ground) -> None:
    log = ground.root / "dovecot.index.log"
    log.write_text("first")
    ground.collect()
    for text in ("second", "third"):
        os.rename(log, ground.root / "dovecot.index.log.2")
        log.write_text(text)
    ground.collect()
    ground.check()
    assert (ground.base / "mirror/dovecot.index.log.2").read_text() == "second"


def test_name_reused_after_rename(ground: Ground) -> None:
    (ground.root / "a").write_text("one")
    ground.collect()
    os.rename(ground.root / "a", ground.root / "b")
    (ground.root / "a").write_text("two")
    changes = [change for change in ground.collect() if isinstance(change, Put | Rename | Remove)]
    assert [type(change) for change in changes] == [Rename, Put]
    ground.check()


def test_hard_links(ground: Ground) -> None:
    (ground.root / "a").write_text("one")
    (ground.root / "folder").mkdir()
    ground.collect()
    os.link(ground.root / "a", ground.root / "folder/b")
    os.link(ground.root / "a", ground.root / "c")
    assert kinds(ground.collect()) == ["Link", "Link"]
    (ground.root / "c").write_text("changed by one name")
    assert kinds(ground.collect()) == ["Patch"]
    (ground.root / "a").unlink()
    os.rename(ground.root / "folder/b", ground.root / "a")
    ground.collect()
    ground.check()


def test_new_file_with_two_names_travels_once(ground: Ground) -> None:
    (ground.root / "folder").mkdir()
    (ground.root / "folder/a").write_text("one")
    os.link(ground.root / "folder/a", ground.root / "b")
    changes = ground.collect()
    assert sorted(kinds(changes)) == ["Link", "Mkdir", "Put"]
    ground.check()


def test_swapped_files(ground: Ground) -> None:
    (ground.root / "a").write_text("one")
    (ground.root / "b").write_text("two")
    ground.collect()
    exchange(ground.root / "a", ground.root / "b")
    assert kinds(ground.collect()) == ["Rename"] * 3
    ground.check()


def test_a_ring_of_folders(ground: Ground) -> None:
    for name in "abc":
        (ground.root / name).mkdir()
        (ground.root / name / f"in-{name}").write_text(name)
    ground.collect()
    exchange(ground.root / "a", ground.root / "b")
    exchange(ground.root / "b", ground.root / "c")
    assert kinds(ground.collect()) == ["Rename"] * 4
    ground.check()


def test_parent_and_child_change_places(ground: Ground) -> None:
    (ground.root / "a/b").mkdir(parents=True)
    (ground.root / "a/of-a").write_text("a")
    (ground.root / "a/b/of-b").write_text("b")
    ground.collect()
    os.rename(ground.root / "a/b", ground.root / "spare")
    os.rename(ground.root / "a", ground.root / "spare/b")
    os.rename(ground.root / "spare", ground.root / "a")
    changes = ground.collect()
    if ground.watcher._reconciler.scene.disk.opens_handles:
        assert kinds(changes) == ["Rename"] * 3
    ground.check()
    assert (ground.base / "mirror/a/of-b").exists()


def test_file_becomes_directory_and_back(ground: Ground) -> None:
    (ground.root / "a").write_text("file")
    (ground.root / "b").mkdir()
    (ground.root / "b/x").write_text("x")
    ground.collect()
    (ground.root / "a").unlink()
    shutil.rmtree(ground.root / "b")
    (ground.root / "a").mkdir()
    (ground.root / "b").write_text("file")
    os.symlink("a", ground.root / "c")
    ground.collect()
    ground.check()
    (ground.root / "c").unlink()
    (ground.root / "c").mkdir()
    ground.collect()
    ground.check()


def test_tree_moved_out_and_in(ground: Ground) -> None:
    (ground.root / "folder/deep").mkdir(parents=True)
    (ground.root / "folder/deep/mail").write_text("mail")
    ground.collect()
    os.rename(ground.root / "folder", ground.outside / "folder")
    (ground.outside / "folder/later").write_text("not ours")
    assert {"Remove", "Rmdir"} <= set(kinds(ground.collect()))
    ground.check()
    assert not (ground.base / "mirror/folder").exists()
    os.rename(ground.outside / "folder", ground.root / "back")
    ground.collect()
    ground.check()
    assert (ground.base / "mirror/back/later").exists()


def test_moving_into_an_excluded_folder_removes_and_out_of_it_puts(ground: Ground) -> None:
    (ground.root / "tmp").mkdir()
    (ground.root / "a").write_text("mail")
    ground.collect()
    os.rename(ground.root / "a", ground.root / "tmp/a")
    assert kinds(ground.collect()) == ["Remove"]
    os.rename(ground.root / "tmp/a", ground.root / "a")
    assert kinds(ground.collect()) == ["Put"]
    (ground.root / "folder").mkdir()
    (ground.root / "folder/x").write_text("x")
    ground.collect()
    shutil.rmtree(ground.root / "tmp")
    os.rename(ground.root / "folder", ground.root / "tmp")
    ground.collect()
    ground.check()
    os.rename(ground.root / "tmp", ground.root / "folder")
    ground.collect()
    ground.check()


def test_a_folders_time_is_told_also_when_it_was_set_back(ground: Ground) -> None:
    """A reader's folder has another time by then: something was put into it."""
    (ground.root / "folder").mkdir()
    os.utime(ground.root / "folder", ns=(5, 5))
    ground.settle()
    (ground.root / "folder/mail").write_text("mail")
    os.utime(ground.root / "folder", ns=(5, 5))
    ground.settle()
    ground.check()


def test_folder_removed_and_made_again(ground: Ground) -> None:
    for _ in range(3):
        (ground.root / "folder/new").mkdir(parents=True)
        (ground.root / "folder/new/mail").write_text("mail")
        ground.collect()
        ground.check()
        shutil.rmtree(ground.root / "folder")
        (ground.root / "folder/new").mkdir(parents=True)
        (ground.root / "folder/new/other").write_text("other")
        ground.collect()
        ground.check()
        shutil.rmtree(ground.root / "folder")
    ground.collect()
    ground.check()


def test_what_moved_between_event_and_look_is_never_absent(ground: Ground) -> None:
    """Limbo: the event of the first rename is taken, the file is renamed once more before it is looked at."""
    (ground.root / "a").write_text("mail")
    ground.collect()
    os.rename(ground.root / "a", ground.root / "b")
    batch = ground.watcher.collect(wait_seconds=0)  # events are taken here, places are looked at when parts are
    os.rename(ground.root / "b", ground.root / "c")
    ground.take(batch)
    assert any((ground.base / "mirror" / name).exists() for name in "abc")
    changes = ground.collect()
    assert "Remove" not in kinds(changes)
    assert "Put" not in kinds(changes)
    ground.check()


def test_place_of_what_is_in_limbo_is_not_overwritten(ground: Ground) -> None:
    """Another file takes the name of a file whose new name is not known yet: neither is lost."""
    (ground.root / "a").write_text("mail")
    ground.collect()
    os.utime(ground.root / "a")
    os.rename(ground.root / "a", ground.root / "b")
    batch = ground.watcher.collect(wait_seconds=0)
    os.rename(ground.root / "b", ground.root / "c")
    (ground.root / "a").write_text("another")
    ground.take(batch)
    kept = [path for path in (ground.base / "mirror").iterdir() if path.read_text() == "mail"]
    assert len(kept) == 1
    changes = ground.collect()
    assert "Remove" not in kinds(changes)
    ground.check()


def test_link_counts_as_rename_target(ground: Ground) -> None:
    """Maildir delivery the old way: link tmp/x to new/x, unlink tmp/x."""
    (ground.root / "tmp").mkdir()
    (ground.root / "new").mkdir()
    ground.collect()
    (ground.root / "tmp/x").write_text("mail")
    os.link(ground.root / "tmp/x", ground.root / "new/x")
    (ground.root / "tmp/x").unlink()
    changes = ground.collect()
    assert [type(change) for change in changes if isinstance(change, Put | Link | Remove)] == [Put]
    ground.check()


def test_symlinks_are_copied_and_never_followed(ground: Ground) -> None:
    (ground.outside / "secret").write_text("secret")
    os.symlink(ground.outside, ground.root / "out")
    os.symlink("loop", ground.root / "loop")
    (ground.root / "folder").mkdir()
    os.symlink("..", ground.root / "folder/up")
    os.symlink(b"\xff\n", os.fsencode(ground.root) + b"/bytes")
    changes = ground.collect()
    assert not any(isinstance(change, Put) for change in changes)
    ground.check()
    (ground.root / "out").unlink()
    os.symlink("elsewhere", ground.root / "out")
    ground.collect()
    ground.check()


@pytest.mark.parametrize("depth", [60])
def test_deep_folders(ground: Ground, depth: int) -> None:
    at = ground.root
    for number in range(depth):
        at = at / f"level-{number}"
    at.mkdir(parents=True)
    (at / "mail").write_text("deep")
    ground.collect()
    ground.check()
    os.rename(ground.root / "level-0/level-1", ground.root / "moved")
    assert kinds(ground.collect()) == ["Rename"]
    shutil.rmtree(ground.root / "moved")
    ground.collect()
    ground.check()


def test_a_directory_whose_move_had_to_wait_and_that_then_went_is_removed(ground: Ground) -> None:
    """It moved to a name that the log could not free at once; when it had gone from there, nobody looked where it came
    from."""
    (ground.root / "a").mkdir()
    (ground.root / "b").mkdir()
    (ground.root / "b" / "f").write_bytes(b"x")
    ground.settle()
    (ground.root / "b" / "f").rename(ground.outside / "f")  # alive: in limbo for a while, so that b is not empty
    (ground.root / "b").rmdir()
    (ground.root / "a").rename(ground.root / "b")
    ground.take(ground.watcher.collect(wait_seconds=0.01))
    (ground.root / "b").rmdir()
    ground.settle()
    ground.check()
