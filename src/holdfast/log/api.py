"""What a stream's servers are asked, whatever the stream is for: the request, its answer, and what an error means.

Requests and answers: https://docs.nats.io/reference/jetstream/api; error numbers: server/errors.json of nats-server.
"""

from __future__ import annotations

import asyncio
import json
from enum import IntEnum
from typing import Any, Final

from holdfast.errors import HoldfastError
from holdfast.log import wire
from holdfast.log.connection import NOBODY, Connection, NotSent
from holdfast.log.port import LogFull, LogUnavailable

RETRY_SECONDS: Final = (0.02, 0.5)
"""Pauses between tries while there is no leader; an election takes seconds (4.6 s measured)."""
ANSWER_SECONDS: Final = 2.0
"""An answer takes milliseconds; when none came by then, the request is made again."""


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


_FULL_HINT: Final = "Free space on the log servers' disks, raise their store_bytes_max, or lower the log's bytes_max."


class StreamApi:
    """One stream's requests, through one connection."""

    def __init__(self, connection: Connection, name: str) -> None:
        self.connection = connection
        self.name = name

    async def call(self, verb: str, body: dict[str, Any], seconds: float, *, of_anyone: bool = False) -> dict[str, Any]:
        """One API request, repeated while the servers start or elect. Raises LogUnavailable, LogFull, ApiError.

        While nobody leads a stream, any replica describes it, also one that is empty because its disk is new: such an
        answer counts only *of_anyone*.
        """
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
                    problem = _passing_problem(verb, answer) or (None if of_anyone else leaderless(answer))
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

    async def direct_many(self, request: dict[str, Any], seconds: float) -> tuple[list[wire.Message], bool]:
        """A batch out of one replica (the servers pick, and it may be behind), and whether it has more of them.

        Raises LogUnavailable.
        """
        *messages, end = await self.connection.request_many(
            f"$JS.API.DIRECT.GET.{self.name}",
            json.dumps(request).encode(),
            seconds,
            lambda message: message.status != 0,
        )
        if end.status == NOBODY:
            raise LogUnavailable(f"no replica of {self.name} answers")
        return messages, int(end.header(b"Nats-Num-Pending") or 0) > 0


def leaderless(answer: dict[str, Any]) -> str | None:
    """Why a stream's description (STREAM.INFO) is not its leader's; None: it is, or is of something else."""
    cluster = answer.get("cluster") or {}
    return "nobody leads it" if cluster.get("replicas") and not cluster.get("leader") else None


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


def taken_at(payload: bytes) -> int | None:
    """Where the leader put what was published, by its answer; None: it did not, and the same may succeed in a moment.

    Raises LogFull, ApiError.
    """
    answer = json.loads(payload)
    error = answer.get("error")
    if error is None:
        return int(answer["seq"])
    code, description = int(error.get("err_code", 0)), str(error.get("description"))
    if code in FULL:
        raise LogFull(f"the log is full: {description}", hint=_FULL_HINT)
    if code >= 10000 and error.get("code", 0) >= 500:
        return None
    raise ApiError("publish", code, description)
