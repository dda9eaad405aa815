"""A seed's contents: what is fetched, what is found under another path, and large files block by block."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from typing import Final

from holdfast.apply.content import describe, describe_new, write_extents
from holdfast.apply.seed_book import Extra, Wanted
from holdfast.apply.seed_ground import INEXACT_MTIME_NS, STEP_FILES, Ground, described_by, no_limit
from holdfast.changes.change import Extent
from holdfast.changes.digest import BLOCK_BYTES, DIGEST_BYTES, ZERO_BLOCK_DIGEST, block_digest, content_digests
from holdfast.changes.exchange import CONTENT_BYTES_MAX
from holdfast.errors import NoSpace
from holdfast.trees.index import Node
from holdfast.trees.look import read_digests
from holdfast.trees.stat import handle_at

SMALL_BYTES_MAX: Final = 256 * 1024
"""Files up to this are fetched whole, several in one request; of larger ones only the blocks that differ."""
BATCH_FILES_MAX: Final = 256
SPACE_RESERVE_BYTES: Final = 64 * 1024 * 1024
FILE_OVERHEAD_BYTES: Final = 4096
"""A file takes at least a block on most filesystems."""


@dataclass
class LargeFile:
    """A large file in the making, standing in its place; *ranges* (offset, length) are to be fetched."""

    wanted: Wanted
    fd: int
    digests: bytes
    ranges: list[tuple[int, int]]
    exact: bool = True


class SeedContents:
    """Gives the rows' files their content. Raises OSError, NoSpace."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self._book = ground.book
        self._open: set[int] = set()

    def close(self) -> None:
        """Large files that were not finished stay as they are, for the next run."""
        for fd in self._open:
            os.close(fd)
        self._open.clear()

    def reuse_moved(self, after: int) -> int | None:
        """Give wanted files the content that stands under another path here; the row reached, None at the end."""
        alike = self._book.alike_after(after, STEP_FILES)
        done: set[int] = set()
        used: set[int] = set()
        for wanted, extra in alike:
            if wanted.local not in done and extra.id not in used and self._reuse(wanted, extra):
                done.add(wanted.local)
                used.add(extra.id)
        return alike[-1][0].local if alike else None

    def _reuse(self, wanted: Wanted, extra: Extra) -> bool:
        place = self._ground.places[wanted.tree]
        node = self._ground.node(wanted)
        try:
            fd = place.open(extra.path, os.O_RDONLY)
        except FileNotFoundError:
            return False
        try:
            if read_digests(fd, wanted.size, no_limit).digests != node.content:
                return False
            self._ground.make_room(place, wanted)
            place.rename(extra.path, wanted.path, replace=True)
            self._ground.describe(fd, node)
            self._ground.sight(node, os.fstat(fd), handle_at(fd, b""))
        finally:
            os.close(fd)
        self._book.use_extra(extra)
        self._ground.finished(wanted)
        self._ground.counts.moved += 1
        return True

    def check_space(self) -> tuple[int, int]:
        """Files and bytes still to come. Raises NoSpace when they cannot fit."""
        needed: dict[int, int] = {}
        files = total = 0
        for tree, count, size in self._book.wanted_sums():
            device = self._ground.places[tree].device
            needed[device] = needed.get(device, 0) + size + count * FILE_OVERHEAD_BYTES
            files, total = files + count, total + size
        for tree, path in self._book.partial:
            status = self._ground.places[tree].status(path) if tree in self._ground.places else None
            if status is not None:
                needed[status.st_dev] = needed.get(status.st_dev, 0) - status.st_blocks * 512
        for place in self._ground.places.values():
            space = os.fstatvfs(place.fd)
            free = space.f_bavail * space.f_frsize
            missing = needed.get(place.device, 0) + SPACE_RESERVE_BYTES - free
            if needed.get(place.device, 0) > 0 and missing > 0:
                raise NoSpace(
                    f"the copy does not fit: {place.root} needs {missing // 2**20 + 1} MiB more than is free",
                    hint="Make room on that filesystem (look into .holdfast/aside too), then start the seed again.",
                    retry=True,
                )
        return files, total

    def next_batch(self, after: int) -> list[Wanted]:
        """Small files that fit one request, or one large file."""
        batch: list[Wanted] = []
        size = 0
        for wanted in self._book.wanted_after(after, BATCH_FILES_MAX):
            size += wanted.size
            if batch and (size > CONTENT_BYTES_MAX or wanted.size > SMALL_BYTES_MAX):
                break
            batch.append(wanted)
            if wanted.size > SMALL_BYTES_MAX:
                break
        return batch

    def put(self, wanted: Wanted, data: bytes) -> None:
        """A small file with this content."""
        node = self._ground.node(wanted)
        exact = content_digests(data) == node.content
        self._settle(wanted, node, data, exact=exact)
        self._ground.counts.fetched += 1
        self._ground.counts.fetched_bytes += len(data)
        self._ground.counts.newer += not exact
        self._ground.finished(wanted)

    def put_placeholder(self, wanted: Wanted, problem: str) -> None:
        """Content could not be had: *problem*, or (empty) the file is gone at the source. What file stands here stays
        in the first case, else it is an empty one: the log's changes need something to work on."""
        status = self._ground.places[wanted.tree].status(wanted.path)
        node = self._ground.node(wanted)
        if problem and status is not None and stat.S_ISREG(status.st_mode) and status.st_nlink == 1:
            self._sight_standing(wanted, node)
        else:
            self._settle(wanted, node, b"", exact=False)
        self._ground.count_lacking(wanted, problem)
        self._ground.finished(wanted)

    def _settle(self, wanted: Wanted, node: Node, data: bytes, *, exact: bool) -> None:
        place = self._ground.places[wanted.tree]
        meta = described_by(node)
        staged = place.stage()
        try:
            write_extents(staged.fd, (Extent(0, data[: wanted.size]),))
            if data and len(data) != wanted.size:
                os.ftruncate(staged.fd, wanted.size)
            describe_new(staged.fd, meta if exact else meta._replace(mtime_ns=INEXACT_MTIME_NS))
            self._ground.make_room(place, wanted)
            place.settle(staged, wanted.path, replace=True)
        except OSError:
            place.discard(staged)
            raise
        try:
            self._ground.sight(node, os.fstat(staged.fd), handle_at(staged.fd, b""))
        finally:
            os.close(staged.fd)

    def _sight_standing(self, wanted: Wanted, node: Node) -> None:
        fd = self._ground.places[wanted.tree].open(wanted.path, os.O_RDONLY)
        try:
            self._ground.sight(node, os.fstat(fd), handle_at(fd, b""))
        finally:
            os.close(fd)

    def open_large(self, wanted: Wanted) -> LargeFile:
        """A large file in its place, with the blocks this machine has, and which to fetch."""
        place = self._ground.places[wanted.tree]
        node = self._ground.node(wanted)
        status = place.status(wanted.path)
        base = None
        if status is not None and stat.S_ISREG(status.st_mode):
            base = place.open(wanted.path, os.O_RDWR)
        if base is not None and (wanted.tree, wanted.path) in self._book.partial:
            self._open.add(base)
            os.ftruncate(base, wanted.size)
            return LargeFile(wanted, base, node.content, _mend_in_place(base, node.content))
        try:
            staged = place.stage()
            try:
                os.ftruncate(staged.fd, wanted.size)
                missing = _copy_blocks(base, staged.fd, node.content)
                self._ground.make_room(place, wanted)
                self._book.add_partial(wanted)
                place.settle(staged, wanted.path, replace=True)
            except OSError:
                place.discard(staged)
                raise
        finally:
            if base is not None:
                os.close(base)
        self._open.add(staged.fd)
        return LargeFile(wanted, staged.fd, node.content, missing)

    def write_large(self, large: LargeFile, offset: int, length: int, data: bytes) -> None:
        """*data* came for the range (*offset*, *length*)."""
        data = data[:length]
        first = offset // BLOCK_BYTES * DIGEST_BYTES
        expected = large.digests[first : first + DIGEST_BYTES * -(-length // BLOCK_BYTES)]
        large.exact = large.exact and content_digests(data) == expected
        write_extents(large.fd, (Extent(offset, data),))
        self._ground.counts.fetched_bytes += len(data)
        self._ground.counts.done_bytes += length

    def finish_large(self, large: LargeFile, lacking: str | None) -> None:
        """All parts are written; or it is *lacking*: the problem, empty when it is gone at the source."""
        wanted = large.wanted
        node = self._ground.node(wanted)
        exact = large.exact and lacking is None
        meta = described_by(node)
        meta = meta if exact else meta._replace(mtime_ns=INEXACT_MTIME_NS)
        describe(large.fd, os.fstat(large.fd), meta, xattrs_differ=True, mtime_differs=True)
        self._ground.sight(node, os.fstat(large.fd), handle_at(large.fd, b""))
        self._open.discard(large.fd)
        os.close(large.fd)
        self._book.drop_partial(wanted)
        if lacking is not None:
            self._ground.count_lacking(wanted, lacking)
        else:
            self._ground.counts.fetched += 1
            self._ground.counts.newer += not exact
        fetched = sum(length for _, length in large.ranges)
        self._ground.counts.done_bytes += wanted.size - fetched
        self._ground.counts.done_files += 1
        self._book.done(wanted)


def _ranges(missing: list[int], size: int) -> list[tuple[int, int]]:
    """Block numbers as (offset, length), at most CONTENT_BYTES_MAX each."""
    ranges: list[tuple[int, int]] = []
    for block in missing:
        offset = block * BLOCK_BYTES
        length = min(BLOCK_BYTES, size - offset)
        if ranges and sum(ranges[-1]) == offset and ranges[-1][1] + length <= CONTENT_BYTES_MAX:
            ranges[-1] = (ranges[-1][0], ranges[-1][1] + length)
        else:
            ranges.append((offset, length))
    return ranges


def _copy_blocks(base: int | None, fd: int, digests: bytes) -> list[tuple[int, int]]:
    """Copy to the empty file *fd* what *base* has of its blocks; the ranges that are still missing."""
    missing = []
    for block in range(len(digests) // DIGEST_BYTES):
        digest = digests[block * DIGEST_BYTES : (block + 1) * DIGEST_BYTES]
        if digest == ZERO_BLOCK_DIGEST:
            continue
        data = os.pread(base, BLOCK_BYTES, block * BLOCK_BYTES) if base is not None else b""
        if data and block_digest(data) == digest:
            write_extents(fd, (Extent(block * BLOCK_BYTES, data),))
        else:
            missing.append(block)
    return _ranges(missing, os.fstat(fd).st_size)


def _mend_in_place(fd: int, digests: bytes) -> list[tuple[int, int]]:
    """The ranges of *fd*, a partial file of ours, that are not yet as they should be; zeros are put right at once."""
    missing = []
    for block in range(len(digests) // DIGEST_BYTES):
        digest = digests[block * DIGEST_BYTES : (block + 1) * DIGEST_BYTES]
        if block_digest(os.pread(fd, BLOCK_BYTES, block * BLOCK_BYTES)) == digest:
            continue
        if digest == ZERO_BLOCK_DIGEST:
            write_extents(fd, (Extent(block * BLOCK_BYTES, bytes(BLOCK_BYTES)),))
        else:
            missing.append(block)
    return _ranges(missing, os.fstat(fd).st_size)
