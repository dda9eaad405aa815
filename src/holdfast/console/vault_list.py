"""``holdfast vault list``."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

import click

from holdfast.console.emit import emit, json_option, warn
from holdfast.console.vault_options import Span, vault_options

if TYPE_CHECKING:
    from holdfast.console.vault_options import VaultChoice
    from holdfast.vault.repository import SnapshotName, Vault

SHOWN: Final = 40
"""A screen; each is a request to the store."""


@click.command("list")
@click.option(
    "--last", type=click.IntRange(0), metavar="N", help="Only the N newest; 0: all.  [default: 40; with --json all]"
)
@click.option("--max-age", type=Span(), metavar="TIME", help="Exit status 3 when the newest is older: 26h, 2d.")
@click.option("--vaults", is_flag=True, help="Not snapshots: the vaults known on this machine.")
@vault_options
@json_option
def list_snapshots(last: int | None, max_age: float | None, vaults: bool, choice: VaultChoice, as_json: bool) -> None:
    """The snapshots of a vault, oldest first: when, of what, how much, and how many things are missing in each.

    Without an identity (on a machine that may only add) names and times are all there is to see.

    \b
    Example:
      holdfast vault list --last 10
      holdfast vault list --last 1 --max-age 26h      (an alarm, from anywhere)
      holdfast vault list --json | jq -r '.snapshots[-1].taken_at'
    """
    if vaults:
        _vaults(as_json)
        return
    from holdfast.console.vault_keep import kept_facts, kept_words
    from holdfast.console.vault_open import opened
    from holdfast.console.words import iso_text, time_text
    from holdfast.errors import ExitStatus
    from holdfast.vault.instant import Archive
    from holdfast.vault.keeping import read_keepings

    with opened(choice, read=False) as at:
        names = at.vault.snapshots()
        count = last if last is not None else 0 if as_json else SHOWN
        shown = names[-count:] if count else names
        rows = [_row(at.vault, name, readable=bool(at.vault.readers)) for name in shown]
        place = at.place
        readable = bool(at.vault.readers)
        spans = Archive(at.vault).spans()
        kept = read_keepings(at.vault).kept
        held = [name.short for name in at.vault.held()]
    if as_json:
        any_second = [{"from": iso_text(begin), "to": iso_text(end)} for begin, end in spans]
        facts = {"vault": place.name, "location": place.location, "total": len(names), "snapshots": rows}
        emit({**facts, "any_second": any_second, "kept": [kept_facts(one) for one in kept], "held": held})
    elif not names:
        click.echo(f"{place.name} has no snapshot yet. Make one: holdfast vault backup")
    else:
        _show(rows, len(names), readable)
        for begin, end in spans:
            click.echo(f"any second from {time_text(begin)} to {time_text(end)} can be restored")
        for one in kept:
            click.echo(f"{one.short[:8]}  {kept_words(one)}")
        if held:
            click.echo(
                f"of {len(held):,} dropped snapshots legal holds keep a part: {', '.join(n[:8] for n in held[-5:])}"
            )
    old = max_age is not None and (not names or time.time() - names[-1].taken_at_ns / 1e9 > max_age)
    if old:
        warn("there is no snapshot as young as it should be: the backups stand still")
    if old or any(row.get("damaged") for row in rows):
        raise SystemExit(int(ExitStatus.DIFFERENCES))


def _row(vault: Vault, name: SnapshotName, *, readable: bool) -> dict[str, Any]:
    from holdfast.console.words import iso_text
    from holdfast.vault.faults import SnapshotUnknown, VaultDamaged

    row: dict[str, Any] = {
        "snapshot": name.short,
        "taken_at": iso_text(name.taken_at_ns),
        "taken_at_ns": name.taken_at_ns,
        "age_seconds": round(time.time() - name.taken_at_ns / 1e9),
    }
    if not readable:
        return row
    try:
        snapshot = vault.snapshot(name)
    except (SnapshotUnknown, VaultDamaged) as error:
        return {**row, "damaged": error.message}
    row.update(
        machine=snapshot.machine,
        trees=[tree.name for tree in snapshot.trees],
        files=snapshot.files,
        bytes=snapshot.bytes,
        gaps=snapshot.gaps_total,
    )
    return row


def _show(rows: list[dict[str, Any]], total: int, readable: bool) -> None:
    from holdfast.console.words import bytes_text, duration_text, time_text

    if len(rows) < total:
        click.echo(f"({total - len(rows):,} older ones: --last 0)")
    head = f"{'snapshot':8}  {'taken':23}  {'age':>8}"
    click.echo(head + (f"  {'files':>9}  {'bytes':>8}  {'gaps':>4}  trees" if readable else ""))
    for row in rows:
        age = duration_text(max(row["age_seconds"], 0))
        line = f"{row['snapshot'][:8]}  {time_text(row['taken_at_ns']):23}  {age:>8}"
        if "damaged" in row:
            line += f"  DAMAGED: {row['damaged']}"
        elif readable:
            trees = row["trees"][0] if len(row["trees"]) == 1 else len(row["trees"])
            line += f"  {row['files']:>9,}  {bytes_text(row['bytes']):>8}  {row['gaps'] or '':>4}  {trees}"
        click.echo(line)
    if not readable:
        click.echo("What is in them takes an identity: --identity FILE.")


def _vaults(as_json: bool) -> None:
    from holdfast.console.vault_choice import known_vaults

    known = known_vaults()
    if as_json:
        emit(
            [
                {"vault": name, "location": vault.location, "key": vault.key, "identity": vault.identity or None}
                for name, vault in known.items()
            ]
        )
        return
    for name, vault in known.items():
        click.echo(f"{name:16} {vault.location}")
        click.echo(f"{'':16} writer key {vault.key or '-'}, identity {vault.identity or '-'}")
    if not known:
        click.echo("No vault is known here. Make one: holdfast vault init LOCATION")
