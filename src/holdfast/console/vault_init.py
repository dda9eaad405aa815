"""``holdfast vault init``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from holdfast.console.emit import emit, json_option

if TYPE_CHECKING:
    from holdfast.console.vault_choice import RememberedVault
    from holdfast.vault.keys import WriterKey


@click.command()
@click.argument("location")
@click.option("--name", default="", help="What to call it here.  [default: the last part of the location]")
@click.option(
    "--recipient",
    "recipients",
    multiple=True,
    metavar="age1...",
    help="Who can read: an age recipient, made elsewhere by age-keygen. Repeatable. Then no identity is made here.",
)
@click.option(
    "--identity-out",
    metavar="FILE",
    default="",
    help="Where the identity made here goes: a USB stick, say.  [default: beside the writer key]",
)
@json_option
def init(location: str, name: str, recipients: tuple[str, ...], identity_out: str, as_json: bool) -> None:
    """Make a vault at LOCATION, and the keys that open it.

    The WRITER KEY lets this machine add backups. The IDENTITY opens them: it must also be kept away from this machine,
    or the backups die with it. Both are written to files, the vault is remembered, and later commands on this machine
    find all three.

    \b
    LOCATION  /path                     a disk, a mounted NAS
              s3://bucket/prefix?endpoint=URL&region=R
                                        an object store; its keys from
                                        AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY
              sftp://user@host:port/path?key=FILE
                                        an SFTP account

    \b
    Example:
      holdfast vault init /mnt/disk/backups
    The safest, with an identity made on, and never leaving, another computer:
      holdfast vault init 's3://bucket/main?region=R' --recipient age1...
    """
    from holdfast.console.vault_choice import RememberedVault, absolute, checked_vault_name, name_for, remember
    from holdfast.errors import Refused

    if recipients and identity_out:
        raise click.UsageError("--recipient names who reads already; --identity-out would make another reader")
    location = absolute(location)
    _refuse_strange_place(location)
    name = checked_vault_name(name or name_for(location))
    key_path, identity_path = _paths(name, identity_out)
    taken = [path for path in (key_path, identity_path) if path.exists()]
    if taken:
        hint = "Give another --name, or move that file away if no vault needs it any more."
        raise Refused(f"{taken[0]} is there already", hint=hint)
    key, deletes = _made(location, recipients, key_path, None if recipients else identity_path)
    vault = RememberedVault(
        location,
        str(key_path),
        "" if recipients else str(identity_path),
        identity_elsewhere=bool(recipients or identity_out),
    )
    remember(name, vault)
    if as_json:
        emit(
            {
                "vault": name,
                "id": key.vault,
                "location": location,
                "key": vault.key,
                "identity": vault.identity or None,
                "recipients": list(key.recipients),
                "identity_only_here": not vault.identity_elsewhere,
                "may_delete": deletes,
            }
        )
    else:
        _tell(name, vault, key, deletes=deletes)


def _refuse_strange_place(location: str) -> None:
    """A vault wants a folder of its own: what stands in another one would lie between its objects for ever."""
    import os

    from holdfast.errors import Refused

    if "://" in location or not os.path.isdir(location):
        return
    found = sorted(set(os.listdir(location)) - {"lost+found", ".tmp"})
    if found and "vault.json" not in found:
        hint = f"Give a new folder: {location.rstrip('/')}/backups"
        raise Refused(f"{location} is not empty ({found[0]} is there)", hint=hint)


def _paths(name: str, identity_out: str) -> tuple[Path, Path]:
    """Of the writer key and of the identity; the folder is made."""
    from holdfast.console.vault_choice import vaults_folder

    folder = vaults_folder()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder / f"{name}.key", Path(identity_out).absolute() if identity_out else folder / f"{name}.identity"


def _made(
    location: str, recipients: tuple[str, ...], key_path: Path, identity_path: Path | None
) -> tuple[WriterKey, bool]:
    """Make the vault; also, whether this account may delete there. The identity is on disk before anything is sealed
    for it; a failure leaves no file behind."""
    from holdfast.console.vault_identity import new_identity, recipient_of
    from holdfast.files import PRIVATE, write_once
    from holdfast.vault.abilities import may_delete
    from holdfast.vault.location import open_backend
    from holdfast.vault.repository import init_vault

    backend = open_backend(location, create=True)
    try:
        if identity_path is not None:
            identity = new_identity()
            write_once(identity_path, identity.encode(), PRIVATE)
            recipients = (recipient_of(identity),)
        try:
            key = init_vault(backend, recipients)
        except BaseException:
            if identity_path is not None:
                identity_path.unlink(missing_ok=True)
            raise
        write_once(key_path, key.to_bytes(), PRIVATE)
        return key, may_delete(backend)
    finally:
        backend.close()


def _tell(name: str, vault: RememberedVault, key: WriterKey, *, deletes: bool) -> None:
    from holdfast.console.vault_choice import configuration_path

    click.echo(f"Made the vault {name} at {vault.location}\n")
    click.echo(f"  writer key  {vault.key}")
    click.echo("              lets this machine add backups; it opens none")
    if not vault.identity:
        for recipient in key.recipients:
            click.echo(f"  reader      {recipient}")
        click.echo("\nThis machine cannot read what it backs up: whoever breaks into it cannot either.")
        click.echo("Test before you need it that the identity opens the vault, on the computer that has it:")
        click.echo("  holdfast vault list --vault LOCATION --identity FILE")
    else:
        click.echo(f"  identity    {vault.identity}")
        click.echo("              the only thing that opens them: without it they are noise\n")
        for line in only_here(name) if not vault.identity_elsewhere else _elsewhere(vault):
            click.echo(line)
    if not deletes:
        click.echo("\nThis account may add there and delete nothing: what is backed up cannot be destroyed from here.")
    elif "://" in vault.location:
        click.echo("\nThis account may delete there: who breaks into this machine can destroy the backups. An account")
        click.echo('that may only add: docs/operations/backups.md, "Against who breaks into the mail server".')
    configuration = configuration_path()
    if not configuration.exists():
        click.echo("\nNext: holdfast vault backup PATH")
        return
    click.echo(f"\nTo feed it from the log, so that any second can be restored: to {configuration}")
    click.echo(f"on every machine that holds mail, with {vault.key} there, too:\n")
    for line in ("[[vaults]]", f'name = "{name}"', f'location = "{vault.location}"', f'key = "{vault.key}"'):
        click.echo(f"  {line}")
    click.echo("\nOr now and then: holdfast vault backup")


def only_here(name: str) -> tuple[str, ...]:
    """What everybody must read while the identity is on this machine only."""
    return (
        "! THE IDENTITY IS ON THIS MACHINE ONLY. If this machine burns, is stolen or",
        "  encrypted by somebody else, nobody can ever open its backups. So, today:",
        f"    holdfast vault keys export --paper --vault {name}",
        "      a page to print, for the safe",
        f"    holdfast vault keys check --vault {name}",
        "      type it back: shows that the page opens the vault",
        "  Until that has been done, every backup repeats this.",
    )


def _elsewhere(vault: RememberedVault) -> tuple[str, ...]:
    return (
        f"Take {vault.identity} away from this machine, to a safe, with a copy at a second place.",
        "To read the vault: --identity FILE. To have it on paper: holdfast vault keys export --paper",
    )
