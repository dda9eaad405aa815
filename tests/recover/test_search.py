"""Finding mail through time: when it was there, when it went, where else it is; and what searching again costs."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from holdfast.mail.mailboxes import Accounts
from holdfast.recover.boxes import Moment
from holdfast.recover.groupware import ItemQuery, find_items
from holdfast.recover.headers import Headers
from holdfast.recover.search import Found, Query, search
from holdfast.recover.wanted import NothingWanted, folders_of, messages_of
from holdfast.vault.faults import VaultDamaged
from tests.recover.site import ACCOUNT, Store, event


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def find(moments: list[Moment], **asked: object) -> Found:
    return search(moments, Query(**asked), Headers(), Accounts())  # type: ignore[arg-type]


def titles(found: Found) -> list[tuple[str, str]]:
    return [(one.box.mailbox.folder, one.header.envelope.subject) for one in found.presences]


def test_what_was_deleted_on_tuesday_is_found(store: Store) -> None:
    paths = [store.message(number) for number in range(5)]
    store.message(9, "Projects/K&APY-ln")
    moments = [store.snapshot()]
    paths[1].unlink()
    store.message(6)
    moments.append(store.snapshot())
    paths[2].rename(store.folder("Trash") / "cur" / paths[2].name)
    moments.append(store.snapshot())
    found = find(moments, deleted_from_ns=0)
    assert titles(found) == [("INBOX", "number 1"), ("INBOX", "number 2")]
    first, second = found.presences
    assert (first.last.label, first.gone) == (moments[0].label, (moments[1].label, moments[1].at_ns))
    assert second.elsewhere == ("Trash",)
    assert (first.received_s, first.box.account) == (1767225601, ACCOUNT)
    between = find(moments, deleted_from_ns=moments[1].at_ns, deleted_until_ns=moments[2].at_ns)
    assert titles(between) == [("INBOX", "number 2")]
    assert titles(find(moments, deleted_from_ns=moments[2].at_ns)) == []
    assert titles(find(moments, folder="projects/*")) == [("Projects/Köln", "number 9")]


def test_each_question_is_answered(store: Store) -> None:
    store.message(1, Subject="=?utf-8?q?B=C3=BCdget?=", From="Anna <anna@example.com>")
    store.message(2, To="team@example.org", Cc="Anna <anna@example.com>")
    store.message(3, Message_ID="<odd.ID@example.net>")
    moments = [store.snapshot()]
    for asked, numbers in (
        ({"subject": "BÜDGET"}, [1]),
        ({"text": "anna@"}, [1, 2]),
        ({"sender": "anna"}, [1]),
        ({"recipient": "team@"}, [2]),
        ({"message_id": "<ODD.id@example.net>"}, [3]),
        ({"message_id": "odd.id"}, []),
        ({"received_from_ns": 1767225602 * 10**9}, [2, 3]),
        ({"received_until_ns": 1767225602 * 10**9}, [1]),
        ({"account": "alice@*"}, [1, 2, 3]),
        ({"account": "bob@*"}, []),
        ({"folder": "INBOX", "text": "bob"}, [2, 3]),
    ):
        found = find(moments, **asked)
        assert [one.received_s - 1767225600 for one in found.presences] == numbers, asked


def test_a_changed_flag_is_no_deletion_and_a_return_no_secret(store: Store) -> None:
    path = store.message(1)
    new = store.folder("INBOX") / "new" / "1767225609.M9.host"
    shutil.move(store.message(9), new)
    moments = [store.snapshot()]
    seen = path.with_name(path.name + "S")
    path.rename(seen)
    new.rename(store.folder("INBOX") / "cur" / f"{new.name}:2,RS")
    moments.append(store.snapshot())
    assert titles(find(moments, deleted_from_ns=0)) == []
    assert find(moments).presences[0].stored.flags == ("\\Seen",)
    seen.unlink()
    moments.append(store.snapshot())
    store.message(1, flags="S")
    moments.append(store.snapshot())
    found = find(moments, subject="number 1").presences
    assert [(one.first.label, one.gone is None) for one in found] == [
        (moments[0].label, False),
        (moments[3].label, True),
    ]
    shutil.rmtree(store.mail)
    moments.append(store.snapshot())
    assert len(find(moments, deleted_from_ns=moments[3].at_ns).presences) == 2


def test_thirty_snapshots_cost_little_more_than_one(store: Store, tmp_path: Path) -> None:
    """Counted in contents read: of the first search every header and part once; of later ones what changed."""
    for number in range(600):
        store.message(number)
    moments = [store.snapshot()]
    headers = Headers(tmp_path / "headers.sqlite")
    search(moments, Query(), headers, Accounts())
    assert headers.read_total == 600
    first = len(store.reads)
    store.reads.clear()
    for number in range(600, 630):
        store.message(number)
        moments.append(store.snapshot())
    store.reads.clear()
    found = search(moments, Query(text="number 6"), headers, Accounts())
    headers.close()
    assert (len(found.presences), found.messages, headers.read_total) == (41, 630, 630)
    assert len(store.reads) < first / 2
    store.reads.clear()
    again = Headers(tmp_path / "headers.sqlite")
    search(moments, Query(text="number 6"), again, Accounts())
    assert again.read_total == 0


def test_a_damaged_directory_is_named_and_is_no_deletion(store: Store) -> None:
    for number in range(3):
        store.message(number)
    moments = [store.snapshot()]
    store.message(4)
    moments.append(store.snapshot())
    broken = broken_from(moments[1], set(store_parts(store, moments[0])))
    found = find([moments[0], broken])
    assert len(found.presences) == 3
    assert all(one.gone is None for one in found.presences)
    assert found.problems


def store_parts(store: Store, moment: Moment) -> list[bytes]:
    store.reads.clear()
    find([moment])
    return list(store.reads)


def broken_from(moment: Moment, known: set[bytes]) -> Moment:
    """*moment*, of whose contents only the *known* ones can be read."""

    def read(content_id: bytes) -> bytes:
        if content_id not in known:
            raise VaultDamaged("a pack is missing")
        return moment.read(content_id)

    return moment._replace(read=read)


def test_ids_lead_back_to_messages(store: Store) -> None:
    store.message(1)
    gone = store.message(2)
    moments = {moment.label: moment for moment in [store.snapshot()]}
    gone.unlink()
    last = store.snapshot()
    moments[last.label] = last
    by_label: Callable[[str], Moment] = moments.__getitem__
    found = find(list(moments.values())).presences
    chosen = messages_of([one.id for one in found], by_label, Accounts())
    assert sorted(one.stored.key for one in chosen.wanted[ACCOUNT]) == sorted(one.stored.key for one in found)
    with pytest.raises(NothingWanted):
        messages_of([f"{last.label}-{found[1].id[-10:]}"], by_label, Accounts())
    with pytest.raises(NothingWanted):
        messages_of(["nonsense"], by_label, Accounts())
    with pytest.raises(NothingWanted, match="carol"):
        folders_of(last, "carol@example.org", "", Accounts())
    with pytest.raises(NothingWanted, match="Missing"):
        folders_of(last, ACCOUNT, "Missing", Accounts())


def test_events_have_versions(store: Store) -> None:
    moved = store.item("work", "1.ics", event("uid-1", "Board meeting"))
    store.item("work", "2.ics", event("uid-2", "Lunch"))
    moments = [store.snapshot()]
    moved.write_text(event("uid-1", "Board meeting (moved)"))
    moments.append(store.snapshot())
    moved.unlink()
    moments.append(store.snapshot())
    headers = Headers()
    found = find_items(moments, ItemQuery(text="board"), headers).versions
    assert [(one.item.title, one.replaced, one.gone and one.gone.label) for one in found] == [
        ("Board meeting", True, moments[1].label),
        ("Board meeting (moved)", False, moments[2].label),
    ]
    assert [one.item.title for one in find_items(moments, ItemQuery(text="uid-2"), headers).versions] == ["Lunch"]
    assert find_items(moments, ItemQuery(collection="private"), headers).versions == []
    assert len(find_items(moments, ItemQuery(collection="WORK", kind="event"), headers).versions) == 3
    assert [one.item.uid for one in find_items(moments, ItemQuery(deleted_from_ns=0), headers).versions] == [
        "uid-1",
        "uid-1",
    ]
