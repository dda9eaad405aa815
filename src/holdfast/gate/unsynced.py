"""Files of the gates that were written and are not on this machine's own disk yet.

An answer waits for the log, which has what was written on two machines. That is enough while another machine goes on.
But a machine whose power was cut and that nobody replaced (the others were gone, or lost theirs too) takes its own disk
for the truth: journals that lack their last lines there would be captured so, and what was delivered would come again.
So each barrier syncs, besides, the few files that lines were appended to since the one before; both at the same time.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from holdfast.errors import HoldfastError


class Unsynced:
    """Of one event loop."""

    def __init__(self) -> None:
        self._paths: set[Path] = set()

    def wrote(self, path: Path) -> None:
        self._paths.add(path)

    async def sync(self) -> None:
        """What was written before this call is on disk. Raises HoldfastError: then nothing of it may be promised."""
        paths, self._paths = self._paths, set()
        if not paths:
            return
        try:
            await asyncio.to_thread(_sync, paths)
        except OSError as error:
            self._paths |= paths
            hint = "Look at that disk. Until then messages are answered 451: nothing is lost."
            raise HoldfastError(f"the gates' journals are not on disk: {error}", hint=hint, retry=True) from None


def _sync(paths: set[Path]) -> None:
    for path in paths:
        try:
            file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:  # it was old, and dropped
            continue
        try:
            os.fsync(file)
        finally:
            os.close(file)
