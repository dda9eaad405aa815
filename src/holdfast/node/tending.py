"""What is looked at on a timer, whatever the role: the log's leader stays on the relay, this machine's certificate is
valid, its copy is of the trees that the primary protects."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final

from holdfast.errors import HoldfastError
from holdfast.log.port import NOBODY_KNOWN
from holdfast.node.local import trees_digest
from holdfast.node.relaying import relay_view
from holdfast.node.story import ENDED

if TYPE_CHECKING:
    from holdfast.node.node import Node

PIN_LEADER_SECONDS: Final = 3.0


class Tending:
    def __init__(self, node: Node) -> None:
        self._node = node
        self._certificate_wrong = ""

    async def run(self) -> None:
        """What is done on a timer, whatever the role: the log's leader stays on the relay."""
        node = self._node
        while True:
            try:
                found = await node.world.door.pin_leader()
            except HoldfastError:
                found = NOBODY_KNOWN
            node.lacking_log = frozenset(node.log_servers.lacking or ()) & frozenset(found.lacking or ())
            node.log_servers = found
            self.look_at_trees()
            self._look_at_certificate()
            node.relay_view = relay_view(node.world.settings, node.world.clocks.wall_seconds())
            await asyncio.sleep(PIN_LEADER_SECONDS)

    def _look_at_certificate(self) -> None:
        """One that is not valid explains what others will say of this machine: it is in the history, once."""
        node = self._node
        warning = ""
        with contextlib.suppress(HoldfastError):  # it cannot be read: the connections say so
            warning = node.world.certificate_warning() or ""
        wrong = warning if "expired on" in warning or "is valid from" in warning else ""
        if wrong and wrong != self._certificate_wrong:
            node.world.history.record(ENDED, wrong)
        self._certificate_wrong = wrong

    def look_at_trees(self) -> None:
        """A standby holds what the primary protects: other trees there mean another comparison here."""
        node = self._node
        beat = node.beats.last(node.primary_name) if node.primary_name and node.standby is not None else None
        if beat is not None and beat.trees and beat.trees != trees_digest(node.world.local.state.trees):
            node.copying.reseed = "the primary protects other trees than this copy holds"
            node.world.history.record("copy is compared anew", node.copying.reseed)
            node.look_again()
