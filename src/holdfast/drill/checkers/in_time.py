"""Promise 5: service is back within the promised seconds, counted from the failure to a client's first success."""

from __future__ import annotations

import math
from collections.abc import Iterable

from msgspec import Struct

from holdfast.drill.checkers.facts import Probe, Protocol
from holdfast.drill.checkers.findings import Difference, What


class Outage(Struct, frozen=True):
    """One protocol's outage as clients met it.

    *seconds* runs from *from_mono_ns* (the failure when it is known, else the last success) to the end of the first
    success that was begun after it; infinite when there was none. *failures* counts tries that failed meanwhile,
    *first_failure_seconds* is when the first of them was begun, counted from the same moment (-1: none failed).
    """

    protocol: Protocol
    from_mono_ns: int
    until_mono_ns: int
    seconds: float
    failures: int
    first_failure_seconds: float


def outage_since(probes: Iterable[Probe], protocol: Protocol, failure_mono_ns: int) -> Outage:
    """The outage that began with the failure at *failure_mono_ns*."""
    mine = [probe for probe in probes if probe.protocol is protocol]
    after = [probe for probe in mine if probe.good and probe.mono_ns >= failure_mono_ns]
    until = min((probe.end_mono_ns for probe in after), default=0)
    failed = [
        probe
        for probe in mine
        if not probe.good and probe.end_mono_ns >= failure_mono_ns and (not until or probe.mono_ns < until)
    ]
    first = min((probe.mono_ns for probe in failed), default=None)
    return Outage(
        protocol,
        failure_mono_ns,
        until,
        (until - failure_mono_ns) / 1e9 if until else math.inf,
        len(failed),
        max(0.0, (first - failure_mono_ns) / 1e9) if first is not None else -1.0,
    )


def longest_outage(probes: Iterable[Probe], protocol: Protocol) -> Outage | None:
    """The longest time between two successes with a failure in between; None when nothing failed."""
    mine = sorted((probe for probe in probes if probe.protocol is protocol), key=lambda probe: probe.end_mono_ns)
    longest: Outage | None = None
    last_good_ns = 0
    failed: list[Probe] = []
    for probe in mine:
        if not probe.good:
            failed.append(probe)
            continue
        if failed:
            begin_ns = last_good_ns or failed[0].mono_ns
            seconds = (probe.end_mono_ns - begin_ns) / 1e9
            first_seconds = max(0.0, (failed[0].mono_ns - begin_ns) / 1e9)
            outage = Outage(protocol, begin_ns, probe.end_mono_ns, seconds, len(failed), first_seconds)
            if longest is None or outage.seconds > longest.seconds:
                longest = outage
        failed, last_good_ns = [], probe.end_mono_ns
    if failed:
        begin_ns = last_good_ns or failed[0].mono_ns
        first_seconds = max(0.0, (failed[0].mono_ns - begin_ns) / 1e9)
        return Outage(protocol, begin_ns, 0, math.inf, len(failed), first_seconds)
    return longest


def in_time(outages: Iterable[Outage], seconds_max: float) -> list[Difference]:
    """The outages that lasted longer than promised."""
    return [
        Difference(
            "",
            outage.protocol.value,
            0,
            What.LATE,
            f"within {seconds_max:g} s",
            "never" if math.isinf(outage.seconds) else f"{outage.seconds:.3f} s",
            f"{outage.failures} failed tries",
        )
        for outage in outages
        if outage.seconds > seconds_max
    ]
