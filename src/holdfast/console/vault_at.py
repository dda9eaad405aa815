"""Which snapshot is meant: ``--at`` as a snapshot's name, or as a time."""

from __future__ import annotations

import time
from typing import Final

import click

from holdfast.console.times import HINT, looks_like_time, parse_time
from holdfast.console.words import time_text
from holdfast.vault.faults import SnapshotUnknown
from holdfast.vault.repository import SnapshotName, Vault

AT_HELP: Final = (
    "latest, a snapshot's name, or a time: '2026-11-21 14:00', 'yesterday 14:00', '2 hours ago'. "
    "A time means what was kept last before it."
)
at_option = click.option("--at", "at", default="latest", show_default=True, metavar="WHEN", help=AT_HELP)


def snapshot_at(vault: Vault, text: str, now_ns: int | None = None) -> SnapshotName:
    """The snapshot *text* names, or the newest that is not younger than the time it gives.

    Raises SnapshotUnknown (none is; the nearest are named), TimeUnclear.
    """
    names = vault.snapshots()
    if not names:
        raise SnapshotUnknown("the vault has no snapshot yet", hint="Make one: `holdfast vault backup`.")
    if text == "latest":
        return names[-1]
    if [name for name in names if name.name == text or (len(text) >= 4 and name.short.startswith(text))]:
        return vault.find_snapshot(text)
    if not looks_like_time(text):
        hint = f"`holdfast vault list` shows them. A time? {HINT}"
        raise SnapshotUnknown(f"no snapshot begins with {text!r}", hint=hint)
    wanted_ns = parse_time(text, now_ns if now_ns is not None else time.time_ns())
    before = [name for name in names if name.taken_at_ns <= wanted_ns]
    if not before:
        first = names[0]
        raise SnapshotUnknown(
            f"the vault holds nothing as old as {time_text(wanted_ns)}",
            hint=f"The first snapshot is {first.short}, of {time_text(first.taken_at_ns)}: --at {first.short}",
        )
    return before[-1]
