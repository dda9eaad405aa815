"""A moment's boxes, found in the vault's directories."""

from __future__ import annotations

import os
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from holdfast.changes.exchange import EntryKind
from holdfast.mail import mailboxes
from holdfast.mail.mailboxes import Accounts, Format, Mailbox
from holdfast.vault.faults import VaultDamaged
from holdfast.vault.record import Entry, Read, TreeRoot, entries_of

NO_MAIL: Final = re.compile(r"config(-\d+)?|software|outputs|groupware|queue")
"""Names of trees in which nobody keeps mailboxes."""
REMEMBERED_BYTES_MIN, REMEMBERED_MAX = 64 * 1024, 4


class Moment(NamedTuple):
    """The trees as they stood once. *label*: what people type to mean it. *read*: gives contents by id."""

    label: str
    at_ns: int
    trees: tuple[TreeRoot, ...]
    read: Read


def remembering(read: Read) -> Read:
    """*read*, with the last large contents kept: a file of an mdbox holds many messages, which are read one by one."""
    kept: OrderedDict[bytes, bytes] = OrderedDict()

    def read_once(content_id: bytes) -> bytes:
        if content_id in kept:
            return kept[content_id]
        data = read(content_id)
        if len(data) >= REMEMBERED_BYTES_MIN:
            kept[content_id] = data
            if len(kept) > REMEMBERED_MAX:
                kept.popitem(last=False)
        return data

    return read_once


class Box(NamedTuple):
    """One folder. *state*: differs when anything in it differs. *directories*: where its messages stand."""

    tree: str
    account: str
    mailbox: Mailbox
    state: bytes
    directories: tuple[tuple[bytes, Entry], ...]
    """Maildir: ``cur`` and ``new``; dbox: ``dbox-Mails``, mdbox: and ``storage``; each with its path in the tree."""
    keywords: bytes
    """Maildir: the content of ``dovecot-keywords``."""

    @property
    def own_state(self) -> bytes:
        """Differs when a message or a flag in it differs. (An mdbox's ``state`` also when another folder's does.)"""
        return self.directories[0][1].content if self.mailbox.format is Format.MDBOX else self.state


class Problems:
    """What could not be read on the way: by place, once each."""

    def __init__(self) -> None:
        self.named: dict[str, str] = {}

    def add(self, where: str, what: str) -> None:
        self.named.setdefault(where, what)


class Boxes:
    """Finds the boxes of moments, one moment after the other; what did not change between two is not read again."""

    def __init__(self, accounts: Accounts, problems: Problems) -> None:
        self.accounts = accounts
        self.problems = problems
        self._memo: dict[tuple[str, bytes], tuple[bytes, tuple[Box, ...]]] = {}

    def of(self, moment: Moment, wanted: Callable[[str], bool] = lambda _: True) -> Iterator[Box]:
        """In order of trees and paths. *wanted*: which accounts. Raises WrongKey; damage is noted."""
        for tree in moment.trees:
            if not NO_MAIL.fullmatch(tree.name):
                root = Entry(b"", EntryKind.DIRECTORY, tree.meta, 0, tree.content)
                for box in _Walk(self, tree, moment.read).directory(root, b"", None, None):
                    if wanted(box.account):
                        yield box

    def known(self, tree: str, path: bytes, state: bytes) -> tuple[Box, ...] | None:
        before = self._memo.get((tree, path))
        return before[1] if before is not None and before[0] == state else None

    def before(self, tree: str, path: bytes) -> tuple[Box, ...]:
        """As they last were: what cannot be read must not pass for deleted."""
        return self._memo.get((tree, path), (b"", ()))[1]

    def keep(self, tree: str, path: bytes, state: bytes, found: tuple[Box, ...]) -> None:
        self._memo[tree, path] = state, found


class _Walk:
    """One tree of one moment."""

    def __init__(self, boxes: Boxes, tree: TreeRoot, read: Read) -> None:
        self._boxes = boxes
        self._tree = tree
        self._read = read

    def directory(
        self, entry: Entry, path: bytes, maildir_root: bytes | None, storage: Entry | None
    ) -> tuple[Box, ...]:
        """Boxes at and below *path*. *maildir_root*: of the account whose Maildir this is in; *storage*: of mdbox."""
        state = entry.content + b"/" + (storage.content if storage is not None else b"")
        known = self._boxes.known(self._tree.name, path, state)
        if known is not None:
            return known
        try:
            inside = {e.name: e for e in entries_of(entry.content, self._read)}
        except VaultDamaged as error:
            self._boxes.problems.add(f"{self._tree.name}:{os.fsdecode(path)}", error.message)
            return self._boxes.before(self._tree.name, path)
        directories = {name: e for name, e in inside.items() if e.kind is EntryKind.DIRECTORY}
        found: list[Box] = []
        skipped = {mailboxes.DBOX_MAILS}
        if mailboxes.is_maildir(directories):
            here = mailboxes.maildir(path, maildir_root)
            found.append(self._maildir(here, path, inside))
            maildir_root = here.root
            skipped |= {b"cur", b"new", b"tmp"}
        if mailboxes.MAILBOXES in directories:
            storage = directories.get(mailboxes.STORAGE)
            skipped.add(mailboxes.STORAGE)
        if (mails := directories.get(mailboxes.DBOX_MAILS)) is not None:
            found += self._dbox(below(path, mailboxes.DBOX_MAILS), mails, storage)
        for name, child in directories.items():
            if name not in skipped:
                found += self.directory(child, below(path, name), maildir_root, storage)
        made = tuple(found)
        self._boxes.keep(self._tree.name, path, state, made)
        return made

    def _account(self, root: bytes) -> str:
        return self._boxes.accounts.account(below(self._tree.root, root) if root else self._tree.root)

    def _maildir(self, here: Mailbox, path: bytes, inside: dict[bytes, Entry]) -> Box:
        directories = tuple((below(path, name), inside[name]) for name in (b"cur", b"new"))
        keywords = inside.get(b"dovecot-keywords")
        words = keywords.content if keywords is not None and keywords.kind is EntryKind.FILE else b""
        state = b"|".join([*(entry.content for _, entry in directories), words])
        return Box(self._tree.name, self._account(here.root), here, state, directories, words)

    def _dbox(self, path: bytes, mails: Entry, storage: Entry | None) -> list[Box]:
        here = mailboxes.dbox(path, multi=storage is not None)
        if here is None:
            return []
        directories = [(path, mails)]
        if storage is not None:
            directories.append((below(here.root, mailboxes.STORAGE), storage))
        state = b"|".join(entry.content for _, entry in directories)
        return [Box(self._tree.name, self._account(here.root), here, state, tuple(directories), b"")]


def below(path: bytes, name: bytes) -> bytes:
    """The path of *name* in the directory *path* (empty: the tree's root)."""
    return path + b"/" + name if path else name
