"""What a primary does with the log's end before it goes on."""

from __future__ import annotations

import asyncio
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from holdfast.changes.frame import (
    Chain,
    FrameKind,
    FrameWriter,
    Promotion,
    SegmentKey,
    chain_start,
    pack_changes,
    pack_promotion,
    seal,
)
from holdfast.changes.names import Epoch, MachineName, SegmentName
from holdfast.log.memory import MemoryLogStore
from holdfast.log.port import Fenced
from holdfast.node.primary import catch_up
from holdfast.node.world import World
from holdfast.trees.index import Index
from holdfast.trees.stat import Owners

KEY = SegmentKey(bytes(32))
MAIN, BACKUP = MachineName("main"), MachineName("backup")


class Writing:
    """A log, and who writes it."""

    def __init__(self) -> None:
        self.store = MemoryLogStore()
        self.log = self.store.open()
        self.chain = chain_start(self.store.incarnation)

    async def promote(self, machine: MachineName, epoch: Epoch) -> Chain:
        return await self._append(machine, epoch, FrameKind.PROMOTION, pack_promotion(Promotion(machine, "", False)))

    async def change(self, machine: MachineName, epoch: Epoch) -> Chain:
        return await self._append(machine, epoch, FrameKind.CHANGES, pack_changes(()))

    async def _append(self, machine: MachineName, epoch: Epoch, kind: FrameKind, packed: bytes) -> Chain:
        writer = FrameWriter(SegmentName("site"), machine, epoch, KEY)
        frame = seal(writer, self.chain, kind, packed, captured_at_ns=1, more=False)
        await self.log.append(frame, after=self.chain.sequence)
        self.chain = self.chain.after(frame)
        return self.chain


def world() -> World:
    settings = SimpleNamespace(machine=MAIN)
    return cast(World, SimpleNamespace(settings=settings, owners=Owners(), segment_key=lambda: KEY))


def test_own_records_since_the_last_commit_are_taken(tmp_path: Path) -> None:
    async def facts() -> None:
        writing = Writing()
        with closing(Index.open(tmp_path / "index.db")) as index:
            index.commit(writing.chain, Epoch(0))
            await writing.promote(MAIN, Epoch(1))
            end = await writing.change(MAIN, Epoch(1))
            assert await catch_up(index, writing.log, world(), Epoch(1)) == (end, False)
            assert (index.chain, index.epoch) == (end, Epoch(1))

    asyncio.run(facts())


@pytest.mark.parametrize("more", [0, 2])
def test_a_promotion_elsewhere_since_it_was_decided_fences_and_leaves_the_index(tmp_path: Path, more: int) -> None:
    """A log server that was cut off tells the log's end as it was; when the cut heals, the rest of the log appears
    between that answer and the next. Going on behind it would be a second writer."""

    async def facts() -> None:
        writing = Writing()
        ours = await writing.promote(MAIN, Epoch(1))
        with closing(Index.open(tmp_path / "index.db")) as index:
            index.commit(ours, Epoch(1))
            await writing.promote(BACKUP, Epoch(2))
            for _ in range(more):
                await writing.change(BACKUP, Epoch(2))
            with pytest.raises(Fenced, match=r"backup was promoted \(epoch 2\)"):
                await catch_up(index, writing.log, world(), Epoch(1))
        with closing(Index.open(tmp_path / "index.db")) as index:
            assert (index.chain, index.epoch) == (ours, Epoch(1))

    asyncio.run(facts())
