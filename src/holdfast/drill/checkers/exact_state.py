"""Promise 4, *exact*: a mail client sees the same mailboxes as before.

`compare` takes two states in which nothing should have changed in between. `resynchronised` judges what a client that
came back with QRESYNC (RFC 7162) was told, against what truly changed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from holdfast.drill.checkers.facts import Account, Folder, Mailboxes, Message, Resynced, is_keyword
from holdfast.drill.checkers.findings import Difference, What

HARMLESS: Final = frozenset({What.MODSEQ_HIGHER, What.UID_NEXT_HIGHER})
"""A client only asks again for what it already has, or sees a gap in UIDs: allowed by RFC 7162 and RFC 9051 2.3.1.1."""

GROWTH: Final = frozenset({What.MESSAGE_EXTRA, What.UID_NEXT_HIGHER, What.FOLDER_EXTRA, What.ITEM_EXTRA})
"""What traffic between two states explains by itself."""


def compare(before: Mailboxes, after: Mailboxes, *, ignore: frozenset[What] = HARMLESS) -> list[Difference]:
    """Every difference by name, except of the kinds in *ignore*. HIGHESTMODSEQ may rise, and never fall."""
    found: list[Difference] = []
    for name, account in before.accounts.items():
        if name not in after.accounts:
            found.append(Difference(name, "", 0, What.ACCOUNT_MISSING, name, ""))
        else:
            found.extend(_account(name, account, after.accounts[name], before.read))
    return [difference for difference in found if difference.what not in ignore]


def consistent(state: Mailboxes) -> list[Difference]:
    """What is wrong in one state by itself: UIDs at or above UIDNEXT, MODSEQs above HIGHESTMODSEQ, ghost folders."""
    found: list[Difference] = []
    for name, account in state.accounts.items():
        found.extend(Difference(name, folder, 0, What.FOLDER_UNOPENABLE, "", "") for folder in account.unopenable)
        for folder_name, folder in account.folders.items():
            for message in folder.messages:
                if message.uid >= folder.uid_next:
                    found.append(
                        Difference(
                            name, folder_name, message.uid, What.UID_AHEAD, str(folder.uid_next), str(message.uid)
                        )
                    )
                if folder.highest_modseq and message.modseq > folder.highest_modseq:
                    found.append(
                        Difference(
                            name,
                            folder_name,
                            message.uid,
                            What.MODSEQ_AHEAD,
                            str(folder.highest_modseq),
                            str(message.modseq),
                        )
                    )
    return found


def resynchronised(before: Mailboxes, told: Mapping[str, Mapping[str, Resynced]], after: Mailboxes) -> list[Difference]:
    """What a returning client was told wrongly: changes that were none, and changes it was not told of.

    Flags that changed truly must be told, messages that went truly must be reported as vanished, and nothing else. New
    messages (not known before) are told by FETCH as well and are no difference.
    """
    found: list[Difference] = []
    for name, folders in told.items():
        for folder_name, news in folders.items():
            old = before.accounts[name].folders[folder_name]
            new = after.accounts[name].folders.get(folder_name)
            if new is None or old.uid_validity != new.uid_validity:
                continue  # compare() names it; the client starts afresh
            found.extend(
                Difference(name, folder_name, uid, What.QRESYNC, was, now)
                for uid, was, now in _wrong_news(old, new, news)
            )
    return found


def _wrong_news(old: Folder, new: Folder, news: Resynced) -> Iterator[tuple[int, str, str]]:
    now = {message.uid: message for message in new.messages}
    gone = set(news.vanished)
    for message in old.messages:
        current = now.get(message.uid)
        if message.uid in gone:
            if current is not None:
                yield message.uid, "there", "told: vanished"
        elif current is None:
            yield message.uid, "gone", "not told"
        elif message.uid in news.changed:
            if current.flags == message.flags:
                yield message.uid, _flags(message.flags), f"told: {_flags(news.changed[message.uid])}"
        elif current.flags != message.flags:
            yield message.uid, f"{_flags(message.flags)} became {_flags(current.flags)}", "not told"


def _account(name: str, before: Account, after: Account, read: tuple[str, ...]) -> Iterator[Difference]:
    if "mail" in read:
        for folder in sorted(before.folders.keys() | after.folders.keys()):
            if folder not in after.folders:
                yield Difference(name, folder, 0, What.FOLDER_MISSING, f"{_count(before, folder)} messages", "")
            elif folder not in before.folders:
                yield Difference(name, folder, 0, What.FOLDER_EXTRA, "", f"{_count(after, folder)} messages")
            else:
                yield from _folder(name, folder, before.folders[folder], after.folders[folder])
        for folder in sorted(set(after.unopenable) - set(before.unopenable)):
            yield Difference(name, folder, 0, What.FOLDER_UNOPENABLE, "not", "listed")
        for folder in sorted(set(before.subscriptions) ^ set(after.subscriptions)):
            was = folder in before.subscriptions
            yield Difference(name, folder, 0, What.SUBSCRIPTION, _yes(was), _yes(not was))
    if "sieve" in read:
        for script in sorted(before.sieve.keys() | after.sieve.keys()):
            was_script, is_script = before.sieve.get(script), after.sieve.get(script)
            if was_script != is_script:
                sides = [f"{side.digest}{' active' * side.active}" if side else "" for side in (was_script, is_script)]
                yield Difference(name, script, 0, What.SIEVE, sides[0], sides[1])
    if "dav" in read:
        yield from _dav(name, before, after)


def _dav(name: str, before: Account, after: Account) -> Iterator[Difference]:
    for href in sorted(before.collections.keys() | after.collections.keys()):
        was, now = before.collections.get(href), after.collections.get(href)
        if _lasting(was) != _lasting(now):
            yield Difference(name, href, 0, What.COLLECTION, _properties(was), _properties(now))
    for href in sorted(before.items.keys() | after.items.keys()):
        old, new = before.items.get(href), after.items.get(href)
        if new is None:
            yield Difference(name, href, 0, What.ITEM_MISSING, old.etag if old else "", "")
        elif old is None:
            yield Difference(name, href, 0, What.ITEM_EXTRA, "", new.etag)
        elif old != new:
            yield Difference(name, href, 0, What.ITEM, f"{old.etag} {old.digest}", f"{new.etag} {new.digest}")


def _folder(account: str, name: str, before: Folder, after: Folder) -> Iterator[Difference]:
    def difference(uid: int, what: What, was: object, now: object) -> Difference:
        return Difference(account, name, uid, what, str(was), str(now))

    if before.uid_validity != after.uid_validity:
        yield difference(0, What.UID_VALIDITY, before.uid_validity, after.uid_validity)
    if before.uid_next > after.uid_next:
        yield difference(0, What.UID_NEXT_LOWER, before.uid_next, after.uid_next)
    if before.uid_next < after.uid_next:
        yield difference(0, What.UID_NEXT_HIGHER, before.uid_next, after.uid_next)
    if before.highest_modseq > after.highest_modseq:
        yield difference(0, What.HIGHEST_MODSEQ_LOWER, before.highest_modseq, after.highest_modseq)
    old = {message.uid: message for message in before.messages}
    new = {message.uid: message for message in after.messages}
    for uid in sorted(old.keys() | new.keys()):
        if uid not in new:
            yield difference(uid, What.MESSAGE_MISSING, old[uid].message_id, "")
        elif uid not in old:
            yield difference(uid, What.MESSAGE_EXTRA, "", new[uid].message_id)
        else:
            for what, was, now in _message(old[uid], new[uid]):
                yield difference(uid, what, was, now)


def _message(before: Message, after: Message) -> Iterator[tuple[What, object, object]]:
    if before.message_id != after.message_id:
        yield What.MESSAGE_ID, before.message_id, after.message_id
    if before.digest != after.digest:
        yield What.CONTENT, before.digest, after.digest
    if before.size_bytes != after.size_bytes:
        yield What.SIZE, before.size_bytes, after.size_bytes
    if before.internal_date != after.internal_date:
        yield What.INTERNAL_DATE, before.internal_date, after.internal_date
    for what, was, now in (
        (What.FLAGS, _system(before.flags), _system(after.flags)),
        (What.KEYWORDS, _keywords(before.flags), _keywords(after.flags)),
    ):
        if was != now:
            yield what, _flags(was), _flags(now)
    if before.modseq > after.modseq:
        yield What.MODSEQ_LOWER, before.modseq, after.modseq
    if before.modseq < after.modseq:
        yield What.MODSEQ_HIGHER, before.modseq, after.modseq


def _system(flags: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(flag for flag in flags if not is_keyword(flag))


def _keywords(flags: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(flag for flag in flags if is_keyword(flag))


def _flags(flags: tuple[str, ...]) -> str:
    return f"({' '.join(flags)})"


def _count(account: Account, folder: str) -> int:
    return len(account.folders[folder].messages)


def _lasting(properties: dict[str, str] | None) -> dict[str, str] | None:
    """Without the ``tag`` (CTag): Radicale hashes the items in the order the directory gives them (storage/__init__.py,
    ``BaseCollection.etag``), which any copy may change. A client then compares ETags, which are compared here too."""
    return None if properties is None else {key: value for key, value in properties.items() if key != "tag"}


def _properties(properties: dict[str, str] | None) -> str:
    return "" if properties is None else ", ".join(f"{key}={value}" for key, value in sorted(properties.items()))


def _yes(on: bool) -> str:
    return "subscribed" if on else "not subscribed"
