"""``holdfast vault keys export`` and ``check``: the page for the safe, and the test of that page."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from holdfast.console.emit import emit, json_option
from holdfast.console.vault_options import vault_options

if TYPE_CHECKING:
    from holdfast.console.vault_choice import VaultPlace
    from holdfast.console.vault_options import VaultChoice
    from holdfast.vault.keys import WriterKey
    from holdfast.vault.repository import Vault


@click.command(short_help="The page for the safe, or JSON for a password manager.")
@click.option("--paper", is_flag=True, help="A page to print, in letters that are hard to mistype, each line checked.")
@click.option("--out", metavar="FILE", type=click.Path(path_type=Path), help="Into a new file that only you can read.")
@vault_options
def export(paper: bool, out: Path | None, choice: VaultChoice) -> None:
    """The identity and the writer key, to be kept in a safe: as a page, or as JSON for a password manager.

    They are secrets: what is printed here opens every backup.

    \b
    Example:
      holdfast vault keys export --paper | lp
      holdfast vault keys export --out /media/stick/vault-keys.json
    """
    from holdfast.errors import Refused
    from holdfast.files import PRIVATE, write_once

    text = _exported(choice, paper)
    if out is None:
        click.echo(text, nl=False)
        return
    if out.exists():
        raise Refused(f"{out} is there already", hint="Give another name: a key is never written over.")
    write_once(out.absolute(), text.encode(), PRIVATE)
    click.echo(f"wrote {out}")


def _exported(choice: VaultChoice, paper: bool) -> str:
    import json
    from datetime import date

    from holdfast.console.paper import identity_lines, page, writer_lines
    from holdfast.console.vault_identity import recipients_of
    from holdfast.console.vault_open import opened, read_identities

    with opened(choice) as at:
        identities = read_identities(at.place, needed=True)
        secrets = at.vault.codec.secrets
        vault, secret = secrets.vault.hex(), secrets.secret.hex()
        recipients = at.key.recipients if at.key is not None else recipients_of(identities)
        place = at.place
    if paper:
        lines = [*identity_lines(identities[0]), *writer_lines(vault, secret)]
        return page(place.name, place.location, date.today().isoformat(), recipients, lines)
    facts = {
        "location": place.location,
        "identities": list(identities),
        "writer_key": {"vault": vault, "secret": secret, "recipients": list(recipients)},
    }
    return json.dumps(facts, indent=2) + "\n"


@click.command(short_help="Type the page back: does it open the vault?")
@click.option(
    "--from", "source", metavar="FILE", type=click.File(), help="Lines typed into a file; - for standard input."
)
@click.option("--save", metavar="FILE", type=click.Path(path_type=Path), help="Keep the identity in this new file.")
@click.option("--writer", is_flag=True, help="Check the lines of the writer key as well.")
@vault_options
@json_option
def check(source: Any, save: Path | None, writer: bool, choice: VaultChoice, as_json: bool) -> None:
    """Type the page from the safe back: does it open the vault?

    Line by line, each checked at once. Then the vault is opened with what was typed alone, and a file of the newest
    snapshot is read. With --save the identity is written to a file, for `restore --identity`: so a page and a vault are
    enough on a new machine. With --identity FILE a copy of the identity (a stick's) is tested instead of a page.

    \b
    Example:
      holdfast vault keys check
      holdfast vault keys check --vault s3://... --save identity.txt
    """
    from holdfast.console.vault_choice import vault_place
    from holdfast.console.vault_open import read_identities

    place = vault_place(choice)
    if choice.identity and source is None:
        identities = read_identities(place, needed=True)
        how = str(place.identity)
        elsewhere = str(place.identity) != place.remembered.identity
    else:
        identities = (typed_identity(source),)
        how, elsewhere = "what was typed", True
    typed_key = _typed_writer(source) if writer else None
    proof = _proof(place, identities, typed_key)
    if save is not None:
        _save_identity(save, identities[0])
    first_time = elsewhere and _note_elsewhere(place, identities)
    if as_json:
        emit({"vault": place.name, "opens": True, "proof": proof, "saved": str(save) if save else None})
        return
    click.echo(f"{how} opens the vault {place.name}: {proof}")
    if save is not None:
        click.echo(f"wrote {save}: holdfast restore --vault {place.location} --identity {save} --to FOLDER")
    if first_time:
        click.echo("Noted: the identity is kept elsewhere too. Backups do not warn any more.")


def _typed(source: Any, kind: str) -> str:
    """All lines of a key. On a terminal a wrong line is asked for again; from a file it is an error."""
    from holdfast.console.paper import labels, read_line
    from holdfast.vault.faults import WrongKey

    letters = []
    for label, count in labels(kind):
        while True:
            asked = source is None
            line = click.prompt(f"{label}", prompt_suffix="   ", err=True) if asked else _next_line(source, label)
            try:
                letters.append(read_line(label, count, line))
                break
            except WrongKey as error:
                if not (asked and sys.stdin.isatty()):
                    raise
                click.echo(f"  {error.message}. {error.hint}", err=True)
    return "".join(letters)


def _next_line(source: Any, label: str) -> str:
    """The next line of a typed file that is one of the page's."""
    from holdfast.vault.faults import WrongKey

    for line in source:
        if line.strip().upper().startswith(label):
            return str(line)
    raise WrongKey(f"there is no line {label}", hint="Each line begins with its label, as on the page: A1, A2 ...")


def typed_identity(source: Any) -> str:
    from holdfast.console.paper import identity_from
    from holdfast.console.vault_identity import recipient_of

    if source is None:
        click.echo(
            "The lines of the IDENTITY, with the two letters at the end (capitals and spaces do not matter):", err=True
        )
    identity = identity_from(_typed(source, "A"))
    recipient_of(identity)
    return identity


def _typed_writer(source: Any) -> WriterKey:
    from holdfast.console.paper import writer_from

    if source is None:
        click.echo("The lines of the WRITER KEY:", err=True)
    return writer_from(_typed(source, "W"), ("",))


def _proof(place: VaultPlace, identities: tuple[str, ...], typed: WriterKey | None) -> str:
    """Open the vault with *identities* and nothing else, and read. Raises WrongKey, and what the vault raises."""
    from holdfast.console.vault_open import open_place
    from holdfast.vault.faults import WrongKey
    from holdfast.vault.repository import open_vault

    backend = open_place(place)
    try:
        with open_vault(backend, identities=identities) as vault:
            secrets = vault.codec.secrets
            if typed is not None and (typed.vault, typed.secret) != (secrets.vault.hex(), secrets.secret.hex()):
                raise WrongKey("the writer key that was typed is another vault's", hint="Compare the page's title.")
            return _read_something(vault)
    finally:
        backend.close()


def _read_something(vault: Vault) -> str:
    from holdfast.changes.exchange import EntryKind
    from holdfast.console.words import bytes_text, path_text, time_text
    from holdfast.vault.record import split_ids, walk

    names = vault.snapshots()
    if not names:
        return "its writer key was opened (there is no snapshot yet)"
    snapshot = vault.snapshot(names[-1])
    when = time_text(snapshot.taken_at_ns)
    for tree in snapshot.trees:
        for found in walk(tree.content, vault.content):
            if found.entry.kind is EntryKind.FILE and found.entry.size:
                for content_id in split_ids(found.entry.content):
                    vault.content(content_id)
                what = f"{tree.name}/{path_text(found.path)} ({bytes_text(found.entry.size)})"
                return f"read {what} of snapshot {names[-1].short[:8]}, {when}"
    return f"read snapshot {names[-1].short[:8]}, {when}; it holds no file with bytes"


def _save_identity(path: Path, identity: str) -> None:
    from holdfast.console.vault_identity import identity_file
    from holdfast.errors import Refused
    from holdfast.files import PRIVATE, write_once

    if path.exists():
        raise Refused(f"{path} is there already", hint="Give another name: a key is never written over.")
    write_once(path.absolute(), identity_file(identity).encode(), PRIVATE)


def _note_elsewhere(place: VaultPlace, identities: tuple[str, ...]) -> bool:
    """Remember that the identity of this machine is kept elsewhere, when what was shown is that. Whether it is news."""
    import msgspec

    from holdfast.console.vault_choice import remember, remembered
    from holdfast.console.vault_identity import recipients_of
    from holdfast.console.vault_open import identities_in

    vault = remembered().get(place.name)
    if vault is None or vault.identity_elsewhere or not vault.identity:
        return False
    try:
        own = identities_in(Path(vault.identity).read_text(), vault.identity)
    except FileNotFoundError:
        own = identities
    if not set(recipients_of(own)) & set(recipients_of(identities)):
        return False
    remember(place.name, msgspec.structs.replace(vault, identity_elsewhere=True))
    return True
