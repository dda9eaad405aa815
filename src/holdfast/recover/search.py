"""Messages that answer a question, through time."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from typing import Final, NamedTuple

from blake3 import blake3
from msgspec import Struct

from holdfast.mail.dovecot_index import IndexUnreadable
from holdfast.mail.mailboxes import Accounts, Format
from holdfast.recover.boxes import Box, Boxes, Moment, Problems
from holdfast.recover.headers import Header, Headers
from holdfast.recover.messages import Reader, Stored
from holdfast.vault.faults import VaultDamaged
from holdfast.vault.record import Read

ID_CHARS: Final = 10
"""Of a message's digest, in its id: 40 bits, beside the moment's name."""
MATCHES_MAX: Final = 500_000
"""Held in memory, about 1 KB each. A question that more answer to is no question."""


class Query(Struct, frozen=True, kw_only=True):
    """What is looked for; empty: anything. Texts are found anywhere in the field, in any case."""

    text: str = ""
    """In sender, recipients or subject."""
    account: str = ""
    """Whole, or a pattern with ``*`` and ``?``."""
    folder: str = ""
    sender: str = ""
    recipient: str = ""
    subject: str = ""
    message_id: str = ""
    received_from_ns: int | None = None
    received_until_ns: int | None = None
    deleted_from_ns: int | None = None
    """Of messages that were there and then were not: gone at a time that may lie between these two."""
    deleted_until_ns: int | None = None

    @property
    def only_deleted(self) -> bool:
        return self.deleted_from_ns is not None or self.deleted_until_ns is not None

    def wants_account(self, account: str) -> bool:
        return like(account, self.account)

    def wants_header(self, header: Header, received_s: int) -> bool:
        envelope = header.envelope
        if self.message_id and self.message_id.strip("<> ").casefold() != envelope.message_id.casefold():
            return False
        if self.received_from_ns is not None and received_s * 10**9 < self.received_from_ns:
            return False
        if self.received_until_ns is not None and received_s * 10**9 >= self.received_until_ns:
            return False
        everywhere = f"{envelope.sender}\n{envelope.recipients}\n{envelope.subject}"
        return self.text.casefold() in everywhere.casefold() and all(
            not part or part.casefold() in field.casefold()
            for part, field in (
                (self.sender, envelope.sender),
                (self.recipient, envelope.recipients),
                (self.subject, envelope.subject),
            )
        )


class Seen(NamedTuple):
    """A moment's name and time."""

    label: str
    at_ns: int


class Presence:
    """A message in its folder. *last*: the last moment it was there; *gone*: the first one after, None when it is
    still there."""

    __slots__ = ("box", "elsewhere", "first", "gone", "header", "last", "stored")

    def __init__(self, box: Box, stored: Stored, header: Header, now: Seen) -> None:
        self.box = box
        self.stored = stored
        self.header = header
        self.first = now
        self.last = now
        self.gone: Seen | None = None
        self.elsewhere: tuple[str, ...] = ()
        """Other folders of the account that hold the same message in the last moment."""

    @property
    def received_s(self) -> int:
        return self.header.received_s if self.header.received_s is not None else self.stored.mtime_ns // 10**9

    @property
    def same(self) -> tuple[str, bytes]:
        """Equal for copies in other folders of the account, in other moments too."""
        if self.box.mailbox.format is Format.MDBOX:  # the parts of the file it is in change as the file grows
            facts = f"{self.header.envelope.message_id} {self.header.received_s} {self.stored.length}"
            return self.box.account, facts.encode()
        return self.box.account, self.stored.identity

    @property
    def id(self) -> str:
        """What ``holdfast restore --message`` takes."""
        return f"{self.last.label}-{message_digest(self.box, self.stored)}"


def message_digest(box: Box, stored: Stored) -> str:
    """The same in every moment, while the message is in its folder."""
    place = b"\0".join((box.tree.encode(), box.mailbox.path, stored.key))
    return blake3(place).hexdigest(length=ID_CHARS // 2)


class Found(NamedTuple):
    """*presences*: in order of the time they were received. *moments*: how many were searched."""

    presences: list[Presence]
    problems: dict[str, str]
    moments: int
    messages: int
    """Different messages looked at."""


def search(
    moments: Iterable[Moment],
    query: Query,
    headers: Headers,
    accounts: Accounts,
    progress: Callable[[Seen, int], None] = lambda _seen, _messages: None,
) -> Found:
    """*moments*: oldest first. Damage is named among the problems. Raises WrongKey, and what the store raises."""
    searching = _Search(query, headers, accounts, progress)
    count = 0
    for moment in moments:
        searching.moment(moment)
        count += 1
    presences = searching.result()
    return Found(presences, searching.problems.named, count, searching.messages)


class _Folder:
    """A box as it was in the moment before."""

    def __init__(self, box: Box, read: Read) -> None:
        self.box = box
        self.read = read
        """Of the moment of *box*: another moment may not have its contents."""
        self.looked_at = False
        self.keys: frozenset[bytes] = frozenset()
        """dbox: of all its messages."""
        self.open: dict[bytes, Presence] = {}


class _Search:
    def __init__(
        self, query: Query, headers: Headers, accounts: Accounts, progress: Callable[[Seen, int], None]
    ) -> None:
        self.problems = Problems()
        self.messages = 0
        self._query = query
        self._headers = headers
        self._progress = progress
        self._boxes = Boxes(accounts, self.problems)
        self._reader = Reader(self.problems, headers)
        self._folders: dict[tuple[str, bytes], _Folder] = {}
        self._closed: list[Presence] = []
        self._before: Seen | None = None
        self._now = Seen("", 0)
        self._matches = 0

    def moment(self, moment: Moment) -> None:
        self._before, self._now = self._now, Seen(moment.label, moment.at_ns)
        seen: set[tuple[str, bytes]] = set()
        for box in self._boxes.of(moment, self._query.wants_account):
            key = box.tree, box.mailbox.path
            seen.add(key)
            folder = self._folders.get(key)
            if folder is None:
                folder = self._folders[key] = _Folder(box, moment.read)
            elif folder.looked_at and folder.box.own_state == box.own_state:
                folder.box, folder.read = box, moment.read
                continue
            self._look(folder, box, moment.read)
            self._progress(self._now, self.messages)
        for key in self._folders.keys() - seen:
            for presence in self._folders.pop(key).open.values():
                self._close(presence)

    def _look(self, folder: _Folder, box: Box, read: Read) -> None:
        """What came into a folder and what went, between its state before and now."""
        try:
            if box.mailbox.format is Format.MAILDIR:
                gone, came = self._maildir(folder, box, read)
            else:
                gone, came = self._dbox(folder, box, read)
        except (VaultDamaged, IndexUnreadable) as error:
            self.problems.add(f"{box.account}, {box.mailbox.folder}, {self._now.label}", error.message)
            return
        folder.box, folder.read, folder.looked_at = box, read, True
        for key in gone - came.keys():
            if (presence := folder.open.pop(key, None)) is not None:
                self._close(presence)
        for key, stored in came.items():
            presence = folder.open.get(key)
            if presence is not None:  # a message never changes, only its flags do
                presence.stored = stored
                presence.box = box
            elif key not in gone:  # else it was there before, in the same part, and was not what is looked for
                self._open(folder, box, stored, read)

    def _maildir(self, folder: _Folder, box: Box, read: Read) -> tuple[set[bytes], dict[bytes, Stored]]:
        old = folder.box if folder.looked_at else None
        went, came = self._reader.maildir_turn(old, folder.read, box, read)
        return went, {stored.key: stored for stored in came}

    def _dbox(self, folder: _Folder, box: Box, read: Read) -> tuple[set[bytes], dict[bytes, Stored]]:
        keys: set[bytes] = set()
        known = folder.keys - folder.open.keys()
        came = {stored.key: stored for stored in self._reader.dbox(box, read, keys, known)}
        before, folder.keys = folder.keys, frozenset(keys)
        return set(before - keys), came

    def _open(self, folder: _Folder, box: Box, stored: Stored, read: Read) -> None:
        self.messages += 1
        header = self._headers.header(box.mailbox.format, stored, read)
        presence = Presence(box, stored, header, self._now)
        if header.problem:
            self.problems.add(f"{box.account}, {box.mailbox.folder}, {presence.id}", header.problem)
        if self._query.wants_header(header, presence.received_s) and self._matches < MATCHES_MAX:
            self._matches += 1
            folder.open[stored.key] = presence

    def _close(self, presence: Presence) -> None:
        assert self._before is not None
        presence.last, presence.gone = self._before, self._now
        self._closed.append(presence)

    def result(self) -> list[Presence]:
        if self._matches >= MATCHES_MAX:
            self.problems.add("the search", f"it ended at {MATCHES_MAX} matches: ask for less")
        there: dict[tuple[str, bytes], set[str]] = {}
        for folder in self._folders.values():
            for presence in folder.open.values():
                presence.last = self._now
                there.setdefault(presence.same, set()).add(presence.box.mailbox.folder)
        everything = [*self._closed, *(p for folder in self._folders.values() for p in folder.open.values())]
        found = [presence for presence in everything if self._answers(presence)]
        for presence in found:
            others = there.get(presence.same, set())
            presence.elsewhere = tuple(sorted(others - {presence.box.mailbox.folder}))
        return sorted(found, key=lambda p: (p.received_s, p.box.account, p.box.mailbox.folder, p.stored.key))

    def _answers(self, presence: Presence) -> bool:
        query = self._query
        if not like(presence.box.mailbox.folder, query.folder):
            return False
        if not query.only_deleted:
            return True
        if presence.gone is None:
            return False
        if query.deleted_from_ns is not None and presence.gone.at_ns <= query.deleted_from_ns:
            return False
        return query.deleted_until_ns is None or presence.last.at_ns < query.deleted_until_ns


def like(text: str, pattern: str) -> bool:
    """Whether *text* is what *pattern* says: whole, in any case, with ``*`` and ``?``. An empty pattern: anything."""
    return not pattern or fnmatchcase(text.casefold(), pattern.casefold().replace("[", "[[]"))
