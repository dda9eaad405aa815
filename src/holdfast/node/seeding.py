"""This machine while it is being seeded: it fetches what differs from the primary, and shows how far it is."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from holdfast.apply.seed import SeedProgress, SeedReport, seed
from holdfast.changes.names import MachineName
from holdfast.errors import HoldfastError
from holdfast.node.world import World
from holdfast.trees.index import Index
from holdfast.trees.spec import Tree

if TYPE_CHECKING:
    from holdfast.node.peer import Peer


class Seeding:
    """One seed, from :meth:`run` to its end or :meth:`cancel`."""

    def __init__(self, world: World, index: Index, peer: Peer, primary: MachineName) -> None:
        self._world = world
        self._index = index
        self._peer = peer
        self._primary = primary
        self._progress: SeedProgress | None = None
        self._task: asyncio.Task[SeedReport] | None = None

    async def run(self, *, keep_replaced: bool) -> SeedReport:
        """Returns when the copy stands at a position of the log. Raises HoldfastError; running it again goes on."""
        world = self._world
        trees = await self._peer.trees_of(self._primary)
        for spec in trees:
            Tree(spec).root.mkdir(mode=0o755, parents=True, exist_ok=True)
        world.local.change(trees=trees)
        world.owners.forget()
        world.history.record("seed begins", f"from {self._primary}", trees=[spec.name for spec in trees])
        self._task = asyncio.create_task(
            seed(
                self._peer.exchange_with(self._primary),
                self._index,
                {spec.name: Tree(spec) for spec in trees},
                world.owners,
                world.new_aside(),
                progress=self._seen,
                clock=world.clocks.monotonic,
                doubt_since_ns=world.local.state.doubt_since_ns or None,
                keep_replaced=keep_replaced,
            )
        )
        try:
            report = await self._task
        except asyncio.CancelledError:
            raise HoldfastError("the seed was stopped", hint="It goes on where it was.", retry=True) from None
        world.history.record("seed done", f"at {report.position}", **_summary(report))
        return report

    def _seen(self, progress: SeedProgress) -> None:
        self._progress = progress

    async def cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    @property
    def words(self) -> str:
        at = self._progress
        if at is None:
            return f"asking {self._primary} for its trees"
        if at.phase == "compare":
            return f"comparing {at.entries:,} of {at.entries_total:,} names"
        eta = "" if at.eta_seconds is None else f", {at.eta_seconds:.0f} s left"
        return f"{at.files:,} of {at.files_total:,} files, {at.bytes / 1e6:,.0f} of {at.bytes_total / 1e6:,.0f} MB{eta}"

    @property
    def share(self) -> float:
        at = self._progress
        if at is None or not at.entries_total:
            return 0.0
        if at.phase == "compare":
            return 0.2 * at.entries / at.entries_total
        return 0.2 + 0.8 * (at.bytes / at.bytes_total if at.bytes_total else at.files / max(at.files_total, 1))


def _summary(report: SeedReport) -> dict[str, object]:
    return {
        "files": report.files,
        "bytes": report.bytes,
        "kept_aside": report.aside,
        "seconds": round(report.seconds, 2),
        "unknown_owners": list(report.unknown_owners),
    }
