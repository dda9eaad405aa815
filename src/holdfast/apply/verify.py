"""Verify: are the standby's trees equal to the primary's, file by file, at one position of the log?

Three comparisons, each with its own streams: the two indexes at one position P (what the log says must be equal on both
sides); the primary's trees with its index; the standby's trees with its index. All three clean means the trees are
equal, although neither stands still: P is behind a barrier at the primary, and the standby's index is read when it has
applied exactly P.

A difference is named by machine, tree, path and what. What changed in every look is counted as unsettled and not
judged; a report with unsettled things or a failure does not claim that all is equal.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Protocol

from holdfast.apply.peer import Peer
from holdfast.changes.exchange import (
    AuditFinding,
    AuditNews,
    CloseListing,
    Done,
    Entry,
    EntryKind,
    Listing,
    OpenListing,
    Page,
    PollAudit,
    StartAudit,
    StopAudit,
)
from holdfast.changes.names import Incarnation, Position, Sequence
from holdfast.errors import HoldfastError
from holdfast.trees.audit import Audit
from holdfast.trees.index import IndexReader
from holdfast.trees.listing import listing_entries, order_key
from holdfast.trees.look import What, first_difference
from holdfast.trees.stat import Owners

FINDINGS_MAX: Final = 10_000
"""Differences named in a report; above that they are counted: such a copy needs a seed."""
LINKS_REMEMBERED_MAX: Final = 1_000_000
"""Files with several names whose counterpart is remembered (100 MB); of more only the numbers of names are compared."""
POLL_SECONDS: Final = 0.5


class Standstill(Protocol):
    """What verify needs of the pump that applies the log on this machine."""

    async def hold(self) -> None:
        """Stop applying where it stands. Idempotent."""
        ...

    async def reach(self, position: Position) -> IndexReader:
        """Apply up to exactly *position*, commit the index, give a reader of it; then go on. Raises HoldfastError when
        it is already past *position* or cannot come to it."""
        ...

    async def release(self) -> None:
        """Go on, wherever it stands. Idempotent."""
        ...


class Difference(NamedTuple):
    """*machine*: whose trees (or index) differ. *what*: a word of trees.look.What."""

    machine: str
    tree: str
    path: bytes
    what: str
    detail: str


class VerifyProgress(NamedTuple):
    """*phase*: ``listings`` (entries of this machine's index compared), then ``trees``: entries and bytes looked at on
    both machines, of twice the totals."""

    phase: str
    entries: int
    entries_total: int
    bytes: int
    bytes_total: int
    found: int


@dataclass
class VerifyReport:
    """*files*, *bytes*: of the listing at *position*. *found* counts all differences, *differences* names them up to
    FINDINGS_MAX. *failures*: by machine, why its audit ended early."""

    position: Position
    full: bool
    files: int
    bytes: int
    seconds: float = 0.0
    found: int = 0
    unsettled: int = 0
    differences: list[Difference] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)

    @property
    def equal(self) -> bool:
        """Whether everything was compared and nothing differs."""
        return not self.found and not self.unsettled and not self.failures

    def add(self, machine: str, findings: Iterable[AuditFinding]) -> None:
        for finding in findings:
            self.found += 1
            if len(self.differences) < FINDINGS_MAX:
                self.differences.append(Difference(machine, finding.tree, finding.path, finding.what, finding.detail))


def compare_listings(tree: str, one: Iterable[Entry], other: Iterable[Entry]) -> Iterator[AuditFinding]:
    """In what *other* differs from *one*: two listings of a tree at one position, in listing order, with all digests.

    Holds neither: memory is that of the files with several names.
    """
    counterparts: dict[int, int] = {}
    ones, others = iter(one), iter(other)
    a, b = next(ones, None), next(others, None)
    while a is not None or b is not None:
        if b is None or (a is not None and order_key(a.path) < order_key(b.path)):
            assert a is not None, "both at the end"
            yield AuditFinding(tree, a.path, What.MISSING, f"a {_words(a)}")
            a = next(ones, None)
        elif a is None or order_key(b.path) < order_key(a.path):
            yield AuditFinding(tree, b.path, What.EXTRA, f"a {_words(b)}")
            b = next(others, None)
        else:
            yield from _entry_differences(tree, a, b, counterparts)
            a, b = next(ones, None), next(others, None)


def _words(entry: Entry) -> str:
    return entry.kind.name.lower()


def _entry_differences(tree: str, a: Entry, b: Entry, counterparts: dict[int, int]) -> Iterator[AuditFinding]:
    def finding(what: What, detail: str) -> AuditFinding:
        return AuditFinding(tree, a.path, what, detail)

    if a.kind != b.kind:
        yield finding(What.KIND, f"a {_words(b)}, should be a {_words(a)}")
        return
    if a.size != b.size:
        yield finding(What.SIZE, f"{b.size} bytes, should be {a.size}")
    elif a.content != b.content:
        if a.kind == EntryKind.SYMLINK:
            yield finding(What.TARGET, f"to {b.content[:200]!r}")
        else:
            yield finding(What.CONTENT, first_difference(a.content, b.content))
    if a.meta.mode != b.meta.mode and a.kind != EntryKind.SYMLINK:
        yield finding(What.MODE, f"{b.meta.mode:04o}, should be {a.meta.mode:04o}")
    if (a.meta.owner, a.meta.group) != (b.meta.owner, b.meta.group):
        yield finding(What.OWNER, f"{b.meta.owner}:{b.meta.group}, should be {a.meta.owner}:{a.meta.group}")
    if a.meta.mtime_ns != b.meta.mtime_ns and a.kind != EntryKind.DIRECTORY:
        yield finding(What.MTIME, f"{b.meta.mtime_ns} ns, should be {a.meta.mtime_ns} ns")
    if a.meta.xattrs != b.meta.xattrs:
        yield finding(What.XATTRS, "")
    if a.links != b.links:
        yield finding(What.LINKS, f"{b.links} names, should be {a.links}")
    elif a.links > 1:
        known = counterparts.get(a.node)
        if known is None and len(counterparts) < LINKS_REMEMBERED_MAX:
            counterparts[a.node] = b.node
        elif known is not None and known != b.node:
            yield finding(What.LINKS, "not the same file as the other names")


async def verify(
    peer: Peer,
    machine: str,
    standstill: Standstill,
    audit: Callable[[bool], Audit],
    owners: Owners,
    *,
    full: bool,
    progress: Callable[[VerifyProgress], None],
    clock: Callable[[], float],
    pause: Callable[[float], Awaitable[None]],
) -> VerifyReport:
    """Run a verify from this standby (*machine*) against the primary *peer*. *full*: contents and xattrs of every file
    are read on both sides; else sizes, times, owners and modes are looked at.

    *audit* makes the audit of this machine's own trees. *progress* is called from other threads too.

    Raises Unreachable, ListingLost, ExchangeDamaged, and what *standstill* raises. Stopped, it stops both audits.
    """
    began = clock()
    await standstill.hold()
    try:
        listing = await peer.ask(OpenListing(barrier=True), Listing)
        position = Position(Incarnation(listing.incarnation), Sequence(listing.sequence))
        reader = await standstill.reach(position)
    finally:
        await standstill.release()
    report = VerifyReport(position, full, listing.files, listing.content_bytes)
    job = _Verify(peer, machine, listing, report, owners, progress)
    try:
        await job.listings(reader)
    finally:
        await asyncio.to_thread(reader.close)
    await peer.ask(CloseListing(listing.listing), Done)
    await job.audits(audit(full), full=full, pause=pause)
    report.seconds = clock() - began
    return report


class _Verify:
    def __init__(
        self,
        peer: Peer,
        machine: str,
        listing: Listing,
        report: VerifyReport,
        owners: Owners,
        progress: Callable[[VerifyProgress], None],
    ) -> None:
        self._peer = peer
        self._machine = machine
        self._listing = listing
        self._report = report
        self._owners = owners
        self._tell = progress
        self._stopped = threading.Event()
        self._entries = [0, 0]
        self._bytes = [0, 0]

    def _progress(self, phase: str, sides: int) -> None:
        listed = self._listing
        entries = (listed.directories + listed.files + listed.symlinks) * sides
        total = listed.content_bytes * sides
        self._tell(VerifyProgress(phase, sum(self._entries), entries, sum(self._bytes), total, self._report.found))

    # -- listings ------------------------------------------------------------------------------------------------------

    async def listings(self, reader: IndexReader) -> None:
        """Compare the two indexes. Pages come by the loop, entries are compared in a thread."""
        loop = asyncio.get_running_loop()

        def remote(tree: str) -> Iterator[Entry]:
            after: bytes | None = None
            while not self._stopped.is_set():
                asking = asyncio.run_coroutine_threadsafe(self._peer.page(self._listing, tree, after), loop)
                page: Page = asking.result()
                yield from page.entries
                self._entries[0] += len(page.entries)
                self._progress("listings", 1)
                if page.done:
                    return
                after = page.entries[-1].path

        def compare() -> None:
            ours = {str(name) for name in reader.roots()}
            for tree in sorted(ours | set(self._listing.trees)):
                theirs = remote(tree) if tree in self._listing.trees else iter(())
                mine = listing_entries(reader, tree, self._owners, whole=True)
                self._report.add(self._machine, compare_listings(tree, theirs, mine))

        await _to_its_end(compare, self._stopped.set)
        self._entries = [0, 0]

    # -- audits --------------------------------------------------------------------------------------------------------

    async def audits(self, own: Audit, *, full: bool, pause: Callable[[float], Awaitable[None]]) -> None:
        """Compare both machines' trees with their indexes, at the same time."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._audit_own(own))
                group.create_task(self._audit_peer(full=full, pause=pause))
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None

    async def _audit_own(self, audit: Audit) -> None:
        def run() -> None:
            for finding in audit.run():
                self._report.add(self._machine, (finding,))
                self._entries[1], self._bytes[1] = audit.progress.entries, audit.progress.bytes

        def stop() -> None:
            audit.stop_wanted = True

        try:
            await _to_its_end(run, stop)
        except (HoldfastError, OSError) as error:
            self._report.failures[self._machine] = str(error)
        self._report.unsettled += audit.progress.unsettled
        self._entries[1], self._bytes[1] = audit.progress.entries, audit.progress.bytes
        self._progress("trees", 2)

    async def _audit_peer(self, *, full: bool, pause: Callable[[float], Awaitable[None]]) -> None:
        news = await self._peer.ask(StartAudit(full), AuditNews)
        known = 0
        try:
            while True:
                self._report.add(self._peer.name, news.findings)
                known += len(news.findings)
                self._entries[0], self._bytes[0] = news.entries, news.content_bytes
                self._progress("trees", 2)
                if news.done:
                    break
                if not news.findings:
                    await pause(POLL_SECONDS)
                news = await self._peer.ask(PollAudit(news.audit, known), AuditNews)
        except asyncio.CancelledError:
            await self._peer.ask(StopAudit(news.audit), Done)
            raise
        self._report.found += news.found - known
        self._report.unsettled += news.unsettled
        if news.failure:
            self._report.failures[self._peer.name] = news.failure


async def _to_its_end(run: Callable[[], None], stop: Callable[[], None]) -> None:
    """*run* in a thread. Cancelled, it is told to *stop* and has ended on return: what it uses may be closed."""
    running = asyncio.ensure_future(asyncio.to_thread(run))
    try:
        await asyncio.shield(running)
    except asyncio.CancelledError:
        stop()
        await asyncio.wait((running,))
        raise
