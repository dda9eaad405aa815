"""The status as Prometheus metrics, one sample per fact that an alarm could be set on."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Gauge, generate_latest

from holdfast.node.status import SiteStatus


def render_metrics(status: SiteStatus) -> bytes:
    """Text exposition format, version 0.0.4."""
    registry = CollectorRegistry()

    def gauge(name: str, text: str, value: float, **labels: str) -> None:
        metric = known.get(name)
        if metric is None:
            metric = known[name] = Gauge(f"holdfast_{name}", text, list(labels), registry=registry)
        (metric.labels(**labels) if labels else metric).set(value)

    known: dict[str, Gauge] = {}
    gauge("epoch", "Number of the last promotion this machine knows", status.epoch)
    gauge("serving", "1 when this machine serves mail", status.serving)
    gauge("read_only", "1 when it serves, and its gates refuse changes", status.read_only)
    gauge("log_reachable", "1 when the log answers", status.log.reachable)
    gauge("log_last_sequence", "The log's last record", status.log.last)
    gauge("log_first_sequence", "The log's first record", status.log.first)
    gauge("log_stored_bytes", "Bytes one replica of the log uses", status.log.stored_bytes)
    gauge("unlogged_bytes", "Captured by the primary, not in the log; -1 unknown", status.lost_if_primary_died_bytes)
    if status.failover.policy == "interval":
        gauge("copy_timestamp_seconds", "The newest whole copy on a standby that is heard; 0 none", status.copied_at)
    gauge("files", "Files in this machine's trees", status.files)
    gauge("bytes", "Bytes in this machine's trees", status.bytes)
    gauge("warnings", "Warnings `holdfast status` shows", len(status.warnings))
    gauge("verified_timestamp_seconds", "When this copy was last compared; 0 never", status.verified_at)
    gauge("verified_differences", "Differences the last verify named; -1 never", status.verified_differences)
    for view in status.machines:
        gauge("machine_alive", "1 when the machine was heard in the last 2 s", view.alive, machine=view.name)
        gauge("machine_behind_records", "Records not applied; -1 none to apply", view.behind_records, machine=view.name)
        gauge("machine_lag_p99_milliseconds", "Captured to applied, -1 unknown", view.lag_ms_p99, machine=view.name)
    for vault in status.vaults:
        gauge(
            "vault_age_seconds",
            "What was done in so long is not in the vault; -1 unknown",
            vault.age_seconds,
            vault=vault.name,
        )
        gauge("vault_archived_sequence", "The last record of the log the vault has", vault.archived, vault=vault.name)
        snapshot = "Age of the vault's newest snapshot; -1 unknown"
        gauge("vault_snapshot_age_seconds", snapshot, vault.snapshot_age_seconds, vault=vault.name)
        gauge("vault_snapshot_gaps", "What the newest snapshot should hold and does not", vault.gaps, vault=vault.name)
        gauge("vault_problem", "1 when the vault is not fed", bool(vault.problem) or not vault.fed_by, vault=vault.name)
    if status.readiness.checked_at:
        gauge("standby_ready", "1 when this standby could take over, as far as was checked", status.readiness.ready)
        gauge("standby_checked_timestamp_seconds", "When that was checked", status.readiness.checked_at)
    if status.rehearsal.at:
        gauge("standby_rehearsed", "1 when the last rehearsal went well", status.rehearsal.ok)
        gauge("standby_rehearsed_timestamp_seconds", "When the last rehearsal was", status.rehearsal.at)
        gauge("standby_rehearsal_seconds", "How long it took", status.rehearsal.seconds)
    gauge("role", "1 for the role this machine has", 1, role=status.role)
    return generate_latest(registry)
