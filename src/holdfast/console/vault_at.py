"""Which instant is meant: ``--at`` as a snapshot's name, a position of the log, or a time."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Final

from holdfast.changes.names import Incarnation, Position, Sequence
from holdfast.console.times import HINT, looks_like_time, parse_time
from holdfast.console.vault_choice import cache_folder
from holdfast.console.words import ago_text, time_text
from holdfast.vault.faults import SnapshotUnknown
from holdfast.vault.instant import Archive, Instant, InstantUnknown, Target, open_instant
from holdfast.vault.repository import SnapshotName, Vault

_POSITION: Final = re.compile(r"([0-9a-f]{8,32}):(\d{1,18})")
NAME_DIGITS_MIN: Final = 4


@contextmanager
def instant_at(vault: Vault, text: str, now_ns: int | None = None) -> Iterator[Instant]:
    """The trees as *text* says, to be used inside ``with``. Raises as :func:`target_at` and open_instant."""
    with open_instant(vault, target_at(vault, text, now_ns), folder=cache_folder()) as instant:
        yield instant


def target_at(vault: Vault, text: str, now_ns: int | None = None) -> Target:
    """What *text* means. Where the log feeds the vault a time is exact, or refused; without, it means the newest
    snapshot that is not younger.

    Raises SnapshotUnknown and InstantUnknown (the nearest are named), TimeUnclear.
    """
    archive = Archive(vault)
    if not archive.snapshots:
        raise SnapshotUnknown("the vault has no snapshot yet", hint="Make one: `holdfast vault backup`.")
    if text == "latest":
        return archive.latest()
    names = archive.snapshots
    if [
        n
        for n in (*names, *vault.held())
        if n.name == text or (len(text) >= NAME_DIGITS_MIN and n.short.startswith(text))
    ]:
        return _plain(vault.find_snapshot(text))
    try:
        if match := _POSITION.fullmatch(text):
            return archive.at_position(Position(Incarnation(match[1]), Sequence(int(match[2]))))
        if not looks_like_time(text):
            hint = f"`holdfast vault list` shows them. A time? {HINT}"
            raise SnapshotUnknown(f"no snapshot begins with {text!r}", hint=hint)
        wanted_ns = parse_time(text, now_ns if now_ns is not None else time.time_ns())
        if not archive.frames:
            return _newest_before(names, wanted_ns)
        return archive.at_time(wanted_ns)
    except InstantUnknown as error:
        raise _in_local_words(error) from None


def _plain(name: SnapshotName) -> Target:
    return Target(name, (), Sequence(name.position.sequence if name.position else 0), name.taken_at_ns)


def _newest_before(names: list[SnapshotName], wanted_ns: int) -> Target:
    before = [name for name in names if name.taken_at_ns <= wanted_ns]
    if before:
        return _plain(before[-1])
    first = names[0]
    raise SnapshotUnknown(
        f"the vault holds nothing as old as {time_text(wanted_ns)}",
        hint=f"The first snapshot is {first.short[:8]}, of {time_text(first.taken_at_ns)}: --at {first.short[:8]}",
    )


def _in_local_words(error: InstantUnknown) -> InstantUnknown:
    """The same error, its hint as what can be typed."""
    made = InstantUnknown(error.message, before=error.before, after=error.after)
    nearest = [
        f"--at {exact_text(at)} ({side})" for at, side in ((error.before, "before"), (error.after, "after")) if at
    ]
    if nearest:
        made.hint = "The nearest there are: " + " or ".join(nearest)
    return made


def exact_text(at_ns: int) -> str:
    """A moment as ``--at`` takes it back, to the nanosecond, in this machine's zone."""
    local = datetime.fromtimestamp(at_ns // 10**9, UTC).astimezone()
    part = f"{at_ns % 10**9:09}".rstrip("0")
    offset = local.strftime("%z")
    return f"{local:%Y-%m-%dT%H:%M:%S}{'.' + part if part else ''}{offset[:3]}:{offset[3:]}"


def instant_words(instant: Instant) -> str:
    """For people: what was opened."""
    target, snapshot = instant.target, instant.snapshot
    when = f"{time_text(snapshot.taken_at_ns)} ({ago_text(time.time() - snapshot.taken_at_ns / 1e9)})"
    if target.frames:
        return f"{snapshot.machine}, {when}: snapshot {target.base.short[:8]} and the log to {instant.position}"
    return f"{snapshot.machine}, {when}: snapshot {target.base.short[:8]}"
