"""Blocks fetched and opened in threads before a restore needs them."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final

from holdfast.vault.catalog import BlockPlace
from holdfast.vault.faults import VaultDamaged
from holdfast.vault.repository import Vault

AHEAD_WORKERS: Final = 2
AHEAD_BYTES: Final = 4 * 1024 * 1024
"""Sealed, in blocks on their way; plain they are below what the vault's cache holds."""
AHEAD_BLOCKS: Final = 16


class Ahead:
    """Fetches blocks before they are needed."""

    def __init__(self, vault: Vault) -> None:
        self._vault = vault
        self._pool = ThreadPoolExecutor(AHEAD_WORKERS, "vault-read")
        self._coming: dict[BlockPlace, Future[bytes]] = {}
        self._bytes = 0

    def __enter__(self) -> Ahead:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def want(self, place: BlockPlace) -> None:
        if place not in self._coming and not self._vault.holds_block(place):
            self._coming[place] = self._pool.submit(self._vault.read_block, place)
            self._bytes += place.sealed_bytes

    @property
    def full(self) -> bool:
        return self._bytes >= AHEAD_BYTES or len(self._coming) >= AHEAD_BLOCKS

    def take(self, place: BlockPlace) -> None:
        """Before a content of *place* is read: a damaged block is found by that reading itself."""
        if self._vault.holds_block(place):
            return
        coming = self._coming.pop(place, None)
        if coming is None:
            if self.full:  # what was fetched is not what is needed: make room
                self._coming.clear()
                self._bytes = 0
            return
        self._bytes -= place.sealed_bytes
        try:
            self._vault.keep_block(place, coming.result())
        except VaultDamaged:
            return
