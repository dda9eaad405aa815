"""The DAV gate between clients and a real Radicale."""

from __future__ import annotations

import asyncio
import base64
import http.client
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from holdfast.gate.barrier import PatientBarrier, SharedBarrier
from holdfast.gate.dav import DavGate
from holdfast.gate.serve import Place, listening_at
from tests.gate.test_serve import Barrier
from tests.mail.boxes import PASSWORD, USER, RadicaleBox, free_port

pytestmark = pytest.mark.system
TOKEN = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
HOME = f"/{USER}"
EVENT = (
    "BEGIN:VCALENDAR\r\nVERSION:2.0\r\nPRODID:test\r\nBEGIN:VEVENT\r\nUID:{uid}\r\nDTSTAMP:20260101T000000Z\r\n"
    "DTSTART:20260101T000000Z\r\nSUMMARY:{uid}\r\nDESCRIPTION:{text}\r\nEND:VEVENT\r\nEND:VCALENDAR\r\n"
)


@pytest.fixture(scope="module")
def radicale() -> Iterator[RadicaleBox]:
    with tempfile.TemporaryDirectory(prefix="hf-dav-gate-") as folder:
        box = RadicaleBox(Path(folder))
        asyncio.run(box.service.start())
        yield box
        asyncio.run(box.service.stop(force=True))


class Site:
    def __init__(self, box: RadicaleBox, port: int, gate: DavGate, barrier: Barrier) -> None:
        self.box, self.port, self.gate, self.barrier = box, port, gate, barrier

    def ask(
        self, method: str, path: str, body: str = "", headers: dict[str, str] | None = None, port: int = 0
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, header and body of the answer; through the gate, or at *port*."""
        connection = http.client.HTTPConnection("127.0.0.1", port or self.port, timeout=20)
        try:
            connection.request(method, path, body or None, {"Authorization": TOKEN, **(headers or {})})
            answer = connection.getresponse()
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
        finally:
            connection.close()

    async def asked(self, method: str, path: str, body: str = "", headers: dict[str, str] | None = None) -> int:
        return (await asyncio.to_thread(self.ask, method, path, body, headers))[0]


@asynccontextmanager
async def site(box: RadicaleBox, barrier_seconds: float = 20.0, server: int = 0) -> AsyncIterator[Site]:
    barrier, port = Barrier(), free_port()
    gate = DavGate(Place("", "127.0.0.1", server or box.port), PatientBarrier(SharedBarrier(barrier), barrier_seconds))
    await gate.start(listening_at(Place("", "127.0.0.1", port)))
    try:
        async with asyncio.timeout(60):
            yield Site(box, port, gate, barrier)
    finally:
        await gate.stop()


async def test_a_write_is_answered_behind_the_barrier(radicale: RadicaleBox) -> None:
    async with site(radicale) as dav:
        assert await dav.asked("MKCALENDAR", f"{HOME}/held/") == 201
        dav.barrier.reached.clear()
        dav.barrier.holds.clear()
        writing = asyncio.create_task(dav.asked("PUT", f"{HOME}/held/a.ics", EVENT.format(uid="a", text="")))
        await dav.barrier.reached.wait()
        assert list(radicale.storage.rglob("a.ics"))
        assert not writing.done()
        assert await dav.asked("GET", f"{HOME}/held/a.ics") == 200  # who reads does not wait
        dav.barrier.holds.set()
        assert await writing == 201
        held = dav.gate.held
        assert await dav.asked("PUT", f"{HOME}/held/a.ics", EVENT.format(uid="a", text=""), {"If-Match": '"no"'}) == 412
        assert dav.gate.held == held


async def test_a_log_that_stays_away_is_said_and_one_that_comes_back_is_waited_for(radicale: RadicaleBox) -> None:
    async with site(radicale, barrier_seconds=1.0) as dav:
        dav.barrier.fails = True
        assert await dav.asked("MKCALENDAR", f"{HOME}/away/") == 504
        dav.barrier.reached.clear()
        writing = asyncio.create_task(dav.asked("PUT", f"{HOME}/away/a.ics", EVENT.format(uid="a", text="")))
        await dav.barrier.reached.wait()
        dav.barrier.fails = False
        assert await writing == 201


async def test_answers_are_those_of_the_server(radicale: RadicaleBox) -> None:
    """Status, body and header are the same through the gate and past it, for what reads and what is refused."""
    async with site(radicale) as dav:
        await dav.asked("MKCALENDAR", f"{HOME}/same/")
        await dav.asked("PUT", f"{HOME}/same/a%20b%2Fc.ics", EVENT.format(uid="a", text="x"))
        body = '<?xml version="1.0"?><d:propfind xmlns:d="DAV:"><d:allprop/></d:propfind>'
        for method, path, content, headers in (
            ("OPTIONS", "/", "", {}),
            ("PROPFIND", f"{HOME}/same/", body, {"Depth": "1"}),
            ("GET", f"{HOME}/same/a%20b%2Fc.ics", "", {}),
            ("HEAD", f"{HOME}/same/", "", {}),
            ("GET", f"{HOME}/none", "", {"Accept-Encoding": "gzip"}),
            ("DELETE", f"{HOME}/none", "", {}),
            ("PUT", f"{HOME}/same/x.ics", "no calendar", {"Expect": "100-continue"}),
            ("GET", "/.web/", "", {}),
        ):

            def both(
                method: str = method, path: str = path, content: str = content, headers: dict[str, str] = headers
            ) -> None:
                gated = dav.ask(method, path, content, headers)
                direct = dav.ask(method, path, content, headers, radicale.port)
                passing = {"date", "connection", "server"}
                shown = [
                    (status, {name: value for name, value in header.items() if name not in passing}, text)
                    for status, header, text in (gated, direct)
                ]
                assert shown[0] == shown[1], method

            await asyncio.to_thread(both)


async def test_large_bodies_pass_in_pieces(radicale: RadicaleBox) -> None:
    async with site(radicale) as dav:
        await dav.asked("MKCALENDAR", f"{HOME}/large/")
        text = "x" * 8_000_000
        assert await dav.asked("PUT", f"{HOME}/large/a.ics", EVENT.format(uid="a", text=text)) == 201
        assert text.encode() in (await asyncio.to_thread(dav.ask, "GET", f"{HOME}/large/a.ics"))[2].replace(
            b"\r\n ", b""
        )


@pytest.mark.parametrize(
    "said",
    [
        b"PUT /x HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
        b"PUT /x HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET /x HTTP/1.1\r\nHost: x\r\n folded: y\r\n\r\n",
        b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\n\r\n",
        b"\0\xff\r\n\r\n",
    ],
)
async def test_what_two_readers_could_understand_differently_is_refused(radicale: RadicaleBox, said: bytes) -> None:
    async with site(radicale) as dav:
        reader, writer = await asyncio.open_connection("127.0.0.1", dav.port)
        writer.write(said)
        assert (await reader.readline()).startswith((b"HTTP/1.1 400", b"HTTP/1.0 400"))
        writer.close()
        assert await dav.asked("OPTIONS", "/") == 200


async def test_a_server_that_does_not_answer_is_said(radicale: RadicaleBox) -> None:
    async with site(radicale, server=free_port()) as dav:
        assert await dav.asked("GET", "/") == 502
