"""A backup MX takes mail only while the primary is down by more than its own ears."""

from __future__ import annotations

import pytest

from holdfast.gate.agent import Heard, HeardMachine
from holdfast.gate.observers import primary_down

GONE = 60.0
MAIN_SERVES = HeardMachine(0.1, role="primary", serving=True)
MAIN_GONE = HeardMachine(GONE, role="primary", serving=True)
BACKUP_HEARS = HeardMachine(0.1, role="standby", misses={"main": 0.1})
BACKUP_MISSES = HeardMachine(0.1, role="standby", misses={"main": GONE})
UNKNOWN = HeardMachine(0.1, known=False)
BACKUP_GONE = HeardMachine(GONE, role="standby", misses={"main": GONE})


@pytest.mark.parametrize(
    ("heard", "down", "reason"),
    [
        (Heard("main", {"main": MAIN_SERVES, "backup": BACKUP_HEARS}), False, "is up"),
        (Heard("main", {"main": MAIN_GONE, "backup": BACKUP_HEARS}), False, "do not agree"),
        (Heard("main", {"main": MAIN_GONE, "backup": BACKUP_MISSES}), True, "say so, too"),
        (Heard("main", {"main": MAIN_GONE, "backup": BACKUP_GONE}), False, "cut off"),
        (Heard("main", {"main": HeardMachine(0.1, role="primary"), "backup": BACKUP_HEARS}), True, "say so, too"),
        # backup has taken over and serves; this relay has not read of it yet
        (
            Heard("main", {"main": MAIN_GONE, "backup": HeardMachine(0.1, role="primary", serving=True)}),
            False,
            "is up",
        ),
        # this relay has just started, and has heard nobody yet
        (
            Heard("main", {"main": HeardMachine(0.1, known=False), "backup": HeardMachine(0.1, known=False)}),
            False,
            "cut",
        ),
        (Heard("main", {"main": UNKNOWN, "backup": BACKUP_HEARS}), False, "do not agree"),
        (Heard("", {"main": MAIN_GONE, "backup": BACKUP_MISSES}), False, "promoted"),
        (Heard(), False, "promoted"),
    ],
)
def test_the_primary_is_down_when_the_others_say_so(heard: Heard, down: bool, reason: str) -> None:
    row = primary_down(heard)
    assert row.down is down
    assert reason in row.reason
