"""Adds contents to a vault: blocks compressed in threads, packs, index objects, in the order that survives a crash.

Contents lie in the packs in the order they were added, but that base64 stands in blocks of its own: it hardly
compresses, and would push the text that does apart. What :meth:`Writer.add` has returned an id for is durable after
:meth:`Writer.flush`, not before.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, NamedTuple

from holdfast.vault.cut import is_base64
from holdfast.vault.faults import WrongKey
from holdfast.vault.keys import Wrapper
from holdfast.vault.objects import (
    BASE64_ZSTD_LEVEL,
    CONTENT_BYTES_MAX,
    TREE_ZSTD_LEVEL,
    ZSTD_LEVEL,
    Block,
    Directory,
    ObjectKind,
    PackEntry,
    Sealed,
    Sealer,
    Sizes,
)
from holdfast.vault.repository import Vault

WORKERS: Final = 2
PUTS_PENDING_MAX: Final = 2
"""Packs finished and not yet in the store: each may be 40 MiB of memory."""
SEALING_BYTES_MAX: Final = 16 * 1024 * 1024
"""In blocks that workers have or wait for: bounds memory when reading is faster than compressing."""


class _Stream(NamedTuple):
    """Contents that share blocks."""

    kind: ObjectKind
    base64: bool = False

    @property
    def level(self) -> int:
        if self.kind is ObjectKind.PARTS:
            return TREE_ZSTD_LEVEL
        return BASE64_ZSTD_LEVEL if self.base64 else ZSTD_LEVEL

    def block_bytes_max(self, sizes: Sizes) -> int:
        if self.kind is ObjectKind.PARTS:
            return sizes.parts_block_bytes
        return sizes.base64_block_bytes if self.base64 else sizes.block_bytes


_STREAMS: Final = (
    _Stream(ObjectKind.CONTENTS),
    _Stream(ObjectKind.CONTENTS, base64=True),
    _Stream(ObjectKind.PARTS),
)


class _OpenBlock:
    def __init__(self) -> None:
        self.plain = bytearray()
        self.ids: list[bytes] = []
        self.lengths: list[int] = []


class _SealedBlock(NamedTuple):
    plain_bytes: int
    ids: list[bytes]
    lengths: list[int]
    sealed: Future[bytes]


class _OpenPack:
    """One kind's pack in the making; the key comes with the first block."""

    def __init__(self, kind: ObjectKind, sizes: Sizes) -> None:
        self.kind = kind
        self.sealer: Sealer | None = None
        self.blocks: list[_SealedBlock] = []
        self.contents = 0
        self.room = sizes.pack_blocks * _Stream(kind).block_bytes_max(sizes)


class Writer:
    """Use as a context manager; leaving it without :meth:`flush` gives up what was not finished."""

    def __init__(self, vault: Vault) -> None:
        if vault.wrapper is None:
            raise WrongKey("this vault is open for reading only", hint="Give the writer key that `vault init` made.")
        self._vault = vault
        self._wrapper: Wrapper = vault.wrapper
        self._open = {stream: _OpenBlock() for stream in _STREAMS}
        self._packs = {kind: _OpenPack(kind, vault.sizes) for kind in (ObjectKind.CONTENTS, ObjectKind.PARTS)}
        self._unfinished: set[bytes] = set()
        """Contents added here that the catalog does not have yet."""
        self._workers = ThreadPoolExecutor(WORKERS, "vault-seal")
        self._putter = ThreadPoolExecutor(1, "vault-put")
        self._sealing: deque[tuple[int, Future[bytes]]] = deque()
        self._sealing_bytes = 0
        self._puts: deque[tuple[PackEntry, Future[None]]] = deque()
        self._to_index: list[PackEntry] = vault.catalog.unindexed()
        self.added_contents = 0
        self.added_bytes = 0
        self.written_bytes = 0

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self._workers.shutdown(wait=True, cancel_futures=True)
        self._putter.shutdown(wait=True, cancel_futures=True)

    def add(self, content: bytes, kind: ObjectKind = ObjectKind.CONTENTS) -> bytes:
        """The id of *content* (1 byte to ``CONTENT_BYTES_MAX``), which is written unless the vault has it."""
        assert 0 < len(content) <= CONTENT_BYTES_MAX or kind is ObjectKind.PARTS, len(content)
        content_id = self._vault.codec.secrets.content_id(content)
        if not self.has(content_id):
            self.add_new(content_id, content, kind)
        return content_id

    def add_part(self, part: bytes) -> bytes:
        """As :meth:`add`, of a part of a directory."""
        return self.add(part, ObjectKind.PARTS)

    def has(self, content_id: bytes) -> bool:
        return content_id in self._unfinished or self._vault.catalog.has(content_id)

    def add_new(self, content_id: bytes, content: bytes, kind: ObjectKind) -> None:
        """Write *content* whether or not the vault has it elsewhere."""
        if content_id in self._unfinished:
            return
        stream = _Stream(kind, kind is ObjectKind.CONTENTS and is_base64(content))
        block = self._open[stream]
        full = len(block.plain) + len(content) > stream.block_bytes_max(self._vault.sizes)
        if block.plain and (full or len(block.ids) == self._vault.sizes.block_contents):
            self._close_block(stream)
            block = self._open[stream]
        block.plain += content
        block.ids.append(content_id)
        block.lengths.append(len(content))
        self._unfinished.add(content_id)
        self.added_contents += 1
        self.added_bytes += len(content)

    def flush(self) -> None:
        """Everything added is durable and in index objects when this returns."""
        for stream in _STREAMS:
            self._close_block(stream)
        for pack in list(self._packs.values()):
            self._close_pack(pack)
        self._settle(0)
        self._write_index()

    def _close_block(self, stream: _Stream) -> None:
        block = self._open[stream]
        if not block.plain:
            return
        self._open[stream] = _OpenBlock()
        pack = self._packs[stream.kind]
        if pack.sealer is None:
            pack.sealer = Sealer(self._vault.codec, self._wrapper, pack.kind)
        plain = bytes(block.plain)
        self._wait_for_workers(len(plain))
        sealed = self._workers.submit(pack.sealer.seal, len(pack.blocks), plain, stream.level)
        self._sealing.append((len(plain), sealed))
        self._sealing_bytes += len(plain)
        pack.blocks.append(_SealedBlock(len(plain), block.ids, block.lengths, sealed))
        pack.room -= max(len(plain), stream.block_bytes_max(self._vault.sizes))
        pack.contents += len(block.ids)
        if pack.room <= 0 or pack.contents >= self._vault.sizes.pack_contents:
            self._close_pack(pack)

    def _wait_for_workers(self, more_bytes: int) -> None:
        while self._sealing and self._sealing_bytes + more_bytes > SEALING_BYTES_MAX:
            size, sealed = self._sealing.popleft()
            sealed.result()
            self._sealing_bytes -= size

    def _close_pack(self, pack: _OpenPack) -> None:
        if pack.sealer is None:
            return
        blocks = [sealed.sealed.result() for sealed in pack.blocks]
        directory = Directory(
            len(pack.sealer.header),
            tuple(
                Block(len(data), sealed.plain_bytes, len(sealed.ids))
                for data, sealed in zip(blocks, pack.blocks, strict=True)
            ),
            b"".join(content_id for sealed in pack.blocks for content_id in sealed.ids),
            tuple(length for sealed in pack.blocks for length in sealed.lengths),
        )
        made = self._vault.codec.pack(pack.kind, pack.sealer.header, blocks, directory)
        self._packs[pack.kind] = _OpenPack(pack.kind, self._vault.sizes)
        self._put(made, directory)
        if len(self._to_index) >= self._vault.sizes.index_packs:
            self._write_index()

    def _put(self, made: Sealed, directory: Directory) -> None:
        self._settle(PUTS_PENDING_MAX - 1)
        entry = PackEntry(made.name, len(made.data), directory)
        self._puts.append((entry, self._putter.submit(self._vault.backend.put, made.name, made.data)))
        self.written_bytes += len(made.data)

    def _settle(self, pending_max: int) -> None:
        """Wait until at most *pending_max* packs are on their way; those that arrived count from now on."""
        while len(self._puts) > pending_max:
            entry, put = self._puts.popleft()
            put.result()
            self._vault.catalog.add(entry, indexed=False)
            for number in range(len(entry.directory.lengths)):
                self._unfinished.discard(entry.directory.id_at(number))
            self._to_index.append(entry)

    def _write_index(self) -> None:
        """Only packs that are durable are in the list."""
        index_packs = self._vault.sizes.index_packs
        for at in range(0, len(self._to_index), index_packs):
            entries = self._to_index[at : at + index_packs]
            made = self._vault.codec.index(entries)
            self._vault.backend.put(made.name, made.data)
            self._vault.catalog.took_index(made.name, entries)
            self.written_bytes += len(made.data)
        self._to_index = []
