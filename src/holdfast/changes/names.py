"""The nouns that must not be swapped: machines, segments, trees, epochs and places in the log."""

from __future__ import annotations

import re
from typing import Final, NamedTuple, NewType

from holdfast.errors import ConfigurationError

MachineName = NewType("MachineName", str)
SegmentName = NewType("SegmentName", str)
TreeName = NewType("TreeName", str)
Epoch = NewType("Epoch", int)
"""Number of the promotion, from 1; 0 before the first."""
Sequence = NewType("Sequence", int)
"""A record's number in one incarnation of the log, from 1, without gaps; 0 is "before the first"."""
Incarnation = NewType("Incarnation", str)
"""32 hexadecimal digits, made when a log is made; a replaced log has another."""

NAME_PATTERN: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?")
"""Machine, segment and tree names go into subjects, file names and certificates: a DNS label, 32 at most."""


class Position(NamedTuple):
    """A place in the log. Positions of different incarnations do not compare: look at :attr:`incarnation` first."""

    incarnation: Incarnation
    sequence: Sequence

    def __str__(self) -> str:
        return f"{self.incarnation[:8]}:{self.sequence}"


CapturedPosition = NewType("CapturedPosition", Position)
"""Up to here the log has what the primary's watcher saw."""
AppliedPosition = NewType("AppliedPosition", Position)
"""Up to here a reader's tree holds the changes (perhaps only in its page cache)."""
DurablePosition = NewType("DurablePosition", Position)
"""Up to here a reader's tree holds the changes on its disk."""
ArchivedPosition = NewType("ArchivedPosition", Position)
"""Up to here a vault holds the changes."""

NO_INCARNATION: Final = Incarnation("0" * 32)
NOWHERE: Final = Position(NO_INCARNATION, Sequence(0))
"""Before any log."""


def checked_name(text: str, noun: str) -> str:
    """*text* itself when it is a valid name; *noun* ("machine", "tree") is for the error.

    Raises ConfigurationError.
    """
    if not NAME_PATTERN.fullmatch(text):
        raise ConfigurationError(
            f"{noun} name {text!r} is not usable",
            hint="Use 1 to 32 lower-case letters, digits and hyphens, beginning and ending with a letter or digit.",
        )
    return text
