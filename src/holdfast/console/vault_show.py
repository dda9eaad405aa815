"""``holdfast vault show``."""

from __future__ import annotations

import stat
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from holdfast.console.emit import emit, json_option, warn
from holdfast.console.vault_options import vault_options

if TYPE_CHECKING:
    from holdfast.console.vault_options import VaultChoice
    from holdfast.console.vault_paths import PathIn
    from holdfast.vault.instant import Instant
    from holdfast.vault.record import Entry
    from holdfast.vault.repository import Vault


@click.command()
@click.argument("path", default="")
@click.option("--at", default="latest", show_default=True, metavar="WHEN", help="As for `holdfast restore`.")
@click.option("--tree", default="", help="PATH is in this tree.")
@click.option("--gaps", is_flag=True, help="Everything the snapshot should have and has not.")
@vault_options
@json_option
def show(path: str, at: str, tree: str, gaps: bool, choice: VaultChoice, as_json: bool) -> None:
    """A snapshot's summary; with PATH: a directory's list, or a file's bytes on standard output.

    PATH is TREE/PATH, or a path as it stood on the machine (/home/me/Maildir/cur).

    \b
    Example:
      holdfast vault show
      holdfast vault show --at 'yesterday 14:00' store/anna/cur
      holdfast vault show --at 3f2a config/postfix/main.cf > main.cf
    """
    from holdfast.console.vault_at import instant_at
    from holdfast.console.vault_open import opened
    from holdfast.console.vault_paths import path_in

    with opened(choice) as vault_at, instant_at(vault_at.vault, at) as instant:
        if gaps or not (path or tree):
            _summary(instant, gaps, as_json)
        else:
            _thing(instant, path_in(instant.snapshot, path, tree), as_json)


def _summary(instant: Instant, gaps: bool, as_json: bool) -> None:
    from holdfast.console.words import ago_text, bytes_text, counted, gap_text, iso_text, path_text, time_text
    from holdfast.mail.vault_inventory import completeness

    vault, snapshot, name = instant.vault, instant.snapshot, instant.target.base
    whole = completeness(snapshot.trees, vault.content)
    if as_json:
        emit(
            {
                "snapshot": name.short,
                "object": name.name,
                "at": iso_text(snapshot.taken_at_ns),
                "position": str(instant.position) if instant.position else None,
                "machine": snapshot.machine,
                "trees": {tree.name: path_text(tree.root) for tree in snapshot.trees},
                "files": snapshot.files,
                "bytes": snapshot.bytes,
                "skipped": snapshot.skipped_total,
                "gaps": [{"tree": g.tree, "path": path_text(g.path), "reason": g.reason} for g in snapshot.gaps],
                "gaps_total": snapshot.gaps_total,
                "secrets": [
                    {"kind": s.need.kind, "path": s.need.path, "named_by": s.need.named_by, "state": s.state}
                    for s in whole.secrets
                ],
                "lacks": list(whole.gaps),
            }
        )
        return
    import time

    age = ago_text(time.time() - snapshot.taken_at_ns / 1e9)
    click.echo(f"snapshot  {name.short[:8]}")
    click.echo(f"taken     {time_text(snapshot.taken_at_ns)} ({age}), on {snapshot.machine}")
    if instant.position is not None:
        click.echo(
            f"position  {instant.position} of the log" + (", after the snapshot" if instant.target.frames else "")
        )
    if snapshot.files >= 0:
        click.echo(f"holds     {counted(snapshot.files, 'file')}, {bytes_text(snapshot.bytes)}")
    for number, tree in enumerate(snapshot.trees):
        click.echo(f"{'' if number else 'trees':9} {tree.name:12} {path_text(tree.root)}")
    if snapshot.skipped_total:
        click.echo(
            f"left out  {counted(snapshot.skipped_total, 'socket, fifo or device', 'sockets, fifos or devices')}"
        )
    if whole.known:
        present = sum(secret.state == "present" for secret in whole.secrets)
        click.echo(f"secrets   {present} of {len(whole.secrets)} (keys, password files, logins) are in it")
    for words in whole.gaps:
        warn(f"missing: {words}")
    if snapshot.gaps_total:
        click.echo(f"gaps      {counted(snapshot.gaps_total, 'thing')} not in it, or not for sure")
    for gap in snapshot.gaps if gaps else ():
        click.echo(f"          {gap_text(gap.tree, gap.path, gap.reason)}")
    if snapshot.gaps_total and not gaps:
        click.echo(f"          holdfast vault show --at {name.short[:8]} --gaps")


def _thing(instant: Instant, wanted: PathIn, as_json: bool) -> None:
    from holdfast.changes.exchange import EntryKind
    from holdfast.console.words import path_text
    from holdfast.vault.record import entries_of, lookup

    vault, name = instant.vault, instant.target.base
    entry = lookup(wanted.tree, wanted.path, vault.content)
    if as_json:
        inside = entries_of(entry.content, vault.content) if entry.kind is EntryKind.DIRECTORY else iter(())
        facts = {"snapshot": name.short, "tree": wanted.tree.name, "path": path_text(wanted.path), **_facts(entry)}
        emit({**facts, "entries": [{"name": path_text(below.name), **_facts(below)} for below in inside]})
    elif entry.kind is EntryKind.DIRECTORY:
        _list(entries_of(entry.content, vault.content))
    elif entry.kind is EntryKind.SYMLINK:
        click.echo(f"-> {path_text(entry.content)}")
    else:
        _print(vault, entry)


def _facts(entry: Entry) -> dict[str, Any]:
    from holdfast.changes.exchange import EntryKind
    from holdfast.console.words import iso_text, path_text

    facts: dict[str, Any] = {
        "kind": entry.kind.name.lower(),
        "mode": f"{stat.S_IMODE(entry.meta.mode):04o}",
        "owner": entry.meta.owner,
        "group": entry.meta.group,
        "modified_at": iso_text(entry.meta.mtime_ns),
    }
    if entry.kind is EntryKind.FILE:
        facts["size"] = entry.size
    if entry.kind is EntryKind.SYMLINK:
        facts["target"] = path_text(entry.content)
    return facts


def _list(entries: Iterator[Entry]) -> None:
    from holdfast.changes.exchange import EntryKind
    from holdfast.console.words import bytes_text, path_text, time_text

    for entry in entries:
        size = bytes_text(entry.size) if entry.kind is EntryKind.FILE else ""
        kinds = {EntryKind.DIRECTORY: stat.S_IFDIR, EntryKind.SYMLINK: stat.S_IFLNK}
        mode = stat.filemode(kinds.get(entry.kind, stat.S_IFREG) | stat.S_IMODE(entry.meta.mode))
        owner = f"{entry.meta.owner}:{entry.meta.group}"
        when = time_text(entry.meta.mtime_ns)[:16]
        end = {EntryKind.DIRECTORY: "/", EntryKind.SYMLINK: f" -> {path_text(entry.content)}"}.get(entry.kind, "")
        click.echo(f"{mode}  {owner:15} {size:>9}  {when}  {path_text(entry.name)}{end}")


def _print(vault: Vault, entry: Entry) -> None:
    """The file's bytes, as they are: checked, each content, before it is written."""
    from holdfast.vault.record import split_ids

    out = sys.stdout.buffer
    for content_id in split_ids(entry.content):
        out.write(vault.content(content_id))
    out.flush()
