"""The agent's door for commands: HTTP on a socket that only root can open, and metrics for Prometheus.

====== ==================== ==================================================================
GET    /status              SiteStatus
GET    /history?last=100    the last events
GET    /heard               whom this machine hears (gate.agent.Heard): for the gates
GET    /metrics             Prometheus text
GET    /log?last=20         headers of the log's last records
POST   /plan/ACTION         Plan of ``takeover`` or ``switchover``; body {"why": "", "force": false}
POST   /ACTION              carry it out: Outcome
POST   /plan/alone, /alone  Plan of a takeover by the one machine that is left; body as above. The agent ends after it
POST   /rejoin, /found      give that order
GET    /why?at=SECONDS      the story of the last event, or of the one nearest to that moment
GET    /decide              Desk: what taking over now would cost, and waiting
POST   /merge               add messages that only this machine holds to the running server
POST   /alarm               send a test by every way: way to what went wrong
POST   /pause, /resume      hold off automatic takeover, on every machine that answers, and let it happen again
POST   /barrier             wait until everything done so far is in the log
POST   /verify              compare with the primary: lines of JSON, progress, the report last
====== ==================== ==================================================================

Errors: 409 refused, 503 unreachable, 500 other failures; the body is {"message", "hint", "exit_status"}. A fault of
the agent's own is a 500 too, with the traceback in its log.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

from aiohttp import web

from holdfast.errors import HoldfastError, Refused
from holdfast.gate.door import answer_lines, body_of, error_answer, error_body
from holdfast.gate.door import json_answer as _json
from holdfast.node.alarms import Alarms
from holdfast.node.alone import Alone
from holdfast.node.desk import desk
from holdfast.node.desk_facts import DeskFacts, accounts_in, started_in, waiting_of
from holdfast.node.gates import SHADOWS
from holdfast.node.guard import Guard
from holdfast.node.history import Event
from holdfast.node.metrics import render_metrics
from holdfast.node.node import Node
from holdfast.node.rehearsal import Rehearsals
from holdfast.node.relaying import heard
from holdfast.node.roles import Role
from holdfast.node.status import last_records, site_status

BARRIER_SECONDS_MAX: Final = 60.0
BODY_BYTES_MAX: Final = 64 * 1024
RECORDS_MAX: Final = 1000
ACTIONS: Final = ("takeover", "switchover")
_LOG: Final = logging.getLogger(__name__)
FAULT_HINT: Final = (
    "Look at `holdfast status`, then give the order again: orders go on from where they are. "
    "The agent's log has the traceback (`journalctl -u holdfast`); please report it."
)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@web.middleware
async def _errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except HoldfastError as error:
        return error_answer(error)
    except web.HTTPException as error:
        return _json(error_body(HoldfastError(f"{request.method} {request.path}: {error.reason}")), error.status)
    except Exception as error:  # noqa: BLE001  # the door answers whatever happens behind it; the log has the traceback
        _LOG.exception("%s %s: a fault of our own", request.method, request.path)
        what = f"{type(error).__name__}: {error}"
        return _json(error_body(HoldfastError(f"the agent met a fault of its own: {what}", hint=FAULT_HINT)), 500)


class Control:
    """Serves one node's orders."""

    def __init__(self, node: Node, guard: Guard, alarms: Alarms, rehearsals: Rehearsals, alone: Alone) -> None:
        self._node = node
        self._alone = alone
        self._guard = guard
        self._alarms = alarms
        self._rehearsals = rehearsals
        self._operations = guard.operations
        self._runners: list[web.AppRunner] = []

    async def start(self, socket: Path, metrics_port: int) -> None:
        """Listen. The socket's folder is ours; a socket left by a dead agent is replaced."""
        app = web.Application(middlewares=[_errors], client_max_size=BODY_BYTES_MAX)
        app.router.add_get("/status", self._status)
        app.router.add_get("/history", self._history)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/log", self._log)
        app.router.add_get("/heard", self._heard)
        for action in ACTIONS:
            app.router.add_post(f"/plan/{action}", self._plan)
            app.router.add_post(f"/{action}", self._act)
        app.router.add_post("/plan/alone", self._plan_alone)
        app.router.add_post("/alone", self._go_on_alone)
        app.router.add_post("/rejoin", self._rejoin)
        app.router.add_post("/found", self._found)
        app.router.add_post("/pause", self._pause)
        app.router.add_post("/resume", self._resume)
        app.router.add_get("/why", self._why)
        app.router.add_post("/merge", self._merge)
        app.router.add_get("/decide", self._decide)
        app.router.add_post("/decide", self._decided)
        app.router.add_post("/alarm", self._alarm)
        app.router.add_post("/rehearse", self._rehearse)
        app.router.add_post("/barrier", self._barrier)
        app.router.add_post("/verify", self._verify)
        app.router.add_post("/lags/forget", self._forget_lags)
        socket.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        socket.unlink(missing_ok=True)
        runner = await self._run(app)
        await web.UnixSite(runner, str(socket)).start()
        socket.chmod(0o600)
        if metrics_port:
            metrics = web.Application()
            metrics.router.add_get("/metrics", self._metrics)
            await web.TCPSite(await self._run(metrics), "127.0.0.1", metrics_port).start()

    async def _run(self, app: web.Application) -> web.AppRunner:
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        self._runners.append(runner)
        return runner

    async def stop(self) -> None:
        for runner in self._runners:
            await runner.cleanup()

    async def _status(self, request: web.Request) -> web.Response:
        return _json(await site_status(self._node))

    async def _history(self, request: web.Request) -> web.Response:
        last = request.query.get("last", "100")
        return _json(self._node.world.history.events(int(last) if last.isdigit() else 100))

    async def _log(self, request: web.Request) -> web.Response:
        last = request.query.get("last", "20")
        return _json(await last_records(self._node, min(int(last) if last.isdigit() else 20, RECORDS_MAX)))

    async def _heard(self, request: web.Request) -> web.Response:
        return _json(heard(self._node.beats, self._node.primary_name))

    async def _metrics(self, request: web.Request) -> web.Response:
        return web.Response(body=render_metrics(await site_status(self._node)), content_type="text/plain")

    async def _plan(self, request: web.Request) -> web.Response:
        body = await body_of(request)
        if request.path.endswith("takeover"):
            return _json(await self._operations.plan_takeover(body.get("why", ""), force=bool(body.get("force"))))
        return _json(await self._operations.plan_switchover(body.get("why", "")))

    async def _act(self, request: web.Request) -> web.Response:
        body = await body_of(request)
        why = body.get("why", "")
        if "at" in body:
            return _json({"at": self._guard.planned.order_switchover(str(body["at"]), why)})
        action = request.path.rpartition("/")[2]
        await self._note_decision(action, body)
        if action == "takeover":
            act = self._operations.takeover(why, force=bool(body.get("force")))
        else:
            act = self._operations.switchover(why)
        # A client that goes away must not leave a takeover half done.
        return _json(await asyncio.shield(asyncio.ensure_future(act)))

    async def _note_decision(self, action: str, body: dict[str, Any]) -> None:
        """Who ordered it and why, and what was known then; an order that is refused decides nothing."""
        node, why = self._node, body.get("why", "")
        if action == "takeover":
            plan = await self._operations.plan_takeover(why, force=bool(body.get("force")))
        else:
            plan = await self._operations.plan_switchover(why)
        if not plan.refusals and node.role is Role.STANDBY:
            known = "; ".join(plan.warnings)
            node.world.history.record(f"a person decided: {action}", plan.why, by=body.get("by", ""), known=known)

    async def _plan_alone(self, request: web.Request) -> web.Response:
        body = await body_of(request)
        return _json(self._alone.plan(body.get("why", ""), force=bool(body.get("force"))))

    async def _go_on_alone(self, request: web.Request) -> web.Response:
        body = await body_of(request)
        return _json(await self._alone.order(body.get("why", ""), force=bool(body.get("force"))))

    async def _rejoin(self, request: web.Request) -> web.Response:
        self._node.orders.rejoin()
        return _json({"ordered": True})

    async def _found(self, request: web.Request) -> web.Response:
        await self._node.orders.found(force=bool((await body_of(request)).get("force")))
        return _json({"ordered": True})

    async def _pause(self, request: web.Request) -> web.Response:
        body = await body_of(request)
        return _json({"machines": await self._guard.duties.pause(body.get("why") or "by hand, no reason given")})

    async def _resume(self, request: web.Request) -> web.Response:
        return _json({"machines": await self._guard.duties.resume()})

    async def _why(self, request: web.Request) -> web.Response:
        at = request.query.get("at", "")
        return _json(await self._guard.duties.why(float(at) if at else None))

    async def _decide(self, request: web.Request) -> web.Response:
        node = self._node
        primary = node.primary_name or ""
        silent = node.beats.silent_seconds(primary) if primary != node.world.settings.machine else 0.0
        events = node.world.history.events(1000)
        facts = await asyncio.to_thread(self._desk_facts, primary, events)
        return _json(desk(await site_status(node), node.beats.last(primary), silent, events, facts))

    def _desk_facts(self, primary: str, events: list[Event]) -> DeskFacts:
        node, settings = self._node, self._node.world.settings
        parts = node.readiness.rehearsal.parts if node.readiness.rehearsal.ok else ()
        return DeskFacts(
            accounts_in(node.world.serving.mail.software_directory),
            waiting_of(primary, settings.state / SHADOWS) if settings.gate.milter else None,
            started_in(events),
            next((part.seconds for part in parts if part.name == "start"), -1.0),
        )

    async def _decided(self, request: web.Request) -> web.Response:
        """A person has decided to wait: nothing is done, and it is written down."""
        body = await body_of(request)
        why = body.get("why") or "no reason given"
        self._node.world.history.record("a person decided: wait", why, by=body.get("by", ""))
        return _json({"decided": "wait"})

    async def _merge(self, request: web.Request) -> web.Response:
        body = await body_of(request)
        merges, dry_run = self._guard.merges, bool(body.get("dry_run"))
        return _json(await (merges.undo(dry_run=dry_run) if body.get("undo") else merges.merge(dry_run=dry_run)))

    async def _alarm(self, request: web.Request) -> web.Response:
        return _json({"ways": await self._alarms.test()})

    async def _rehearse(self, request: web.Request) -> web.Response:
        return _json(await self._rehearsals.now())

    async def _barrier(self, request: web.Request) -> web.Response:
        if self._node.primary is None:
            raise Refused(f"only the primary captures; this machine is {self._node.role}")
        position = await self._node.primary.barrier(BARRIER_SECONDS_MAX)
        return _json({"incarnation": position.incarnation, "sequence": position.sequence})

    async def _forget_lags(self, request: web.Request) -> web.Response:
        if self._node.standby is not None:
            self._node.standby.follow.forget_lags()
        return _json({})

    async def _verify(self, request: web.Request) -> web.StreamResponse:
        body = await body_of(request)
        if self._node.peer is None:
            raise Refused("this machine holds no mail", hint="Run verify on a standby.")
        lines = self._node.peer.verify(full=bool(body.get("full")), heal=bool(body.get("heal")))
        return await answer_lines(request, lines)
