"""``holdfast vault diff``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

import click

from holdfast.console.emit import emit, json_option
from holdfast.console.vault_choice import vault_options

if TYPE_CHECKING:
    from holdfast.console.vault_choice import VaultChoice
    from holdfast.vault.repository import SnapshotName, Vault

_MARKS: Final = {"added": "+", "removed": "-", "content": "M", "meta": "m"}


@click.command()
@click.argument("old", default="")
@click.argument("new", default="latest")
@click.option("--tree", default="", help="Only this tree.")
@vault_options
@json_option
def diff(old: str, new: str, tree: str, choice: VaultChoice, as_json: bool) -> None:
    """What changed between two snapshots; without arguments: between the last two.

    OLD and NEW are names of snapshots, or times. Exit status 3 when there are differences, 0 when there are none.

    \b
    +  new        -  gone        M  other contents        m  only owner, mode, times or attributes

    \b
    Example:
      holdfast vault diff
      holdfast vault diff 'tuesday 08:00' 'tuesday 18:00' --tree store
    """
    from holdfast.console.vault_at import snapshot_at
    from holdfast.console.vault_open import opened
    from holdfast.console.words import path_text
    from holdfast.errors import ExitStatus
    from holdfast.vault.difference import differences

    with opened(choice) as at:
        after = snapshot_at(at.vault, new)
        before = snapshot_at(at.vault, old) if old else _one_before(at.vault, after)
        found = [
            difference
            for difference in differences(at.vault.snapshot(before), at.vault.snapshot(after), at.vault.content)
            if not tree or difference.tree == tree
        ]
    if as_json:
        rows = [{"tree": one.tree, "path": path_text(one.path), "kind": one.kind.value} for one in found]
        emit({"old": before.short, "new": after.short, "differences": rows})
    else:
        for one in found:
            click.echo(f"{_MARKS[one.kind.value]} {one.tree}/{path_text(one.path)}")
        click.echo(_total(before, after, [one.kind.value for one in found]), err=True)
    sys.exit(int(ExitStatus.DIFFERENCES if found else ExitStatus.DONE))


def _one_before(vault: Vault, name: SnapshotName) -> SnapshotName:
    from holdfast.vault.faults import SnapshotUnknown

    names = vault.snapshots()
    at = names.index(name)
    if at == 0:
        hint = "Compare after the next backup, or name two snapshots."
        raise SnapshotUnknown(f"there is no snapshot before {name.short[:8]}", hint=hint)
    return names[at - 1]


def _total(before: SnapshotName, after: SnapshotName, kinds: list[str]) -> str:
    from holdfast.console.words import time_text

    span = f"{before.short[:8]} ({time_text(before.taken_at_ns)}) to {after.short[:8]} ({time_text(after.taken_at_ns)})"
    counts = ", ".join(f"{kinds.count(kind):,} {word}" for kind, word in _WORDS.items() if kind in kinds)
    return f"{span}:\n{counts or 'no differences'}"


_WORDS: Final = {"added": "new", "removed": "gone", "content": "with other contents", "meta": "with other metadata"}
