"""Which archived frames a prune lets go: those no instant within the keep rules' window needs. Pure.

See docs/formats/vault.md, "Order of writes", Prune.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import NamedTuple

from holdfast.changes.names import Incarnation
from holdfast.vault.archive import FramesName
from holdfast.vault.repository import SnapshotName


class Window(NamedTuple):
    """*bases*: snapshots that must stay, because the window's first instants begin from them. *outdated*: frames to
    delete, in the order of the log."""

    bases: tuple[SnapshotName, ...]
    outdated: tuple[FramesName, ...]


def archive_window(
    frames: Sequence[FramesName],
    snapshots: Sequence[SnapshotName],
    kept: Container[SnapshotName],
    within_seconds: float,
) -> Window:
    """*snapshots*: all that may stay, oldest first; *kept*: those other rules keep. The window is counted from the
    newest snapshot; 0: frames go only when no kept snapshot stands before them."""
    bases: list[SnapshotName] = []
    outdated: list[FramesName] = []
    for incarnation in sorted({name.incarnation for name in frames}):
        these = sorted((name for name in frames if name.incarnation == incarnation), key=lambda name: name.first)
        begins = _begin(these, _of(snapshots, incarnation), snapshots, kept, within_seconds)
        if begins is None:
            outdated += these
            continue
        name, sequence = begins
        bases.append(name)
        outdated += [frames for frames in these if frames.last <= sequence]
    return Window(tuple(bases), tuple(outdated))


def _of(snapshots: Sequence[SnapshotName], incarnation: Incarnation) -> list[tuple[SnapshotName, int]]:
    """Those of one log with their sequences, in its order."""
    placed = [(name, name.position) for name in snapshots]
    here = [(name, at.sequence) for name, at in placed if at is not None and at.incarnation == incarnation]
    return sorted(here, key=lambda pair: pair[1])


def _begin(
    frames: Sequence[FramesName],
    here: list[tuple[SnapshotName, int]],
    snapshots: Sequence[SnapshotName],
    kept: Container[SnapshotName],
    within_seconds: float,
) -> tuple[SnapshotName, int] | None:
    """The snapshot from which the oldest instant to be kept begins; None: no frames are needed."""
    if within_seconds and snapshots:
        before_ns = snapshots[-1].taken_at_ns - int(within_seconds * 1e9)
        if max(frame.to_ns for frame in frames) <= before_ns:
            return None
        older = [pair for pair in here if pair[0].taken_at_ns <= before_ns]
        if older:
            return older[-1]
    return next((pair for pair in here if pair[0] in kept), None)
