"""What changes mean for the index, without a filesystem: the model and the index agree after any of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.changes.change import (
    Change,
    Extent,
    Link,
    Meta,
    Mkdir,
    Patch,
    Put,
    Remove,
    Rename,
    Rmdir,
    SetMeta,
    Symlink,
)
from holdfast.changes.digest import BLOCK_BYTES, DIGEST_BYTES, content_digests
from holdfast.trees.index import Index, Node, NodeKind
from holdfast.trees.replay import Replay, ReplayGap, Sighting
from holdfast.trees.stat import Observed, Owners, pack_xattrs
from tests.apply.model import TREE, Model, Op

META = Meta(0o600, "#5", "#6", 77, ((b"user.a", b"b"),))


@pytest.fixture
def index() -> Iterator[Index]:
    index = Index.open(Path(":memory:"))
    Replay(index, Owners()).apply(SetMeta(TREE, b"", META))
    yield index
    index.close()


def put(path: bytes, content: bytes = b"x") -> Put:
    return Put(TREE, path, len(content), META, content_digests(content), (Extent(0, content),))


def at(index: Index, path: bytes) -> Node:
    node = index.at(TREE, path)
    assert node is not None
    return node


def agrees(index: Index, model: Model) -> None:
    top = index.directory(TREE, b"")
    assert top is not None
    known, expected = dict(index.walk(top)), dict(model.walk())
    assert known.keys() == expected.keys()
    for path, node in known.items():
        thing = expected[path]
        assert node.kind == thing.kind
        assert pack_xattrs(thing.meta.xattrs) == node.xattrs
        assert (node.mode, f"#{node.uid}", f"#{node.gid}") == (thing.meta.mode, thing.meta.owner, thing.meta.group)
        if node.kind == NodeKind.FILE:
            assert (node.size, node.content) == (len(thing.content), content_digests(thing.content))
        for other, other_node in known.items():
            assert (node.id == other_node.id) == (thing is expected[other])
    files = {node.id: node for node in known.values() if node.kind == NodeKind.FILE}
    assert index.totals().files == len(files)
    assert index.totals().bytes == sum(node.size for node in files.values())


@settings(max_examples=100, deadline=None)
@given(st.lists(st.builds(Op, *(st.integers(0, 200) for _ in range(4))), max_size=30))
def test_the_index_follows_the_model(script: list[Op]) -> None:
    model, index, owners = Model(), Index.open(Path(":memory:")), Owners()
    replay = Replay(index, owners)
    replay.apply(SetMeta(TREE, b"", model.root.meta))
    for op in script:
        for change in model.do(op):
            replay.apply(change)
    agrees(index, model)
    index.close()


def test_what_was_sighted_is_kept(index: Index) -> None:
    replay = Replay(index, Owners())
    seen = Observed(NodeKind.FILE, 42, 0o600, 5, 6, 1, 77, 1234, 1)
    replay.apply(put(b"a"), Sighting(seen.ino, seen.ctime_ns, b"handle"))
    node = at(index, b"a")
    assert (node.handle, node.ino, node.ctime_ns) == (b"handle", 42, 1234)
    replay.apply(Rename(TREE, b"a", b"b"), Sighting(seen.ino, 1235, None))
    node = at(index, b"b")
    assert (node.handle, node.ino, node.ctime_ns) == (b"handle", 42, 1235)
    replay.apply(SetMeta(TREE, b"b", META))
    assert at(index, b"b").ctime_ns == 0, "not seen: a scan has to look"


@pytest.mark.parametrize(
    "change",
    [
        put(b"no/f"),
        put(b"f/below"),
        put(b"d"),
        Patch(TREE, b"no", 1, META, bytes(16), ()),
        Patch(TREE, b"d", 1, META, bytes(16), ()),
        Patch(TREE, b"f", 3 * BLOCK_BYTES, META, bytes(DIGEST_BYTES), (), 2),
        Rename(TREE, b"no", b"x"),
        Rename(TREE, b"f", b"d"),
        Rename(TREE, b"f", b"no/x"),
        Link(TREE, b"no", b"x"),
        Remove(TREE, b"no"),
        Rmdir(TREE, b"d"),
        Mkdir(TREE, b"d", META),
        SetMeta(TREE, b"no", META),
        Symlink(TREE, b"d", b"x", META),
        Remove("other", b"f"),
    ],
)
def test_what_does_not_fit_is_a_gap(index: Index, change: Change) -> None:
    replay = Replay(index, Owners())
    for sound in (put(b"f"), Mkdir(TREE, b"d", META), put(b"d/x")):
        replay.apply(sound)
    with pytest.raises(ReplayGap, match="scan"):
        replay.apply(change)
    assert at(index, b"f").size == 1
    assert at(index, b"d/x").size == 1


def test_a_link_to_itself_and_a_rename_to_itself_lose_nothing(index: Index) -> None:
    replay = Replay(index, Owners())
    replay.apply(put(b"a"))
    for change in (Link(TREE, b"a", b"a"), Rename(TREE, b"a", b"a"), Link(TREE, b"a", b"b"), Rename(TREE, b"a", b"b")):
        replay.apply(change)
    assert at(index, b"a").id == at(index, b"b").id, "rename(2) of two names of one file does nothing"


def test_a_file_in_parts_is_there_with_the_last_one(index: Index) -> None:
    replay = Replay(index, Owners())
    content = b"x" * (BLOCK_BYTES + 1)
    replay.apply(Put(TREE, b"a", 10, META, b"", (), True))
    replay.apply(Patch(TREE, b"a", 20, META, b"", (), 0, True))
    assert index.at(TREE, b"a") is None
    last = Patch(TREE, b"a", len(content), META, content_digests(content), ())
    replay.apply(last)
    assert at(index, b"a").content == content_digests(content)
    replay.apply(Put(TREE, b"b", 10, META, b"", (), True))
    replay.abandon()
    with pytest.raises(ReplayGap):
        replay.apply(Patch(TREE, b"b", 0, META, b"", ()))


def test_truncation_and_growth_keep_the_digests_of_what_stayed(index: Index) -> None:
    replay = Replay(index, Owners())
    content = b"a" * BLOCK_BYTES + b"b" * BLOCK_BYTES
    replay.apply(put(b"f", content))
    replay.apply(Patch(TREE, b"f", BLOCK_BYTES, META, b"", (), 1))
    assert at(index, b"f").content == content_digests(content[:BLOCK_BYTES])
    tail = content_digests(b"c" * 5)
    replay.apply(Patch(TREE, b"f", BLOCK_BYTES + 5, META, tail, (), 1))
    assert at(index, b"f").content == content_digests(content[:BLOCK_BYTES]) + tail
    assert index.totals().bytes == BLOCK_BYTES + 5
    replay.apply(Rmdir(TREE, b"d") if index.at(TREE, b"d") else Remove(TREE, b"f"))
    assert index.totals().bytes == 0
