"""What this machine gives the others, and asks of them: trees, listings, contents, hand-overs, comparisons.

Two subjects a machine: ``ask`` for orders and small answers (asks.py), ``exchange`` for listings and contents
(changes/exchange.py). Only a primary answers on the second; a standby says so.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, Final

import msgspec

from holdfast.apply.peer import Peer as ExchangePeer
from holdfast.changes.names import MachineName
from holdfast.errors import HoldfastError, Refused
from holdfast.node.asks import Answers, Asks
from holdfast.node.verifying import Verifying
from holdfast.node.world import World
from holdfast.trees.rate import TokenBucket
from holdfast.trees.spec import TreeSpec
from holdfast.watch.source import Source

if TYPE_CHECKING:
    from holdfast.node.node import Node
    from holdfast.node.primary import Primary

EXCHANGE_SECONDS: Final = 30.0
"""One page or some contents; a primary reading a cold disk takes seconds."""
BARRIER_SECONDS: Final = 60.0
AUDIT_BYTES_PER_SECOND: Final = 200 * 1024 * 1024


class Peer:
    """The other machines, as this node sees them."""

    def __init__(self, world: World, node: Node) -> None:
        self._world = world
        self._node = node
        self._source: Source | None = None

    # -- answering -----------------------------------------------------------------------------------------------------

    def register(self, asks: Asks) -> None:
        asks.answer("trees", self._trees, changes=False)
        asks.answer("yield", self._yield, changes=True)
        asks.answer("resume", self._resume, changes=True)
        asks.answer("look", self._look, changes=True)
        asks.answer("copy", self._copy, changes=True)

    async def serve(self) -> None:
        await self._world.bus.serve(self._subject(self._world.settings.machine), self._exchange)

    def _subject(self, machine: str) -> str:
        return f"hf.{self._world.settings.segment}.exchange.{machine}"

    async def _trees(self, arguments: Answers) -> Answers:
        if self._node.primary is None:
            raise Refused(f"it is not the primary ({self._node.role})")
        return {"trees": [msgspec.to_builtins(spec) for spec in self._world.local.state.trees]}

    async def _yield(self, arguments: Answers) -> Answers:
        return {"sequence": await self._node.yielding.begin()}

    async def _resume(self, arguments: Answers) -> Answers:
        await self._node.yielding.give_up()
        return {}

    async def _copy(self, arguments: Answers) -> Answers:
        await self._node.make_copy(hold_open=bool(arguments.get("hold_open")))
        return {}

    async def _look(self, arguments: Answers) -> Answers:
        """A comparison found these places of ours different from our index: look at them, whatever events said."""
        if self._node.primary is None:
            raise Refused(f"it is not the primary ({self._node.role})")
        for tree, path in arguments["spots"]:
            self._node.primary.watcher.mark(tree, bytes.fromhex(path))
        return {}

    async def _exchange(self, subject: str, payload: bytes) -> bytes:
        if self._source is None:
            raise Refused(f"{self._world.settings.machine} is not the primary ({self._node.role})")
        return await self._source.handle(subject, payload)

    def open_source(self, primary: Primary) -> None:
        """This machine is the primary now: it answers for its index and trees."""
        assert primary.capture is not None
        capture, settings = primary.capture, self._world.settings

        async def barrier() -> object:
            return await primary.barrier(BARRIER_SECONDS)

        monotonic = self._world.clocks.monotonic
        self._source = Source(
            machine=settings.machine_name,
            key=self._world.segment_key(),
            trees=tuple(primary.trees),
            owners=self._world.owners,
            snapshot=capture.snapshot,
            barrier=barrier,
            rate=TokenBucket(settings.copy.seed_bytes_per_second, monotonic),
            audit_rate=TokenBucket(AUDIT_BYTES_PER_SECOND, monotonic),
            clock=monotonic,
            pause=asyncio.sleep,
            pause_thread=time.sleep,
        )

    async def close_source(self) -> None:
        if self._source is not None:
            source, self._source = self._source, None
            await source.close()

    # -- asking --------------------------------------------------------------------------------------------------------

    def exchange_with(self, machine: str) -> ExchangePeer:
        """The asking side towards *machine*."""
        subject = self._subject(machine)

        async def call(message: bytes) -> bytes:
            return await self._world.bus.request(subject, message, timeout_seconds=EXCHANGE_SECONDS)

        return ExchangePeer(
            call,
            key=self._world.segment_key(),
            requester=self._world.settings.machine_name,
            answerer=MachineName(machine),
            pause=asyncio.sleep,
        )

    async def trees_of(self, machine: str) -> tuple[TreeSpec, ...]:
        """What the primary *machine* protects. Raises AskFailed, Unreachable."""
        assert self._node.asks is not None
        answer = await self._node.asks.ask(machine, "trees")
        try:
            return msgspec.convert(answer["trees"], tuple[TreeSpec, ...])
        except (msgspec.ValidationError, KeyError) as error:
            raise HoldfastError(
                f"{machine} described its trees in a way this program does not know: {error}",
                hint="Run the same Holdfast on every machine.",
            ) from None

    async def verify(self, *, full: bool, heal: bool) -> AsyncIterator[dict[str, Any]]:
        """Compare this standby with the primary: progress lines, the report last. Raises Refused, Unreachable."""
        node = self._node
        if node.standby is None or node.primary_name is None:
            raise Refused(
                f"verify runs on a standby; this machine is {node.role}",
                hint=f"Run it on a standby of {node.primary_name or 'the site'}.",
            )
        async for line in Verifying(self._world, node, self, node.standby).run(full=full, heal_found=heal):
            yield line
