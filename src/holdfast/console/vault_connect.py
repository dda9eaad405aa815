"""``holdfast vault connect`` and ``forget``: what this machine remembers of vaults made elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from holdfast.console.emit import emit, json_option

if TYPE_CHECKING:
    from holdfast.vault.repository import Vault


@click.command()
@click.argument("location")
@click.option("--name", default="", help="What to call it here.  [default: the last part of the location]")
@click.option("--key", "key_file", default="", metavar="FILE", help="The writer key: to add, to prune.")
@click.option("--identity", "identity_file", default="", metavar="FILE", help="A reader's identity: to read.")
@json_option
def connect(location: str, name: str, key_file: str, identity_file: str, as_json: bool) -> None:
    """Remember a vault that is there already, so that later commands need not be told: on a second or a new machine.

    The keys are tried, and stay where they are. The writer key can be had from the vault with an identity
    (`vault keys recover`), an identity from the page in the safe (`vault keys check --save`).

    \b
    Example:
      holdfast vault connect /mnt/disk/backups --identity /root/identity.txt
    """
    from holdfast.console.vault_choice import (
        RememberedVault,
        absolute,
        checked_vault_name,
        name_for,
        remember,
        remembered,
    )
    from holdfast.console.vault_open import opened
    from holdfast.console.vault_options import VaultChoice
    from holdfast.errors import Refused

    if not key_file and not identity_file:
        raise click.UsageError("give --key, --identity or both: without them there is nothing to remember")
    location = absolute(location)
    name = checked_vault_name(name or name_for(location))
    known = remembered().get(name)
    if known is not None and known.location != location:
        raise Refused(f"{name} is another vault already, at {known.location}", hint="Give another --name.")
    key_file, identity_file = _absolute(key_file), _absolute(identity_file)
    choice = VaultChoice(location, key_file, identity_file)
    with opened(choice, write=bool(key_file), read=bool(identity_file)) as at:
        count = _look(at.vault)
    path = remember(name, RememberedVault(location, key_file, identity_file))
    if as_json:
        emit({"vault": name, "location": location, "snapshots": count, "remembered": str(path)})
        return
    click.echo(f"{name} at {location}: {count:,} snapshots; remembered in {path}")


def _absolute(text: str) -> str:
    return str(Path(text).absolute()) if text else ""


def _look(vault: Vault) -> int:
    """How many snapshots; the newest is opened, where an identity is there. Raises WrongKey."""
    names = vault.snapshots()
    if names and vault.readers:
        vault.snapshot(names[-1])
    return len(names)


@click.command()
@click.argument("name")
@json_option
def forget(name: str, as_json: bool) -> None:
    """Do not remember a vault any more. The vault and the files of its keys stay.

    \b
    Example:
      holdfast vault forget backups
    """
    from holdfast.console.vault_choice import remembered, vaults_folder
    from holdfast.errors import ConfigurationError

    known = remembered()
    if name not in known:
        hint = f"Remembered: {', '.join(known) or 'none'}. What holdfast.toml names is forgotten there."
        raise ConfigurationError(f"no vault called {name!r} is remembered", hint=hint)
    (vaults_folder() / f"{name}.json").unlink()
    kept = [file for file in (known[name].key, known[name].identity) if file and Path(file).exists()]
    if as_json:
        emit({"forgotten": name, "location": known[name].location, "keys_kept": kept})
        return
    click.echo(f"forgot {name} at {known[name].location}")
    for file in kept:
        click.echo(f"its key is still there: {file}")
