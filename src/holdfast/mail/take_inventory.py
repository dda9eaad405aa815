"""Looking at this machine for the inventory: every service is asked, every reference followed."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from holdfast.errors import ConfigurationError, HoldfastError
from holdfast.mail import inventory
from holdfast.mail.account_places import account_places, all_homes
from holdfast.mail.dovecot import Dovecot
from holdfast.mail.files import read_or_none
from holdfast.mail.inventory import Account, Finding, Inventory, ProtectedTree, Weight
from holdfast.mail.port import Service
from holdfast.mail.radicale import Radicale
from holdfast.mail.secrets import SHADOW, Secret, SecretKind, of_filters
from holdfast.mail.settings import MailSettings
from holdfast.trees.spec import TreeSpec

_DATABASES: Final = ("dovecot passdb sql", "dovecot passdb ldap")


async def take_inventory(
    services: Mapping[str, Service],
    settings: MailSettings,
    trees: tuple[TreeSpec, ...],
    directory: Path,
    own_folder: str = inventory.OWN_FOLDER,
) -> Inventory:
    """The inventory of this machine now. *trees*: what is protected; *directory*: where the last inventory stands.

    Raises ConfigurationError when a service's configuration cannot be read.
    """
    before = _before(directory)
    secrets = {secret for service in services.values() for secret in await service.secrets()}
    findings: list[Finding] = []
    secrets = _with_dumps(secrets | set(of_filters(Path("/etc"))), settings, directory, findings)
    accounts = await _accounts(services, before, findings)
    findings += inventory.account_findings(accounts)
    findings += _calendars(services)
    own = inventory.own_tree(own_folder)
    protectors = (*trees, *([own] if own else []))
    return Inventory(
        format=inventory.FORMAT,
        machine=socket.gethostname(),
        trees=tuple(ProtectedTree.of(tree) for tree in trees),
        secrets=await asyncio.to_thread(inventory.needs, secrets | set(inventory.own_secrets(own_folder)), protectors),
        accounts=accounts,
        findings=tuple(findings),
        users=inventory.machine_users(),
        groups=inventory.machine_groups(),
        configuration=(read_or_none(Path(own_folder, "holdfast.toml")) or b"").decode("utf-8", "replace"),
    )


def _before(directory: Path) -> Inventory | None:
    try:
        return inventory.read(directory)
    except ConfigurationError:
        return None  # damaged: it is written anew, and only what was gone before is forgotten


def _with_dumps(secrets: set[Secret], settings: MailSettings, directory: Path, findings: list[Finding]) -> set[Secret]:
    """Databases of passwords are not files: what an output dumps of them is, and must be there."""
    outputs = directory.parent / "outputs"
    dumps = {
        Secret(SecretKind.PASSWORDS, str(outputs / spec.name), f"output {spec.name}")
        for spec in settings.outputs
        if not any("shadow" in word for word in spec.argv)
    }
    shadows = {
        Secret(SecretKind.PASSWORDS, str(outputs / spec.name), f"output {spec.name}")
        for spec in settings.outputs
        if any("shadow" in word for word in spec.argv)
    }
    found = set(secrets)
    if shadows and any(secret.path == SHADOW for secret in secrets):
        found = {secret for secret in found if secret.path != SHADOW} | shadows
    if any(secret.named_by in _DATABASES for secret in secrets):
        if not dumps:
            words = "accounts and passwords are in a database, and no [[mail.outputs]] dumps it: nobody could log in"
            findings.append(Finding(Weight.GAP, words, "accounts"))
        found |= dumps
    return found


async def _accounts(
    services: Mapping[str, Service], before: Inventory | None, findings: list[Finding]
) -> tuple[Account, ...]:
    dovecot = services.get("dovecot")
    if not isinstance(dovecot, Dovecot):
        return ()
    try:
        names: Iterable[str] = await dovecot.accounts()
    except HoldfastError as error:
        findings.append(Finding(Weight.REMARK, f"accounts cannot be listed now: {error.message}"))
        return before.accounts if before else ()
    found = await dovecot.layout(fresh=False)
    texts = {path: (read_or_none(Path(path)) or b"").decode("utf-8", "replace") for path in found.passwd_files}
    homes = all_homes(texts)
    if found.system_users:
        homes |= {user.name: user.home for user in inventory.machine_users()}
    places = {name: account_places(found, name, homes) for name in names}
    return await asyncio.to_thread(inventory.accounts_with, places, before)


def _calendars(services: Mapping[str, Service]) -> tuple[Finding, ...]:
    radicale = services.get("radicale")
    if not isinstance(radicale, Radicale):
        return ()
    found = radicale.layout()
    return inventory.calendar_findings(found.storage, found.users_file)
