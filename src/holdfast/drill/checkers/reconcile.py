"""Compare what was acknowledged with what is there, message by message and flag by flag.

Copies of one message in one account are matched: first each expected copy with a copy in its folder (by UID when it is
known), then with one in another folder (misplaced). An expected copy left over is *lost*; a present one left over is an
expunged message that is *back* (same UID, same folder), or else a *duplicate* (under another UID it came anew).
"""

from __future__ import annotations

import calendar
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from msgspec import Struct

from holdfast.drill.checkers.expected import Acknowledged, Copy, Expected, ExpectedAccount, expected, keywords
from holdfast.drill.checkers.facts import Account, Mailboxes, Message, Record
from holdfast.drill.checkers.findings import Difference, Duplicate, LostMessage, What

_EMPTY: Final = Account({}, (), {}, {}, {})


class Verdict(Struct):
    """*accepted* counts messages acknowledged (one per recipient; deliveries, probes and appends), *present* those of
    them which are there or were rightly removed since. The lists name everything that is not as it should be."""

    accepted: int
    accepted_by_kind: dict[str, int]
    present: int
    lost: list[LostMessage]
    duplicates: list[Duplicate]
    state_differences: list[Difference]
    acknowledged_operations: int
    unknown_operations: int
    unknown_present: int
    """Copies that are there though no one had acknowledged them: allowed, counted."""

    @property
    def clean(self) -> bool:
        """Whether nothing is lost, doubled (but for explained doubles) or different."""
        return not (self.lost or self.state_differences or any(not double.explained for double in self.duplicates))


class Present(NamedTuple):
    folder: str
    uid_validity: int
    message: Message


class Match(NamedTuple):
    copy: Copy
    present: Present


def reconcile(records: Iterable[Record], mailboxes: Mailboxes) -> Verdict:
    """Judge *mailboxes* by a journal's *records*. Messages that no journal knows are left alone."""
    wanted = expected(records)
    verdict = Verdict(
        accepted=sum(wanted.accepted.values()),
        accepted_by_kind=wanted.accepted,
        present=0,
        lost=[],
        duplicates=[],
        state_differences=[],
        acknowledged_operations=wanted.acknowledged_operations,
        unknown_operations=wanted.unknown_operations,
        unknown_present=0,
    )
    for name, account in sorted(wanted.accounts.items()):
        _account(account, mailboxes.accounts.get(name, _EMPTY), wanted, mailboxes.read, verdict)
    verdict.present = verdict.accepted - sum(message.operation in ("Deliver", "Append") for message in verdict.lost)
    return verdict


def _account(
    wanted: ExpectedAccount, there: Account, everything: Expected, read: tuple[str, ...], verdict: Verdict
) -> None:
    verdict.state_differences.extend(wanted.contradictions)
    if "mail" in read:
        copies: dict[str, list[Copy]] = defaultdict(list)
        for copy in wanted.copies:
            copies[copy.message_id].append(copy)
        present: dict[str, list[Present]] = defaultdict(list)
        for folder_name, folder in there.folders.items():
            for message in folder.messages:
                if message.message_id in everything.digests:
                    present[message.message_id].append(Present(folder_name, folder.uid_validity, message))
        for message_id in sorted(copies.keys() | present.keys()):
            _message(wanted, message_id, copies[message_id], present[message_id], everything, verdict)
        verdict.state_differences.extend(_folders(wanted, there))
    if "sieve" in read:
        verdict.state_differences.extend(_sieve(wanted, there))
    if "dav" in read:
        verdict.state_differences.extend(_dav(wanted, there))


def _message(
    account: ExpectedAccount,
    message_id: str,
    copies: list[Copy],
    present: list[Present],
    everything: Expected,
    verdict: Verdict,
) -> None:
    matches, missing, extra = match(copies, present)
    for copy, found in matches:
        verdict.unknown_present += not copy.required
        verdict.state_differences.extend(_judge(account.name, copy, found, everything.digests[message_id]))
    for copy in missing:
        verdict.lost.append(
            LostMessage(
                account.name,
                message_id,
                copy.by.operation,
                copy.by.mono_ns,
                copy.by.real_ns,
                " or ".join(sorted(copy.places)),
                copies=len(present),
                rests_on=copy.rests_on,
            )
        )
    gone = account.removed.get(message_id, [])
    back = 0
    for found in extra:
        here = [copy for copy in gone if copy.is_at(found.folder, found.message.uid)]
        if here:
            back += 1
            note = f"{message_id}, {_told(here[-1].last)}"
            rests_on = tuple(moment for copy in here for moment in copy.rests_on)
            where = (account.name, found.folder, found.message.uid)
            verdict.state_differences.append(
                Difference(*where, What.EXPUNGED_BACK, "expunged", "there", note, rests_on)
            )
    explained = sum(copy.retried for copy, _ in matches)
    unexplained = len(extra) - back
    if explained or unexplained:
        should = sum(copy.required for copy in copies)
        if explained and not should and not unexplained:
            return  # never acknowledged, and there once: nothing is doubled
        folders = tuple(sorted(found.folder for found in present))
        verdict.duplicates.append(
            Duplicate(account.name, message_id, folders, len(present), should, explained=not unexplained)
        )


def match(copies: list[Copy], present: list[Present]) -> tuple[list[Match], list[Copy], list[Present]]:
    """(pairs, required copies without a present one, present ones without a copy)."""
    matches: list[Match] = []
    waiting = sorted(copies, key=lambda copy: not copy.required)
    free = list(present)

    def take(fits: str) -> None:
        for copy in list(waiting):
            for found in free:
                here = found.folder in copy.places
                if (fits == "uid" and here and copy.uid == found.message.uid) or (fits == "folder" and here):
                    matches.append(Match(copy, found))
                    waiting.remove(copy)
                    free.remove(found)
                    break

    take("uid")
    take("folder")
    for copy in [copy for copy in waiting if copy.required]:
        if free:
            matches.append(Match(copy, free.pop(0)))
            waiting.remove(copy)
    return matches, [copy for copy in waiting if copy.required], free


def _judge(account: str, copy: Copy, found: Present, body_digest: str) -> Iterator[Difference]:
    message = found.message

    def difference(what: What, wanted: str, there: str) -> Difference:
        note = f"{message.message_id}, {_told(copy.last)}"
        return Difference(account, found.folder, message.uid, what, wanted, there, note, copy.rests_on)

    if found.folder not in copy.places:
        yield difference(What.MESSAGE_MISPLACED, " or ".join(sorted(copy.places)), found.folder)
    elif copy.uid and copy.uid != message.uid and copy.uid_validity in (0, found.uid_validity):
        yield difference(What.UID_CHANGED, str(copy.uid), str(message.uid))
    if message.body_digest and message.body_digest != body_digest:
        yield difference(What.CONTENT, body_digest, message.body_digest)
    if copy.internal_date_s is not None and seconds_of(message.internal_date) != copy.internal_date_s:
        yield difference(What.INTERNAL_DATE, _date(copy.internal_date_s), message.internal_date)
    there = set(message.flags)
    refused = copy.refuses - keywords(copy.refuses) if copy.unnamed else copy.refuses
    wrong = ((copy.wants - copy.unsure) - there) | ((refused - copy.unsure) & there)
    for flag in sorted(wrong):
        what = What.FLAGS if flag.startswith("\\") else What.KEYWORDS
        yield difference(what, f"{flag} {'set' if flag in copy.wants else 'not set'}", f"({' '.join(message.flags)})")


def _folders(wanted: ExpectedAccount, there: Account) -> Iterator[Difference]:
    for folder, by in sorted(wanted.folders.items()):
        if by is not None and folder not in there.folders:
            yield Difference(wanted.name, folder, 0, What.FOLDER_MISSING, _told(by), "", rests_on=(by.mono_ns,))
    for folder, by in sorted(wanted.no_folders.items()):
        if folder in there.folders:
            yield Difference(wanted.name, folder, 0, What.FOLDER_EXTRA, _told(by), "there", rests_on=(by.mono_ns,))
    for folder, wish in sorted(wanted.subscriptions.items()):
        if wish is not None and wish[0] is not (folder in there.subscriptions):
            sides = ("subscribed", "not subscribed") if wish[0] else ("not subscribed", "subscribed")
            yield Difference(
                wanted.name, folder, 0, What.SUBSCRIPTION, *sides, note=_told(wish[1]), rests_on=(wish[1].mono_ns,)
            )


def _sieve(wanted: ExpectedAccount, there: Account) -> Iterator[Difference]:
    for name, allowed in sorted(wanted.sieve.items()):
        script = there.sieve.get(name)
        digest = script.digest if script else ""
        if digest not in {one for one, _ in allowed}:
            by = allowed[-1][1]
            yield Difference(wanted.name, name, 0, What.SIEVE, allowed[0][0], digest, _told(by), (by.mono_ns,))


def _dav(wanted: ExpectedAccount, there: Account) -> Iterator[Difference]:
    for href, by in sorted(wanted.collections.items()):
        if href not in there.collections:
            yield Difference(wanted.name, href, 0, What.COLLECTION, _told(by), "missing", rests_on=(by.mono_ns,))
    for href, allowed in sorted(wanted.items.items()):
        item = there.items.get(href)
        mark = item.mark if item else ""
        by = allowed[-1][2]
        if mark not in {one for one, _, _ in allowed}:
            what = What.ITEM_MISSING if item is None else What.ITEM if allowed[0][0] else What.ITEM_EXTRA
            sides = (allowed[0][0] or "deleted", mark or "missing")
            yield Difference(wanted.name, href, 0, what, *sides, _told(by), rests_on=(by.mono_ns,))
            continue
        etags = {etag for one, etag, _ in allowed if one == mark and etag}
        if item is not None and etags and item.etag not in etags:
            sides = (" or ".join(sorted(etags)), item.etag)
            yield Difference(wanted.name, href, 0, What.ITEM, *sides, _told(by), rests_on=(by.mono_ns,))


def seconds_of(internal_date: str) -> int:
    """``17-Jul-1996 02:44:25 -0700`` as seconds since 1970; -1 when it is none."""
    moment, _, zone = internal_date.strip().rpartition(" ")
    try:
        seconds = calendar.timegm(time.strptime(moment, "%d-%b-%Y %H:%M:%S"))
        offset = int(zone[1:3]) * 3600 + int(zone[3:5]) * 60
    except ValueError:
        return -1
    return seconds + offset if zone.startswith("-") else seconds - offset


def _date(seconds: int) -> str:
    return time.strftime("%d-%b-%Y %H:%M:%S +0000", time.gmtime(seconds))


def _told(by: Acknowledged) -> str:
    when = time.strftime("%H:%M:%S", time.gmtime(by.real_ns // 1_000_000_000))
    how = "acknowledged" if by.answered else "unanswered, given up"
    return f"{by.operation} {how} {when}.{by.real_ns // 1_000_000 % 1000:03d} UTC"
