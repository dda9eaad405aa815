"""`holdfast merge` on a node: who may, what goes into the history, and the answers of a primary."""

from __future__ import annotations

from typing import Any

import msgspec

from holdfast.errors import Refused
from holdfast.node import merge_answers, merging
from holdfast.node.asks import Asks
from holdfast.node.merge_answers import THERE
from holdfast.node.merging import CHANGED, FINE, LISTED_MAX, Merged
from holdfast.node.node import Node
from holdfast.node.roles import Role


class Merges:
    """One node's."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def register(self, asks: Asks) -> None:
        configuration = self._node.world.settings.mail.dovecot.config
        for verb, run in merge_answers.verbs(self._serves, configuration).items():
            asks.answer(verb, run, changes=True)

    def _serves(self) -> bool:
        node = self._node
        return node.role is Role.PRIMARY and node.world.serving.on and not node.held

    def _peer(self) -> tuple[Asks, str]:
        node = self._node
        if node.role is not Role.STANDBY or node.asks is None or node.primary_name is None:
            raise Refused(f"this machine is {node.role}: what it alone has is merged from a standby that has rejoined")
        return node.asks, node.primary_name

    async def merge(self, *, dry_run: bool) -> dict[str, Any]:
        """What became of each thing, or would become. Raises Refused."""
        asks, primary = self._peer()
        world = self._node.world
        found = await merging.merge(world.settings.state, world.local.state.trees, asks, primary, dry=dry_run)
        if not dry_run and (found.messages or found.wrong or found.left):
            done = [each for each in found.messages if each.outcome in CHANGED]
            there = [each for each in found.messages if each.outcome == THERE]
            failed = [each for each in found.messages if each.outcome not in FINE]
            world.history.record(
                f"{_count(done, 'message')} messages that only this machine had are on {primary} now, "
                f"and flags of {_count(done, 'flags')} more",
                f"{len(there)} were there already, {len(failed)} could not be merged, {len(found.left)} stay aside",
                added=[_words(each) for each in done[:LISTED_MAX]],
                failed=[f"{_words(each)}: {each.outcome}" for each in failed[:LISTED_MAX]],
                left=[f"{each.what} {each.tree}/{each.path}" for each in found.left[:LISTED_MAX]],
                wrong=list(found.wrong),
            )
        answer: dict[str, Any] = msgspec.to_builtins(found)
        return answer

    async def undo(self, *, dry_run: bool) -> dict[str, Any]:
        """Take the last merge back. Raises Refused, HoldfastError."""
        asks, primary = self._peer()
        done = await merging.undo(self._node.world.settings.state, asks, primary, dry=dry_run)
        if not dry_run:
            back = [each for each in done if each.outcome == "taken back"]
            others = [f"{_words(each)}: {each.outcome}" for each in done if each not in back]
            self._node.world.history.record(
                f"a merge was undone on {primary}",
                f"{len(back)} taken back, {len(others)} not",
                others=others[:LISTED_MAX],
            )
        return {"messages": msgspec.to_builtins(done), "left": [], "wrong": []}


def _count(merged: list[Merged], kind: str) -> int:
    return sum(each.kind == kind for each in merged)


def _words(each: Merged) -> str:
    return f"{each.account}/{each.folder} {each.message_id or each.path}"
