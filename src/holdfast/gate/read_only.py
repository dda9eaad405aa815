"""Reading only: while the log takes nothing, and the site wants it so, the gates refuse what would change something.

A file in the run directory says so. The agent makes it and removes it; the gates look whether it is there before each
command, message or request that would change something (a microsecond). So gates that die in the middle and are started
again know it at once, and an agent that starts anew begins without it.

Nothing is acknowledged without the log either way: the barrier sees to that. What this adds is that the answer comes at
once, says why, and that nothing is changed for which no answer could be given.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

NAME: Final = "read-only"
WORDS: Final = "nothing can be changed just now: it would be on one machine only. Reading works; try again later"
Refuses = Callable[[], bool]
"""Whether what would change something is to be refused now."""


def never() -> bool:
    return False


class ReadOnlyMark:
    """The file."""

    def __init__(self, run: Path) -> None:
        self.path = run / NAME

    @property
    def present(self) -> bool:
        return self.path.exists()

    def make(self) -> None:
        """Raises OSError."""
        self.path.touch(mode=0o600)

    def clear(self) -> None:
        """Raises OSError."""
        self.path.unlink(missing_ok=True)
