"""``holdfast vault copy``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from holdfast.console.emit import emit, json_option
from holdfast.console.vault_options import limit_option, vault_options

if TYPE_CHECKING:
    from holdfast.console.vault_options import VaultChoice
    from holdfast.vault.copy import Copied, Copying, CopyPlan

FAILURES_SHOWN_MAX = 20


@click.command()
@click.argument("target", metavar="LOCATION")
@click.option("--new", is_flag=True, help="The first copy: LOCATION holds no vault yet.")
@click.option("--dry-run", is_flag=True, help="Show what is missing there, copy nothing.")
@click.option("--quiet", is_flag=True, help="No progress.")
@limit_option
@vault_options
@json_option
def copy(target: str, new: bool, dry_run: bool, quiet: bool, limit: int, choice: VaultChoice, as_json: bool) -> None:
    """Copy a vault to a second place: what is not there yet.

    The copy is the same vault, opened by the same keys. No key is needed to make it: a machine that can read nothing
    can do it, and damage is found on the way, named, and not copied. Repeated, it brings what is new; interrupted, it
    goes on. It takes nothing away: prune the copy with rules that keep at least as much.

    Without --new a place without a vault is refused: it may be a disk that is not mounted.

    \b
    Example:
      holdfast vault copy --new sftp://backup@other.example/srv/copy
      holdfast vault copy --quiet sftp://backup@other.example/srv/copy
      holdfast restore --vault sftp://backup@other.example/srv/copy --to /tmp/x
    """
    from holdfast.console.progress import Progress
    from holdfast.console.vault_choice import absolute, vault_place
    from holdfast.console.vault_open import open_place
    from holdfast.errors import Refused
    from holdfast.vault.copy import execute_copy, plan_copy
    from holdfast.vault.location import open_backend

    place = vault_place(choice)
    location = absolute(target)
    if location == place.location:
        raise Refused("the copy would be the vault itself", hint="Give another place.")
    with Progress("copying", quiet=quiet or as_json) as progress:
        source = open_place(place, limit, progress.transfer)
        there = open_backend(location, create=new and not dry_run, progress=progress.transfer)
        try:
            plan = plan_copy(source, there)
            if plan.new and not new:
                hint = "If this is the first copy, say --new. Otherwise look whether its disk is mounted."
                raise Refused(f"{location} holds no vault", hint=hint)
            if dry_run:
                _show_plan(plan, location, as_json)
                return
            progress.total_bytes = plan.bytes
            copied = execute_copy(source, there, plan, lambda now: _tell(progress, now))
            seconds = progress.seconds
        finally:
            source.close()
            there.close()
    _report(plan, copied, location, seconds, as_json)
    sys.exit(int(copied.exit_status))


def _tell(progress: Any, now: Copying) -> None:
    progress.at(now.bytes)


def _plan_facts(plan: CopyPlan, location: str) -> dict[str, Any]:
    return {"to": location, "new": plan.new, "there": plan.there, "objects": plan.objects, "bytes": plan.bytes}


def _show_plan(plan: CopyPlan, location: str, as_json: bool) -> None:
    from holdfast.console.words import bytes_text, counted

    if as_json:
        emit({"dry_run": True, **_plan_facts(plan, location)})
        return
    click.echo(f"{location} has {counted(plan.there, 'object')}")
    click.echo(f"would copy {counted(plan.objects, 'object')}, {bytes_text(plan.bytes)}")
    click.echo("Nothing was copied (--dry-run).")


def _report(plan: CopyPlan, copied: Copied, location: str, seconds: float, as_json: bool) -> None:
    from holdfast.console.words import bytes_text, counted, duration_text

    if as_json:
        failures = [{"object": name, "reason": reason} for name, reason in copied.failures]
        done = {"copied_objects": copied.objects, "copied_bytes": copied.bytes, "seconds": round(seconds, 3)}
        emit({"dry_run": False, **_plan_facts(plan, location), **done, "failures": failures})
        return
    what = f"{counted(copied.objects, 'object')}, {bytes_text(copied.bytes)}"
    click.echo(f"copied {what} to {location} ({duration_text(seconds)}); {plan.there:,} were there")
    if copied.failures:
        click.echo(f"! {counted(len(copied.failures), 'object was', 'objects were')} not copied:", err=True)
    for name, reason in copied.failures[:FAILURES_SHOWN_MAX]:
        click.echo(f"    {name}: {reason}", err=True)
    if copied.failures:
        click.echo("  What stands in them: holdfast vault verify", err=True)
