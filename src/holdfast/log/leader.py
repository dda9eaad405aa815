"""Keeping the log's leader where its death hurts least: on the relay.

Killing the machine that leads stalls appends for a Raft election (4 to 9 s by nats-server's timeouts, 4.6 s measured);
killing any other is hardly noticed. So the stream's leader, and the leader of JetStream's own metadata ("meta", needed
for state, trim and creation), are asked to step down in favour of one named server whenever it is up and current and is
not the leader already (``placement.preferred`` of the stepdown requests, nats-server 2.11 and newer). The same for the
side streams: a relay answers its senders when its shadows' stream has taken a message. A server that does not hold all
of a stream yet is not asked to lead it.

Appends during a step down are answered late, or refused and sent again by :mod:`holdfast.log.jetstream`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import defaultdict
from collections.abc import Sequence
from typing import Final

from holdfast.log.api import ApiError, Code, StreamApi
from holdfast.log.connection import NOBODY, Connection, LogConnection
from holdfast.log.jetstream import JetStreamLog
from holdfast.log.port import NOBODY_KNOWN, Leaders, LogUnavailable
from holdfast.log.servers import ServerViews, lacking, server_views
from holdfast.log.side import stream_name
from holdfast.log.stream import StreamInfo, info_of

REST_SECONDS: Final = 10.0
"""Between two step downs of one leader: longer than an election, so that a quarrel with the servers stays cheap."""
ANSWER_SECONDS: Final = 2.0


class LeaderPin:
    """Call :meth:`tick` on a timer (every few seconds); it costs a small request a stream, and one more."""

    def __init__(
        self, log: JetStreamLog, server: str | None, steward: LogConnection | None = None, *, sides: Sequence[str] = ()
    ) -> None:
        """*server* is the ``server_name`` to lead; None: this only looks. *steward* is a connection whose certificate
        may move the meta leader (:attr:`holdfast.log.trust.TlsFiles.steward`); without it only the streams' leaders are
        pinned. *sides*: names of side streams; one that does not exist (yet) is passed over.
        """
        self._log = log
        self._server = server
        self._steward = steward
        self._sides = tuple(sides)
        self._rests_until: defaultdict[str, float] = defaultdict(float)

    async def tick(self) -> Leaders:
        """Look, and ask for a step down where one is due. Raises LogReplaced; anything else waits for the next call."""
        try:
            info = await self._log.info_within(ANSWER_SECONDS)
        except LogUnavailable:
            return NOBODY_KNOWN
        streams: dict[str, tuple[StreamApi, StreamInfo]] = {"stream": (self._log.stream, info)}
        for side in self._sides:
            api = StreamApi(self._log.stream.connection, stream_name(self._log.stream.segment, side))
            with contextlib.suppress(LogUnavailable, ApiError):  # it is not there, or nobody leads it now
                streams[side] = (api, await info_of(api, ANSWER_SECONDS))
        views = await server_views(self._log.stream.connection, len(info.replicas) + 1, ANSWER_SECONDS)
        asked = []
        for what, (api, about) in streams.items():
            if self._fit(api.name, about, views) and self._due(what):
                await self._step_down(api.connection, f"STREAM.LEADER.STEPDOWN.{api.name}")
                asked.append(what)
        meta, fit = self._meta_leader(views)
        if self._steward is not None and fit and meta != self._server and self._due("meta"):
            await self._step_down_meta(self._steward)
            asked.append("meta")
        return Leaders(info.leader, meta, tuple(asked), lacking(self._log.stream.name, info, views))

    def _fit(self, stream: str, info: StreamInfo, views: ServerViews) -> bool:
        """Whether our server could lead *stream*, and another one does."""
        return (
            info.leader not in (None, self._server)
            and self._server not in (lacking(stream, info, views) or ())
            and any(each.server == self._server and each.current and not each.offline for each in info.replicas)
        )

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

    def _meta_leader(self, views: ServerViews) -> tuple[str | None, bool]:
        """The meta leader, and whether our server is fit to become it; external servers may not say."""
        for name, view in views.items():
            if view.meta.get("leader") == name:
                replicas = view.meta.get("replicas") or ()
                return name, any(each.get("name") == self._server and not each.get("offline") for each in replicas)
        return None, False
