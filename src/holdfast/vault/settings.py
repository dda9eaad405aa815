"""The ``[[vaults]]`` tables of ``/etc/holdfast/holdfast.toml``: where backups go, how often, how long they stay."""

from __future__ import annotations

import re
from typing import Final, Literal

from msgspec import Struct, field

from holdfast.errors import ConfigurationError
from holdfast.vault.keep import KeepRules
from holdfast.vault.location import parse_location

DAY_SECONDS: Final = 86_400.0
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_TIME: Final = re.compile(r"([01]\d|2[0-3]):[0-5]\d")


class KeepSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``[vaults.keep]``: what a prune leaves. The newest snapshot without gaps always stays."""

    every_second_days: float = 7.0
    """Any second of so many days back can be restored: all snapshots and archived records of that time stay."""
    last: int = 0
    """So many newest snapshots, ..."""
    hourly: int = 0
    """... the newest of each of so many hours that have one, ..."""
    daily: int = 30
    """... and likewise of days, weeks (ISO 8601), months and years."""
    weekly: int = 12
    monthly: int = 24
    yearly: int = 0
    brake_percent: float = 25.0
    """A prune pauses when since the last one more than this share of the files or bytes was deleted or rewritten; see
    [backups](../operations/backups.md)."""

    def rules(self) -> KeepRules:
        return KeepRules(
            within_seconds=self.every_second_days * DAY_SECONDS,
            last=self.last,
            hourly=self.hourly,
            daily=self.daily,
            weekly=self.weekly,
            monthly=self.monthly,
            yearly=self.yearly,
        )


class VaultSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``[[vaults]]``: one vault that the agent feeds from the log. Several are fed beside each other."""

    name: str
    location: str
    """``/path``, ``s3://bucket/prefix?endpoint=URL&region=R`` or ``sftp://user@host:port/path?key=FILE``."""
    key: str
    """The file with the writer key that `holdfast vault init` made; on every machine that may feed the vault."""
    identity: str = ""
    """A reader's identity file, for commands on this machine. The agent needs none: leave it out where the mail server
    must not be able to read its own history."""
    fed_by: Literal["standby", "primary"] = "standby"
    """``standby``: the standby feeds it, and the primary while there is no standby. ``primary``: always the primary."""
    archive_seconds: float = 15.0
    """What changed is put into the vault at least this often: what the loss of all machines would take."""
    snapshot_minutes: float = 60.0
    """A snapshot so often, while something changes; 0: only at ``snapshot_times``. Between two snapshots any second can
    be restored, too: more snapshots make that quicker."""
    snapshot_times: tuple[str, ...] = ()
    """And at these times of the day, as ``"02:30"``, by this machine's clock."""
    objective_seconds: float = 300.0
    """`holdfast status` warns when the vault is further behind the log than this."""
    bytes_per_second: int = 0
    """Limit for what is sent; 0: none."""
    keep: KeepSettings = field(default_factory=KeepSettings)


def checked_vaults(vaults: tuple[VaultSettings, ...]) -> None:
    """Raises ConfigurationError, which names the vault and the key."""
    names = [vault.name for vault in vaults]
    for vault in vaults:
        where = f"vault {vault.name!r}"
        if not _NAME.fullmatch(vault.name) or names.count(vault.name) > 1:
            hint = "Give each [[vaults]] its own, of lower-case letters, digits and hyphens."
            raise ConfigurationError(f"{where}: this name is not usable, or taken", hint=hint)
        parse_location(vault.location)
        if not vault.key.startswith("/") or (vault.identity and not vault.identity.startswith("/")):
            raise ConfigurationError(f"{where}: key and identity are files", hint="Write their whole paths, from /.")
        for time in vault.snapshot_times:
            if not _TIME.fullmatch(time):
                raise ConfigurationError(f"{where}: snapshot_times: {time!r} is no time", hint='Write it as "02:30".')
        if not 0 < vault.keep.brake_percent <= 100:
            raise ConfigurationError(
                f"{where}: keep.brake_percent is no share", hint="Give 1 to 100; 100 never brakes."
            )
        if vault.archive_seconds <= 0 or vault.snapshot_minutes < 0 or vault.objective_seconds <= 0:
            hint = "archive_seconds and objective_seconds are above 0, snapshot_minutes is not below."
            raise ConfigurationError(f"{where}: a time is impossible", hint=hint)
        if vault.objective_seconds < vault.archive_seconds:
            hint = "It can be met only when archive_seconds is shorter."
            raise ConfigurationError(f"{where}: objective_seconds is below archive_seconds", hint=hint)
