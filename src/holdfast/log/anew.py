"""All the site's log servers begin anew together, when those with the log have lost their disks.

Terms. The servers' *metadata* (which streams there are) is a Raft group of its own, "meta". It is *whole* when every
server of the site answers, all name the same leader, and the leader counts all others among its replicas.

Why. A server with an empty store does not remember whom it voted for, and founds a new meta group with whatever other
empty server it meets (two are enough: nats-server's raft.go bootstrapRaftNode expects as many as it has routes). When
two of three have lost their disks, the third, which still has the old log, may stay outside of the new group for good:
a log of three replicas is then refused with "no suitable peers for placement", and whether it comes to that is chance.
Votes were lost, so nothing that these servers agree on can be relied upon.

How. Every machine's agent is asked on ``hf.<segment>.anew.<machine>``, answers, stops its server, moves the store
aside, and starts it empty after a rest that is long enough for all of them to be down at the same time. So none with an
old store meets an empty one. The old stores are kept on disk, of each machine those of the last day.

Invariants. It comes to this only when the metadata is not whole. A server that still keeps a log does it only by a
person's order to found the log anew: a machine whose disk was replaced may be told that there is no log, by servers
as new as it is. A server that keeps the log of another segment refuses. A relay's certificate cannot ask.

What it does not promise. That the log is made when a machine is away: all must answer first, and nothing is stopped
before they have. That side streams go on: they lie in the same store, had lost their quorum as well, and are kept aside
with it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Final

from holdfast.changes.names import MachineName, SegmentName
from holdfast.errors import Refused, Unreachable
from holdfast.log.connection import Connection
from holdfast.log.port import Bus
from holdfast.log.server import LogServer
from holdfast.log.servers import server_views

WHOLE_SECONDS_MAX: Final = 10.0
"""A group that only has to elect a leader is whole within this (elections take 4 to 9 s)."""
LOOK_SECONDS: Final = 0.25
ANSWER_SECONDS: Final = 2.0
REST_SECONDS: Final = 3.0
"""How long a server stays down: the others are told within the same second, and stop within one."""
LEAVE_SECONDS: Final = 0.2
"""Between the answer and the stop: the answer travels through the server that is stopped."""
EMPTY: Final = b"empty"
"""Asked instead of ``able`` where no person has given the order."""

Views = Mapping[str, Mapping[str, Any]]
"""By server: its account of the meta group, as ``/jsz`` gives it (``meta_cluster``)."""


def is_whole(views: Views, names: frozenset[str]) -> bool:
    """Whether *names*, all of them and no others, are one group with one leader, and none of them is away."""
    leaders = {view.get("leader") for view in views.values()}
    if set(views) != names or len(leaders) != 1:
        return False
    leader = leaders.pop()
    if leader not in names:
        return False
    replicas = {replica["name"]: replica for replica in views[str(leader)].get("replicas") or ()}
    return set(replicas) == names - {leader} and all(
        replica.get("current") and not replica.get("offline") for replica in replicas.values()
    )


async def meta_views(connection: Connection, names: frozenset[str]) -> Views:
    """What each server says of the meta group; those that do not answer are left out."""
    views = await server_views(connection, len(names), ANSWER_SECONDS)
    return {name: view.meta for name, view in views.items()}


async def whole(connection: Connection, names: frozenset[str], seconds: float = WHOLE_SECONDS_MAX) -> bool:
    """Whether the meta group is whole, or becomes so within *seconds*."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    while not is_whole(await meta_views(connection, names), names):
        if loop.time() >= deadline:
            return False
        await asyncio.sleep(LOOK_SECONDS)
    return True


class Anew:
    """One machine's part: it asks the others, and does as it is asked."""

    def __init__(self, bus: Bus, segment: SegmentName, me: MachineName, server: LogServer) -> None:
        self._bus = bus
        self._segment = segment
        self._me = me
        self._server = server
        self._beginning: asyncio.Task[None] | None = None

    async def serve(self) -> None:
        """From now on do as another machine asks."""
        await self._bus.serve(self._subject(self._me), self._asked)

    async def order(self, others: frozenset[str], *, by_person: bool) -> None:
        """All *others* and this machine begin anew; returns when this one's server runs again.

        Raises Refused, Unreachable (a machine does not answer: nothing was done), and what a server's start raises.
        """
        self._refuse_if_shared()
        if not by_person:
            self._refuse_if_kept()
        for question in (b"able" if by_person else EMPTY, b"begin"):
            await asyncio.gather(*(self._ask(machine, question) for machine in others))
        await self._server.begin_anew(REST_SECONDS)

    async def _ask(self, machine: str, question: bytes) -> None:
        try:
            await self._bus.request(self._subject(machine), question, timeout_seconds=ANSWER_SECONDS)
        except Unreachable as error:
            raise Unreachable(
                f"the log servers do not agree with each other, and {machine} does not answer",
                hint=f"Start the agent on {machine}: all log servers must begin anew together.",
                retry=True,
            ) from error

    async def _asked(self, subject: str, question: bytes) -> bytes:
        self._refuse_if_shared()
        if question == EMPTY:
            self._refuse_if_kept()
        if question == b"begin" and (self._beginning is None or self._beginning.done()):
            self._beginning = asyncio.create_task(self._begin(), name="log server begins anew")
        return b"yes"

    async def _begin(self) -> None:
        await asyncio.sleep(LEAVE_SECONDS)
        await self._server.begin_anew(REST_SECONDS)

    def _refuse_if_shared(self) -> None:
        own = f"HF_{self._segment}"
        others = {name for name in self._server.streams() if name != own and not name.startswith(f"{own}_")}
        if others:
            raise Refused(
                f"the log server of {self._me} also keeps {', '.join(sorted(others))}",
                hint="The log servers do not agree with each other. See docs/operations/log-trouble.md.",
            )

    def _refuse_if_kept(self) -> None:
        if self._server.streams():
            raise Refused(
                f"the log servers do not agree with each other, and that of {self._me} still keeps a log",
                hint="On the machine whose trees are the mail: `holdfast found`. See docs/operations/log-trouble.md.",
            )

    def _subject(self, machine: str) -> str:
        return f"hf.{self._segment}.anew.{machine}"
