"""What a replaced primary did that the log never got, sorted three ways: against what both last agreed on. Pure.

*Base* is the log as this machine had written it; *its own doing* is what its trees differ from that in; *what the new
primary did since* is asked of that one, thing by thing, when it is merged (``merging``).

What can be merged
    Messages that only it has: added, each once. Flags and keywords of a message (Maildir): a flag is set or not, so of
    two sides that changed one flag both changed it to the same; every other change of a flag was made by one side
    alone, and holds. The message must still be there.

What is left to people, kept aside and listed
    Deletions, also as a flag (``\\Deleted``); messages moved; folders; Sieve; subscriptions; calendars; configuration.
    There the sides may both be right, and what users decided since on the new primary counts more. And all of dbox but
    what ``vault`` and ``doveadm`` can read: its flags stand in index files that only Dovecot can tell apart.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from msgspec import Struct

from holdfast.mail.mailboxes import base_name, maildir_flags

DELETED: Final = "\\Deleted"
BOOKKEEPING: Final = (
    "dovecot.index",
    "dovecot-uidlist",
    "dovecot-uidvalidity",
    "dovecot.list.index",
    "dovecot-keywords",
)
"""Dovecot's own, made anew by it: of no use to anybody by itself, so not listed among what is left."""


class Unlogged(Struct, frozen=True):
    """One change that only this machine has. *path* with backslash escapes where it is no UTF-8."""

    kind: str
    tree: str
    path: str
    to: str = ""


class FlagChange(Struct, frozen=True):
    """Of a message that the log has. *folder*: the Maildir folder in the tree; *name*: its file's, without flags."""

    tree: str
    folder: str
    name: str
    added: tuple[str, ...]
    removed: tuple[str, ...]


class Report(Struct, frozen=True):
    """``rejoin-<when>.json`` in the state directory. *more*: changes that were too many to be listed."""

    unlogged: tuple[Unlogged, ...]
    more: int = 0
    flags: tuple[FlagChange, ...] = ()


class Left(Struct, frozen=True):
    """What is kept aside and not merged. *what*: ``deletion``, ``Sieve``, ...; *why* in words."""

    what: str
    tree: str
    path: str
    why: str


def in_maildir(path: bytes) -> tuple[bytes, bytes] | None:
    """The folder's directory and the file's name of a message; None for anything else."""
    directory, _, name = path.rpartition(b"/")
    above, _, kind = directory.rpartition(b"/")
    return (above, name) if kind in (b"cur", b"new") else None


def flag_changes(
    changes: Iterable[Unlogged], keywords_in: Callable[[str, str], Mapping[str, str]]
) -> tuple[FlagChange, ...]:
    """Of messages whose file has another name in its folder now: of what went and came there under one name without
    flags. A rename may be seen as these two: what was logged last was not seen by its identity yet.

    *keywords_in*: tree and folder to the names of keywords by their letters.
    """
    gone: dict[tuple[str, str, str], str] = {}
    came: dict[tuple[str, str, str], str] = {}
    for change in changes:
        moves = change.kind in ("rename", "link")
        for path, found in ((change.path, gone), (change.to if moves else change.path, came)):
            place = in_maildir(os.fsencode(path))
            if place is None or (change.kind == "put" and found is gone) or (change.kind == "remove" and found is came):
                continue
            name = os.fsdecode(place[1])
            found[change.tree, os.fsdecode(place[0]), os.fsdecode(base_name(place[1]))] = name
    return tuple(_flag_change(*key, gone[key], came[key], keywords_in(key[0], key[1])) for key in gone if key in came)


def _flag_change(tree: str, folder: str, name: str, before: str, after: str, keywords: Mapping[str, str]) -> FlagChange:
    had, has = (set(maildir_flags(os.fsencode(file), dict(keywords))) for file in (before, after))
    return FlagChange(tree, folder, name, tuple(sorted(has - had)), tuple(sorted(had - has)))


def mergeable(change: FlagChange) -> FlagChange | None:
    """Without what is a deletion, or takes one back; None when nothing is left."""
    added = tuple(flag for flag in change.added if flag != DELETED)
    removed = tuple(flag for flag in change.removed if flag != DELETED)
    return FlagChange(change.tree, change.folder, change.name, added, removed) if added or removed else None


def flagged_paths(report: Report) -> frozenset[tuple[str, str]]:
    """(tree, path without flags) of the messages whose flags changed: neither new nor gone."""
    places = ("cur", "new")
    return frozenset((each.tree, f"{each.folder}/{place}/{each.name}") for each in report.flags for place in places)


def left(report: Report, added: Iterable[tuple[str, str]]) -> list[Left]:
    """What of *report* is nobody's but a person's. *added*: (tree, path) of the messages that are merged."""
    merged = set(added)
    flagged = flagged_paths(report)
    found = []
    for change in report.unlogged:
        path = change.to or change.path
        if (change.tree, path) in merged or _is_bookkeeping(change):
            continue
        if change.kind in ("rename", "put", "remove") and (change.tree, path.partition(":2,")[0]) in flagged:
            continue
        what, why = _what(change)
        found.append(Left(what, change.tree, path, why))
    found += [
        Left("deletion", each.tree, f"{each.folder}/{each.name}", "\\Deleted was set or taken back")
        for each in report.flags
        if DELETED in (*each.added, *each.removed)
    ]
    if report.more:
        found.append(Left("unlisted", "", "", f"{report.more} more changes were too many to be listed"))
    return found


def _is_bookkeeping(change: Unlogged) -> bool:
    return change.path.rpartition("/")[2].startswith(BOOKKEEPING) or (
        change.kind in ("mkdir", "rmdir") and (change.path.rpartition("/")[2] in ("cur", "new", "tmp"))
    )


def _what(change: Unlogged) -> tuple[str, str]:
    path = change.to or change.path
    if change.tree.startswith("config"):
        return "configuration", "it may have been changed on the new primary since"
    if change.tree == "groupware":
        return "calendar or address book", "the item may have been changed on the new primary since"
    if change.tree == "queue":
        return "mail queue", "it is delivered when this machine serves again"
    if change.kind in ("remove", "rmdir"):
        return "deletion", "what users did not delete on the new primary stays"
    if path.endswith((".sieve", ".svbin")) or "/sieve/" in path:
        return "Sieve", "a script may have been changed on the new primary since"
    if path.endswith("/subscriptions"):
        return "subscriptions", "they may have been changed on the new primary since"
    if change.kind in ("rename", "link") and in_maildir(path.encode()) is not None:
        return "moved or copied message", "where it is now is for its user to say"
    if change.kind == "mkdir":
        return "folder", "messages that are added make the folders they need"
    return "other", "only messages and flags of Maildir are merged"
