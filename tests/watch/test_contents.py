"""Contents: the least that has to travel, and nothing that is not so."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from holdfast.changes.change import Patch, Put, SetMeta
from holdfast.changes.digest import BLOCK_BYTES, DIGEST_BYTES, ZERO_BLOCK_DIGEST
from holdfast.watch.limits import Limits
from holdfast.watch.parts import weight_bytes
from holdfast.watch.tails import common_prefix, common_suffix
from tests.watch.ground import Ground, kinds

PARTS = Limits(settle_seconds=0.0, retry_seconds=0.0, piece_bytes=2 * BLOCK_BYTES, frame_content_bytes=2 * BLOCK_BYTES)


def carried(ground: Ground) -> int:
    """Bytes of content that travel for what happened since the last look."""
    return sum(len(extent.data) for c in ground.collect() if isinstance(c, Put | Patch) for extent in c.extents)


def test_appending_carries_the_suffix(ground: Ground) -> None:
    log = ground.root / "dovecot.index.log"
    log.write_bytes(b"x" * 20_000)
    ground.collect()
    for _ in range(3):
        with log.open("ab") as file:
            file.write(b"y" * 100)
        assert carried(ground) == 100
    ground.check()


def test_a_size_field_written_last_inside_the_old_end_travels(ground: Ground) -> None:
    """dovecot.index.log: the size of the last transaction is filled in after the transaction was appended."""
    log = ground.root / "dovecot.index.log"
    log.write_bytes(b"h" * 40 + b"\0\0\0\0" + b"t" * 60)
    ground.collect()
    with log.open("r+b") as file:
        file.seek(40)
        file.write(b"SIZE")
    assert carried(ground) == 4
    with log.open("r+b") as file:
        file.seek(104)
        file.write(b"\0\0\0\0" + b"u" * 50)
        file.seek(104)
        file.write(b"NEXT")
    assert carried(ground) == 54
    ground.check()


def test_growing_file_larger_than_a_block(ground: Ground) -> None:
    data = ground.root / "m.1"
    data.write_bytes(os.urandom(3_000_000))
    ground.collect()
    for _ in range(5):
        with data.open("ab") as file:
            file.write(os.urandom(5000))
        assert carried(ground) == 5000
    with data.open("r+b") as file:  # mdbox rewrites the header of the record before
        file.seek(3_000_000 - 100_000)
        file.write(b"header")
    assert 6 <= carried(ground) <= BLOCK_BYTES
    ground.check()


def test_growing_file_written_anew(ground: Ground) -> None:
    data = ground.root / "m.1"
    data.write_bytes(b"a" * 1_000_000)
    ground.collect()
    data.write_bytes(b"b" * 1_200_000)
    ground.collect()
    ground.check()
    data.write_bytes(b"c" * 300_000)
    ground.collect()
    ground.check()


def test_changed_block_of_a_large_file(ground: Ground) -> None:
    data = ground.root / "database"
    data.write_bytes(os.urandom(2_000_000))
    ground.collect()
    with data.open("r+b") as file:
        file.seek(1_000_000)
        file.write(b"changed")
    assert carried(ground) == BLOCK_BYTES
    ground.check()


def test_same_size_and_time_but_other_bytes(ground: Ground) -> None:
    file = ground.root / "a"
    file.write_text("one")
    os.utime(file, ns=(5, 5))
    ground.collect()
    with file.open("r+b") as opened:
        opened.write(b"two")
    os.utime(file, ns=(5, 5))
    assert kinds(ground.collect()) == ["Patch"]
    ground.check()


def test_metadata_travels_without_content(ground: Ground) -> None:
    file = ground.root / "a"
    file.write_bytes(b"x" * 1000)
    ground.collect()
    os.chmod(file, 0o600)
    os.utime(file, ns=(1, 1_000_000_000_000_000_001))
    changes = ground.collect()
    assert [type(change) for change in changes] == [SetMeta]
    ground.check()


def test_sparse_file(ground: Ground) -> None:
    file = ground.root / "sparse"
    with file.open("wb") as opened:
        opened.seek(10_000_000)
        opened.write(b"middle")
        opened.truncate(20_000_000)
    assert carried(ground) < 3 * BLOCK_BYTES
    with file.open("r+b") as opened:
        opened.seek(15_000_000)
        opened.write(b"more")
    assert carried(ground) <= BLOCK_BYTES
    os.truncate(file, 30_000_000)
    assert carried(ground) <= BLOCK_BYTES
    ground.check()


def test_a_hole_punched_into_data_travels_as_zeros(ground: Ground) -> None:
    file = ground.root / "a"
    file.write_bytes(os.urandom(500_000))
    ground.collect()
    with file.open("r+b") as opened:
        opened.truncate(100_000)
        opened.truncate(500_000)
    ground.collect()
    ground.check()


@pytest.mark.system
def test_three_gigabytes(tmpfs: Path) -> None:
    ground = Ground(tmpfs, sources=("fanotify",))
    try:
        file = ground.root / "large"
        with file.open("wb") as opened:
            opened.truncate(3 << 30)
            for at in range(0, 3 << 30, 64 << 20):
                opened.seek(at)
                opened.write(os.urandom(100_000))
        ground.watcher.barrier()
        parts = list(ground.watcher.collect(wait_seconds=0))
        assert all(part.more for part in parts[:-1])
        assert not parts[-1].more
        changes = [c for part in parts for c in part.changes if isinstance(c, Put | Patch)]
        assert isinstance(changes[0], Put)
        assert all(change.more for change in changes[:-1])
        assert max(sum(weight_bytes(c) for c in part.changes) for part in parts) < 4 << 20
        last = changes[-1]
        assert last.size == 3 << 30
        assert len(last.digests) == (3 << 30) // BLOCK_BYTES * DIGEST_BYTES
        assert last.digests.count(ZERO_BLOCK_DIGEST) == (3 << 14) - 48 * 2
        assert sum(len(extent.data) for c in changes for extent in c.extents) == 48 * 2 * BLOCK_BYTES
        with file.open("rb") as opened:
            for change in changes:
                for extent in change.extents:
                    opened.seek(extent.offset)
                    assert opened.read(len(extent.data)) == extent.data
    finally:
        ground.close()


def test_large_file_in_parts(tmp_path: Path) -> None:
    ground = Ground(tmp_path, limits=PARTS)
    (ground.root / "large").write_bytes(os.urandom(1_000_000))
    changes = ground.collect()
    puts = [change for change in changes if isinstance(change, Put | Patch)]
    assert len(puts) > 5
    assert [change.more for change in puts] == [True] * (len(puts) - 1) + [False]
    with (ground.root / "large").open("r+b") as opened:
        opened.write(os.urandom(1_100_000))
    patches = [change for change in ground.collect() if isinstance(change, Patch)]
    assert [change.more for change in patches] == [True] * (len(patches) - 1) + [False]
    ground.check()
    ground.close()


@pytest.mark.parametrize("what", ["grow", "shrink", "remove", "replace", "rewrite"])
def test_large_file_changing_while_it_is_read(tmp_path: Path, what: str) -> None:
    ground = Ground(tmp_path, limits=PARTS)
    file = ground.root / "large"
    file.write_bytes(os.urandom(1_000_000))
    batch = ground.watcher.collect(wait_seconds=0)
    ground.take(batch, 3)
    if what == "grow":
        with file.open("ab") as opened:
            opened.write(b"more" * 1000)
    elif what == "shrink":
        os.truncate(file, 300_000)
    elif what == "remove":
        file.unlink()
    elif what == "replace":
        (ground.root / "other").write_text("small")
        os.rename(ground.root / "other", file)
    else:
        file.write_bytes(os.urandom(1_000_000))
    ground.take(batch)
    ground.collect()
    ground.check()
    ground.close()


def test_vanishing_between_event_and_look(ground: Ground) -> None:
    for name in "abc":
        (ground.root / name).write_text(name)
    (ground.root / "folder").mkdir()
    batch = ground.watcher.collect(wait_seconds=0)
    (ground.root / "b").unlink()
    (ground.root / "folder").rmdir()
    ground.take(batch)
    ground.collect()
    ground.check()


def test_a_file_slow_to_compare_is_compared_less_often_until_somebody_waits(tmp_path: Path) -> None:
    ground = Ground(tmp_path)
    file = ground.root / "large"
    file.write_bytes(os.urandom(4_000_000))
    ground.collect()
    with file.open("r+b") as opened:
        for at in range(3):
            opened.seek(at * 1_000_000)
            opened.write(b"changed")
            opened.flush()
            ground.take(ground.watcher.collect(wait_seconds=0))
        assert carried(ground) > 0  # collect() asks for a barrier
    ground.collect()
    ground.check()
    ground.close()


def test_common_parts() -> None:
    for left, right in [(b"", b""), (b"a", b""), (b"abc", b"abd"), (b"abc", b"abc"), (b"xbc", b"abc"), (b"ab", b"abc")]:
        same = common_prefix(left, right)
        assert left[:same] == right[:same]
        assert same == min(len(left), len(right)) or left[same] != right[same]
        if len(left) == len(right):
            same = common_suffix(left, right)
            assert left[len(left) - same :] == right[len(right) - same :]
            assert same == len(left) or left[-same - 1] != right[-same - 1]
