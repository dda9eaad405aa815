"""Whatever stands in a tree comes back as it was; whatever somebody did to the target or the snapshot, nowhere else."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.changes.change import Meta
from holdfast.changes.exchange import EntryKind
from holdfast.drill.lab.disk import format_image, wait_released
from holdfast.drill.lab.linux import shut_filesystem_down
from holdfast.trees.spec import RESERVED_NAME
from holdfast.vault import backup, restore
from holdfast.vault.backends.memory import MemoryBackend
from holdfast.vault.faults import TargetInUse
from holdfast.vault.objects import ObjectKind
from holdfast.vault.record import Entry, TreeRoot, directory_parts
from holdfast.vault.repository import Vault
from holdfast.vault.restore import Restored
from holdfast.vault.writer import Writer
from tests.examples import examples
from tests.vault import site

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="owners need root")
META = Meta(0o644, "root", "root", 1)
ACL = bytes.fromhex("0200000001000600ffffffff020006001027000004000400ffffffff10000600ffffffff20000400ffffffff")
"""user::rw-, user:10000:rw-, group::r--, mask::rw-, other::r-- (acl(5); the kernel's form)."""
CAPABILITY = bytes.fromhex("0000000200040000000000000000000000000000")
"""cap_net_bind_service=p (VFS_CAP_REVISION_2, linux/capability.h)."""

NAMES = st.binary(min_size=1, max_size=255).filter(
    lambda name: not {b"/"[0], 0} & set(name) and name not in (b".", b"..", RESERVED_NAME)
)
"""Hypothesis also tries what stands in the code as a constant: the one name that is never kept is found by it."""
NODES = st.recursive(
    st.one_of(st.binary(max_size=300), st.integers(1, 3_000_000), st.just("link"), st.just("hard")),
    lambda below: st.dictionaries(NAMES, below, max_size=5),
    max_leaves=12,
)
TIMES = st.integers(-(2**31) * 10**9, 2**33 * 10**9)


def build(folder: bytes, nodes: object, draw: st.DataObject, files: list[bytes]) -> None:
    """Bytes: a file; a number: a sparse file of that size; a dictionary: a directory."""
    assert isinstance(nodes, dict)
    for name, node in nodes.items():
        path = folder + b"/" + name
        if isinstance(node, dict):
            os.mkdir(path)
            build(path, node, draw, files)
        elif node == "link":
            os.symlink(draw.draw(st.binary(min_size=1, max_size=400).filter(lambda target: 0 not in target)), path)
        elif node == "hard" and files:
            os.link(draw.draw(st.sampled_from(files)), path, follow_symlinks=False)
        else:
            with open(path, "xb") as file:
                if isinstance(node, bytes):
                    file.write(node)
                elif isinstance(node, int):
                    file.truncate(node)
                    os.pwrite(file.fileno(), b"end", node)
            files.append(path)
        if not os.path.islink(path):
            os.chown(path, draw.draw(st.sampled_from((0, 1, 54321))), 8)
            os.chmod(path, draw.draw(st.integers(0, 0o7777)))
        time_ns = draw.draw(TIMES)
        os.utime(path, ns=(0, time_ns), follow_symlinks=False)


@settings(max_examples=examples(20), deadline=None)
@given(st.dictionaries(NAMES, NODES, max_size=5), st.data())
def test_any_tree_comes_back_as_it_was(nodes: dict[bytes, object], data: st.DataObject) -> None:
    with TemporaryDirectory(prefix="hf-exact-") as folder, site.new_vault(MemoryBackend()) as vault:
        base = Path(folder)
        (base / "store").mkdir()
        build(os.fsencode(base / "store"), nodes, data, [])
        made = backup.backup_trees(vault, [site.tree(base / "store")], "main", clocks=site.clocks())
        restored = restore.restore_path(vault, made.snapshot.tree("store"), b"", base / "out")
        assert restored.failures == []
        assert site.picture(base / "out") == site.picture(base / "store")


def test_attributes_the_kernel_means_something_by(tmp_path: Path) -> None:
    """Access lists (a default one in the target's parent is not inherited), capabilities, set-user-id."""
    store = tmp_path / "store"
    (store / "shared").mkdir(parents=True)
    for name, key, value in (("acl", "system.posix_acl_access", ACL), ("bound", "security.capability", CAPABILITY)):
        (store / name).write_bytes(b"x")
        os.setxattr(store / name, key, value)
    os.setxattr(store / "shared", "system.posix_acl_default", ACL)
    (store / "suid").write_bytes(b"x")
    os.chown(store / "suid", 12345, 8)
    (store / "suid").chmod(0o6755)
    os.setxattr(tmp_path, "system.posix_acl_default", ACL)
    with site.new_vault(MemoryBackend()) as vault:
        made = backup.backup_trees(vault, [site.tree(store)], "main", clocks=site.clocks())
        assert restore.restore_snapshot(vault, made.snapshot, tmp_path / "out").failures == []
    assert site.picture(tmp_path / "out" / "store") == site.picture(store)


def test_holes_stay_holes(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    with open(tmp_path / "store" / "sparse", "wb") as file:
        file.truncate(50_000_000)
        os.pwrite(file.fileno(), b"middle", 25_000_000)
    with site.new_vault(MemoryBackend()) as vault:
        made = backup.backup_trees(vault, [site.tree(tmp_path / "store")], "main", clocks=site.clocks())
        restore.restore_path(vault, made.snapshot.tree("store"), b"", tmp_path / "out")
    assert site.picture(tmp_path / "out") == site.picture(tmp_path / "store")
    assert (tmp_path / "out" / "sparse").stat().st_blocks * 512 < 2_500_000


def forged(vault: Vault, entries: list[Entry]) -> TreeRoot:
    """A tree as only a broken-into writer would make it: the entries are not even in order."""
    with Writer(vault) as writer:
        content = b"".join(writer.add(part, ObjectKind.PARTS) for part in directory_parts(entries))
        writer.flush()
    return TreeRoot("store", b"/mail", META, content)


def test_a_forged_snapshot_writes_nothing_outside_the_target(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "victim").write_bytes(b"untouched")
    before = site.picture(outside)
    with site.new_vault(MemoryBackend()) as vault:
        with Writer(vault) as writer:
            data = writer.add(b"evil")
            inner = b"".join(
                writer.add(part, ObjectKind.PARTS)
                for part in directory_parts([Entry(b"victim", EntryKind.FILE, META, 4, data)])
            )
            writer.flush()
        through = Entry(b"a", EntryKind.SYMLINK, META, 0, os.fsencode(outside))
        to_file = Entry(b"b", EntryKind.SYMLINK, META, 0, os.fsencode(outside / "victim"), b"same")
        tree = forged(
            vault,
            [
                through,
                Entry(b"a", EntryKind.DIRECTORY, META, 0, inner),
                to_file,
                Entry(b"b", EntryKind.FILE, META, 4, data),
                Entry(b"c", EntryKind.FILE, Meta(0o777, "root", "root", 9), 4, data, b"same"),
                Entry(b"d", EntryKind.FILE, META, 4, data),
            ],
        )
        restored = restore.restore_path(vault, tree, b"", tmp_path / "out")
    assert site.picture(outside) == before
    assert {failure.path for failure in restored.failures} == {b"a", b"b"}
    assert (tmp_path / "out" / "d").read_bytes() == b"evil"
    assert (tmp_path / "out" / "c").is_symlink()


def test_nobody_else_can_enter_the_target_while_it_is_written(tmp_path: Path) -> None:
    """Also when it stood there before, for everybody to write to; what the snapshot says of it comes last."""
    store = site.make_store(tmp_path / "store", messages=2)
    store.chmod(0o755)
    out = tmp_path / "out"
    out.mkdir()
    out.chmod(0o777)
    os.chown(out, 12345, 12345)
    seen: set[tuple[int, int]] = set()

    def look(_: Restored) -> None:
        seen.add(((out.stat().st_mode & 0o777), out.stat().st_uid))

    with site.new_vault(MemoryBackend()) as vault:
        made = backup.backup_trees(vault, [site.tree(store)], "main", clocks=site.clocks())
        root = made.snapshot.tree("store")
        restore.restore_path(vault, root, b"", out, progress=look)
        assert seen == {(0o700, 0)}
        assert site.picture(out) == site.picture(store)
        one = tmp_path / "one"
        one.mkdir(mode=0o750)
        os.chown(one, 12345, 8)
        restore.restore_path(vault, root, b"user0/large", one)
        assert (one.stat().st_mode & 0o777, one.stat().st_uid, one.stat().st_gid) == (0o750, 12345, 8)
        with pytest.raises(TargetInUse):
            restore.restore_path(vault, root, b"user0/large", one)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """(image, where it is mounted): an ext4 of its own that can lose power."""
    image, at = tmp_path / "disk.img", tmp_path / "mnt"
    at.mkdir()
    format_image(image, 128 * 1024 * 1024)
    subprocess.run(["mount", "-o", "loop", image, at], check=True)
    yield image, at
    subprocess.run(["umount", at], check=True)
    wait_released(image)


@pytest.mark.system
def test_a_restore_that_returned_outlives_a_power_cut(disk: tuple[Path, Path], tmp_path: Path) -> None:
    image, at = disk
    store = site.make_store(tmp_path / "store")
    with site.new_vault(MemoryBackend()) as vault:
        made = backup.backup_trees(vault, [site.tree(store)], "main", clocks=site.clocks())
        restore.restore_snapshot(vault, made.snapshot, at / "out")
    shut_filesystem_down(at)
    subprocess.run(["umount", at], check=True)
    wait_released(image)
    subprocess.run(["mount", "-o", "loop", image, at], check=True)
    assert site.picture(at / "out" / "store") == site.picture(store)
