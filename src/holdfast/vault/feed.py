"""One vault, fed with the records of one log: what an archiver does, without where its records come from.

A feed begins where the vault says that the last one ended, on whichever machine that was. Without such a place (a new
vault, a new log, or records that were trimmed before anybody archived them) it begins with a snapshot.

For one thread. After an error it is closed, and another one begins anew: nothing of it is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime
from typing import Final, NamedTuple

from holdfast.changes.frame import Chain, SegmentKey, follow_chain, open_frame
from holdfast.changes.names import Incarnation, Position
from holdfast.errors import HoldfastError
from holdfast.trees.index import IndexReader
from holdfast.trees.spec import Tree
from holdfast.vault.archive import Archiving, archived_through, list_frames, seal_frames
from holdfast.vault.backup import BackupResult, Clocks
from holdfast.vault.known import Known
from holdfast.vault.logfed import Source, snapshot_from_log
from holdfast.vault.repository import Vault
from holdfast.vault.settings import VaultSettings
from holdfast.vault.touched import Touched

OBJECT_BYTES: Final = 16 * 1024 * 1024
"""Records collected for one object, at most, but for a batch that is longer: held in memory until it is put."""
BATCH_BYTES_MAX: Final = 2 * OBJECT_BYTES
"""A batch longer than this is cut between its records."""
LOOK_BACK_RECORDS_MAX: Final = 20_000
"""Records read again after a start, to know what they touched since the last snapshot; beyond, everything is looked at,
which costs some microseconds a file."""


class Place(NamedTuple):
    """Where a vault stands in one log. *archived*: the last record it has, with all since a snapshot; None: it has no
    snapshot of this log. *times*: nanoseconds since 1970, 0 for none."""

    archived: int | None
    look_back: int | None
    """What this machine knows of the last snapshot is true of this record; None: it knows nothing."""
    archived_at_ns: int
    snapshot_at_ns: int


class Feed:
    """Records into *vault*. ``place`` tells where it stands; :meth:`begin` or :meth:`first_snapshot` comes first."""

    def __init__(
        self, vault: Vault, key: SegmentKey, incarnation: Incarnation, machine: str, clocks: Clocks | None = None
    ) -> None:
        """Raises what the backend raises."""
        self._vault = vault
        self._key = key
        self._incarnation = incarnation
        self._machine = machine
        self._clocks = clocks or Clocks()
        self._known = Known(vault.catalog)
        self._archiving = Archiving()
        self._chain: Chain | None = None
        self._oldest_seconds = 0.0
        self._captured_at_ns = 0
        self.touched = Touched(self._known.has, everything=True)
        self.place = self._find_place()

    def _find_place(self) -> Place:
        names = self._vault.snapshots()
        frames = list_frames(self._vault.backend, self._incarnation)
        here = [(at.sequence, name) for name in names if (at := name.position) and at.incarnation == self._incarnation]
        snapshot_at_ns = names[-1].taken_at_ns if names else 0
        if not here:
            return Place(None, None, 0, snapshot_at_ns)
        here.sort()
        archived = archived_through(frames, here[-1][0])
        if len(here) > 1:
            before = archived_through(frames, here[-2][0])
            if before < here[-1][0]:  # the records up to the newest snapshot are missing
                archived = before
        times = [name.to_ns for name in frames if name.last <= archived]
        known = self._known.position
        look_back = known.sequence if known in [name.position for _, name in here] and known is not None else None
        return Place(archived, look_back, max([*times, here[-1][1].taken_at_ns]), snapshot_at_ns)

    # -- records -------------------------------------------------------------------------------------------------------

    def follows_from(self, first: int) -> int | None:
        """After which record to read the log, whose first is *first*; None: it needs a snapshot to begin with."""
        archived, look_back = self.place.archived, self.place.look_back
        if archived is None or archived + 1 < first:
            return None
        if look_back is None or look_back + 1 < first or archived - look_back > LOOK_BACK_RECORDS_MAX:
            return archived
        return min(archived, look_back)

    def begin(self, chain: Chain) -> None:
        """Records follow from *chain*, at ``follows_from``."""
        self._chain = chain
        look_back = self.place.look_back
        if look_back is not None and chain.sequence == min(look_back, self.archived):
            self.touched.clear()

    def close(self) -> None:
        """Vault and backend."""
        self._vault.close()
        self._vault.backend.close()

    @property
    def incarnation(self) -> Incarnation:
        return self._incarnation

    @property
    def archived(self) -> int:
        return self.place.archived or 0

    @property
    def reached(self) -> int:
        """The last record taken."""
        return self._chain.sequence if self._chain is not None else 0

    @property
    def waiting_bytes(self) -> int:
        return self._archiving.bytes

    @property
    def waiting_seconds(self) -> float:
        """How long the oldest record that is not in the vault has been here."""
        return self._clocks.monotonic_seconds() - self._oldest_seconds if self._archiving else 0.0

    def take(self, payload: bytes) -> None:
        """The next record of the log. Raises FrameDamaged: it is damaged, or not the next; and what a put raises."""
        assert self._chain is not None, "begin comes first"
        frame = open_frame(payload, self._key)
        self._chain = follow_chain(self._chain, payload, frame.header)
        self._captured_at_ns = frame.header.captured_at_ns
        if frame.header.sequence > (self.place.look_back or 0):
            for change in frame.changes:
                self.touched.add(change)
        if frame.header.sequence <= self.archived:
            return
        if not self._archiving:
            self._oldest_seconds = self._clocks.monotonic_seconds()
        self._archiving.add(frame, self._chain, len(payload))
        full = OBJECT_BYTES if self._archiving.whole else BATCH_BYTES_MAX
        if self._archiving.bytes >= full:
            self._put()

    def flush(self) -> None:
        """Put what was taken, up to the last whole instant. Raises what a put raises."""
        if self._archiving and self._archiving.whole:
            self._put()

    def _put(self) -> None:
        record, last = self._archiving.record(), self._archiving.last
        made = seal_frames(self._vault, record)
        self._vault.backend.put(made.name, made.data)
        at_ns = max(frame.captured_at_ns for frame in record.frames)
        self.place = self.place._replace(archived=int(last), archived_at_ns=max(at_ns, self.place.archived_at_ns))
        self._archiving = Archiving()

    # -- snapshots -----------------------------------------------------------------------------------------------------

    def first_snapshot(
        self,
        trees: Sequence[Tree],
        read_index: Callable[[], IndexReader],
        rest: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> BackupResult:
        """The snapshot that archived records will go on from; :meth:`begin` is done with it. Raises as
        ``snapshot_from_log``."""
        seen: list[Chain] = []

        def read() -> IndexReader:
            reader = read_index()
            seen.append(reader.chain)
            return reader

        self.touched.touch_everything()
        result = self._snapshot(Source(trees, read, lambda position: 0, self.touched, rest))
        self._chain = seen[-1]
        self._archiving = Archiving()
        self.place = self.place._replace(archived=result.snapshot.sequence, archived_at_ns=result.snapshot.taken_at_ns)
        return result

    def snapshot(
        self,
        trees: Sequence[Tree],
        read_index: Callable[[], IndexReader],
        read_records: Callable[[int], None],
        rest: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> BackupResult:
        """A snapshot at the index's position, which must not be before ``reached``. *read_records*: returns when the
        records up to that one, and no later ones, were given to :meth:`take`. *rest*: see ``Source``. Raises as
        ``snapshot_from_log``, what a put raises, what *read_records* raises."""

        def reach(position: Position) -> int:
            if position.incarnation != self._incarnation:
                raise HoldfastError("the log was replaced while a snapshot was made", retry=True)
            if self.reached <= position.sequence:
                read_records(position.sequence)
            if self.reached != position.sequence:  # what is touched must be that of the position, no more, no less
                raise HoldfastError(f"the index stands at {position}, the records at {self.reached}", retry=True)
            self.flush()
            return self._captured_at_ns

        return self._snapshot(Source(trees, read_index, reach, self.touched, rest))

    def _snapshot(self, source: Source) -> BackupResult:
        result = snapshot_from_log(self._vault, source, self._machine, clocks=self._clocks)
        self.place = self.place._replace(snapshot_at_ns=result.snapshot.taken_at_ns, look_back=result.snapshot.sequence)
        return result

    @property
    def changed(self) -> bool:
        """Whether anything was touched since the last snapshot."""
        return bool(self.touched)


def snapshot_due(settings: VaultSettings, last_ns: int, now_ns: int) -> bool:
    """Whether a snapshot is due, the last one being of *last_ns*. Times of the day are those of this machine."""
    if settings.snapshot_minutes and now_ns - last_ns >= settings.snapshot_minutes * 60e9:
        return True
    now = datetime.fromtimestamp(now_ns / 1e9).astimezone()
    for text in settings.snapshot_times:
        hour, minute = map(int, text.split(":"))
        moment = now.replace(hour=hour, minute=minute, second=0, microsecond=0)
        if last_ns < moment.timestamp() * 1e9 <= now_ns:
            return True
    return False
