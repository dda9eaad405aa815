"""Hints: where something happened. What happened is seen by looking.

The masks are those of fsnotify, which fanotify(7) and inotify(7) share.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Protocol, TypeAlias

MODIFY: Final = 0x2
ATTRIB: Final = 0x4
CLOSE_WRITE: Final = 0x8
MOVED_FROM: Final = 0x40
MOVED_TO: Final = 0x80
CREATE: Final = 0x100
DELETE: Final = 0x200
OVERFLOW: Final = 0x4000
RENAME: Final = 0x10000000
ON_DIRECTORY: Final = 0x40000000

NAMES: Final = MOVED_FROM | MOVED_TO | CREATE | DELETE | RENAME
"""A name appeared, went, or means another thing now."""
CONTENT: Final = MODIFY | CLOSE_WRITE
"""Bytes changed, perhaps."""


Where: TypeAlias = tuple[bytes | None, bytes, bytes | None, tuple[bytes, bytes] | None]
"""To what something happened: (directory, name, child, to).

``directory`` and ``child`` are handles: of the directory (None when only the thing itself is known), of what ``name``
in it was at that moment (None when the source does not tell). An empty name: it happened to the directory itself.
``to``: of a rename, where the source tells, the directory and name it went to. A plain tuple, because thousands of them
are made in a second.
"""

Hint: TypeAlias = tuple[Where, int]
"""Something happened there: a mask of the above."""


class DirtySet:
    """Events not yet looked at: their raw bytes, each once, and what they said together."""

    def __init__(self) -> None:
        self.raw: dict[bytes, int] = {}
        self.renamed: list[tuple[bytes, bytes]] = []
        """Renames in order, as entries of the old and the new name (where these are two events)."""
        self.overflowed = False

    def overflow(self) -> None:
        """Events were lost, or are too many to keep: everything has to be looked at."""
        self.raw.clear()
        self.renamed.clear()
        self.overflowed = True


class EventSource(Protocol):
    """Where hints come from. ``drain`` and ``hints`` are called by one thread at a time."""

    kind: str
    """``fanotify`` or ``inotify``."""

    def fileno(self) -> int:
        """Readable while events wait."""
        ...

    def drain(self, into: DirtySet, entries_max: int) -> None:
        """Take everything that waits. Beyond *entries_max* different ones the set is emptied and marked overflowed."""
        ...

    def hints(self, dirty: DirtySet) -> Iterator[Hint]:
        """What the entries of a dirty set say."""
        ...

    def watch(self, directory_fd: int, handle: bytes) -> None:
        """Be told of this directory too (called before it is listed). Raises EnvironmentUnfit at the system's limit."""
        ...

    def close(self) -> None: ...
