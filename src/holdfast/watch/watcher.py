"""The watcher: hears of changes, looks, and hands over what differs, batch by batch."""

from __future__ import annotations

import fcntl
import os
import select
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import pairwise
from typing import Final, NamedTuple, NewType

from holdfast.changes.change import Change
from holdfast.errors import ConfigurationError, EnvironmentUnfit
from holdfast.trees.index import Index, Totals
from holdfast.trees.rate import TokenBucket
from holdfast.trees.spec import RESERVED_NAME, Tree
from holdfast.trees.stat import Owners, handle_at
from holdfast.watch.disk import Unreadable
from holdfast.watch.fanotify import NOT_HERE, Fanotify
from holdfast.watch.hints import DirtySet, EventSource
from holdfast.watch.inotify import Inotify
from holdfast.watch.limits import Limits
from holdfast.watch.parts import Part, in_parts, weight_bytes
from holdfast.watch.reconcile import Reconciler
from holdfast.watch.scene import Boundary, Scene

Cookie = NewType("Cookie", int)
"""All done in the trees before :meth:`Watcher.barrier` gave it is in the batches up to the one that passes it."""

BATCH_SECONDS: Final = 0.05
"""How long a batch fills at most. At full load some twenty deliveries then share a frame, and the log's work for it.
Measured over all agents and log servers, a delivery costs 1.34 ms of processor with 25 ms, 0.97 with 60, 0.84 with
100; but with 100 the slowest percent is applied 122 ms after it was read (25: 66, 60: 88), and 100 are promised."""
QUIET_SECONDS: Final = 0.005
"""A batch is full when nothing came for so long: one delivery makes its events within."""
LOOK_SECONDS: Final = 0.01
FULL_BYTES: Final = 5000
"""Of events that wait, as the kernel counts them (fanotify: 24 each): those of some twenty deliveries. All in a batch
is read, sent and applied before any of it counts as applied: at full load, with forty deliveries in each, the slowest
percent took 120 ms, with thirty 80."""
READER_SECONDS: Final = 0.1
"""While the consumer is busy, events are drained this often."""
PROGRESS_SECONDS: Final = 0.25
SCAN_ROUNDS_MAX: Final = 2
"""Without events, what was renamed while the scan ran is looked for once more."""
SOURCES: Final = ("fanotify", "inotify")

__all__ = ["Cookie", "Part", "ScanProgress", "WatchStatus", "Watcher"]


class ScanProgress(NamedTuple):
    """*files* counts names looked at; *files_expected* is what the index knew before, 0 for a first scan; *bytes* is
    what was logged."""

    directories: int
    files: int
    files_expected: int
    bytes: int
    seconds: float


class Problem(NamedTuple):
    """A file (or directory, ending in ``/.``) that cannot be read, and so is not protected as it now is."""

    tree: str
    path: bytes
    reason: str


class WatchStatus(NamedTuple):
    """*source*: ``fanotify``, ``inotify`` or ``none``; *source_note* says why not the better one."""

    source: str
    source_note: str
    waiting_events: int
    overflows: int
    problems: tuple[Problem, ...]
    problems_unnamed: int
    skipped: tuple[tuple[str, bytes, str], ...]
    """Sockets, fifos and devices: tree, path, what it is."""
    totals: Totals


class Watcher:
    """One per primary. All but :meth:`barrier`, :meth:`mark`, :meth:`status` is for one thread at a time."""

    def __init__(
        self,
        index: Index,
        trees: Sequence[Tree],
        owners: Owners,
        *,
        batch_seconds: float = BATCH_SECONDS,
        limits: Limits | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        pause: Callable[[float], None] | None = None,
        sources: Sequence[str] = SOURCES,
        queue_unlimited: bool = True,
    ) -> None:
        """*sources*: which to try, in order. Raises ConfigurationError when one tree stands in another."""
        _check_apart(trees)
        self._index = index
        self._trees = {str(tree.name): tree for tree in trees}
        self._limits = limits or Limits()
        self._batch_seconds = batch_seconds
        self._monotonic = monotonic
        self._pause = pause or time.sleep
        self._rest = pause or self._until_woken
        self._sources = sources
        self._queue_unlimited = queue_unlimited
        self._source: EventSource | None = None
        self._source_note = ""
        scene = Scene(index, self._trees, owners, self._limits, monotonic, self._watch_directory)
        self._reconciler = Reconciler(scene)
        self._lock = threading.Lock()
        self._dirty = DirtySet()
        self._overflows = 0
        self._scan_wanted = False
        self._marked: list[tuple[str, bytes]] = []
        self._cookie = 0
        self._asked = False
        self._pending: list[tuple[int, Cookie]] = []
        self._passed: list[Cookie] = []
        self._wake_fd = -1
        self._poll = select.poll()
        self._woken = select.poll()
        self._stop = threading.Event()
        self._reader: threading.Thread | None = None
        self._busy_since: float | None = None

    # -- start and stop ------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Hear of everything from now on. A scan must follow, unless the index was kept until this moment.

        Raises EnvironmentUnfit (no event source, a root is missing), Refused (a root is another directory than before).
        """
        disk = self._reconciler.scene.disk
        disk.open_roots()
        self._source = self._open_source()
        self._stop.clear()
        self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._poll.register(self._source.fileno(), select.POLLIN)
        self._poll.register(self._wake_fd, select.POLLIN)
        self._woken.register(self._wake_fd, select.POLLIN)
        if self._source.kind == Inotify.kind:
            self._watch_known()
        self._busy_since = self._monotonic()
        self._reader = threading.Thread(target=self._keep_draining, name="watch-reader", daemon=True)
        self._reader.start()

    def stop(self) -> None:
        """Hear no more, close everything. Cookies not passed are never passed."""
        self._stop.set()
        if self._reader is not None:
            self._reader.join()
            self._reader = None
        if self._source is not None:
            self._poll.unregister(self._source.fileno())
            self._poll.unregister(self._wake_fd)
            self._woken.unregister(self._wake_fd)
            self._source.close()
            self._source = None
            os.close(self._wake_fd)
            self._wake_fd = -1
        self._reconciler.scene.disk.close()

    def forget(self) -> None:
        """The index was rolled back, or changed by somebody else: what is remembered is void, a scan must follow."""
        self._reconciler.forget()

    def _open_source(self) -> EventSource:
        reasons: list[str] = []
        for kind in self._sources:
            try:
                source = self._try_source(kind)
            except OSError as error:
                if kind == Fanotify.kind and error.errno not in NOT_HERE:
                    raise
                reasons.append(f"{kind}: {error.strerror or error}")
                continue
            if source is not None:
                self._source_note = "; ".join(reasons)
                return source
            reasons.append(f"{kind}: marks are accepted but no events come")
        raise EnvironmentUnfit(
            f"this machine lets us hear of no file events ({'; '.join(reasons)})",
            hint="Run the agent as root outside of a restricted container, or copy at intervals instead.",
        )

    def _try_source(self, kind: str) -> EventSource | None:
        if kind == Inotify.kind:
            return Inotify()
        roots = {os.fstat(fd).st_dev: fd for fd, _ in map(self._reconciler.scene.disk.root, self._trees)}
        source = Fanotify(list(roots.values()), queue_unlimited=self._queue_unlimited)
        if all(self._probe(source, fd) for fd in roots.values()):
            return source
        source.close()
        return None

    def _probe(self, source: EventSource, root_fd: int) -> bool:
        """Whether an event really comes. Where nothing can be written, that is taken for granted."""
        folder = RESERVED_NAME + b"/cookies"
        try:
            fd = os.open(folder + b"/probe", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600, dir_fd=root_fd)
        except OSError:
            return True
        os.close(fd)
        source.drain(self._dirty, self._limits.dirty_entries_max)
        handle = handle_at(root_fd, folder)
        if self._dirty.overflowed:
            return True
        return any(where[0] == handle for where, _ in source.hints(self._dirty))

    def _watch_directory(self, fd: int, handle: bytes) -> None:
        if self._source is not None:
            try:
                self._source.watch(fd, handle)
            except OSError as error:
                raise Unreadable(f"it cannot be watched: {error.strerror}") from error

    def _watch_known(self) -> None:
        """inotify: a watch on every directory the index knows."""
        disk = self._reconciler.scene.disk
        for root in self._index.roots().values():
            pending = [root]
            while pending:
                directory = disk.directory(pending.pop())
                if directory is None:
                    continue
                with suppress(Unreadable):  # the scan that follows names it
                    fd = disk.fd(directory)
                    if fd is not None and directory.handle is not None:
                        self._watch_directory(fd, directory.handle)
                pending.extend(self._index.directories_in(directory.id))

    # -- events --------------------------------------------------------------------------------------------------------

    def _keep_draining(self) -> None:
        """While the consumer is busy, the kernel's queue must not fill."""
        while not self._stop.wait(READER_SECONDS):
            since = self._busy_since
            if since is not None and self._monotonic() - since >= READER_SECONDS:
                with self._lock:
                    self._drain()

    def _drain(self) -> None:
        if self._source is not None:
            self._source.drain(self._dirty, self._limits.dirty_entries_max)

    def _swap(self) -> tuple[DirtySet, Cookie | None]:
        """What happened until now, and the cookie of those who wait for that."""
        with self._lock:
            cookie = None
            if self._asked:  # before draining: what happened before they asked is in the kernel's queue by now
                cookie, self._asked = Cookie(self._cookie), False
                self._cookie += 1
            self._drain()
            dirty, self._dirty = self._dirty, DirtySet()
            marked, self._marked = self._marked, []
        for tree, path in marked:
            self._reconciler.mark(tree, path)
        if dirty.overflowed:
            self._overflows += 1
            self._scan_wanted = True
        return dirty, cookie

    def collect(self, *, wait_seconds: float) -> Iterator[Part]:
        """One batch: what differs now, found where something happened; waits up to *wait_seconds* for something to
        happen. The parts must all be taken before the next call. Nothing differs: no part.

        Raises EnvironmentUnfit (inotify's limit is reached), NoSpace and other HoldfastErrors of the index.
        """
        assert self._source is not None, "not started"
        self._busy_since = None
        self._wait(wait_seconds)
        dirty, cookie = self._swap()
        self._busy_since = self._monotonic()
        return self._in_parts(self._batch(self._source, dirty, cookie))

    def _wait(self, wait_seconds: float) -> None:
        due = self._reconciler.due_seconds()
        if self._scan_wanted:
            due = 0.0
        timeout = wait_seconds if due is None else min(wait_seconds, due)
        ready = self._poll.poll(timeout * 1000)
        if any(fd == self._wake_fd for fd, _ in ready):
            os.eventfd_read(self._wake_fd)
        if (ready or due == 0.0) and wait_seconds > 0:
            self._fill()

    def _fill(self) -> None:
        """Let the batch grow for as long as events keep coming and nobody waits for a barrier, until it is full."""
        assert self._source is not None
        waiting, left, step = _bytes_waiting(self._source), self._batch_seconds, QUIET_SECONDS
        while left > 0:
            self._rest(min(step, left))
            before, waiting = waiting, _bytes_waiting(self._source)
            if waiting == before or waiting >= FULL_BYTES or self._asked:
                return
            left -= step
            step = LOOK_SECONDS  # more is to be expected: each look costs a wake-up

    def _until_woken(self, seconds: float) -> None:
        """Pause, until somebody asks for a barrier at the latest."""
        if self._woken.poll(seconds * 1000):
            os.eventfd_read(self._wake_fd)

    def _batch(self, source: EventSource, dirty: DirtySet, cookie: Cookie | None) -> Iterator[Change | Boundary]:
        if self._scan_wanted:
            yield from self._scan(None, None, None)
        else:
            yield from self._reconciler.events(source.hints(dirty), hurry=cookie is not None)
        if cookie is not None:
            self._pending.append((self._reconciler.scene.number, cookie))
        if self._pending:
            since = self._reconciler.open_since()
            passed = [cookie for number, cookie in self._pending if since is None or since > number]
            self._passed += passed
            self._pending = self._pending[len(passed) :]

    def _in_parts(self, changes: Iterator[Change | Boundary]) -> Iterator[Part]:
        limits = self._limits
        return in_parts(changes, part_bytes=limits.frame_content_bytes, batch_bytes=limits.scan_batch_bytes)

    # -- barriers ------------------------------------------------------------------------------------------------------

    def barrier(self) -> Cookie:
        """Ask to be told when everything done until now has been handed over. For any thread.

        Those who ask before the next batch begins share a cookie.
        """
        with self._lock:
            self._asked = True
            cookie = Cookie(self._cookie)
        self._wake()
        return cookie

    def passed_cookies(self) -> tuple[Cookie, ...]:
        """The cookies whose batches have been handed over whole since the last call. Ask after a batch's last part."""
        passed, self._passed = tuple(self._passed), []
        return passed

    def mark(self, tree: str, path: bytes) -> None:
        """Look at *path* in the next batch, whatever events say. For any thread."""
        with self._lock:
            self._marked.append((tree, path))
        self._wake()

    def _wake(self) -> None:
        if self._wake_fd >= 0:
            os.eventfd_write(self._wake_fd, 1)

    # -- scan ----------------------------------------------------------------------------------------------------------

    def scan(
        self,
        progress: Callable[[ScanProgress], None],
        *,
        bytes_per_second: float = 0,
        doubt_since_ns: int | None = None,
    ) -> Iterator[Part]:
        """Compare everything; what differs, in parts. While it runs, events are looked at too.

        Works without :meth:`start` (copies at intervals). It may be left after a part without ``more``; the next scan
        then finds the rest. *bytes_per_second* limits what is logged; 0 is no limit. *doubt_since_ns*: after a power
        cut, files changed since then (by their ctime) may have lost bytes that their size still counts: they are read.
        """
        self._reconciler.scene.disk.open_roots()
        bucket = TokenBucket(bytes_per_second, self._monotonic) if bytes_per_second > 0 else None
        return self._in_parts(self._scan(progress, bucket, doubt_since_ns))

    def _scan(
        self,
        progress: Callable[[ScanProgress], None] | None,
        bucket: TokenBucket | None,
        doubt_since_ns: int | None,
    ) -> Iterator[Change | Boundary]:
        reconciler = self._reconciler
        began = told = looked = self._monotonic()
        expected = self._index.totals()
        logged = 0
        self._scan_wanted = False

        def now(at: float) -> ScanProgress:
            return ScanProgress(scan.directories, scan.names, expected.files + expected.symlinks, logged, at - began)

        rounds = 0
        while True:
            rounds += 1
            scan = reconciler.scan(doubt_since_ns)
            try:
                yield from scan.begin()
                while (changes := scan.directory()) is not None:
                    for change in changes:
                        yield change
                        if not isinstance(change, Boundary):
                            weight = weight_bytes(change)
                            logged += weight
                            if bucket is not None:
                                self._pause(bucket.take(weight))
                    at = self._monotonic()
                    if progress is not None and at - told >= PROGRESS_SECONDS:
                        told = at
                        progress(now(at))
                    if self._source is not None and at - looked >= self._limits.events_between_seconds:
                        looked = at
                        yield from self._between(self._source)
            finally:
                scan.end()
            if self._source is not None or not reconciler.scene.limbo or rounds == SCAN_ROUNDS_MAX:
                break
        yield from reconciler.after_scan(final=self._source is None)
        if progress is not None:
            progress(now(self._monotonic()))

    def _between(self, source: EventSource) -> Iterator[Change]:
        """The events of the last moments, in the middle of a scan. Their barriers pass after it."""
        with self._lock:
            asked, self._asked = self._asked, False
        dirty, _ = self._swap()
        with self._lock:
            self._asked = self._asked or asked
        yield from self._reconciler.events(source.hints(dirty))

    # -- status --------------------------------------------------------------------------------------------------------

    def status(self) -> WatchStatus:
        """As of now. For any thread."""
        scene = self._reconciler.scene
        return WatchStatus(
            source="none" if self._source is None else self._source.kind,
            source_note=self._source_note,
            waiting_events=len(self._dirty.raw),
            overflows=self._overflows,
            problems=tuple(Problem(t.tree, t.path, t.reason) for t in list(scene.troubles.values())),
            problems_unnamed=scene.troubles_unnamed,
            skipped=tuple((tree, path, what) for (tree, path), what in list(scene.skipped.items())),
            totals=self._index.totals(),
        )


def _bytes_waiting(source: EventSource) -> int:
    """What the kernel holds for us: FIONREAD, fanotify(7) and inotify(7)."""
    return int.from_bytes(fcntl.ioctl(source.fileno(), termios.FIONREAD, bytes(4)), sys.byteorder)


def _check_apart(trees: Sequence[Tree]) -> None:
    roots = sorted((os.path.realpath(tree.root) + "/", tree.name) for tree in trees)
    for (outer, outer_name), (inner, inner_name) in pairwise(roots):
        if inner.startswith(outer):
            raise ConfigurationError(
                f"tree {inner_name!r} stands inside tree {outer_name!r}",
                hint=f"Exclude {inner} from {outer_name!r} by making them one tree, or protect them apart.",
            )
