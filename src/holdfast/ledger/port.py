"""Where a gate notes what happens: the ledger's files, or, where there are none, the way to them."""

from __future__ import annotations

from typing import Protocol

from holdfast.ledger.events import Event


class Notes(Protocol):
    """Of one machine."""

    @property
    def machine(self) -> str: ...

    def now(self) -> int:
        """Milliseconds since 1970."""
        ...

    def note(self, event: Event) -> None:
        """Raises NoSpace: what it tells of must not be promised."""
        ...

    def flush(self) -> int:
        """What was noted goes on its way; the number of the last of it. Raises NoSpace."""
        ...
