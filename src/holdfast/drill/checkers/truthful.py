"""Promise 7: an incomplete step is never reported as done; whatever may be lost is named, message by message."""

from __future__ import annotations

from collections.abc import Iterable, Set

from holdfast.drill.checkers.findings import Difference, LostMessage, What


def truthful(lost: Iterable[LostMessage], named: Set[str]) -> list[Difference]:
    """Messages that are lost though the system's own report (*named*: Message-IDs it said may be lost) is silent."""
    return [
        Difference(message.account, message.expected_in, 0, What.NOT_NAMED, message.message_id, "not named")
        for message in lost
        if message.message_id not in named
    ]


def reported_done(steps_done: Iterable[str], steps_true: Set[str]) -> list[Difference]:
    """Steps that were reported as done and, looked at, were not."""
    return [
        Difference("", "", 0, What.NOT_NAMED, f"{step}: reported done", "not done")
        for step in steps_done
        if step not in steps_true
    ]
