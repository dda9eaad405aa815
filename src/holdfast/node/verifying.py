"""Verify and heal, ordered by a person on a standby: progress while it runs, one report at the end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct

from holdfast.apply.heal import heal
from holdfast.apply.verify import VerifyProgress, VerifyReport, verify
from holdfast.errors import HoldfastError
from holdfast.node.standby import Standby
from holdfast.node.world import World
from holdfast.trees.audit import Audit
from holdfast.trees.index import IndexReader
from holdfast.trees.rate import TokenBucket

if TYPE_CHECKING:
    from holdfast.node.node import Node
    from holdfast.node.peer import Peer

LISTINGS_SHARE: Final = 0.2
"""Comparing the two indexes takes about a fifth of comparing them and the trees by stat."""


class DifferenceView(Struct, frozen=True):
    """*path* with backslash escapes where it is no UTF-8."""

    machine: str
    tree: str
    path: str
    what: str
    detail: str


class VerifyView(Struct, frozen=True):
    """``holdfast verify --json``. *remaining*: what was found and not healed, and what could not be judged."""

    position: str
    full: bool
    files: int
    bytes: int
    seconds: float
    found: int
    healed: int
    remaining: int
    unsettled: int
    failures: dict[str, str]
    differences: tuple[DifferenceView, ...]
    not_healed: dict[str, str]


class Verifying:
    """One verify of *standby* against the primary."""

    def __init__(self, world: World, node: Node, peer: Peer, standby: Standby) -> None:
        self._world = world
        self._node = node
        self._peer = peer
        self._standby = standby

    async def run(self, *, full: bool, heal_found: bool) -> AsyncIterator[dict[str, Any]]:
        """Progress (``step``, ``share``), then ``report``. Raises HoldfastError."""
        news: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        work = asyncio.create_task(self._work(news, full=full, heal_found=heal_found))
        try:
            while not work.done() or not news.empty():
                getting = asyncio.ensure_future(news.get())
                await asyncio.wait({work, getting}, return_when=asyncio.FIRST_COMPLETED)
                if getting.done():
                    yield getting.result()
                else:
                    getting.cancel()
            yield {"report": await work}
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)

    async def _work(self, news: asyncio.Queue[dict[str, Any]], *, full: bool, heal_found: bool) -> VerifyView:
        world, primary = self._world, self._node.primary_name
        assert primary is not None
        loop = asyncio.get_running_loop()

        def progress(at: VerifyProgress) -> None:
            share = at.entries / at.entries_total if at.entries_total else 0.0
            if full and at.phase == "trees" and at.bytes_total:
                share = at.bytes / at.bytes_total
            share = LISTINGS_SHARE * share if at.phase == "listings" else LISTINGS_SHARE + (1 - LISTINGS_SHARE) * share
            step = "comparing the two indexes" if at.phase == "listings" else "comparing trees with the index"
            loop.call_soon_threadsafe(news.put_nowait, {"step": step, "share": min(share, 1.0), "found": at.found})

        exchange = self._peer.exchange_with(primary)
        report = await verify(
            exchange,
            world.settings.machine,
            self._standby.follow,
            self._audit,
            world.owners,
            full=full,
            progress=progress,
            clock=world.clocks.monotonic,
            pause=asyncio.sleep,
        )
        healed, not_healed = (0, {}) if not heal_found else await self._heal(report)
        view = _view(report, healed, not_healed)
        world.local.change(verified_at=world.clocks.wall_seconds(), verified_differences=view.remaining)
        world.history.record("verified", f"at {view.position}", found=view.found, healed=healed, full=full)
        return view

    def _audit(self, full: bool) -> Audit:
        monotonic, loop = self._world.clocks.monotonic, asyncio.get_running_loop()
        follow = self._standby.follow

        def snapshot() -> IndexReader:
            return asyncio.run_coroutine_threadsafe(follow.snapshot(), loop).result()

        trees = tuple(self._standby.trees)
        return Audit(trees, snapshot, full=full, rate=TokenBucket(0, monotonic), clock=monotonic, pause=time.sleep)

    async def _heal(self, report: VerifyReport) -> tuple[int, dict[str, str]]:
        """What is wrong here is fetched; what is wrong at the primary it looks at itself. How many; what is left."""
        world, primary = self._world, self._node.primary_name
        assert primary is not None
        assert self._node.asks is not None
        here = {(d.tree, d.path) for d in report.differences if d.machine == world.settings.machine}
        there = [(d.tree, d.path.hex()) for d in report.differences if d.machine == primary]
        trees = {str(tree.name): tree for tree in self._standby.trees}
        done = await heal(
            self._peer.exchange_with(primary), self._standby.follow.paused, trees, world.new_aside(), sorted(here)
        )
        not_healed = {f"{tree}/{_printable(path)}": why for (tree, path), why in done.left.items()}
        healed = len(here) - len(here & set(done.left))
        if there:
            try:
                await self._node.asks.order(primary, "look", spots=there)
                healed += len(there)
            except HoldfastError as error:
                not_healed[f"{primary}: {len(there)} places"] = error.message
        return healed, not_healed


def _view(report: VerifyReport, healed: int, not_healed: dict[str, str]) -> VerifyView:
    places = {(d.machine, d.tree, d.path) for d in report.differences}
    unnamed = report.found - len(report.differences)
    remaining = max(len(places) - healed, 0) + unnamed + report.unsettled + len(report.failures)
    return VerifyView(
        position=str(report.position),
        full=report.full,
        files=report.files,
        bytes=report.bytes if report.full else 0,
        seconds=round(report.seconds, 3),
        found=report.found,
        healed=healed,
        remaining=remaining,
        unsettled=report.unsettled,
        failures=report.failures,
        differences=tuple(
            DifferenceView(d.machine, d.tree, _printable(d.path), d.what, d.detail) for d in report.differences
        ),
        not_healed=not_healed,
    )


def _printable(path: bytes) -> str:
    return path.decode("utf-8", "backslashreplace")
