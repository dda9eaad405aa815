"""A drill's timeline: when what was accepted, how far the copy lagged, how long nobody answered."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from msgspec import Struct, field

from holdfast.drill.checkers.facts import Attempt, Deliver, Outcome, Probe, Protocol, Record, Result
from holdfast.drill.checkers.in_time import Outage

BIN_SECONDS: Final = 0.1
"""Deliveries are counted in tenths of a second: finer than the outage promised, coarser than one fsync."""


class Span(Struct, frozen=True):
    """Something that lasted, in seconds from the begin of the timeline. *kind*: ``phase`` or ``outage``."""

    name: str
    begin_seconds: float
    end_seconds: float
    kind: str = "phase"


class Event(Struct, frozen=True):
    """A moment worth a line; *strong* ones are drawn across the whole picture (the kill)."""

    name: str
    at_seconds: float
    detail: str = ""
    strong: bool = False


class Timeline(Struct):
    """What happened when. Times are seconds from the first record of the journal.

    *accepted_per_bin*: messages acknowledged by SMTP in each `BIN_SECONDS`; *delivered_per_bin* none or the same for
    messages that reached a mailbox. *lag_ms*: (time, lag) samples. *outages*: spans by protocol.
    """

    seconds: float = 0.0
    accepted_per_bin: list[int] = field(default_factory=list)
    operations_per_bin: list[int] = field(default_factory=list)
    lag_ms: list[tuple[float, float]] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    focus: tuple[float, float] | None = None
    """The window worth a picture of its own: around the failure."""


def zero_ns(records: Iterable[Record]) -> int:
    """CLOCK_MONOTONIC of a journal's begin: second 0 of its timeline."""
    return next(record.mono_ns for record in records)


def timeline(
    records: Iterable[Record],
    *,
    lag_ms: Iterable[tuple[int, float]] = (),
    spans: Mapping[str, tuple[int, int]] | None = None,
    events: Iterable[tuple[int, str, str, bool]] = (),
    outages: Iterable[Outage] = (),
) -> Timeline:
    """A journal's timeline, with what else was measured; all times given are CLOCK_MONOTONIC ns.

    *lag_ms*: (time, milliseconds); *spans*: phases by name; *events*: (time, name, detail, strong).
    """
    known = list(records)
    zero = zero_ns(known)
    made = Timeline()
    deliveries: set[int] = set()
    accepted: list[float] = []
    operations: list[float] = []
    for record in known:
        if isinstance(record, Attempt):
            if isinstance(record.doing, Deliver):
                deliveries.add(record.op)
        elif isinstance(record, Outcome) and record.result is Result.ACKNOWLEDGED:
            (accepted if record.op in deliveries else operations).append((record.mono_ns - zero) / 1e9)
        made.seconds = max(made.seconds, (record.mono_ns - zero) / 1e9)
    made.lag_ms = [((at - zero) / 1e9, lag) for at, lag in lag_ms]
    made.events = [Event(name, (at - zero) / 1e9, detail, strong) for at, name, detail, strong in events]
    made.spans = [Span(name, (begin - zero) / 1e9, (end - zero) / 1e9) for name, (begin, end) in (spans or {}).items()]
    made.seconds = max([made.seconds, *(span.end_seconds for span in made.spans)])
    for outage in outages:
        end = (outage.until_mono_ns - zero) / 1e9 if outage.until_mono_ns else made.seconds
        made.spans.append(Span(outage.protocol.value, (outage.from_mono_ns - zero) / 1e9, end, "outage"))
    made.accepted_per_bin = _binned(accepted, made.seconds)
    made.operations_per_bin = _binned(operations, made.seconds)
    made.focus = _focus(made)
    return made


def probe_summary(records: Iterable[Record]) -> dict[str, int]:
    """Tries and failures of the outage meter by protocol: ``imap``, ``imap failed``."""
    counted: dict[str, int] = {protocol.value: 0 for protocol in Protocol}
    for record in records:
        if isinstance(record, Probe):
            name = record.protocol.value if record.good else f"{record.protocol.value} failed"
            counted[name] = counted.get(name, 0) + 1
    return counted


def _focus(made: Timeline) -> tuple[float, float] | None:
    strong = [event.at_seconds for event in made.events if event.strong]
    ends = [span.end_seconds for span in made.spans if span.kind == "outage"]
    if not strong and not ends:
        return None
    first = min([*strong, *(span.begin_seconds for span in made.spans if span.kind == "outage")])
    last = max([*strong, *ends])
    margin = max(1.0, (last - first) * 0.75)
    return max(0.0, first - margin), min(made.seconds, last + margin)


def _binned(times: list[float], seconds: float) -> list[int]:
    bins = [0] * (int(seconds / BIN_SECONDS) + 1)
    for at in times:
        if 0 <= at <= seconds:
            bins[int(at / BIN_SECONDS)] += 1
    return bins
