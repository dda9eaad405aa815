"""``holdfast vault verify``."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Final

import click

from holdfast.console.emit import emit, json_option
from holdfast.console.vault_options import vault_options

if TYPE_CHECKING:
    from holdfast.console.vault_options import VaultChoice
    from holdfast.vault.verify import Finding, Verified

FINDINGS_SHOWN_MAX: Final = 200


@click.command()
@click.option("--percent", type=click.FloatRange(0.1, 100), help="Read this share of all data; another one each day.")
@click.option("--all", "everything", is_flag=True, help="Read all data.")
@vault_options
@json_option
def verify(percent: float | None, everything: bool, choice: VaultChoice, as_json: bool) -> None:
    """Is what the snapshots list really there, and is it what was written?

    Without options the structure is checked: every directory of every snapshot, every content in its place, every
    pack of its size; a flipped bit in a mail is only found by reading it. Damage is named as files. Exit status 3.

    \b
    Example:
      holdfast vault verify --percent 5      (nightly: everything in 20 days)
      holdfast vault verify --all
    """
    from holdfast.console.vault_open import opened
    from holdfast.vault.verify import EVERYTHING, STRUCTURE, share
    from holdfast.vault.verify import verify as run

    depth = EVERYTHING if everything else share(percent, int(time.time() // 86_400)) if percent else STRUCTURE
    began = time.monotonic()
    with opened(choice) as at:
        result = run(at.vault, depth)
        place = at.place
    seconds = time.monotonic() - began
    if as_json:
        emit({"vault": place.name, "seconds": round(seconds, 3), **_facts(result)})
    else:
        _show(result, seconds)
    sys.exit(int(result.exit_status))


def _facts(result: Verified) -> dict[str, object]:
    from holdfast.console.words import path_text

    return {
        "snapshots": result.snapshots,
        "entries": result.entries,
        "packs_read": result.packs_read,
        "bytes_read": result.bytes_read,
        "findings_total": result.findings_total,
        "findings": [
            {
                "snapshot": one.snapshot,
                "tree": one.tree,
                "path": path_text(one.path),
                "reason": one.reason,
                "object": one.what,
            }
            for one in result.findings
        ],
    }


def _show(result: Verified, seconds: float) -> None:
    from holdfast.console.words import bytes_text, counted, duration_text

    read = f"{bytes_text(result.bytes_read)} of data read" if result.packs_read else "structure only"
    click.echo(
        f"{counted(result.snapshots, 'snapshot')}, {counted(result.entries, 'entry', 'entries')}, {read}, "
        f"in {duration_text(seconds)}"
    )
    if not result.findings_total:
        click.echo("no damage found")
        return
    click.echo(f"! {counted(result.findings_total, 'finding')}:", err=True)
    for finding in result.findings[:FINDINGS_SHOWN_MAX]:
        click.echo(f"  {_line(finding)}", err=True)
    if result.findings_total > FINDINGS_SHOWN_MAX:
        click.echo(f"  and {result.findings_total - FINDINGS_SHOWN_MAX:,} more (--json)", err=True)


def _line(finding: Finding) -> str:
    from holdfast.console.words import path_text

    if not finding.snapshot:
        return finding.reason
    where = f"{finding.tree}/{path_text(finding.path)}" if finding.tree else "its record"
    return f"snapshot {finding.snapshot}, {where}: {finding.reason}"
