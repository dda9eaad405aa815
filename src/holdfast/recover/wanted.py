"""What a restore is asked for, found in a moment of the vault."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Final, NamedTuple

from holdfast.errors import ExitStatus, HoldfastError
from holdfast.mail.mailboxes import Accounts
from holdfast.recover.boxes import Box, Boxes, Moment, Problems
from holdfast.recover.messages import Reader, Stored
from holdfast.recover.search import ID_CHARS, like, message_digest
from holdfast.vault.faults import VaultDamaged
from holdfast.vault.record import Read

ID: Final = re.compile(rf"([0-9a-f]{{4,32}}(?::\d{{1,18}})?)-([0-9a-f]{{{ID_CHARS}}})")


class NothingWanted(HoldfastError):
    """Nothing in the vault is what was asked for."""

    exit_status = ExitStatus.USAGE


class Wanted(NamedTuple):
    """One message to bring back, and where to read it."""

    box: Box
    stored: Stored
    read: Read


class Chosen(NamedTuple):
    """*wanted*: by account, in the order of boxes. *boxes*: those looked through, empty folders too."""

    wanted: dict[str, list[Wanted]]
    boxes: dict[str, list[Box]]
    problems: dict[str, str]

    @property
    def total(self) -> int:
        return sum(len(messages) for messages in self.wanted.values())


def split_id(text: str) -> tuple[str, str]:
    """The moment's label and the digest of an id. Raises NothingWanted."""
    match = ID.fullmatch(text.strip().lower())
    if match is None:
        hint = "Ids are what `holdfast vault find` shows: 3f2a91c0-5d0e77a1c2."
        raise NothingWanted(f"{text!r} is no id of a message", hint=hint)
    return match[1], match[2]


def folders_of(moment: Moment, account: str, folder: str, accounts: Accounts) -> Chosen:
    """Everything of the accounts that are like *account*, in folders like *folder* (empty: all). A folder's name
    without ``*`` means what is below it, too. Raises NothingWanted, WrongKey."""
    problems = Problems()
    boxes = list(Boxes(accounts, problems).of(moment, lambda name: like(name, account)))
    if not boxes:
        near = sorted({box.account for box in Boxes(accounts, Problems()).of(moment)})
        names = ", ".join(near[:10]) + (f" and {len(near) - 10} more" if len(near) > 10 else "")
        raise NothingWanted(f"no account is called {account} then", hint=f"There were: {names or 'none'}.")
    chosen = [box for box in boxes if _in(box.mailbox.folder, folder)]
    if not chosen:
        names = ", ".join(sorted({box.mailbox.folder for box in boxes})[:20])
        raise NothingWanted(f"{account} had no folder {folder} then", hint=f"There were: {names}.")
    reader = Reader(problems)
    made = Chosen({}, {}, problems.named)
    for box in chosen:
        made.boxes.setdefault(box.account, []).append(box)
        made.wanted.setdefault(box.account, []).extend(
            Wanted(box, stored, moment.read) for stored in _messages(reader, box, moment.read, problems)
        )
    return made


def messages_of(ids: Iterable[str], moment: Callable[[str], Moment], accounts: Accounts) -> Chosen:
    """The messages that *ids* name. *moment*: gives one by its label. Raises NothingWanted (one is not there),
    WrongKey, and what *moment* raises."""
    by_label: dict[str, set[str]] = {}
    for text in ids:
        label, digest = split_id(text)
        by_label.setdefault(label, set()).add(digest)
    problems = Problems()
    made = Chosen({}, {}, problems.named)
    for label, digests in by_label.items():
        there = moment(label)
        reader = Reader(problems)
        for box in Boxes(accounts, problems).of(there):
            for stored in _messages(reader, box, there.read, problems):
                if (digest := message_digest(box, stored)) in digests:
                    digests.discard(digest)
                    if box not in made.boxes.setdefault(box.account, []):
                        made.boxes[box.account].append(box)
                    made.wanted.setdefault(box.account, []).append(Wanted(box, stored, there.read))
            if not digests:
                break
        if digests:
            missing = ", ".join(f"{label}-{digest}" for digest in sorted(digests))
            why = "; ".join(f"{place}: {what}" for place, what in problems.named.items())
            hint = why or "Look for it again: `holdfast vault find`."
            raise NothingWanted(f"no message is called {missing}", hint=hint)
    return made


def _messages(reader: Reader, box: Box, read: Read, problems: Problems) -> Iterator[Stored]:
    try:
        yield from reader.messages(box, read)
    except VaultDamaged as error:
        problems.add(f"{box.account}, {box.mailbox.folder}", error.message)


def _in(folder: str, wanted: str) -> bool:
    return like(folder, wanted) or folder.casefold().startswith(wanted.casefold() + "/")
