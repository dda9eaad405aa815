"""The tree index: names, nodes, and what is committed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from holdfast.changes.frame import Chain, chain_start
from holdfast.changes.names import NOWHERE, Epoch, Incarnation, Sequence
from holdfast.errors import NoSpace
from holdfast.trees.index import SUPER_ROOT, Index, IndexUnusable, Node, NodeKind

LOG = Incarnation("ab" * 16)


def node(kind: NodeKind = NodeKind.FILE, *, handle: bytes | None = None, size: int = 0, ino: int = 1) -> Node:
    return Node(0, kind, handle, ino, 0o600, 0, 0, size, 1, 2, b"", b"")


def place(sequence: int) -> Chain:
    return chain_start(LOG)._replace(sequence=Sequence(sequence), digest=bytes((sequence,)) * 32)


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    index = Index.open(tmp_path / "index")
    index.bind(SUPER_ROOT, b"store", index.add(node(NodeKind.DIRECTORY, handle=b"root")))
    yield index
    index.close()


def root(index: Index) -> int:
    found = index.directory("store", b"")
    assert found is not None
    return found


def mkdir(index: Index, parent: int, name: bytes) -> int:
    made = index.add(node(NodeKind.DIRECTORY))
    index.bind(parent, name, made)
    return made


def test_a_new_index_stands_nowhere(tmp_path: Path) -> None:
    index = Index.open(tmp_path / "new")
    assert index.position == NOWHERE
    assert index.epoch == 0
    assert index.totals() == (0, 0, 0, 0)
    assert index.roots() == {}
    index.close()


@pytest.mark.parametrize("there_before", [False, True])
def test_only_its_owner_reads_it(tmp_path: Path, there_before: bool) -> None:
    """It names every message of everybody."""
    path = tmp_path / "new"
    if there_before:
        path.touch(0o644)
    index = Index.open(path)
    index.add(node())
    index.commit(place(1), Epoch(1))
    modes = {file.name: file.stat().st_mode & 0o777 for file in tmp_path.iterdir()}
    assert modes == dict.fromkeys(("new", "new-wal", "new-shm"), 0o600)
    index.close()


def test_commit_and_rollback_are_whole(index: Index) -> None:
    first = index.add(node(size=10))
    index.bind(root(index), b"a", first)
    index.commit(place(1), Epoch(1))
    index.update(index.child(root(index), b"a") or node(), node(size=99)._replace(id=first))
    index.unbind(root(index), b"a")
    mkdir(index, root(index), b"d")
    assert index.totals() == (2, 1, 0, 99)
    index.rollback()
    assert index.totals() == (1, 1, 0, 10)
    assert index.directory("store", b"d") is None
    found = index.at("store", b"a")
    assert found is not None
    assert found.size == 10
    mkdir(index, root(index), b"lost")
    again = index.reader()
    assert (again.chain, again.epoch) == (place(1), 1)
    assert again.at("store", b"lost") is None
    again.close()


def test_a_reader_stays_where_it_was(index: Index) -> None:
    mkdir(index, root(index), b"first")
    index.commit(place(1), Epoch(1))
    mkdir(index, root(index), b"second")
    reader = index.reader()
    index.commit(place(2), Epoch(2))
    assert list(reader.children(root(index))) == [b"first"]
    assert (reader.chain, reader.epoch) == (place(1), 1)
    assert reader.totals().directories == 2
    reader.close()
    assert list(index.children(root(index))) == [b"first", b"second"]


def test_a_directory_renamed_takes_its_paths_along(index: Index) -> None:
    above = mkdir(index, root(index), b"a")
    below = mkdir(index, above, b"b")
    index.bind(below, b"f", index.add(node()))
    assert index.directory("store", b"a/b") == below
    assert index.path(below, b"f") == ("store", b"a/b/f")
    index.move(root(index), b"a", root(index), b"z", directory=True)
    assert index.directory("store", b"a/b") is None
    assert index.directory("store", b"z/b") == below
    assert index.path(below) == ("store", b"z/b")
    mkdir(index, root(index), b"a")
    assert index.directory("store", b"a/b") is None
    assert [path for path, _ in index.walk(root(index))] == [b"a", b"z", b"z/b", b"z/b/f"]


def test_a_file_is_no_directory(index: Index) -> None:
    index.bind(root(index), b"f", index.add(node()))
    assert index.directory("store", b"f") is None
    assert index.at("store", b"f/x") is None


def test_a_file_lives_until_its_last_name_is_gone(index: Index) -> None:
    made = index.add(node(size=7))
    for name in (b"a", b"b"):
        index.bind(root(index), name, made)
    assert sorted(index.names(made)) == [(root(index), b"a"), (root(index), b"b")]
    known = index.node(made)
    assert known is not None
    index.unbind(root(index), b"a")
    assert not index.drop_if_nameless(known)
    index.unbind(root(index), b"b")
    assert index.drop_if_nameless(known)
    assert index.totals() == (1, 0, 0, 0)


def test_a_handle_names_one_node(index: Index) -> None:
    """The kernel gives a handle to a new file only when the old one is gone."""
    old = index.add(node(handle=b"h", ino=1))
    new = index.add(node(handle=b"h", ino=2))
    found = index.by_handle(b"h")
    assert found is not None
    assert found.id == new
    third = index.add(node(handle=b"g"))
    fresh = index.node(third)
    assert fresh is not None
    index.update(fresh, fresh._replace(handle=b"h"))
    index.resight(old, b"h", 5, 6)
    found = index.by_handle(b"h")
    assert found is not None
    assert (found.id, found.ino, found.ctime_ns) == (old, 5, 6)
    assert index.by_handle(b"g") is None


def test_a_damaged_file_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "bad").write_bytes(b"no database" * 1000)
    with pytest.raises(IndexUnusable, match="damaged") as caught:
        Index.open(tmp_path / "bad")
    assert "scan" in caught.value.hint
    connection = apsw.Connection(str(tmp_path / "newer"))
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(IndexUnusable, match="99"):
        Index.open(tmp_path / "newer")


def fill(index: Index) -> None:
    for number in range(10_000):
        index.bind(root(index), b"%d" % number, index.add(node(handle=b"%099d" % number)))
    index.commit(place(2), Epoch(1))


def test_a_full_disk_is_no_space_and_the_last_commit_stays(index: Index) -> None:
    index.commit(place(1), Epoch(1))
    pages = index._connection.pragma("page_count")
    index._connection.pragma("max_page_count", pages + 4)
    with pytest.raises((NoSpace, apsw.FullError)):
        fill(index)
    index._connection.pragma("max_page_count", 1_000_000)
    index.rollback()
    assert index.position == place(1).position
    mkdir(index, root(index), b"goes on")
    index.commit(place(2), Epoch(1))
    assert index.totals().directories == 2


class AgainstDictionary(RuleBasedStateMachine):
    """Any steps, with commits and rollbacks between: the index answers as a dictionary does."""

    names = st.sampled_from([b"a", b"b", b"c", b"\xff"])

    @initialize()
    def start(self) -> None:
        self.index = Index.open(Path(":memory:"))
        self.index.bind(SUPER_ROOT, b"store", self.index.add(node(NodeKind.DIRECTORY)))
        self.now: dict[tuple[int, bytes], int] = {}
        self.sizes: dict[int, int] = {}
        self.committed = (dict(self.now), dict(self.sizes))
        self.commit()

    @rule(name=names, size=st.integers(0, 99))
    def add(self, name: bytes, size: int) -> None:
        if (1, name) not in self.now:
            made = self.index.add(node(size=size))
            self.index.bind(1, name, made)
            self.now[1, name] = made
            self.sizes[made] = size

    @rule(name=names, to=names)
    def link(self, name: bytes, to: bytes) -> None:
        if (1, name) in self.now and (1, to) not in self.now:
            self.index.bind(1, to, self.now[1, name])
            self.now[1, to] = self.now[1, name]

    @rule(name=names, to=names)
    def move(self, name: bytes, to: bytes) -> None:
        if (1, name) in self.now and (1, to) not in self.now:
            self.index.move(1, name, 1, to, directory=False)
            self.now[1, to] = self.now.pop((1, name))

    @rule(name=names)
    def remove(self, name: bytes) -> None:
        gone = self.now.pop((1, name), None)
        if gone is not None:
            known = self.index.child(1, name)
            assert known is not None
            self.index.unbind(1, name)
            assert self.index.drop_if_nameless(known) == (gone not in self.now.values())
            if gone not in self.now.values():
                del self.sizes[gone]

    @rule(name=names, size=st.integers(0, 99), handle=st.sampled_from([None, b"h", b"i"]))
    def update(self, name: bytes, size: int, handle: bytes | None) -> None:
        known = self.index.child(1, name)
        if known is not None:
            self.index.update(known, known._replace(size=size, handle=handle))
            self.sizes[known.id] = size

    @rule()
    def commit(self) -> None:
        self.index.commit(place(1), Epoch(1))
        self.committed = (dict(self.now), dict(self.sizes))

    @rule()
    def rollback(self) -> None:
        self.index.rollback()
        self.now, self.sizes = dict(self.committed[0]), dict(self.committed[1])

    @invariant()
    @precondition(lambda self: hasattr(self, "index"))
    def agrees(self) -> None:
        for name in (b"a", b"b", b"c", b"\xff"):
            found = self.index.child(1, name)
            assert (found.id if found else None) == self.now.get((1, name))
            if found:
                assert found.size == self.sizes[found.id]
        assert {name: n.id for name, n in self.index.children(1).items()} == {n: i for (_, n), i in self.now.items()}
        assert self.index.totals() == (1, len(self.sizes), 0, sum(self.sizes.values()))

    def teardown(self) -> None:
        if hasattr(self, "index"):
            self.index.close()


TestAgainstDictionary = AgainstDictionary.TestCase
TestAgainstDictionary.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
