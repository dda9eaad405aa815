"""The JetStream requests we use, as functions of one stream: state, make, delete, purge, read.

Requests and answers: https://docs.nats.io/reference/jetstream/api; error numbers: server/errors.json of nats-server.
"""

from __future__ import annotations

import asyncio
import base64
import json
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final, NamedTuple

from holdfast.changes.names import Incarnation, SegmentName, Sequence
from holdfast.errors import HoldfastError
from holdfast.log import wire
from holdfast.log.connection import NOBODY, Connection, NotSent
from holdfast.log.port import LogFull, LogState, LogUnavailable, Record

RETRY_SECONDS: Final = (0.02, 0.5)
"""Pauses between tries while there is no leader; an election takes seconds (4.6 s measured)."""
ANSWER_SECONDS: Final = 2.0
"""An answer takes milliseconds; when none came by then, the request is made again."""
SEARCHES: Final = 8
"""Direct gets go to a replica picked at random: of three with one sound, all but one in 25 searches come to it."""
INCARNATION_KEY: Final = "holdfast.incarnation"


class Code(IntEnum):
    """``err_code`` of an API answer."""

    ACCOUNT_LIMIT = 10002
    INCOMPLETE = 10004
    NO_PEERS = 10005
    NO_META_LEADER = 10008
    NOT_LEADER = 10009
    INSUFFICIENT = 10023
    NO_MESSAGE = 10037
    OFF_FOR_ACCOUNT = 10039
    STORAGE_LIMIT = 10047
    EXISTS = 10058
    NO_STREAM = 10059
    WRONG_LAST = 10071
    OFF = 10076
    STORE_FAILED = 10077
    STREAM_OFFLINE = 10118
    WRONG_LAST_UNNAMED = 10164


PASSING: Final = frozenset(
    {
        Code.INCOMPLETE,
        Code.NO_META_LEADER,
        Code.NOT_LEADER,
        Code.INSUFFICIENT,
        Code.OFF_FOR_ACCOUNT,
        Code.OFF,
        Code.STREAM_OFFLINE,
    }
)
"""Said while servers start, stop or elect: the same request may succeed in a moment."""
FULL: Final = frozenset({Code.ACCOUNT_LIMIT, Code.STORAGE_LIMIT, Code.STORE_FAILED})
WRONG_LAST: Final = frozenset({Code.WRONG_LAST, Code.WRONG_LAST_UNNAMED})


class ApiError(HoldfastError):
    """The servers answered with an error that retrying does not mend."""

    def __init__(self, request: str, code: int, description: str) -> None:
        super().__init__(f"{request}: {description} ({code})", hint="See the log server's own log.")
        self.code = code


class ReplicaState(NamedTuple):
    """One follower of the stream, as its leader sees it."""

    server: str
    current: bool
    offline: bool
    lag_records: int


@dataclass(frozen=True, slots=True)
class StreamInfo:
    """The stream as its leader describes it."""

    state: LogState
    leader: str | None
    """Server name; None for a stream without replicas."""
    replicas: tuple[ReplicaState, ...]
    bytes_max: int


class Standing(NamedTuple):
    """What a replica holds at one sequence: *subject* tells the incarnation."""

    record: Record
    subject: str


class Stream:
    """The stream of one segment, through one connection."""

    def __init__(self, connection: Connection, segment: SegmentName) -> None:
        self.connection = connection
        self.segment = segment
        self.name = f"HF_{segment}"

    def subject(self, incarnation: Incarnation) -> str:
        """Where records are published. It names the incarnation: after a replacement a writer of the old one reaches
        nobody, even if the sequences happen to fit."""
        return f"hf.{self.segment}.log.{incarnation}"

    def acknowledgements(self, incarnation: Incarnation) -> str:
        """Below here the stream's leader answers appends. Followers hear it too: so they learn of new records."""
        return f"hf.{self.segment}.ack.{incarnation}"

    async def info(self, seconds: float) -> StreamInfo:
        """Raises LogUnavailable, ApiError (NO_STREAM)."""
        return _stream_info(await self.call("STREAM.INFO", {}, seconds))

    async def create(self, incarnation: Incarnation, *, replicas: int, bytes_max: int, seconds: float) -> None:
        """Raises ApiError (EXISTS), LogFull, LogUnavailable. Repeating it with the same values is harmless."""
        await self.call(
            "STREAM.CREATE",
            {
                "name": self.name,
                "subjects": [self.subject(incarnation)],
                "retention": "limits",
                "storage": "file",
                "num_replicas": replicas,
                # Past the hard limit the oldest goes: a reader notices (Trimmed); refusing the writer would stop mail.
                "discard": "old",
                "max_bytes": bytes_max,
                "max_consumers": -1,
                "max_msgs": -1,
                "max_age": 0,
                "allow_direct": True,
                "metadata": {INCARNATION_KEY: incarnation},
            },
            seconds,
        )

    async def delete(self, seconds: float) -> None:
        """Raises LogUnavailable. A stream that is not there is deleted already."""
        try:
            await self.call("STREAM.DELETE", {}, seconds)
        except ApiError as error:
            if error.code != Code.NO_STREAM:
                raise

    async def purge_through(self, through: Sequence, seconds: float) -> None:
        """*through* must not be past the last: the server would go there. Raises LogUnavailable, ApiError."""
        await self.call("STREAM.PURGE", {"seq": through + 1}, seconds)

    async def peek(self, sequence: Sequence, seconds: float) -> Standing | None:
        """What one replica (the servers pick) holds at *sequence*; None: nothing, or not yet. Raises LogUnavailable."""
        message = await self.connection.request(
            f"$JS.API.DIRECT.GET.{self.name}", json.dumps({"seq": sequence}).encode(), seconds
        )
        if message.status == NOBODY:
            raise LogUnavailable(f"no replica of {self.name} answers")
        return None if message.status else standing_of(message)

    async def peek_many(
        self, first: Sequence, *, records: int, bytes_max: int, seconds: float
    ) -> tuple[list[Standing], bool]:
        """Up to *records* from *first* on (holes skipped) from one replica (the servers pick), and whether it has more.

        The last may go over *bytes_max*. Raises LogUnavailable.
        """
        request = json.dumps({"seq": first, "batch": records, "max_bytes": bytes_max}).encode()
        subject = f"$JS.API.DIRECT.GET.{self.name}"
        *messages, end = await self.connection.request_many(
            subject, request, seconds, lambda message: message.status != 0
        )
        if end.status == NOBODY:
            raise LogUnavailable(f"no replica of {self.name} answers")
        more = int(end.header(b"Nats-Num-Pending") or 0) > 0
        return [standing_of(message) for message in messages], more

    async def read_from_leader(self, sequence: Sequence, seconds: float) -> Standing | None:
        """What the leader holds at *sequence*; None: nothing. Raises LogUnavailable, ApiError (NO_STREAM)."""
        try:
            answer = await self.call("STREAM.MSG.GET", {"seq": sequence}, seconds)
        except ApiError as error:
            if error.code == Code.NO_MESSAGE:
                return None
            raise
        message = answer["message"]
        return Standing(Record(Sequence(message["seq"]), base64.b64decode(message.get("data", ""))), message["subject"])

    async def find(self, sequence: Sequence, seconds: float) -> Standing | None:
        """What the leader, or else any replica, holds at *sequence*. Raises LogUnavailable, ApiError (NO_STREAM)."""
        standing = await self.read_from_leader(sequence, seconds)
        for _ in range(SEARCHES):
            if standing is not None:
                break
            standing = await self.peek(sequence, seconds)
        return standing

    async def call(self, verb: str, body: dict[str, Any], seconds: float) -> dict[str, Any]:
        """One API request, repeated while the servers start or elect. Raises LogUnavailable, LogFull, ApiError."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        pause = RETRY_SECONDS[0]
        while True:
            left = deadline - loop.time()
            try:
                await self.connection.wait_connected(max(left, 0.0))
                message = await self.connection.request(
                    f"$JS.API.{verb}.{self.name}", json.dumps(body).encode(), max(min(left, ANSWER_SECONDS), 0.05)
                )
                problem = f"no log server answers {verb}" if message.status == NOBODY else None
                if problem is None:
                    answer = json.loads(message.payload)
                    problem = _passing_problem(verb, answer)
                    if problem is None:
                        return dict(answer)
            except NotSent:
                if loop.time() >= deadline:
                    raise
                continue
            except LogUnavailable as error:
                problem = error.message
            if loop.time() + pause >= deadline:
                raise LogUnavailable(f"{self.name}: {problem}")
            await asyncio.sleep(pause)
            pause = min(pause * 2, RETRY_SECONDS[1])


_FULL_HINT: Final = "Free space on the log servers' disks, raise their store_bytes_max, or lower the log's bytes_max."


def standing_of(message: wire.Message) -> Standing:
    """A record as a direct get sends it."""
    sequence = int(message.header(b"Nats-Sequence") or 0)
    return Standing(Record(Sequence(sequence), message.payload), message.header(b"Nats-Subject") or "")


def _passing_problem(verb: str, answer: dict[str, Any]) -> str | None:
    """None: the answer is good. Raises what will not pass."""
    error = answer.get("error")
    if error is None:
        return None
    code, description = int(error.get("err_code", 0)), str(error.get("description", ""))
    no_room = code in FULL or (code == Code.NO_PEERS and "insufficient storage" in description)
    if code in PASSING or (code == Code.NO_PEERS and not no_room):
        return description
    if no_room:
        raise LogFull(f"{verb}: {description}", hint=_FULL_HINT)
    raise ApiError(verb, code, description)


def _stream_info(answer: dict[str, Any]) -> StreamInfo:
    config, state = answer["config"], answer["state"]
    cluster = answer.get("cluster") or {}
    last = Sequence(state["last_seq"])
    first = Sequence(state["first_seq"]) if state["messages"] else Sequence(last + 1)
    return StreamInfo(
        state=LogState(
            Incarnation((config.get("metadata") or {}).get(INCARNATION_KEY, "")), first, last, state["bytes"]
        ),
        leader=cluster.get("leader") or None,
        replicas=tuple(
            ReplicaState(
                replica["name"],
                bool(replica.get("current")),
                bool(replica.get("offline")),
                int(replica.get("lag", 0)),
            )
            for replica in cluster.get("replicas") or ()
        ),
        bytes_max=int(config["max_bytes"]),
    )
