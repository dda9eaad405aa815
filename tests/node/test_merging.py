"""Of what only a returned machine has: what is merged, what is left to people, what the primary says, and undo."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from holdfast.errors import HoldfastError, Refused
from holdfast.node import merging
from holdfast.node.asks import Answers
from holdfast.node.merge_answers import ADD, BACK, FLAGS, verbs
from holdfast.node.merging import Found, merge, reports, undo, work_of
from holdfast.node.unseen import FlagChange, Report, Unlogged, flag_changes, left, mergeable
from holdfast.trees.spec import TreeSpec

HOME = "example.test/anna/Maildir"
NEW = f"{HOME}/new/1.M1P1.main,S=9"
SEEN = f"{HOME}/.Work.2026/cur/2.M1P1.main,S=9:2,RS"
COPY = f"{HOME}/.Sent/cur/3.M1P1.main,S=9:2,S"
KEYWORDS = {"a": "$Forwarded", "b": "urgent"}


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A machine that has rejoined: its report, and what was moved aside."""
    store, state = tmp_path / "vmail", tmp_path / "state"
    aside = store / ".holdfast/aside/now/0"
    unlogged = [
        Unlogged("put", "store", NEW),
        Unlogged("put", "store", SEEN),
        Unlogged("link", "store", SEEN, COPY),
        Unlogged("put", "store", f"{HOME}/dovecot-uidlist"),
        Unlogged("put", "store", f"{HOME}/new/gone"),
        Unlogged("rename", "store", f"{HOME}/new/old", f"{HOME}/cur/old:2,S"),
        Unlogged("remove", "store", f"{HOME}/cur/unwanted:2,S"),
        Unlogged("put", "config", "dovecot/dovecot.conf"),
    ]
    flags = (
        FlagChange("store", HOME, "old", ("\\Seen", "urgent"), ()),
        FlagChange("store", f"{HOME}/.Work", "away", ("\\Deleted",), ("\\Flagged",)),
    )
    (state / "aside/now").mkdir(parents=True)
    (state / "rejoin-now.json").write_bytes(msgspec.json.encode(Report(tuple(unlogged), 0, flags)))
    lines: list[str] = []
    for path in (NEW, SEEN, COPY, f"{HOME}/dovecot-uidlist", f"{HOME}/cur/old:2,S", f"{HOME}/cur/logged:2,"):
        file = aside / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"Message-ID: <{len(lines)}@x>\n\nhello\n")
        lines.append(json.dumps({"tree": "store", "path": path, "kept": f".holdfast/aside/now/0/{path}", "why": "x"}))
    (state / "aside/now/manifest").write_text("\n".join([*lines, '{"tree": "store", "pa']))
    return state


def trees(state: Path) -> list[TreeSpec]:
    return [TreeSpec("store", str(state.parent / "vmail"))]


def test_new_messages_are_lone_and_flags_are_merged_and_the_rest_is_left_to_people(state: Path) -> None:
    (report,) = reports(state)
    work = work_of(report, state, trees(state))
    assert {lone.path: (lone.account, lone.folder, lone.flags) for lone in work.lone} == {
        NEW: ("anna@example.test", "INBOX", ()),
        SEEN: ("anna@example.test", "Work/2026", ("\\Answered", "\\Seen")),
    }
    assert work.flags == [
        FlagChange("store", HOME, "old", ("\\Seen", "urgent"), ()),
        FlagChange("store", f"{HOME}/.Work", "away", (), ("\\Flagged",)),
    ]
    assert [(each.what, each.path.rpartition("/")[2]) for each in work.left] == [
        ("moved or copied message", "3.M1P1.main,S=9:2,S"),
        ("other", "gone"),
        ("deletion", "unwanted:2,S"),
        ("configuration", "dovecot.conf"),
        ("deletion", "away"),
    ]


def test_a_flag_change_is_another_name_in_one_folder_and_told_by_names_instead_of_letters() -> None:
    def changes(*seen: tuple[str, str, str]) -> list[FlagChange]:
        listed = [Unlogged(kind, "store", path, to) for kind, path, to in seen]
        return list(flag_changes(listed, lambda tree, folder: KEYWORDS if folder == "b" else {}))

    assert changes(("rename", "b/new/1,S=9", "b/cur/1,S=9:2,FSab")) == [
        FlagChange("store", "b", "1,S=9", ("$Forwarded", "\\Flagged", "\\Seen", "urgent"), ())
    ]
    assert changes(("put", "b/cur/1:2,T", ""), ("put", "b/cur/9", ""), ("remove", "b/cur/1:2,Sb", "")) == [
        FlagChange("store", "b", "1", ("\\Deleted",), ("\\Seen", "urgent"))
    ]
    assert changes(("rename", "b/cur/1:2,S", "b/.Trash/cur/1:2,S")) == [], "moved"
    assert changes(("rename", "b/cur/1:2,S", "b/cur/2:2,S")) == [], "another message"
    assert changes(("rename", "b/x/1", "b/x/2")) == []
    assert mergeable(FlagChange("store", "b", "1", ("\\Deleted",), ())) is None


def test_what_is_seen_as_come_and_gone_is_neither_new_nor_deleted(state: Path) -> None:
    unlogged = (Unlogged("put", "store", NEW), Unlogged("remove", "store", f"{HOME}/new/1.M1P1.main,S=9:2,S"))
    flags = (FlagChange("store", HOME, "1.M1P1.main,S=9", (), ("\\Seen",)),)
    (state / "rejoin-now.json").write_bytes(msgspec.json.encode(Report(unlogged, 0, flags)))
    assert work_of(state / "rejoin-now.json", state, trees(state)) == ([], list(flags), [])


def test_what_was_too_much_to_be_listed_is_left_too() -> None:
    (only,) = left(Report((), 7), ())
    assert only.why == "7 more changes were too many to be listed"


class Asked:
    """A primary that answers, or does not; and one that remembers."""

    def __init__(self, *, answers: bool = True) -> None:
        self.got: list[tuple[str, Answers]] = []
        self.answers = answers

    async def order(self, machine: str, verb: str, *, seconds: float, **request: Any) -> Answers:
        if not self.answers:
            raise HoldfastError("it does not answer")
        self.got.append((verb, request))
        dry = request["dry"]
        if verb == ADD:
            return {"outcome": "would be added" if dry else "added", "message_id": "x", "uid": "" if dry else "7 42"}
        if verb == FLAGS:
            outcome = "would be merged" if dry else "merged"
            return {"outcomes": [[outcome, added, removed] for _, added, removed in request["changes"]]}
        back = ["taken back" for _ in (*request["messages"], *request["flags"])]
        return {"messages": back[: len(request["messages"])], "flags": back[len(request["messages"]) :]}


def merged(state: Path, asked: Asked, *, dry: bool = False) -> Found:
    return asyncio.run(merge(state, trees(state), asked, "backup", dry=dry))  # type: ignore[arg-type]


def test_the_plan_is_asked_of_the_primary_and_changes_nothing(state: Path) -> None:
    primary = Asked()
    found = merged(state, primary, dry=True)
    assert [each.outcome for each in found.messages] == ["would be added"] * 2 + ["would be merged"] * 2
    assert all(request["dry"] for _, request in primary.got)
    assert len(found.left) == 5
    assert reports(state)
    assert not list(state.glob("merged-*"))


def test_a_report_is_closed_when_everything_has_an_answer_and_not_before(state: Path) -> None:
    found = merged(state, Asked(answers=False))
    assert (found.messages, len(found.wrong)) == ((), 1)
    assert reports(state)
    primary = Asked()
    found = merged(state, primary)
    assert [each.outcome for each in found.messages] == ["added"] * 2 + ["merged"] * 2
    assert found.wrong == ()
    assert reports(state) == []
    whole = json.loads((state / "merged-now.json").read_bytes())
    assert (len(whole["messages"]), len(whole["left"])) == (4, 5)
    assert primary.got[0][1]["account"] == "anna@example.test"
    assert [request["folder"] for verb, request in primary.got if verb == FLAGS] == ["INBOX", "Work"]
    assert merged(state, primary) == Found((), (), ())


def test_a_merge_is_undone_by_what_was_really_changed_and_can_be_made_again(state: Path) -> None:
    primary = Asked()
    with pytest.raises(Refused, match="nothing was merged"):
        asyncio.run(undo(state, primary, "backup"))  # type: ignore[arg-type]
    merged(state, primary)
    asyncio.run(undo(state, primary, "backup", dry=True))  # type: ignore[arg-type]
    assert (state / "merged-now.json").exists()
    back = asyncio.run(undo(state, primary, "backup"))  # type: ignore[arg-type]
    assert {each.outcome for each in back} == {"taken back"}
    asked = {request["folder"]: request for verb, request in primary.got if verb == BACK and not request["dry"]}
    assert asked["INBOX"]["messages"] == [["7 42", "x"]]
    assert asked["INBOX"]["flags"] == [["old", ("\\Seen", "urgent"), ()]]
    assert asked["Work"]["flags"] == [["away", (), ("\\Flagged",)]]
    assert (state / "undone-now.json").exists()
    assert reports(state), "it may be merged again"


def test_a_message_too_large_for_a_question_stays_aside_and_is_named(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merging, "STORED_BYTES_MAX", 3)
    found = merged(state, Asked())
    assert sum("by hand" in each.outcome for each in found.messages) == 2


def test_a_damaged_report_is_named(state: Path) -> None:
    (state / "rejoin-now.json").write_text("{")
    found = merged(state, Asked())
    assert found.messages == ()
    assert "cannot be read" in found.wrong[0]


def test_a_report_of_an_older_version_has_no_flags(state: Path) -> None:
    (state / "rejoin-now.json").write_text('{"unlogged": [], "more": 0}')
    assert merged(state, Asked()) == Found((), (), ())


@pytest.mark.parametrize("verb", [ADD, FLAGS, BACK])
def test_who_does_not_serve_merges_nothing(verb: str) -> None:
    with pytest.raises(Refused):
        asyncio.run(verbs(lambda: False, "/etc/dovecot/dovecot.conf")[verb]({}))  # type: ignore[arg-type]
