"""A snapshot fed by the log, for ``bench.vault``: what the agent's archiver does when a snapshot is due.

The log's records come from a scan by the watcher; following them costs the agent something in any case and is measured
by ``bench.capture``. Measured here is what the snapshot costs.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Final

import pyrage

from holdfast.changes.frame import chain_start
from holdfast.changes.names import Epoch, Incarnation, Position, Sequence
from holdfast.trees.index import Index
from holdfast.trees.spec import Tree, TreeSpec
from holdfast.trees.stat import Owners
from holdfast.vault.backends.folder import FolderBackend
from holdfast.vault.known import Known
from holdfast.vault.logfed import Source, snapshot_from_log
from holdfast.vault.repository import init_vault, open_vault
from holdfast.vault.touched import Touched
from holdfast.watch.watcher import Watcher

INCARNATION: Final = Incarnation("ab" * 16)


class LogFed:
    """*home*: a folder for the index and a vault of its own. The first snapshot is made at once."""

    def __init__(self, home: Path, store: Path) -> None:
        self._trees = [Tree(TreeSpec("store", str(store)))]
        self._index = Index.open(home / "index.db")
        self._watcher = Watcher(self._index, self._trees, Owners())
        backend = FolderBackend(home / "log-vault", create=True)
        key = init_vault(backend, (str(pyrage.x25519.Identity.generate().to_public()),))
        self._vault = open_vault(backend, writer=key, cache=home / "log-cache.db")
        known = Known(self._vault.catalog)
        self._touched = Touched(known.has, everything=True)
        self._chain = chain_start(INCARNATION)
        self.follow()
        self.snapshot()

    def follow(self) -> None:
        """Take up what is different in the store by now, as the log's reader does."""
        for part in self._watcher.scan(lambda _: None):
            for change in part.changes:
                self._touched.add(change)
        self._chain = self._chain._replace(sequence=Sequence(self._chain.sequence + 1))
        self._index.commit(self._chain, Epoch(1))

    def snapshot(self) -> tuple[float, float, float]:
        """Wall and processor seconds of one snapshot, and 0."""

        def reach(position: Position) -> int:
            assert position == self._chain.position
            return 0

        os.sync()
        began, cpu = time.perf_counter(), time.process_time()
        source = Source(self._trees, self._index.reader, reach, self._touched)
        result = snapshot_from_log(self._vault, source, "bench")
        seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu
        assert not result.snapshot.gaps_total
        return seconds, cpu_seconds, 0.0

    def close(self) -> None:
        self._watcher.stop()
        self._vault.close()
        self._index.close()
