"""What an applier says when tree, index and log do not fit together."""

from __future__ import annotations

from typing import Final, NamedTuple

from holdfast.errors import HoldfastError, Refused

ODDITIES_MAX: Final = 1000
"""How many oddities an applier remembers for ``status``: the newest; all of them are counted."""


class Diverged(HoldfastError):
    """The tree lacks what the log and the index say stands there. Nothing was changed; the frame can be applied again
    after *path* was fetched from the primary."""

    def __init__(self, tree: str, path: bytes, what: str) -> None:
        super().__init__(
            f"tree {tree!r} differs from the log at {path!r}: {what}",
            hint="Somebody or something changed this standby's copy. `holdfast verify --heal` fetches what is missing.",
        )
        self.tree = tree
        self.path = path


class EpochOver(Refused):
    """A frame of a machine that is no longer the primary."""


class RecoveryNeeded(HoldfastError):
    """The applier stopped in the middle of a step: tree and index must be compared before it goes on."""


class Oddity(NamedTuple):
    """Something that did not stop the applier and that somebody should know."""

    tree: str
    path: bytes
    what: str
