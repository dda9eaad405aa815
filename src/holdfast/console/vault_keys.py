"""``holdfast vault keys``: who can read. (The page for the safe, and its test: ``vault_paper``.)"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from holdfast.console.emit import emit, json_option
from holdfast.console.vault_options import vault_options
from holdfast.console.vault_paper import check, export

if TYPE_CHECKING:
    from holdfast.console.vault_choice import VaultPlace
    from holdfast.console.vault_options import VaultChoice
    from holdfast.vault.keys import WriterKey


@click.group()
def keys() -> None:
    """Who can read a vault; the page for the safe; a test that the page works.

    WRITER KEY: lets a machine add backups. IDENTITY: opens them; made for a RECIPIENT (age1...), its public half.

    \b
    Example:
      holdfast vault keys export --paper | lp      then into the safe
      holdfast vault keys check                    type the page back
      holdfast vault keys add age1...              one more reader
    """


keys.add_command(export)
keys.add_command(check)


@keys.command("list", short_help="The keys this machine has, and who can read what it adds.")
@vault_options
@json_option
def list_keys(choice: VaultChoice, as_json: bool) -> None:
    """The keys this machine has, and for whom it seals what it adds.

    \b
    Example:
      holdfast vault keys list
    """
    from holdfast.console.vault_choice import vault_place
    from holdfast.console.vault_identity import recipients_of
    from holdfast.console.vault_open import read_identities, read_key

    place = vault_place(choice)
    key = read_key(place, needed=False)
    identities = read_identities(place, needed=False)
    here = recipients_of(identities)
    recipients = key.recipients if key is not None else ()
    if as_json:
        emit(
            {
                "vault": place.name,
                "id": key.vault if key is not None else None,
                "key": str(place.key) if key is not None else None,
                "identity": str(place.identity) if identities else None,
                "identity_only_here": bool(identities) and not place.remembered.identity_elsewhere,
                "recipients": [{"recipient": one, "identity_here": one in here} for one in recipients],
            }
        )
        return
    click.echo(f"vault       {place.name} at {place.location}")
    click.echo(f"writer key  {place.key if key is not None else 'none here: this machine cannot add'}")
    click.echo(f"identity    {place.identity if identities else 'none here: this machine cannot read'}")
    for number, one in enumerate(recipients):
        note = "  (its identity is here)" if one in here else ""
        click.echo(f"{'' if number else 'sealed for':11} {one}{note}")
    if identities and not place.remembered.identity_elsewhere:
        click.echo("! nobody has shown yet that the identity is kept elsewhere too: holdfast vault keys check")


@keys.command(short_help="One more reader, of what is added from now on.")
@click.argument("recipients", nargs=-1, required=True, metavar="age1...")
@click.option("--history", is_flag=True, help="What the vault holds already, too; needs an identity that opens it.")
@vault_options
@json_option
def add(recipients: tuple[str, ...], history: bool, choice: VaultChoice, as_json: bool) -> None:
    """More readers: what this machine adds from now on is sealed for them, too.

    With --history they can read what the vault holds already as well: the keys of all of it are sealed for them.

    \b
    Example (on the new reader's computer: age-keygen -o identity.txt):
      holdfast vault keys add age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2k...
    """
    from holdfast.console.progress import Progress
    from holdfast.console.vault_open import opened
    from holdfast.vault.grants import grant_everything
    from holdfast.vault.keys import Wrapper, WriterKey, checked_recipients
    from holdfast.vault.objects import digest_name

    granted = 0
    with (
        Progress("granting", quiet=as_json) as progress,
        opened(choice, write=True, read=history, small=True, watch=progress.transfer) as at,
    ):
        assert at.key is not None
        checked_recipients(recipients)
        new = tuple(dict.fromkeys(one for one in recipients if one not in at.key.recipients))
        if new:
            changed = WriterKey(at.key.vault, at.key.secret, (*at.key.recipients, *new))
            wrapped = Wrapper(changed.recipients).wrap(bytes.fromhex(at.key.secret))
            at.backend.put("keys/" + digest_name(wrapped), wrapped)
            _write_key(at.place, changed)
        if history:
            granted = grant_everything(at.vault, recipients)
        place = at.place
    if as_json:
        emit({"vault": place.name, "added": list(new), "granted_objects": granted})
        return
    for one in new:
        click.echo(f"added {one}")
    if history:
        click.echo(
            f"They can read what the vault holds ({granted:,} objects), and what is added from here from now on."
        )
    elif not new:
        click.echo("They are readers already: nothing was changed. (What was there before them: --history.)")
        return
    else:
        for line in _NEW_READER:
            click.echo(line)
    click.echo("Other machines that add to this vault have key files of their own: say the same there.")


_NEW_READER = (
    "What is added to the vault from now on is sealed for them, too. What it holds already is",
    "not: old snapshots stay closed to them, and of new ones the files that were stored before.",
    "To give them all of it, with an identity that opens the vault: the same with --history.",
)


@keys.command(short_help="One reader less, of what is added from now on.")
@click.argument("recipient", metavar="age1...")
@vault_options
@json_option
def remove(recipient: str, choice: VaultChoice, as_json: bool) -> None:
    """One reader less, for what this machine adds from now on. What they could read, they can read.

    \b
    Example:
      holdfast vault keys remove age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmr...
    """
    from holdfast.console.vault_choice import vault_place
    from holdfast.console.vault_open import read_key
    from holdfast.errors import Refused
    from holdfast.vault.keys import WriterKey

    place = vault_place(choice)
    key = read_key(place, needed=True)
    assert key is not None
    rest = tuple(one for one in key.recipients if one != recipient)
    if len(rest) == len(key.recipients):
        raise Refused(f"{recipient} is no reader", hint="`holdfast vault keys list` shows them.")
    if not rest:
        raise Refused("nobody could read the vault any more", hint="Add another reader first.")
    _write_key(place, WriterKey(key.vault, key.secret, rest))
    if as_json:
        emit({"vault": place.name, "removed": [recipient]})
        return
    click.echo(f"removed {recipient}")
    click.echo("They can still read what was stored until now. If their identity is in wrong hands: make a new vault.")


@keys.command(short_help="The writer key, out of the vault, with an identity.")
@click.option(
    "--out", metavar="FILE", required=True, type=click.Path(path_type=Path), help="The writer key's new file."
)
@click.option(
    "--recipient", "recipients", multiple=True, metavar="age1...", help="For whom it seals.  [default: the identity]"
)
@vault_options
@json_option
def recover(out: Path, recipients: tuple[str, ...], choice: VaultChoice, as_json: bool) -> None:
    """Get the writer key back out of the vault, with an identity: after the loss of the machine that had it.

    \b
    Example:
      holdfast vault keys recover --identity identity.txt --out backups.key
    """
    from holdfast.console.vault_identity import recipients_of
    from holdfast.console.vault_open import opened, read_identities
    from holdfast.errors import Refused
    from holdfast.files import PRIVATE, write_once
    from holdfast.vault.keys import WriterKey, checked_recipients

    if out.exists():
        raise Refused(f"{out} is there already", hint="Give another name: a key is never written over.")
    with opened(choice) as at:
        secrets = at.vault.codec.secrets
        sealed_for = recipients or recipients_of(read_identities(at.place, needed=True))
        checked_recipients(sealed_for)
        key = WriterKey(secrets.vault.hex(), secrets.secret.hex(), sealed_for)
    write_once(out.absolute(), key.to_bytes(), PRIVATE)
    if as_json:
        emit({"key": str(out), "vault": key.vault, "recipients": list(sealed_for)})
        return
    click.echo(f"wrote {out}; what it adds is sealed for {', '.join(sealed_for)}")


def _write_key(place: VaultPlace, key: WriterKey) -> None:
    from holdfast.files import PRIVATE, write_once

    assert place.key is not None
    write_once(place.key, key.to_bytes(), PRIVATE)
