"""When exactly a message left its folder: looked up in the archived log between two snapshots.

For Maildir and sdbox, whose messages are files of their own: the change that removed the file, or renamed it into
another folder, was captured within milliseconds of the deletion.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

from holdfast.changes.change import Change, Remove, Rename
from holdfast.mail import mailboxes
from holdfast.mail.mailboxes import Format
from holdfast.recover.search import Presence
from holdfast.vault.archive import FramesName, list_frames, read_frames
from holdfast.vault.repository import Vault

OBJECTS_MAX: Final = 2_000
"""Of archived records, read for one question: at one a minute, more than a day of deletions."""

_Key = tuple[str, bytes, bytes]


class Departure(NamedTuple):
    """*moved_to*: the folder it was renamed into; empty when it was removed."""

    at_ns: int
    moved_to: str


def departures(vault: Vault, presences: Iterable[Presence]) -> dict[int, Departure]:
    """By ``id()`` of the presences that are gone and whose going is archived. Raises VaultDamaged, WrongKey, and what
    the store raises."""
    wanted: dict[_Key, list[Presence]] = {}
    for presence in presences:
        if presence.gone is not None and presence.box.mailbox.format is not Format.MDBOX:
            wanted.setdefault(_key(presence), []).append(presence)
    if not wanted:
        return {}
    every = [presence for held in wanted.values() for presence in held]
    windows = {(presence.last.at_ns, presence.gone.at_ns) for presence in every if presence.gone is not None}
    found: dict[int, Departure] = {}
    for name in _overlapping(list_frames(vault.backend), windows)[:OBJECTS_MAX]:
        for frame in read_frames(vault, name).frames:
            for change in frame.changes:
                if isinstance(change, Remove | Rename):
                    _note(change, frame.captured_at_ns, wanted, found)
    return found


def _key(presence: Presence) -> _Key:
    return presence.box.tree, presence.box.mailbox.path, presence.stored.key


def _overlapping(names: list[FramesName], windows: set[tuple[int, int]]) -> list[FramesName]:
    return [name for name in names if any(name.from_ns <= end and name.to_ns >= begin for begin, end in windows)]


def _note(change: Change, at_ns: int, wanted: dict[_Key, list[Presence]], found: dict[int, Departure]) -> None:
    place = _place(change.path)
    if place is None:
        return
    moved_to = ""
    if isinstance(change, Rename):
        target = _place(change.to)
        if target == place:
            return  # a flag
        moved_to = _folder(target[0]) if target is not None else ""
    for presence in _candidates(change.tree, place, wanted):
        if presence.gone is not None and presence.last.at_ns <= at_ns <= presence.gone.at_ns:
            found[id(presence)] = Departure(at_ns, moved_to)


def _candidates(tree: str, place: tuple[bytes, bytes], wanted: dict[_Key, list[Presence]]) -> list[Presence]:
    folder, key = place
    if not key.startswith(b"u."):
        return wanted.get((tree, folder, key), [])
    ending = b"." + key[2:]  # sdbox: the UIDVALIDITY stands before it
    keys = [known for known in wanted if known[:2] == (tree, folder) and known[2].endswith(ending)]
    return [presence for known in keys for presence in wanted[known]]


def _place(path: bytes) -> tuple[bytes, bytes] | None:
    """The mailbox's directory and the message's key in it; None for what is no message."""
    folder, _, name = path.rpartition(b"/")
    above, _, last = folder.rpartition(b"/")
    if last in (b"cur", b"new"):
        return above, mailboxes.base_name(name)
    if last == mailboxes.DBOX_MAILS and name.startswith(b"u."):
        return folder, name
    return None


def _folder(path: bytes) -> str:
    """For people: the folder at *path*."""
    if path.endswith(b"/" + mailboxes.DBOX_MAILS):
        box = mailboxes.dbox(path, multi=False)
        return box.folder if box is not None else ""
    name = path.rpartition(b"/")[2]
    return mailboxes.folder_name(name[1:]).replace(".", "/") if name.startswith(b".") else "INBOX"
