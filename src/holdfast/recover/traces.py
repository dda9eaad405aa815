"""What the archived log tells between two snapshots: when exactly a message left its folder, and which messages came
and went so quickly that no snapshot has them.

For Maildir and sdbox, whose messages are files of their own: the change that removed the file, or renamed it into
another folder, was captured within milliseconds of the deletion.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from holdfast.changes.change import Change, Put, Remove, Rename
from holdfast.mail import mailboxes, stored
from holdfast.mail.headers import HEADER_BYTES_MAX, envelope
from holdfast.mail.mailboxes import Accounts, Format, Mailbox
from holdfast.mail.stored import Unreadable
from holdfast.recover.boxes import Box
from holdfast.recover.headers import Header
from holdfast.recover.messages import Stored
from holdfast.recover.search import Presence, Query, Seen, like
from holdfast.vault.archive import ArchivedFrame, FramesName, list_frames, read_frames
from holdfast.vault.record import Snapshot
from holdfast.vault.repository import Vault

OBJECTS_MAX: Final = 5_000
"""Of archived records, read for one question."""
LABEL_CHARS: Final = 8

_Key = tuple[str, bytes, bytes]
"""Tree, the mailbox's directory, what stays of the message's name."""


class Departure(NamedTuple):
    """*moved_to*: the folder it was renamed into; empty when it was removed."""

    at_ns: int
    moved_to: str


class Traces(NamedTuple):
    """*departures*: by ``id()`` of the presences that are gone and whose going is archived. *short*: messages that are
    in no snapshot, each present in the instant its id names. *left_out*: objects that were too many to read."""

    departures: dict[int, Departure]
    short: list[Presence]
    left_out: int


class Ground(NamedTuple):
    """*trees*: where they stand, by name, as the newest snapshot says."""

    trees: dict[str, bytes]
    accounts: Accounts


def ground_of(snapshot: Snapshot, accounts: Accounts) -> Ground:
    return Ground({tree.name: tree.root for tree in snapshot.trees}, accounts)


def traces(vault: Vault, presences: list[Presence], query: Query, ground: Ground) -> Traces:
    """Messages that no snapshot has are looked for where *query* asks for deleted ones. Raises VaultDamaged, WrongKey,
    and what the store raises."""
    gone = [presence for presence in presences if presence.gone is not None]
    windows = {(presence.last.at_ns, presence.gone.at_ns) for presence in gone if presence.gone is not None}
    if query.only_deleted:
        windows.add(_asked(vault, query))
    names = [name for name in list_frames(vault.backend) if _within(name, windows)]
    scan = _Scan(gone, query, ground)
    for name in names[:OBJECTS_MAX]:
        for frame in read_frames(vault, name).frames:
            scan.frame(name.incarnation, frame)
    return Traces(scan.departures, scan.short, max(0, len(names) - OBJECTS_MAX))


def _asked(vault: Vault, query: Query) -> tuple[int, int]:
    """When a message may have come that went within the time asked for and is in no snapshot."""
    begin, end = query.deleted_from_ns or 0, query.deleted_until_ns
    before = [name.taken_at_ns for name in vault.snapshots() if name.taken_at_ns <= begin]
    return max(before, default=0), end if end is not None else 1 << 63


def _within(name: FramesName, windows: set[tuple[int, int]]) -> bool:
    return any(name.from_ns <= end and name.to_ns >= begin for begin, end in windows)


class _Arrived(NamedTuple):
    header: Header
    path: bytes
    size: int
    mtime_ns: int
    at: Seen


class _Scan:
    """The log, record after record."""

    def __init__(self, gone: list[Presence], query: Query, ground: Ground) -> None:
        self.departures: dict[int, Departure] = {}
        self.short: list[Presence] = []
        self._query = query
        self._ground = ground
        self._wanted: dict[_Key, list[Presence]] = {}
        for presence in gone:
            if presence.box.mailbox.format is not Format.MDBOX:
                self._wanted.setdefault(_key_of(presence), []).append(presence)
        self._arrived: dict[_Key, _Arrived] = {}
        self._reached = ("", 0)
        self._instant: Seen | None = None
        """The last one before the record that is looked at."""

    def frame(self, incarnation: str, frame: ArchivedFrame) -> None:
        if incarnation != self._reached[0]:
            self._arrived.clear()
            self._instant = None
        elif frame.sequence <= self._reached[1]:
            return  # the same record in two objects
        self._reached = incarnation, frame.sequence
        now = Seen(f"{incarnation[:LABEL_CHARS]}:{frame.sequence}", frame.captured_at_ns)
        for change in frame.changes:
            self._change(change, now)
        if not frame.more:
            self._instant = now

    def _change(self, change: Change, now: Seen) -> None:
        if isinstance(change, Put):
            place = _place(change.path)
            if place is not None and self._query.only_deleted:
                self._arrived[change.tree, *place] = _arrival(change, now)
        elif isinstance(change, Remove):
            place = _place(change.path)
            if place is not None:
                self._left((change.tree, *place), Departure(now.at_ns, ""))
        elif isinstance(change, Rename):
            self._renamed(change, now)

    def _renamed(self, change: Rename, now: Seen) -> None:
        place, target = _place(change.path), _place(change.to)
        if place is None or place == target:
            return  # a flag
        came = self._arrived.get((change.tree, *place))
        self._left((change.tree, *place), Departure(now.at_ns, _folder(target[0]) if target is not None else ""))
        if came is not None and target is not None:
            self._arrived[change.tree, *target] = came._replace(path=change.to, at=now)

    def _left(self, key: _Key, departure: Departure) -> None:
        known = False
        for presence in self._wanted.get(key, ()):
            if presence.gone is not None and presence.last.at_ns <= departure.at_ns <= presence.gone.at_ns:
                self.departures[id(presence)] = departure
                known = True
        came = self._arrived.pop(key, None)
        if not known and came is not None:
            self._short(key, came, departure)

    def _short(self, key: _Key, came: _Arrived, departure: Departure) -> None:
        """A message that no snapshot has, if an instant has it, and it is what is looked for."""
        query, last = self._query, self._instant
        if last is None or last.at_ns < came.at.at_ns:
            return
        if query.deleted_from_ns is not None and departure.at_ns < query.deleted_from_ns:
            return
        if query.deleted_until_ns is not None and departure.at_ns > query.deleted_until_ns:
            return
        tree, path, name = key
        mailbox = _mailbox(path)
        account = self._ground.accounts.account(self._ground.trees.get(tree, b"") + b"/" + mailbox.root)
        if not query.wants_account(account) or not like(mailbox.folder, query.folder):
            return
        box = Box(tree, account, mailbox, b"", (), b"")
        presence = Presence(box, Stored(name, came.path, b"", came.size, came.mtime_ns, ()), came.header, came.at)
        if query.wants_header(came.header, presence.received_s):
            presence.last, presence.gone = last, Seen("", departure.at_ns)
            self.short.append(presence)
            self.departures[id(presence)] = departure


def _arrival(change: Put, now: Seen) -> _Arrived:
    data = b"".join(extent.data for extent in change.extents)
    if change.path.rpartition(b"/")[2].startswith(b"u."):
        part = stored.dbox_message(data, head=True)
        beginning = part if isinstance(part, Unreadable) else part.stored
        received_s = None if isinstance(part, Unreadable) else part.received_s
    else:
        beginning, received_s = data, None
    plain = beginning if isinstance(beginning, Unreadable) else stored.plain(beginning, HEADER_BYTES_MAX)
    header = Header(envelope(b"" if isinstance(plain, Unreadable) else plain), received_s)
    return _Arrived(header, change.path, change.size, change.meta.mtime_ns, now)


def _key_of(presence: Presence) -> _Key:
    key = presence.stored.key
    if presence.box.mailbox.format is Format.SDBOX:
        key = b"u." + key.rpartition(b".")[2]
    return presence.box.tree, presence.box.mailbox.path, key


def _place(path: bytes) -> tuple[bytes, bytes] | None:
    """The mailbox's directory and the message's name in it; None for what is no message."""
    folder, _, name = path.rpartition(b"/")
    above, _, last = folder.rpartition(b"/")
    if last in (b"cur", b"new") and not name.startswith(b"."):
        return above, mailboxes.base_name(name)
    if last == mailboxes.DBOX_MAILS and name.startswith(b"u."):
        return folder, name
    return None


def _mailbox(path: bytes) -> Mailbox:
    if path.endswith(b"/" + mailboxes.DBOX_MAILS) and (box := mailboxes.dbox(path, multi=False)) is not None:
        return box
    return mailboxes.maildir(path, None)


def _folder(path: bytes) -> str:
    """For people: the folder at *path*."""
    return _mailbox(path).folder
