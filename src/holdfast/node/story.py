"""``holdfast why``: the story of a past event, from the histories of the machines, with its cause first. Pure.

What each machine did is in its own history, with the reasons of the tables. A story is one event (a takeover, a
switchover, a machine that stopped serving, a takeover that did not happen), what all machines did around it, and what
it came from, as far as they know: a machine that died knows nothing of it, and says so by its next start.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from msgspec import Struct

from holdfast.node.history import Event
from holdfast.node.watchman import MISSING_SECONDS

BEFORE_SECONDS: Final = 15.0
AFTER_SECONDS: Final = 120.0
CLOSE_SECONDS: Final = 10.0
"""Within so much of a takeover, what the old primary did belongs to it."""
LINES_MAX: Final = 200
ANEW: Final = "the log was founded anew"
ENDED: Final = "this machine's certificate is not valid"
REFUSES: Final = "refuses changes"
TOLD: Final = ("takeover begins", "switchover begins", "stops serving", REFUSES, "decided: ask a person", ANEW)
STOOD_STILL: Final = "this machine did not run for a while"
"""Written when it goes on; *seconds* of the details say for how long it did not."""
LOGLESS: Final = "The log took nothing, as two of its servers were away, and [failover] without_quorum says"
NOTHING: Final = "Nothing of the kind is in the history: no takeover, no switchover, nobody who stopped serving."


class Line(Struct, frozen=True):
    at: float
    machine: str
    what: str
    why: str = ""
    details: dict[str, Any] = {}


class Story(Struct, frozen=True):
    """*headline*: what happened. *cause*: what it came from. *lines*: everything around it, oldest first."""

    headline: str
    cause: str
    at: float
    lines: tuple[Line, ...]
    missing: dict[str, str] = {}
    """Machines that could not be asked, and why."""


def lines_of(machine: str, events: Iterable[Event]) -> list[Line]:
    return [Line(event.at, machine, event.what, event.why, event.details) for event in events]


def tell(lines: Sequence[Line], at: float | None, missing: dict[str, str]) -> Story:
    """The story of the last event, or of the one nearest to *at* (seconds since 1970)."""
    ordered = sorted(lines, key=lambda line: line.at)
    events = [line for line in ordered if line.what in TOLD]
    if not events:
        return Story(NOTHING, "", 0.0, tuple(ordered[-20:]), missing)
    event = _chosen(events, at)
    until = min([line.at for line in events if _another(line, event)], default=event.at + AFTER_SECONDS)
    until = min(until, event.at + AFTER_SECONDS)
    around = [line for line in ordered if event.at - BEFORE_SECONDS <= line.at <= until]
    return Story(
        _headline(event, around), cause_of(event, ordered, missing), event.at, tuple(around[:LINES_MAX]), missing
    )


def _chosen(events: Sequence[Line], at: float | None) -> Line:
    """A takeover rather than what led to it."""
    if at is not None:
        near = min(events, key=lambda line: abs(line.at - at))
    else:
        near = events[-1]
    if near.what.endswith("begins"):
        return near
    beside = [line for line in events if abs(line.at - near.at) <= CLOSE_SECONDS and line.what == "takeover begins"]
    return min(beside, key=lambda line: abs(line.at - near.at), default=near)


def _another(line: Line, event: Line) -> bool:
    return line.at > event.at + CLOSE_SECONDS and line.what in TOLD


def _headline(event: Line, around: Sequence[Line]) -> str:
    action = event.what.removesuffix(" begins")
    if action == event.what:
        return f"{event.machine}{':' if event.what == ANEW else ''} {event.what}: {event.why}"
    end = next(
        (
            line
            for line in around
            if line.machine == event.machine and line.what in (f"{action} done", f"{action} failed")
        ),
        None,
    )
    if end is None:
        return f"{event.machine} began a {action}, and its end is not known: {event.why}"
    took = f" that took {end.details['seconds']} s" if "seconds" in end.details else ""
    how = "became the primary" if end.what.endswith("done") else f"tried to become the primary, and failed ({end.why})"
    return f"{event.machine} {how} by a {action}{took}: {event.why}"


def cause_of(event: Line, lines: Sequence[Line], missing: dict[str, str]) -> str:
    """What *event* came from, by what the machine it is about says of itself."""
    if event.what == "switchover begins":
        return f"A person ordered it: {event.why}"
    if event.what == ANEW:
        return f"The log before could not go on: {event.why}"
    if event.what == REFUSES:
        return f"{LOGLESS} read-only then."
    if event.what == "stops serving":
        return _cause_of_stop(event) + _of_certificate(event.machine, event.at, lines)
    primary = str(event.details.get("primary") or event.why.partition(":")[0])
    own = [line for line in lines if line.machine == primary]
    by_hand = "" if "is not heard" in event.why else f"A person ordered it: {event.why}. "
    if primary in missing:
        return f"{by_hand}{primary} cannot be asked ({missing[primary]}): its machine, agent or network is still gone."
    return by_hand + _what_became_of(primary, event.at, own) + _of_certificate(primary, event.at, own)


def _cause_of_stop(event: Line) -> str:
    if "without_quorum" in event.why:
        return f"{LOGLESS} to stop then."
    stood = event.details.get("looked_after_seconds", 0.0)
    if stood > 1.0:
        return f"{event.machine} itself had stood still for {stood:.1f} s: frozen, suspended or starved of processor."
    if "promoted" in event.why:
        return f"Another machine had been promoted while {event.machine} was not heard."
    return f"{event.machine} was cut off: none of the others confirmed that they heard it."


def _of_certificate(machine: str, at: float, lines: Iterable[Line]) -> str:
    """What explains that others refused to talk to it, if it is so."""
    said = [line for line in lines if line.machine == machine and line.what == ENDED and line.at <= at + AFTER_SECONDS]
    return f" The others may have refused it: {said[-1].why}." if said else ""


def _what_became_of(primary: str, at: float, own: Sequence[Line]) -> str:
    """From the history of the machine that was missed."""
    close = [line for line in own if abs(line.at - at) <= CLOSE_SECONDS]
    after = [line for line in own if line.at > at - CLOSE_SECONDS]
    if any(line.what == "agent stopped" for line in close):
        return f"The agent on {primary} was stopped in order, by a person or a shutdown."
    if any(_stood_still_at(line, at) for line in after):
        return f"{primary} was frozen, suspended or starved: it did not run, and went on later."
    # One that began before it was missed was heard after that: its beginning tells nothing of its end.
    started = next((line for line in after if line.what == "agent started" and line.at > at - MISSING_SECONDS), None)
    stopped = next((line for line in after if line.what == "stops serving"), None)
    # A stop before the takeover was the agent's own deed: it was alive then, whatever had ended and begun before.
    if stopped is not None and (started is None or stopped.at < started.at or started.at < stopped.at <= at):
        return f"{primary} was cut off from the others, and stopped serving by itself."
    if started is None:
        return f"{primary} has not said anything since: its machine, its agent or its network is gone."
    up = started.details.get("machine_up_seconds")
    if up is not None and started.at - up > at - CLOSE_SECONDS:
        return f"The machine {primary} died (power, crash or reset); it was started again later."
    return f"The agent on {primary} died alone, and was started again."


def _stood_still_at(line: Line, at: float) -> bool:
    """Whether the machine stood still when it was missed. That it does so at another time, as a busy machine does while
    it starts or rejoins, says nothing of the takeover.
    """
    if line.what != STOOD_STILL:
        return False
    began = line.at - line.details.get("seconds", line.at)
    return began <= at and line.at >= at - MISSING_SECONDS
