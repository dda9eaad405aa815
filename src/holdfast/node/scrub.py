"""The scrub: slowly, all contents of the primary's trees are compared with what the log knows of them.

What events told wrongly or not at all (a write through a memory map, a bug of ours or of the kernel's) is found here
and marked; the watcher looks at it and logs what stands there. The rate is chosen so that one pass takes about
``scrub_hours``; a pass that ends begins anew.
"""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Final

from holdfast.errors import HoldfastError
from holdfast.node.capture import Capture
from holdfast.node.world import World
from holdfast.trees.audit import Audit
from holdfast.trees.index import IndexReader
from holdfast.trees.rate import TokenBucket
from holdfast.trees.spec import Tree
from holdfast.watch.watcher import Watcher

RATE_BYTES_PER_SECOND_MIN: Final = 256 * 1024
PAUSE_SECONDS: Final = 60.0
"""Between two passes, and before the first: the scan of a start goes first."""
BARRIER_SECONDS: Final = 60.0
FIRST_WORDS: Final = "waits"


class Scrub:
    """Passes over the trees, one after another, until cancelled."""

    def __init__(self, world: World, trees: list[Tree], watcher: Watcher, capture: Capture) -> None:
        self._world = world
        self._trees = tuple(trees)
        self._watcher = watcher
        self._capture = capture
        self._audit: Audit | None = None
        self._stopped = threading.Event()
        self.passes = 0
        self.found = 0

    @property
    def words(self) -> str:
        """For status: how far this pass is."""
        audit = self._audit
        if audit is None:
            return f"{FIRST_WORDS}, {self.passes} passes done, {self.found} differences healed"
        at = audit.progress
        share = 100 * at.bytes / at.bytes_total if at.bytes_total else 100.0
        return f"{share:.0f} % of pass {self.passes + 1}, {self.found} differences healed"

    async def run(self) -> None:
        hours = self._world.settings.copy.scrub_hours
        try:
            while hours > 0:
                await asyncio.sleep(PAUSE_SECONDS)
                try:
                    await asyncio.to_thread(self._pass, hours * 3600, asyncio.get_running_loop())
                    self.passes += 1
                except HoldfastError as error:
                    self._world.history.record("the scrub stopped", error.message)
                    return
        finally:
            self._stopped.set()
            if self._audit is not None:
                self._audit.stop_wanted = True

    def _pass(self, seconds: float, loop: asyncio.AbstractEventLoop) -> None:
        def snapshot() -> IndexReader:
            async def settled() -> IndexReader:
                await self._capture.barrier(timeout_seconds=BARRIER_SECONDS)
                return await self._capture.snapshot()

            return asyncio.run_coroutine_threadsafe(settled(), loop).result()

        def pause(wanted_seconds: float) -> None:
            if self._stopped.wait(wanted_seconds):
                audit.stop_wanted = True

        with_totals = snapshot()
        size = with_totals.totals().bytes
        with_totals.close()
        rate = TokenBucket(max(size / seconds, RATE_BYTES_PER_SECOND_MIN), time.monotonic)
        audit = Audit(self._trees, snapshot, full=True, rate=rate, clock=time.monotonic, pause=pause)
        self._audit = audit
        try:
            for finding in audit.run():
                self.found += 1
                path = finding.path.decode("utf-8", "backslashreplace")
                self._world.history.record("scrub found a difference", f"{finding.tree}/{path}: {finding.what}")
                self._watcher.mark(finding.tree, finding.path)
        except OSError as error:
            raise HoldfastError(f"a tree cannot be read: {error}", hint="Is its filesystem mounted?") from error
        finally:
            self._audit = None
