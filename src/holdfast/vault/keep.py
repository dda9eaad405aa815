"""Which snapshots to keep: rules, applied to times. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, tzinfo
from typing import Final

from msgspec import Struct

from holdfast.vault.repository import SnapshotName


class KeepRules(Struct, frozen=True, forbid_unknown_fields=True):
    """The newest of each hour, day, ... that has a snapshot is kept, for so many of them; a rule of 0 keeps none."""

    within_seconds: float = 0.0
    """All younger than this, counted from the newest snapshot: a stopped backup must not make them expire."""
    last: int = 0
    hourly: int = 0
    daily: int = 0
    weekly: int = 0
    monthly: int = 0
    yearly: int = 0


_PERIODS: Final = (
    ("hourly", "%Y-%m-%d %H %z"),
    ("daily", "%Y-%m-%d"),
    ("weekly", "%G-%V"),
    ("monthly", "%Y-%m"),
    ("yearly", "%Y"),
)
"""Weeks: ISO 8601. With the offset, the hour that comes twice in autumn counts as two."""


def kept_snapshots(
    names: Sequence[SnapshotName], rules: KeepRules, zone: tzinfo = UTC
) -> dict[SnapshotName, tuple[str, ...]]:
    """What *rules* keep of *names* (oldest first), with the rules that keep it. *zone*: whose days and weeks."""
    reasons: dict[SnapshotName, list[str]] = {}
    newest_first = list(reversed(names))
    for number, name in enumerate(newest_first):
        if number < rules.last:
            reasons.setdefault(name, []).append("last")
        if (newest_first[0].taken_at_ns - name.taken_at_ns) / 1e9 < rules.within_seconds:
            reasons.setdefault(name, []).append("within")
    for rule, period in _PERIODS:
        seen: set[str] = set()
        for name in newest_first:
            label = datetime.fromtimestamp(name.taken_at_ns / 1e9, zone).strftime(period)
            if label not in seen and len(seen) < getattr(rules, rule):
                seen.add(label)
                reasons.setdefault(name, []).append(rule)
    return {name: tuple(reasons[name]) for name in names if name in reasons}
