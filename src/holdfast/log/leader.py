"""Keeping the log's leader where its death hurts least: on the relay.

Killing the machine that leads stalls appends for a Raft election (4 to 9 s by nats-server's timeouts, 4.6 s measured);
killing any other is hardly noticed. So the stream's leader, and the leader of JetStream's own metadata ("meta", needed
for state, trim and creation), are asked to step down in favour of one named server whenever it is up and current and is
not the leader already (``placement.preferred`` of the stepdown requests, nats-server 2.11 and newer). The same for the
side streams: a relay answers its senders when its shadows' stream has taken a message.

Appends during a step down are answered late, or refused and sent again by :mod:`holdfast.log.jetstream`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import defaultdict
from collections.abc import Sequence
from typing import Final, NamedTuple

from holdfast.errors import HoldfastError
from holdfast.log.api import ApiError, Code, StreamApi
from holdfast.log.connection import NOBODY, Connection, LogConnection
from holdfast.log.jetstream import JetStreamLog
from holdfast.log.port import LogUnavailable
from holdfast.log.side import stream_name
from holdfast.log.stream import StreamInfo, info_of

REST_SECONDS: Final = 10.0
"""Between two step downs of one leader: longer than an election, so that a quarrel with the servers stays cheap."""
ANSWER_SECONDS: Final = 2.0


class Leaders(NamedTuple):
    """Who leads now (server names; None: nobody, or unknown), and what was done about it."""

    stream: str | None
    meta: str | None
    asked: tuple[str, ...]


class LeaderPin:
    """Call :meth:`tick` on a timer (every few seconds); it costs a small request a stream when all is well."""

    def __init__(
        self, log: JetStreamLog, server: str, steward: LogConnection | None = None, *, sides: Sequence[str] = ()
    ) -> None:
        """*server* is the ``server_name`` to lead; *steward* a connection whose certificate may move the meta leader
        (:attr:`holdfast.log.trust.TlsFiles.steward`); without it only the streams' leaders are pinned. *sides*: names
        of side streams; one that does not exist (yet) is passed over.
        """
        self._log = log
        self._server = server
        self._steward = steward
        self._sides = tuple(sides)
        self._rests_until: defaultdict[str, float] = defaultdict(float)

    async def tick(self) -> Leaders:
        """Look, and ask for a step down where one is due. Raises LogReplaced; anything else waits for the next call."""
        asked = []
        try:
            info = await self._log.info_within(ANSWER_SECONDS)
        except LogUnavailable:
            return Leaders(None, None, ())
        if await self._lead("stream", self._log.stream, info):
            asked.append("stream")
        meta, meta_fit = await self._meta_leader()
        if self._steward is not None and meta not in (None, self._server) and meta_fit and self._due("meta"):
            await self._step_down_meta(self._steward)
            asked.append("meta")
        for side in self._sides:
            api = StreamApi(self._log.stream.connection, stream_name(self._log.stream.segment, side))
            with contextlib.suppress(LogUnavailable, ApiError):  # it is not there, or nobody leads it now
                if await self._lead(side, api, await info_of(api, ANSWER_SECONDS)):
                    asked.append(side)
        return Leaders(info.leader, meta, tuple(asked))

    async def _lead(self, what: str, stream: StreamApi, info: StreamInfo) -> bool:
        """Whether the leader of *stream* was asked to step down for our server."""
        fit = any(
            replica.server == self._server and replica.current and not replica.offline for replica in info.replicas
        )
        if info.leader in (None, self._server) or not fit or not self._due(what):
            return False
        await self._step_down(stream.connection, f"STREAM.LEADER.STEPDOWN.{stream.name}")
        return True

    def _due(self, what: str) -> bool:
        now = asyncio.get_running_loop().time()
        if now < self._rests_until[what]:
            return False
        self._rests_until[what] = now + REST_SECONDS
        return True

    async def _step_down_meta(self, steward: LogConnection) -> None:
        """On a connection of its own: the request belongs to the system account, which agents are not in otherwise."""
        try:
            connection = await Connection.open(steward)
        except LogUnavailable:
            return
        try:
            await self._step_down(connection, "META.LEADER.STEPDOWN")
        finally:
            await connection.close()

    async def _step_down(self, connection: Connection, verb: str) -> None:
        body = json.dumps({"placement": {"preferred": self._server}}).encode()
        try:
            message = await connection.request(f"$JS.API.{verb}", body, ANSWER_SECONDS)
        except LogUnavailable:
            return
        error = json.loads(message.payload).get("error") if message.status != NOBODY else None
        if error and error.get("err_code") not in (Code.NO_PEERS, Code.NO_META_LEADER, Code.NOT_LEADER):
            raise ApiError(verb, int(error.get("err_code", 0)), str(error.get("description", "")))

    async def _meta_leader(self) -> tuple[str | None, bool]:
        """The meta leader, and whether our server is fit to become it."""
        try:
            message = await self._log.stream.connection.request("$SYS.REQ.SERVER.PING.JSZ", b"{}", ANSWER_SECONDS)
        except HoldfastError:  # an external server may not export this to us: then the meta leader stays where it is
            return None, False
        if message.status == NOBODY:
            return None, False
        meta = (json.loads(message.payload).get("data") or {}).get("meta_cluster") or {}
        replicas = meta.get("replicas") or []
        return meta.get("leader") or None, any(
            replica.get("name") == self._server and not replica.get("offline") for replica in replicas
        )
