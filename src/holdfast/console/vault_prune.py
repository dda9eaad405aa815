"""``holdfast vault prune``."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any, Final

import click

from holdfast.console.emit import emit, json_option, warn
from holdfast.console.vault_options import Span, vault_options

if TYPE_CHECKING:
    from holdfast.console.vault_open import OpenedVault
    from holdfast.console.vault_options import VaultChoice
    from holdfast.vault.keep import KeepRules
    from holdfast.vault.prune import PrunePlan, Swept

_PERIODS: Final = ("last", "hourly", "daily", "weekly", "monthly", "yearly")


def _keep_options(function: Any) -> Any:
    for period in reversed(_PERIODS):
        what = "the N newest" if period == "last" else f"the newest of each of the last N {_noun(period)} that have one"
        function = click.option(f"--keep-{period}", default=0, metavar="N", help=f"Keep {what}.")(function)
    help_text = "Keep all of this time before the newest: 36h, 14d, 8w."
    return click.option("--keep-within", type=Span(), default=0.0, metavar="TIME", help=help_text)(function)


def _noun(period: str) -> str:
    return {"daily": "days"}.get(period, period.removesuffix("ly") + "s")


@click.command()
@_keep_options
@click.option("--drop", multiple=True, metavar="SNAPSHOT", help="Drop this one, whatever the rules say. Repeatable.")
@click.option("--dry-run", is_flag=True, help="Show the plan, change nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--accept-loss", is_flag=True, help="Go on although an unusual share of the mail was deleted.")
@vault_options
@json_option
def prune(
    keep_within: float,
    drop: tuple[str, ...],
    dry_run: bool,
    yes: bool,
    accept_loss: bool,
    choice: VaultChoice,
    as_json: bool,
    **keep: int,
) -> None:
    """Drop the snapshots that no rule keeps, and free the space only they need.

    Space is freed in two steps: what nobody needs is marked now, and deleted by a prune at least 48 hours later, so
    that no backup running beside it loses anything. Interrupted, it is simply run again. It needs the writer key, an
    identity, and a store that permits deleting: usually not on the mail server.

    It pauses by itself when much of the mail was deleted or rewritten since the last prune (a quarter, by default):
    somebody may have encrypted it, and the good snapshots are those before. Look; if it was meant, --accept-loss.

    The newest snapshot without gaps always stays, and what is pinned or held. Without --keep-...: the rules of this
    vault's table in the site's configuration.

    \b
    Example:
      holdfast vault prune --keep-within 2d --keep-daily 14 --keep-weekly 8
    """
    from holdfast.console.vault_open import opened
    from holdfast.errors import ExitStatus
    from holdfast.vault.brake import SHARE_MAX
    from holdfast.vault.prune import execute_prune, plan_prune, sweep

    given = _rules(keep_within, keep)
    with opened(choice, write=True) as at:
        going = [at.vault.find_snapshot(name) for name in drop]
        rules = given or _standing(at, dropping=bool(drop))
        share_max = at.place.settings.keep.brake_percent / 100 if at.place.settings is not None else SHARE_MAX
        plan = plan_prune(at.vault, rules, drop=going, zone=_zone(), share_max=share_max)
        if not as_json:
            _show_plan(plan)
        if dry_run:
            if as_json:
                emit({"dry_run": True, **_plan_facts(plan)})
            else:
                click.echo("Nothing was changed (--dry-run).")
            sys.exit(int(ExitStatus.REFUSED if plan.loss is not None and plan.takes and not accept_loss else 0))
        braked = plan.loss is not None and plan.takes and not accept_loss
        if plan.takes and not yes and not braked:
            click.confirm("Go?", abort=True, err=True)
        execute_prune(at.vault, plan, accept_loss=accept_loss)
        swept = sweep(at.vault, time.time())
    if as_json:
        emit({"dry_run": False, **_plan_facts(plan), "swept": swept._asdict()})
    else:
        _show_swept(plan, swept)


def _rules(within_seconds: float, keep: dict[str, int]) -> KeepRules | None:
    """What the command line says; None: nothing."""
    from holdfast.vault.keep import KeepRules

    numbers = {period: keep[f"keep_{period}"] for period in _PERIODS}
    if not within_seconds and not any(numbers.values()):
        return None
    return KeepRules(within_seconds=within_seconds, **numbers)


def _standing(at: OpenedVault, *, dropping: bool) -> KeepRules:
    """Without rules on the command line: the configuration's. Snapshots named to drop alone: all others stay."""
    from holdfast.vault.keep import KeepRules

    if dropping:
        return KeepRules(last=len(at.vault.snapshots()) + 1)
    if at.place.settings is not None:
        return at.place.settings.keep.rules()
    raise click.UsageError("say what to keep: --keep-within 2d --keep-daily 14 --keep-weekly 8 ..., or --drop SNAPSHOT")


def _zone() -> Any:
    from datetime import datetime

    return datetime.now().astimezone().tzinfo


def _plan_facts(plan: PrunePlan) -> dict[str, Any]:
    return {
        "keep": [{"snapshot": name.short, "why": list(why)} for name, why in plan.keep.items()],
        "drop": [name.short for name in plan.drop],
        "dead_packs": len(plan.dead),
        "repack_packs": len(plan.repack),
        "freed_bytes": plan.freed_bytes,
        "archived_objects_dropped": len(plan.outdated),
        "held_of": [name.short for name in plan.remainders],
        "released": [name.short for name in plan.released],
        "brake": str(plan.loss) if plan.loss is not None else None,
    }


def _show_plan(plan: PrunePlan) -> None:
    from holdfast.console.words import bytes_text, counted, time_text

    rows = [(name, ", ".join(why)) for name, why in plan.keep.items()] + [(name, "") for name in plan.drop]
    for name, why in sorted(rows, key=lambda row: row[0].taken_at_ns):
        verdict = f"keep  {why}" if why else "DROP"
        click.echo(f"{name.short[:8]}  {time_text(name.taken_at_ns):23}  {verdict}")
    if plan.remainders:
        click.echo(f"of {counted(len(plan.remainders), 'snapshot')} dropped, what legal holds keep stays")
    if plan.outdated:
        click.echo(f"{counted(len(plan.outdated), 'object')} of archived log records dropped")
    if plan.loss is not None:
        warn(f"the brake: {plan.loss}")
    click.echo(
        f"{counted(len(plan.keep), 'snapshot')} kept, {len(plan.drop):,} dropped; "
        f"about {bytes_text(plan.freed_bytes)} to be freed"
    )


def _show_swept(plan: PrunePlan, swept: Swept) -> None:
    from holdfast.console.words import bytes_text, counted

    if plan.drop:
        click.echo(f"{counted(len(plan.drop), 'snapshot')} dropped")
    if swept.packs:
        click.echo(f"{counted(swept.packs, 'pack')} deleted: {bytes_text(swept.bytes)} freed")
    if swept.waiting:
        click.echo(f"{counted(swept.waiting, 'pack')} marked: a prune in 48 hours or later deletes them")
    if not plan.drop and not swept.packs and not swept.waiting:
        click.echo("nothing to do")
