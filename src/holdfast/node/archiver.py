"""The archiver: this machine's part in feeding the vaults of ``[[vaults]]`` from the log.

Each vault has a task, a thread and a reader of the log of its own: one that is slow, full or away holds up neither
mail nor the other vaults. Who feeds is decided by roles (:func:`feeds_here`); where to go on is asked of the vault
itself. Two machines feeding for a moment do no harm: records that are there twice count once.

A vault is a reader of the log like a standby: it is waited for when the log is trimmed, up to the log's limit. Past
that it begins anew with a snapshot, and what lies between is named: in the history, and in ``status``.
"""

from __future__ import annotations

import asyncio
import logging
import os
import queue
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from holdfast.changes.frame import Chain, chain_start, frame_digest, read_header
from holdfast.changes.names import Sequence
from holdfast.errors import ConfigurationError, HoldfastError, Unreachable
from holdfast.log.port import Log, Missing, Trimmed
from holdfast.node.beats import VaultBeat
from holdfast.node.primary import Primary
from holdfast.node.roles import Role
from holdfast.node.standby import Standby
from holdfast.node.world import World
from holdfast.trees.index import IndexReader
from holdfast.vault.backup import BackupResult, Clocks
from holdfast.vault.feed import Feed, snapshot_due
from holdfast.vault.keys import WriterKey
from holdfast.vault.location import open_backend
from holdfast.vault.repository import open_vault
from holdfast.vault.settings import VaultSettings

if TYPE_CHECKING:
    from holdfast.node.node import Node

TICK_SECONDS: Final = 0.5
"""Records are taken in batches of so long: it costs one turn of a thread."""
LOG_LOOK_SECONDS: Final = 5.0
"""How often the log's end is asked for, to know that the vault has all of it."""
RETRY_SECONDS: Final = (2.0, 60.0)
STANDBY_SILENT_SECONDS_MAX: Final = 60.0
"""A standby not heard for so long does not feed: the primary does."""
WAITING_BYTES_MAX: Final = 32 * 1024 * 1024
"""Records read from the log and not yet taken; then the reading waits."""
RECORDS_SECONDS_MAX: Final = 60.0
INDEX_SECONDS_MAX: Final = 120.0
PROBLEM_CHARACTERS_MAX: Final = 300
"""It travels in beats."""
FEEDING_NICE: Final = 10
"""The mail software and the copy go first."""
_LOG: Final = logging.getLogger(__name__)
T = TypeVar("T")


def feeds_here(node: Node, vault: VaultSettings, up_seconds: float) -> bool:
    """Whether this machine feeds *vault* now: of the standbys the first by name; without one, the primary.

    *up_seconds*: since when this machine could have heard of a standby.
    """
    if vault.fed_by == "primary":
        return node.primary is not None
    if node.primary is None and node.standby is None:
        return False
    me, standbys = node.world.settings.machine, []
    for machine in node.world.settings.mail_machines:
        beat, silent = node.beats.last(machine.name), node.beats.silent_seconds(machine.name)
        if machine.name == me:
            continue
        if beat is None or silent is None:
            if up_seconds < STANDBY_SILENT_SECONDS_MAX / 4 and node.primary is not None:
                return False  # it may be there
        elif beat.role in (Role.STANDBY, Role.YIELDED) and silent < STANDBY_SILENT_SECONDS_MAX:
            standbys.append(machine.name)
    if node.standby is not None:
        return all(me < name for name in standbys)
    return not standbys


class _Thread:
    """A thread of its own: what takes long there, or never ends, holds up nobody, not even the agent's end."""

    def __init__(self, name: str) -> None:
        self._jobs: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = queue.SimpleQueue()
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def _run(self) -> None:
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), FEEDING_NICE)
        while (job := self._jobs.get()) is not None:
            run, future = job
            if not future.set_running_or_notify_cancel():
                continue
            try:
                result = run()
            except BaseException as error:  # noqa: BLE001  # whoever waits for the result gets it
                future.set_exception(error)
            else:
                future.set_result(result)

    async def do(self, run: Callable[[], T]) -> T:
        future: Future[T] = Future()
        self._jobs.put((run, future))
        return await asyncio.wrap_future(future)

    def end(self, run: Callable[[], object]) -> None:
        """Do *run* as the last thing, whenever it comes to it."""
        self._jobs.put((run, Future()))
        self._jobs.put(None)


class _Records:
    """Records on their way from the event loop to the thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._payloads: deque[bytes] = deque()
        self._bytes = 0
        self._news = threading.Condition()
        self._ended = False
        self._room = asyncio.Event()

    async def put(self, payload: bytes) -> None:
        """Waits while too much waits."""
        with self._news:
            self._payloads.append(payload)
            self._bytes += len(payload)
            full = self._bytes > WAITING_BYTES_MAX
            self._news.notify()
        if full:
            self._room.clear()
            await self._room.wait()

    def end(self) -> None:
        with self._news:
            self._ended = True
            self._news.notify()

    def put_back(self, payloads: list[bytes]) -> None:
        """What was taken too much."""
        with self._news:
            self._payloads.extendleft(reversed(payloads))
            self._bytes += sum(map(len, payloads))

    def take(self, seconds: float) -> list[bytes]:
        """All there are, after at most *seconds* of waiting for the first. Raises Unreachable: no more will come."""
        with self._news:
            if not self._payloads and seconds:
                self._news.wait_for(lambda: self._payloads or self._ended, seconds)
            if self._ended:
                raise Unreachable("the log is not read any more", retry=True)
            payloads = list(self._payloads)
            self._payloads.clear()
            self._bytes = 0
        with suppress(RuntimeError):  # the agent has ended
            self._loop.call_soon_threadsafe(self._room.set)
        return payloads


class Archiver:
    """All vaults, from :meth:`start` to :meth:`stop`."""

    def __init__(self, world: World, node: Node) -> None:
        self.feeders = [VaultFeeder(world, node, vault) for vault in world.settings.vaults]
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        self._tasks = [asyncio.create_task(feeder.run(), name=f"vault {feeder.name}") for feeder in self.feeders]

    async def stop(self) -> None:
        """What is under way in a thread is not waited for: the next feed goes on from what the vault has."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def beats(self) -> list[VaultBeat]:
        """What this machine knows of the vaults it feeds, or cannot feed."""
        return [feeder.beat for feeder in self.feeders if feeder.beat.feeding]


class VaultFeeder:
    """One vault's task. ``beat`` is what it says of itself."""

    def __init__(self, world: World, node: Node, settings: VaultSettings) -> None:
        self.name = settings.name
        self.beat = VaultBeat(settings.name)
        self._world = world
        self._node = node
        self._settings = settings
        self._began = world.clocks.monotonic()
        self._part: tuple[Standby | Primary | None, Log | None] = (None, None)
        self._retry_seconds = RETRY_SECONDS[0]
        self._log_looked_at = -LOG_LOOK_SECONDS
        self._log_last = Sequence(0)

    async def run(self) -> None:
        while True:
            if not feeds_here(self._node, self._settings, self._world.clocks.monotonic() - self._began):
                self.beat.feeding, self.beat.problem = False, ""
                await asyncio.sleep(TICK_SECONDS)
                continue
            self.beat.feeding = True
            try:
                await self._session()
                continue
            except Trimmed:
                continue  # the next session begins anew, and says what is missing
            except HoldfastError as error:
                if not self._same_part():
                    continue  # what ended is this machine's part in it
                self._trouble(error.message)
            except Exception as error:  # noqa: BLE001  # a fault of our own in a backup must not end the agent
                _LOG.exception("vault %s: a fault of our own", self.name)
                self._trouble(f"the agent met a fault of its own: {type(error).__name__}: {error}")
            await asyncio.sleep(self._retry_seconds)
            self._retry_seconds = min(self._retry_seconds * 2, RETRY_SECONDS[1])

    def _same_part(self) -> bool:
        role, log = self._part
        return role is None or log is None or self.still(role, log)

    def _trouble(self, message: str) -> None:
        message = message[:PROBLEM_CHARACTERS_MAX]
        if message != self.beat.problem:
            self._world.history.record(f"vault {self.name} is not fed", message)
        self.beat.problem = message

    def _well(self) -> None:
        self._retry_seconds = RETRY_SECONDS[0]
        if self.beat.problem:
            self._world.history.record(f"vault {self.name} is fed again", f"it was not: {self.beat.problem}")
            self.beat.problem = ""

    # -- one session ---------------------------------------------------------------------------------------------------

    async def _session(self) -> None:
        """Feed for as long as this machine has the role and the log it has now."""
        role, log = self._node.standby or self._node.primary, self._node.log
        self._part = role, log
        if role is None or log is None:
            raise Unreachable("the log is not open here", retry=True)
        thread = _Thread(f"vault-{self.name}")
        opened: list[Feed] = []
        session = _Session(self, role, log, thread)
        try:
            opened.append(await thread.do(lambda: self._open(log)))
            await session.run(opened[0])
        finally:
            session.end()
            thread.end(lambda: _close(opened))

    def _open(self, log: Log) -> Feed:
        """In the thread. Raises HoldfastError."""
        settings, world = self._settings, self._world
        try:
            key = WriterKey.from_bytes(Path(settings.key).read_bytes())
        except OSError as error:
            hint = "`holdfast vault init` made it: bring it to every machine that may feed the vault, mode 0600."
            raise ConfigurationError(
                f"{settings.key} cannot be read: {os.strerror(error.errno or 0)}", hint=hint
            ) from None
        folder = world.settings.state / "vaults"
        folder.mkdir(mode=0o700, exist_ok=True)
        backend = open_backend(settings.location, bytes_per_second=settings.bytes_per_second)
        vault = open_vault(backend, writer=key, cache=folder / f"{settings.name}.sqlite")
        clocks = Clocks(self.primary_clock_ns, world.clocks.monotonic)
        return Feed(vault, world.segment_key(), log.incarnation, world.settings.machine, clocks)

    def primary_clock_ns(self) -> int:
        """The records carry the primary's times."""
        name = self._node.primary_name
        ahead = self._node.beats.clock_ahead_seconds(name) if name and name != self._world.settings.machine else 0.0
        return self._world.clocks.wall_ns() - int(ahead * 1e9)

    def still(self, role: Standby | Primary, log: Log) -> bool:
        node = self._node
        same = role is (node.standby or node.primary) and log is node.log
        return same and feeds_here(node, self._settings, self._world.clocks.monotonic() - self._began)

    def scanning(self) -> bool:
        """Whether the primary compares its trees with the log: until then the log may not hold all of them."""
        node = self._node
        if node.primary is not None:
            return not node.primary.scan_done
        beat = node.beats.last(node.primary_name) if node.primary_name else None
        return beat is not None and bool(beat.progress)

    async def look_at_log(self, log: Log) -> None:
        """Learn the log's end, now and then."""
        now = self._world.clocks.monotonic()
        if now - self._log_looked_at >= LOG_LOOK_SECONDS:
            self._log_looked_at = now
            try:
                self._log_last = (await log.state()).last
            except Unreachable:
                return
            self._mark_safe(now_ns=self.primary_clock_ns())

    def _mark_safe(self, now_ns: int) -> None:
        if self.beat.archived >= self._log_last:
            self.beat.safe_at = now_ns / 1e9

    def tell(self, feed: Feed) -> None:
        """Bring ``beat`` up to *feed*."""
        place = feed.place
        self.beat.incarnation = feed.incarnation
        self.beat.archived = feed.archived
        self.beat.safe_at = max(self.beat.safe_at, place.archived_at_ns / 1e9)
        self.beat.snapshot_at = place.snapshot_at_ns / 1e9
        self._well()

    def told(self, result: BackupResult, why: str) -> None:
        """A snapshot was made."""
        snapshot = result.snapshot
        self._world.history.record(
            f"vault {self.name}: snapshot {result.name.short}",
            why,
            record=snapshot.sequence,
            files=snapshot.files,
            files_read=result.files_read,
            written_bytes=result.written_bytes,
            gaps=snapshot.gaps_total,
        )
        self.beat.gaps = snapshot.gaps_total

    def gap(self, first: int, last: int, since_ns: int) -> None:
        since = f" (from {since_ns / 1e9:.0f} on)" if since_ns else ""
        why = f"the log's limit was reached before the vault had records {first} to {last}{since}"
        self._world.history.record(f"vault {self.name} has a gap", why, first=first, last=last)
        self.beat.gap = f"records {first} to {last} were trimmed from the log before it had them"

    def due(self, feed: Feed) -> bool:
        return feed.changed and snapshot_due(self._settings, feed.place.snapshot_at_ns, self.primary_clock_ns())

    @property
    def settings(self) -> VaultSettings:
        return self._settings


def _close(feeds: list[Feed]) -> None:
    for feed in feeds:
        feed.close()


class _Session:
    """From an open feed to the end of the role, of the log, or of patience with the vault."""

    def __init__(self, feeder: VaultFeeder, role: Standby | Primary, log: Log, thread: _Thread) -> None:
        self._feeder = feeder
        self._role = role
        self._log = log
        self._thread = thread
        self._loop = asyncio.get_running_loop()
        self._records = _Records(self._loop)
        self._reading: asyncio.Task[None] | None = None

    async def run(self, feed: Feed) -> None:
        state = await self._log.state()
        feeder, after = self._feeder, feed.follows_from(state.first)
        if feed.place.archived is not None:
            feeder.tell(feed)
        if after is None:
            if feed.place.archived is not None:
                feeder.gap(feed.archived + 1, state.first - 1, feed.place.archived_at_ns)
            if not await self._scanned(feed):
                return
            why = "records were missing" if feed.place.archived is not None else "the vault had none of this log"
            feeder.told(
                await self._thread.do(
                    lambda: feed.first_snapshot(self._role.trees, partial(self._read_index, feed), self._rest)
                ),
                why,
            )
        else:
            feed.begin(await chain_at(self._log, Sequence(after)))
        feeder.tell(feed)
        self._reading = asyncio.create_task(self._read(Sequence(feed.reached)))
        while feeder.still(self._role, self._log):
            await asyncio.sleep(min(TICK_SECONDS, feeder.settings.archive_seconds / 2))
            if self._reading.done():
                self._reading.result()
            result = await self._thread.do(lambda: self._work(feed))
            if result is not None:
                feeder.told(result, "it was time")
            feeder.tell(feed)
            await feeder.look_at_log(self._log)
        await self._thread.do(feed.flush)
        feeder.tell(feed)

    async def _scanned(self, feed: Feed) -> bool:
        """Wait until the log holds all of the trees; False: this session is over before."""
        while self._feeder.scanning():
            if not self._feeder.still(self._role, self._log):
                return False
            await asyncio.sleep(TICK_SECONDS)
        return True

    async def _read(self, after: Sequence) -> None:
        async for record in self._log.follow(after):
            await self._records.put(record.payload)

    def end(self) -> None:
        self._records.end()
        if self._reading is not None:
            self._reading.cancel()
            self._reading.add_done_callback(lambda task: None if task.cancelled() else task.exception())

    # -- in the thread -------------------------------------------------------------------------------------------------

    def _work(self, feed: Feed) -> BackupResult | None:
        """Take what has come; put what has waited long enough; make a snapshot when it is time."""
        self._take(feed, 0.0)
        if feed.waiting_seconds >= self._feeder.settings.archive_seconds:
            feed.flush()
        if not self._feeder.due(feed):
            return None
        return feed.snapshot(
            self._role.trees, partial(self._read_index, feed), lambda sequence: self._reach(feed, sequence), self._rest
        )

    def _take(self, feed: Feed, seconds: float, through: int | None = None) -> bool:
        payloads = self._records.take(seconds)
        for number, payload in enumerate(payloads):
            if through is not None and feed.reached >= through:
                self._records.put_back(payloads[number:])
                break
            feed.take(payload)
        return bool(payloads)

    def _reach(self, feed: Feed, sequence: int) -> None:
        while feed.reached < sequence:
            if not self._take(feed, RECORDS_SECONDS_MAX, sequence):
                raise Unreachable(f"record {sequence} of the log did not come", retry=True)

    def _read_index(self, feed: Feed) -> IndexReader:
        """At a position not before what *feed* has taken: the log may be read sooner here than it is applied."""

        async def settled() -> IndexReader:
            if isinstance(self._role, Standby):
                applied = Sequence(feed.reached)
                await self._role.follow.reached(applied, timeout_seconds=INDEX_SECONDS_MAX / 2)
                return await self._role.follow.snapshot()
            assert self._role.capture is not None
            await self._role.barrier(INDEX_SECONDS_MAX / 2)
            return await self._role.capture.snapshot()

        return self._wait(settled())

    @contextmanager
    def _rest(self) -> Iterator[None]:
        """A standby's copy stands still inside; a primary's trees do not."""
        if not isinstance(self._role, Standby):
            yield
            return
        self._wait(self._role.follow.hold())
        try:
            yield
        finally:
            self._wait(self._role.follow.release())

    def _wait(self, coming_later: Coroutine[Any, Any, T]) -> T:
        coming = asyncio.run_coroutine_threadsafe(coming_later, self._loop)
        try:
            return coming.result(INDEX_SECONDS_MAX)
        except TimeoutError:
            coming.cancel()
            raise Unreachable("this machine's copy comes to no rest for a snapshot", retry=True) from None


async def chain_at(log: Log, sequence: Sequence) -> Chain:
    """The place in *log* after the record *sequence*. Raises Trimmed, LogUnavailable, and as ``Log.read``."""
    if sequence == 0:
        return chain_start(log.incarnation)
    try:
        return Chain(log.incarnation, sequence, frame_digest((await log.read(sequence)).payload))
    except Trimmed:
        try:
            following = await log.read(Sequence(sequence + 1))
        except Missing:
            raise Unreachable(f"the log has no record {sequence + 1} yet to go on with", retry=True) from None
        return Chain(log.incarnation, sequence, read_header(following.payload)[0].previous)
