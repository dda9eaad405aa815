"""``holdfast vault pin``, ``hold``, ``release``: what stays whatever the rules of a prune say."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from holdfast.console.emit import emit, json_option
from holdfast.console.vault_options import vault_options

if TYPE_CHECKING:
    from holdfast.console.vault_options import VaultChoice
    from holdfast.vault.keeping import Kept

why_option = click.option("--why", default="", metavar="TEXT", help="For who finds it in ten years.")


@click.command()
@click.argument("snapshot", default="latest")
@why_option
@vault_options
@json_option
def pin(snapshot: str, why: str, choice: VaultChoice, as_json: bool) -> None:
    """Keep one snapshot until it is released: no prune drops it.

    \b
    Example (before a migration):
      holdfast vault pin latest --why 'before the move to the new server'
    """
    from holdfast.console.vault_open import opened
    from holdfast.vault import keeping

    with opened(choice, write=True, read=False, small=True) as at:
        name = at.vault.find_snapshot(snapshot)
        kept = keeping.pin(at.vault, name, why)
    _made(kept, f"snapshot {name.short[:8]} stays", as_json)


@click.command()
@click.argument("path")
@why_option
@click.option("--tree", default="", help="PATH is in this tree.")
@vault_options
@json_option
def hold(path: str, why: str, tree: str, choice: VaultChoice, as_json: bool) -> None:
    """Keep what stands below a path (an account's mail) in every snapshot, until it is released: a legal hold.

    Of a snapshot that a prune's rules let go, what is held stays. States between snapshots are not held. PATH as for
    `holdfast restore`: TREE/PATH, or as it stood on the machine; it need not exist now.

    \b
    Example:
      holdfast vault hold store/anna --why 'case 17, until the lawyers say so'
    """
    from holdfast.console.vault_open import opened
    from holdfast.vault import keeping

    with opened(choice, write=True, small=True) as at:
        tree, inside = _held_path(at.vault, path, tree)
        kept = keeping.hold(at.vault, tree, inside, why)
    _made(kept, f"{_where(kept)} stays in every snapshot", as_json)


def _held_path(vault: Any, path: str, tree: str) -> tuple[str, bytes]:
    """Tree and path as the newest snapshot has them."""
    from holdfast.console.vault_paths import path_in

    wanted = path_in(vault.snapshot(vault.find_snapshot("latest")), path, tree)
    return wanted.tree.name, wanted.path


@click.command()
@click.argument("name")
@vault_options
@json_option
def release(name: str, choice: VaultChoice, as_json: bool) -> None:
    """Take a pin or a hold back: from now on the rules decide again.

    \b
    Example (`holdfast vault list` shows pins and holds with their names):
      holdfast vault release 5d0e77a1
    """
    from holdfast.console.vault_open import opened
    from holdfast.vault import keeping

    with opened(choice, write=True, read=False, small=True) as at:
        kept = keeping.release(at.vault, name)
    if as_json:
        emit({"released": kept_facts(kept)})
    else:
        click.echo(f"released {kept.short[:8]}: {kept_words(kept)}")


def _made(kept: Kept, what: str, as_json: bool) -> None:
    if as_json:
        emit(kept_facts(kept))
    else:
        click.echo(f"{what}, until: holdfast vault release {kept.short[:8]}")


def _where(kept: Kept) -> str:
    from holdfast.console.words import path_text

    return f"{kept.keeping.tree}/{path_text(kept.keeping.path)}".rstrip("/")


def kept_words(kept: Kept) -> str:
    """One line for people."""
    from holdfast.vault.keeping import KeepingKind

    why = f" ({kept.keeping.reason})" if kept.keeping.reason else ""
    if kept.keeping.kind is KeepingKind.PIN:
        return f"pin of snapshot {kept.keeping.snapshot.rpartition('-')[2][:8]}{why}"
    return f"hold of {_where(kept)}{why}"


def kept_facts(kept: Kept) -> dict[str, Any]:
    """The same for programs."""
    from holdfast.console.words import iso_text, path_text
    from holdfast.vault.keeping import KeepingKind

    facts: dict[str, Any] = {
        "name": kept.short,
        "kind": kept.keeping.kind.name.lower(),
        "made_at": iso_text(kept.keeping.made_at_ns),
        "why": kept.keeping.reason,
    }
    if kept.keeping.kind is KeepingKind.PIN:
        facts["snapshot"] = kept.keeping.snapshot.rpartition("-")[2]
    else:
        facts.update(tree=kept.keeping.tree, path=path_text(kept.keeping.path))
    return facts
