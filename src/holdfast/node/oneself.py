"""What a machine knows of itself, as the tables want it; and that it looks often enough to know what it hears."""

from __future__ import annotations

import math

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
    return Self(
        role=node.role,
        epoch=int(node.epoch),
        primary=node.primary_name or "",
        serving=not node.held,
        read_only=node.world.serving.read_only,
        proved=node.proved,
        paused=bool(node.world.local.state.paused),
        paused_at=node.orders.paused_at,
        applied=follow.applied.sequence if follow is not None else 0,
        blocked=follow.blocked_because or _lacking(node) if follow is not None else "",
        takeovers=tuple(node.takeovers),
        rests_until=rests_until,
        away_seconds=_away_seconds(node),
    )


def _lacking(node: Node) -> str:
    lacking = node.copying.lacking
    return f"{lacking} files of this copy are being fetched from the primary" if lacking else ""


def _away_seconds(node: Node) -> float:
    if node.primary is None or node.primary.capture is None:
        return math.inf if node.world.serving.read_only else 0.0  # no capture has seen the log back
    waits = node.primary.capture.status()
    return max(waits.waiting_seconds, waits.log_away_seconds or 0.0)
