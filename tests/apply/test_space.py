"""A full disk stops the applier where it is; after space was freed the same frame goes on, and nothing is doubled."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from holdfast.apply.syscalls import sync_filesystem
from holdfast.changes.change import Change, Extent, Link, Meta, Mkdir, Patch, Put, Remove, Rename, SetMeta
from holdfast.changes.digest import content_digests
from holdfast.errors import NoSpace
from tests.apply.disk import Disk
from tests.apply.model import TREE, LogRecord, LogWriter, index_agrees
from tests.apply.standby import Standby

pytestmark = pytest.mark.system
META = Meta(0o600, "#0", "#0", 10**18, ((b"user.x", b"y" * 600),))
PART = bytes(range(256)) * 1024


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    disk = Disk(tmp_path, 16, "-N", "64", "-m", "0")
    yield disk
    disk.unmount()


def fill(disk: Disk, *sizes: int) -> list[Path]:
    """Fill the disk with files of these sizes, and one more that takes the rest."""
    fillers = []
    for number, size in enumerate((*sizes, 1 << 30)):
        fillers.append(disk.path / f"filler{number}")
        with fillers[-1].open("wb", buffering=0) as file, suppress(OSError):
            while size > 0:
                size -= file.write(bytes(min(size, 1 << 14)))
    return fillers


def free(filler: Path) -> None:
    """Take a filler away; ext4 gives its blocks back when the journal is written."""
    filler.unlink()
    fd = os.open(filler.parent, os.O_RDONLY)
    sync_filesystem(fd)
    os.close(fd)


def patch(path: bytes, content: bytes, at: int, *, more: bool = False) -> Patch:
    digests = b"" if more else content_digests(content)
    return Patch(TREE, path, len(content), META, digests, (Extent(at, content[at:]),), 0, more)


def apply_durably(standby: Standby, records: list[LogRecord]) -> None:
    for record in records:
        standby.applier.apply(*record)
        standby.applier.make_durable()


def until_applied(standby: Standby, record: LogRecord, fillers: list[Path]) -> int:
    """Apply, taking one filler away each time the disk is full; how often it was."""
    for full in range(len(fillers) + 1):
        try:
            standby.applier.apply(*record)
            return full
        except NoSpace:
            durable = standby.applier.durable
            assert standby.applier.make_durable() == durable, "in the midst of a frame nothing becomes durable"
            free(fillers[full])
    raise AssertionError("still full")


def test_a_full_disk_is_waited_for(disk: Disk, tmp_path: Path) -> None:
    log = LogWriter()
    content = PART * 4
    with Standby(disk.path, state=tmp_path) as standby:
        standby.applier.apply(
            *log.changes([Put(TREE, b"known", 5, META, content_digests(b"12345"), (Extent(0, b"12345"),))])
        )
        standby.applier.make_durable()
        fillers = fill(disk, 600 << 10, 700 << 10)
        changes: list[Change] = [
            SetMeta(TREE, b"known", META),
            Mkdir(TREE, b"d", Meta(0o700, "#0", "#0", 1)),
            Rename(TREE, b"known", b"d/known"),
            Put(TREE, b"d/new", len(content), META, content_digests(content), (Extent(0, content),)),
            Link(TREE, b"d/new", b"linked"),
            patch(b"d/known", b"12345" + content, 5),
            Remove(TREE, b"linked"),
        ]
        assert until_applied(standby, log.changes(changes), fillers) >= 2
        assert (standby.root / "d/known").read_bytes() == b"12345" + content
        index_agrees(standby.index, standby.root)
        assert standby.applier.steps.oddities_count == 0
        standby.applier.make_durable()
        standby.crash()
        standby.start()
        assert standby.report.unknown == 0


def test_a_file_in_parts_goes_on_where_it_was(disk: Disk, tmp_path: Path) -> None:
    log = LogWriter()
    whole = PART * 8
    with Standby(disk.path, state=tmp_path) as standby:
        fillers = fill(disk, 300 << 10, 700 << 10)
        begin: list[Change] = [Put(TREE, b"f", len(PART), META, b"", (Extent(0, PART),), True)]
        middle: list[Change] = [
            patch(b"f", whole[: len(PART) * n], len(PART) * (n - 1), more=True) for n in range(2, 8)
        ]
        end: list[Change] = [patch(b"f", whole, len(PART) * 7)]
        full = 0
        for changes, more in ((begin, True), (middle, True), (end, False)):
            full += until_applied(standby, log.changes(changes, more=more), fillers[full:])
        assert full >= 2
        assert (standby.root / "f").read_bytes() == whole
        index_agrees(standby.index, standby.root)
        assert os.listdir(standby.root / ".holdfast/staging") == []


def test_without_inodes_left_nothing_is_half_made(disk: Disk, tmp_path: Path) -> None:
    log = LogWriter()
    with Standby(disk.path, state=tmp_path) as standby:
        fillers: list[Path] = []
        while os.statvfs(disk.path).f_favail > 0:
            fillers.append(disk.path / f"filler{len(fillers)}")
            fillers[-1].touch()
        records = [
            log.changes([Mkdir(TREE, b"d%d" % n, Meta(0o700, "#0", "#0", 1)) for n in range(3)]),
            log.changes([Put(TREE, b"d%d/f" % n, 0, META, b"", ()) for n in range(3)]),
        ]
        full = 0
        for record in records:
            full += until_applied(standby, record, fillers[full:])
        assert full == 6
        index_agrees(standby.index, standby.root)


def test_a_full_disk_under_the_index_needs_recovery_and_loses_nothing(disk: Disk, tmp_path: Path) -> None:
    log = LogWriter()
    with Standby(tmp_path, state=disk.path) as standby:
        records = [log.changes([Put(TREE, b"%d-%d" % (n, m), 0, META, b"", ()) for m in range(200)]) for n in range(20)]
        (filler,) = fill(disk)
        with pytest.raises(NoSpace, match="index"):
            apply_durably(standby, records)
        free(filler)
        standby.applier.recover()
        standby.follow(records)
        standby.applier.make_durable()
        assert len(os.listdir(standby.root)) == 4001
        index_agrees(standby.index, standby.root)
        assert standby.applier.settle() == ((), ())
