"""Which messages of a returned machine are only there, and what the primary says to them."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from holdfast.errors import HoldfastError, Refused
from holdfast.node import merging
from holdfast.node.asks import Answers
from holdfast.node.merging import lone_messages, plan, reports, send_all
from holdfast.trees.spec import TreeSpec

HOME = "example.test/anna/Maildir"
NEW = f"{HOME}/new/1.M1P1.main,S=9"
SEEN = f"{HOME}/.Work.2026/cur/2.M1P1.main,S=9:2,RS"
COPY = f"{HOME}/.Sent/cur/3.M1P1.main,S=9:2,S"


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A machine that has rejoined: its report, and what was moved aside."""
    store, state = tmp_path / "vmail", tmp_path / "state"
    aside = store / ".holdfast/aside/now/0"
    unlogged = [
        {"kind": "put", "tree": "store", "path": NEW, "to": ""},
        {"kind": "put", "tree": "store", "path": SEEN, "to": ""},
        {"kind": "link", "tree": "store", "path": SEEN, "to": COPY},
        {"kind": "put", "tree": "store", "path": f"{HOME}/dovecot-uidlist", "to": ""},
        {"kind": "put", "tree": "store", "path": f"{HOME}/new/gone", "to": ""},
        {"kind": "rename", "tree": "store", "path": f"{HOME}/new/old", "to": f"{HOME}/cur/old:2,S"},
    ]
    (state / "aside/now").mkdir(parents=True)
    (state / "rejoin-now.json").write_text(json.dumps({"unlogged": unlogged, "more": 0}))
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


def test_only_new_messages_that_nobody_logged_are_lone(state: Path) -> None:
    (report,) = reports(state)
    found = {lone.path: (lone.account, lone.folder, lone.flags) for lone in lone_messages(report, state, trees(state))}
    assert found == {
        NEW: ("anna@example.test", "INBOX", ()),
        SEEN: ("anna@example.test", "Work/2026", ("\\Answered", "\\Seen")),
    }
    assert {each.outcome for each in plan(state, trees(state))} == {"would be sent"}


class Asked:
    """A primary that answers, or does not."""

    def __init__(self, *, answers: bool = True) -> None:
        self.got: list[Answers] = []
        self.answers = answers

    async def order(self, machine: str, verb: str, *, seconds: float, **request: object) -> Answers:
        if not self.answers:
            raise HoldfastError("it does not answer")
        self.got.append(request)
        return {"outcome": "added", "message_id": "x"}


def test_a_report_is_closed_when_every_message_has_an_answer_and_not_before(state: Path) -> None:
    silent, primary = Asked(answers=False), Asked()
    done, wrong = asyncio.run(send_all(state, trees(state), silent, "backup"))  # type: ignore[arg-type]
    assert (done, len(wrong)) == ([], 1)
    assert reports(state)
    done, wrong = asyncio.run(send_all(state, trees(state), primary, "backup"))  # type: ignore[arg-type]
    assert [each.outcome for each in done] == ["added"] * 2
    assert wrong == []
    assert reports(state) == []
    assert len(json.loads((state / "merged-now.json").read_bytes())["messages"]) == 2
    assert primary.got[0]["account"] == "anna@example.test"


def test_a_message_too_large_for_a_question_stays_aside_and_is_named(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merging, "STORED_BYTES_MAX", 3)
    done, _ = asyncio.run(send_all(state, trees(state), Asked(), "backup"))  # type: ignore[arg-type]
    assert all("by hand" in each.outcome for each in done)


def test_a_damaged_report_is_named(state: Path) -> None:
    (state / "rejoin-now.json").write_text("{")
    done, wrong = asyncio.run(send_all(state, trees(state), Asked(), "backup"))  # type: ignore[arg-type]
    assert done == []
    assert "cannot be read" in wrong[0]


def test_who_does_not_serve_adds_nothing() -> None:
    with pytest.raises(Refused):
        asyncio.run(merging.answer(False, "/etc/dovecot/dovecot.conf", {}))
