"""Snapshots from the log are exactly the instant they name, whatever was touched, moved or written meanwhile."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.apply.applier import Applier
from holdfast.apply.aside import Aside
from holdfast.changes.change import Extent, Mkdir, Patch, Put, Rename, Rmdir
from holdfast.changes.digest import content_digests
from holdfast.changes.frame import pack_changes
from holdfast.changes.names import Position
from holdfast.trees.index import IndexReader
from holdfast.trees.stat import Owners
from holdfast.vault.backends.memory import MemoryBackend
from holdfast.vault.backup import BackupResult, Clocks, backup_trees
from holdfast.vault.instant import Archive, open_instant
from holdfast.vault.known import Known
from holdfast.vault.logfed import Source, snapshot_from_log
from holdfast.vault.port import BackendUnavailable
from holdfast.vault.record import lookup, walk
from holdfast.vault.repository import Vault
from holdfast.vault.touched import Touched
from holdfast.vault.verify import EVERYTHING, verify
from tests.apply.model import TREE, Op, meta, seeded_index
from tests.examples import examples
from tests.vault import site
from tests.vault.history import SECOND, START_NS, History, picture_of, position

OPS = st.builds(Op, st.integers(0, 14), st.integers(0, 9), st.integers(0, 9), st.integers(0, 2000))
STEPS = st.lists(st.tuples(st.lists(OPS, min_size=1, max_size=6), st.integers(0, 9)), min_size=1, max_size=10)


class Standby:
    """A tree on the disk that follows a history, and an archiver's view of it."""

    def __init__(self, base: Path, vault: Vault) -> None:
        self.root = base / "tree"
        self.root.mkdir()
        self.history = History()
        self.vault = vault
        self.index = seeded_index(base / "index.db", self.root)
        self.trees = [site.tree(self.root, TREE)]
        self.applier = Applier(self.index, self.trees, Owners(), Aside(base / "aside"))
        self.applier.recover()
        self.touched = Touched(lambda tree, path: Known(vault.catalog).has(tree, path), everything=True)
        self.told = 0
        self.before_reading: Callable[[], None] = lambda: None

    def follow(self) -> None:
        """Apply what the history has."""
        for record in self.history.records[self.applier.chain.sequence :]:
            self.applier.apply(record.frame, record.chain)
        self.applier.make_durable()

    def reach(self, position: Position) -> int:
        for record in self.history.records[self.told : position.sequence]:
            for change in record.frame.changes:
                self.touched.add(change)
        self.told = position.sequence
        self.before_reading()
        return START_NS + position.sequence * SECOND

    def read_index(self) -> IndexReader:
        self.follow()
        return self.index.reader()

    def snapshot(self, clocks: Clocks | None = None) -> BackupResult:
        """Within a second after the frames it holds."""
        at_ns = START_NS + self.history.last * SECOND + SECOND // 2
        clocks = clocks or Clocks(lambda: at_ns)
        source = Source(self.trees, self.read_index, self.reach, self.touched)
        return snapshot_from_log(self.vault, source, "backup", clocks=clocks, pause=lambda seconds: None)

    def close(self) -> None:
        self.applier.close(clean=False)
        self.vault.close()


@pytest.fixture
def standby(tmp_path: Path) -> Iterator[Standby]:
    with closing(Standby(tmp_path, site.new_vault(MemoryBackend()))) as standby:
        yield standby


def exact(standby: Standby, result: BackupResult) -> None:
    assert result.name.position == position(result.snapshot.sequence)
    assert picture_of(standby.vault, result.snapshot) == standby.history.pictures[result.snapshot.sequence]
    assert result.snapshot.gaps == ()


@pytest.mark.skipif(os.geteuid() != 0, reason="owners need root")
@settings(max_examples=examples(20), deadline=None)
@given(STEPS, st.data())
def test_every_snapshot_and_every_instant_between_is_exact(
    steps: list[tuple[list[Op], int]], data: st.DataObject
) -> None:
    """With failures of the store in between: an archiver that dies begins anew, looking everywhere."""
    with tempfile.TemporaryDirectory(prefix="hf-logfed-") as folder, ExitStack() as stack:
        backend = MemoryBackend()
        standby = stack.enter_context(closing(Standby(Path(folder), site.new_vault(backend))))
        exact(standby, standby.snapshot())
        archived = 0
        for ops, then in steps:
            standby.history.do(ops, frames=1 + then % 3)
            if then < 4:
                standby.follow()
            if then == 7:
                backend.fail(data.draw(st.integers(0, 2)))
                with suppress(BackendUnavailable):  # of known contents it writes nothing but itself
                    standby.snapshot()
                backend.recover()
                if len(ops) % 2:
                    standby.touched.touch_everything()
            if then > 4:
                if standby.history.last > archived:
                    standby.history.archive(standby.vault, archived + 1, standby.history.last)
                    archived = standby.history.last
                exact(standby, standby.snapshot())
        wanted = [sequence for sequence in standby.history.pictures if sequence <= archived]
        sequence = data.draw(st.sampled_from(wanted))
        with open_instant(standby.vault, Archive(standby.vault).at_position(position(sequence))) as instant:
            assert picture_of(instant.vault, instant.snapshot) == standby.history.pictures[sequence]
        assert verify(standby.vault, EVERYTHING).findings == []


def put(path: bytes, content: bytes, number: int = 1) -> Put:
    extents = (Extent(0, content),) if content else ()
    return Put(TREE, path, len(content), meta(number), content_digests(content), extents)


def names(standby: Standby, result: BackupResult) -> set[bytes]:
    return set(picture_of(standby.vault, result.snapshot))


def log(standby: Standby, *changes: Put | Rename | Mkdir | Rmdir | Patch) -> None:
    """Changes that the model does not make by itself."""
    standby.history._append(pack_changes(tuple(changes)), more=False)


def test_only_what_is_new_is_read_and_written(standby: Standby) -> None:
    log(standby, Mkdir(TREE, b"a", meta(0, 0o700)), Mkdir(TREE, b"b", meta(0, 0o700)))
    log(standby, *(put(b"a/%d" % number, b"message %d" % number) for number in range(50)))
    assert standby.snapshot().files_read == 50
    log(standby, put(b"b/new", b"new message"))
    second = standby.snapshot()
    assert (second.files_read, second.snapshot.files) == (1, 51)
    third = standby.snapshot()
    assert (third.files_read, third.added_bytes) == (0, 0)
    assert third.snapshot.trees == second.snapshot.trees


def test_a_moved_folder_is_neither_read_again_nor_mixed_up(standby: Standby) -> None:
    for folder in (b"a", b"b"):
        log(standby, Mkdir(TREE, folder, meta(0, 0o700)), Mkdir(TREE, folder + b"/cur", meta(0, 0o700)))
        log(standby, *(put(folder + b"/cur/%d" % number, b"%s %d" % (folder, number)) for number in range(9)))
    standby.snapshot()
    log(standby, Rename(TREE, b"a", b"t"), Rename(TREE, b"b", b"a"), Rename(TREE, b"t", b"b"))
    log(standby, Rename(TREE, b"a/cur/1", b"b/cur/moved"), put(b"b/cur/2", b"other"))
    result = standby.snapshot()
    assert result.files_read == 1
    tree = result.snapshot.tree(TREE)

    def content(path: bytes) -> bytes:
        return standby.vault.content(lookup(tree, path, standby.vault.content).content)

    assert content(b"b/cur/3") == b"a 3"
    assert content(b"a/cur/3") == b"b 3"
    assert content(b"b/cur/moved") == b"b 1"
    assert content(b"b/cur/2") == b"other"
    log(standby, Rename(TREE, b"b/cur", b"a/cur/inner"), Mkdir(TREE, b"b/cur", meta(0, 0o700)))
    log(standby, put(b"b/cur/3", b"again"))
    tree = standby.snapshot().snapshot.tree(TREE)
    assert content(b"a/cur/inner/3") == b"a 3"
    assert content(b"b/cur/3") == b"again"
    log(standby, put(b"a/cur/inner/last", b"last"))
    tree = standby.snapshot().snapshot.tree(TREE)
    assert content(b"a/cur/inner/last") == b"last"


def test_a_file_that_changes_while_it_is_read_is_read_again_with_later_names(standby: Standby) -> None:
    log(standby, put(b"hot", b"0"))
    standby.snapshot()
    log(standby, put(b"hot", b"1"))
    rounds = iter(range(3))

    def change() -> None:
        number = next(rounds, None)
        if number is not None:
            log(standby, put(b"hot", b"hot %d" % number), put(b"beside %d" % number, b""))
            standby.follow()

    standby.before_reading = change
    result = standby.snapshot()
    assert result.snapshot.gaps == ()
    assert names(standby, result) == {b"hot", b"beside 0"}, "of the second round, in which it was read at once"
    assert result.snapshot.sequence == standby.history.last - 1
    (hot,) = [found.entry for found in walk(result.snapshot.tree(TREE).content, standby.vault.content)][-1:]
    assert standby.vault.content(hot.content) == b"hot 0"


def test_what_is_not_what_the_log_says_is_a_gap_and_is_looked_at_again(standby: Standby) -> None:
    log(standby, put(b"sound", b"sound"), put(b"damaged", b"as it was written"))
    standby.follow()
    (standby.root / "damaged").write_bytes(b"As it was written")
    result = standby.snapshot()
    assert [(gap.path, "damaged here" in gap.reason) for gap in result.snapshot.gaps] == [(b"damaged", True)]
    assert names(standby, result) == {b"sound", b"damaged"}
    assert Known(standby.vault.catalog).position is None, "another archiver looks at everything"
    log(standby, put(b"other", b"other"))
    assert [gap.path for gap in standby.snapshot().snapshot.gaps] == [b"damaged"]
    (standby.root / "damaged").write_bytes(b"as it was written")
    assert standby.snapshot().snapshot.gaps == ()
    assert Known(standby.vault.catalog).position is not None


def test_after_a_scan_the_log_takes_over_without_reading(standby: Standby, tmp_path: Path) -> None:
    log(standby, *(put(b"%d" % number, b"message %d" % number) for number in range(9)))
    standby.follow()
    late = site.clocks()
    backup_trees(standby.vault, standby.trees, "backup", clocks=late)
    assert Known(standby.vault.catalog).position is None
    assert standby.snapshot(late).files_read == 0
