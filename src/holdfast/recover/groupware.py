"""Events, tasks and contacts that answer a question, through time. A changed event is another version of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final, NamedTuple

import msgspec
from blake3 import blake3
from msgspec import Struct

from holdfast.changes.exchange import EntryKind
from holdfast.mail import groupware_items
from holdfast.mail.groupware_items import Collection, Item
from holdfast.recover.boxes import NO_MAIL, Moment, Problems
from holdfast.recover.headers import Headers
from holdfast.recover.search import ID_CHARS, Seen, like
from holdfast.vault.faults import VaultDamaged
from holdfast.vault.record import Entry, Read, TreeRoot, entries_of, split_ids

ITEM_BYTES_MAX: Final = 16 * 1024 * 1024
"""Contacts carry photographs; what is longer is no event."""
_encode: Final = msgspec.msgpack.Encoder().encode
_decoder: Final = msgspec.msgpack.Decoder(Item | None)


class ItemQuery(Struct, frozen=True, kw_only=True):
    """*kind*: event, task, journal, contact. *text*: in title, UID's beginning, addresses. Empty: anything."""

    account: str = ""
    collection: str = ""
    kind: str = ""
    text: str = ""
    deleted_from_ns: int | None = None
    deleted_until_ns: int | None = None


class Shelf(NamedTuple):
    """A collection in a moment. *path*: its directory in the tree."""

    tree: str
    path: bytes
    account: str
    collection: Collection
    entry: Entry


class Version:
    """One state of an item. *replaced*: it is gone because it was changed, not deleted."""

    __slots__ = ("entry", "first", "gone", "item", "last", "replaced", "shelf")

    def __init__(self, shelf: Shelf, entry: Entry, item: Item, now: Seen) -> None:
        self.shelf = shelf
        self.entry = entry
        self.item = item
        self.first = now
        self.last = now
        self.gone: Seen | None = None
        self.replaced = False

    @property
    def id(self) -> str:
        """What ``holdfast restore --item`` takes."""
        return f"{self.last.label}-{item_digest(self.shelf, self.entry)}"


def item_digest(shelf: Shelf, entry: Entry) -> str:
    place = b"\0".join((shelf.tree.encode(), shelf.path, entry.name, entry.content))
    return blake3(place).hexdigest(length=ID_CHARS // 2)


class ItemsFound(NamedTuple):
    versions: list[Version]
    problems: dict[str, str]


def find_items(moments: Iterable[Moment], query: ItemQuery, headers: Headers) -> ItemsFound:
    """*moments*: oldest first. Damage is named among the problems. Raises WrongKey and what the store raises."""
    problems = Problems()
    shelves = Shelves(problems)
    states: dict[tuple[str, bytes], bytes] = {}
    open_now: dict[tuple[str, bytes], dict[bytes, Version]] = {}
    closed: list[Version] = []
    now = Seen("", 0)
    for moment in moments:
        before, now = now, Seen(moment.label, moment.at_ns)
        seen = set()
        for shelf in shelves.of(moment):
            key = shelf.tree, shelf.path
            seen.add(key)
            if states.get(key) != shelf.entry.content:
                held = open_now.setdefault(key, {})
                closed += _turn(held, shelf, moment.read, headers, (before, now), problems)
                states[key] = shelf.entry.content
        for key in states.keys() - seen:
            del states[key]
            for version in open_now.pop(key, {}).values():
                closed.append(_ended(version, before, now))
    for held in open_now.values():
        for version in held.values():
            version.last = now
    every = [*closed, *(version for held in open_now.values() for version in held.values())]
    found = [version for version in every if _answers(version, query)]
    found.sort(key=lambda v: (v.shelf.account, v.shelf.collection.name, v.item.title, v.item.uid, v.first.at_ns))
    return ItemsFound(found, problems.named)


def _turn(
    held: dict[bytes, Version],
    shelf: Shelf,
    read: Read,
    headers: Headers,
    between: tuple[Seen, Seen],
    problems: Problems,
) -> list[Version]:
    """*held* becomes what *shelf* holds now; the versions that ended."""
    before, now = between
    ended: list[Version] = []
    try:
        entries = {entry.name: entry for entry in items_in(shelf, read)}
    except VaultDamaged as error:
        problems.add(f"{shelf.account}, {shelf.collection.name}", error.message)
        return ended
    for name in held.keys() - entries.keys():
        ended.append(_ended(held.pop(name), before, now))
    for name, entry in entries.items():
        old = held.get(name)
        if old is not None and old.entry.content == entry.content:
            old.shelf, old.entry = shelf, entry
            continue
        if old is not None:
            ended.append(_ended(old, before, now, replaced=True))
            del held[name]
        item = _item(entry, read, headers, problems)
        if item is not None:
            held[name] = Version(shelf, entry, item, now)
    return ended


def _ended(version: Version, before: Seen, now: Seen, *, replaced: bool = False) -> Version:
    version.last, version.gone, version.replaced = before, now, replaced
    return version


def items_in(shelf: Shelf, read: Read) -> Iterator[Entry]:
    """Raises VaultDamaged."""
    for entry in entries_of(shelf.entry.content, read):
        if entry.kind is EntryKind.FILE and not entry.name.startswith(b"."):
            yield entry


def content_of(entry: Entry, read: Read) -> bytes:
    """Raises VaultDamaged."""
    return b"".join(read(content_id) for content_id in split_ids(entry.content))


def _item(entry: Entry, read: Read, headers: Headers, problems: Problems) -> Item | None:
    if entry.size > ITEM_BYTES_MAX:
        return None
    known = headers.recall("item", entry.content)
    if known is not None:
        return _decoder.decode(known)  # type: ignore[no-any-return, unused-ignore]
    try:
        item = groupware_items.item(content_of(entry, read))
    except VaultDamaged as error:
        problems.add(entry.name.decode("utf-8", "backslashreplace"), error.message)
        return None
    headers.keep("item", entry.content, _encode(item))
    return item


class Shelves:
    """Finds the collections of moments; what did not change between two is not read again."""

    def __init__(self, problems: Problems) -> None:
        self._problems = problems
        self._memo: dict[tuple[str, bytes], tuple[bytes, tuple[Shelf, ...]]] = {}

    def of(self, moment: Moment) -> Iterator[Shelf]:
        for tree in moment.trees:
            if tree.name == "groupware" or not NO_MAIL.fullmatch(tree.name):
                yield from self._below(tree, Entry(b"", EntryKind.DIRECTORY, tree.meta, 0, tree.content), b"", moment)

    def _below(self, tree: TreeRoot, entry: Entry, path: bytes, moment: Moment) -> tuple[Shelf, ...]:
        known = self._memo.get((tree.name, path))
        if known is not None and known[0] == entry.content:
            return known[1]
        try:
            inside = list(entries_of(entry.content, moment.read))
            found: list[Shelf] = []
            properties = next((e for e in inside if e.name == groupware_items.PROPERTIES), None)
            if properties is not None and path:
                name = path.rpartition(b"/")[2]
                told = groupware_items.collection(content_of(properties, moment.read), name)
                found.append(Shelf(tree.name, path, groupware_items.owner_of(path), told, entry))
            for child in inside:
                mail = child.name in (b"cur", b"new", b"tmp", b"dbox-Mails", b".Radicale.cache")
                if child.kind is EntryKind.DIRECTORY and not mail:
                    found += self._below(tree, child, path + b"/" + child.name if path else child.name, moment)
        except VaultDamaged as error:
            self._problems.add(f"{tree.name}:{path.decode('utf-8', 'backslashreplace')}", error.message)
            return known[1] if known is not None else ()
        self._memo[tree.name, path] = entry.content, tuple(found)
        return tuple(found)


def _answers(version: Version, query: ItemQuery) -> bool:
    shelf, item = version.shelf, version.item
    if not like(shelf.account, query.account) or (query.kind and item.kind != query.kind):
        return False
    names = (shelf.collection.name, shelf.path.rpartition(b"/")[2].decode("utf-8", "backslashreplace"))
    if not any(like(name, query.collection) for name in names):
        return False
    text = query.text.casefold()
    if text and text not in f"{item.title}\n{item.more}".casefold() and not item.uid.casefold().startswith(text):
        return False
    if query.deleted_from_ns is None and query.deleted_until_ns is None:
        return True
    if version.gone is None or (query.deleted_from_ns is not None and version.gone.at_ns <= query.deleted_from_ns):
        return False
    return query.deleted_until_ns is None or version.last.at_ns < query.deleted_until_ns


def items_by_id(
    ids: Iterable[str], moment: Callable[[str], Moment], headers: Headers, split: Callable[[str], tuple[str, str]]
) -> tuple[list[tuple[Version, Read]], dict[str, str]]:
    """The versions that *ids* name, each with what reads it; and the ids that name none, with why. *split*: an id into
    label and digest."""
    found: list[tuple[Version, Read]] = []
    missing: dict[str, str] = {}
    for text in ids:
        label, digest = split(text)
        there = moment(label)
        problems = Problems()
        hit = next((pair for pair in _versions(there, headers, problems) if item_digest(*pair[1]) == digest), None)
        if hit is None:
            missing[text] = "; ".join(problems.named.values()) or "no item is called so"
        else:
            found.append((hit[0], there.read))
    return found, missing


def items_of_collections(
    moment: Moment, account: str, collection: str, headers: Headers
) -> tuple[list[tuple[Version, Read]], dict[str, str]]:
    """Everything in collections like *collection* of accounts like *account*; and what could not be read."""
    problems = Problems()
    query = ItemQuery(account=account, collection=collection)
    pairs = [(version, moment.read) for version, _ in _versions(moment, headers, problems) if _answers(version, query)]
    return pairs, problems.named


def _versions(moment: Moment, headers: Headers, problems: Problems) -> Iterator[tuple[Version, tuple[Shelf, Entry]]]:
    now = Seen(moment.label, moment.at_ns)
    for shelf in Shelves(problems).of(moment):
        try:
            for entry in items_in(shelf, moment.read):
                item = _item(entry, moment.read, headers, problems)
                if item is not None:
                    yield Version(shelf, entry, item, now), (shelf, entry)
        except VaultDamaged as error:
            problems.add(f"{shelf.account}, {shelf.collection.name}", error.message)


def properties_of(shelf: Shelf, read: Read) -> bytes:
    """The collection's ``.Radicale.props``. Raises VaultDamaged."""
    for entry in entries_of(shelf.entry.content, read):
        if entry.name == groupware_items.PROPERTIES:
            return content_of(entry, read)
    return b""
