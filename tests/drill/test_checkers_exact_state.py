"""Promise 4: each kind of difference between two states is found, by name and place, and nothing else is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from holdfast.drill.checkers.exact_state import HARMLESS, compare, consistent, resynchronised
from holdfast.drill.checkers.facts import Account, DavItem, Folder, Mailboxes, Resynced, SieveScript
from holdfast.drill.checkers.findings import What
from tests.drill.made import ANN, account, folder, mailboxes, message

Change = Callable[[Account], Account]


def before() -> Mailboxes:
    return mailboxes(
        account(
            {
                "INBOX": folder(message(1, "a", "\\Seen", "todo"), message(2, "b"), message(5, "c", "\\Flagged")),
                "Köln & Bonn": folder(message(3, "d"), uid_validity=9),
            },
            subscriptions=("INBOX",),
            sieve={"main": SieveScript("s1", True, "keep;")},
            collections={"/ann/work/": {"kind": "calendar", "tag": "t1"}},
            items={"/ann/work/1.ics": DavItem("e1", "d1", "m1")},
        ),
        bob=account({"INBOX": folder()}),
    )


def on_folder(name: str, **fields: Any) -> Change:
    def change(ann: Account) -> Account:
        changed = msgspec.structs.replace(ann.folders[name], **fields)
        return msgspec.structs.replace(ann, folders={**ann.folders, name: changed})

    return change


def on_message(uid: int, **fields: Any) -> Change:
    def change(ann: Account) -> Account:
        inbox = ann.folders["INBOX"]
        messages = tuple(msgspec.structs.replace(one, **fields) if one.uid == uid else one for one in inbox.messages)
        return on_folder("INBOX", messages=messages)(ann)

    return change


def on_account(**fields: Any) -> Change:
    return lambda ann: msgspec.structs.replace(ann, **fields)


def without_message(uid: int) -> Change:
    return lambda ann: on_folder(
        "INBOX", messages=tuple(one for one in ann.folders["INBOX"].messages if one.uid != uid)
    )(ann)


def swapped(ann: Account) -> Account:
    one, two, *rest = ann.folders["INBOX"].messages
    pair = (msgspec.structs.replace(two, uid=one.uid), msgspec.structs.replace(one, uid=two.uid))
    return on_folder("INBOX", messages=(*pair, *rest))(ann)


CASES: dict[str, tuple[Change, set[tuple[str, int, What]]]] = {
    "lost message": (without_message(2), {("INBOX", 2, What.MESSAGE_MISSING)}),
    "extra message": (
        lambda ann: on_folder("INBOX", messages=(*ann.folders["INBOX"].messages, message(9, "x")))(ann),
        {("INBOX", 9, What.MESSAGE_EXTRA)},
    ),
    "wrong flag": (on_message(5, flags=("\\Seen",)), {("INBOX", 5, What.FLAGS)}),
    "lost keyword": (on_message(1, flags=("\\Seen",)), {("INBOX", 1, What.KEYWORDS)}),
    "other content": (on_message(1, digest="x"), {("INBOX", 1, What.CONTENT)}),
    "other size": (on_message(1, size_bytes=99), {("INBOX", 1, What.SIZE)}),
    "other date": (
        on_message(2, internal_date="01-Jan-2026 10:00:01 +0000"),
        {("INBOX", 2, What.INTERNAL_DATE)},
    ),
    "lower modseq of a message": (on_message(5, modseq=4), {("INBOX", 5, What.MODSEQ_LOWER)}),
    "UIDVALIDITY": (on_folder("INBOX", uid_validity=8), {("INBOX", 0, What.UID_VALIDITY)}),
    "UIDNEXT lower": (on_folder("INBOX", uid_next=5), {("INBOX", 0, What.UID_NEXT_LOWER)}),
    "HIGHESTMODSEQ lower": (on_folder("INBOX", highest_modseq=4), {("INBOX", 0, What.HIGHEST_MODSEQ_LOWER)}),
    "folder missing": (
        lambda ann: on_account(folders={"INBOX": ann.folders["INBOX"]})(ann),
        {("Köln & Bonn", 0, What.FOLDER_MISSING)},
    ),
    "folder extra": (
        lambda ann: on_account(folders={**ann.folders, "new": folder()})(ann),
        {("new", 0, What.FOLDER_EXTRA)},
    ),
    "a folder's ghost": (on_account(unopenable=("ghost",)), {("ghost", 0, What.FOLDER_UNOPENABLE)}),
    "subscription": (on_account(subscriptions=()), {("INBOX", 0, What.SUBSCRIPTION)}),
    "Sieve content": (
        on_account(sieve={"main": SieveScript("s2", True, "stop;")}),
        {("main", 0, What.SIEVE)},
    ),
    "Sieve not active": (on_account(sieve={"main": SieveScript("s1", False, "keep;")}), {("main", 0, What.SIEVE)}),
    "Sieve gone": (on_account(sieve={}), {("main", 0, What.SIEVE)}),
    "item gone": (on_account(items={}), {("/ann/work/1.ics", 0, What.ITEM_MISSING)}),
    "item other": (
        on_account(items={"/ann/work/1.ics": DavItem("e2", "d1", "m1")}),
        {("/ann/work/1.ics", 0, What.ITEM)},
    ),
    "collection": (on_account(collections={}), {("/ann/work/", 0, What.COLLECTION)}),
}


def changed(change: Change) -> Mailboxes:
    state = before()
    return msgspec.structs.replace(state, accounts={**state.accounts, ANN: change(state.accounts[ANN])})


def test_equal_states_have_no_difference() -> None:
    assert compare(before(), before(), ignore=frozenset()) == []
    assert consistent(before()) == []


@pytest.mark.parametrize("name", CASES)
def test_each_difference_is_found_and_only_it(name: str) -> None:
    change, wanted = CASES[name]
    found = compare(before(), changed(change))
    assert {(one.folder, one.uid, one.what) for one in found} == wanted
    assert all(one.account == ANN for one in found)


def test_swapped_uids_are_found_by_content_and_identity() -> None:
    found = compare(before(), changed(swapped))
    assert {(one.uid, one.what) for one in found} >= {
        (1, What.MESSAGE_ID),
        (2, What.MESSAGE_ID),
        (1, What.CONTENT),
        (2, What.CONTENT),
    }


def test_a_missing_account_is_one_difference() -> None:
    state = before()
    after = msgspec.structs.replace(state, accounts={ANN: state.accounts[ANN]})
    assert [(one.account, one.what) for one in compare(state, after)] == [("bob@example.org", What.ACCOUNT_MISSING)]


def test_higher_modseq_and_uidnext_are_allowed_unless_asked_for() -> None:
    after = changed(on_folder("INBOX", highest_modseq=99, uid_next=99))
    assert compare(before(), after, ignore=HARMLESS) == []
    assert [one.what for one in compare(before(), after, ignore=frozenset())] == [What.UID_NEXT_HIGHER]


def test_what_was_not_read_is_not_compared() -> None:
    state = msgspec.structs.replace(before(), read=("mail",))
    assert compare(state, changed(on_account(sieve={}, items={}, collections={}))) == []


def test_a_state_that_contradicts_itself_is_named() -> None:
    ahead = changed(on_folder("INBOX", uid_next=5, highest_modseq=4))
    assert {(one.uid, one.what) for one in consistent(ahead)} == {(5, What.UID_AHEAD), (5, What.MODSEQ_AHEAD)}


def told(changed: dict[int, tuple[str, ...]], vanished: tuple[int, ...] = ()) -> dict[str, dict[str, Resynced]]:
    return {ANN: {"INBOX": Resynced(7, 9, changed, vanished)}}


def test_a_returning_client_that_is_told_nothing_sees_no_difference() -> None:
    assert resynchronised(before(), told({}), before()) == []


@pytest.mark.parametrize(
    ("news", "after", "uid"),
    [
        (told({1: ("\\Seen", "todo")}), before(), 1),
        (told({}, (2,)), before(), 2),
        (told({}), changed(without_message(2)), 2),
        (told({}), changed(on_message(5, flags=("\\Seen",))), 5),
    ],
    ids=["flag change that was none", "vanished and there", "gone and not told", "changed and not told"],
)
def test_wrong_news_to_a_returning_client_is_named(
    news: dict[str, dict[str, Resynced]], after: Mailboxes, uid: int
) -> None:
    found = resynchronised(before(), news, after)
    assert [(one.what, one.uid) for one in found] == [(What.QRESYNC, uid)]


def test_true_news_is_no_difference() -> None:
    after = changed(lambda ann: on_message(5, flags=("\\Seen",))(without_message(2)(ann)))
    assert resynchronised(before(), told({5: ("\\Seen",), 9: ()}, (2, 4)), after) == []


def test_a_folder_made_anew_is_left_to_the_comparison() -> None:
    after = changed(on_folder("INBOX", uid_validity=99))
    assert resynchronised(before(), told({1: ()}), after) == []
    assert isinstance(after.accounts[ANN].folders["INBOX"], Folder)
