"""Who hears whom: what a machine knows of the others by their beats, and what they know of it. Pure.

Every beat says when it was sent, by a clock of the sender's that never jumps, and repeats of each other machine the
sending time of the last beat heard from it: an *echo*. Who finds its own time echoed knows that it was heard, and that
this was not before that time, however long the beat and the echo were under way. So two different questions have two
answers here:

*silent*     how long nothing of a machine has arrived. What a standby, and whoever is asked for a vote, goes by.
*confirmed*  how long ago the beat was sent that enough others have echoed. What a primary goes by: it serves only while
             this is short (``watchman``). Beats that arrive late, or lay waiting while this machine was frozen, confirm
             nothing new.

How many others are enough: with *n* others, ``confirmations`` of them for the primary and ``votes`` of them for a
takeover, one more together than there are. So whoever votes for a takeover is among those whose echoes had to be fresh.

Times are seconds of a clock that runs while the machine is suspended and is never set (CLOCK_BOOTTIME); those of
different machines are never compared. *Session* is a random name of one run of an agent: a clock starts anew with it.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Final

from msgspec import Struct

FROZEN_SECONDS: Final = 1.0
"""Who did not look for so long was frozen or starved: what it did not hear meanwhile says nothing about the others."""


class Said(Struct, frozen=True, omit_defaults=True):
    """What a beat says of hearing."""

    session: str = ""
    sent: float = 0.0
    heard: dict[str, tuple[str, float]] = {}
    """The echoes: of each machine heard in this session, its session and the sending time of its last beat."""
    silent: dict[str, float] = {}
    """How long ago each was heard last; or, never heard, for how long it has been listened for."""


def confirmations(others: int) -> int:
    """How many of the primary's *others* must have heard it lately for it to serve."""
    return others - others // 2


def votes(others: int) -> int:
    """How many of the primary's *others* must miss it for a takeover; more than one, or there is no third vote."""
    return others // 2 + 1


class Hearing:
    """One machine's ears."""

    def __init__(self, machines: Collection[str], session: str, now: float) -> None:
        """*machines*: all the others of the site."""
        self.session = session
        self.others = tuple(machines)
        self._heard: dict[str, tuple[float, str, float]] = {}
        self._echoed: dict[str, float] = {}
        self._listening_since = now
        self._looked = now

    def look(self, now: float) -> float:
        """To be called many times a second; for how long this machine was frozen since the last time, 0 if it ran."""
        stood_seconds = now - self._looked
        self._looked = now
        if stood_seconds <= FROZEN_SECONDS:
            return 0.0
        self._listening_since = now
        return stood_seconds

    def tell(self, now: float) -> Said:
        """For the next beat."""
        return Said(
            self.session,
            now,
            {machine: (session, sent) for machine, (_, session, sent) in self._heard.items()},
            {machine: self.silent_seconds(machine, now) for machine in self.others},
        )

    def hear(self, machine: str, said: Said, now: float) -> None:
        """A beat has arrived."""
        self._heard[machine] = (now, said.session, said.sent)
        for session, sent in said.heard.values():
            if session == self.session and sent > self._echoed.get(machine, -math.inf):
                self._echoed[machine] = sent

    def ever_heard(self, machine: str) -> bool:
        """In this session."""
        return machine in self._heard

    def silent_seconds(self, machine: str, now: float) -> float:
        """Since it was heard last, or since it is listened for."""
        heard = self._heard.get(machine)
        since = self._listening_since if heard is None else max(heard[0], self._listening_since)
        return now - since

    def listening_seconds(self, now: float) -> float:
        """Since this machine began to listen, or was last frozen."""
        return now - self._listening_since

    def echoed_since(self, machine: str, at: float) -> bool:
        """Whether *machine* has heard a beat of ours that was sent after *at*."""
        return self._echoed.get(machine, -math.inf) > at

    def confirmed_seconds(self, now: float) -> float:
        """How long ago the beat was sent that enough others have echoed; infinite before that."""
        sent = sorted(self._echoed.values(), reverse=True)
        needed = confirmations(len(self.others))
        return now - sent[needed - 1] if 0 < needed <= len(sent) else math.inf
