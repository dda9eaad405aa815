"""The straight way from a relay: TLS both ways, only for who has this site's certificates, and bytes unchanged."""

from __future__ import annotations

import asyncio
import ssl
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from holdfast.changes.names import MachineName
from holdfast.gate.barrier import SharedBarrier
from holdfast.gate.deliveries import Deliveries
from holdfast.gate.serve import LmtpGate, Place, listening_at
from holdfast.gate.straight import StraightDoor
from holdfast.log.link import tls_context
from holdfast.log.trust import Authority, Role, TlsFiles
from tests.mail.boxes import free_port

RELAYS = frozenset({"holdfast:machine/relay"})
ANSWER_SECONDS = 10.0


@pytest.fixture(scope="module")
def identities() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="hf-straight-") as name:
        folder = Path(name)
        authority = Authority.create("site", folder / "ca")
        for machine, role in (("main", Role.MAIL), ("relay", Role.RELAY), ("other", Role.RELAY)):
            authority.issue(MachineName(machine), ["127.0.0.1"], role=role).write(folder / machine)
        yield folder


async def store(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A mail store that takes everything."""
    writer.write(b"220 store\r\n")
    content = False
    while line := await reader.readline():
        if content:
            content = line != b".\r\n"
            if not content:
                writer.write(b"250 2.0.0 stored\r\n")
        elif line.startswith(b"DATA"):
            content = True
            writer.write(b"354 go on\r\n")
        else:
            writer.write(b"250 2.1.0 OK\r\n")
    writer.close()


async def passed() -> None:
    """A barrier."""


async def nothing() -> None: ...


async def unknown(delivery: bytes, recipient: bytes) -> bool:
    return False


@asynccontextmanager
async def way(identities: Path, *, server: str = "main", relay: str = "relay") -> AsyncIterator[Place]:
    """Where the relay's Postfix comes."""
    gate_at, store_at = Place("", "127.0.0.1", free_port()), Place("", "127.0.0.1", free_port())
    with tempfile.TemporaryDirectory() as name:
        behind = await asyncio.start_server(store, store_at.host, store_at.port)
        gate = LmtpGate(
            server=store_at,
            deliveries=Deliveries(Path(name) / "journal", lambda: 1000.0),
            barrier=SharedBarrier(passed),
            in_store=unknown,
            flush=nothing,
        )
        context = tls_context(TlsFiles.inside(identities / server), server=True)
        await gate.start_straight(listening_at(gate_at), context, RELAYS)
        door_at = Place(f"{name}/door")
        door = StraightDoor((Place("", "127.0.0.1", 1), gate_at), identities / relay)
        await door.start(listening_at(door_at))
        try:
            yield door_at
        finally:
            await door.stop()
            await gate.stop()
            behind.close()


async def told(reader: asyncio.StreamReader) -> bytes:
    """The last line of an answer."""
    line = b"250-"
    while line[3:4] == b"-":
        line = await asyncio.wait_for(reader.readline(), ANSWER_SECONDS)
    return line


@pytest.mark.parametrize("size", [10, 3_000_000])
def test_a_message_goes_through_and_its_answer_comes_back(identities: Path, size: int) -> None:
    """The first place of two does not answer; the second is the primary."""

    async def play() -> None:
        async with way(identities) as door:
            reader, writer = await asyncio.open_unix_connection(door.path)
            assert await told(reader) == b"220 store\r\n"
            for line in (b"LHLO relay", b"MAIL FROM:<a@b.example>", b"RCPT TO:<c@d.example>", b"DATA"):
                writer.write(line + b"\r\n")
                assert (await told(reader))[:3] in (b"250", b"354")
            writer.write(b"Holdfast-Delivery: 1234\r\n\r\n" + (b"x" * 78 + b"\r\n") * (size // 80) + b".\r\n")
            assert await told(reader) == b"250 2.0.0 stored\r\n"
            writer.close()

    asyncio.run(play())


@pytest.mark.parametrize(
    ("server", "relay"), [("main", "other"), ("main", "main"), ("relay", "relay")], ids=["relay", "mail", "no primary"]
)
def test_who_is_not_the_other_end_gets_no_greeting(identities: Path, server: str, relay: str) -> None:
    """A machine that is not among the relays; a mail machine; and a relay at the service address."""

    async def play() -> None:
        async with way(identities, server=server, relay=relay) as door:
            reader, writer = await asyncio.open_unix_connection(door.path)
            assert (await told(reader))[:3] in (b"", b"421")
            writer.close()

    asyncio.run(play())


def test_who_shows_no_certificate_gets_no_greeting(identities: Path) -> None:
    async def play() -> bytes:
        at = Place("", "127.0.0.1", free_port())
        with tempfile.TemporaryDirectory() as name:
            journal = Deliveries(Path(name), lambda: 1000.0)
            gate = LmtpGate(
                server=at, deliveries=journal, barrier=SharedBarrier(passed), in_store=unknown, flush=nothing
            )
            context = tls_context(TlsFiles.inside(identities / "main"), server=True)
            await gate.start_straight(listening_at(at), context, RELAYS)
            stranger = ssl.create_default_context(cafile=str(identities / "main" / "trust.pem"))
            stranger.check_hostname = False
            try:
                reader, writer = await asyncio.open_connection(at.host, at.port, ssl=stranger)
                try:
                    return await told(reader)
                finally:
                    writer.close()
            except OSError:
                return b""
            finally:
                await gate.stop()

    assert asyncio.run(play()) == b""


def test_without_a_primary_postfix_hears_later(identities: Path) -> None:
    async def play() -> bytes:
        with tempfile.TemporaryDirectory() as name:
            door = StraightDoor((Place("", "127.0.0.1", 1),), identities / "relay")
            await door.start(listening_at(Place(f"{name}/door")))
            reader, writer = await asyncio.open_unix_connection(f"{name}/door")
            said = await told(reader)
            writer.close()
            await door.stop()
            return said

    assert asyncio.run(play()).startswith(b"421 4.4.1 the primary does not answer")
