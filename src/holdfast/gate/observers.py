"""Whether the primary is down, as a backup MX must know before it takes mail. Pure.

A backup MX that took mail while the primary serves would let senders go round the primary's filters. So it takes mail
only when nobody is heard that serves, and another machine says the same: a relay that is cut off by itself hears
nobody, and takes nothing. The table is read from above; the first row that applies decides.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from holdfast.gate.agent import MISSING_SECONDS, Heard


class ObserverRow(NamedTuple):
    down: bool
    applies: Callable[[Heard], bool]
    reason: str


def _agreed(heard: Heard) -> bool:
    """A machine other than the primary is heard, and misses it, too; or the primary is heard, and serves nobody."""
    primary = heard.machines.get(heard.primary)
    if primary is not None and primary.heard:
        return not primary.serving
    return any(
        machine.heard and machine.misses.get(heard.primary, 0.0) >= MISSING_SECONDS
        for name, machine in heard.machines.items()
        if name != heard.primary
    )


TABLE: Final = (
    ObserverRow(False, lambda h: not h.primary, "no machine was promoted yet"),
    ObserverRow(False, lambda h: h.served, "the mail server is up: hand the message to it"),
    ObserverRow(
        False,
        lambda h: not any(machine.heard for machine in h.machines.values()),
        "this relay hears no other machine: it may be the one cut off",
    ),
    ObserverRow(False, lambda h: not _agreed(h), "the others do not agree that the mail server is down"),
    ObserverRow(True, lambda h: True, "the mail server is down, and the others say so, too"),
)


def primary_down(heard: Heard) -> ObserverRow:
    return next(row for row in TABLE if row.applies(heard))
