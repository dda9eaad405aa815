"""Contents described block by block."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.changes.digest import (
    BLOCK_BYTES,
    DIGEST_BYTES,
    ZERO_BLOCK_DIGEST,
    block_count,
    block_digest,
    content_digests,
)

sizes = st.sampled_from([0, 1, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, 3 * BLOCK_BYTES, 3 * BLOCK_BYTES + 5])


@given(sizes, st.integers(0, 255))
def test_the_digests_are_those_of_the_blocks(size: int, byte: int) -> None:
    content = bytes((byte,)) * size
    blocks = [content[at : at + BLOCK_BYTES] for at in range(0, size, BLOCK_BYTES)]
    assert content_digests(content) == b"".join(map(block_digest, blocks))
    assert content_digests(memoryview(content)) == content_digests(content)
    assert len(content_digests(content)) == DIGEST_BYTES * block_count(size)


def test_an_append_leaves_the_digests_before_it() -> None:
    before = content_digests(b"x" * (2 * BLOCK_BYTES + 9))
    after = content_digests(b"x" * (2 * BLOCK_BYTES + 9) + b"tail")
    assert before[: 2 * DIGEST_BYTES] == after[: 2 * DIGEST_BYTES]
    assert before[2 * DIGEST_BYTES :] != after[2 * DIGEST_BYTES :]


def test_a_hole_is_known_without_reading_it() -> None:
    assert content_digests(bytes(2 * BLOCK_BYTES)) == ZERO_BLOCK_DIGEST * 2


def test_the_digest_is_blake3_cut_to_128_bits() -> None:
    """The first bytes of the empty input's digest in BLAKE3's test vectors: the stored formats hang on it."""
    assert block_digest(b"") == bytes.fromhex("af1349b9f5f9a1a6a0404dea36dcc949")


@pytest.mark.parametrize(("size", "count"), [(0, 0), (1, 1), (BLOCK_BYTES, 1), (BLOCK_BYTES + 1, 2)])
def test_block_count(size: int, count: int) -> None:
    assert block_count(size) == count
