"""The answering side of the exchange: listings and contents of the trees for a joiner, and audits on demand.

A listing is a snapshot of the tree index at a place in the log; at most ``LISTINGS_MAX`` are held, and one nobody asked
about for ``LISTING_IDLE_SECONDS`` is given up (an open snapshot makes SQLite keep the pages changed since). Contents
need no listing: a file is found by its token in the index as it is now, read through its handle, and where handles are
not permitted by its present path. "Gone" is said only of a file that is no more, because whoever hears it counts on the
log to bring the removal.

Names are those of the listing; contents may be newer. The log from the listing's position on makes them equal.

Files are read in threads, at most ``READS_MAX`` at once; replies are held back to keep to the rate.
"""

from __future__ import annotations

import asyncio
import errno
import os
import secrets
import stat
import threading
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple, TypeVar

from holdfast.changes.digest import DIGEST_BYTES
from holdfast.changes.exchange import (
    CONTENT_BYTES_MAX,
    LOOK_PATHS_MAX,
    PARTS_MAX,
    Asked,
    AuditFinding,
    AuditNews,
    Busy,
    CloseListing,
    Contents,
    Digests,
    Done,
    Entry,
    ExchangeSeal,
    Expired,
    Failed,
    Listing,
    Look,
    Looked,
    NextPage,
    OpenListing,
    Page,
    PartRead,
    PartState,
    PartWanted,
    PollAudit,
    ReadContents,
    ReadDigests,
    Reply,
    StartAudit,
    StopAudit,
)
from holdfast.changes.frame import SegmentKey
from holdfast.changes.names import MachineName
from holdfast.errors import HoldfastError
from holdfast.trees.audit import Audit
from holdfast.trees.index import IndexReader, Node, NodeKind
from holdfast.trees.listing import entry_of, listing_entries
from holdfast.trees.look import open_directory
from holdfast.trees.rate import TokenBucket
from holdfast.trees.spec import Tree
from holdfast.trees.stat import Owners, has_handles, open_handle

LISTINGS_MAX: Final = 4
"""A standby that joins, one that verifies, and two that died on the way."""
LISTING_IDLE_SECONDS: Final = 120.0
PAGE_ENTRIES_MAX: Final = 1000
ENTRY_BYTES: Final = 96
"""What an entry weighs besides its path, content and attributes, about."""
NOW_SECONDS_MAX: Final = 2.0
"""Age of the index snapshot in which contents are looked up."""
READS_MAX: Final = 2
"""Threads reading: one disk, and the mail server wants it too."""
FINDINGS_MAX: Final = 10_000
"""Findings of an audit that are kept; above that the tree needs a seed, not a list."""
FINDINGS_PER_REPLY_MAX: Final = 1000
BUSY_SECONDS: Final = 0.2
MOVED_TRIES_MAX: Final = 3
_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
T = TypeVar("T")


class _Later(Exception):
    """The file is alive, and moved while it was looked for: ask again."""


class _NotHeld(Exception):
    """The listing or audit asked about is not held."""


class _Found(NamedTuple):
    """A file asked for, and where it stands now."""

    node: Node
    tree: str
    path: bytes


@dataclass
class _Held:
    """A listing held for a joiner, and where its last page ended."""

    reader: IndexReader
    used_at: float
    lock: threading.Lock = field(default_factory=threading.Lock)
    at: tuple[str, bytes | None] | None = None
    entries: Iterator[Entry] | None = None
    closed: bool = False

    def close(self) -> None:
        with self.lock:
            self.closed = True
            self.reader.close()


@dataclass
class _Running:
    """An audit somebody started."""

    token: str
    audit: Audit
    used_at: float
    findings: list[AuditFinding] = field(default_factory=list)
    found: int = 0
    done: bool = False
    failure: str = ""
    task: asyncio.Task[None] | None = None


class Source:
    """Answers as the machine *machine*. *snapshot*: a reader of the index at a place in the log that holds everything
    handed to the log before; *barrier* returns when everything done in the trees is in the log.

    *rate*, *audit_rate*: limits of what is sent, and of what an audit reads. *pause* sleeps on the loop,
    *pause_thread* in a thread.
    """

    def __init__(
        self,
        *,
        machine: MachineName,
        key: SegmentKey,
        trees: tuple[Tree, ...],
        owners: Owners,
        snapshot: Callable[[], Awaitable[IndexReader]],
        barrier: Callable[[], Awaitable[object]],
        rate: TokenBucket,
        audit_rate: TokenBucket,
        clock: Callable[[], float],
        pause: Callable[[float], Awaitable[None]],
        pause_thread: Callable[[float], None],
    ) -> None:
        self._seal = ExchangeSeal(key, machine)
        self._trees = trees
        self._roots = {str(tree.name): os.fsencode(tree.root) for tree in trees}
        self._owners = owners
        self._snapshot = snapshot
        self._barrier = barrier
        self._rate = rate
        self._audit_rate = audit_rate
        self._clock = clock
        self._pause = pause
        self._pause_thread = pause_thread
        self._listings: dict[str, _Held] = {}
        self._reads = asyncio.Semaphore(READS_MAX)
        self._now: IndexReader | None = None
        self._now_since = 0.0
        self._listed_at = 0.0
        """When the newest listing had been taken: a token that a later snapshot does not know is gone."""
        self._now_lock = asyncio.Lock()
        self._running: _Running | None = None

    async def handle(self, subject: str, payload: bytes) -> bytes:
        """The sealed reply to a sealed request. Raises ExchangeDamaged for what is no sound request to us."""
        asked = self._seal.open_request(payload)
        try:
            reply = await self._answer(asked)
        except _NotHeld:
            reply = Expired()
        except _Later:
            reply = Busy(BUSY_SECONDS, "a file moved while it was looked for")
        except HoldfastError as error:
            reply = Failed(error.message, error.hint, error.retry)
        except OSError as error:
            reply = Failed(f"reading a tree failed: {error}", "Look at the kernel's log (dmesg) of that machine.", True)
        message = await asyncio.to_thread(self._seal.answer, asked, reply)
        wait = self._rate.take(len(message))
        if wait > 0:
            await self._pause(wait)
        return message

    async def close(self) -> None:
        """Give up everything held; a running audit ends."""
        if self._running is not None:
            await self._end_audit(self._running)
        for token in list(self._listings):
            await self._close_listing(token)
        async with self._now_lock:
            if self._now is not None:
                self._now.close()
                self._now = None

    async def _answer(self, asked: Asked) -> Reply:
        match asked.request:
            case OpenListing(barrier):
                return await self._open_listing(barrier=barrier)
            case NextPage(listing, tree, after):
                return await self._with_listing(listing, lambda held: self._page(held, tree, after))
            case CloseListing(listing):
                await self._close_listing(listing)
                return Done()
            case ReadContents(parts):
                return await self._contents(parts)
            case ReadDigests(listing, node, first):
                return await self._with_listing(listing, lambda held: _digests(held.reader, node, first))
            case Look(listing, paths):
                return await self._with_listing(listing, lambda held: self._look(held.reader, paths))
            case StartAudit(full):
                return await self._start_audit(full=full)
            case PollAudit(audit, known):
                return self._news(audit, known)
            case StopAudit(audit):
                if self._running is not None and self._running.token == audit:
                    await self._end_audit(self._running)
                return Done()

    # -- listings ------------------------------------------------------------------------------------------------------

    async def _open_listing(self, *, barrier: bool) -> Reply:
        await self._close_idle()
        if len(self._listings) >= LISTINGS_MAX:
            return Busy(LISTING_IDLE_SECONDS / 10, "too many listings are open; idle ones are closed")
        if barrier:
            await self._barrier()
        reader = await self._snapshot()
        token = secrets.token_hex(8)
        self._listed_at = self._clock()
        self._listings[token] = _Held(reader, self._listed_at)
        chain, totals = reader.chain, reader.totals()
        return Listing(
            token,
            str(chain.incarnation),
            int(chain.sequence),
            chain.digest,
            int(reader.epoch),
            tuple(sorted(str(name) for name in reader.roots())),
            totals.directories,
            totals.files,
            totals.symlinks,
            totals.bytes,
        )

    async def _close_idle(self) -> None:
        now = self._clock()
        for token, held in list(self._listings.items()):
            if now - held.used_at > LISTING_IDLE_SECONDS:
                await self._close_listing(token)

    async def _close_listing(self, token: str) -> None:
        held = self._listings.pop(token, None)
        if held is not None:
            await asyncio.to_thread(held.close)

    async def _with_listing(self, token: str, work: Callable[[_Held], T]) -> T:
        """*work* in a thread, alone with the listing *token*."""
        held = self._listings.get(token)
        if held is None:
            raise _NotHeld
        held.used_at = self._clock()

        def alone(held: _Held = held) -> T:
            with held.lock:
                if held.closed:
                    raise _NotHeld
                return work(held)

        return await asyncio.to_thread(alone)

    def _page(self, held: _Held, tree: str, after: bytes | None) -> Page:
        """Goes on where the last page ended, or begins again *after* (the reply before was lost)."""
        entries = held.entries
        if entries is None or held.at != (tree, after):
            entries = listing_entries(held.reader, tree, self._owners, after)
        held.entries, held.at = entries, None
        page: list[Entry] = []
        room = CONTENT_BYTES_MAX
        for entry in entries:
            page.append(entry)
            room -= _weight(entry)
            if room <= 0 or len(page) >= PAGE_ENTRIES_MAX:
                held.at = (tree, entry.path)
                return Page(tuple(page), False)
        held.entries = None
        return Page(tuple(page), True)

    def _look(self, reader: IndexReader, paths: tuple[tuple[str, bytes], ...]) -> Looked:
        found: list[Entry | None] = []
        for tree, path in paths[:LOOK_PATHS_MAX]:
            node = reader.at(tree, path)
            links = len(reader.names(node.id)) if node is not None else 0
            found.append(None if node is None else entry_of(path, node, links, self._owners))
        return Looked(tuple(found))

    # -- contents ------------------------------------------------------------------------------------------------------

    async def _contents(self, parts: tuple[PartWanted, ...]) -> Contents:
        parts = parts[:PARTS_MAX]
        async with self._reads:
            for _ in range(MOVED_TRIES_MAX):
                found = await self._find(parts)
                try:
                    return Contents(await asyncio.to_thread(self._read_parts, parts, found))
                except _Later:
                    async with self._now_lock:
                        await self._index_now(0)
        raise _Later

    async def _find(self, parts: tuple[PartWanted, ...]) -> list[_Found | None]:
        """The files asked for; None for those that are no more."""
        async with self._now_lock:
            found = await asyncio.to_thread(_find_in, await self._index_now(NOW_SECONDS_MAX), parts)
            if None in found and self._now_since <= self._listed_at:  # perhaps newer than that snapshot
                found = await asyncio.to_thread(_find_in, await self._index_now(0), parts)
            return found

    def _read_parts(self, parts: tuple[PartWanted, ...], found: list[_Found | None]) -> tuple[PartRead, ...]:
        """As many as fit one answer. Raises _Later when the first one moved; a later one ends the answer."""
        read: list[PartRead] = []
        room = CONTENT_BYTES_MAX
        for part, place in zip(parts, found, strict=True):
            if read and part.length > room:
                break
            try:
                got = PartRead(PartState.GONE) if place is None else self._read(place, part)
            except _Later:
                if not read:
                    raise
                break
            read.append(got)
            room -= len(got.data)
        return tuple(read)

    async def _index_now(self, age_seconds_max: float) -> IndexReader:
        """A snapshot of the index not older than that. The caller holds ``_now_lock`` for as long as it reads."""
        asked_at = self._clock()
        if self._now is None or asked_at - self._now_since > age_seconds_max or age_seconds_max == 0:
            fresh = await self._snapshot()
            if self._now is not None:
                self._now.close()
            self._now, self._now_since = fresh, asked_at
        return self._now

    def _read(self, found: _Found, part: PartWanted) -> PartRead:
        try:
            fd = self._open(found)
            if fd is None:
                return PartRead(PartState.GONE)
            try:
                status = os.fstat(fd)
                length = max(0, min(part.length, CONTENT_BYTES_MAX))
                data = os.pread(fd, length, max(part.offset, 0))
                return PartRead(PartState.READ, data, status.st_size)
            finally:
                os.close(fd)
        except OSError as error:
            reason = f"{os.fsdecode(found.path)!r}: {os.strerror(error.errno or 0)}"
            return PartRead(PartState.UNREADABLE, reason=reason)

    def _open(self, found: _Found) -> int | None:
        """The file; None when it is no more. Raises _Later, OSError."""
        root = self._roots.get(found.tree)
        if root is None:
            return None
        handle = found.node.handle
        if handle is not None and has_handles(handle):
            mount = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                return open_handle(mount, handle, _FILE)
            except OSError as error:
                if error.errno != errno.EPERM:
                    raise
            finally:
                os.close(mount)
        return _open_path(root, found.path, found.node)

    # -- audits --------------------------------------------------------------------------------------------------------

    async def _start_audit(self, *, full: bool) -> Reply:
        if self._running is not None and not self._running.done:
            if self._clock() - self._running.used_at <= LISTING_IDLE_SECONDS:
                return Busy(BUSY_SECONDS * 10, "another audit is running")
            await self._end_audit(self._running)  # who started it is not listening any more
        loop = asyncio.get_running_loop()

        async def settled() -> IndexReader:
            await self._barrier()
            return await self._snapshot()

        audit = Audit(
            self._trees,
            lambda: asyncio.run_coroutine_threadsafe(settled(), loop).result(),
            full=full,
            rate=self._audit_rate,
            clock=self._clock,
            pause=self._pause_thread,
        )
        running = self._running = _Running(secrets.token_hex(8), audit, self._clock())
        running.task = loop.create_task(self._run_audit(running), name="audit")
        return self._news(running.token, 0)

    async def _run_audit(self, running: _Running) -> None:
        def all_of_it() -> None:
            for finding in running.audit.run():
                running.found += 1
                if len(running.findings) < FINDINGS_MAX:
                    running.findings.append(finding)

        try:
            await asyncio.to_thread(all_of_it)
        except (HoldfastError, OSError) as error:
            running.failure = str(error)
        finally:
            running.done = True

    def _news(self, token: str, after: int) -> Reply:
        running = self._running
        if running is None or running.token != token:
            raise _NotHeld
        running.used_at = self._clock()
        done = running.done  # read first: what is found later is told with the next news
        progress = running.audit.progress
        findings = tuple(running.findings[max(after, 0) :][:FINDINGS_PER_REPLY_MAX])
        last = max(after, 0) + len(findings) >= len(running.findings)
        return AuditNews(
            token,
            findings,
            running.found,
            done and last,
            progress.entries,
            progress.bytes,
            progress.unsettled,
            running.failure,
        )

    async def _end_audit(self, running: _Running) -> None:
        running.audit.stop_wanted = True
        if running.task is not None:
            await running.task
        if self._running is running:
            self._running = None


def _weight(entry: Entry) -> int:
    xattrs = sum(len(name) + len(value) for name, value in entry.meta.xattrs)
    return ENTRY_BYTES + len(entry.path) + len(entry.content) + xattrs


def _digests(reader: IndexReader, node_id: int, first_block: int) -> Digests:
    node = reader.node(node_id)
    if node is None or node.kind != NodeKind.FILE:
        return Digests(b"")
    start = max(first_block, 0) * DIGEST_BYTES
    most = CONTENT_BYTES_MAX // DIGEST_BYTES * DIGEST_BYTES
    return Digests(node.content[start : start + most])


def _find_in(reader: IndexReader, parts: tuple[PartWanted, ...]) -> list[_Found | None]:
    found: list[_Found | None] = []
    for part in parts:
        node = reader.node(part.node)
        place = _place_of(reader, node) if node is not None and node.kind == NodeKind.FILE else None
        found.append(None if node is None or place is None else _Found(node, *place))
    return found


def _place_of(reader: IndexReader, node: Node) -> tuple[str, bytes] | None:
    """A tree and path of *node*."""
    for parent, name in reader.names(node.id):
        place = reader.path(parent, name)
        if place is not None:
            return place
    return None


def _open_path(root: bytes, path: bytes, node: Node) -> int:
    """The file at *path* when it is the one the index means. Raises _Later, OSError."""
    above, _, name = path.rpartition(b"/")
    directory = open_directory(root, above)
    if directory is None:
        raise _Later
    try:
        fd = os.open(name, _FILE, dir_fd=directory)
    except FileNotFoundError:
        raise _Later from None
    finally:
        os.close(directory)
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode) or (node.ino and status.st_ino != node.ino):
        os.close(fd)
        raise _Later
    return fd
