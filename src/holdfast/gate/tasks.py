"""Work in the background that must not end unseen: with a fault of ours the process ends, and is started again."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Coroutine
from contextlib import AsyncExitStack

_log = logging.getLogger("holdfast.gate")


def in_background(work: Coroutine[object, object, None], stack: AsyncExitStack) -> None:
    """Until *stack* ends."""
    stack.callback(watched(work).cancel)


def watched(work: Coroutine[object, object, None]) -> asyncio.Task[None]:
    """For who ends it by itself."""
    task = asyncio.create_task(work)
    task.add_done_callback(_ended)
    return task


def _ended(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.critical("a bug: the gates end", exc_info=error)
        os.kill(os.getpid(), signal.SIGTERM)
