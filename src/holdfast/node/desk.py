"""``holdfast decide``: what "take over now" and "wait" would each cost, for the person who has to say. Pure.

From what the primary said last, this standby's state, how long takeovers and starts took here before, and the copies of
the primary's queue that a gate keeps here. What is not known is said to be not known. The order itself is `holdfast
takeover --why ...`, and `holdfast decide --wait --why ...` the other one; who gave it and why stands in the history.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from typing import Final

from msgspec import Struct

from holdfast.node.beats import Beat
from holdfast.node.desk_facts import DeskFacts, Waiting
from holdfast.node.history import Event
from holdfast.node.status import SiteStatus

NOTHING_LOOKED_UP: Final = DeskFacts()


class Choice(Struct, frozen=True):
    """One of the two. *seconds*: until users are served; -1: not known, or not before somebody acts. *waiting*: what
    the primary had accepted and not delivered, as far as copies are here: it is delivered from here."""

    name: str
    lost: str
    users: str
    seconds: float
    time: str
    risks: tuple[str, ...]
    how: str
    waiting: tuple[Waiting, ...] = ()


class Desk(Struct, frozen=True):
    """*situation*: a sentence. *by_itself*: what this machine does, or why not."""

    machine: str
    situation: str
    by_itself: str
    choices: tuple[Choice, ...]


def desk(
    status: SiteStatus,
    last: Beat | None,
    silent_seconds: float | None,
    events: Iterable[Event],
    facts: DeskFacts = NOTHING_LOOKED_UP,
) -> Desk:
    """For *status* as a standby sees it; *last*: the primary's last beat, *silent_seconds* old."""
    primary = status.primary or "nobody"
    heard = silent_seconds is not None and silent_seconds < 2.0
    if silent_seconds is None:
        situation = f"The primary, {primary}, was not heard since the agent here started."
    elif heard:
        serving = "and serves" if last is not None and last.serving else "and serves nobody"
        situation = f"The primary, {primary}, is heard {serving}: nothing has to be decided."
    else:
        situation = f"The primary, {primary}, is not heard for {silent_seconds:.0f} s."
    by_itself = f"{status.failover.order}: {status.failover.reason}" if status.failover.order else status.reason
    return Desk(status.machine, situation, by_itself, (_take_over(status, last, events, facts), _wait(primary, facts)))


def _accounts(facts: DeskFacts) -> str:
    return "all accounts" if facts.accounts < 0 else f"{facts.accounts:,} accounts"


def _take_over(status: SiteStatus, last: Beat | None, events: Iterable[Event], facts: DeskFacts) -> Choice:
    took = [
        float(event.details["seconds"])
        for event in events
        if event.what == "takeover done" and "seconds" in event.details
    ]
    seconds = statistics.median(took) if took else -1.0
    time = f"{seconds:.1f} s, the median of {len(took)} here" if took else "no takeover was measured here yet"
    if not took and facts.rehearsed_start >= 0:
        time += f"; the mail software started in {facts.rehearsed_start:.1f} s in the last rehearsal"
    return Choice(
        "take over now",
        _lost(status, last, facts),
        f"{_accounts(facts)} are served again, at the same address; clients reconnect",
        seconds,
        time,
        tuple(_risks(status)),
        f'holdfast takeover --why "..."   on {status.machine}',
        facts.waiting or (),
    )


def _lost(status: SiteStatus, last: Beat | None, facts: DeskFacts) -> str:
    queue = "what lay in the primary's mail queue waits there until it is back"
    if facts.waiting is not None:
        queue = f"the {len(facts.waiting)} messages in its queue have copies here, and are delivered from here"
    if status.failover.policy == "interval":
        return f"{status.lost_if_primary_died}: copies are made at intervals; {queue}"
    if last is None:
        return f"not known: the primary was never heard here; {queue}"
    waiting = max(last.waiting_seconds, last.log_away_seconds)
    if last.waiting_bytes or last.log_away_seconds >= 0:
        return (
            f"{last.waiting_bytes:,} bytes of changes, up to {waiting:.0f} s old, were not in the log when it was last "
            f"heard: they are on its disk only; {queue}"
        )
    return f"nothing that was captured; at most the last milliseconds before its death; {queue}"


def _risks(status: SiteStatus) -> list[str]:
    if status.role != "standby":
        return [f"this machine is {status.role}: {status.reason}"]
    me = next(view for view in status.machines if view.name == status.machine)
    risks = [f"not ready: {problem}" for problem in status.readiness.problems]
    if not status.readiness.checked_at:
        risks.append("whether this standby is ready was not checked yet")
    risks += [each.what for each in status.warnings if each.key in ("own:software", "own:differences", "own:blocked")]
    if me.behind_records > 0:
        risks.append(f"{me.behind_records:,} records of the log are to be applied first")
    if not status.verified_at:
        risks.append("this copy was never compared with the primary")
    if not status.log.reachable:
        risks.append(f"the log does not answer, and without it nobody is promoted: {status.log.problem}")
    return risks


def _wait(primary: str, facts: DeskFacts) -> Choice:
    like = "not known here"
    if facts.started:
        like = f"this machine needed {facts.starts_in:.0f} s from power to agent, the median of {len(facts.started)}"
    return Choice(
        "wait",
        f"nothing, if {primary} comes back with its disk",
        f"{_accounts(facts)} are not served meanwhile; mail from outside waits with its senders, for some days",
        -1.0,
        f"as long as {primary} needs: {like}",
        (f"{primary} may not come back", "if its disk is gone, what waiting saved is gone, too"),
        f'start {primary}; it serves again by itself. Say so: holdfast decide --wait --why "..."',
    )
