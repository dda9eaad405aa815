"""Verify by turns: everything is read once in so many days, however often a verify runs and whatever it missed.

When each pack and each object of frames was last found sound is kept beside the catalog, on the machine that verifies.
A turn reads those that wait longest: as much as is due since the last turn. With the cache lost it begins anew.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from holdfast.vault.archive import FRAMES_PREFIX
from holdfast.vault.catalog import PackState
from holdfast.vault.repository import Vault
from holdfast.vault.verify import Verified

DAY_SECONDS: Final = 86_400.0
LAST_TURN: Final = "last_turn_seconds"
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS sound (name TEXT PRIMARY KEY, at_seconds REAL NOT NULL) WITHOUT ROWID;
"""


class Turn(NamedTuple):
    """What a verify reads this time (a ``verify.Depth``)."""

    names: frozenset[str]
    bytes: int

    def reads(self, name: str) -> bool:
        return name in self.names


class Turning(NamedTuple):
    """Where the rotation stands. *unread_bytes*: never found sound on this machine. *oldest_seconds*: when what waits
    longest was found sound; None while something never was."""

    bytes: int
    unread_bytes: int
    oldest_seconds: float | None


def next_turn(vault: Vault, days: float, now_seconds: float) -> Turn:
    """What is due, so that everything is read within *days*. *now_seconds*: since 1970.

    Due is the share of the time since the last turn (a day, at the first), and what is older than *days* already, up
    to as much again: after a pause it catches up within a few turns, not in one.
    """
    waiting = _waiting(vault)
    total = sum(size for _, size, _ in waiting)
    last = float(vault.catalog.text(LAST_TURN) or 0)
    passed = now_seconds - last if 0 < last <= now_seconds else DAY_SECONDS
    due = total * min(passed / (days * DAY_SECONDS), 1.0)
    overdue = sum(size for _, size, at in waiting if now_seconds - at >= days * DAY_SECONDS)
    most = min(max(due, min(overdue, 2 * due)), total)
    names: list[str] = []
    taken = 0
    for name, size, _ in waiting:
        if taken >= most:
            break
        names.append(name)
        taken += size
    return Turn(frozenset(names), taken)


def took_turn(vault: Vault, result: Verified, now_seconds: float) -> None:
    """Remember what *result* found sound, whatever chose it; what was damaged stays first in the line."""
    with vault.catalog.transaction():
        vault.catalog.db.execute(_SCHEMA)
        rows = [(name, now_seconds) for name in result.sound]
        vault.catalog.db.executemany("INSERT OR REPLACE INTO sound VALUES (?, ?)", rows)
        there = {name for name, _, _ in _waiting(vault)}
        known = [name for (name,) in vault.catalog.db.execute("SELECT name FROM sound")]
        gone = [(name,) for name in known if name not in there]
        vault.catalog.db.executemany("DELETE FROM sound WHERE name = ?", gone)
        vault.catalog.set_text(LAST_TURN, repr(now_seconds))


def turning(vault: Vault) -> Turning:
    """For people: how far the rotation is."""
    waiting = _waiting(vault)
    unread = sum(size for _, size, at in waiting if not at)
    oldest = None if unread or not waiting else waiting[0][2]
    return Turning(sum(size for _, size, _ in waiting), unread, oldest)


def _waiting(vault: Vault) -> list[tuple[str, int, float]]:
    """Name, size and when it was last found sound (0: never) of all there is, the longest wait first."""
    vault.catalog.db.execute(_SCHEMA)
    sound: dict[str, float] = dict(vault.catalog.db.execute("SELECT name, at_seconds FROM sound"))  # type: ignore[arg-type, unused-ignore]
    there = [(pack.name, pack.size) for pack in vault.catalog.packs() if pack.state is not PackState.GONE]
    there += [(found.name, found.size) for found in vault.backend.list(FRAMES_PREFIX)]
    return sorted(((name, size, sound.get(name, 0.0)) for name, size in there), key=lambda row: (row[2], row[0]))
