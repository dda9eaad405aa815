"""Remembered last blocks: what is said of a file that grows is what would be said without remembering."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from holdfast.changes.change import Extent
from holdfast.changes.digest import BLOCK_BYTES, content_digests
from holdfast.watch.content import Known, Tail, Tails, small_differences

edits = st.lists(
    st.tuples(
        st.sampled_from(["append", "append", "rewrite", "truncate", "nothing"]), st.integers(0, 9000), st.binary()
    )
)


def edited(content: bytes, what: str, where: int, data: bytes) -> bytes:
    if what == "append":
        return (content + data * 40)[:BLOCK_BYTES]
    if what == "truncate":
        return content[: where % (len(content) + 1)]
    if what == "rewrite":
        at = max(len(content) - where, 0)
        return content[:at] + data[: len(content) - at] + content[at + len(data) :]
    return content


def patched(content: bytes, extents: tuple[Extent, ...], size: int) -> bytes:
    made = bytearray(content)
    for extent in extents:
        made[extent.offset : extent.offset + len(extent.data)] = extent.data
    return bytes(made[:size])


@given(st.binary(max_size=3000), edits)
def test_differences_with_a_tail_make_the_file_and_have_its_digest(
    content: bytes, changes: list[tuple[str, int, bytes]]
) -> None:
    content *= 8
    tails = Tails(1 << 20)
    tails.put(1, content)
    for change in changes:
        before, content = content, edited(content, *change)
        known = Known(len(before), content_digests(before), tails.get(1))
        extents, digests = small_differences(content, known)
        tails.put(1, content)
        assert digests == content_digests(content)
        assert patched(before, extents, len(content)) == content
        tail = tails.get(1)
        assert tail is not None
        assert tail.data == content


def test_a_hasher_begins_anew_where_what_it_took_was_rewritten() -> None:
    first = bytes(5000)
    tail = Tail(first)
    grown = first + b"x" * 3000
    assert tail.renew(grown, 0, 5000) == content_digests(grown)
    rewritten = grown[:100] + b"y" + grown[101:] + b"z"
    assert tail.renew(rewritten, 0, 100) == content_digests(rewritten)
    assert tail.renew(b"", 0, 0) == b""
    assert tail.renew(b"a", 0, 0) == content_digests(b"a")


def test_tails_keep_to_their_bytes() -> None:
    tails = Tails(20_000)
    for node_id in range(10):
        tails.put(node_id, bytes(5000))
    kept = [node_id for node_id in range(10) if tails.get(node_id) is not None]
    assert kept == [8, 9]
    tails.put(9, bytes(16_000))
    assert tails.get(8) is None
    tails.drop(9)
    tails.put(1, bytes(17_000))
    assert tails.get(1) is not None
