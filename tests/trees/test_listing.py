"""Listings: one order, which can be left and taken up anywhere, also when the tree has changed."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.trees.index import Index
from holdfast.trees.listing import Walk, listing_entries, names_in, order_key, walk_listing
from holdfast.trees.rate import BURST_SECONDS, TokenBucket
from holdfast.trees.spec import Tree, TreeSpec
from holdfast.trees.stat import Owners
from tests.trees.small_scan import scan_into, scanned

names = st.sampled_from([b"a", b"b", b"ab", b"a.", b"a-", b"\xff", b"A"])
paths = st.lists(names, min_size=1, max_size=4).map(b"/".join)


def made(folder: Path, directories: list[bytes], files: list[bytes]) -> tuple[Index, Tree]:
    root = folder / "t"
    root.mkdir(exist_ok=True)
    for path in directories:
        Path(os.fsdecode(os.fsencode(root) + b"/" + path)).mkdir(parents=True, exist_ok=True)
    for path in files:
        file = Path(os.fsdecode(os.fsencode(root) + b"/" + path + b".f"))
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(path)
    tree = Tree(TreeSpec("t", str(root)))
    return scanned(folder / "index", (tree,)), tree


@settings(deadline=None, max_examples=60)
@given(st.lists(paths, max_size=12), st.lists(paths, max_size=12))
def test_the_order_is_that_of_the_keys_and_can_be_resumed(directories: list[bytes], files: list[bytes]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        index, _ = made(Path(folder), directories, files)
        whole = [path for path, _, _ in walk_listing(index, "t")]
        assert whole == sorted(whole, key=order_key)
        root = index.directory("t", b"")
        assert root is not None
        assert sorted(whole) == sorted([b"", *(path for path, _ in index.walk(root))])
        for at, path in enumerate(whole):
            assert [p for p, _, _ in walk_listing(index, "t", path)] == whole[at + 1 :]
        for gone in (b"a/nothing", b"nothing/at/all", b"\xff\xff"):
            expected = [p for p in whole if order_key(p) > order_key(gone)]
            assert [p for p, _, _ in walk_listing(index, "t", gone)] == expected
        index.close()


@settings(deadline=None, max_examples=30)
@given(st.lists(paths, max_size=12))
def test_directories_can_be_resumed(directories: list[bytes]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        index, _ = made(Path(folder), directories, [])

        def after(place: bytes | None) -> list[bytes]:
            walk = Walk(index, "t", place)
            found = []
            while (at := walk.next(index)) is not None:
                found.append(at[0])
            return found

        whole = after(None)
        assert len(whole) == index.totals().directories
        for at, path in enumerate(whole):
            assert after(path) == whole[at + 1 :]
        index.close()


def test_a_directory_larger_than_a_chunk_is_listed_whole(tmp_path: Path) -> None:
    index, _ = made(tmp_path, [], [b"%05d" % number for number in range(2500)])
    assert len(list(walk_listing(index, "t"))) == 2501
    root = index.directory("t", b"")
    assert root is not None
    assert len(names_in(index, root)) == 2500


def test_entries_tell_names_of_one_file_by_their_token(tmp_path: Path) -> None:
    index, tree = made(tmp_path, [], [b"a", b"b"])
    os.link(tree.root / "a.f", tree.root / "c")
    scan_into(index, (tree,), 2)
    entries = {entry.path: entry for entry in listing_entries(index, "t", Owners())}
    assert entries[b"a.f"].node == entries[b"c"].node
    assert (entries[b"a.f"].links, entries[b"b.f"].links) == (2, 1)
    assert entries[b"b.f"].meta.owner == Owners().user(os.getuid())


def test_an_unknown_tree_has_no_entries(tmp_path: Path) -> None:
    index, _ = made(tmp_path, [], [])
    assert list(walk_listing(index, "other")) == []


def test_a_rate_is_kept_on_average_and_lends() -> None:
    now = 0.0
    bucket = TokenBucket(1000, lambda: now)
    assert bucket.take(5000) == 0
    assert bucket.take(1) == 5
    now = 100.0
    assert bucket.take(1000) == 0, "after a rest there is no wait"
    assert bucket.take(1000) == 1 - BURST_SECONDS, "but a rest is not saved up"
    assert TokenBucket(0, lambda: now).take(10**12) == 0
