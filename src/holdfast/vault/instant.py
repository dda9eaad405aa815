"""Any archived instant, read like a snapshot: the nearest snapshot before it, and the log's records after that.

:func:`open_instant` makes the changes of those records on top of the snapshot (``overlay``) and keeps what is then
different as packs in a temporary folder, beside the vault's own. So an :class:`Instant` has a vault and a snapshot of
the usual kind: everything that works on a snapshot works on it, and sees all trees at the same instant.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
import pyrage

from holdfast.changes.names import Incarnation, Position, Sequence
from holdfast.errors import ExitStatus, HoldfastError, NoSpace
from holdfast.vault.archive import ArchivedFrame, ArchivedFrames, FramesName, covering, list_frames, read_frames, when
from holdfast.vault.faults import VaultDamaged
from holdfast.vault.keys import Readers, Wrapper
from holdfast.vault.overlay import Overlay
from holdfast.vault.port import Backend, BackendRefused, Found
from holdfast.vault.record import Snapshot
from holdfast.vault.repository import SnapshotName, Vault
from holdfast.vault.writer import Writer

CATALOG_NAME: Final = "catalog.sqlite"
AHEAD_OBJECTS: Final = 3
"""Each may be some 16 MB of records; from a far store each takes a round trip."""


class InstantUnknown(HoldfastError):
    """This instant cannot be restored; *before* and *after* are the nearest that can (nanoseconds since 1970)."""

    exit_status = ExitStatus.USAGE

    def __init__(self, message: str, *, before: int | None, after: int | None) -> None:
        options = [f"{words} {when(at)}" for words, at in (("before it:", before), ("after it:", after)) if at]
        hint = f"The nearest instants there are, {'; '.join(options)}." if options else "Nothing is archived yet."
        super().__init__(message, hint=hint)
        self.before = before
        self.after = after


class Target(NamedTuple):
    """What is to be opened: a snapshot, and the records after it up to *sequence* from *frames*. *time_ns*: when the
    last change of it was captured."""

    base: SnapshotName
    frames: tuple[FramesName, ...]
    sequence: Sequence
    time_ns: int


class Archive:
    """Snapshots and archived records as a listing shows them, and which instants they make possible."""

    def __init__(self, vault: Vault) -> None:
        self._vault = vault
        self.snapshots = vault.snapshots()
        self.frames: dict[Incarnation, list[FramesName]] = {}
        for name in list_frames(vault.backend):
            self.frames.setdefault(name.incarnation, []).append(name)

    def at_position(self, position: Position) -> Target:
        """The instant of *position*; its incarnation may be the first 8 digits. Raises InstantUnknown (also in the
        middle of a batch)."""
        incarnation = self._incarnation(position.incarnation)
        at = Position(incarnation, position.sequence)
        target = self._reach(at)
        if target is None:
            raise self._unknown_position(at)
        if target.frames:
            whole = [frame for frame in self._frames_to(target) if frame.sequence == at.sequence]
            if whole and whole[0].more:
                first = f"record {at.sequence} of log {incarnation[:8]} ends in the middle of a batch"
                raise InstantUnknown(first, before=whole[0].captured_at_ns, after=None)
            target = target._replace(time_ns=whole[0].captured_at_ns if whole else target.time_ns)
        return target

    def at_time(self, time_ns: int) -> Target:
        """The last instant captured at or before *time_ns*. Raises InstantUnknown: nothing that old is there, or
        nothing shows what had happened by then."""
        plain = max((name for name in self.snapshots if name.taken_at_ns <= time_ns), default=None, key=_taken)
        target = self._by_frames(time_ns)
        if target is not None and (plain is None or not _later(plain, target)):
            return target
        if plain is None:
            raise self._unknown_time(time_ns, "nothing that old is in the vault")
        if self._shown_until(plain) < time_ns:
            known = self._nearest(time_ns)[0] or plain.taken_at_ns
            raise self._unknown_time(time_ns, f"what happened after {when(known)} is not in the vault")
        position = plain.position
        return Target(plain, (), position.sequence if position else Sequence(0), plain.taken_at_ns)

    def latest(self) -> Target:
        """The newest instant. Raises InstantUnknown."""
        ends: list[Target] = []
        for name in self.snapshots[-1:]:
            position = name.position
            ends.append(Target(name, (), position.sequence if position else Sequence(0), name.taken_at_ns))
        for frames in self.frames.values():
            for listed in sorted(frames, key=lambda name: -name.last):
                if self._base(Position(listed.incarnation, listed.last)) is not None:
                    if (found := self._last_instant(listed, listed.to_ns)) is not None:
                        ends.append(found)
                    break
        if not ends:
            raise InstantUnknown("the vault holds no instant", before=None, after=None)
        return max(ends, key=lambda target: (target.time_ns, target.sequence))

    def spans(self) -> list[tuple[int, int]]:
        """Times between which any second can be restored, oldest first (nanoseconds since 1970): from a snapshot on,
        as far as records follow without a gap."""
        found: list[tuple[int, int]] = []
        for incarnation, frames in self.frames.items():
            for name in self.snapshots:
                position = name.position
                if position is None or position.incarnation != incarnation:
                    continue
                end = max(frame.last for frame in frames)
                chosen, reached = covering(frames, position.sequence, end)
                if reached > position.sequence:
                    found.append((name.taken_at_ns, max(frame.to_ns for frame in chosen)))
        merged: list[tuple[int, int]] = []
        for begin, end_ns in sorted(found):
            if merged and begin <= merged[-1][1]:
                merged[-1] = merged[-1][0], max(merged[-1][1], end_ns)
            else:
                merged.append((begin, end_ns))
        return merged

    # -- how ---------------------------------------------------------------------------------------------------------

    def _incarnation(self, wanted: str) -> Incarnation:
        known = {name.position.incarnation for name in self.snapshots if name.position} | set(self.frames)
        hits = [incarnation for incarnation in known if wanted and incarnation.startswith(wanted)]
        return hits[0] if len(hits) == 1 else Incarnation(wanted)

    def _base(self, position: Position) -> SnapshotName | None:
        """The nearest snapshot from which records reach *position*."""
        frames = self.frames.get(position.incarnation, [])
        for name in sorted(self.snapshots, key=_sequence, reverse=True):
            at = name.position
            if at is None or at.incarnation != position.incarnation or at.sequence > position.sequence:
                continue
            if covering(frames, at.sequence, position.sequence)[1] >= position.sequence:
                return name
            return None  # an older one would have to cross the same gap
        return None

    def _reach(self, position: Position) -> Target | None:
        base = self._base(position)
        if base is None or base.position is None:
            return None
        frames = self.frames.get(position.incarnation, [])
        chosen, _ = covering(frames, base.position.sequence, position.sequence)
        return Target(base, tuple(chosen), position.sequence, base.taken_at_ns)

    def _frames_to(self, target: Target) -> Iterator[ArchivedFrame]:
        """The frames of the last object of *target*."""
        yield from read_frames(self._vault, target.frames[-1]).frames

    def _by_frames(self, time_ns: int) -> Target | None:
        """The last instant of records captured at or before *time_ns*, when something shows that it is."""
        every = [name for frames in self.frames.values() for name in frames if name.from_ns <= time_ns]
        for name in sorted(every, key=lambda name: (name.from_ns, name.last), reverse=True):
            target = self._last_instant(name, time_ns)
            if target is None:
                continue  # its first batch ends later: look at the object before
            if time_ns > name.to_ns and not self._goes_on(name, time_ns):
                return None
            return target
        return None

    def _last_instant(self, name: FramesName, time_ns: int) -> Target | None:
        frames = read_frames(self._vault, name).frames
        whole = [frame for frame in frames if frame.captured_at_ns <= time_ns and not frame.more]
        if not whole:
            return None
        target = self._reach(Position(name.incarnation, Sequence(whole[-1].sequence)))
        return None if target is None else target._replace(time_ns=whole[-1].captured_at_ns)

    def _goes_on(self, name: FramesName, time_ns: int) -> bool:
        """Whether something later than *time_ns* shows that nothing came between *name* and then."""
        following = any(
            other.first <= name.last + 1 <= other.last and other.to_ns >= time_ns
            for other in self.frames[name.incarnation]
        )
        return following or any(
            snapshot.taken_at_ns >= time_ns and snapshot.position == Position(name.incarnation, name.last)
            for snapshot in self.snapshots
        )

    def _shown_until(self, snapshot: SnapshotName) -> int:
        """Until when it is known that *snapshot* is how things stood."""
        position = snapshot.position
        if position is None:
            return snapshot.taken_at_ns
        until = snapshot.taken_at_ns
        for name in self.frames.get(position.incarnation, []):
            if name.first <= position.sequence + 1 <= name.last:
                until = max(until, name.from_ns if name.first == position.sequence + 1 else name.to_ns)
        same = (other.taken_at_ns for other in self.snapshots if other.position == position)
        return max(until, *same)

    def _unknown_position(self, position: Position) -> InstantUnknown:
        frames = self.frames.get(position.incarnation, [])
        held = [name for name in frames if name.first <= position.sequence <= name.last]
        time_ns = held[0].from_ns if held else None
        before, after = self._nearest(time_ns) if time_ns is not None else (None, None)
        what = f"position {position} cannot be restored: not all records up to it are in the vault"
        return InstantUnknown(what, before=before, after=after)

    def _unknown_time(self, time_ns: int, why: str) -> InstantUnknown:
        before, after = self._nearest(time_ns)
        return InstantUnknown(f"{when(time_ns)} cannot be restored: {why}", before=before, after=after)

    def _nearest(self, time_ns: int) -> tuple[int | None, int | None]:
        ends = [at for span in self.spans() for at in span] + [name.taken_at_ns for name in self.snapshots]
        before = max((at for at in ends if at <= time_ns), default=None)
        return before, min((at for at in ends if at > time_ns), default=None)


def _taken(name: SnapshotName) -> int:
    return name.taken_at_ns


def _sequence(name: SnapshotName) -> int:
    return name.position.sequence if name.position else -1


def _later(snapshot: SnapshotName, target: Target) -> bool:
    """Whether *snapshot* shows more than *target*, which is later than its own base."""
    if snapshot.taken_at_ns < target.time_ns:
        return False
    position, base = snapshot.position, target.base.position
    if position is None or base is None or position.incarnation != base.incarnation:
        return True
    return position.sequence > target.sequence


class Instant:
    """The trees at one instant. ``vault`` and ``snapshot`` are used like any; they end with :meth:`close`."""

    def __init__(self, vault: Vault, snapshot: Snapshot, target: Target, folder: Path | None) -> None:
        self.vault = vault
        self.snapshot = snapshot
        self.target = target
        self._folder = folder

    @property
    def position(self) -> Position | None:
        """None: a snapshot made by a scan."""
        incarnation = self.snapshot.incarnation
        return Position(Incarnation(incarnation), Sequence(self.snapshot.sequence)) if incarnation else None

    def __enter__(self) -> Instant:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove what lies in the temporary folder. The vault it was opened from stays open."""
        if self._folder is not None:
            self.vault.close()
            shutil.rmtree(self._folder, ignore_errors=True)


def open_instant(vault: Vault, target: Target, *, folder: Path | None = None) -> Instant:
    """The trees at *target*. *folder*: where the temporary folder is made (default: ``tempfile``'s); it must hold what
    changed since the snapshot.

    Raises VaultDamaged (also ChangeMisfit: records do not fit the snapshot), WrongKey, SnapshotUnknown, and what the
    backend raises.
    """
    base = vault.snapshot(target.base)
    position = target.base.position
    if position is not None and (base.incarnation, base.sequence) != position:
        raise VaultDamaged(f"{target.base.name}: it is named for another position", name=target.base.name)
    if not target.frames:
        return Instant(vault, base, target, None)
    own = Path(tempfile.mkdtemp(prefix="holdfast-instant-", dir=folder))
    try:
        beside = _beside(vault, own)
        with Overlay(base.trees, vault.content, own) as overlay, Writer(beside) as writer:
            for frame in _frames(vault, target, base.sequence):
                if not frame.changes:
                    overlay.abandon()
                for change in frame.changes:
                    overlay.apply(change)
            trees = overlay.write(writer)
            writer.flush()
    except BaseException:
        shutil.rmtree(own, ignore_errors=True)
        raise
    made = msgspec.structs.replace(
        base, trees=trees, taken_at_ns=target.time_ns, sequence=int(target.sequence), files=-1, bytes=-1
    )
    return Instant(beside, made, target, own)


def _frames(vault: Vault, target: Target, after: int) -> Iterator[ArchivedFrame]:
    reached, digest = after, b""
    for name, record in _records(vault, target.frames):
        if digest and name.first == reached + 1 and record.previous != digest:
            raise VaultDamaged(f"{name.name}: it does not go on from the records before it", name=name.name)
        digest = record.digest
        for frame in record.frames:
            if reached < frame.sequence <= target.sequence:
                yield frame
                reached = frame.sequence


def _records(vault: Vault, names: tuple[FramesName, ...]) -> Iterator[tuple[FramesName, ArchivedFrames]]:
    """What *names* hold, the next ones read meanwhile."""
    coming: deque[tuple[FramesName, Future[ArchivedFrames]]] = deque()
    with ThreadPoolExecutor(AHEAD_OBJECTS, "vault-frames") as pool:
        for name in names:
            coming.append((name, pool.submit(read_frames, vault, name)))
            if len(coming) > AHEAD_OBJECTS:
                first, record = coming.popleft()
                yield first, record.result()
        while coming:
            first, record = coming.popleft()
            yield first, record.result()


def _beside(vault: Vault, folder: Path) -> Vault:
    """A vault that reads *vault*'s objects and writes its own into *folder*, readable by this process alone."""
    identity = pyrage.x25519.Identity.generate()
    readers = Readers((*vault.readers.texts, str(identity)))
    backend = _Beside(vault.backend, folder)
    wrapper = Wrapper((str(identity.to_public()),))
    beside = Vault(backend, vault.codec, readers, wrapper, folder / CATALOG_NAME, vault.sizes)
    beside.catalog.take_over(vault.catalog)
    return beside


class _Beside:
    """A store over another: what is written lies in files of *folder*, not to outlive this process."""

    def __init__(self, below: Backend, folder: Path) -> None:
        self._below = below
        self._folder = folder
        self._own: dict[str, Found] = {}

    def put(self, name: str, data: bytes) -> None:
        try:
            self._file(name).write_bytes(data)
        except OSError as error:
            hint = "Free space there, or say another folder with TMPDIR."
            raise NoSpace(f"{self._folder}: {os.strerror(error.errno or 0)}", hint=hint) from None
        self._own[name] = Found(name, len(data), 0.0)

    def _file(self, name: str) -> Path:
        return self._folder / name.replace("/", "-")

    def get(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        if name not in self._own:
            return self._below.get(name, start, length)
        with self._file(name).open("rb") as file:
            file.seek(start)
            return file.read(-1 if length is None else length)

    def size(self, name: str) -> int | None:
        own = self._own.get(name)
        return self._below.size(name) if own is None else own.size

    def list(self, prefix: str) -> Iterator[Found]:
        yield from [found for name, found in list(self._own.items()) if name.startswith(prefix)]
        yield from self._below.list(prefix)

    def delete(self, name: str) -> None:
        raise BackendRefused(f"{name}: what an instant shows is not deleted")

    def close(self) -> None:
        pass
