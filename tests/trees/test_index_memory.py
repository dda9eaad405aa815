"""What the index remembers, and has not yet written, is what its tables would say, whatever happened."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from holdfast.changes.frame import chain_start
from holdfast.changes.names import Epoch, Incarnation
from holdfast.trees import index as index_module
from holdfast.trees.index import SUPER_ROOT, Index, IndexReader, Node, NodeKind

NAMES = [b"a", b"b", b"c"]
HANDLES = [None, b"1", b"2", b"3"]
names = st.sampled_from(NAMES)
handles = st.sampled_from(HANDLES)
sizes = st.integers(0, 3)
contents = st.sampled_from([b"", b"d" * 32, b"d" * (index_module.REMEMBERED_CONTENT_BYTES_MAX + 1)])


class Remembering(RuleBasedStateMachine):
    """Everything is done to two indexes; of one, all is written to its tables after each step and read from there."""

    @initialize()
    def open(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.index, self.plain = (Index.open(Path(self.folder.name) / name) for name in ("index.db", "plain.db"))
        self.chain = chain_start(Incarnation("ab" * 16))
        for index in self.both:
            self.parent = index.add(self.blank(NodeKind.DIRECTORY))
            index.bind(SUPER_ROOT, b"store", self.parent)
            index.commit(self.chain, Epoch(1))

    @property
    def both(self) -> tuple[Index, Index]:
        return self.index, self.plain

    def blank(
        self, kind: NodeKind = NodeKind.FILE, handle: bytes | None = None, size: int = 0, content: bytes = b""
    ) -> Node:
        return Node(0, kind, handle, 7, 0o600, 0, 0, size, 1, 1, content, b"")

    @rule(name=names, handle=handles, size=sizes, content=contents)
    def put(self, name: bytes, handle: bytes | None, size: int, content: bytes) -> None:
        for index in self.both:
            self._remove(index, name)
            index.bind(self.parent, name, index.add(self.blank(NodeKind.FILE, handle, size, content)))

    @rule(name=names, to=names)
    def link(self, name: bytes, to: bytes) -> None:
        for index in self.both:
            node = index.child(self.parent, name)
            if node is not None and index.child_id(self.parent, to) is None:
                index.bind(self.parent, to, node.id)

    @rule(name=names, to=names)
    def move(self, name: bytes, to: bytes) -> None:
        for index in self.both:
            if index.child_id(self.parent, name) is not None and index.child_id(self.parent, to) is None:
                index.move(self.parent, name, self.parent, to, directory=False)

    @rule(name=names, handle=handles, size=sizes, content=contents)
    def update(self, name: bytes, handle: bytes | None, size: int, content: bytes) -> None:
        for index in self.both:
            node = index.child(self.parent, name)
            if node is not None:
                index.update(node, node._replace(handle=handle, size=size, content=content))

    @rule(name=names, size=sizes)
    def grow(self, name: bytes, size: int) -> None:
        for index in self.both:
            node = index.child(self.parent, name)
            if node is not None:
                index.update(node, node._replace(size=size))

    @rule(name=names, handle=handles, ino=sizes)
    def resight(self, name: bytes, handle: bytes | None, ino: int) -> None:
        for index in self.both:
            node_id = index.child_id(self.parent, name)
            if node_id is not None:
                index.resight(node_id, handle, ino, 5)

    @rule(name=names)
    def doubt(self, name: bytes) -> None:
        for index in self.both:
            node_id = index.child_id(self.parent, name)
            if node_id is not None:
                index.doubt(node_id)

    @rule(name=names)
    def remove(self, name: bytes) -> None:
        for index in self.both:
            self._remove(index, name)

    def _remove(self, index: Index, name: bytes) -> None:
        node = index.child(self.parent, name)
        if node is not None:
            index.unbind(self.parent, name)
            index.drop_if_nameless(node)

    @rule()
    def list_all(self) -> None:
        assert list(self.index.rows(self.parent)) == list(self.plain.rows(self.parent))
        assert self.index.children(self.parent) == self.plain.children(self.parent)

    @rule()
    def commit(self) -> None:
        for index in self.both:
            index.commit(self.chain, Epoch(1))
        readers = [index.reader() for index in self.both]
        assert readers[0].children(self.parent) == readers[1].children(self.parent)
        for reader in readers:
            reader.close()

    @rule()
    def rollback(self) -> None:
        for index in self.both:
            index.rollback()

    @invariant()
    def remembers_what_is_written(self) -> None:
        if not hasattr(self, "index"):
            return
        self.plain._write()
        self.plain._forget()
        assert self.index.totals() == self.plain.totals()
        for name in NAMES:
            written = IndexReader.child_id(self.plain, self.parent, name)
            assert self.index.child_id(self.parent, name) == written
            if written is not None:
                node = IndexReader.node(self.plain, written)
                assert self.index.node(written) == self.index.child(self.parent, name) == node
        for handle in HANDLES:
            if handle is not None:
                assert self.index.by_handle(handle) == IndexReader.by_handle(self.plain, handle)

    def teardown(self) -> None:
        if hasattr(self, "index"):
            for index in self.both:
                index.close()
            self.folder.cleanup()


TestRemembering = Remembering.TestCase
TestRemembering.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_many_names_are_not_all_remembered(tmp_path: Path) -> None:
    index = Index.open(tmp_path / "index.db")
    for number in range(index_module.REMEMBERED_MAX + 10):
        name = b"%d" % number
        node = Node(0, NodeKind.FILE, name, 1, 0, 0, 0, 0, 0, 0, b"", b"")
        index.bind(SUPER_ROOT, name, index.add(node))
        assert index.child(SUPER_ROOT, name) is not None
    assert len(index._entries) <= index_module.REMEMBERED_MAX
    assert len(index._nodes) <= index_module.REMEMBERED_MAX
    assert index.child(SUPER_ROOT, b"0") is not None
    index.close()
