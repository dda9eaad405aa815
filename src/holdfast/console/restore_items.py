"""``holdfast restore`` of events, tasks and contacts: into a folder, or into the running Radicale."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from holdfast.console.emit import emit
from holdfast.console.restore_options import MailWish
from holdfast.console.vault_choice import configuration_path
from holdfast.console.vault_find import printable
from holdfast.console.vault_moments import headers_of, mail_settings
from holdfast.console.words import counted
from holdfast.errors import ExitStatus, Refused
from holdfast.mail.commands import SystemCommands
from holdfast.mail.radicale import Radicale
from holdfast.recover import calendar, folder, groupware
from holdfast.recover.boxes import Moment
from holdfast.recover.calendar import ItemStep, ItemVerdict
from holdfast.recover.groupware import Version
from holdfast.recover.wanted import NothingWanted, split_id
from holdfast.vault.record import Read
from holdfast.vault.repository import Vault

if TYPE_CHECKING:
    from holdfast.console.restore_mail import How


def restore_items(vault: Vault, wish: MailWish, how: How, moment: Callable[[str], Moment]) -> ExitStatus:
    """*moment*: gives one by label or time. Raises NothingWanted, and what the vault and the storage raise."""
    pairs, missing = _chosen(vault, wish, how, moment)
    readers = {id(version): read for version, read in pairs}
    versions = [version for version, _ in pairs]
    if not versions and not missing:
        hint = "`holdfast vault find --items` shows what there was."
        raise NothingWanted(f"{wish.account} had no collection {wish.collection} then", hint=hint)
    if wish.into_server:
        return _into_server(versions, readers, missing, wish, how)
    assert how.target is not None
    if how.dry_run:
        click.echo(
            f"would restore {counted(len(versions), 'item')} into {how.target}. Nothing was written (--dry-run)."
        )
        failed = missing
    else:
        written = folder.as_items(versions, lambda v: groupware.content_of(v.entry, readers[id(v)]), how.target)
        failed = {**missing, **written.failed}
        if not how.as_json:
            click.echo(f"{counted(written.files, 'file')} in {how.target}")
    if how.as_json:
        emit({"to": str(how.target), "dry_run": how.dry_run, "items": len(versions), "failures": failed})
    return _ended(failed, how)


def _chosen(
    vault: Vault, wish: MailWish, how: How, moment: Callable[[str], Moment]
) -> tuple[list[tuple[Version, Read]], dict[str, str]]:
    with headers_of(vault) as headers:
        if wish.items:
            return groupware.items_by_id(wish.items, moment, headers, split_id)
        return groupware.items_of_collections(moment(how.at), wish.account, wish.collection, headers)


def _ended(failed: dict[str, str], how: How) -> ExitStatus:
    if not how.as_json:
        for place, reason in failed.items():
            click.echo(f"! {printable(place)}: {reason}", err=True)
    return ExitStatus.DIFFERENCES if failed else ExitStatus.DONE


def _into_server(
    versions: list[Version], readers: dict[int, Read], missing: dict[str, str], wish: MailWish, how: How
) -> ExitStatus:
    storage = _storage()

    def read(version: Version) -> tuple[bytes, bytes]:
        source = readers[id(version)]
        return groupware.content_of(version.entry, source), groupware.properties_of(version.shelf, source)

    steps = calendar.plan_items(storage, versions, read, wish.into_folder)
    if not how.dry_run:
        calendar.execute_items(storage, steps)
    if how.as_json:
        emit(
            {"dry_run": how.dry_run, "storage": str(storage), "items": [_facts(s) for s in steps], "failures": missing}
        )
    else:
        for step in steps:
            title = printable(step.version.item.title)[:60]
            where = printable(step.folder.decode("utf-8", "backslashreplace"))
            click.echo(f"{step.verdict:13}  {title}  {where}  {step.reason}".rstrip())
        if how.dry_run:
            click.echo("Nothing was changed (--dry-run).")
    failed = dict(missing)
    for step in steps:
        if step.verdict in (ItemVerdict.CHANGED, ItemVerdict.UNREADABLE):
            failed[step.version.item.title or step.version.item.uid] = step.reason
    return _ended(failed, how)


def _storage() -> Path:
    """Radicale's storage folder, as its configuration says. Raises ConfigurationError; Refused: this is a machine of a
    site, and Radicale does not run here, so this may be a standby's copy."""
    settings = mail_settings()
    service = Radicale(settings.radicale, SystemCommands(), state_directory=settings.state_directory)
    storage = Path(service.layout().storage)
    if configuration_path().exists() and not asyncio.run(service.running()):
        hint = "Run the command on the primary (`holdfast status` says which that is), or start Radicale first."
        raise Refused(
            "Radicale does not run here, and this machine belongs to a site: it may be the standby", hint=hint
        )
    return storage


def _facts(step: ItemStep) -> dict[str, str]:
    return {
        "title": step.version.item.title,
        "uid": step.version.item.uid,
        "collection": step.folder.decode("utf-8", "backslashreplace"),
        "verdict": str(step.verdict),
        "reason": step.reason,
    }
