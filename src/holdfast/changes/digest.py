"""Digests of contents, a block at a time.

A file's content is described by the digests of its blocks: ``BLOCK_BYTES`` each, the last one shorter. The digest is
BLAKE3 cut to ``DIGEST_BYTES``: 128 bits keep accidental and deliberate collisions out of reach for as long as only the
holder of the segment's key can add contents, and they halve what the tree index stores for each file.

Shape: the digests of a file are one ``bytes`` of ``DIGEST_BYTES * ceil(size / BLOCK_BYTES)``; empty for an empty file.
"""

from __future__ import annotations

from typing import Final

from blake3 import blake3

BLOCK_BYTES: Final = 64 * 1024
"""Most mail is one block; a 10 MB mdbox file has 160, so that an append rewrites 16 bytes of 2.5 KB of digests."""
DIGEST_BYTES: Final = 16


def block_digest(block: bytes | memoryview) -> bytes:
    """The digest of one block of at most ``BLOCK_BYTES`` bytes."""
    return blake3(block).digest(length=DIGEST_BYTES)


ZERO_BLOCK_DIGEST: Final = block_digest(bytes(BLOCK_BYTES))
"""The digest of a full block of zeros: a hole of a sparse file."""


def content_digests(content: bytes | memoryview) -> bytes:
    """The digests of all blocks of *content*."""
    if len(content) <= BLOCK_BYTES:
        return blake3(content).digest(length=DIGEST_BYTES) if content else b""
    view = memoryview(content)
    return b"".join(block_digest(view[at : at + BLOCK_BYTES]) for at in range(0, len(view), BLOCK_BYTES))


def block_count(size_bytes: int) -> int:
    """How many blocks a content of *size_bytes* has."""
    return -(-size_bytes // BLOCK_BYTES)
