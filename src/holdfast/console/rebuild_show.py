"""What ``holdfast rebuild`` shows: the plan before, the report after."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

import click

from holdfast.console.emit import emit

if TYPE_CHECKING:
    from holdfast.rebuild.book import Book
    from holdfast.rebuild.machine import Outcome
    from holdfast.rebuild.plan import Plan
    from holdfast.vault.instant import Instant

UNITS_SHOWN_MAX: Final = 12
WORDS_SHOWN_MAX: Final = 20


def show_plan(plan: Plan, instant: Instant, book: Book, as_json: bool, *, dry_run: bool) -> None:
    if as_json:
        emit({"dry_run": True, "refusals": list(plan.refusals), **_plan_facts(plan)})
        return
    from holdfast.console.words import ago_text, bytes_text, clock_text, counted, time_text

    taken = instant.snapshot.taken_at_ns
    again = f", going on ({counted(len(book.placed), 'unit')} in place)" if book.begun else ""
    click.echo(f"Rebuild of {plan.machine or 'this machine'} from {plan.source} of {instant.snapshot.machine}{again}")
    click.echo(f"  as it was      {time_text(taken)} ({ago_text(time.time() - taken / 1e9)})")
    if plan.software is not None:
        names = ", ".join(wanted.argument for wanted in plan.software.install)
        install = f"; to install: {names}" if names else ""
        click.echo(f"  packages       {counted(plan.software.present, 'package')} of mail here{install}")
    if plan.users.users or plan.users.groups:
        names = ", ".join(f"{user.name} ({user.uid})" for user in plan.users.users)
        click.echo(f"  users          to make: {names or ', '.join(group.name for group in plan.users.groups)}")
    if plan.own.restore:
        click.echo("  site           configuration and keys of Holdfast come back too")
    if plan.completeness.known:
        present = sum(secret.state == "present" for secret in plan.completeness.secrets)
        click.echo(f"  secrets        {present} of {len(plan.completeness.secrets)} are in the snapshot")
    estimates = plan.estimates()
    total = estimates[-1].usable_after_seconds if estimates else 0.0
    size, files = plan.survey.bytes, sum(unit.files for unit in plan.units)
    click.echo(f"  store          {counted(files, 'file')}, {bytes_text(size)}", nl=False)
    rate = plan.rate.bytes_per_second
    click.echo(f"; read here at {bytes_text(rate)}/s: about {clock_text(total)}" if rate else "")
    if plan.ordered:
        click.echo("  order          mail flow, then:")
        for estimate in estimates[:UNITS_SHOWN_MAX]:
            when = f"after {clock_text(estimate.usable_after_seconds)}"
            active = time_text(estimate.active_ns)[:16]
            click.echo(f"    {estimate.name:40} {bytes_text(estimate.bytes):>9}  last change {active}  back {when}")
        if len(estimates) > UNITS_SHOWN_MAX:
            click.echo(f"    and {len(estimates) - UNITS_SHOWN_MAX} more; --json names all")
    _words(plan.notes, "note")
    _words(plan.differences, "lacks")
    _words(plan.refusals, "refused")
    if dry_run:
        click.echo("Nothing was changed.")


def _words(sentences: tuple[str, ...], mark: str) -> None:
    for words in sentences[:WORDS_SHOWN_MAX]:
        click.echo(f"! {mark}: {words}" if mark != "note" else f"  {words}", err=mark != "note")
    if len(sentences) > WORDS_SHOWN_MAX:
        click.echo(f"  and {len(sentences) - WORDS_SHOWN_MAX} more; --json names all", err=mark != "note")


def _plan_facts(plan: Plan) -> dict[str, Any]:
    import msgspec

    return {
        "source": plan.source,
        "machine": plan.machine,
        "ordered": plan.ordered,
        "install": [wanted.argument for wanted in plan.software.install] if plan.software else [],
        "users": [user.name for user in plan.users.users],
        "groups": [group.name for group in plan.users.groups],
        "bytes": plan.survey.bytes,
        "files": sum(unit.files for unit in plan.units),
        "bytes_per_second": round(plan.rate.bytes_per_second),
        "units": [msgspec.to_builtins(estimate) for estimate in plan.estimates()],
        "secrets": [{"path": s.need.path, "kind": s.need.kind, "state": s.state} for s in plan.completeness.secrets],
        "lacks": list(plan.differences),
        "notes": list(plan.notes),
    }


def facts(plan: Plan, book: Book, outcome: Outcome, times: list[dict[str, Any]], role: str) -> dict[str, Any]:
    import msgspec

    state = book.state
    assert state is not None
    return {
        **_plan_facts(plan),
        "steps": [msgspec.to_builtins(step) for step in state.steps.values()],
        "milestones": state.milestones,
        "seconds": round(sum(step.seconds for step in state.steps.values()), 3),
        "accounts": times,
        "probes": [msgspec.to_builtins(probe) for probe in outcome.probes],
        "failures": [msgspec.to_builtins(failed) for failed in state.failures],
        "failures_total": state.failures_total,
        "role": role,
    }


def report(plan: Plan, book: Book, outcome: Outcome, role: str) -> None:
    from holdfast.console.words import bytes_text, duration_text

    state = book.state
    assert state is not None
    click.echo("")
    for probe in outcome.probes:
        click.echo(f"{'ok ' if probe.ok else 'NOT'} {probe.service:10} {probe.words}")
    click.echo("\nWhere the time went")
    total = sum(step.seconds for step in state.steps.values())
    for step in state.steps.values():
        size = f"  {bytes_text(step.bytes)}, {step.files:,} files" if step.files else ""
        click.echo(f"  {step.name:16} {duration_text(step.seconds):>8}{size}")
    click.echo(f"  {'in all':16} {duration_text(total):>8}")
    for name, seconds in state.milestones.items():
        click.echo(f"  {name + ' after':28} {duration_text(seconds):>8}")
    for failed in state.failures[:WORDS_SHOWN_MAX]:
        click.echo(f"! {failed.path}: {failed.reason}", err=True)
    if state.failures_total > WORDS_SHOWN_MAX:
        click.echo(f"! and {state.failures_total - WORDS_SHOWN_MAX} more in {book.folder}/book.json", err=True)
    _words(plan.differences, "lacks")
    if role:
        click.echo(f"\nThis machine: {role}")
    elif plan.own.settings is not None:
        addresses = ", ".join(plan.own.settings.service.addresses)
        click.echo(
            f"\nClients look for the mail server at {addresses or 'its own address'}. To put it under protection:"
        )
        click.echo("  systemctl enable --now holdfast; holdfast status")
        click.echo("  as primary, if status says blocked or waiting: holdfast found; as standby nothing more")
