"""What a machine knows of itself, as the tables want it; and that it looks often enough to know what it hears."""

from __future__ import annotations

from holdfast.node.node import Node
from holdfast.node.outlook import Self
from holdfast.node.story import STOOD_STILL


def listen(node: Node, now: float) -> None:
    """To be called many times a second, and before an answer that rests on what was heard."""
    if stood := node.beats.hearing.look(now):
        node.world.history.record(STOOD_STILL, "it was frozen, suspended or starved", seconds=round(stood, 3))


def facts_of_self(node: Node, rests_until: float = 0.0) -> Self:
    """*rests_until*: when the next attempt to take over may begin."""
    follow = node.standby.follow if node.standby is not None else None
    capture = node.primary.capture if node.primary is not None else None
    waits = None if capture is None else capture.status()
    return Self(
        role=node.role,
        epoch=int(node.epoch),
        primary=node.primary_name or "",
        serving=not node.held,
        proved=node.proved,
        paused=bool(node.world.local.state.paused),
        paused_at=node.paused_at,
        applied=follow.applied.sequence if follow is not None else 0,
        blocked=follow.blocked_because if follow is not None else "",
        takeovers=tuple(node.takeovers),
        rests_until=rests_until,
        away_seconds=0.0 if waits is None else max(waits.waiting_seconds, waits.log_away_seconds or 0.0),
    )
