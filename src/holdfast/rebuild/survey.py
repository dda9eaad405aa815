"""An instant looked through: which trees are configuration, which are data, and the units data come back in."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from typing import Final, NamedTuple

from holdfast.changes.change import Meta
from holdfast.changes.exchange import EntryKind
from holdfast.mail.inventory import OWN_TREE, AccountState, Inventory
from holdfast.mail.processes import below
from holdfast.mail.vault_inventory import SOFTWARE_TREE
from holdfast.vault.record import Entry, TreeRoot, entries_of, walk

CONFIG_TREE: Final = "config"
QUEUE_TREE: Final = "queue"
GROUPWARE_TREE: Final = "groupware"
_GROUND: Final = frozenset({b"lost+found", b".holdfast"})

Read = Callable[[bytes], bytes]


class Unit(NamedTuple):
    """What comes into place by one rename. *target*: absolute; *active_ns*: the newest change in it."""

    name: str
    accounts: tuple[str, ...]
    tree: str
    target: str
    entry: Entry
    files: int
    bytes: int
    active_ns: int

    @property
    def directory(self) -> bool:
        return self.entry.kind is EntryKind.DIRECTORY


class Scaffold(NamedTuple):
    """A directory above units: made beforehand, its times set at the end."""

    target: str
    meta: Meta


class Survey(NamedTuple):
    """*owners*, *groups*: names that files belong to. *left*: trees that are not put back."""

    config: tuple[TreeRoot, ...]
    own: TreeRoot | None
    units: tuple[Unit, ...]
    scaffold: tuple[Scaffold, ...]
    owners: frozenset[str]
    groups: frozenset[str]
    left: tuple[str, ...]
    lost_accounts: tuple[str, ...]
    """Accounts that had a store, of which the instant holds nothing."""

    @property
    def bytes(self) -> int:
        return sum(unit.bytes for unit in self.units)

    @property
    def divided(self) -> bool:
        """Whether accounts come back one by one."""
        return any(unit.accounts for unit in self.units)


def survey(trees: Iterable[TreeRoot], inventory: Inventory | None, read: Read) -> Survey:
    """Read the directories of every tree (not the files). Raises VaultDamaged, WrongKey, and what the backend raises.

    Damage in a directory is raised, not skipped: which accounts there are must be known before anything is begun.
    """
    looked = _Look(read, _places(inventory))
    config, left, own = [], [], None
    for tree in trees:
        if tree.name == CONFIG_TREE or tree.name.startswith(f"{CONFIG_TREE}-"):
            config.append(tree)
            looked.see(tree.meta)
            for found in walk(tree.content, read):
                looked.see(found.entry.meta)
        elif tree.name == OWN_TREE:
            own = tree
        elif tree.name in (SOFTWARE_TREE, QUEUE_TREE):
            left.append(tree.name)
        else:
            looked.tree(tree)
    named = {account for unit in looked.units for account in unit.accounts}
    stored = (a.name for a in inventory.accounts if a.state is AccountState.STORED) if inventory else iter(())
    return Survey(
        config=tuple(config),
        own=own,
        units=tuple(looked.units),
        scaffold=tuple(looked.scaffold),
        owners=frozenset(looked.owners),
        groups=frozenset(looked.groups),
        left=tuple(left),
        lost_accounts=tuple(sorted(set(stored) - named)),
    )


def _places(inventory: Inventory | None) -> dict[str, tuple[str, ...]]:
    """Accounts by place; several may share one."""
    found: dict[str, tuple[str, ...]] = {}
    for account in inventory.accounts if inventory else ():
        for place in account.places:
            found[place] = (*found.get(place, ()), account.name)
    return found


class _Look:
    def __init__(self, read: Read, places: Mapping[str, tuple[str, ...]]) -> None:
        self._read = read
        self._places = places
        self._above = {parent for place in places for parent in _parents(place)}
        self.units: list[Unit] = []
        self.scaffold: list[Scaffold] = []
        self.owners: set[str] = set()
        self.groups: set[str] = set()

    def see(self, meta: Meta) -> None:
        self.owners.add(meta.owner)
        self.groups.add(meta.group)

    def tree(self, tree: TreeRoot) -> None:
        entry = Entry(b"", EntryKind.DIRECTORY, tree.meta, 0, tree.content)
        self._inside(tree.name, os.fsdecode(tree.root), entry)

    def _inside(self, tree: str, target: str, entry: Entry) -> None:
        self.see(entry.meta)
        self.scaffold.append(Scaffold(target, entry.meta))
        for child in entries_of(entry.content, self._read):
            if child.name in _GROUND:
                continue
            path = os.path.join(target, os.fsdecode(child.name))
            if child.kind is EntryKind.DIRECTORY and path in self._above and path not in self._places:
                self._inside(tree, path, child)
            else:
                self._unit(tree, path, child)

    def _unit(self, tree: str, target: str, entry: Entry) -> None:
        self.see(entry.meta)
        files, size, active = int(entry.kind is EntryKind.FILE), entry.size, entry.meta.mtime_ns
        if entry.kind is EntryKind.DIRECTORY:
            for found in walk(entry.content, self._read):
                self.see(found.entry.meta)
                files += found.entry.kind is EntryKind.FILE
                size += found.entry.size if found.entry.kind is EntryKind.FILE else 0
                active = max(active, found.entry.meta.mtime_ns)
        accounts = self._accounts(target)
        name = ", ".join(accounts) or target
        self.units.append(Unit(name, accounts, tree, target, entry, files, size, active))

    def _accounts(self, target: str) -> tuple[str, ...]:
        """Whose it is: this is a place, or holds some (accounts within accounts), or is in one."""
        found = list(self._places.get(target, ()))
        if not found:
            near = (place for place in self._places if below(place, target) or below(target, place))
            found = [account for place in near for account in self._places[place]]
        return tuple(dict.fromkeys(found))


def _parents(place: str) -> Iterable[str]:
    parts = place.split("/")
    return ("/".join(parts[:depth]) for depth in range(2, len(parts)))


def in_order(units: Iterable[Unit], first: str) -> tuple[Unit, ...]:
    """Groupware (small, and many share it), the account *first* (the probes'), then the last active; what belongs to no
    account at the end."""
    active: dict[str, int] = {}
    units = list(units)
    for unit in units:
        for account in unit.accounts:
            active[account] = max(active.get(account, 0), unit.active_ns)

    def rank(unit: Unit) -> tuple[int, int, str, str]:
        if unit.tree == GROUPWARE_TREE:
            return (0, 0, unit.tree, unit.target)
        if first and first in unit.accounts:
            return (1, 0, "", unit.target)
        if unit.accounts:
            return (2, -max(active[account] for account in unit.accounts), unit.name, unit.target)
        return (3, -unit.active_ns, unit.tree, unit.target)

    return tuple(sorted(units, key=rank))
