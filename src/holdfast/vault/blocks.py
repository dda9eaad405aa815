"""Plain blocks held while reading: what lies beside the content asked for is usually asked for next."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from holdfast.vault.catalog import BlockPlace

CACHED_BYTES_MAX: Final = 40 * 1024 * 1024
"""An account's text, its attachments, its directories, and what prefetching brings; and one block in any case."""


SHARED_BYTES_MAX: Final = 24 * 1024 * 1024
"""For each of two processes that read one vault."""


class BlockCache:
    """The blocks used last."""

    def __init__(self) -> None:
        self.bytes_max = CACHED_BYTES_MAX
        self._blocks: OrderedDict[BlockPlace, bytes] = OrderedDict()
        self._bytes = 0

    def __contains__(self, place: BlockPlace) -> bool:
        return place in self._blocks

    def get(self, place: BlockPlace) -> bytes | None:
        plain = self._blocks.get(place)
        if plain is not None:
            self._blocks.move_to_end(place)
        return plain

    def keep(self, place: BlockPlace, plain: bytes) -> None:
        self.forget(place)
        self._blocks[place] = plain
        self._bytes += len(plain)
        while self._bytes > self.bytes_max and len(self._blocks) > 1:
            _, oldest = self._blocks.popitem(last=False)
            self._bytes -= len(oldest)

    def forget(self, place: BlockPlace) -> None:
        self._bytes -= len(self._blocks.pop(place, b""))
