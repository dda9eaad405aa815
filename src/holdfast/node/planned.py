"""Switchovers that come by themselves: home to the preferred machine at its hour, and those ordered for a moment.

Each is tried once. What does not come about is told of until this machine is the primary, or another order is given.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime

from holdfast.errors import HoldfastError, Refused
from holdfast.node.beats import Beat
from holdfast.node.failback import WITHIN, Home, against, due
from holdfast.node.local import Ordered
from holdfast.node.node import Node
from holdfast.node.oneself import facts_of_self
from holdfast.node.operations import Operations
from holdfast.node.outlook import Rules, Self
from holdfast.node.roles import Role
from holdfast.node.schedule import moment


class Planned:
    """One machine's."""

    def __init__(
        self, node: Node, operations: Operations, rules: Rules, act: Callable[[Awaitable[None]], None]
    ) -> None:
        """*act*: how the guard begins what takes time, one thing after the other."""
        self._node, self._operations, self._rules, self._act = node, operations, rules, act
        self._home_tried: datetime | None = None

    def go_home(self, me: Self, beats: dict[str, Beat]) -> None:
        """At the set hour, when this is the preferred machine."""
        node = self._node
        now = datetime.fromtimestamp(node.world.clocks.wall_seconds())
        at = node.world.settings.failover.failback_at
        if (
            self._rules.standbys[0] != self._rules.me
            or not due(at, now, self._home_tried)
            or node.role is not Role.STANDBY
        ):
            return
        self._home_tried = now
        if why := against(self._home(me, beats)):
            self._not_switched("no failback today", why)
            return
        self._act(self._switch(f"home to the preferred machine, as every day at {at}", "no failback today"))

    def _home(self, me: Self, beats: dict[str, Beat]) -> Home:
        node, beat = self._node, beats.get(me.primary)
        lag = node.standby.follow.lag() if node.standby is not None else None
        return Home(
            preferred=True,
            standby=node.role is Role.STANDBY,
            primary_serves=beat is not None and beat.serving and node.beats.alive(me.primary),
            paused=me.paused or (beat is not None and bool(beat.paused)),
            ready=node.readiness.last.ready,
            behind_records=0 if beat is None else max(0, beat.captured - me.applied),
            lag_ms_p99=0.0 if lag is None else lag.p99_ms,
        )

    async def _switch(self, why: str, otherwise: str) -> None:
        """*otherwise*: what did not happen, when it is refused or fails. Users were refused for a moment then, so it is
        not tried again before the next day or the next order: a person is told."""
        try:
            failure = (await self._operations.switchover(why)).failure
        except HoldfastError as error:
            failure = error.message
        if failure:
            self._not_switched(otherwise, failure)

    def _not_switched(self, what: str, why: str) -> None:
        self._node.not_switched = f"{what}: {why}"
        self._node.world.history.record(what, why)

    def as_ordered(self) -> None:
        """A switchover to this machine that a person has ordered for now. Tried once; pausing is no reason against."""
        node, ordered = self._node, self._node.world.local.state.switchover
        now = node.world.clocks.wall_seconds()
        if ordered is None or now < ordered.at or node.busy.locked():
            return
        node.world.local.change(switchover=None)
        moment = f"{datetime.fromtimestamp(ordered.at):%Y-%m-%d %H:%M}"
        not_done = f"no switchover at {moment}, as was ordered"
        home = self._home(facts_of_self(node), node.beats.all)._replace(paused=False)
        why = against(home) if now < ordered.at + WITHIN.total_seconds() else "the agent did not run at that time"
        if why:
            self._not_switched(not_done, why)
            return
        self._act(self._switch(f"ordered for {moment}: {ordered.why}", not_done))

    def order_switchover(self, at: str, why: str) -> float:
        """At the moment *at* (``schedule.moment``), become the primary; empty: take such an order back. The moment.

        Raises Refused.
        """
        node, now = self._node, datetime.fromtimestamp(self._node.world.clocks.wall_seconds())
        node.not_switched = ""
        if not at:
            node.world.local.change(switchover=None)
            node.world.history.record("the order for a switchover was taken back", why)
            return 0.0
        if node.role is not Role.STANDBY:
            raise Refused(
                f"this machine is {node.role}", hint="Give the order on the standby that is to become the primary."
            )
        due = moment(at, now)
        node.world.local.change(switchover=Ordered(due.timestamp(), why or "no reason given"))
        node.world.history.record(f"a switchover is ordered for {due:%Y-%m-%d %H:%M}", why)
        return due.timestamp()
