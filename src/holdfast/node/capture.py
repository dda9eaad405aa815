"""The pump on the primary: watcher -> frames -> log.

One thread runs the watcher and owns the tree index; the event loop seals and appends. Between them at most
``PARTS_WAITING_MAX`` parts wait: while the log is slow the watcher's next batch simply grows (group commit), and while
the log is away nothing is lost: events collect in the watcher's bounded dirty set, which at worst becomes a scan.

The index is committed only when every part handed over is in the log, so the committed index always equals the trees at
a position the log really has. A crash before that is made good by reading our own records again.

*Copies at intervals* (``at_intervals``): the watcher hears only while a copy is open: from before its scan until a
barrier after it. All its frames say that more is to come, but for the last, which is empty and closes the copy: what
the log holds up to there is the trees as they stood at one instant, that frame's time. Between copies nothing is
watched.

An append that fails for want of a quorum is repeated with the same bytes until it succeeds or another machine's record
stands in its place. Then (or when the log was replaced or damaged) the pump ends and says so: whoever runs it stops
serving.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, TypeVar

import apsw

from holdfast.changes.frame import Chain, FrameKind, FrameWriter, Promotion, pack_changes, pack_promotion, seal
from holdfast.changes.names import CapturedPosition
from holdfast.errors import HoldfastError, NoSpace, Unreachable
from holdfast.log.port import Log, LogFull, LogUnavailable
from holdfast.trees.index import Index, IndexReader
from holdfast.watch.watcher import Cookie, Part, ScanProgress, Watcher

PARTS_WAITING_MAX: Final = 3
"""One in flight, one sealed behind it, one being packed: more would only age."""
COMMIT_SECONDS: Final = 1.0
"""A crash makes us read our own records of so long again."""
STOP_SECONDS_MAX: Final = 4.0
IDLE_SECONDS: Final = 0.25
CLOSING_SECONDS: Final = 0.05
"""A copy's last barrier passes with the next batch: how long that one is waited for."""
APPEND_RETRY_SECONDS: Final = 0.2
T = TypeVar("T")


class CaptureStatus(NamedTuple):
    """*waiting_bytes*: packed, not yet in the log. *log_away_seconds*: since appends fail; None while they succeed."""

    position: CapturedPosition
    waiting_bytes: int
    waiting_seconds: float
    log_away_seconds: float | None
    log_away_because: str


@dataclass
class _Item:
    packed: bytes
    more: bool
    captured_at_ns: int
    cookies: tuple[Cookie, ...] = ()
    proof: bool = False
    """No part of a batch: only to be taken by the log, whatever it holds."""
    kind: FrameKind = FrameKind.CHANGES


@dataclass
class _Command:
    run: Callable[[], object]
    future: Future[Any] = field(default_factory=Future)


class _Stopped(Exception):
    """Inside the thread: leave."""


class Capture:
    """Runs from :meth:`start` to :meth:`stop`, or until *on_lost* is called with why it may not go on."""

    def __init__(
        self,
        *,
        watcher: Watcher,
        index: Index,
        log: Log,
        writer: FrameWriter,
        chain: Chain,
        clock_ns: Callable[[], int],
        monotonic: Callable[[], float],
        on_lost: Callable[[HoldfastError], None],
        at_intervals: bool = False,
    ) -> None:
        self._at_intervals = at_intervals
        self._copying = at_intervals
        """A copy is open: what is appended is no whole instant. The first one is from the beginning."""
        self._called = threading.Event()
        self._watcher = watcher
        self._index = index
        self._log = log
        self._writer = writer
        self._chain = chain
        self._clock_ns = clock_ns
        self._monotonic = monotonic
        self._on_lost = on_lost
        self._slots = threading.Semaphore(PARTS_WAITING_MAX)
        self._items: asyncio.Queue[_Item] = asyncio.Queue()
        self._commands: queue.SimpleQueue[_Command] = queue.SimpleQueue()
        self._waiters: dict[Cookie, list[Future[CapturedPosition]]] = {}
        self._waiters_lock = threading.Lock()
        self._stopping = threading.Event()
        self._dirty = False
        self._committed_at = 0.0
        self._waiting_bytes = 0
        self._oldest: float | None = None
        self._away_since: float | None = None
        self._away_because = ""
        self._lost: HoldfastError | None = None
        self._proofs: list[asyncio.Future[None]] = []
        self.clean = False
        """Ended with everything that was seen in the log, and the index committed there."""
        self._appender: asyncio.Task[None] | None = None
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    # -- from the event loop -------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to capture. The watcher must have been started: nothing may have changed unseen before this."""
        self._loop = asyncio.get_running_loop()
        self._appender = self._loop.create_task(self._append_all(), name="capture-append")
        self._thread = threading.Thread(target=self._run, name="capture", daemon=True)
        self._thread.start()

    async def stop(self) -> Chain:
        """End; what was handed over is appended first (unless the log was lost). The place in the log reached."""
        self._stopping.set()
        self._called.set()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join, STOP_SECONDS_MAX)
            if self._thread.is_alive():  # it waits for a log that is away: what is not in it the next scan finds
                self._lost = Unreachable("the log is away: capturing stops with changes that are not in it", retry=True)
                self._slots.release(PARTS_WAITING_MAX)
                await asyncio.to_thread(self._thread.join)
        if self._appender is not None:
            self._appender.cancel()
            await asyncio.gather(self._appender, return_exceptions=True)
        self._fail_waiters(self._lost or Unreachable("capturing has stopped"))
        return self._chain

    async def barrier(self, *, timeout_seconds: float) -> CapturedPosition:
        """Returns once everything done in the trees before this call is in the log. Raises Unreachable in time."""
        waiter: Future[CapturedPosition] = Future()
        with self._waiters_lock:
            if self._lost is not None or self._stopping.is_set():
                raise self._lost or Unreachable("capturing has stopped")
            self._waiters.setdefault(self._watcher.barrier(), []).append(waiter)
        try:
            return await asyncio.wait_for(asyncio.wrap_future(waiter), timeout_seconds)
        except TimeoutError:
            raise Unreachable(
                f"the log did not take everything within {timeout_seconds:g} s",
                hint=self._away_because or "Look at `holdfast status`: is the log reachable?",
                retry=True,
            ) from None

    async def prove(self, *, timeout_seconds: float) -> None:
        """Returns once the log took a record of ours that was not sent before this call: nobody else was promoted.

        Raises Unreachable in time, or why capturing has ended.
        """
        proof: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self._lost is not None or self._stopping.is_set():
            raise self._lost or Unreachable("capturing has stopped")
        self._items.put_nowait(_Item(b"", False, self._clock_ns(), proof=True))
        self._proofs.append(proof)
        try:
            await asyncio.wait_for(proof, timeout_seconds)
        except TimeoutError:
            raise Unreachable(f"the log took nothing within {timeout_seconds:g} s", retry=True) from None

    async def snapshot(self) -> IndexReader:
        """A reader of the index as it stands at a position of the log, which stays so while it is open."""
        return await self._in_thread(self._snapshot)

    def scan(self, progress: Callable[[ScanProgress], None], doubt_since_ns: int | None) -> Awaitable[None]:
        """Compare everything with the index, and log what differs.

        Asked for before :meth:`start`, it is the first thing that is done: no barrier passes before it is whole.
        """
        return self._in_thread(lambda: self._scan(progress, doubt_since_ns))

    async def open_copy(self, progress: Callable[[ScanProgress], None], doubt_since_ns: int | None) -> None:
        """Begin a copy, or go on with the open one: hear of everything from now on, and compare everything."""
        await self._in_thread(lambda: self._or_lost(lambda: self._open_copy(progress, doubt_since_ns)))

    async def close_copy(self) -> CapturedPosition:
        """End the open copy: it is what the trees are now. Nothing is heard of any more until the next one."""
        return await self._in_thread(lambda: self._or_lost(self._close_copy))

    async def append_promotion(self, promotion: Promotion) -> CapturedPosition:
        """Put a promotion into the log as the next record, before the pump was started."""
        return await self._append_one(
            _Item(pack_promotion(promotion), self._copying, self._clock_ns(), kind=FrameKind.PROMOTION)
        )

    async def append_nothing(self, *, more: bool) -> CapturedPosition:
        """A record without changes, before the pump was started: it shows that nobody else was promoted.

        *more*: the batch our last record began will not be finished; what is missing of it the scan brings.
        """
        return await self._append_one(_Item(pack_changes(()), more or self._copying, self._clock_ns()))

    async def _append_one(self, item: _Item) -> CapturedPosition:
        frame = self._seal(item)
        if self._appender is None:
            await self._log.append(frame, after=self._chain.sequence)
        else:
            await self._append(frame)
        self._chain = self._chain.after(frame)
        return CapturedPosition(self._chain.position)

    @property
    def chain(self) -> Chain:
        return self._chain

    def status(self) -> CaptureStatus:
        now = self._monotonic()
        oldest, away = self._oldest, self._away_since
        return CaptureStatus(
            CapturedPosition(self._chain.position),
            self._waiting_bytes,
            0.0 if oldest is None else now - oldest,
            None if away is None else now - away,
            self._away_because,
        )

    def _in_thread(self, run: Callable[[], T]) -> Awaitable[T]:
        """Queued at once, whenever it is awaited; before :meth:`start` it waits for the thread."""
        command = _Command(run)
        self._commands.put(command)
        self._called.set()
        if self._stopping.is_set() or (self._thread is not None and not self._thread.is_alive()):
            raise self._lost or Unreachable("capturing has stopped")
        return asyncio.wrap_future(command.future)

    # -- appending (event loop) ----------------------------------------------------------------------------------------

    def _seal(self, item: _Item) -> bytes:
        return seal(
            self._writer, self._chain, item.kind, item.packed, captured_at_ns=item.captured_at_ns, more=item.more
        )

    async def _append_all(self) -> None:
        more, proving = False, False
        try:
            while True:
                item = await self._items.get()
                if item.proof:
                    proving = True
                    if not more:  # else the rest of the batch will do: nothing may come into the middle of one
                        await self._append_one(_Item(pack_changes(()), False, item.captured_at_ns))
                        proving = self._proved()
                    continue
                if item.packed:
                    frame = self._seal(item)
                    await self._append(frame)
                    self._chain = self._chain.after(frame)
                    self._waiting_bytes -= len(item.packed)
                    more = item.more
                    if proving:
                        proving = self._proved()
                self._oldest = None if self._items.empty() else self._monotonic()
                self._slots.release()
                if item.cookies:
                    self._passed(item.cookies)
        except HoldfastError as error:
            self._lost = error
            self._stopping.set()
            self._slots.release(PARTS_WAITING_MAX)
            self._fail_waiters(error)
            self._on_lost(error)

    async def _append(self, frame: bytes) -> None:
        while True:
            try:
                await self._log.append(frame, after=self._chain.sequence)
            except (LogUnavailable, LogFull) as error:
                self._away_since = self._away_since or self._monotonic()
                self._away_because = error.message
                await asyncio.sleep(APPEND_RETRY_SECONDS)
                continue
            self._away_since, self._away_because = None, ""
            return

    def _proved(self) -> bool:
        """False, as there is nothing left to prove."""
        proofs, self._proofs = self._proofs, []
        for proof in proofs:
            if not proof.done():
                proof.set_result(None)
        return False

    def _passed(self, cookies: Iterable[Cookie]) -> None:
        position = CapturedPosition(self._chain.position)
        with self._waiters_lock:
            waiting = [waiter for cookie in cookies for waiter in self._waiters.pop(cookie, [])]
        for waiter in waiting:
            if waiter.set_running_or_notify_cancel():
                waiter.set_result(position)

    def _fail_waiters(self, error: HoldfastError) -> None:
        proofs, self._proofs = self._proofs, []
        for proof in proofs:
            if not proof.done():
                proof.set_exception(error)
        with self._waiters_lock:
            waiting = [waiter for waiters in self._waiters.values() for waiter in waiters]
            self._waiters.clear()
        for waiter in waiting:
            if waiter.set_running_or_notify_cancel():
                waiter.set_exception(error)

    # -- the thread ----------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                self._called.clear()
                self._run_commands()
                if self._at_intervals and not self._copying:
                    self._called.wait(IDLE_SECONDS)
                    continue
                self._hand_over_batch(self._watcher.collect(wait_seconds=IDLE_SECONDS))
                if self._dirty and self._monotonic() - self._committed_at >= COMMIT_SECONDS:
                    self._commit()
            if not self._at_intervals:
                self._hand_over_batch(self._watcher.collect(wait_seconds=0))
            self._commit()
            self.clean = not self._at_intervals  # else the trees have moved on since the last copy
        except _Stopped:
            pass
        except apsw.Error as error:
            self._report_lost(
                NoSpace(
                    f"the tree index cannot be written: {error}",
                    hint="Free space on the disk of the state directory; capturing begins again by itself.",
                    retry=True,
                )
            )
        except HoldfastError as error:
            self._report_lost(error)
        except OSError as error:
            self._report_lost(HoldfastError(f"watching failed: {error}", hint="The agent starts again with a scan."))
        finally:
            self._stopping.set()
            self._refuse_commands()

    def _report_lost(self, error: HoldfastError) -> None:
        self._lost = error
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._on_lost, error)

    def _run_commands(self) -> None:
        while not self._commands.empty():
            command = self._commands.get()
            if not command.future.set_running_or_notify_cancel():
                continue  # who asked is gone
            try:
                result = command.run()
            except HoldfastError as error:
                command.future.set_exception(error)
            except (_Stopped, apsw.Error, OSError):
                self._refuse(command.future)
                raise
            else:
                command.future.set_result(result)

    def _refuse_commands(self) -> None:
        while not self._commands.empty():
            future = self._commands.get().future
            if future.set_running_or_notify_cancel():
                self._refuse(future)

    def _refuse(self, future: Future[Any]) -> None:
        future.set_exception(self._lost or Unreachable("capturing has stopped"))

    def _hand_over_batch(self, parts: Iterable[Part]) -> None:
        captured_at_ns = self._clock_ns()
        for part in parts:
            self._hand_over(_Item(pack_changes(part.changes), part.more or self._copying, captured_at_ns))
        cookies = self._watcher.passed_cookies()
        if cookies:
            self._hand_over(_Item(b"", False, captured_at_ns, cookies))

    def _hand_over(self, item: _Item) -> None:
        assert self._loop is not None
        self._slots.acquire()
        if self._lost is not None:
            raise _Stopped
        if item.packed:
            self._dirty = True
            self._waiting_bytes += len(item.packed)
            if self._oldest is None:
                self._oldest = self._monotonic()
        self._loop.call_soon_threadsafe(self._items.put_nowait, item)

    def _commit(self) -> None:
        """Wait until the log has all, then commit the index there."""
        for _ in range(PARTS_WAITING_MAX):
            self._slots.acquire()
        self._slots.release(PARTS_WAITING_MAX)
        if self._lost is not None:
            raise _Stopped
        self._index.commit(self._chain, self._writer.epoch)
        self._dirty = False
        self._committed_at = self._monotonic()

    def _snapshot(self) -> IndexReader:
        if self._copying or not self._at_intervals:
            self._hand_over_batch(self._watcher.collect(wait_seconds=0))
        self._commit()
        return self._index.reader()

    def _scan(self, progress: Callable[[ScanProgress], None], doubt_since_ns: int | None) -> None:
        for part in self._watcher.scan(progress, doubt_since_ns=doubt_since_ns):
            self._hand_over(_Item(pack_changes(part.changes), part.more or self._copying, self._clock_ns()))
            if self._stopping.is_set() and not part.more:
                raise _Stopped
            if not part.more and self._monotonic() - self._committed_at >= COMMIT_SECONDS:
                self._commit()
        self._commit()

    def _or_lost(self, run: Callable[[], T]) -> T:
        """Parts of a copy that fails may be in the index and not in the log: capturing has to begin anew."""
        try:
            return run()
        except HoldfastError as error:
            self._report_lost(error)
            raise _Stopped from error

    def _open_copy(self, progress: Callable[[ScanProgress], None], doubt_since_ns: int | None) -> None:
        if not self._copying:
            self._watcher.forget()
            self._watcher.start()
            self._copying = True
        self._scan(progress, doubt_since_ns)

    def _close_copy(self) -> CapturedPosition:
        at_ns, cookie = self._clock_ns(), self._watcher.barrier()
        passed: tuple[Cookie, ...] = ()
        while cookie not in passed:
            if self._stopping.is_set():
                raise _Stopped
            for part in self._watcher.collect(wait_seconds=CLOSING_SECONDS):
                self._hand_over(_Item(pack_changes(part.changes), True, at_ns))
            passed = self._watcher.passed_cookies()
        self._watcher.stop()
        self._copying = False
        self._hand_over(_Item(pack_changes(()), False, at_ns))
        self._commit()
        return CapturedPosition(self._chain.position)
