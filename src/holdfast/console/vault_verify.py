"""``holdfast vault verify``."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import click

from holdfast.console.emit import emit, json_option, warn
from holdfast.console.vault_options import limit_option, vault_options

if TYPE_CHECKING:
    from pathlib import Path

    from holdfast.console.progress import Progress
    from holdfast.console.vault_open import OpenedVault
    from holdfast.console.vault_options import VaultChoice
    from holdfast.vault.repair import Repaired
    from holdfast.vault.repository import Vault
    from holdfast.vault.verify import Depth, Finding, Verified

FINDINGS_SHOWN_MAX: Final = 200


class _Wish(NamedTuple):
    days: float | None
    percent: float | None
    everything: bool
    repair: bool
    copy: str


@click.command()
@click.option("--days", type=click.FloatRange(0.5), help="Read what is due, so that all is read once in so many days.")
@click.option("--percent", type=click.FloatRange(0.1, 100), help="Read this share; another one each day.")
@click.option("--all", "everything", is_flag=True, help="Read all data.")
@click.option("--repair", is_flag=True, help="Write again what was lost, from files that still have it.")
@click.option("--copy", default="", metavar="LOCATION", help="With --repair: a copy of the vault, to take it from.")
@click.option("--quiet", is_flag=True, help="No progress.")
@limit_option
@vault_options
@json_option
def verify(
    days: float | None,
    percent: float | None,
    everything: bool,
    repair: bool,
    copy: str,
    quiet: bool,
    limit: int,
    choice: VaultChoice,
    as_json: bool,
) -> None:
    """Is what the snapshots list really there, and is it what was written?

    Without options the structure is checked: every directory of every snapshot, every content in its place, every
    pack of its size; a flipped bit in a mail is only found by reading it. Damage is named as files, with account and
    folder. Exit status 3.

    --repair takes what was lost from the trees, where this machine (primary or standby) still has the files, and with
    --copy from a copy of the vault; what is not exactly what was lost is never written. Then everything is verified.

    \b
    Example:
      holdfast vault verify --days 20 --quiet      (a timer, every night)
      holdfast vault verify --all
      holdfast vault verify --all --repair --copy /mnt/second/backups
    """
    if copy and not repair:
        raise click.UsageError("--copy goes with --repair")
    from holdfast.console.progress import Progress
    from holdfast.console.vault_open import opened

    wish = _Wish(days, percent, everything, repair, copy)
    began = time.monotonic()
    with (
        Progress("reading", quiet=quiet or as_json) as progress,
        opened(choice, write=repair, limit=limit, watch=progress.transfer) as at,
    ):
        found = _verified(at.vault, wish, progress)
        repaired = _repaired(at, found, wish, progress) if repair and found.findings_total else None
        turn = _turn(at.vault)
        place = at.place
    seconds = time.monotonic() - began
    left = repaired.after if repaired is not None else found
    if as_json:
        facts = {"vault": place.name, "seconds": round(seconds, 3), **_facts(left), **turn}
        emit(facts if repaired is None else {**facts, "repaired": _repair_facts(found, repaired)})
    else:
        _show(found, seconds, turn)
        if repaired is not None:
            _show_repair(repaired, f"holdfast vault copy --vault {copy or 'COPY'} {place.location}")
    sys.exit(int(left.exit_status))


def _verified(vault: Vault, wish: _Wish, progress: Progress) -> Verified:
    from holdfast.console.vault_whose import Whose
    from holdfast.vault import turns
    from holdfast.vault.verify import verify as run

    def tell(so_far: Verified) -> None:
        progress.total_bytes = so_far.bytes_to_read
        progress.at(so_far.bytes_read)

    result = run(vault, _depth(vault, wish), whose=Whose(vault), progress=tell)
    if wish.days or wish.percent or wish.everything:
        turns.took_turn(vault, result, time.time())
    return result


def _depth(vault: Vault, wish: _Wish) -> Depth:
    from holdfast.vault import turns
    from holdfast.vault.verify import EVERYTHING, STRUCTURE, share

    if wish.everything:
        return EVERYTHING
    if wish.days:
        return turns.next_turn(vault, wish.days, time.time())
    return share(wish.percent, int(time.time() // 86_400)) if wish.percent else STRUCTURE


def _repaired(at: OpenedVault, found: Verified, wish: _Wish, progress: Progress) -> Repaired:
    from holdfast.console.vault_choice import absolute
    from holdfast.vault.location import open_backend
    from holdfast.vault.repair import repair

    copy = open_backend(absolute(wish.copy)) if wish.copy else None
    try:
        return repair(
            at.vault, found, copy=copy, trees=_trees_here(at.vault), progress=lambda now: progress.at(now.bytes_read)
        )
    finally:
        if copy is not None:
            copy.close()


def _trees_here(vault: Vault) -> dict[str, Path]:
    """Where the trees of the newest readable snapshot stand on this machine."""
    import os
    from pathlib import Path

    from holdfast.vault.faults import VaultDamaged

    for name in reversed(vault.snapshots()):
        try:
            snapshot = vault.snapshot(name)
        except VaultDamaged:
            continue
        roots = {tree.name: Path(os.fsdecode(tree.root)) for tree in snapshot.trees}
        return {name: root for name, root in roots.items() if root.is_dir()}
    return {}


def _turn(vault: Vault) -> dict[str, Any]:
    from holdfast.vault import turns

    state = turns.turning(vault)
    oldest = None if state.oldest_seconds is None else round(time.time() - state.oldest_seconds)
    return {"bytes": state.bytes, "never_read_bytes": state.unread_bytes, "oldest_read_seconds_ago": oldest}


def _facts(result: Verified) -> dict[str, Any]:
    return {
        "snapshots": result.snapshots,
        "entries": result.entries,
        "packs_read": result.packs_read,
        "bytes_read": result.bytes_read,
        "findings_total": result.findings_total,
        "findings": [_finding_facts(one) for one in result.findings],
    }


def _finding_facts(one: Finding) -> dict[str, str]:
    from holdfast.console.words import path_text

    facts = {"snapshot": one.snapshot, "tree": one.tree, "path": path_text(one.path), "whose": one.whose}
    return {**facts, "reason": one.reason, "object": one.what}


def _repair_facts(found: Verified, repaired: Repaired) -> dict[str, Any]:
    facts = {"objects": list(repaired.objects), "contents": repaired.contents, "saved": repaired.saved}
    return {**facts, "findings_before": found.findings_total}


def _show(result: Verified, seconds: float, turn: dict[str, Any]) -> None:
    from holdfast.console.words import ago_text, bytes_text, counted, duration_text

    read = f"{bytes_text(result.bytes_read)} of data read" if result.bytes_read else "structure only"
    click.echo(
        f"{counted(result.snapshots, 'snapshot')}, {counted(result.entries, 'entry', 'entries')}, {read}, "
        f"in {duration_text(seconds)}"
    )
    if turn["never_read_bytes"]:
        click.echo(f"of {bytes_text(turn['bytes'])}, {bytes_text(turn['never_read_bytes'])} were never read from here")
    elif turn["oldest_read_seconds_ago"] is not None:
        click.echo(f"all data were read, the oldest {ago_text(turn['oldest_read_seconds_ago'])}")
    if not result.findings_total:
        click.echo("no damage found")
        return
    warn(f"{counted(result.findings_total, 'finding')}:")
    _show_findings(result)


def _show_findings(result: Verified) -> None:
    for finding in result.findings[:FINDINGS_SHOWN_MAX]:
        warn(_line(finding), first="    ", rest="      ")
    if result.findings_total > FINDINGS_SHOWN_MAX:
        click.echo(f"    and {result.findings_total - FINDINGS_SHOWN_MAX:,} more (--json)", err=True)


def _line(finding: Finding) -> str:
    from holdfast.console.words import path_text

    if not finding.snapshot:
        return finding.reason
    where = f"{finding.tree}/{path_text(finding.path)}" if finding.tree else "its record"
    whose = f"{finding.whose}: " if finding.whose else ""
    return f"{whose}{where} in snapshot {finding.snapshot[:8]}: {finding.reason}"


def _show_repair(repaired: Repaired, advice: str) -> None:
    from holdfast.console.words import counted

    click.echo(
        f"repair: {counted(len(repaired.objects), 'object')} from the copy, {counted(repaired.contents, 'content')} "
        f"from files of this machine; {repaired.saved:,} moved out of damaged packs"
    )
    if repaired.after.findings_total:
        warn(f"{counted(repaired.after.findings_total, 'finding is', 'findings are')} left:")
        _show_findings(repaired.after)
        warn(f"a copy that has more than this vault gives it back: {advice}")
    else:
        click.echo("no damage is left")
