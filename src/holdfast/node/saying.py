"""What a machine says of itself, four times a second."""

from __future__ import annotations

from typing import TYPE_CHECKING

from holdfast.node.beats import Beat
from holdfast.node.local import trees_digest
from holdfast.node.primary import scan_words

if TYPE_CHECKING:
    from holdfast.node.node import Node


def beat_of(node: Node) -> Beat:
    """As it is now."""
    beat = Beat(
        machine=node.world.settings.machine,
        role=str(node.role),
        reason=node.reason,
        version=node.world.version,
        epoch=int(node.epoch),
        known_epoch=-1 if node.known_epoch < 0 else max(node.known_epoch, int(node.epoch)),
        serving=node.world.serving.on and not node.held,
        read_only=node.world.serving.read_only and node.world.serving.on and not node.held,
        paused=node.world.local.state.paused,
        at=node.world.clocks.wall_seconds(),
        vaults=[] if node.archiver is None else node.archiver.beats(),
        policy=node.world.settings.failover.policy,
    )
    if node.primary is not None and node.primary.capture is not None:
        status = node.primary.capture.status()
        beat.incarnation, beat.captured = status.position.incarnation, status.position.sequence
        beat.applied = beat.durable = status.position.sequence
        beat.waiting_bytes, beat.waiting_seconds = status.waiting_bytes, status.waiting_seconds
        beat.log_away_seconds = -1.0 if status.log_away_seconds is None else status.log_away_seconds
        beat.log_away_because = status.log_away_because
        beat.trees = trees_digest(node.world.local.state.trees)
        if node.primary.copies is not None:
            beat.copied_at, beat.next_copy_at = node.primary.copies.copied_at, node.primary.copies.next_at
        if node.primary.scanning is not None:
            beat.progress, beat.progress_share = scan_words(node.primary.scanning)
    elif node.standby is not None:
        follow = node.standby.follow
        lag = follow.lag()
        beat.incarnation, beat.applied = follow.applied.incarnation, follow.applied.sequence
        beat.durable = follow.durable.sequence
        beat.copied_at = follow.copied_at_ns / 1e9 if node.copying.whole else 0.0
        beat.lag_ms_p50, beat.lag_ms_p99 = lag.p50_ms, lag.p99_ms
        if follow.blocked_because:
            beat.warnings.append(follow.blocked_because)
        if not node.readiness.last.ready:
            beat.warnings.append(f"not ready to take over: {node.readiness.last.problems[0]}")
    elif node.relay_view is not None:
        beat.progress, beat.warnings = node.relay_view.words, list(node.relay_view.warnings)
    elif node.seeding is not None:
        beat.progress, beat.progress_share = node.seeding.words, node.seeding.share
    return beat
