"""The ends of files that grow, remembered: what of them is read again, and how little has to be hashed.

Of a file that is both ``append`` and ``read_first`` (an index log, a list of UIDs) only what is young is read again
with each record. Such files grow by small records, one after another: a record may be written in two steps (Dovecot
fills in the size of a transaction last, at its beginning), but is finished before the next one begins. So what stood
before the record that is being written stays as it is. A *mark* is the size before the file was seen to grow; it moves
on when the file is seen to grow ``YOUNG_SECONDS`` later, and the mark before it is where reading begins. To be missed,
a record would have to be seen growing three times, over longer than that. Should one ever be: once in ``WHOLE_SECONDS``
the file is compared as far back as any other that grows.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from typing import Final, NamedTuple

from blake3 import blake3

from holdfast.changes.change import Extent
from holdfast.changes.digest import BLOCK_BYTES, DIGEST_BYTES

YOUNG_SECONDS: Final = 3.0
"""A record is written within milliseconds; by a process that has to wait for its disk, within a second or so."""
WHOLE_SECONDS: Final = 60.0
GUARD_BYTES: Final = 64
"""So much before the mark is read, too: when it has changed, the file was not written as such files are."""
CHUNK_BYTES: Final = 1024
"""What BLAKE3 takes at a time: a hasher that has taken whole chunks goes on fastest."""
REMEMBERED_END_BYTES: Final = 6 * BLOCK_BYTES
"""What is compared again of a file that grows (``Limits.append_reach_bytes``), and the block in which it ends."""
REWRITTEN_BYTES: Final = 256
"""A file that grows may have been rewritten so far before its old end without the hasher beginning anew."""
_OVERHEAD_BYTES: Final = 2500
"""A hasher is 2 KB."""


def read_up_to(fd: int, size: int, offset: int) -> bytes:
    """*size* bytes from *offset*; fewer only at the end of the file."""
    data = os.pread(fd, size, offset)
    while 0 < len(data) < size:
        more = os.pread(fd, size - len(data), offset + len(data))
        if not more:
            break
        data += more
    return data


def last_block(size: int) -> int:
    """Where the last block of a file begins."""
    return (size - 1) // BLOCK_BYTES * BLOCK_BYTES if size else 0


class Grown(NamedTuple):
    """How a file differs from what is known, when only its last block does: its size now, what has to be written, and
    the digest of that block."""

    size: int
    extents: tuple[Extent, ...]
    digest: bytes


class Tail:
    """The end of a file, as the log has it: *data* from *start* on. And a hasher of most of its last block: of a file
    that grows the same bytes come again and again."""

    __slots__ = ("_hashed", "_hasher", "_mark", "_marked_at", "_old", "_whole_at", "data", "start", "weight")

    def __init__(self, data: bytes, start: int = 0, now: float = 0.0) -> None:
        self.data = data
        self.start = start
        self.weight = 0
        """What ``Tails`` counts it as."""
        self._hasher: blake3 | None = None
        self._hashed = 0
        """How far into the file the hasher has come, from the beginning of the last block."""
        self._old = self._mark = 0  # a record may be under way that began before *start*
        """Two marks: what stands before the first one stays."""
        self._marked_at = self._whole_at = now

    @property
    def end(self) -> int:
        return self.start + len(self.data)

    def of(self, known_size: int, start: int) -> bytes | None:
        """The bytes from *start* to the end of a file of *known_size*; None when they are not all remembered."""
        if self.start > start or self.end != known_size:
            return None
        return self.data if self.start == start else self.data[start - self.start :]

    def compared(self, data: bytes, start: int, now: float) -> None:
        """The file was read as far back as it may have been rewritten: *data* is what stands from *start* on."""
        if self.data is not data:  # not renewed with it
            self.data, self.start, self._hasher = data, start, None
        self._old, self._mark = min(self._old, self.end), min(self._mark, self.end)
        self._whole_at = now

    def renew(self, data: bytes, start: int, same: int) -> bytes | None:
        """*data* is what stands from *start* on now, of which the first *same* bytes are as they were, as is all that
        stands before. The digest of the last block; None (and nothing is changed) when too little is remembered."""
        end = start + len(data)
        block, changed = last_block(end), start + same
        hasher, hashed = self._hasher, self._hashed
        if hasher is None or block != last_block(self.end) or changed < hashed:
            hasher, hashed = None, block
        if hashed < start:
            if hashed < self.start:
                return None
            data, start = self.data[hashed - self.start : start - self.start] + data, hashed
        hasher = hasher or blake3()
        until = block + (end - block - REWRITTEN_BYTES) // CHUNK_BYTES * CHUNK_BYTES
        if until > hashed:
            hasher.update(data[hashed - start : until - start])
            hashed = until
        self.data, self.start, self._hasher, self._hashed = data, start, hasher, hashed
        if not data:
            return b""
        whole = hasher.copy()
        whole.update(data[hashed - start :])
        return whole.digest(length=DIGEST_BYTES)

    def grown(self, fd: int, known_size: int, size: int, now: float) -> Grown | None:
        """Read what is young of an open file of small records; None when it has to be compared as others are."""
        if self.end != known_size or size < known_size or last_block(size) != last_block(known_size):
            return None
        if now - self._whole_at >= WHOLE_SECONDS:
            return None
        if size > known_size and now - self._marked_at >= YOUNG_SECONDS:
            self._old, self._mark, self._marked_at = self._mark, known_size, now
        start = max(self._old - GUARD_BYTES, 0)
        before = self.of(known_size, start)
        if before is None:
            return None
        data = read_up_to(fd, size - start, start)
        same = common_prefix(before, data)
        if same == len(data) == len(before):
            return Grown(known_size, (), b"")
        if start + same < max(self._old, last_block(size)) or start + len(data) < known_size:
            return None
        digest = self.renew(data, start, same)
        return None if digest is None else Grown(start + len(data), difference(before, data, same, start), digest)


class Tails:
    """The ends of files that are patched often: what was used longest ago goes first."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._bytes = 0
        self._tails: OrderedDict[int, Tail] = OrderedDict()

    def get(self, node_id: int) -> Tail | None:
        return self._tails.get(node_id)

    def put(self, node_id: int, data: bytes, start: int, now: float) -> None:
        """*data* is what stands from *start*, where a block begins, to the end now: the file was compared."""
        tail = self._tails.get(node_id)
        if tail is None:
            tail = Tail(data, start, now)
        else:
            tail.compared(data, start, now)
        self.used(node_id, tail)

    def used(self, node_id: int, tail: Tail) -> None:
        """*tail* is the file's; it may have another size now."""
        self._tails[node_id] = tail
        self._tails.move_to_end(node_id)
        self._bytes -= tail.weight
        tail.weight = len(tail.data) + _OVERHEAD_BYTES
        self._bytes += tail.weight
        while self._bytes > self._bytes_max:
            self._bytes -= self._tails.popitem(last=False)[1].weight

    def drop(self, node_id: int) -> None:
        old = self._tails.pop(node_id, None)
        if old is not None:
            self._bytes -= old.weight

    def clear(self) -> None:
        self._tails.clear()
        self._bytes = 0


def difference(before: bytes, data: bytes, same: int, offset: int) -> tuple[Extent, ...]:
    """What to write at *offset* and after to make *data* of *before*; their first *same* bytes are equal."""
    until = len(data)
    if until == len(before):
        until -= common_suffix(before[same:], data[same:])
    return (Extent(offset + same, data[same:until]),) if same < until else ()


def common_prefix(left: bytes, right: bytes) -> int:
    """How many bytes at the beginning are equal: halving, because comparing slices is what Python is fast at."""
    low, high = 0, min(len(left), len(right))
    if right.startswith(left) or left.startswith(right):
        return high
    while high - low > 1:
        middle = (low + high) // 2
        if left[low:middle] == right[low:middle]:
            low = middle
        else:
            high = middle
    return low


def common_suffix(left: bytes, right: bytes) -> int:
    """How many bytes at the end are equal; both are of one length."""
    low, high = 0, len(left)
    if left == right:
        return high
    while high - low > 1:
        middle = (low + high) // 2
        if left[len(left) - middle : len(left) - low] == right[len(right) - middle : len(right) - low]:
            low = middle
        else:
            high = middle
    return low
