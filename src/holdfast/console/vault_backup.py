"""``holdfast vault backup``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import click

from holdfast.console.emit import emit, json_option, warn
from holdfast.console.vault_options import limit_option, vault_options

if TYPE_CHECKING:
    from holdfast.console.progress import Progress
    from holdfast.console.vault_choice import VaultPlace
    from holdfast.console.vault_open import OpenedVault
    from holdfast.console.vault_options import VaultChoice
    from holdfast.trees.spec import Tree
    from holdfast.vault.backup import BackupResult
    from holdfast.vault.record import Gap

GAPS_SHOWN_MAX: Final = 20


class _Work(NamedTuple):
    machine: str
    trees: tuple[Tree, ...]
    warnings: tuple[str, ...]
    gaps: tuple[Gap, ...] = ()


@click.command()
@click.argument("paths", nargs=-1, metavar="[PATH | NAME=PATH]...")
@click.option(
    "--exclude", multiple=True, metavar="PATTERN", help="Leave this out: a name, or a path from PATH on. Repeatable."
)
@click.option("--machine", default="", help="Whose backup it is.  [default: the configuration's, or the host name]")
@click.option("--quiet", is_flag=True, help="No progress.")
@limit_option
@vault_options
@json_option
def backup(
    paths: tuple[str, ...],
    exclude: tuple[str, ...],
    machine: str,
    quiet: bool,
    limit: int,
    choice: VaultChoice,
    as_json: bool,
) -> None:
    """Add a snapshot: of the folders given, or of all trees of this machine's site.

    Each PATH becomes a tree, called after its last part or NAME. Without PATH: what /etc/holdfast/holdfast.toml
    protects (mail store, groupware, configuration, list of software), found as the agent finds it.

    Exit status 3 when something could not be read: it is named, and the rest is safe. Interrupted, it may be repeated:
    what was stored is not stored again.

    \b
    Example:
      holdfast vault backup ~/Maildir
      holdfast vault backup --vault offsite --quiet      (a timer, every night)
    """
    from holdfast.console.progress import Progress
    from holdfast.console.vault_open import opened

    with (
        Progress("backing up", quiet=quiet or as_json) as progress,
        opened(choice, write=True, read=False, limit=limit, watch=progress.transfer) as at,
    ):
        work = _work(paths, exclude, machine, at.place.location)
        result = _backed_up(at, work, progress)
        seconds = progress.seconds
    if as_json:
        emit(_facts(at.place, work, result, seconds))
    else:
        _show(work, result, seconds, at.place.location)
    if not at.place.remembered.identity_elsewhere and not as_json:
        from holdfast.console.vault_init import only_here

        click.echo("")
        for line in only_here(at.place.name):
            click.echo(line, err=True)
    sys.exit(int(result.exit_status))


def _work(paths: tuple[str, ...], exclude: tuple[str, ...], machine: str, location: str) -> _Work:
    import socket

    from holdfast.console.vault_choice import configuration_path
    from holdfast.console.vault_paths import folder_trees
    from holdfast.errors import ConfigurationError

    if paths:
        trees = tuple(folder_trees(paths, exclude, location))
        return _Work(machine or socket.gethostname().partition(".")[0], trees, ())
    if exclude:
        raise click.UsageError("--exclude goes with PATH; a site's trees have their own in the configuration")
    configuration = configuration_path()
    if not configuration.exists():
        hint = f"Say what to back up: `holdfast vault backup /home/me/Maildir`. ({configuration} would say it too.)"
        raise ConfigurationError("nothing to back up was given", hint=hint)
    from holdfast.console.vault_site import site_trees

    site = site_trees(configuration)
    return _Work(machine or site.machine, site.trees, site.warnings, site.gaps)


def _backed_up(at: OpenedVault, work: _Work, progress: Progress) -> BackupResult:
    """With the total that the last backup of these trees saw, for the time left."""
    import contextlib

    import apsw

    from holdfast.vault.backup import backup_trees

    catalog = at.vault.catalog
    fact = "bytes " + " ".join(sorted(f"{tree.name}={tree.root}" for tree in work.trees))
    progress.total_bytes = catalog.number(fact)
    if not progress.total_bytes and progress.shown:
        _count_beside(work.trees, progress)
    result = backup_trees(
        at.vault,
        work.trees,
        work.machine,
        progress=lambda counts: progress.at(counts.bytes, counts.files),
        known_gaps=work.gaps,
    )
    with contextlib.suppress(apsw.Error):  # the snapshot is made; this is for the next one's time left only
        catalog.set_number(fact, result.snapshot.bytes)
    return result


def _count_beside(trees: tuple[Tree, ...], progress: Progress) -> None:
    """The first backup does not know how much there is: a thread looks. Roughly: nothing is left out."""
    import os
    import threading

    def count() -> None:
        total = 0
        for tree in trees:
            for folder, _, names in os.walk(tree.root):
                for name in names:
                    try:
                        total += os.lstat(os.path.join(folder, name)).st_size
                    except OSError:
                        continue
        progress.total_bytes = total

    threading.Thread(target=count, name="count", daemon=True).start()


def _facts(place: VaultPlace, work: _Work, result: BackupResult, seconds: float) -> dict[str, Any]:
    from holdfast.console.words import iso_text, path_text

    snapshot = result.snapshot
    return {
        "vault": place.name,
        "location": place.location,
        "snapshot": result.name.short,
        "object": result.name.name,
        "taken_at": iso_text(snapshot.taken_at_ns),
        "machine": snapshot.machine,
        "trees": {tree.name: path_text(tree.root) for tree in snapshot.trees},
        "files": snapshot.files,
        "bytes": snapshot.bytes,
        "files_read": result.files_read,
        "added_bytes": result.added_bytes,
        "written_bytes": result.written_bytes,
        "skipped": snapshot.skipped_total,
        "seconds": round(seconds, 3),
        "gaps": [{"tree": gap.tree, "path": path_text(gap.path), "reason": gap.reason} for gap in snapshot.gaps],
        "gaps_total": snapshot.gaps_total,
        "warnings": list(work.warnings),
        "identity_only_here": not place.remembered.identity_elsewhere,
    }


def _on_one_disk(location: str, work: _Work) -> list[str]:
    """The trees that share a filesystem with a vault in a folder."""
    import os

    if "://" in location:
        return []
    try:
        device = os.stat(location).st_dev
        return [tree.name for tree in work.trees if tree.root.exists() and os.stat(tree.root).st_dev == device]
    except OSError:
        return []


def _show(work: _Work, result: BackupResult, seconds: float, location: str) -> None:
    from holdfast.console.words import bytes_text, counted, duration_text, gap_text, path_text, time_text

    snapshot = result.snapshot
    click.echo(f"snapshot {result.name.short[:8]}  {time_text(snapshot.taken_at_ns)}  ({duration_text(seconds)})")
    for tree in snapshot.trees:
        click.echo(f"  {tree.name:12} {path_text(tree.root)}")
    click.echo(f"  {counted(snapshot.files, 'file')}, {bytes_text(snapshot.bytes)}; ", nl=False)
    click.echo(f"new: {bytes_text(result.added_bytes)}, stored in {bytes_text(result.written_bytes)}")
    if snapshot.skipped_total:
        click.echo(
            f"  {counted(snapshot.skipped_total, 'socket, fifo or device', 'sockets, fifos or devices')} left out"
        )
    for warning in work.warnings:
        warn(warning)
    for name in _on_one_disk(location, work):
        warn(f"the vault is on the same disk as the tree {name}: what takes one takes both")
    if not snapshot.gaps_total:
        return
    click.echo(f"! {counted(snapshot.gaps_total, 'thing is', 'things are')} not in it, or not for sure:", err=True)
    for gap in snapshot.gaps[:GAPS_SHOWN_MAX]:
        warn(gap_text(gap.tree, gap.path, gap.reason), first="    ", rest="      ")
    if snapshot.gaps_total > GAPS_SHOWN_MAX:
        click.echo(f"    and more: holdfast vault show --at {result.name.short[:8]} --gaps", err=True)
