"""One backup: scan, flush, snapshot, in the order the format page asks for."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from holdfast.errors import ExitStatus, Refused
from holdfast.trees.spec import Tree
from holdfast.vault.faults import ClockWrong
from holdfast.vault.known import Known
from holdfast.vault.record import Gap, Snapshot
from holdfast.vault.repository import SnapshotName, Vault
from holdfast.vault.scan import Counts, Scanner, scan_trees
from holdfast.vault.writer import Writer

GRACE_SECONDS: Final = 48 * 3600.0
"""Between marking packs and deleting them; a backup may take half of it. Two nights: a missed night costs nothing."""
CLOCK_BEHIND_NS_MAX: Final = 24 * 3600 * 10**9
"""A snapshot dated before one that exists would be dropped and found in the wrong order: more than a day is refused."""


class Clocks(NamedTuple):
    """*wall_ns*: since 1970, for names; *monotonic_seconds*: for durations."""

    wall_ns: Callable[[], int] = time.time_ns
    monotonic_seconds: Callable[[], float] = time.monotonic


class BackupResult(NamedTuple):
    name: SnapshotName
    snapshot: Snapshot
    files_read: int
    added_bytes: int
    """Plain bytes the vault did not have."""
    written_bytes: int
    """What the store got."""

    @property
    def exit_status(self) -> ExitStatus:
        return ExitStatus.DIFFERENCES if self.snapshot.gaps_total else ExitStatus.DONE


def backup_trees(
    vault: Vault,
    trees: Sequence[Tree],
    machine: str,
    *,
    clocks: Clocks | None = None,
    grace_seconds: float = GRACE_SECONDS,
    progress: Callable[[Counts], None] | None = None,
    known_gaps: Sequence[Gap] = (),
) -> BackupResult:
    """Add a snapshot of *trees* as they stand. What could not be read is named in its gaps; the exit status says so.

    *known_gaps*: what is known to be missing without looking (keys that no tree holds).

    Interrupted at any point it leaves the vault as it was, and what it stored is found by the next one. Raises
    WrongKey (open for reading only), ClockWrong, Refused (no tree at all could be read; it took too long beside a
    prune; the cache is in use), and what the backend raises.
    """
    clocks = clocks or Clocks()
    began_seconds = clocks.monotonic_seconds()
    vault.sync()
    check_clock(vault, clocks.wall_ns())
    taken_at_ns = clocks.wall_ns()
    with vault.catalog.transaction(), Writer(vault) as writer:
        known = Known(vault.catalog)
        scanner = Scanner(writer, known, clocks.wall_ns, progress)
        roots = scan_trees(scanner, trees)
        if not roots:
            reason = scanner.counts.gaps[0].reason if scanner.counts.gaps else "none was given"
            raise Refused(f"no tree could be read: {reason}", hint="Look at the configured roots.")
        counts = scanner.counts
        snapshot = Snapshot(
            taken_at_ns=taken_at_ns,
            machine=machine,
            trees=roots,
            files=counts.files,
            bytes=counts.bytes,
            gaps=(*known_gaps, *counts.gaps),
            gaps_total=len(known_gaps) + counts.gaps_total,
            skipped_total=counts.skipped,
        )
        writer.flush()
        check_duration(clocks.monotonic_seconds() - began_seconds, grace_seconds)
        name = put_snapshot(vault, snapshot)
        known.stands_at(None)
        vault.catalog.set_number("known_losses", vault.catalog.losses)
    return BackupResult(name, snapshot, counts.files_read, writer.added_bytes, writer.written_bytes)


def put_snapshot(vault: Vault, snapshot: Snapshot) -> SnapshotName:
    """The last write of a backup: everything *snapshot* refers to must be durable."""
    assert vault.wrapper is not None
    place = f"{snapshot.incarnation}.{snapshot.sequence}" if snapshot.incarnation else ""
    made = vault.codec.snapshot(vault.wrapper, snapshot.taken_at_ns, snapshot, place)
    vault.backend.put(made.name, made.data)
    return SnapshotName(made.name)


def check_duration(took_seconds: float, grace_seconds: float) -> None:
    """Before the snapshot is written: Refused when what it counts on may have been deleted meanwhile."""
    if grace_seconds and took_seconds > grace_seconds / 2:
        hint = "Repeat it: what it stored is there, and the next one is quick."
        raise Refused(f"the backup took {took_seconds / 3600:.0f} hours; a prune may be in its way", hint=hint)


def check_clock(vault: Vault, now_ns: int) -> None:
    """Raises ClockWrong."""
    names = vault.snapshots()
    if names and names[-1].taken_at_ns - now_ns > CLOCK_BEHIND_NS_MAX:
        days = (names[-1].taken_at_ns - now_ns) / 86_400e9
        hint = "Set this machine's clock. If that snapshot's date is the wrong one, drop it first."
        raise ClockWrong(f"the newest snapshot ({names[-1].short}) is {days:.1f} days ahead of this clock", hint=hint)
