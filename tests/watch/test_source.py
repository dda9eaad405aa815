"""The source: listings that stand still, contents by token, limits, and audits."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from pathlib import Path

import pytest

from holdfast.apply.peer import ListingLost, Peer, PeerFailed
from holdfast.changes.exchange import (
    CONTENT_BYTES_MAX,
    AuditNews,
    Busy,
    CloseListing,
    Contents,
    Done,
    Entry,
    ExchangeDamaged,
    ExchangeSeal,
    Expired,
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
    Reply,
    StartAudit,
    StopAudit,
)
from holdfast.changes.names import MachineName
from holdfast.errors import Unreachable
from holdfast.trees.index import IndexReader
from holdfast.trees.rate import TokenBucket
from holdfast.trees.stat import NO_HANDLE_TYPE, TAG_BYTES, Owners
from holdfast.watch.source import LISTING_IDLE_SECONDS, LISTINGS_MAX, Source
from tests.apply.two_machines import BACKUP, KEY, MAIN, Primary, no_pause, run_async, write
from tests.trees.small_scan import chain_at


async def entries_of(peer: Peer, listing: Listing) -> list[Entry]:
    entries: list[Entry] = []
    after: bytes | None = None
    while True:
        page = await peer.ask(NextPage(listing.listing, "store", after), Page)
        entries += page.entries
        if page.done:
            return entries
        after = page.entries[-1].path


@run_async
async def test_a_listing_stands_still_while_the_index_goes_on(tmp_path: Path) -> None:
    primary = Primary.made(tmp_path)
    write(primary.root / "a", b"1")
    primary.rescan(1)
    peer = primary.peer()
    listing = await peer.ask(OpenListing(), Listing)
    (primary.root / "a").rename(primary.root / "b")
    primary.rescan(2)
    assert [entry.path for entry in await entries_of(peer, listing)] == [b"", b"a"]
    assert (listing.incarnation, listing.sequence, listing.digest) == (*chain_at(1)[:2], chain_at(1).digest)
    looked = await peer.ask(Look(listing.listing, (("store", b"a"), ("store", b"b"), ("x", b""))), Looked)
    assert [entry and entry.path for entry in looked.entries] == [b"a", None, None]
    assert await peer.ask(CloseListing(listing.listing), Done) == Done()
    with pytest.raises(ListingLost):
        await peer.ask(NextPage(listing.listing, "store", None), Page)
    await primary.source.close()


@run_async
async def test_pages_can_be_asked_for_again(tmp_path: Path) -> None:
    primary = Primary.made(tmp_path)
    for number in range(2500):
        write(primary.root / f"{number:04}", b"")
    primary.rescan(1)
    peer = primary.peer()
    listing = await peer.ask(OpenListing(), Listing)
    whole = await entries_of(peer, listing)
    assert len(whole) == 2501
    first = await peer.ask(NextPage(listing.listing, "store", None), Page)
    second = NextPage(listing.listing, "store", first.entries[-1].path)
    assert await peer.ask(second, Page) == await peer.ask(second, Page)
    assert first.entries == tuple(whole[: len(first.entries)])
    await primary.source.close()


@run_async
async def test_contents_follow_the_file_and_gone_is_said_only_of_what_is_gone(tmp_path: Path) -> None:
    primary = Primary.made(tmp_path)
    for name in ("stays", "moves", "goes"):
        write(primary.root / name, name.encode())
    primary.rescan(1)
    peer = primary.peer()
    listing = await peer.ask(OpenListing(), Listing)
    tokens = {entry.path: entry.node for entry in await entries_of(peer, listing)}
    (primary.root / "moves").rename(primary.root / "moved")
    (primary.root / "goes").unlink()
    wanted = tuple(PartWanted(tokens[name], 1, 100) for name in (b"stays", b"moves", b"goes"))
    read = (await peer.ask(ReadContents(wanted), Contents)).parts
    assert [(part.state, part.data) for part in read] == [
        (PartState.READ, b"tays"),
        (PartState.READ, b"oves"),
        (PartState.GONE, b""),
    ]
    assert (await peer.ask(ReadContents((PartWanted(999_999, 0, 1),)), Contents)).parts[0].state is PartState.GONE
    assert (await peer.ask(ReadContents((PartWanted(tokens[b""], 0, 1),)), Contents)).parts[0].state is PartState.GONE
    await primary.source.close()


@run_async
async def test_without_handles_the_present_path_is_used_and_a_wrong_file_never(tmp_path: Path) -> None:
    primary = Primary.made(tmp_path)
    write(primary.root / "a", b"mine")
    primary.rescan(1)
    row = primary.index.at("store", b"a")
    assert row is not None
    no_handle = bytes(TAG_BYTES) + NO_HANDLE_TYPE.to_bytes(4, sys.byteorder) + bytes(16)
    primary.index.update(row, row._replace(handle=no_handle))
    primary.index.commit(chain_at(2), primary.index.epoch)
    peer = primary.peer()
    wanted = ReadContents((PartWanted(row.id, 0, 100),))
    assert (await peer.ask(wanted, Contents)).parts[0] == PartRead(PartState.READ, b"mine", 4)
    write(primary.root / "other", b"not mine").rename(primary.root / "a")
    with pytest.raises(Unreachable, match="moved"):
        await peer.ask(wanted, Contents)
    await primary.source.close()


@run_async
async def test_a_reply_stays_below_its_bound(tmp_path: Path) -> None:
    primary = Primary.made(tmp_path)
    for name in ("a", "b"):
        write(primary.root / name, os.urandom(3 * CONTENT_BYTES_MAX))
    primary.rescan(1)
    peer = primary.peer()
    rows = [primary.index.at("store", name) for name in (b"a", b"b")]
    parts = tuple(PartWanted(row.id, 0, 10**9) for row in rows if row is not None)
    read = (await peer.ask(ReadContents(parts), Contents)).parts
    assert [len(part.data) for part in read] == [CONTENT_BYTES_MAX]
    assert read[0].size_now == 3 * CONTENT_BYTES_MAX
    odd = (PartWanted(parts[0].node, -5, 10), PartWanted(parts[0].node, 10**12, 10), PartWanted(parts[0].node, 0, -1))
    read = (await peer.ask(ReadContents(odd), Contents)).parts
    assert [len(part.data) for part in read] == [10, 0, 0]
    await primary.source.close()


class Slow:
    """A source with a clock of its own."""

    def __init__(self, primary: Primary, rate: float, audit_rate: float = 0) -> None:
        self.now = 0.0
        self.go_on = threading.Event()
        self.source = Source(
            machine=MAIN,
            key=KEY,
            trees=primary.trees,
            owners=Owners(),
            snapshot=primary.snapshot,
            barrier=primary.barrier,
            rate=TokenBucket(rate, lambda: self.now),
            audit_rate=TokenBucket(audit_rate, lambda: self.now),
            clock=lambda: self.now,
            pause=self.pause,
            pause_thread=self.pause_thread,
        )

    async def pause(self, seconds: float) -> None:
        self.now += seconds

    def pause_thread(self, seconds: float) -> None:
        assert self.go_on.wait(60)

    async def ask(self, request: OpenListing | NextPage | ReadContents | StartAudit | PollAudit) -> Reply:
        seal = ExchangeSeal(KEY, MAIN)
        asked, message = seal.ask(BACKUP, request)
        return seal.open_reply(asked, await self.source.handle("s", message))


@run_async
async def test_listings_are_few_and_idle_ones_end(tmp_path: Path) -> None:
    slow = Slow(Primary.made(tmp_path), 0)
    held = [await slow.ask(OpenListing()) for _ in range(LISTINGS_MAX)]
    assert isinstance(await slow.ask(OpenListing()), Busy)
    first, second = held[0], held[1]
    assert isinstance(first, Listing)
    assert isinstance(second, Listing)
    slow.now = LISTING_IDLE_SECONDS - 1
    assert isinstance(await slow.ask(NextPage(first.listing, "store", None)), Page)
    slow.now = LISTING_IDLE_SECONDS + 1
    assert isinstance(await slow.ask(OpenListing()), Listing)
    assert isinstance(await slow.ask(NextPage(first.listing, "store", None)), Page)
    assert isinstance(await slow.ask(NextPage(second.listing, "store", None)), Expired)
    await slow.source.close()


@run_async
async def test_replies_keep_to_the_rate(tmp_path: Path) -> None:
    primary = Primary.made(tmp_path)
    write(primary.root / "a", os.urandom(500_000))
    primary.rescan(1)
    slow = Slow(primary, 100_000)
    row = primary.index.at("store", b"a")
    assert row is not None
    for _ in range(3):
        await slow.ask(ReadContents((PartWanted(row.id, 0, 500_000),)))
    assert 9.5 < slow.now < 10.5
    await slow.source.close()


@run_async
async def test_a_barrier_comes_before_the_listing_that_wants_it(tmp_path: Path) -> None:
    primary = Primary.made(tmp_path)
    await primary.peer().ask(OpenListing(), Listing)
    assert primary.barriers == 0
    await primary.peer().ask(OpenListing(barrier=True), Listing)
    assert primary.barriers == 1
    await primary.source.close()


@run_async
async def test_what_is_not_sealed_for_this_machine_is_refused(tmp_path: Path) -> None:
    primary = Primary.made(tmp_path)
    other = ExchangeSeal(KEY, MachineName("relay"))
    for message in (b"", b"HX", os.urandom(200), other.ask(BACKUP, OpenListing())[1]):
        with pytest.raises(ExchangeDamaged):
            await primary.source.handle("s", message)


@run_async
async def test_forged_and_replayed_replies_are_refused(tmp_path: Path) -> None:
    """A relay that answers with noise, with another question's answer, or with a reply it sealed itself."""
    primary = Primary.made(tmp_path)
    seen: list[bytes] = []

    async def record(message: bytes) -> bytes:
        seen.append(await primary.source.handle("s", message))
        return seen[-1]

    honest = Peer(record, key=KEY, requester=BACKUP, answerer=MAIN, pause=no_pause)
    await honest.ask(OpenListing(), Listing)
    for forged in (b"noise", seen[0]):

        async def lie(message: bytes, reply: bytes = forged) -> bytes:
            return reply

        with pytest.raises(ExchangeDamaged):
            await Peer(lie, key=KEY, requester=BACKUP, answerer=MAIN, pause=no_pause).ask(OpenListing(), Listing)
    await primary.source.close()


@run_async
async def test_a_lost_reply_is_asked_for_again_and_silence_is_told(tmp_path: Path) -> None:
    primary = Primary.made(tmp_path)
    lost = 0

    async def lossy(message: bytes) -> bytes:
        nonlocal lost
        reply = await primary.source.handle("s", message)
        lost += 1
        if lost % 3:
            raise Unreachable("no answer", retry=True)
        return reply

    peer = Peer(lossy, key=KEY, requester=BACKUP, answerer=MAIN, pause=no_pause)
    assert isinstance(await peer.ask(OpenListing(), Listing), Listing)

    async def silent(message: bytes) -> bytes:
        raise Unreachable("no answer", retry=True)

    with pytest.raises(Unreachable):
        await Peer(silent, key=KEY, requester=BACKUP, answerer=MAIN, pause=no_pause).ask(OpenListing(), Listing)
    await primary.source.close()


@run_async
async def test_an_error_of_the_source_is_told_in_its_words(tmp_path: Path) -> None:
    primary = Primary.made(tmp_path)

    async def fails() -> IndexReader:
        raise Unreachable("capturing has stopped", hint="look", retry=True)

    primary.source._snapshot = fails
    with pytest.raises(PeerFailed, match="capturing has stopped") as failed:
        await primary.peer().ask(OpenListing(), Listing)
    assert (failed.value.hint, failed.value.retry) == ("look", True)


@run_async
async def test_an_audit_runs_beside_and_tells_what_it_found(tmp_path: Path) -> None:
    primary = Primary.made(tmp_path)
    for number in range(5):
        write(primary.root / f"{number}", b"right")
    primary.rescan(1)
    write(primary.root / "3", b"wrong", (primary.root / "3").stat().st_mtime_ns)
    (primary.root / "4").unlink()
    peer = primary.peer()
    news = await peer.ask(StartAudit(True), AuditNews)
    findings = list(news.findings)
    while not news.done:
        await asyncio.sleep(0)
        news = await peer.ask(PollAudit(news.audit, len(findings)), AuditNews)
        findings += news.findings
    assert {(f.path, f.what) for f in findings} == {(b"3", "content"), (b"4", "missing")}
    assert (news.found, news.entries, news.failure) == (2, 6, "")
    await peer.ask(StopAudit(news.audit), Done)
    with pytest.raises(ListingLost):
        await peer.ask(PollAudit(news.audit, 0), AuditNews)
    await primary.source.close()


@run_async
async def test_one_audit_runs_at_a_time_and_a_forgotten_one_makes_room(tmp_path: Path) -> None:
    primary = Primary.made(tmp_path)
    for number in range(3):
        write(primary.root / f"{number}", b"content")
    primary.rescan(1)
    slow = Slow(primary, 0, audit_rate=0.001)
    first = await slow.ask(StartAudit(True))
    assert isinstance(first, AuditNews)
    assert isinstance(await slow.ask(StartAudit(True)), Busy)
    slow.now = LISTING_IDLE_SECONDS + 1
    slow.go_on.set()
    assert isinstance(await slow.ask(StartAudit(True)), AuditNews)
    assert isinstance(await slow.ask(PollAudit(first.audit, 0)), Expired)
    await slow.source.close()
