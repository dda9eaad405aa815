"""A journal's acknowledgements against mailboxes: everything broken on purpose is found, named, and counted once."""

from __future__ import annotations

import pytest

from holdfast.drill.checkers import facts
from holdfast.drill.checkers.facts import DavItem, Folder, Ref, Result, SieveScript
from holdfast.drill.checkers.findings import What
from holdfast.drill.checkers.nothing_lost import Reach, excused
from holdfast.drill.checkers.reconcile import Verdict, reconcile, seconds_of
from tests.drill.made import ANN, Story, account, folder, mailboxes, message

DATE_S = 1_767_261_600  # 01-Jan-2026 10:00:00 UTC


def judged(story: Story, folders: dict[str, Folder], subscriptions: tuple[str, ...] = ()) -> Verdict:
    return reconcile(story.records, mailboxes(account(folders, subscriptions=subscriptions)))


def whats(verdict: Verdict) -> list[What]:
    return [one.what for one in verdict.state_differences]


def appended(message_id: str, folder_name: str, *flags: str) -> facts.Append:
    return facts.Append(folder_name, message_id, f"digest of {message_id}", 100, flags, DATE_S)


def refs(*pairs: tuple[int, str]) -> tuple[Ref, ...]:
    return tuple(Ref(uid, message_id) for uid, message_id in pairs)


def test_what_was_delivered_and_is_there_is_clean() -> None:
    verdict = judged(Story().delivered("a").delivered("b"), {"INBOX": folder(message(1, "a"), message(2, "b"))})
    assert verdict.clean
    assert (verdict.accepted, verdict.present) == (2, 2)


def test_a_lost_message_is_named_with_its_acknowledgement() -> None:
    verdict = judged(Story().delivered("a").delivered("b"), {"INBOX": folder(message(1, "a"))})
    (lost,) = verdict.lost
    assert (lost.account, lost.message_id, lost.operation, lost.expected_in) == (ANN, "b", "Deliver", "INBOX")
    assert lost.acknowledged_mono_ns == 2_500_000_000
    assert (verdict.accepted, verdict.present, verdict.clean) == (2, 1, False)


def test_each_recipient_counts() -> None:
    doing = facts.Deliver("a", (ANN, "bob@example.org"), "digest of a", 100, "plain")
    state = mailboxes(account({"INBOX": folder(message(1, "a"))}), bob=account({"INBOX": folder()}))
    verdict = reconcile(Story().did(doing, account="").records, state)
    assert verdict.accepted == 2
    assert [lost.account for lost in verdict.lost] == ["bob@example.org"]


@pytest.mark.parametrize("result", [Result.REFUSED, Result.NOT_DONE, Result.UNKNOWN, None])
def test_what_was_not_acknowledged_is_not_promised(result: Result | None) -> None:
    verdict = judged(Story().delivered("a", result), {"INBOX": folder()})
    assert (verdict.accepted, verdict.lost) == (0, [])


def test_an_unanswered_delivery_may_be_there() -> None:
    verdict = judged(Story().delivered("a", Result.UNKNOWN), {"INBOX": folder(message(1, "a"))})
    assert verdict.clean
    assert (verdict.duplicates, verdict.unknown_present) == ([], 1)


def test_an_unexplained_second_copy_is_a_duplicate() -> None:
    verdict = judged(Story().delivered("a"), {"INBOX": folder(message(1, "a"), message(2, "a"))})
    (double,) = verdict.duplicates
    assert (double.copies, double.expected, double.explained) == (2, 1, False)
    assert not verdict.clean


def test_a_double_of_a_retried_message_is_counted_apart() -> None:
    story = Story().delivered("a", Result.UNKNOWN).delivered("a", attempt=2)
    verdict = judged(story, {"INBOX": folder(message(1, "a"), message(2, "a"))})
    assert [double.explained for double in verdict.duplicates] == [True]
    assert verdict.clean


def test_a_third_copy_is_not_explained_by_one_retry() -> None:
    story = Story().delivered("a", Result.UNKNOWN).delivered("a", attempt=2)
    verdict = judged(story, {"INBOX": folder(message(1, "a"), message(2, "a"), message(3, "a"))})
    assert [double.explained for double in verdict.duplicates] == [False]


def test_a_damaged_body_is_found() -> None:
    story = Story().did(facts.Deliver("a", (ANN,), "another digest", 100, "plain"), account="")
    assert whats(judged(story, {"INBOX": folder(message(1, "a"))})) == [What.CONTENT]


def test_flags_of_an_append_and_its_date_and_uid_are_held() -> None:
    story = Story().did(appended("a", "INBOX", "\\Seen", "todo"), uids=(4,))
    good = message(4, "a", "\\Seen", "todo")
    assert judged(story, {"INBOX": folder(good)}).clean
    assert whats(judged(story, {"INBOX": folder(message(4, "a", "\\Seen"))})) == [What.KEYWORDS]
    assert whats(judged(story, {"INBOX": folder(message(5, "a", "\\Seen", "todo"))})) == [What.UID_CHANGED]
    other = message(4, "a", "\\Seen", "todo", date="01-Jan-2026 10:00:00 +0100")
    assert whats(judged(story, {"INBOX": folder(other)})) == [What.INTERNAL_DATE]


def test_a_stored_flag_must_be_set_and_a_removed_one_must_not() -> None:
    story = Story().delivered("a")
    story.did(facts.Store("INBOX", refs((1, "a")), add=("\\Flagged", "\\Seen")), touched=(1,))
    story.did(facts.Store("INBOX", refs((1, "a")), remove=("\\Seen",)), touched=(1,))
    assert judged(story, {"INBOX": folder(message(1, "a", "\\Flagged"))}).clean
    verdict = judged(story, {"INBOX": folder(message(1, "a", "\\Seen"))})
    assert whats(verdict) == [What.FLAGS, What.FLAGS]
    assert {one.before for one in verdict.state_differences} == {"\\Flagged set", "\\Seen not set"}


def test_a_flag_of_unknown_outcome_is_free() -> None:
    story = Story().delivered("a")
    story.did(facts.Store("INBOX", refs((1, "a")), add=("\\Flagged",)), Result.UNKNOWN)
    for flags in ((), ("\\Flagged",)):
        assert judged(story, {"INBOX": folder(message(1, "a", *flags))}).clean


@pytest.mark.parametrize("result", [Result.ACKNOWLEDGED, Result.UNKNOWN])
def test_a_keyword_holds_once_it_was_acknowledged_and_not_before(result: Result) -> None:
    """Dovecot names the file by a keyword's letter first, and writes which keyword it is afterwards."""
    answered = result is Result.ACKNOWLEDGED
    story = Story().did(appended("a", "INBOX", "\\Seen", "todo"), result, uids=(4,) if answered else ())
    assert judged(story, {"INBOX": folder(message(4, "a", "\\Seen", "unknown-2"))}).clean is not answered
    verdict = judged(story, {"INBOX": folder(message(4, "a", "todo"))})
    assert whats(verdict) == [What.FLAGS], "system flags need no second file"
    assert ("unanswered" in verdict.state_differences[0].note) is not answered


def test_a_letter_left_without_its_name_may_become_any_keyword_of_that_message_alone() -> None:
    story = Story().delivered("a").delivered("b")
    story.did(facts.Store("INBOX", refs((1, "a"), (2, "b")), remove=("NonJunk",)), touched=(1, 2))
    story.did(facts.Store("INBOX", refs((1, "a")), add=("todo",)), Result.UNKNOWN)
    assert judged(story, {"INBOX": folder(message(1, "a", "NonJunk"), message(2, "b"))}).clean
    assert whats(judged(story, {"INBOX": folder(message(1, "a"), message(2, "b", "NonJunk"))})) == [What.KEYWORDS]


def test_a_store_that_touched_nothing_promises_nothing() -> None:
    story = Story().delivered("a").did(facts.Store("INBOX", refs((1, "a")), add=("\\Flagged",)), touched=())
    assert judged(story, {"INBOX": folder(message(1, "a"))}).clean


def moved(result: Result = Result.ACKNOWLEDGED) -> Story:
    story = Story().delivered("a").did(facts.CreateFolder("Old"))
    known = result is Result.ACKNOWLEDGED
    return story.did(
        facts.Move("INBOX", refs((1, "a")), "Old"),
        result,
        uids=(8,) if known else (),
        touched=(1,) if known else (),
    )


def test_a_moved_message_still_in_its_old_folder_is_misplaced() -> None:
    assert judged(moved(), {"INBOX": folder(), "Old": folder(message(8, "a"))}).clean
    verdict = judged(moved(), {"INBOX": folder(message(1, "a")), "Old": folder()})
    assert [(one.folder, one.what, one.before) for one in verdict.state_differences] == [
        ("INBOX", What.MESSAGE_MISPLACED, "Old")
    ]
    assert verdict.lost == []


def test_a_moved_message_in_both_folders_is_a_duplicate() -> None:
    verdict = judged(moved(), {"INBOX": folder(message(1, "a")), "Old": folder(message(8, "a"))})
    assert [double.folders for double in verdict.duplicates] == [("INBOX", "Old")]
    assert not verdict.clean


@pytest.mark.parametrize("there", ["INBOX", "Old", "both"])
def test_a_move_of_unknown_outcome_may_be_in_either_or_both_but_not_gone(there: str) -> None:
    folders = {
        "INBOX": folder(*([message(1, "a")] if there in ("INBOX", "both") else [])),
        "Old": folder(*([message(8, "a")] if there in ("Old", "both") else [])),
    }
    assert judged(moved(Result.UNKNOWN), folders).clean
    assert len(judged(moved(Result.UNKNOWN), {"INBOX": folder(), "Old": folder()}).lost) == 1


def test_a_moved_message_keeps_its_keywords_for_certain_only_when_the_move_was_answered() -> None:
    for result in (Result.ACKNOWLEDGED, Result.UNKNOWN):
        story = moved(result)
        story.records[:2] = Story().did(appended("a", "INBOX", "todo"), uids=(1,)).records
        verdict = judged(story, {"INBOX": folder(), "Old": folder(message(8, "a", "unknown-0"))})
        assert whats(verdict) == ([What.KEYWORDS] if result is Result.ACKNOWLEDGED else [])


def test_a_copy_is_expected_beside_its_original() -> None:
    story = Story().delivered("a").did(facts.CreateFolder("Old"))
    story.did(facts.Copy("INBOX", refs((1, "a")), "Old"), uids=(8,), touched=(1,))
    assert judged(story, {"INBOX": folder(message(1, "a")), "Old": folder(message(8, "a"))}).clean
    (lost,) = judged(story, {"INBOX": folder(message(1, "a")), "Old": folder()}).lost
    assert (lost.operation, lost.expected_in) == ("Copy", "Old")


def test_two_copies_in_one_folder_are_told_apart_by_uid() -> None:
    story = Story().delivered("a").did(facts.Copy("INBOX", refs((5, "a")), "INBOX"), uids=(3,), touched=(5,))
    story.did(facts.Store("INBOX", refs((3, "a")), add=("todo",)), touched=(3,))
    story.did(facts.Store("INBOX", refs((5, "a")), remove=("todo",)), touched=(5,))
    assert judged(story, {"INBOX": folder(message(3, "a", "todo"), message(5, "a"))}).clean
    verdict = judged(story, {"INBOX": folder(message(3, "a"), message(5, "a", "todo"))})
    assert {(one.uid, one.what) for one in verdict.state_differences} == {(3, What.KEYWORDS), (5, What.KEYWORDS)}


def expunged(result: Result = Result.ACKNOWLEDGED) -> Story:
    touched = (1,) if result is Result.ACKNOWLEDGED else ()
    return Story().delivered("a").did(facts.Expunge("INBOX", refs((1, "a"))), result, touched=touched)


def test_an_expunged_message_that_is_there_again_is_named() -> None:
    clean = judged(expunged(), {"INBOX": folder()})
    assert (clean.clean, clean.accepted, clean.present) == (True, 1, 1)
    verdict = judged(expunged(), {"INBOX": folder(message(1, "a"))})
    assert (whats(verdict), verdict.duplicates) == ([What.EXPUNGED_BACK], [])


def test_a_difference_knows_when_what_it_rests_on_was_acknowledged() -> None:
    story = expunged()
    (back,) = judged(story, {"INBOX": folder(message(1, "a"))}).state_differences
    latest = max(back.rests_on)
    assert excused(back, Reach(safe_mono_ns=latest - 1, killed_mono_ns=latest))
    assert not excused(back, Reach(safe_mono_ns=latest, killed_mono_ns=latest + 1)), "captured before"
    assert not excused(back, Reach(safe_mono_ns=latest - 1, killed_mono_ns=latest - 1)), "acknowledged after the kill"
    assert not excused(back, Reach()), "no machine died: everything is promised"


def test_an_expunged_message_under_a_new_uid_was_delivered_twice() -> None:
    """A mail server delivers again when it got no answer: that is a double, not a failed expunge."""
    verdict = judged(expunged(), {"INBOX": folder(message(2, "a"))})
    assert (whats(verdict), [double.copies for double in verdict.duplicates]) == ([], [1])


def test_an_expunge_of_unknown_outcome_allows_both() -> None:
    assert judged(expunged(Result.UNKNOWN), {"INBOX": folder()}).clean
    assert judged(expunged(Result.UNKNOWN), {"INBOX": folder(message(1, "a"))}).clean


def test_an_operation_that_meets_an_undone_move_tells_of_it_although_the_end_looks_right() -> None:
    """After a takeover the move is undone; the client meets the message in its old folder and moves it once more."""
    story = moved().did(facts.Move("INBOX", refs((1, "a")), "Old"), uids=(9,), touched=(1,))
    verdict = judged(story, {"INBOX": folder(), "Old": folder(message(9, "a"))})
    assert (whats(verdict), verdict.lost, verdict.duplicates) == ([What.MESSAGE_MISPLACED], [], [])


def renamed(result: Result = Result.ACKNOWLEDGED) -> Story:
    story = Story().did(facts.CreateFolder("A")).did(facts.CreateFolder("A.sub"))
    story.did(appended("m", "A.sub"), uids=(1,))
    return story.did(facts.RenameFolder("A", "B", "."), result)


def test_a_rename_takes_children_and_messages_along() -> None:
    there = folder(message(1, "m"))
    assert judged(renamed(), {"INBOX": folder(), "B": folder(), "B.sub": there}).clean
    verdict = judged(renamed(), {"INBOX": folder(), "A": folder(), "A.sub": there})
    assert sorted(what.value for what in whats(verdict)) == sorted(
        what.value for what in [What.MESSAGE_MISPLACED, *[What.FOLDER_MISSING] * 2, *[What.FOLDER_EXTRA] * 2]
    )


def test_a_rename_of_unknown_outcome_allows_both_names() -> None:
    there = folder(message(1, "m"))
    for name in ("A", "B"):
        assert judged(renamed(Result.UNKNOWN), {name: folder(), f"{name}.sub": there}).clean


def test_a_folder_that_may_have_moved_below_another_stays_in_doubt_when_that_one_moves() -> None:
    story = Story().did(facts.CreateFolder("A")).did(facts.CreateFolder("B"))
    story.did(facts.RenameFolder("A", "B.sub", "."), Result.UNKNOWN).did(facts.RenameFolder("B", "C", "."))
    for place in ("A", "C.sub"):
        assert judged(story, {"INBOX": folder(), "C": folder(), place: folder()}).clean
    assert whats(judged(story, {"INBOX": folder(), "A": folder()})) == [What.FOLDER_MISSING]


def test_a_deleted_folder_takes_its_messages_and_may_be_made_again() -> None:
    story = renamed().did(facts.DeleteFolder("B.sub"))
    assert judged(story, {"B": folder()}).clean
    verdict = judged(story, {"B": folder(), "B.sub": folder(message(1, "m"))})
    assert sorted(what.value for what in whats(verdict)) == sorted([What.EXPUNGED_BACK.value, What.FOLDER_EXTRA.value])
    story.did(facts.CreateFolder("B.sub"))
    assert judged(story, {"B": folder(), "B.sub": folder(uid_validity=99)}).clean


def test_subscriptions_are_held() -> None:
    story = Story().did(facts.Subscribe("A", True)).did(facts.Subscribe("B", True)).did(facts.Subscribe("B", False))
    assert judged(story, {}, ("A",)).clean
    verdict = judged(story, {}, ("B",))
    assert [(one.folder, one.what) for one in verdict.state_differences] == [
        ("A", What.SUBSCRIPTION),
        ("B", What.SUBSCRIPTION),
    ]


def test_sieve_scripts_are_held_and_unanswered_uploads_allow_both() -> None:
    story = Story().did(facts.PutSieve("s", "one", True))

    def with_script(digest: str) -> Verdict:
        return reconcile(story.records, mailboxes(account({}, sieve={"s": SieveScript(digest, True, "")})))

    assert with_script("one").clean
    assert whats(with_script("two")) == [What.SIEVE]
    story.did(facts.PutSieve("s", "two", True), Result.UNKNOWN)
    assert with_script("one").clean
    assert with_script("two").clean
    assert not with_script("three").clean


@pytest.mark.parametrize(
    ("there", "what"),
    [
        ({"/c/1": DavItem("e2", "", "m2")}, None),
        ({"/c/1": DavItem("e1", "", "m1")}, What.ITEM),
        ({"/c/1": DavItem("other", "", "m2")}, What.ITEM),
        ({}, What.ITEM_MISSING),
        ({"/c/1": DavItem("e2", "", "m2"), "/c/2": DavItem("e", "", "m3")}, What.ITEM_EXTRA),
    ],
    ids=["right", "older version", "other ETag", "missing", "deleted one is back"],
)
def test_dav_items_are_held(there: dict[str, DavItem], what: What | None) -> None:
    story = Story().did(facts.MakeCollection("/c/")).did(facts.DavPut("/c/1", "m1"), etag="e1")
    story.did(facts.DavPut("/c/1", "m2"), etag="e2").did(facts.DavPut("/c/2", "m3"), etag="e")
    story.did(facts.DavDelete("/c/2"))
    state = mailboxes(account({}, collections={"/c/": {}}, items=there))
    assert whats(reconcile(story.records, state)) == ([what] if what else [])


def test_a_missing_collection_is_named() -> None:
    story = Story().did(facts.MakeCollection("/c/"))
    assert whats(reconcile(story.records, mailboxes(account({})))) == [What.COLLECTION]


def test_messages_that_no_journal_knows_are_left_alone() -> None:
    assert judged(Story().delivered("a"), {"INBOX": folder(message(1, "a"), message(2, "stranger"))}).clean


def test_a_missing_account_loses_all_its_messages() -> None:
    verdict = reconcile(Story().delivered("a").records, facts.Mailboxes({}, 0, 0, 0))
    assert len(verdict.lost) == 1


def test_internal_dates_are_read_with_their_zone() -> None:
    assert seconds_of(" 1-Jan-2026 12:30:00 +0230") == seconds_of("01-Jan-2026 10:00:00 +0000") == DATE_S
    assert seconds_of("not a date") == -1
