"""Contents: reading a file whole, or what differs from what the log has of it.

A file may change while it is read. What is said about it is always consistent in itself: the size is where reading
ended, the digests are those of the bytes read (or of blocks the log has and that were not looked at).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from typing import NamedTuple

from holdfast.changes.change import Extent
from holdfast.changes.digest import (
    BLOCK_BYTES,
    DIGEST_BYTES,
    ZERO_BLOCK_DIGEST,
    block_count,
    block_digest,
    content_digests,
)
from holdfast.watch.tails import (
    REMEMBERED_END_BYTES,
    Tail,
    common_prefix,
    common_suffix,
    difference,
    last_block,
    read_up_to,
)


class Piece(NamedTuple):
    """A part of a new file: its bytes, where it ends, and the digests of the blocks in it.

    *error*: reading on failed, so this is the last one.
    """

    extents: tuple[Extent, ...]
    end: int
    digests: bytes
    last: bool
    error: OSError | None = None


class _Holes:
    """Where a file has no data: lseek(2), SEEK_DATA. Asks only when the file has fewer blocks than bytes."""

    def __init__(self, fd: int, status: os.stat_result) -> None:
        self._fd = fd
        self._sparse = status.st_size > BLOCK_BYTES and status.st_blocks * 512 < status.st_size
        self._data_from = 0
        self._data_until = 0
        self._size = status.st_size

    def empty(self, start: int, end: int) -> bool:
        """Whether there is no data between the two offsets."""
        if not self._sparse:
            return False
        if start >= self._data_until:
            try:
                self._data_from = os.lseek(self._fd, start, os.SEEK_DATA)
                self._data_until = os.lseek(self._fd, self._data_from, os.SEEK_HOLE)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
                self._data_from = self._data_until = max(self._size, end)
        return end <= self._data_from


def read_whole(fd: int, status: os.stat_result, piece_bytes: int) -> Piece | None:
    """A file without holes that is no larger than *piece_bytes*; None for others. Raises OSError."""
    size = status.st_size
    if size > piece_bytes or status.st_blocks * 512 < size:
        return None
    return _whole_piece(read_up_to(fd, size, 0))


def read_new(fd: int, status: os.stat_result, piece_bytes: int) -> Iterator[Piece]:
    """A file whole, in pieces of at most *piece_bytes* (whole blocks). Holes and blocks of zeros are left out.

    Raises OSError when the first piece cannot be read; when a later one cannot, the file ends there for the log.
    """
    size = status.st_size
    holes = _Holes(fd, status)
    at = 0
    while True:
        try:
            piece, at = _next_piece(fd, holes, at, size, piece_bytes)
        except OSError as error:
            if not at:
                raise
            piece = Piece((), at, b"", True, error)
        yield piece
        if piece.last:
            return


def _whole_piece(data: bytes) -> Piece:
    digests = content_digests(data)
    if len(data) <= BLOCK_BYTES:
        return Piece((Extent(0, data),) if data else (), len(data), digests, True)
    return Piece(tuple(_without_zeros(memoryview(data), digests, 0)), len(data), digests, True)


def _next_piece(fd: int, holes: _Holes, at: int, size: int, piece_bytes: int) -> tuple[Piece, int]:
    """The next piece with data from *at* on; holes before it are passed over in the same piece."""
    digests = bytearray()
    while at < size:
        end = min(at + piece_bytes, size)
        if holes.empty(at, end):
            digests += zero_digests(end - at)
            at = end
            continue
        data = read_up_to(fd, end - at, at)
        found = content_digests(data)
        digests += found
        extents = tuple(_without_zeros(memoryview(data), found, at))
        short = at + len(data) < end
        at += len(data)
        if extents or short or at >= size:
            return Piece(extents, at, bytes(digests), short or at >= size), at
    return Piece((), at, bytes(digests), True), at


def zero_digests(size: int) -> bytes:
    """The digests of *size* zeros."""
    rest = size % BLOCK_BYTES
    return ZERO_BLOCK_DIGEST * (size // BLOCK_BYTES) + (block_digest(bytes(rest)) if rest else b"")


def _without_zeros(data: memoryview, digests: bytes, offset: int) -> Iterator[Extent]:
    """*data* as extents, without full blocks of zeros."""
    start = 0
    for number, at in enumerate(range(0, len(data), BLOCK_BYTES)):
        if digests[number * DIGEST_BYTES : (number + 1) * DIGEST_BYTES] == ZERO_BLOCK_DIGEST:
            if start < at:
                yield Extent(offset + start, bytes(data[start:at]))
            start = at + BLOCK_BYTES
    if start < len(data):
        yield Extent(offset + start, bytes(data[start:]))


class Known(NamedTuple):
    """What the log has of a file: size, digests, and (perhaps) the bytes of its end."""

    size: int
    digests: bytes
    tail: Tail | None


def small_differences(data: bytes, known: Known) -> tuple[tuple[Extent, ...], bytes]:
    """What of a file of one block, which was one block before, has to travel; and its digests now. The known tail, if
    there is one, is that of *data* afterwards, unless nothing differs."""
    size, tail = known.size, known.tail
    before = None if tail is None else tail.of(size, 0)
    if tail is not None and before is not None:
        same = common_prefix(before, data)
        if same == size == len(data):
            return (), known.digests
        renewed = tail.renew(data, 0, same)
        assert renewed is not None, "all of it is there"
        return difference(before, data, same, 0), renewed
    digests = content_digests(data)
    if len(data) == size and digests == known.digests:
        return (), digests
    if len(data) > size and content_digests(data[:size]) == known.digests:
        return (Extent(size, data[size:]),), digests
    return ((Extent(0, data),) if data else ()), digests


class Differences:
    """What in an open file differs from what is known. Iterate for the extents; the attributes are right after that.

    Blocks before *first_block* are taken as unchanged when block 0 is. ``size`` and ``digests`` describe the whole
    file as it now is, ``first_changed`` is the first block whose digest is not the known one, ``tail`` the bytes of
    its end from ``tail_start`` on, when they were read. When reading fails, ``error`` says so, and what was not read is
    taken as unchanged.
    """

    def __init__(self, fd: int, status: os.stat_result, known: Known, first_block: int, piece_bytes: int) -> None:
        self._fd = fd
        self._status = status
        self._known = known
        self._piece_bytes = piece_bytes
        self._first_block = min(first_block, block_count(known.size), block_count(status.st_size))
        self.size = 0
        self.digests = b""
        self.first_changed = 0
        self.tail: bytes | None = None
        self.tail_start = 0
        self.error: OSError | None = None
        self.bytes_read = 0

    def __iter__(self) -> Iterator[Extent]:
        digests = bytearray()
        try:
            yield from self._read(digests)
        except OSError as error:
            self.error = error
            digests += self._known.digests[len(digests) :]
            self.size = max(self.size, self._known.size)
            self.tail = None
        self.digests = bytes(digests)
        self.first_changed = _common_blocks(self._known.digests, self.digests)

    def _read(self, digests: bytearray) -> Iterator[Extent]:
        known, first = self._known, self._first_block
        if first and content_digests(read_up_to(self._fd, BLOCK_BYTES, 0)) != known.digests[:DIGEST_BYTES]:
            first = 0  # it does not only grow: it was written anew
        digests += known.digests[: first * DIGEST_BYTES]
        at, size = first * BLOCK_BYTES, self._status.st_size
        before = None if known.tail is None else known.tail.of(known.size, at)
        if before is not None and 0 < size - at <= self._piece_bytes:
            yield from self._read_end(before, at, digests)
            return
        holes = _Holes(self._fd, self._status)
        while at < size:
            end = min(at + self._piece_bytes, size)
            if holes.empty(at, end):
                found = zero_digests(end - at)
                yield from self._changed_holes(found, at, end)
                digests += found
                self.size = at = end
                continue
            data = read_up_to(self._fd, end - at, at)
            self.bytes_read += len(data)
            found = content_digests(data)
            yield from self._changed(memoryview(data), found, at)
            digests += found
            if data and at + len(data) >= size:
                whole = at == first * BLOCK_BYTES and len(data) <= REMEMBERED_END_BYTES
                last = 0 if whole else last_block(len(data))
                self.tail, self.tail_start = data[last:], at + last
            at += len(data)
            self.size = at
            if at < end:
                break
        self.size = at

    def _read_end(self, before: bytes, at: int, digests: bytearray) -> Iterator[Extent]:
        """All from *at* on, where *before* stood: whole blocks that are equal need no digest."""
        known = self._known
        assert known.tail is not None
        data = read_up_to(self._fd, self._status.st_size - at, at)
        self.bytes_read += len(data)
        self.size = at + len(data)
        same = common_prefix(before, data)
        skip = min(same // BLOCK_BYTES * BLOCK_BYTES, last_block(len(data)))
        first = at // BLOCK_BYTES
        digests += known.digests[first * DIGEST_BYTES : (first + skip // BLOCK_BYTES) * DIGEST_BYTES]
        if len(data) - skip <= BLOCK_BYTES and len(before) - skip <= BLOCK_BYTES:
            yield from difference(before, data, same, at)
            renewed = known.tail.renew(data, at, same)
            assert renewed is not None, "its last block is there"
            digests += renewed
        else:
            found = content_digests(memoryview(data)[skip:])
            yield from self._changed(memoryview(data)[skip:], found, at + skip)
            digests += found
        self.tail, self.tail_start = data, at
        if len(data) > REMEMBERED_END_BYTES:
            last = last_block(len(data))
            self.tail, self.tail_start = data[last:], at + last

    def _changed_holes(self, found: bytes, start: int, end: int) -> Iterator[Extent]:
        """Zeros where the log has other bytes."""
        for number, at in enumerate(range(start, min(end, self._known.size), BLOCK_BYTES)):
            if self._digest(at // BLOCK_BYTES) != found[number * DIGEST_BYTES : (number + 1) * DIGEST_BYTES]:
                yield Extent(at, bytes(min(BLOCK_BYTES, end - at)))

    def _digest(self, block: int) -> bytes:
        return self._known.digests[block * DIGEST_BYTES : (block + 1) * DIGEST_BYTES]

    def _changed(self, data: memoryview, found: bytes, offset: int) -> Iterator[Extent]:
        known_size = self._known.size
        for number, at in enumerate(range(0, len(data), BLOCK_BYTES)):
            digest = found[number * DIGEST_BYTES : (number + 1) * DIGEST_BYTES]
            start = offset + at
            block = start // BLOCK_BYTES
            if digest == self._digest(block):
                continue
            here = data[at : at + BLOCK_BYTES]
            if start >= known_size:
                if digest != ZERO_BLOCK_DIGEST:
                    yield Extent(start, bytes(here))
            elif start + BLOCK_BYTES >= known_size:
                yield from self._changed_last(here, start, block)
            else:
                yield Extent(start, bytes(here))

    def _changed_last(self, here: memoryview, start: int, block: int) -> Iterator[Extent]:
        """What differs in the block that was the last one: its old bytes may be known, or at least their digest."""
        old_size = self._known.size - start
        tail = None if self._known.tail is None else self._known.tail.of(self._known.size, start)
        if tail is not None:
            now = bytes(here)
            same = common_prefix(tail, now)
            until = len(now)
            if until == old_size:
                until -= common_suffix(tail[same:], now[same:])
            if same < until:
                yield Extent(start + same, now[same:until])
        elif len(here) > old_size and content_digests(here[:old_size]) == self._digest(block):
            yield Extent(start + old_size, bytes(here[old_size:]))
        else:
            yield Extent(start, bytes(here))


def _common_blocks(left: bytes, right: bytes) -> int:
    """How many digests at the beginning are equal."""
    if left == right:
        return len(left) // DIGEST_BYTES
    return common_prefix(left, right) // DIGEST_BYTES
