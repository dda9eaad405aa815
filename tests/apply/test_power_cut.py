"""A power cut at any moment: what was durable is there, and the log brings the rest again. On a real ext4."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from holdfast.apply.recovery import RecoveryReport
from tests.apply.disk import Disk, in_own_namespace
from tests.apply.model import LogRecord, LogWriter, Model, Op, index_agrees, picture_of
from tests.apply.standby import Standby
from tests.apply.test_crashes import Pictures, batches

pytestmark = pytest.mark.system


def some_log(seed: int, frames: int = 40, writer: LogWriter | None = None) -> tuple[list[LogRecord], Pictures]:
    chance = random.Random(seed)
    script = [
        [Op(*(chance.randrange(200) for _ in range(4))) for _ in range(chance.randrange(9))] for _ in range(frames)
    ]
    return batches(Model(), script, writer)


@pytest.mark.parametrize("seed", range(12))
@in_own_namespace
def test_a_power_cut_anywhere_ends_with_equal_trees(tmp_path: Path, seed: int) -> None:
    """Index and tree on the same disk, or the index on one that keeps its power; something synced in between or not."""
    disk = Disk(tmp_path, 64)
    chance = random.Random(seed)
    log, pictures = some_log(seed)
    with Standby(disk.path, state=tmp_path if seed % 2 else None) as standby:
        for _ in range(4):
            reached = standby.applier.chain.sequence
            for record in log[reached : reached + chance.randrange(14)]:
                standby.applier.apply(*record)
                if chance.randrange(5) == 0:
                    standby.applier.make_durable()
                if chance.randrange(8) == 0:
                    standby.applier.flush()  # the kernel writes out when it likes: the tree is then ahead of the index
            durable = standby.applier.durable
            disk.cut_power()
            standby.crash()
            disk.restore_power()
            standby.start()
            assert standby.applier.durable == durable
        standby.follow(log)
        assert picture_of(standby.root) == pictures[-1]
        index_agrees(standby.index, standby.root)
        settlement = standby.applier.settle()
        assert settlement.differing == ()
        stranger = [kept for kept in settlement.kept if (standby.root / os.fsdecode(kept.kept)).stat().st_size]
        assert stranger == []


def test_a_disk_that_lost_what_it_had_promised_is_named(tmp_path: Path) -> None:
    """Not by our order of writing: a disk that lies, or a hand. It is found in recovery, and named in the end."""
    log, pictures = some_log(3)
    with Standby(tmp_path) as standby:
        standby.follow(log)
        standby.applier.make_durable()
        files = [path for path, what in pictures[-1].items() if what[0] == 2]
        lost, changed = sorted(files)[0], sorted(files)[-1]
        standby.crash()
        (standby.root / os.fsdecode(lost)).unlink()
        (standby.root / os.fsdecode(changed)).write_bytes(b"other")
        standby.start()
        assert {oddity.path for oddity in standby.report.missing} == {lost}
        differing = {oddity.path for oddity in standby.applier.settle().differing}
        names = {other for path in (lost, changed) for other in pictures[-1][path][-1]}
        assert differing <= names
        assert len(differing) == 2


@pytest.mark.parametrize("seed", range(2))
def test_a_process_killed_anywhere_ends_with_equal_trees(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    writer = LogWriter()
    log, pictures = some_log(seed, 250, writer)
    (tmp_path / "log").write_bytes(msgspec.msgpack.encode(writer.raw))
    standby = Standby(tmp_path)
    standby.stop()
    for _ in range(4):
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.apply.applying", str(tmp_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
        )
        assert process.stdin is not None
        assert process.stdout is not None
        for _ in range(chance.randrange(1, 100)):
            if int(process.stdout.readline()) == len(log):
                break
        process.kill()
        assert process.wait() == -signal.SIGKILL
        process.stdin.close()
        process.stdout.close()
    standby.start()
    with standby:
        assert isinstance(standby.report, RecoveryReport)
        standby.follow(log)
        assert picture_of(standby.root) == pictures[-1]
        index_agrees(standby.index, standby.root)
        assert standby.applier.settle().differing == ()
