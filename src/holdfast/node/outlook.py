"""From what is heard to the facts of ``watchman``'s tables. Pure.

A *pause* holds off takeovers without a person, and lets a primary that is cut off go on serving. So it must not end on
one side of a cut alone: a standby counts as paused while its own mark or the primary's last beat says so, and a primary
relies on it only when every standby has said so after having heard it from the primary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from holdfast.node.beats import Beat
from holdfast.node.hearing import Hearing, votes
from holdfast.node.roles import Role
from holdfast.node.watchman import (
    FRESH_SECONDS,
    MISSING_SECONDS,
    SERVE_SECONDS,
    START_SECONDS,
    TURN_SECONDS,
    PrimaryFacts,
    StandbyFacts,
)


class Rules(NamedTuple):
    """What the administrator has decided (``[failover]``), and who there is."""

    me: str
    others: tuple[str, ...]
    standbys: tuple[str, ...]
    """All machines that hold the mail, the preferred one first; this one and the primary included."""
    automatic: bool
    loss_seconds_max: float = 10.0
    loss_bytes_max: int = 64 * 1024 * 1024
    takeovers_max: int = 3
    takeovers_seconds: float = 3600.0
    stop_seconds: float = 0.0
    """When the log takes nothing for so long, the primary stops serving; 0: it serves on."""
    read_only_seconds: float = 0.0
    """When it takes nothing for so long, the gates refuse changes; 0: they do not."""

    @property
    def third(self) -> bool:
        """Whether anybody but the primary and a standby has a vote."""
        return len(self.others) >= 2


class Self(NamedTuple):
    """What this machine knows of itself."""

    role: Role
    epoch: int
    primary: str
    serving: bool = False
    read_only: bool = False
    proved: bool = False
    paused: bool = False
    paused_at: float = 0.0
    applied: int = 0
    blocked: str = ""
    """Why the copy here does not follow; empty when it does."""
    takeovers: Sequence[float] = ()
    """When machines were promoted without a plan, by the clock of ``hearing``."""
    rests_until: float = 0.0
    away_seconds: float = 0.0
    """For how long the oldest change of the primary's has waited for the log."""


NEVER: Final[Mapping[str, Beat]] = {}


def superseded_by(rules: Rules, hearing: Hearing, beats: Mapping[str, Beat], epoch: int, now: float) -> str:
    """A machine, heard lately, that knows of a later promotion than ours; empty when there is none."""
    for machine in rules.others:
        beat = beats.get(machine)
        if beat is not None and beat.epoch > epoch and hearing.silent_seconds(machine, now) < FRESH_SECONDS:
            return machine
    return ""


def primary_facts(rules: Rules, me: Self, hearing: Hearing, beats: Mapping[str, Beat], now: float) -> PrimaryFacts:
    """For the machine of the log's last promotion."""
    return PrimaryFacts(
        superseded=bool(superseded_by(rules, hearing, beats, me.epoch, now)),
        replaceable=rules.automatic and rules.third and not _paused_everywhere(rules, me, hearing, beats),
        serving=me.serving,
        confirmed=hearing.confirmed_seconds(now) < SERVE_SECONDS,
        proved=me.proved,
        logless=0 < rules.stop_seconds <= me.away_seconds,
        read_only_due=0 < rules.read_only_seconds <= me.away_seconds,
        read_only=me.read_only,
    )


def _paused_everywhere(rules: Rules, me: Self, hearing: Hearing, beats: Mapping[str, Beat]) -> bool:
    return me.paused and all(
        (beat := beats.get(name)) is not None and bool(beat.paused) and hearing.echoed_since(name, me.paused_at)
        for name in rules.standbys
        if name != rules.me
    )


def standby_facts(rules: Rules, me: Self, hearing: Hearing, beats: Mapping[str, Beat], now: float) -> StandbyFacts:
    """For any machine that holds the mail and is not the primary."""
    primary = me.primary
    last = beats.get(primary)
    silent = hearing.silent_seconds(primary, now) if primary else 0.0
    voters = [name for name in rules.others if name != primary]
    heard = [name for name in voters if hearing.silent_seconds(name, now) < FRESH_SECONDS and hearing.ever_heard(name)]
    missing = [name for name in heard if _misses(beats.get(name), primary, hearing.silent_seconds(name, now))]
    needed = votes(len(rules.others)) - 1  # ours is one
    waits = MISSING_SECONDS + TURN_SECONDS * better_standbys(rules, me, heard, beats)
    return StandbyFacts(
        primary_known=bool(primary) and primary != rules.me,
        silent=silent >= MISSING_SECONDS,
        automatic=rules.automatic,
        third=rules.third,
        paused=me.paused or (last is not None and bool(last.paused)) or _any_paused(heard, beats),
        awaited=last is not None or hearing.listening_seconds(now) >= START_SECONDS,
        voters=len(heard) >= needed,
        missed=len(missing) >= needed,
        whole=me.role is Role.STANDBY and not me.blocked,
        loss_bounded=last is None or _within_bound(rules, last),
        steady=sum(now - at < rules.takeovers_seconds for at in me.takeovers) < rules.takeovers_max,
        turn=silent >= waits,
        rested=now >= me.rests_until,
    )


def _within_bound(rules: Rules, last: Beat) -> bool:
    seconds = max(last.waiting_seconds, last.log_away_seconds)
    return seconds <= rules.loss_seconds_max and last.waiting_bytes <= rules.loss_bytes_max


def _any_paused(machines: Sequence[str], beats: Mapping[str, Beat]) -> bool:
    return any((beat := beats.get(machine)) is not None and bool(beat.paused) for machine in machines)


def _misses(beat: Beat | None, primary: str, since: float) -> bool:
    """Whether a machine whose last *beat* is *since* seconds old must miss the primary, if nothing came meanwhile."""
    return beat is not None and beat.said.silent.get(primary, 0.0) + since >= MISSING_SECONDS


def better_standbys(rules: Rules, me: Self, heard: Sequence[str], beats: Mapping[str, Beat]) -> int:
    """How many of the standbys that are heard are to go before this one: further in the log, or else preferred."""
    mine = (-me.applied, rules.standbys.index(rules.me) if rules.me in rules.standbys else len(rules.standbys))
    better = 0
    for place, name in enumerate(rules.standbys):
        beat = beats.get(name)
        if name not in (rules.me, me.primary) and name in heard and beat is not None and beat.role == Role.STANDBY:
            better += (-beat.applied, place) < mine
    return better


def vote(hearing: Hearing, primary: str, now: float) -> bool:
    """Does this machine, asked now, miss *primary*?"""
    return hearing.silent_seconds(primary, now) >= MISSING_SECONDS


def confirmed_by(rules: Rules, hearing: Hearing, primary: str, missing: Sequence[str], now: float) -> str:
    """Why a takeover must not go on, when *missing* have just voted for it; empty when it may."""
    if not vote(hearing, primary, now):
        return f"{primary} is heard again"
    needed = votes(len(rules.others)) - 1
    if len(missing) < needed:
        return f"{needed} of the others would have to miss {primary} too, {len(missing)} said so"
    return ""
