"""The vaults as one machine sees them: for ``holdfast status``, metrics and alarms."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from msgspec import Struct

from holdfast.node.beats import Beat, VaultBeat
from holdfast.node.settings import Settings
from holdfast.vault.settings import VaultSettings


class VaultView(Struct, frozen=True):
    """One of ``[[vaults]]``. Seconds: -1 when not known."""

    name: str
    location: str
    fed_by: str
    """The machine that feeds it; empty: none that is heard."""
    age_seconds: float
    """How much the loss of all machines would take: what was done in so long is not in the vault."""
    archived: int
    """The last record of the log that it has."""
    snapshot_age_seconds: float
    gaps: int
    """Of the last snapshot: what it should hold and does not."""
    gap: str
    problem: str
    objective_seconds: float


class VaultWarning(NamedTuple):
    what: str
    advice: str
    key: str
    """The cause's name, the same while the words change."""


def vault_views(settings: Settings, beats: Mapping[str, Beat | None], now_seconds: float) -> tuple[VaultView, ...]:
    """*beats*: the last of each machine that is alive, this one's own included."""
    return tuple(_view(vault, beats, now_seconds) for vault in settings.vaults)


def _view(vault: VaultSettings, beats: Mapping[str, Beat | None], now_seconds: float) -> VaultView:
    heard = [
        (told.safe_at, machine, told)
        for machine, beat in beats.items()
        for told in (beat.vaults if beat is not None else ())
        if told.name == vault.name
    ]
    _, machine, told = max(heard, default=(0.0, "", VaultBeat(vault.name)), key=lambda each: each[:2])
    return VaultView(
        name=vault.name,
        location=vault.location,
        fed_by=machine,
        age_seconds=_age(told.safe_at, now_seconds),
        archived=told.archived,
        snapshot_age_seconds=_age(told.snapshot_at, now_seconds),
        gaps=told.gaps,
        gap=told.gap,
        problem=told.problem,
        objective_seconds=vault.objective_seconds,
    )


def _age(at_seconds: float, now_seconds: float) -> float:
    return max(now_seconds - at_seconds, 0.0) if at_seconds else -1.0


def vault_warnings(views: tuple[VaultView, ...]) -> Iterator[VaultWarning]:
    """What somebody should do something about."""
    for view in views:
        name = f"vault {view.name}"
        if not view.fed_by:
            advice = "A standby or the primary must be up; has one just started, it begins within seconds."
            yield VaultWarning(f"{name} is fed by no machine that is heard", advice, f"{name} unfed")
        elif view.problem:
            advice = f"Look at {view.location} from {view.fed_by}; feeding goes on by itself when that is mended."
            yield VaultWarning(f"{name} is not fed: {view.problem}", advice, f"{name} unfed")
        if view.fed_by and view.age_seconds > view.objective_seconds:
            behind = f"{name} is {_words(view.age_seconds)} behind, its objective is {_words(view.objective_seconds)}"
            advice = "Until it has caught up, the loss of all machines would take what was done meanwhile."
            yield VaultWarning(behind, advice, f"{name} behind")
        if view.gap:
            advice = "No instant of that time can be restored; later ones can. `holdfast history` has the records."
            yield VaultWarning(f"{name} has a gap: {view.gap}", advice, f"{name} gap")
        if view.gaps:
            advice = "`holdfast vault show` names them; run `holdfast verify --heal` on the standby."
            yield VaultWarning(f"{name}: the last snapshot has {view.gaps} gaps", advice, f"{name} gaps")


def _words(seconds: float) -> str:
    if seconds < 600:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"
