"""What a restored server needs beside its files, written into the tree ``software`` where every snapshot has it.

``inventory.json`` says which files are secrets, which trees protect what, which accounts exist and where their mail
lies, who the machine's users are; and what refers to something that is not there. It is made from the configuration as
the programs read it, holds no content of any secret and no time, and changes only when one of these changes: so it is
in every snapshot and every log position, whatever machine took it.

Whether a secret is *in* a snapshot is not believed from the file but looked up there: :func:`secrets_in`.
"""

from __future__ import annotations

import grp
import os
import pwd
from collections.abc import Callable, Iterable
from enum import StrEnum
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from holdfast.errors import ConfigurationError
from holdfast.mail.files import read_or_none, write_whole
from holdfast.mail.processes import below
from holdfast.mail.secrets import LOSS, Secret, SecretKind
from holdfast.trees.spec import Tree, TreeSpec

INVENTORY_NAME: Final = "inventory.json"
FORMAT: Final = 1
OWN_FOLDER: Final = "/etc/holdfast"
OWN_TREE: Final = "holdfast"
"""A machine's own ``/etc/holdfast``: never copied to another machine, but archived with a scan's snapshots."""
_OWN_KEYS: Final = ("segment.key", "relay.key", "tls/machine.key", "authority/ca.key")


class Weight(StrEnum):
    GAP = "gap"
    """A restore would lack something: a backup that has it ends with status 3."""
    REMARK = "remark"


class Finding(Struct, frozen=True):
    """Something that refers to what is not there. *subject*: a path or a name."""

    weight: Weight
    words: str
    subject: str = ""


class InventoryGap(Struct, frozen=True):
    path: str
    words: str


class Need(Struct, frozen=True):
    """A secret as it stood on the machine."""

    kind: SecretKind
    path: str
    named_by: str
    there: bool
    real: str = ""
    """Where it really lies, when *path* is a symbolic link or below one."""
    tree: str = ""
    """The tree that protects it; empty when none does."""


class AccountState(StrEnum):
    STORED = "stored"
    UNUSED = "unused"
    """It has no store yet: no message ever came."""
    GONE = "gone"
    """It had a store, and has none any more."""


class Account(Struct, frozen=True):
    name: str
    places: tuple[str, ...]
    """Absolute; see :func:`~holdfast.mail.account_places.account_places`."""
    state: AccountState


class User(Struct, frozen=True):
    """A user of the machine, without any password: files belong to names, programs to numbers."""

    name: str
    uid: int
    gid: int
    comment: str
    home: str
    shell: str


class Group(Struct, frozen=True):
    name: str
    gid: int
    members: tuple[str, ...]


class ProtectedTree(Struct, frozen=True):
    """What of a :class:`~holdfast.trees.spec.TreeSpec` a restore needs to know."""

    name: str
    root: str
    include: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()

    @classmethod
    def of(cls, spec: TreeSpec) -> ProtectedTree:
        return cls(spec.name, spec.root, spec.include, spec.overrides)


class Inventory(Struct, frozen=True):
    """The file. Keys it does not know are ignored, so a newer program may add some."""

    format: int
    machine: str = ""
    trees: tuple[ProtectedTree, ...] = ()
    secrets: tuple[Need, ...] = ()
    accounts: tuple[Account, ...] = ()
    findings: tuple[Finding, ...] = ()
    users: tuple[User, ...] = ()
    groups: tuple[Group, ...] = ()
    configuration: str = ""
    """The text of ``holdfast.toml``; empty where there is none."""

    def gaps(self) -> tuple[InventoryGap, ...]:
        """What a restore of this would lack: the machine's own view, before any snapshot."""
        missing = (InventoryGap(need.path, words) for need in self.secrets if (words := _lack(need)))
        found = (InventoryGap(f.subject, f.words) for f in self.findings if f.weight is Weight.GAP)
        return (*missing, *found)

    def remarks(self) -> tuple[str, ...]:
        return tuple(finding.words for finding in self.findings if finding.weight is Weight.REMARK)


def own_tree(folder: str = OWN_FOLDER) -> TreeSpec | None:
    """Holdfast's own configuration and keys, for snapshots made by a scan; None where there is no site.

    Identities are left out (a vault does not help who needs it to open the vault), bundles too (they are made anew).
    """
    if not os.path.exists(os.path.join(folder, "holdfast.toml")):
        return None
    return TreeSpec(
        name=OWN_TREE, root=os.path.realpath(folder), exclude=("*identity*", "/bundles/", ".*.tmp")
    ).checked()


def own_secrets(folder: str = OWN_FOLDER) -> tuple[Secret, ...]:
    """Keys of the site that belong to this machine; none where there is no site."""
    if not os.path.exists(os.path.join(folder, "holdfast.toml")):
        return ()
    return tuple(
        Secret(SecretKind.OWN, path, "holdfast init")
        for path in (os.path.join(folder, name) for name in _OWN_KEYS)
        if os.path.exists(path)
    )


def needs(secrets: Iterable[Secret], trees: Iterable[TreeSpec]) -> tuple[Need, ...]:
    """Each secret looked at: whether it is there, and which of *trees* protects it."""
    ready = [Tree(spec) for spec in trees]
    found = []
    for secret in sorted(set(secrets)):
        real = os.path.realpath(secret.path)
        found.append(
            Need(
                kind=secret.kind,
                path=secret.path,
                named_by=secret.named_by,
                there=os.path.exists(real),
                real=real if real != secret.path else "",
                tree=_protector(ready, real),
            )
        )
    return tuple(found)


def _protector(trees: list[Tree], path: str) -> str:
    return next((str(tree.name) for tree in trees if protects(tree, path)), "")


def protects(tree: Tree, path: str) -> bool:
    """Whether *path* (absolute) belongs to *tree*: nothing on the way to it is left out."""
    root = str(tree.root)
    if not below(path, root) or path == root:
        return False
    relative = os.fsencode(os.path.relpath(path, root))
    parents = relative.split(b"/")
    above = (b"/".join(parents[:depth]) for depth in range(1, len(parents)))
    directory = os.path.isdir(path)
    return not tree.excluded(relative, directory=directory) and not any(
        tree.excluded(parent, directory=True) for parent in above
    )


def _lack(need: Need) -> str:
    """A sentence when a restore could not bring *need* back; Holdfast's own keys are no gap of a mail server."""
    loss = LOSS[need.kind]
    if not need.there:
        return f"{need.kind} {need.path} ({need.named_by}) is not there: {loss}"
    if not need.tree and need.kind is not SecretKind.OWN:
        return f"{need.kind} {need.path} ({need.named_by}) is in no protected tree; after a restore {loss}"
    return ""


class SecretState(StrEnum):
    PRESENT = "present"
    MISSING = "missing"


class SecretInSnapshot(Struct, frozen=True):
    """One secret, looked up in a snapshot."""

    need: Need
    state: SecretState
    words: str
    """Why it is missing and what that means; empty when it is present."""


def secrets_in(inventory: Inventory, holds: Callable[[str], bool]) -> tuple[SecretInSnapshot, ...]:
    """*holds*: whether the snapshot has something at an absolute path (see ``vault_contents``)."""
    found = []
    for need in inventory.secrets:
        paths = [need.path, *([need.real] if need.real else [])]
        if all(holds(path) for path in paths) or (need.real and holds(need.real)):
            found.append(SecretInSnapshot(need, SecretState.PRESENT, ""))
            continue
        why = "was not there" if not need.there else "lies in no protected tree" if not need.tree else "is not in it"
        words = f"{need.kind} {need.path} ({need.named_by}) {why}: {LOSS[need.kind]}"
        found.append(SecretInSnapshot(need, SecretState.MISSING, words))
    return tuple(found)


def machine_users() -> tuple[User, ...]:
    """Of this machine's user database as it iterates (files; a directory server usually does not)."""
    rows = (User(p.pw_name, p.pw_uid, p.pw_gid, p.pw_gecos, p.pw_dir, p.pw_shell) for p in pwd.getpwall())
    return tuple(sorted(rows, key=lambda user: (user.uid, user.name)))


def machine_groups() -> tuple[Group, ...]:
    rows = (Group(g.gr_name, g.gr_gid, tuple(g.gr_mem)) for g in grp.getgrall())
    return tuple(sorted(rows, key=lambda group: (group.gid, group.name)))


def accounts_with(
    places: dict[str, tuple[str, ...]], before: Inventory | None, *, exists: Callable[[str], bool] = os.path.exists
) -> tuple[Account, ...]:
    """*places*: of every account. One that had a store in *before* and has none now is gone, until it has one again."""
    had = {account.name for account in before.accounts if account.state is not AccountState.UNUSED} if before else set()
    found = []
    for name, paths in sorted(places.items()):
        stored = any(exists(path) for path in paths)
        state = AccountState.STORED if stored else AccountState.GONE if name in had else AccountState.UNUSED
        found.append(Account(name, paths, state))
    return tuple(found)


def account_findings(accounts: Iterable[Account]) -> tuple[Finding, ...]:
    accounts = list(accounts)
    gone = [
        Finding(
            Weight.GAP, f"account {account.name} had a store and has none: {', '.join(account.places)}", account.name
        )
        for account in accounts
        if account.state is AccountState.GONE
    ]
    unknown = [account.name for account in accounts if not account.places]
    if unknown:
        words = f"where the mail of {len(unknown)} accounts lies cannot be told from the configuration ({unknown[0]})"
        gone.append(Finding(Weight.REMARK, words))
    unused = sum(account.state is AccountState.UNUSED and bool(account.places) for account in accounts)
    if unused:
        words = f"{unused} {'account has' if unused == 1 else 'accounts have'} no store yet: no message ever came"
        gone.append(Finding(Weight.REMARK, words))
    return tuple(gone)


def calendar_findings(storage: str, users_file: str) -> tuple[Finding, ...]:
    """Radicale's folders of principals beside the users that may log in: each calendar has an owner."""
    root = Path(storage, "collection-root")
    content = read_or_none(Path(users_file)) if users_file else None
    if content is None or not root.is_dir():
        return ()
    users = {line.partition(":")[0] for line in content.decode("utf-8", "replace").splitlines() if ":" in line}
    owners = sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith("."))
    return tuple(
        Finding(Weight.REMARK, f"calendars and address books of {owner} have no owner: {users_file} does not name them")
        for owner in owners
        if owner not in users
    )


def write(inventory: Inventory, directory: Path) -> bool:
    """Write it beside the manifest, for root alone. Returns whether anything changed."""
    directory.mkdir(parents=True, exist_ok=True)
    encoded = msgspec.json.format(msgspec.json.encode(inventory, order="sorted"), indent=1) + b"\n"
    return write_whole(directory / INVENTORY_NAME, encoded, mode=0o600)


def read(directory: Path) -> Inventory | None:
    """The inventory in *directory*; None when there is none. Raises ConfigurationError when it cannot be read."""
    content = read_or_none(directory / INVENTORY_NAME)
    return None if content is None else decode(content, str(directory / INVENTORY_NAME))


def decode(content: bytes, source: str) -> Inventory:
    """Raises ConfigurationError naming *source*."""
    try:
        return msgspec.json.decode(content, type=Inventory)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            f"{source}: {error}", hint="It is generated: the next backup writes it anew."
        ) from None
