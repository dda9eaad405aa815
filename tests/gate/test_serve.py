"""The gate's process between a real client and a real Dovecot."""

from __future__ import annotations

import asyncio
import smtplib
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest

from holdfast.drill.lab.tools import wait_until
from holdfast.errors import Unreachable
from holdfast.gate.barrier import SharedBarrier
from holdfast.gate.deliveries import Deliveries, Outcome
from holdfast.gate.serve import LmtpGate, Place, listening_at
from holdfast.gate.store import DovecotLookup
from holdfast.ledger.book import Book, Limits, read
from holdfast.ledger.events import Delivered
from holdfast.mail.commands import SystemCommands
from tests.mail.boxes import USER, DovecotBox, free_port

pytestmark = pytest.mark.system
BOB = "bob@example.org"


class Barrier:
    """Passes, fails, or waits, as the test says."""

    def __init__(self) -> None:
        self.fails = False
        self.holds = asyncio.Event()
        self.holds.set()
        self.reached = asyncio.Event()
        self.flushed = asyncio.Event()

    async def __call__(self) -> None:
        self.reached.set()
        await self.holds.wait()
        if self.fails:
            raise Unreachable("the log is away")

    async def flush(self) -> None:
        self.flushed.set()


@pytest.fixture(scope="module")
def dovecot() -> Iterator[DovecotBox]:
    with tempfile.TemporaryDirectory(prefix="hf-gate-") as folder:  # pytest's own folders are closed to Dovecot
        box = DovecotBox(Path(folder))
        asyncio.run(box.service.start())
        yield box
        asyncio.run(box.service.stop(force=True))


class Site:
    def __init__(self, gate: LmtpGate, barrier: Barrier, port: int, box: DovecotBox) -> None:
        self.gate, self.barrier, self.port, self.box = gate, barrier, port, box

    def messages(self, text: str) -> int:
        """How many messages of all accounts hold *text*."""
        return sum(text.encode() in path.read_bytes() for path in self.box.store.rglob("new/*") if path.is_file())


@asynccontextmanager
async def _site(box: DovecotBox, journal: Path, server: Place | None = None) -> AsyncIterator[Site]:
    barrier, port = Barrier(), free_port()
    gate = LmtpGate(
        server=server or Place("", "127.0.0.1", box.lmtp_port),
        deliveries=Deliveries(journal, lambda: 1_795_348_800.0),
        barrier=SharedBarrier(barrier),
        in_store=DovecotLookup(SystemCommands(), ("doveadm", "-c", str(box.config))),
        flush=barrier.flush,
        book=Book(journal / "ledger", "main", lambda: 1_795_348_800.0, Limits(30.0, 2**20)),
    )
    await gate.start(listening_at(Place("", "127.0.0.1", port)))
    try:
        yield Site(gate, barrier, port, box)
    finally:
        await gate.stop()


def played(
    play: Callable[[Site], Awaitable[None]], box: DovecotBox, journal: Path, server: Place | None = None
) -> None:
    async def run() -> None:
        async with _site(box, journal, server) as site, asyncio.timeout(60):
            await play(site)

    asyncio.run(run())


@contextmanager
def lmtp(site: Site) -> Iterator[smtplib.LMTP]:
    client = smtplib.LMTP("127.0.0.1", site.port, timeout=30)
    try:
        client.ehlo_or_helo_if_needed()
        yield client
    finally:
        client.close()


def done_lines(journal: Path) -> int:
    files = journal.glob("deliveries-*")
    return sum(line.startswith(b"D ") for path in files for line in path.read_bytes().splitlines())


def words(error: smtplib.SMTPResponseException) -> bytes:
    return error.smtp_error if isinstance(error.smtp_error, bytes) else error.smtp_error.encode()


def deliver(site: Site, text: str, *recipients: str, size: int = 0) -> dict[str, tuple[int, bytes]]:
    """Deliver one message; who was refused, and how."""
    message = f"Holdfast-Delivery: {text}\r\nSubject: {text}\r\n\r\n.dot\r\n" + "x" * 70 + "\r\n"
    message += ("y" * 76 + "\r\n") * (size // 78)
    with lmtp(site) as client:
        try:
            return client.sendmail("a@outside.example", list(recipients), message)
        except smtplib.SMTPRecipientsRefused as error:
            return error.recipients
        except smtplib.SMTPDataError as error:
            return dict.fromkeys(recipients, (error.smtp_code, words(error)))


def test_a_delivery_is_acknowledged_behind_the_barrier_and_repeated_harmlessly(
    dovecot: DovecotBox, tmp_path: Path
) -> None:
    async def play(site: Site) -> None:
        site.barrier.holds.clear()
        first = asyncio.create_task(asyncio.to_thread(deliver, site, "once", USER, BOB))
        await site.barrier.reached.wait()
        assert site.messages("Subject: once") == 2
        assert not first.done()
        assert done_lines(tmp_path) == 0  # they could be in the log before the message
        site.barrier.holds.set()
        assert await first == {}
        assert done_lines(tmp_path) == 2
        assert await asyncio.to_thread(deliver, site, "once", USER, BOB) == {}
        assert site.messages("Subject: once") == 2
        assert (site.gate.counts.delivered, site.gate.counts.repeated) == (2, 2)

    played(play, dovecot, tmp_path)


def test_what_stood_in_the_journal_and_not_in_the_ledger_is_told_when_it_comes_again(
    dovecot: DovecotBox, tmp_path: Path
) -> None:
    """A machine died between the two lines: who takes over delivers nothing, and says that it is there."""

    async def before(site: Site) -> None:
        assert await asyncio.to_thread(deliver, site, "untold", USER) == {}

    async def after(site: Site) -> None:
        assert await asyncio.to_thread(deliver, site, "untold", USER) == {}
        assert site.gate.book is not None
        site.gate.book.flush()
        assert site.messages("Subject: untold") == 1

    played(before, dovecot, tmp_path)
    assert list(read(tmp_path / "ledger")) == []
    played(after, dovecot, tmp_path)
    assert [(event.delivery, event.to) for event in read(tmp_path / "ledger") if isinstance(event, Delivered)] == [
        ("untold", (USER,))
    ]


def test_while_the_log_is_away_deliveries_are_put_off_and_done_once(dovecot: DovecotBox, tmp_path: Path) -> None:
    async def play(site: Site) -> None:
        site.barrier.fails = True
        for _ in range(2):
            refused = await asyncio.to_thread(deliver, site, "later", USER)
            assert refused[USER][0] == 451
        assert not site.barrier.flushed.is_set()
        site.barrier.fails = False
        await site.barrier.flushed.wait()
        assert done_lines(tmp_path) == 0
        assert await asyncio.to_thread(deliver, site, "later", USER) == {}
        assert (site.messages("Subject: later"), done_lines(tmp_path), site.gate.counts.looked_up) == (1, 1, 0)

    played(play, dovecot, tmp_path)


def test_a_delivery_whose_outcome_nobody_noted_is_looked_up_in_the_store(dovecot: DovecotBox, tmp_path: Path) -> None:
    """The gate died between Dovecot's answer and its note; and, for the other message, before Dovecot had it. The next
    gate asks at once: what its recipient deletes afterwards does not come again."""

    async def before(site: Site) -> None:
        assert await asyncio.to_thread(deliver, site, "doubt1", USER) == {}

    async def after(site: Site) -> None:
        await asyncio.to_thread(wait_until, lambda: site.gate.counts.looked_up == 2, 30, "both are asked for")
        await asyncio.to_thread(
            wait_until,
            lambda: site.gate.deliveries.outcome(b"doubt1", USER.encode()) is Outcome.DONE,
            30,
            "the one is there",
        )
        (path,) = [path for path in site.box.store.rglob("new/*") if b"Subject: doubt1" in path.read_bytes()]
        path.unlink()
        assert await asyncio.to_thread(deliver, site, "doubt1", USER) == {}
        assert await asyncio.to_thread(deliver, site, "doubt2", USER) == {}
        assert [site.messages("Subject: doubt1"), site.messages("Subject: doubt2")] == [0, 1]

    played(before, dovecot, tmp_path)
    (file,) = tmp_path.glob("deliveries-*")
    intents = [line for line in file.read_bytes().splitlines() if line.startswith(b"I ")]
    file.write_bytes(b"\n".join([*intents, b"I 1795348800 doubt2 " + USER.encode()]) + b"\n")
    played(after, dovecot, tmp_path)


def test_large_messages_pass_and_slow_sides_are_waited_for(dovecot: DovecotBox, tmp_path: Path) -> None:
    async def play(site: Site) -> None:
        assert await asyncio.to_thread(deliver, site, "large", USER, size=20_000_000) == {}
        (path,) = [path for path in site.box.store.rglob("new/*") if b"Subject: large" in path.read_bytes()[:4096]]
        assert path.read_bytes().count(b"y" * 76) == 20_000_000 // 78

    played(play, dovecot, tmp_path)


def test_a_mail_store_that_does_not_answer_is_said(dovecot: DovecotBox, tmp_path: Path) -> None:
    async def play(site: Site) -> None:
        def connect() -> tuple[int, bytes]:
            with pytest.raises(smtplib.SMTPConnectError) as refused:
                smtplib.LMTP("127.0.0.1", site.port, timeout=30)
            return refused.value.smtp_code, words(refused.value)

        code, said = await asyncio.to_thread(connect)
        assert code == 421
        assert b"does not answer" in said

    played(play, dovecot, tmp_path, Place("", "127.0.0.1", free_port()))


def test_a_client_that_leaves_in_the_middle_leaves_nothing_behind(dovecot: DovecotBox, tmp_path: Path) -> None:
    async def play(site: Site) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
        await reader.readline()
        writer.write(b"LHLO x\r\n")
        while not (await reader.readline()).startswith(b"250 "):
            pass
        writer.write(b"MAIL FROM:<a@b.example>\r\nRCPT TO:<%s>\r\nDATA\r\n" % USER.encode())
        for _ in range(3):
            await reader.readline()
        writer.write(b"Subject: cut\r\n\r\nhalf")
        await writer.drain()
        writer.transport.abort()
        assert await asyncio.to_thread(deliver, site, "whole", USER) == {}
        assert site.messages("Subject: cut") == 0

    played(play, dovecot, tmp_path)


def test_slow_silent_half_closed_and_senseless_connections_harm_no_other(dovecot: DovecotBox, tmp_path: Path) -> None:
    async def play(site: Site) -> None:
        slow, half, senseless, deaf = [await asyncio.open_connection("127.0.0.1", site.port) for _ in range(4)]
        slow[1].write(b"LHLO x\r\nMAIL FROM:<a@b.example>\r\nRCPT TO:<%s>\r\nDA" % USER.encode())  # and no more
        half[1].write(b"LHLO x\r\n")
        half[1].write_eof()
        await half[0].read()  # ends
        senseless[1].write(b"\0\xff\r\n" * 100)
        assert b"500 5.5.2" in await senseless[0].read()
        for _ in range(20):  # hears nothing of its answers
            deaf[1].write(b"NOOP\r\n" * 5000)
        assert await asyncio.to_thread(deliver, site, "beside", USER) == {}
        assert site.messages("Subject: beside") == 1

    played(play, dovecot, tmp_path)
