"""The JetStream requests we use, as functions of one stream: state, make, delete, purge, read."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from typing import Final, NamedTuple

from holdfast.changes.names import Incarnation, SegmentName, Sequence
from holdfast.log import wire
from holdfast.log.api import ApiError, Code, StreamApi
from holdfast.log.connection import NOBODY, Connection
from holdfast.log.port import LogState, LogUnavailable, Record

SEARCHES: Final = 8
"""Direct gets go to a replica picked at random: of three with one sound, all but one in 25 searches come to it."""
INCARNATION_KEY: Final = "holdfast.incarnation"


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


class Stream(StreamApi):
    """The stream of one segment, through one connection."""

    def __init__(self, connection: Connection, segment: SegmentName) -> None:
        super().__init__(connection, f"HF_{segment}")
        self.segment = segment

    def subject(self, incarnation: Incarnation) -> str:
        """Where records are published. It names the incarnation: after a replacement a writer of the old one reaches
        nobody, even if the sequences happen to fit."""
        return f"hf.{self.segment}.log.{incarnation}"

    def acknowledgements(self, incarnation: Incarnation) -> str:
        """Below here the stream's leader answers appends. Followers hear it too: so they learn of new records."""
        return f"hf.{self.segment}.ack.{incarnation}"

    def sent_out(self, incarnation: Incarnation) -> str:
        """Where the stream's leader sends each record once a quorum has it: who is up to date need not ask."""
        return f"hf.{self.segment}.new.{incarnation}"

    async def info(self, seconds: float, *, of_anyone: bool = False) -> StreamInfo:
        """Its leader's account; *of_anyone*: any replica's while nobody leads, good for which incarnation it is.

        Raises LogUnavailable, ApiError (NO_STREAM).
        """
        return await info_of(self, seconds, of_anyone=of_anyone)

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
                "republish": {"src": self.subject(incarnation), "dest": self.sent_out(incarnation)},
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
        messages, more = await self.direct_many({"seq": first, "batch": records, "max_bytes": bytes_max}, seconds)
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


def standing_of(message: wire.Message) -> Standing:
    """A record as a direct get sends it, and as the leader sends it out."""
    sequence = int(message.header(b"Nats-Sequence") or 0)
    return Standing(Record(Sequence(sequence), message.payload), message.header(b"Nats-Subject") or "")


async def info_of(stream: StreamApi, seconds: float, *, of_anyone: bool = False) -> StreamInfo:
    """Of any stream, a side stream too. Raises LogUnavailable, ApiError (NO_STREAM)."""
    answer = await stream.call("STREAM.INFO", {}, seconds, of_anyone=of_anyone)
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
