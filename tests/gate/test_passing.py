"""The IMAP and the ManageSieve gate between clients and a real Dovecot, set up as the gates' page says."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import imaplib
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from holdfast.drill.lab.mail_files import dovecot_gates
from holdfast.gate.barrier import PatientBarrier, SharedBarrier
from holdfast.gate.imap import ImapSession
from holdfast.gate.passing import PassingGate
from holdfast.gate.serve import Place, listening_at
from holdfast.gate.sieve import SieveSession
from tests.gate.test_serve import Barrier
from tests.mail.boxes import PASSWORD, USER, DovecotBox, free_port

pytestmark = pytest.mark.system
SECONDS = 30.0
LARGE_BYTES = 20_000_000


class Box(DovecotBox):
    def __init__(self, folder: Path) -> None:
        self.imap_gate, self.sieve_gate = folder / "imap-gate", folder / "sieve-gate"
        self.sieve_port = free_port()
        extra = (
            "protocols = imap lmtp sieve\nauth_failure_delay = 0\nmail_max_userip_connections = 100\n"
            f"service managesieve-login {{\n inet_listener sieve {{\n port = {self.sieve_port}\n }}\n}}\n"
        )
        super().__init__(folder, extra=extra + dovecot_gates(str(self.imap_gate), str(self.sieve_gate)))


@pytest.fixture(scope="module")
def dovecot() -> Iterator[Box]:
    with tempfile.TemporaryDirectory(prefix="hf-imap-gate-") as folder:
        box = Box(Path(folder))
        asyncio.run(box.service.start())
        yield box
        asyncio.run(box.service.stop(force=True))


class Site:
    def __init__(self, box: Box, barrier_seconds: float) -> None:
        self.box, self.barrier = box, Barrier()
        patient = PatientBarrier(SharedBarrier(self.barrier), barrier_seconds)
        self.imap = PassingGate("IMAP", ImapSession, patient)
        self.sieve = PassingGate("sieve", SieveSession, patient)

    def messages(self, text: str) -> int:
        """How many messages hold *text*."""
        files = [path for folder in ("new", "cur") for path in self.box.store.rglob(f"{folder}/*") if path.is_file()]
        return sum(text.encode() in path.read_bytes()[:4096] for path in files)


@asynccontextmanager
async def gates(box: Box, barrier_seconds: float = SECONDS) -> AsyncIterator[Site]:
    site = Site(box, barrier_seconds)
    await site.imap.start(listening_at(Place(str(box.imap_gate))))
    await site.sieve.start(listening_at(Place(str(box.sieve_gate))))
    try:
        async with asyncio.timeout(SECONDS):
            yield site
    finally:
        await site.imap.stop()
        await site.sieve.stop()


async def until(fact: Callable[[], bool]) -> None:
    while not fact():  # noqa: ASYNC110 - nothing tells it
        await asyncio.sleep(0.01)


class Client:
    """One connection, line by line."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def command(self, text: str, until: bytes) -> bytes:
        """Everything up to the line that begins with *until*."""
        self.writer.write(text.encode())
        heard = b""
        while line := await self.reader.readline():
            heard += line
            if line.startswith(until):
                return heard
        raise AssertionError(f"the connection ended after {heard[-200:]!r}")


async def imap(box: Box, limit: int = 1 << 20) -> Client:
    """Logged in, INBOX selected."""
    client = Client(*await asyncio.open_connection("127.0.0.1", box.imap_port, limit=limit))
    await client.command("", b"* OK")
    await client.command(f'l LOGIN {USER} "{PASSWORD}"\r\n', b"l OK")
    await client.command("s SELECT INBOX\r\n", b"s OK")
    return client


def append(name: str, size: int = 0) -> str:
    message = f"Subject: {name}\r\n\r\n" + ("y" * 76 + "\r\n") * (size // 78)
    return f"a APPEND INBOX {{{len(message)}+}}\r\n{message}\r\n"


async def test_an_append_is_answered_behind_the_barrier(dovecot: Box) -> None:
    async with gates(dovecot) as site:
        client, other = await imap(dovecot), await imap(dovecot)
        site.barrier.holds.clear()
        answer = asyncio.create_task(client.command(append("draft"), b"a OK"))
        await site.barrier.reached.wait()
        assert site.messages("Subject: draft") == 1
        assert not answer.done()
        await other.command("f UID FETCH 1:* (FLAGS)\r\n", b"f OK")  # who only reads does not wait
        site.barrier.holds.set()
        assert b"APPENDUID" in await answer


async def test_while_the_log_is_away_an_answer_waits_and_comes_when_it_is_back(dovecot: Box) -> None:
    async with gates(dovecot) as site:
        client = await imap(dovecot)
        site.barrier.fails = True
        answer = asyncio.create_task(client.command("a CREATE folder\r\n", b"a OK"))
        await site.barrier.reached.wait()
        await asyncio.sleep(0)
        assert not answer.done()
        site.barrier.fails = False
        await answer


async def test_a_log_that_stays_away_ends_the_connection_without_an_answer(dovecot: Box) -> None:
    async with gates(dovecot, barrier_seconds=0.3) as site:
        client = await imap(dovecot)
        site.barrier.fails = True
        client.writer.write(append("unsafe").encode())
        heard = await client.reader.read()
        assert b"a OK" not in heard
        assert heard.endswith(b"connect again to see what is there\r\n")
        assert b"\r\n* BYE [UNAVAILABLE]" in b"\r\n" + heard
        assert site.messages("Subject: unsafe") == 1
        site.barrier.fails = False
        again = await imap(dovecot)
        assert b"* SEARCH \r\n" not in await again.command("f SEARCH SUBJECT unsafe\r\n", b"f OK")


async def test_scripts_are_answered_behind_the_barrier(dovecot: Box) -> None:
    async with gates(dovecot) as site:
        client = Client(*await asyncio.open_connection("127.0.0.1", dovecot.sieve_port))
        await client.command("", b"OK")
        token = base64.b64encode(f"\0{USER}\0{PASSWORD}".encode()).decode()
        await client.command(f'AUTHENTICATE "PLAIN" "{token}"\r\n', b"OK")
        site.barrier.holds.clear()
        answer = asyncio.create_task(client.command('PUTSCRIPT "x" {5+}\r\nkeep;\r\n', b"OK"))
        await site.barrier.reached.wait()
        assert list(dovecot.store.rglob("x.sieve"))
        assert not answer.done()
        site.barrier.holds.set()
        await answer
        assert b"keep;" in await client.command('GETSCRIPT "x"\r\n', b"OK")
        held = site.sieve.counts.held
        await client.command('SETACTIVE "x"\r\n', b"OK")
        await client.command("LISTSCRIPTS\r\n", b"OK")
        assert site.sieve.counts.held == held + 1


async def test_a_wrong_password_is_refused_and_never_comes_to_the_gate(dovecot: Box) -> None:
    async with gates(dovecot) as site:
        client = Client(*await asyncio.open_connection("127.0.0.1", dovecot.imap_port))
        await client.command("", b"* OK")
        await client.command(f"l LOGIN {USER} wrong\r\n", b"l NO")
        assert site.imap.counts.sessions == 0


async def test_a_client_that_stops_reading_stops_its_server_and_nobody_else(dovecot: Box) -> None:
    async with gates(dovecot) as site:
        client = await imap(dovecot)
        await client.command(append("large", LARGE_BYTES), b"a OK")
        slow = await imap(dovecot, limit=1 << 16)
        slow.writer.write(b"f FETCH * BODY.PEEK[]\r\n")
        await until(lambda: site.imap.waiting_bytes > 0)
        await client.command("n NOOP\r\n", b"n OK")
        assert site.imap.waiting_bytes < 1 << 20
        heard = bytearray()
        while b"\nf OK" not in heard[-200:]:
            heard += await slow.reader.read(1 << 16)
        assert len(heard) > LARGE_BYTES


async def test_who_leaves_in_the_middle_or_by_halves_harms_nobody(dovecot: Box) -> None:
    async with gates(dovecot) as site:
        client, leaving, half = await imap(dovecot), await imap(dovecot), await imap(dovecot)
        leaving.writer.write(b"a APPEND INBOX {5000+}\r\nSubject: cut\r\n")
        await leaving.writer.drain()
        leaving.writer.transport.abort()
        half.writer.write(b"a NOOP\r\n")
        half.writer.write_eof()
        await half.reader.read()  # ends, with its answer or without: Dovecot does not wait for a client that has gone
        garbage = await imap(dovecot)
        garbage.writer.write(b"\0\xff{5+}\r\n" * 200 + b"x" * 300_000)
        with contextlib.suppress(ConnectionResetError):
            await garbage.reader.read()
        assert site.imap.counts.broken == 1
        await client.command("n NOOP\r\n", b"n OK")
        assert site.messages("Subject: cut") == 0


async def test_an_ordinary_client_sees_nothing_odd(dovecot: Box) -> None:
    def use() -> None:
        with imaplib.IMAP4("127.0.0.1", dovecot.imap_port) as client:
            client.login(USER, PASSWORD)
            assert client.create("a.b")[0] == "OK"
            assert client.append("a.b", "(\\Seen)", None, b"Subject: x\r\n\r\nbody {5}\r\n")[0] == "OK"
            assert client.select("a.b") == ("OK", [b"1"])
            assert client.store("1", "+FLAGS", "(\\Deleted)")[0] == "OK"
            assert client.copy("1", "INBOX")[0] == "OK"
            assert client.fetch("1", "(BODY.PEEK[TEXT])")[1][0] == (b"1 (BODY[TEXT] {10}", b"body {5}\r\n")
            assert client.expunge() == ("OK", [b"1"])
            assert client.close()[0] == "OK"
            assert client.delete("a.b")[0] == "OK"

    async with gates(dovecot) as site:
        await asyncio.to_thread(use)
        assert site.imap.counts.held == 7
        assert site.imap.counts.broken == 0


async def test_what_is_not_dovecot_is_not_taken_over_and_who_says_nothing_holds_up_nobody(dovecot: Box) -> None:
    async with gates(dovecot) as site:
        silent = await asyncio.open_unix_connection(str(dovecot.imap_gate))
        for said in (b"VERSION\tscript-login\t1\t0\n::1\t::1\tx\n", b"VERSION\tscript-login\t2\t0\nx\n", b"\n" * 9):
            reader, writer = await asyncio.open_unix_connection(str(dovecot.imap_gate))
            writer.write(said)
            assert await reader.read() == b""
        assert site.imap.counts.sessions == 0
        await imap(dovecot)
        silent[1].close()


async def test_with_the_log_away_one_can_log_in_and_read(dovecot: Box) -> None:
    async with gates(dovecot, barrier_seconds=0.3) as site:
        site.barrier.fails = True
        client = await imap(dovecot)
        await client.command("f FETCH 1:* (FLAGS)\r\n", b"f OK")


async def test_without_a_gate_nobody_is_let_in_past_it(dovecot: Box) -> None:
    client = Client(*await asyncio.open_connection("127.0.0.1", dovecot.imap_port))
    await client.command("", b"* OK")
    client.writer.write(f'l LOGIN {USER} "{PASSWORD}"\r\n'.encode())
    assert b"l OK" not in await client.reader.read()
