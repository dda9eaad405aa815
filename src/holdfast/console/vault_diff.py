"""``holdfast vault diff``."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

import click

from holdfast.console.emit import emit, json_option
from holdfast.console.vault_options import vault_options

if TYPE_CHECKING:
    from holdfast.console.vault_options import VaultChoice
    from holdfast.vault.instant import Instant
    from holdfast.vault.repository import Vault

_MARKS: Final = {"added": "+", "removed": "-", "content": "M", "meta": "m"}


@click.command()
@click.argument("old", default="")
@click.argument("new", default="latest")
@click.option("--tree", default="", help="Only this tree.")
@vault_options
@json_option
def diff(old: str, new: str, tree: str, choice: VaultChoice, as_json: bool) -> None:
    """What changed between two snapshots; without arguments: between the last two.

    OLD and NEW are names of snapshots, or times, as --at of `holdfast restore` takes them. Exit status 3 when there are
    differences, 0 when there are none.

    \b
    +  new     M  other contents
    -  gone    m  only owner, mode, times or attributes

    \b
    Example:
      holdfast vault diff
      holdfast vault diff 'tuesday 08:00' 'tuesday 18:00' --tree store
    """
    from holdfast.console.vault_at import instant_at
    from holdfast.console.vault_open import opened
    from holdfast.console.words import iso_text, path_text
    from holdfast.errors import ExitStatus
    from holdfast.vault.difference import differences
    from holdfast.vault.faults import VaultDamaged

    with ExitStack() as stack:
        vault = stack.enter_context(opened(choice)).vault
        after = stack.enter_context(instant_at(vault, new))
        before = stack.enter_context(instant_at(vault, old or _one_before(vault, after)))

        def read(content_id: bytes) -> bytes:
            """Each of the two may hold what the other has not."""
            try:
                return after.vault.content(content_id)
            except VaultDamaged:
                return before.vault.content(content_id)

        every = differences(before.snapshot, after.snapshot, read)
        found = [one for one in every if not tree or one.tree == tree]
        span = before.snapshot.taken_at_ns, after.snapshot.taken_at_ns
    if as_json:
        rows = [{"tree": one.tree, "path": path_text(one.path), "kind": one.kind.value} for one in found]
        emit({"old": iso_text(span[0]), "new": iso_text(span[1]), "differences": rows})
    else:
        for one in found:
            click.echo(f"{_MARKS[one.kind.value]} {one.tree}/{path_text(one.path)}")
        click.echo(_total(span, [one.kind.value for one in found]), err=True)
    sys.exit(int(ExitStatus.DIFFERENCES if found else ExitStatus.DONE))


def _one_before(vault: Vault, instant: Instant) -> str:
    from holdfast.vault.faults import SnapshotUnknown

    names = vault.snapshots()
    base = instant.target.base
    if instant.target.frames:
        return base.name
    at = names.index(base)
    if at == 0:
        hint = "Compare after the next backup, or name two snapshots."
        raise SnapshotUnknown(f"there is no snapshot before {base.short[:8]}", hint=hint)
    return names[at - 1].name


def _total(span: tuple[int, int], kinds: list[str]) -> str:
    from holdfast.console.words import time_text

    counts = ", ".join(f"{kinds.count(kind):,} {word}" for kind, word in _WORDS.items() if kind in kinds)
    return f"{time_text(span[0])} to {time_text(span[1])}: {counts or 'no differences'}"


_WORDS: Final = {"added": "new", "removed": "gone", "content": "with other contents", "meta": "with other metadata"}
