"""The pump on a standby: log -> frames -> applier.

The event loop reads records, a thread opens, checks and applies them; at most ``WAITING_BYTES_MAX`` wait between them.
What is applied is brought to disk every ``durable_seconds``; only that position is reported as durable, and the log
keeps everything after it for us.

With ``whole_only`` (the policy ``interval``) a copy is applied when all of it is in the log (``whole``).

A record that is damaged, missing or does not fit ends the pump with the reason: the standby must be seeded again, which
its node does by itself. A full disk does not end it: the frame is applied again when there is room.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final, NamedTuple, TypeVar

import apsw

from holdfast.apply.applier import Applier
from holdfast.apply.recovery import Settlement
from holdfast.changes.frame import Chain, Frame, SegmentKey, follow_chain, open_frame, read_header
from holdfast.changes.names import AppliedPosition, DurablePosition, Position, Sequence
from holdfast.errors import HoldfastError, NoSpace, Unreachable
from holdfast.log.port import Log, Record, Trimmed
from holdfast.node.whole import WholeCopies
from holdfast.trees.index import Index, IndexReader

WAITING_BYTES_MAX: Final = 64 * 1024 * 1024
FLUSHING_SECONDS: Final = 0.1
"""While the disk is written to, it is looked this often whether a batch has ended since that was done."""
FLUSH_SHORT_SECONDS: Final = 0.02
FLUSH_ROUNDS_MAX: Final = 4
"""Applying stands still while the last bit is written out: what came during the writing before. Measured under full
load: after one round of 300 ms that took 60 to 90 ms, and each second a few batches were late by that much."""
NO_SPACE_RETRY_SECONDS: Final = 1.0
REACH_SECONDS_MAX: Final = 120.0
"""The records up to a barrier that has passed are in the log: they come at once, or the log is away."""
T = TypeVar("T")
LAGS_KEPT: Final = 8192
"""Lags of so many last frames make the percentiles: about a minute at full load."""
LAGS_SECONDS: Final = 300.0
"""And of no longer ago: on a quiet site one bad moment would be the 99th percentile for hours."""


class _Command(NamedTuple):
    """Something to do between two frames, at a whole instant, by the thread that owns the applier."""

    run: Callable[[], Any]
    future: Future[Any]


class LagStatus(NamedTuple):
    """Milliseconds from the moment the primary read a batch to the moment it was applied here, over the last frames."""

    p50_ms: float
    p99_ms: float
    max_ms: float
    frames: int


class Follow:
    """Runs from :meth:`start` to :meth:`stop`, or until *on_lost* is called with why it may not go on."""

    def __init__(
        self,
        *,
        applier: Applier,
        index: Index,
        log: Log,
        key: SegmentKey,
        chain: Chain,
        durable_seconds: float,
        clock_ns: Callable[[], int],
        monotonic: Callable[[], float],
        on_promotion: Callable[[Frame], None],
        settle_at: Sequence,
        on_settled: Callable[[Settlement], None],
        on_lost: Callable[[HoldfastError], None],
        whole_only: bool = False,
    ) -> None:
        self._whole = (
            WholeCopies(log, chain.sequence, on_seen=self._seen, on_promotion=self._seen_promotion)
            if whole_only
            else None
        )
        self._looked = asyncio.Event()
        self.copied_at_ns = 0
        """With *whole_only*: the instant of the copy applied last, by the primary's clock; 0: not known."""
        self._applier = applier
        self._index = index
        self._log = log
        self._key = key
        self._chain = chain
        self._durable_seconds = durable_seconds
        self._clock_ns = clock_ns
        self._monotonic = monotonic
        self._on_promotion = on_promotion
        self._settle_at: Sequence | None = settle_at
        self._on_settled = on_settled
        self._on_lost = on_lost
        self._records: queue.SimpleQueue[Record | None] = queue.SimpleQueue()
        self._commands: deque[_Command] = deque()
        self._limit: Sequence | None = None
        """Applying rests here: somebody compares. None: it goes on as records come."""
        self._woken = threading.Event()
        self._room = asyncio.Event()
        self._waiting_bytes = 0
        self._lock = threading.Lock()
        self._waiters: list[tuple[Sequence, asyncio.Future[None]]] = []
        self._lags: deque[tuple[float, float]] = deque(maxlen=LAGS_KEPT)
        """When a frame was applied, by the monotonic clock, and its lag in milliseconds."""
        self._durable = DurablePosition(chain.position)
        self._lost: HoldfastError | None = None
        self.blocked_because = ""
        """Why applying waits (a full disk); empty while it does not."""
        self._on_time_from_ns = 0
        """What was captured before this moment, by the primary's clock, had to wait for room."""
        self._stopping = threading.Event()
        self._reader: asyncio.Task[None] | None = None
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._room.set()
        self._reader = self._loop.create_task(self._read(), name="follow-read")
        self._thread = threading.Thread(target=self._run, name="follow", daemon=True)
        self._thread.start()

    async def stop(self) -> Chain:
        """End between two frames. The place in the log reached; closing the applier makes it durable."""
        self._stopping.set()
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)
        self._wake()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)
        for _, waiter in self._waiters:
            if not waiter.done():
                waiter.set_exception(self._lost or Unreachable("following has stopped"))
        self._waiters.clear()
        return self._chain

    async def reached(self, sequence: Sequence, *, timeout_seconds: float) -> None:
        """Returns once everything up to *sequence* is applied. Raises Unreachable in time, or what ended the pump."""
        if self._lost is not None:
            raise self._lost
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        with self._lock:
            if self._chain.sequence >= sequence:
                return
            self._waiters.append((sequence, waiter))
        try:
            await asyncio.wait_for(waiter, timeout_seconds)
        except TimeoutError:
            raise Unreachable(
                f"record {sequence} was not applied within {timeout_seconds:g} s (at {self._chain.sequence})",
                hint=self.blocked_because or "Is the log reachable? See `holdfast status`.",
                retry=True,
            ) from None

    async def drained(self, last: Sequence, *, timeout_seconds: float) -> Sequence:
        """Returns once what the log has up to *last* is applied, as far as it may be: how far that is.

        Raises Unreachable in time, or what ended the pump.
        """
        whole = self._whole
        if whole is None:
            await self.reached(last, timeout_seconds=timeout_seconds)
            return last
        try:
            async with asyncio.timeout(timeout_seconds):
                while whole.seen < last:
                    if self._lost is not None:
                        raise self._lost
                    self._looked.clear()
                    await self._looked.wait()
        except TimeoutError:
            raise Unreachable(
                f"the log was not read to record {last} within {timeout_seconds:g} s (at {whole.seen})",
                hint="Is it reachable? See `holdfast status`.",
                retry=True,
            ) from None
        await self.reached(whole.whole, timeout_seconds=timeout_seconds)
        return whole.whole

    @property
    def held_back(self) -> int:
        """With *whole_only*: how many records of a copy that is not whole are in the log."""
        return 0 if self._whole is None else self._whole.seen - self._whole.whole

    async def settled(self, run: Callable[[], T]) -> T:
        """Do *run* in the applying thread at a whole, durable instant; applying waits meanwhile. Raises Unreachable."""
        if self._lost is not None or self._stopping.is_set():
            raise self._lost or Unreachable("following has stopped")
        future: Future[T] = Future()
        self._commands.append(_Command(run, future))
        self._wake()
        return await asyncio.wrap_future(future)

    def _wake(self) -> None:
        self._woken.set()
        self._records.put(None)

    async def hold(self) -> None:
        """Rest at the next whole instant, until :meth:`release`. Raises Unreachable when following has stopped."""

        def rest() -> None:
            self._limit = self._chain.sequence

        await self.settled(rest)

    async def reach(self, position: Position) -> IndexReader:
        """Apply up to exactly *position* and give a reader of the index there; then rest there.

        Raises HoldfastError when it is past already, Unreachable when the records do not come.
        """
        if position.incarnation != self._chain.incarnation or self._chain.sequence > position.sequence:
            raise HoldfastError(
                f"this copy stands at {self._chain.position}, past {position}", hint="Try again.", retry=True
            )
        self._limit = position.sequence
        self._wake()
        await self.reached(position.sequence, timeout_seconds=REACH_SECONDS_MAX)
        return await self.settled(self._index.reader)

    async def snapshot(self) -> IndexReader:
        """A reader of the index at a whole instant. Raises Unreachable when following has stopped."""
        return await self.settled(self._index.reader)

    @contextlib.asynccontextmanager
    async def paused(self) -> AsyncIterator[Index]:
        """Inside, applying rests and the index is the caller's."""
        await self.hold()
        try:
            yield self._index
        finally:
            await self.release()

    async def release(self) -> None:
        """Go on."""
        self._limit = None
        self._wake()

    @property
    def chain(self) -> Chain:
        return self._chain

    @property
    def applied(self) -> AppliedPosition:
        return AppliedPosition(self._chain.position)

    @property
    def durable(self) -> DurablePosition:
        return self._durable

    def lag(self) -> LagStatus:
        since = self._monotonic() - LAGS_SECONDS
        lags = sorted(lag for at, lag in list(self._lags) if at >= since)
        if not lags:
            return LagStatus(0.0, 0.0, 0.0, 0)
        return LagStatus(lags[len(lags) // 2], lags[(len(lags) * 99) // 100], lags[-1], len(lags))

    def forget_lags(self) -> None:
        """Start the percentiles anew: a measurement begins."""
        self._lags.clear()
        self._on_time_from_ns = 0  # the clock it was read from may have jumped

    # -- reading (event loop) ------------------------------------------------------------------------------------------

    async def _read(self) -> None:
        try:
            if self._whole is not None and self._chain.sequence:
                await self._look_at_copy()
            records = self._log.follow(self._chain.sequence) if self._whole is None else self._whole.records()
            async for record in records:
                with self._lock:
                    self._waiting_bytes += len(record.payload)
                self._records.put(record)
                if self._waiting_bytes > WAITING_BYTES_MAX:
                    self._room.clear()
                    await self._room.wait()
        except HoldfastError as error:
            self._end(error)

    async def _look_at_copy(self) -> None:
        """Which copy this is, as the log says; it may be trimmed there."""
        with contextlib.suppress(Trimmed, Unreachable):
            header, _ = read_header((await self._log.read(self._chain.sequence)).payload)
            if not header.more:
                self.copied_at_ns = header.captured_at_ns

    def _seen(self) -> None:
        self._looked.set()

    def _seen_promotion(self, record: Record) -> None:
        self._on_promotion(open_frame(record.payload, self._key))

    def _end(self, error: HoldfastError) -> None:
        if self._lost is None:
            self._lost = error
            self._looked.set()
            self._stopping.set()
            for _, waiter in self._waiters:
                if not waiter.done():
                    waiter.set_exception(error)
            self._waiters.clear()
            self._on_lost(error)

    # -- applying (thread) ---------------------------------------------------------------------------------------------

    def _run(self) -> None:
        assert self._loop is not None
        durable_at = self._monotonic()
        flusher = ThreadPoolExecutor(1, thread_name_prefix="flush")
        flushing: Future[float] | None = None
        rounds = 0
        try:
            while not self._stopping.is_set():
                wait = max(
                    durable_at + self._durable_seconds - self._monotonic(), FLUSHING_SECONDS if flushing else 0.0
                )
                record = self._next(wait)
                if record is not None:
                    self._take(record)
                if self._commands and self._applier.whole:
                    self._make_durable()
                    self._run_commands()
                if self._settle_at is not None and self._chain.sequence >= self._settle_at and self._applier.whole:
                    self._settle()
                if self._limit is None and self._monotonic() - durable_at >= self._durable_seconds:
                    if self._chain.position == self._durable:
                        durable_at, rounds = self._monotonic(), 0
                        if flushing is not None and flushing.done():  # a command was faster
                            flushing.result()
                            flushing = None
                    elif flushing is None:  # most of the disk's work is done beside the applying
                        flushing, rounds = self._flush_beside(flusher), rounds + 1
                    elif flushing.done() and self._applier.whole:
                        seconds, flushing = flushing.result(), None
                        if seconds <= FLUSH_SHORT_SECONDS or rounds >= FLUSH_ROUNDS_MAX:
                            self._make_durable()
                            durable_at, rounds = self._monotonic(), 0
        except HoldfastError as error:
            self._loop.call_soon_threadsafe(self._end, error)
        except apsw.Error as error:
            what = NoSpace(f"the tree index cannot be written: {error}", hint="Free space on that disk.", retry=True)
            self._loop.call_soon_threadsafe(self._end, what)
        except OSError as error:
            wrapped = HoldfastError(f"applying failed: {error}", hint="The standby is compared and mended by a seed.")
            self._loop.call_soon_threadsafe(self._end, wrapped)
        finally:
            self._stopping.set()
            flusher.shutdown()
            while self._commands:
                future = self._commands.popleft().future
                if future.set_running_or_notify_cancel():
                    future.set_exception(self._lost or Unreachable("following has stopped"))

    def _flush_beside(self, flusher: ThreadPoolExecutor) -> Future[float]:
        """Write out what was applied so far; the result: how long that took. Its end wakes the applying thread."""

        def flush() -> float:
            began = self._monotonic()
            self._applier.flush()
            return self._monotonic() - began

        flushing = flusher.submit(flush)
        flushing.add_done_callback(lambda done: self._records.put(None))
        return flushing

    def _settle(self) -> None:
        """The log has been applied as far as it reached when the copy was recovered: what is not right now is wrong."""
        assert self._loop is not None
        self._settle_at = None
        settlement = self._applier.settle()
        if settlement.differing or settlement.kept:
            self._loop.call_soon_threadsafe(self._on_settled, settlement)

    def _next(self, wait_seconds: float) -> Record | None:
        """The next record to apply; None when there is none in time, something else is to be done, or it rests."""
        limit = self._limit
        if limit is not None and self._chain.sequence >= limit:
            self._woken.wait(wait_seconds)
            self._woken.clear()
            return None
        try:
            return self._records.get(timeout=wait_seconds)
        except queue.Empty:
            return None

    def _run_commands(self) -> None:
        while self._commands:
            command = self._commands.popleft()
            if not command.future.set_running_or_notify_cancel():
                continue  # who asked is gone
            try:
                result = command.run()
            except HoldfastError as error:
                command.future.set_exception(error)
            except (apsw.Error, OSError) as error:
                command.future.set_exception(HoldfastError(f"the copy could not be read or written: {error}"))
                raise
            else:
                command.future.set_result(result)

    def _take(self, record: Record) -> None:
        frame = open_frame(record.payload, self._key)
        chain = follow_chain(self._chain, record.payload, frame.header)
        while True:
            try:
                self._applier.apply(frame, chain)
                break
            except NoSpace as error:
                self.blocked_because = error.message
                if self._stopping.wait(NO_SPACE_RETRY_SECONDS):
                    return
        if self.blocked_because:
            self.blocked_because, self._on_time_from_ns = "", self._clock_ns()
        # What had waited before we began, or for a full disk, is no lag, but catching up.
        if self._whole is not None:
            self.copied_at_ns = frame.header.captured_at_ns if not frame.header.more else self.copied_at_ns
        elif self._settle_at is None and frame.header.captured_at_ns >= self._on_time_from_ns:
            lag_ms = max(self._clock_ns() - frame.header.captured_at_ns, 0) / 1e6
            self._lags.append((self._monotonic(), lag_ms))
        with self._lock:
            self._waiting_bytes -= len(record.payload)
            self._chain = chain
            due = bool(self._waiters)
        if due or not self._room.is_set() or frame.promotion is not None:
            assert self._loop is not None
            self._loop.call_soon_threadsafe(self._applied, frame)

    def _applied(self, frame: Frame) -> None:
        if self._waiting_bytes <= WAITING_BYTES_MAX:
            self._room.set()
        with self._lock:
            at = self._chain.sequence
            done = [waiter for sequence, waiter in self._waiters if sequence <= at]
            self._waiters = [pair for pair in self._waiters if pair[0] > at]
        for waiter in done:
            if not waiter.done():
                waiter.set_result(None)
        if frame.promotion is not None and self._whole is None:
            self._on_promotion(frame)

    def _make_durable(self) -> None:
        try:
            self._durable = self._applier.make_durable()
        except NoSpace as error:
            self.blocked_because = error.message
