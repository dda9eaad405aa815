"""Promise 2: at most one machine appends per epoch, an older epoch can do nothing; and one machine answers clients."""

from __future__ import annotations

from collections.abc import Iterable

from holdfast.drill.checkers.facts import Appended, Probe
from holdfast.drill.checkers.findings import Difference, What


def one_writer(appends: Iterable[Appended]) -> list[Difference]:
    """Records that broke the rule, in log order: epochs never go back, and each has its promotion's writer.

    A promotion opens the next epoch, for its own machine. Records before the first promotion belong to epoch 0. Of a
    log seen from the middle only, the first record says who writes.
    """
    found: list[Difference] = []
    epoch = 0
    writer = ""
    records = sorted(appends, key=lambda record: record.sequence)
    if records and records[0].sequence > 1:
        epoch = records[0].epoch - records[0].promotion
    for record in records:
        if record.promotion and record.epoch == epoch + 1:
            epoch, writer = record.epoch, record.machine
            continue
        if record.epoch != epoch or (writer and record.machine != writer):
            found.append(
                Difference(
                    record.machine,
                    "log",
                    record.sequence,
                    What.WRITER,
                    f"epoch {epoch} by {writer or 'anyone'}",
                    f"epoch {record.epoch} by {record.machine}",
                )
            )
        elif not writer:
            writer = record.machine
    return found


def one_answers(probes: Iterable[Probe], *, overlap_seconds_max: float) -> list[Difference]:
    """Machines that answered clients at one address by turns.

    After another machine has answered, the one before may answer for *overlap_seconds_max* at most (0: not at all).
    """
    found: list[Difference] = []
    took_over_ns: dict[str, int] = {}
    current = ""
    for probe in sorted((one for one in probes if one.good and one.answered_by), key=lambda one: one.end_mono_ns):
        machine = probe.answered_by
        if machine == current:
            continue
        if machine not in took_over_ns:
            took_over_ns[machine], current = probe.end_mono_ns, machine
            continue
        late_seconds = (probe.mono_ns - took_over_ns[current]) / 1e9
        if late_seconds > overlap_seconds_max:
            note = f"{late_seconds:.3f} s after {current} had begun to answer"
            found.append(Difference(machine, probe.protocol.value, 0, What.WRITER, current, machine, note))
    return found
