"""A side stream kept by NATS JetStream.

Reading goes in batches from whichever replica the servers pick, which may be behind; where such a batch ends, the
leader is asked for the next one, so nothing that was acknowledged is missed.
"""

from __future__ import annotations

import asyncio
import base64
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Final

from holdfast.changes.names import Incarnation, SegmentName
from holdfast.errors import HoldfastError
from holdfast.log import wire
from holdfast.log.api import ANSWER_SECONDS, RETRY_SECONDS, ApiError, Code, StreamApi, taken_at
from holdfast.log.connection import NOBODY, Connection, NotSent
from holdfast.log.follow import BATCH_BYTES, BATCH_RECORDS
from holdfast.log.port import PAYLOAD_BYTES_MAX, LogUnavailable, Missing
from holdfast.log.side import (
    BEFORE_FIRST,
    SAME_SECONDS,
    Place,
    SideMessage,
    SideShape,
    SideState,
    checked_subject,
    prefix,
    stream_name,
)
from holdfast.log.stream import INCARNATION_KEY

SECOND: Final = 10**9
"""Durations of the JetStream API are in nanoseconds."""


@dataclass(frozen=True, slots=True)
class SidePatience:
    """How long to try before LogUnavailable; an election takes 4 to 9 s."""

    publish_seconds_max: float = 20.0
    request_seconds_max: float = 12.0
    answer_seconds_max: float = ANSWER_SECONDS


class JetStreamSide:
    """A :class:`holdfast.log.side.SideStream`. It need not exist yet: then nothing is taken, and state is Missing."""

    def __init__(
        self, connection: Connection, segment: SegmentName, name: str, patience: SidePatience | None = None
    ) -> None:
        self._connection = connection
        self._api = StreamApi(connection, stream_name(segment, name))
        self._prefix = prefix(segment, name) + "."
        self._patience = patience or SidePatience()

    async def publish(self, subject: str, payload: bytes, *, once: str = "") -> Place:
        if len(payload) > PAYLOAD_BYTES_MAX:
            raise HoldfastError(f"a message of {len(payload)} bytes is above the limit of {PAYLOAD_BYTES_MAX}")
        target = self._prefix + checked_subject(subject)
        headers = wire.headers({"Nats-Msg-Id": checked_subject(once) if once else secrets.token_hex(16)})
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._patience.publish_seconds_max
        sent, pause = False, RETRY_SECONDS[0]
        problem = f"no server takes messages for {self._api.name}"
        while True:
            try:
                await self._connection.wait_connected(max(deadline - loop.time(), 0.0))
                seconds = max(min(deadline - loop.time(), self._patience.answer_seconds_max), 0.05)
                message = await self._connection.request(target, payload, seconds, headers=headers)
                place = None if message.status == NOBODY else taken_at(message.payload)
                if place is not None:
                    return Place(place)
            except NotSent as error:
                problem = error.message
            except LogUnavailable as error:
                sent, problem = True, error.message
            if loop.time() + pause >= deadline:
                raise LogUnavailable(problem, sent=sent)
            await asyncio.sleep(pause)
            pause = min(pause * 2, RETRY_SECONDS[1])

    async def read(self, pattern: str = ">", *, after: Place = BEFORE_FIRST) -> AsyncIterator[SideMessage]:
        subject = self._prefix + pattern
        while True:
            more = True
            while more:
                found, more = await self._batch(after, subject)
                for message in found:
                    after = message.place
                    yield message
            following = await self._of_leader({"seq": after + 1, "next_by_subj": subject})
            if following is None:
                return
            after = following.place
            yield following

    async def _batch(self, after: Place, subject: str) -> tuple[list[SideMessage], bool]:
        """Some of what one replica has; whether it has more. None when no replica answers: the leader is asked then."""
        request = {"seq": after + 1, "next_by_subj": subject, "batch": BATCH_RECORDS, "max_bytes": BATCH_BYTES}
        try:
            messages, more = await self._api.direct_many(request, self._patience.answer_seconds_max)
        except LogUnavailable:
            return [], False
        found = [
            SideMessage(
                Place(int(message.header(b"Nats-Sequence") or 0)),
                (message.header(b"Nats-Subject") or "").removeprefix(self._prefix),
                message.payload,
            )
            for message in messages
        ]
        return found, more and bool(found)

    async def last(self, subject: str) -> SideMessage | None:
        return await self._of_leader({"last_by_subj": self._prefix + checked_subject(subject)})

    async def _of_leader(self, wanted: dict[str, Any]) -> SideMessage | None:
        try:
            answer = await self._api.call("STREAM.MSG.GET", wanted, self._patience.request_seconds_max)
        except ApiError as error:
            if error.code in (Code.NO_MESSAGE, Code.NO_STREAM):
                return None
            raise
        message = answer["message"]
        return SideMessage(
            Place(message["seq"]),
            str(message["subject"]).removeprefix(self._prefix),
            base64.b64decode(message.get("data", "")),
        )

    async def purge(self, pattern: str) -> int:
        wanted = {"filter": self._prefix + pattern}
        try:
            answer = await self._api.call("STREAM.PURGE", wanted, self._patience.request_seconds_max)
        except ApiError as error:
            if error.code == Code.NO_STREAM:
                return 0
            raise
        return int(answer["purged"])

    async def state(self) -> SideState:
        try:
            answer = await self._api.call("STREAM.INFO", {}, self._patience.request_seconds_max)
        except ApiError as error:
            if error.code == Code.NO_STREAM:
                raise Missing(
                    f"there is no stream {self._api.name}", hint="The primary makes it: is there one?"
                ) from None
            raise
        config, state = answer["config"], answer["state"]
        return SideState(
            Incarnation((config.get("metadata") or {}).get(INCARNATION_KEY, "")),
            Place(state["first_seq"]) if state["messages"] else Place(state["last_seq"] + 1),
            Place(state["last_seq"]),
            int(state["messages"]),
            int(state["bytes"]),
            int(config["max_bytes"]),
        )


async def ensure_side_stream(
    connection: Connection,
    segment: SegmentName,
    shape: SideShape,
    *,
    replicas: int,
    patience: SidePatience | None = None,
) -> JetStreamSide:
    """The stream of *shape*, made or changed where it is not so. Raises LogUnavailable, LogFull, ApiError."""
    patience = patience or SidePatience()
    side = JetStreamSide(connection, segment, shape.name, patience)
    api = StreamApi(connection, stream_name(segment, shape.name))
    try:
        incarnation, verb = (await side.state()).incarnation, "STREAM.UPDATE"
    except Missing:
        incarnation, verb = Incarnation(secrets.token_hex(16)), "STREAM.CREATE"
    await api.call(
        verb,
        {
            "name": api.name,
            "subjects": [prefix(segment, shape.name) + ".>"],
            "retention": "limits",
            "storage": "file",
            "num_replicas": replicas,
            "discard": "new" if shape.refuses_when_full else "old",
            "max_bytes": shape.bytes_max,
            "max_age": int(shape.age_seconds_max * SECOND),
            "max_consumers": -1,
            "max_msgs": -1,
            "duplicate_window": int(SAME_SECONDS * SECOND),
            "allow_direct": True,
            "metadata": {INCARNATION_KEY: incarnation},
        },
        patience.request_seconds_max,
    )
    return side
