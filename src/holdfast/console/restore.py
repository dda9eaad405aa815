"""``holdfast restore``: a snapshot or any instant of it, one of its trees, or what stands at a path, into a folder."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import click

from holdfast.console.emit import emit, json_option, warn
from holdfast.console.restore_options import MailWish, mail_options
from holdfast.console.vault_options import limit_option, vault_options

if TYPE_CHECKING:
    from holdfast.console.progress import Progress
    from holdfast.console.vault_options import VaultChoice
    from holdfast.console.vault_paths import PathIn
    from holdfast.vault.instant import Instant
    from holdfast.vault.record import Snapshot
    from holdfast.vault.repository import Vault
    from holdfast.vault.restore import Restored

SHOWN_MAX: Final = 50


class _Plan(NamedTuple):
    """What a restore does: the dry run shows it, the real one carries it out."""

    instant: Instant
    wanted: PathIn | None
    """None: every tree."""
    target: Path
    files: int
    bytes: int
    counted: bool
    """False: *files* and *bytes* are those of the snapshot the instant goes on from, or nobody asked."""
    gaps: tuple[str, ...]
    """What the snapshot lacks of what is wanted."""
    lacks: tuple[str, ...]
    """Secrets and the like without which what is restored will not work."""

    @property
    def snapshot(self) -> Snapshot:
        return self.instant.snapshot


@click.command()
@click.argument("path", default="")
@click.option(
    "--to", "target", metavar="FOLDER", type=click.Path(path_type=Path), help="Where to: a new or empty folder."
)
@click.option("--at", default="latest", show_default=True, metavar="WHEN", help="From when; see above.")
@click.option("--tree", default="", help="One tree only (store, config, groupware, software ...); PATH is in it.")
@mail_options
@click.option("--dry-run", is_flag=True, help="Show what would be restored, and from when; write nothing.")
@click.option("--quiet", is_flag=True, help="No progress.")
@limit_option
@vault_options
@json_option
def restore(
    path: str,
    target: Path | None,
    at: str,
    tree: str,
    dry_run: bool,
    quiet: bool,
    limit: int,
    wish: MailWish,
    choice: VaultChoice,
    as_json: bool,
) -> None:
    """Bring back a site, a tree, a path, an account, a folder, a message, an event: into a folder or the server.

    Nothing that exists is ever replaced: the folder must be new or empty. Without PATH and --tree every tree goes into
    a folder of its own below it. PATH is TREE/PATH, or a path as it stood on the machine (/home/me/Maildir/cur).
    Names, bytes, times, owners, links and attributes come back exactly; what could not be (an owner this machine does
    not know) is named, and the exit status is 3.

    \b
    WHEN   latest
           '2026-11-21 14:00', 'yesterday 14:00', '2 hours ago'
           a snapshot's name, from `holdfast vault list`
           a position of the log, 3f2a91c0:123456

    Times without an offset are of this machine's zone. Where the agent feeds the vault from the log, a time is exact
    to the second. Where only `holdfast vault backup` does, it means the last snapshot before it.

    \b
    Example:
      holdfast restore --to /srv/restored
      holdfast restore --at 'yesterday 14:00' --tree config --to /tmp/etc
      holdfast restore store/anna --at 3f2a91 --to /tmp/anna --dry-run
      holdfast restore --account alice@example.org --at 'monday 08:00' \\
        --into-server --dry-run
      holdfast restore --account alice@example.org --folder Projects --to /tmp/p
      holdfast restore --message 3f2a91c0-5d0e77a1c2 --into-server \\
        --into-folder Restored
    """
    from holdfast.console.progress import Progress
    from holdfast.console.vault_at import instant_at
    from holdfast.console.vault_open import opened

    if wish.asked:
        if path or tree:
            raise click.UsageError("accounts, messages and items are found by themselves: without PATH and --tree")
        from holdfast.console.restore_mail import How, restore_mail

        restore_mail(wish, How(at, target, dry_run, quiet, as_json, limit), choice)
        return
    if target is None and not dry_run:
        raise click.UsageError("say where to: --to FOLDER (new or empty)")
    with (
        Progress("restoring", quiet=quiet or as_json) as progress,
        opened(choice, limit=limit, watch=progress.transfer) as vault_at,
        instant_at(vault_at.vault, at) as instant,
    ):
        _refuse_inside_the_vault(target, vault_at.place.location)
        plan = _planned(instant, path, tree, target or Path(), count=dry_run or progress.shown)
        if dry_run:
            _show_plan(plan, target, as_json)
            sys.exit(int(_status(plan, None)))
        if not as_json:
            _announce(plan)
        restored = _carried_out(plan, progress)
        _report(plan, restored, progress.seconds, as_json)
    sys.exit(int(_status(plan, restored)))


def _refuse_inside_the_vault(target: Path | None, location: str) -> None:
    from holdfast.errors import Refused

    if target is None or "://" in location:
        return
    vault = Path(location).resolve()
    if vault in (target.resolve(), *target.resolve().parents):
        raise Refused(f"{target} is inside the vault", hint="Give a folder elsewhere.")


def _planned(instant: Instant, path: str, tree: str, target: Path, *, count: bool) -> _Plan:
    """*count*: walk what is wanted for its size; somebody will see it."""
    from holdfast.changes.exchange import EntryKind
    from holdfast.console.vault_paths import path_in
    from holdfast.mail.vault_inventory import completeness
    from holdfast.vault.record import lookup, walk

    vault, snapshot = instant.vault, instant.snapshot
    if not path and not tree:
        counted = snapshot.files >= 0
        counts = snapshot if counted else vault.snapshot(instant.target.base)
        lacks = completeness(snapshot.trees, vault.content).gaps
        return _Plan(instant, None, target, counts.files, counts.bytes, counted, _gaps(snapshot, None), lacks)
    wanted = path_in(snapshot, path, tree)
    entry = lookup(wanted.tree, wanted.path, vault.content)
    below = walk(entry.content, vault.content) if count and entry.kind is EntryKind.DIRECTORY else iter(())
    found = [one.entry.size for one in below if one.entry.kind is EntryKind.FILE]
    if entry.kind is EntryKind.FILE:
        found = [entry.size]
    return _Plan(instant, wanted, target, len(found), sum(found), count, _gaps(snapshot, wanted), ())


def _gaps(snapshot: Snapshot, wanted: PathIn | None) -> tuple[str, ...]:
    """Those that touch what is wanted; what the inventory says is said as what the restore lacks."""
    from holdfast.console.words import INVENTORY, gap_text

    return tuple(
        gap_text(gap.tree, gap.path, gap.reason)
        for gap in snapshot.gaps
        if (wanted is None and gap.tree != INVENTORY)
        or (wanted is not None and gap.tree == wanted.tree.name and _touches(gap.path, wanted.path))
    )


def _touches(gap: bytes, path: bytes) -> bool:
    """Whether one is, or stands below, the other."""
    return not path or not gap or (gap + b"/").startswith(path + b"/") or (path + b"/").startswith(gap + b"/")


def _carried_out(plan: _Plan, progress: Progress) -> Restored:
    from holdfast.vault.restore import restore_path, restore_snapshot

    vault: Vault = plan.instant.vault
    progress.total_bytes = plan.bytes

    def show(so_far: Restored) -> None:
        progress.at(so_far.bytes, so_far.files)

    try:
        if plan.wanted is None:
            return restore_snapshot(vault, plan.snapshot, plan.target, progress=show)
        return restore_path(vault, plan.wanted.tree, plan.wanted.path, plan.target, progress=show)
    finally:
        progress.clear()


def _status(plan: _Plan, restored: Restored | None) -> int:
    from holdfast.errors import ExitStatus

    if plan.gaps or plan.lacks:
        return ExitStatus.DIFFERENCES
    return ExitStatus.DONE if restored is None else restored.exit_status


def _what(plan: _Plan) -> str:
    from holdfast.console.words import path_text

    if plan.wanted is None:
        return "trees " + ", ".join(tree.name for tree in plan.snapshot.trees)
    return f"tree {plan.wanted.tree.name}" + (f", {path_text(plan.wanted.path)}" if plan.wanted.path else "")


def _announce(plan: _Plan) -> None:
    from holdfast.console.vault_at import instant_words

    click.echo(f"from {instant_words(plan.instant)}")


def _show_plan(plan: _Plan, target: Path | None, as_json: bool) -> None:
    from holdfast.console.words import bytes_text, counted

    if as_json:
        emit({"dry_run": True, **_facts(plan), "to": str(target) if target else None})
        return
    _announce(plan)
    about = "" if plan.counted else "about "
    where = f" into {target}" if target else ""
    click.echo(f"would restore {_what(plan)}: {about}{counted(plan.files, 'file')}, {bytes_text(plan.bytes)}{where}")
    _show_gaps(plan)
    if target is not None and target.is_dir() and any(target.iterdir()):
        click.echo(f"! {target} is not empty: it would be refused. Give a new folder.", err=True)
    click.echo("Nothing was written (--dry-run).")


def _show_gaps(plan: _Plan) -> None:
    from holdfast.console.words import counted

    if plan.gaps:
        click.echo(f"! the snapshot lacks {counted(len(plan.gaps), 'thing')} of it, or has it not for sure:", err=True)
    for gap in plan.gaps[:SHOWN_MAX]:
        warn(gap, first="    ", rest="      ")
    for words in plan.lacks:
        warn(f"missing: {words}")


def _facts(plan: _Plan) -> dict[str, Any]:
    from holdfast.console.words import iso_text, path_text

    position = plan.instant.position
    return {
        "snapshot": plan.instant.target.base.short,
        "at": iso_text(plan.snapshot.taken_at_ns),
        "position": str(position) if position else None,
        "machine": plan.snapshot.machine,
        "trees": [tree.name for tree in plan.snapshot.trees] if plan.wanted is None else [plan.wanted.tree.name],
        "path": path_text(plan.wanted.path) if plan.wanted is not None else "",
        "files": plan.files,
        "bytes": plan.bytes,
        "counted": plan.counted,
        "gaps": list(plan.gaps),
        "lacks": list(plan.lacks),
    }


def _report(plan: _Plan, restored: Restored, seconds: float, as_json: bool) -> None:
    from holdfast.console.words import bytes_text, counted, duration_text, path_text

    if as_json:
        failures = [{"path": path_text(one.path), "reason": one.reason} for one in restored.failures]
        done = {"restored_files": restored.files, "restored_bytes": restored.bytes, "seconds": round(seconds, 3)}
        end = {"failures": failures, "failures_total": restored.failures_total}
        facts = {**_facts(plan), "files": restored.files, "bytes": restored.bytes, "counted": True}
        emit({"dry_run": False, **facts, "to": str(plan.target), **done, **end})
        return
    files, size = counted(restored.files, "file"), bytes_text(restored.bytes)
    click.echo(f"restored {_what(plan)}: {files}, {size} into {plan.target} ({duration_text(seconds)})")
    _show_gaps(plan)
    if restored.failures_total:
        what = counted(restored.failures_total, "thing is", "things are")
        click.echo(f"! {what} not back, or not exactly:", err=True)
    _show_failures(restored)


def _show_failures(restored: Restored) -> None:
    """By reason: an owner this machine does not know is one thing to mend, and not a hundred thousand."""
    from holdfast.console.words import path_text

    by_reason: dict[str, list[bytes]] = {}
    for failure in restored.failures:
        by_reason.setdefault(failure.reason, []).append(failure.path)
    for reason, paths in list(by_reason.items())[:SHOWN_MAX]:
        more = f" (and {len(paths) - 1:,} more)" if len(paths) > 1 else ""
        warn(f"{path_text(paths[0]) or '.'}{more}: {reason}", first="    ", rest="      ")
    if len(by_reason) > SHOWN_MAX or restored.failures_total > len(restored.failures):
        click.echo("    and more (--json names them)", err=True)
