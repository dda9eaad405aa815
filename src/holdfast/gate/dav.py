"""The DAV gate: an HTTP/1.1 proxy before Radicale that holds the success of what changes something (RFC 4918, 9110).

Requests and answers are streamed, nothing is stored. The answer to a request is held until the barrier has passed when
its method is not one that only reads (:data:`READING_METHODS`) and its status says success; then 504 if it does not:
the gate does not know that the change was *not* made, and 504 is the status that says so much and no more. A client
that repeats a PUT with its ``If-Match`` is told 412 when the first one had been made, and fetches what is there.

While changes are refused (``read_only``), such a request is answered 503 and goes nowhere: that says nothing was done.

Each request is read and written anew, so what two readers could understand differently (two lengths, a length and
chunks, a folded header) ends here with 400. What belongs to one connection stays there (RFC 9110, 7.6.1).
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Iterable
from typing import Final

import aiohttp
from aiohttp import web
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from holdfast.errors import HoldfastError
from holdfast.gate.barrier import PatientBarrier
from holdfast.gate.read_only import WORDS, Refuses, never
from holdfast.gate.serve import CONNECT_SECONDS, Place

READING_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS", "PROPFIND", "REPORT", "SEARCH"})
REQUESTS_MAX: Final = 200
"""At a time; Radicale takes 8 (max_connections), a server behind uWSGI more. Above it: 503."""
REQUEST_SECONDS_MAX: Final = 600.0
"""A whole request with its answer, the barrier included; a large calendar over a slow line."""
PIECE_BYTES: Final = 64 * 1024
HEADER_BYTES_MAX: Final = 32 * 1024
_OF_CONNECTION: Final = frozenset(
    ["connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade", "expect"]
)
_AUTOMATIC: Final = ("User-Agent", "Accept", "Accept-Encoding", "Content-Type")
_log = logging.getLogger("holdfast.gate")


class DavGate:
    """Listens, and passes requests on. Of one event loop."""

    def __init__(self, server: Place, barrier: PatientBarrier, refuses: Refuses = never) -> None:
        self._server = server
        self._barrier = barrier
        self._refuses = refuses
        self._client: aiohttp.ClientSession | None = None
        self._runner: web.ServerRunner | None = None
        self._under_way = 0
        self.held = 0

    async def start(self, listening: socket.socket) -> None:
        """Serve who comes to *listening* (see :func:`holdfast.gate.serve.listening_at`)."""
        path = self._server.path
        connector = aiohttp.UnixConnector(path) if path else aiohttp.TCPConnector(limit=REQUESTS_MAX)
        self._client = aiohttp.ClientSession(
            connector=connector,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS),
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=_AUTOMATIC,
            read_bufsize=PIECE_BYTES,
        )
        server = web.Server(
            self._answered, auto_decompress=False, max_line_size=HEADER_BYTES_MAX, max_field_size=HEADER_BYTES_MAX
        )
        self._runner = web.ServerRunner(server, shutdown_timeout=0)
        await self._runner.setup()
        await web.SockSite(self._runner, listening).start()

    async def stop(self) -> None:
        """Close everything. What was held has no answer."""
        if self._runner is not None:
            await self._runner.cleanup()
        if self._client is not None:
            await self._client.close()

    async def _answered(self, request: web.BaseRequest) -> web.StreamResponse:
        if self._under_way >= REQUESTS_MAX:
            return _refusal(503, "too many requests at a time")
        if request.method not in READING_METHODS and self._refuses():
            return _refusal(503, WORDS)
        self._under_way += 1
        try:
            async with asyncio.timeout(REQUEST_SECONDS_MAX):
                return await self._passed(request)
        except TimeoutError:
            _log.warning("DAV gate: a request took more than %.0f s and is ended", REQUEST_SECONDS_MAX)
            return _cut(request)
        finally:
            self._under_way -= 1

    async def _passed(self, request: web.BaseRequest) -> web.StreamResponse:
        assert self._client is not None
        if request.headers.get("Expect", "").lower() == "100-continue":
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            request.writer.output_size = 0
        sent = self._client.request(
            request.method,
            self._url(request),
            headers=_kept(request.headers),
            data=request.content if request.body_exists else None,
            allow_redirects=False,
        )
        response: web.StreamResponse | None = None
        try:
            async with sent as answer:
                if request.method not in READING_METHODS and answer.status < 400:
                    self.held += 1
                    await self._barrier.wait()
                response = web.StreamResponse(status=answer.status, reason=answer.reason, headers=_kept(answer.headers))
                await response.prepare(request)
                async for piece in answer.content.iter_chunked(PIECE_BYTES):
                    await response.write(piece)
                await response.write_eof()
                return response
        except HoldfastError as error:
            _log.warning("DAV gate: a success was not told: %s", error.message)
            return _refusal(504, "what you changed may not be safe on a second machine yet; look again")
        except (aiohttp.ClientError, ConnectionError) as error:
            if response is not None and response.prepared:
                return _cut(request)
            _log.warning("DAV gate: %s: %s", self._server, error)
            return _refusal(502, "the calendar server does not answer")

    def _url(self, request: web.BaseRequest) -> URL:
        """Where the request goes, its path as the client wrote it."""
        target = request.raw_path if request.raw_path.startswith("/") else request.rel_url.raw_path_qs
        place = "radicale" if self._server.path else str(self._server)
        return URL(f"http://{place}{target}", encoded=True)


def _kept(headers: CIMultiDictProxy[str]) -> CIMultiDict[str]:
    """*headers* without those that are between two neighbours only."""
    named: Iterable[str] = (
        name.strip().lower() for value in headers.getall("Connection", []) for name in value.split(",")
    )
    left_out = _OF_CONNECTION.union(named)
    return CIMultiDict((name, value) for name, value in headers.items() if name.lower() not in left_out)


def _refusal(status: int, text: str) -> web.Response:
    response = web.Response(status=status, text=text + "\n", headers={"Retry-After": "10"})
    response.force_close()  # the rest of the request may still be on its way
    return response


def _cut(request: web.BaseRequest) -> web.StreamResponse:
    """Close the client's connection in the middle: an answer that is not whole must not look whole."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response(status=504)
