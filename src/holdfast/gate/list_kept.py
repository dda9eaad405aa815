"""A relay's list of recipients: the last one that came, on its disk, and the tables that its Postfix reads.

*What is older than ours* is a replayed or restored one, and is not taken. Unless ours comes from a clock that was
wrong: a list dated further ahead than clocks may differ says nothing of what is older, and the next takes its place.
*The tables* may be of an older list, when they could not be made: that is tried again until they could.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol

from holdfast.errors import HoldfastError
from holdfast.files import PRIVATE, write_once
from holdfast.gate.recipients import Recipients, decode, encode

AHEAD_SECONDS_MAX: Final = 600.0
"""Clocks that are set at all differ by less; a list that is really so new is taken all the same."""
_log = logging.getLogger("holdfast.gate")


class Tables(Protocol):
    """See ``tables.RelayTables``."""

    async def write(self, recipients: Recipients) -> None:
        """Raises HoldfastError."""
        ...


class KeptList:
    """*path* holds it. :meth:`load` it once."""

    def __init__(self, path: Path, tables: Tables, wall_seconds: Callable[[], float]) -> None:
        self._path, self._tables, self._wall_seconds = path, tables, wall_seconds
        self.list: Recipients | None = None
        self._made_of: Recipients | None = None
        """What the tables are of, as far as this process made them."""

    async def load(self) -> None:
        """What was kept before; without one, or with one that cannot be read, the next that comes is the first."""
        try:
            self.list = decode(self._path.read_bytes())
            await self.make_tables()
        except FileNotFoundError:
            pass
        except (HoldfastError, OSError) as error:
            _log.error("the kept list of recipients, or its tables: %s", error)

    async def take(self, found: Recipients) -> None:
        """One has come; and what could not be done before is done. Raises HoldfastError, OSError."""
        if self._is_newer(found):
            write_once(self._path, encode(found), PRIVATE)
            self.list = found
        await self.make_tables()

    def _is_newer(self, found: Recipients) -> bool:
        if self.list is None or found.at > self.list.at:
            return True
        return found.at != self.list.at and self.list.at > self._wall_seconds() + AHEAD_SECONDS_MAX

    async def make_tables(self) -> None:
        """Unless they are of this list. Raises HoldfastError, OSError."""
        if self.list is None or self.list.same_as(self._made_of):
            return
        await self._tables.write(self.list)
        self._made_of = self.list
        _log.info("%d recipients in %d domains", len(self.list.recipients), len(self.list.domains))
