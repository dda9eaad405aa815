"""Which frames a prune lets go: no instant of the window that could be restored before cannot be after."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.changes.names import Incarnation, Sequence
from holdfast.vault.archive import FramesName, covering
from holdfast.vault.keep import KeepRules, kept_snapshots
from holdfast.vault.repository import SnapshotName
from holdfast.vault.window import archive_window

SECOND = 10**9
LOGS = (Incarnation("a" * 32), Incarnation("b" * 32))
LOG_RECORDS = 40
"""Record n of the second log was captured 40 seconds after record n of the first."""


def time_ns(log: int, sequence: int) -> int:
    return (1000 + log * LOG_RECORDS + sequence) * SECOND


def snapshot(log: int, sequence: int) -> SnapshotName:
    return SnapshotName(f"snapshots/{time_ns(log, sequence):020d}-{LOGS[log]}.{sequence}-{sequence:016x}")


def frames(log: int, first: int, last: int) -> FramesName:
    name = f"frames/{log}-{first}-{last}"
    return FramesName(name, LOGS[log], Sequence(first), Sequence(last), time_ns(log, first), time_ns(log, last))


PLACES = st.tuples(st.integers(0, 1), st.integers(0, LOG_RECORDS - 1))
SPANS = st.tuples(st.integers(0, 1), st.integers(1, LOG_RECORDS - 1), st.integers(0, 12)).map(
    lambda span: frames(span[0], span[1], min(span[1] + span[2], LOG_RECORDS - 1))
)


def reachable(snapshots: list[SnapshotName], archived: list[FramesName]) -> set[tuple[int, int]]:
    """Instants that can be restored: (log, record)."""
    found = set()
    for name in snapshots:
        assert name.position is not None
        log, begin = LOGS.index(name.position.incarnation), name.position.sequence
        these = [each for each in archived if each.incarnation == LOGS[log]]
        end = covering(these, begin, LOG_RECORDS)[1]
        found |= {(log, sequence) for sequence in range(begin, end + 1)}
    return found


@settings(max_examples=400, deadline=None)
@given(
    st.sets(PLACES, min_size=1, max_size=8),
    st.lists(SPANS, max_size=10),
    st.integers(0, 90),
    st.integers(0, 3),
)
def test_every_instant_of_the_window_survives(
    places: set[tuple[int, int]], archived: list[FramesName], within: int, last: int
) -> None:
    snapshots = sorted((snapshot(*place) for place in places), key=lambda name: name.taken_at_ns)
    rules = KeepRules(within_seconds=within, last=last)
    kept = {**kept_snapshots(snapshots, rules), snapshots[-1]: ("newest",)}
    window = archive_window(archived, snapshots, kept, rules.within_seconds)
    staying = [name for name in snapshots if name in kept or name in window.bases]
    left = [name for name in archived if name not in window.outdated]
    begin_ns = snapshots[-1].taken_at_ns - within * SECOND
    before = {place for place in reachable(snapshots, archived) if time_ns(*place) > begin_ns}
    assert before <= reachable(staying, left)
    if within:
        ended = [log for log in LOGS if all(f.to_ns <= begin_ns for f in archived if f.incarnation == log)]
        assert not [name for name in left if name.incarnation in ended], "older than the window, all of it"
