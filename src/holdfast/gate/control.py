"""A relay's door for people's questions: HTTP on a socket that only root can open. `holdfast relay` asks here.

====== ================ ======================================================================
GET    /relay/status    RelayStatus
POST   /relay/hold      hand nothing on any more; body {"why": ""}: RelayStatus
POST   /relay/drain     hand on what waits; body {"first": []}: lines of JSON, Progress
POST   /relay/export    what was accepted and nobody has yet: lines of JSON, one a message
====== ================ ======================================================================

A drain goes on when who asked for it leaves. Errors are as the agent's (node.control).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Final

from aiohttp import web

from holdfast.errors import HoldfastError
from holdfast.gate.door import answer_lines, body_of, error_answer, json_answer
from holdfast.gate.drain import Progress
from holdfast.gate.relay import Relay

BODY_BYTES_MAX: Final = 1024 * 1024
"""A thousand accounts to go first."""
WAITING_LINES: Final = 100
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@web.middleware
async def _errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except HoldfastError as error:
        return error_answer(error)


class RelayControl:
    def __init__(self, relay: Relay) -> None:
        self._relay = relay
        self._runner: web.AppRunner | None = None
        self._drains: set[asyncio.Task[None]] = set()

    async def start(self, socket: Path) -> None:
        app = web.Application(middlewares=[_errors], client_max_size=BODY_BYTES_MAX)
        app.router.add_get("/relay/status", self._status)
        app.router.add_post("/relay/hold", self._hold)
        app.router.add_post("/relay/drain", self._drain)
        app.router.add_post("/relay/export", self._export)
        socket.unlink(missing_ok=True)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        await web.UnixSite(self._runner, str(socket)).start()
        socket.chmod(0o600)

    async def stop(self) -> None:
        for task in self._drains:
            task.cancel()
        if self._runner is not None:
            await self._runner.cleanup()

    async def _status(self, request: web.Request) -> web.Response:
        return json_answer(await self._relay.status())

    async def _hold(self, request: web.Request) -> web.Response:
        return json_answer(await self._relay.hold(str((await body_of(request)).get("why", ""))))

    async def _drain(self, request: web.Request) -> web.StreamResponse:
        first = [str(address) for address in (await body_of(request)).get("first", [])]
        lines: asyncio.Queue[Progress | HoldfastError | None] = asyncio.Queue(WAITING_LINES)

        async def drain() -> None:
            try:
                async for progress in self._relay.drain(first):
                    if not lines.full():
                        lines.put_nowait(progress)
                last: HoldfastError | None = None
            except HoldfastError as error:
                last = error
            while lines.full():  # who asked has left
                lines.get_nowait()
            lines.put_nowait(last)

        task = asyncio.create_task(drain())
        self._drains.add(task)
        task.add_done_callback(self._drains.discard)

        async def told() -> AsyncIterator[object]:
            while (line := await lines.get()) is not None:
                if isinstance(line, HoldfastError):
                    raise line
                yield line

        return await answer_lines(request, told())

    async def _export(self, request: web.Request) -> web.StreamResponse:
        return await answer_lines(request, self._relay.export())
