"""Work in the background that must not end unseen: with a fault of ours the process ends, and is started again.

And the end of what a gate has open.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Coroutine, Iterable
from contextlib import AsyncExitStack
from typing import Protocol

_log = logging.getLogger("holdfast.gate")


def in_background(work: Coroutine[object, object, None], stack: AsyncExitStack) -> None:
    """Until *stack* ends."""
    stack.callback(watched(work).cancel)


def watched(work: Coroutine[object, object, None]) -> asyncio.Task[None]:
    """For who ends it by itself."""
    task = asyncio.create_task(work)
    task.add_done_callback(_ended)
    return task


class _Connection(Protocol):
    def abort(self) -> None: ...


async def hang_up(
    server: asyncio.Server | None, tasks: Iterable[asyncio.Task[None]], connections: Iterable[_Connection]
) -> None:
    """Take nobody any more, then end *tasks*, then all *connections*, which leave their collection by that."""
    if server is not None:
        server.close()
    ending = list(tasks)
    for task in ending:
        task.cancel()
    await asyncio.gather(*ending, return_exceptions=True)
    for connection in list(connections):
        connection.abort()


def _ended(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.critical("a bug: the gates end", exc_info=error)
        os.kill(os.getpid(), signal.SIGTERM)
