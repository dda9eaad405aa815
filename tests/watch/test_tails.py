"""Remembered last blocks: what is said of a file that grows is what would be said without remembering."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from holdfast.changes.change import Extent
from holdfast.changes.digest import BLOCK_BYTES, content_digests
from holdfast.watch.content import Known, small_differences
from holdfast.watch.tails import Tail, Tails, last_block

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
    tails.put(1, content, 0, 0.0)
    for change in changes:
        before, content = content, edited(content, *change)
        known = Known(len(before), content_digests(before), tails.get(1))
        extents, digests = small_differences(content, known)
        tails.put(1, content, 0, 0.0)
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
        tails.put(node_id, bytes(5000), 0, 0.0)
    kept = [node_id for node_id in range(10) if tails.get(node_id) is not None]
    assert kept == [8, 9]
    tails.put(9, bytes(16_000), 0, 0.0)
    assert tails.get(8) is None
    tails.drop(9)
    tails.put(1, bytes(17_000), 0, 0.0)
    assert tails.get(1) is not None


steps = st.lists(
    st.tuples(
        st.sampled_from(["begin", "finish", "begin", "finish", "replace"]),
        st.integers(0, 70_000),
        st.sampled_from([0.0, 0.02, 2.0, 61.0]),
    ),
    max_size=40,
)


@given(st.integers(0, 200_000), steps)
def test_what_is_young_is_all_that_can_have_changed(size: int, records: list[tuple[str, int, float]]) -> None:
    """Records of any size, each finished (its first bytes written again) before the next begins, whatever the time
    between: looking at what is young says of the file what reading all of it would."""
    with tempfile.TemporaryFile() as file:
        file.write(os.urandom(size))
        file.flush()
        known, now, unfinished = os.pread(file.fileno(), size, 0), 0.0, 0
        tail = Tail(known[last_block(size) :], last_block(size), now)
        for what, length, seconds in records:
            now += seconds
            before = len(known)
            if what == "begin" and not unfinished:
                os.pwrite(file.fileno(), bytes(4) + os.urandom(length), before)
                unfinished = before + 1
            elif what == "finish" and unfinished:
                os.pwrite(file.fileno(), b"done", unfinished - 1)
                unfinished = 0
            elif what == "replace":
                os.ftruncate(file.fileno(), length)
                unfinished = 0
            content = os.pread(file.fileno(), 1 << 20, 0)
            grown = tail.grown(file.fileno(), before, len(content), now)
            if grown is None:
                tail.compared(content[last_block(len(content)) :], last_block(len(content)), now)
            elif grown.digest:
                assert patched(known.ljust(grown.size, b"\0"), grown.extents, grown.size) == content
                assert grown.digest == content_digests(content[last_block(len(content)) :])
            else:
                assert content == known
            known = content
            assert tail.of(len(known), tail.start) == known[tail.start :]


def test_a_file_of_small_records_is_read_from_where_it_is_young(tmp_path: Path) -> None:
    file = tmp_path / "log"
    file.write_bytes(os.urandom(60_000))
    fd = os.open(file, os.O_RDWR)
    size, tail = 60_000, Tail(file.read_bytes())
    for second in range(20):
        os.pwrite(fd, b"record", size)
        assert tail.grown(fd, size, size + 6, float(second)) is not None
        size += 6
    assert tail.start > 58_000
    os.pwrite(fd, b"what nobody does", 100)
    os.pwrite(fd, b"record", size)
    grown = tail.grown(fd, size, size + 6, 20.0)
    assert grown is not None
    assert grown.extents == (Extent(size, b"record"),)
    assert tail.grown(fd, size + 6, size + 6, 60.0) is None, "now and then it is compared as a whole"
    os.close(fd)


def test_a_file_written_anew_in_its_place_is_compared_as_a_whole(tmp_path: Path) -> None:
    file = tmp_path / "log"
    file.write_bytes(os.urandom(3000))
    size, tail = 3000, Tail(file.read_bytes())
    fd = os.open(file, os.O_RDWR)
    for second in range(0, 20, 4):
        os.pwrite(fd, b"record" * 100, size)
        assert tail.grown(fd, size, size + 600, float(second)) is not None
        size += 600
    file.write_bytes(os.urandom(size + 600))
    assert tail.grown(fd, size, size + 600, 20.0) is None
    os.close(fd)
