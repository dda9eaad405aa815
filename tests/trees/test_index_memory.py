"""What the index remembers is what its tables say, whatever happened."""

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
    @initialize()
    def open(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.index = Index.open(Path(self.folder.name) / "index.db")
        self.chain = chain_start(Incarnation("ab" * 16))
        self.parent = self.index.add(self.blank(NodeKind.DIRECTORY))
        self.index.bind(SUPER_ROOT, b"store", self.parent)
        self.index.commit(self.chain, Epoch(1))

    def blank(
        self, kind: NodeKind = NodeKind.FILE, handle: bytes | None = None, size: int = 0, content: bytes = b""
    ) -> Node:
        return Node(0, kind, handle, 7, 0o600, 0, 0, size, 1, 1, content, b"")

    @rule(name=names, handle=handles, size=sizes, content=contents)
    def put(self, name: bytes, handle: bytes | None, size: int, content: bytes) -> None:
        standing = self.index.child(self.parent, name)
        if standing is not None:
            self.index.unbind(self.parent, name)
            self.index.drop_if_nameless(standing)
        self.index.bind(self.parent, name, self.index.add(self.blank(NodeKind.FILE, handle, size, content)))

    @rule(name=names, to=names)
    def link(self, name: bytes, to: bytes) -> None:
        node = self.index.child(self.parent, name)
        if node is not None and self.index.child_id(self.parent, to) is None:
            self.index.bind(self.parent, to, node.id)

    @rule(name=names, to=names)
    def move(self, name: bytes, to: bytes) -> None:
        if self.index.child_id(self.parent, name) is not None and self.index.child_id(self.parent, to) is None:
            self.index.move(self.parent, name, self.parent, to, directory=False)

    @rule(name=names, handle=handles, size=sizes, content=contents)
    def update(self, name: bytes, handle: bytes | None, size: int, content: bytes) -> None:
        node = self.index.child(self.parent, name)
        if node is not None:
            self.index.update(node, node._replace(handle=handle, size=size, content=content))

    @rule(name=names, handle=handles, ino=sizes)
    def resight(self, name: bytes, handle: bytes | None, ino: int) -> None:
        node_id = self.index.child_id(self.parent, name)
        if node_id is not None:
            self.index.resight(node_id, handle, ino, 5)

    @rule(name=names)
    def doubt(self, name: bytes) -> None:
        node_id = self.index.child_id(self.parent, name)
        if node_id is not None:
            self.index.doubt(node_id)

    @rule(name=names)
    def remove(self, name: bytes) -> None:
        node = self.index.child(self.parent, name)
        if node is not None:
            self.index.unbind(self.parent, name)
            self.index.drop_if_nameless(node)

    @rule()
    def commit(self) -> None:
        self.index.commit(self.chain, Epoch(1))

    @rule()
    def rollback(self) -> None:
        self.index.rollback()

    @invariant()
    def remembers_what_is_written(self) -> None:
        if not hasattr(self, "index"):
            return
        for name in NAMES:
            written = IndexReader.child_id(self.index, self.parent, name)
            assert self.index.child_id(self.parent, name) == written
            if written is not None:
                assert self.index.node(written) == IndexReader.node(self.index, written)

    def teardown(self) -> None:
        if hasattr(self, "index"):
            self.index.close()
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
