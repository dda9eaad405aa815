"""What the gates' process does on a relay that takes mail: shadows, policy, tables, handing on, and answers to people.

The relay's Postfix is the administrator's; this process answers what it asks (milter, policy), writes the tables it
reads, and tells it when to try again. Everything here goes on without the agent and without the log: then nothing is
accepted (451), and what was accepted before is handed on by Postfix alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import socket
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection
from contextlib import AsyncExitStack, aclosing
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import Struct

from holdfast.errors import HoldfastError, Refused
from holdfast.gate.accept import ShadowMilter
from holdfast.gate.agent import Agent, Heard
from holdfast.gate.drain import Progress, drain
from holdfast.gate.held import HoldOrder, Order, Waiting, waiting
from holdfast.gate.list_kept import KeptList
from holdfast.gate.observers import primary_down
from holdfast.gate.options import GateOptions
from holdfast.gate.policy import DUNNO, PolicyServer, later
from holdfast.gate.queue import PostfixQueue
from holdfast.gate.recipients import SUBJECT, decode
from holdfast.gate.relay_view import WRITE_SECONDS, view_of, write_view
from holdfast.gate.shadow_stream import Settled, StreamShadows
from holdfast.gate.tables import RelayTables
from holdfast.gate.tasks import in_background
from holdfast.ledger.port import Notes
from holdfast.log.side import SideStream
from holdfast.log.side_seal import SealBroken
from holdfast.mail.port import Commands

LISTEN_SECONDS: Final = 0.5
LIST_SECONDS: Final = 5.0
FLUSH_SECONDS: Final = 60.0
"""While the primary serves, what was put off is tried again this often;"""
FLUSH_EARLY_SECONDS: Final = 3.0
"""and so often in its first FLUSH_SECONDS: its Postfix may answer later than its beats say."""
TAKEN_SECONDS: Final = 10.0
TAKEN_SECONDS_MAX: Final = 5.0
"""At the start, before Postfix runs. The log may be away: then it is not kept from handing on, and what is done twice
comes once."""
DRAIN_AGAIN_SECONDS: Final = 10.0
_log = logging.getLogger("holdfast.gate")


class ListFacts(Struct, frozen=True):
    """The list of recipients that this relay goes by."""

    at: float
    """Seconds since 1970 when the primary made it; 0: there is none yet, and nothing is accepted."""
    machine: str
    domains: int
    recipients: int
    unlisted: tuple[str, ...]
    old: bool


class RelayStatus(Struct, frozen=True):
    """`holdfast relay status`."""

    machine: str
    mode: str
    at: float
    taking: bool
    """Whether a message for a known recipient would be accepted now, as far as the policy goes."""
    taking_reason: str
    primary: str
    primary_served: bool
    waiting: Waiting
    shadows: int
    """Of this relay, not settled."""
    held_since: float
    """By a person's order; 0: it is not."""
    held_why: str
    draining: Progress | None
    list: ListFacts
    hold_days: int
    warnings: tuple[str, ...]


class Relay:
    """Of one event loop."""

    def __init__(
        self,
        options: GateOptions,
        shadows: SideStream,
        lists: SideStream,
        agent: Agent,
        commands: Commands,
        wall_seconds: Callable[[], float] = time.time,
        notes: Notes | None = None,
    ) -> None:
        """*notes*: where the ledger hears of it."""
        assert options.relay is not None
        self._notes = notes
        self._options, self._settings = options, options.relay
        self._lists, self._agent, self._commands = lists, agent, commands
        self._wall_seconds = wall_seconds
        self._folder = Path(self._settings.folder)
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._store = StreamShadows(shadows, options.machine, self._folder / "spool", wall_seconds)
        self._hold = HoldOrder(self._folder / "hold.json")
        self._drained = HoldOrder(self._folder / "drain.json")
        tables = RelayTables(commands, Path(self._settings.tables), straight=bool(self._settings.straight_to))
        self._kept = KeptList(self._folder / "recipients", tables, wall_seconds)
        self._heard = Heard()
        self._queue: PostfixQueue | None = None
        self._milter: ShadowMilter | None = None
        self._draining: Progress | None = None
        self._drain_lock = asyncio.Lock()

    async def start(self, milter: socket.socket, policy: socket.socket, stack: AsyncExitStack) -> None:
        """Serve until *stack* ends. Raises HoldfastError."""
        self._queue = await PostfixQueue.found(self._commands)
        with contextlib.suppress(HoldfastError, OSError, TimeoutError):  # looked for again later
            async with asyncio.timeout(TAKEN_SECONDS_MAX):
                await self.throw_out_taken()
        await self._kept.load()
        self._milter = ShadowMilter(
            self._store,
            self._queue,
            self._notes,
            subjects=self._options.ledger_subjects,
            adopts_at_start=False,
            holds=lambda: self._hold.order is not None,
        )
        stack.push_async_callback(self._milter.stop)
        await self._milter.start(milter)
        server = PolicyServer(self._policy)
        stack.push_async_callback(server.stop)
        await server.start(policy)
        for work in (self._listen, self._follow_list, self._look_for_taken, self._drain_on, self._tell):
            in_background(work(), stack)

    # -- what Postfix asks ---------------------------------------------------------------------------------------------

    def _taking(self) -> tuple[bool, str]:
        if self._kept.list is None:
            return False, "no list of recipients has come from the primary yet"
        if self._settings.mode == "front":
            return True, "all mail from outside comes through here"
        row = primary_down(self._heard)
        return row.down, row.reason

    def _policy(self) -> str:
        taking, reason = self._taking()
        return DUNNO if taking else later(reason)

    # -- what goes on ----------------------------------------------------------------------------------------------

    async def _listen(self) -> None:
        """To the agent; when the primary serves again, everything waiting is tried at once."""
        assert self._queue is not None
        served_since, flush_at = math.inf, 0.0
        while True:
            try:
                self._heard = await self._agent.heard()
            except HoldfastError:
                self._heard = Heard()  # nobody is heard: a backup MX takes nothing
            now = asyncio.get_running_loop().time()
            if not self._heard.served:
                served_since, flush_at = math.inf, 0.0
            elif now >= flush_at:
                served_since = min(served_since, now)
                early = now - served_since < FLUSH_SECONDS
                try:
                    await self._queue.flush()
                    flush_at = now + (FLUSH_EARLY_SECONDS if early else FLUSH_SECONDS)
                except HoldfastError as error:
                    _log.info("the queue was not told to come: %s", error.message)
            await asyncio.sleep(LISTEN_SECONDS)

    async def _follow_list(self) -> None:
        while True:
            try:
                message = await self._lists.last(SUBJECT)
                if message is not None:
                    await self._kept.take(decode(message.payload))
            except (HoldfastError, OSError) as error:
                _log.warning("the list of recipients: %s", error)
            await asyncio.sleep(LIST_SECONDS)

    async def _look_for_taken(self) -> None:
        """What the primary has adopted is thrown out; what came to no end before this start is forgotten."""
        forgotten = False
        while True:
            try:
                await self.throw_out_taken()
                if not forgotten:
                    await self._store.forget_unfinished()
                    forgotten = True
            except SealBroken as error:  # nobody knows what it belongs to: everything stays
                _log.error("parts of messages that came to no end stay: %s", error)
                forgotten = True
            except (HoldfastError, OSError) as error:
                _log.info("not looked for what was taken over: %s", error)
            await asyncio.sleep(TAKEN_SECONDS)

    async def throw_out_taken(self) -> None:
        """Raises HoldfastError, OSError."""
        assert self._queue is not None
        taken = await self._store.taken_from_here()
        if not taken:
            return
        # Twice: one that moves from one queue to another meanwhile is in neither list.
        here = taken & (await asyncio.to_thread(self._queue.ids) | await asyncio.to_thread(self._queue.ids))
        await self._queue.throw_out(here)
        _log.info("%d messages were taken over by the primary; %d were still here", len(taken), len(here))
        await self._store.thrown_out(taken)

    async def _tell(self) -> None:
        """The agent, and through it the site's status."""
        while True:
            try:
                now = await self.status()
                taking = "" if now.taking else now.taking_reason
                found = view_of(now.at, now.waiting, taking=taking, held_why=now.held_why, warnings=now.warnings)
                await asyncio.to_thread(write_view, self._folder, found)
            except (HoldfastError, OSError) as error:  # then the view is old, which is told
                _log.info("the site's status has nothing new of this relay: %s", error)
            await asyncio.sleep(WRITE_SECONDS)

    # -- what people ask -------------------------------------------------------------------------------------------

    async def status(self) -> RelayStatus:
        """Raises HoldfastError."""
        assert self._queue is not None
        assert self._milter is not None
        now = self._wall_seconds()
        found = self._kept.list
        facts = ListFacts(
            at=found.at if found else 0.0,
            machine=found.machine if found else "",
            domains=len(found.domains) if found else 0,
            recipients=len(found.recipients) if found else 0,
            unlisted=found.unlisted if found else (),
            old=found is not None and now - found.at > self._settings.list_hours * 3600,
        )
        here = waiting(await self._queue.listed(), now, self._settings.hold_days)
        taking, reason = self._taking()
        order = self._hold.order
        return RelayStatus(
            machine=self._options.machine,
            mode=self._settings.mode,
            at=now,
            taking=taking,
            taking_reason=reason,
            primary=self._heard.primary,
            primary_served=self._heard.served,
            waiting=here,
            shadows=len(self._milter.standing),
            held_since=order.since if order else 0.0,
            held_why=order.why if order else "",
            draining=self._draining,
            list=facts,
            hold_days=self._settings.hold_days,
            warnings=tuple(self._warnings(facts, here)),
        )

    def _warnings(self, facts: ListFacts, here: Waiting) -> list[str]:
        warnings = []
        if not facts.at:
            warnings.append("there is no list of recipients yet: nothing is accepted")
        elif facts.old:
            warnings.append("the list of recipients is old: who is new since is refused, who is gone is accepted")
        if here.on_hold and self._draining is None and self._hold.order is None:
            warnings.append(f"{here.on_hold} messages are on hold: `holdfast relay drain` hands them on")
        if any(due.days <= 1 for due in here.bounces):
            warnings.append("messages go back to their senders within a day")
        return warnings

    async def hold(self, why: str) -> RelayStatus:
        """Hand nothing on any more. Raises HoldfastError."""
        assert self._queue is not None
        self._hold.give(Order(self._wall_seconds(), why))
        await self._queue.hold_all()
        return await self.status()

    async def drain(self, first: Collection[str]) -> AsyncGenerator[Progress, None]:
        """Hand on what waits. Raises Refused (it is under way), HoldfastError."""
        assert self._queue is not None
        if self._drain_lock.locked():
            raise Refused("a drain is under way", hint="`holdfast relay status` shows it.")
        async with self._drain_lock:
            # What is on hold is never returned to its sender: a drain that was begun goes on after any restart.
            self._drained.give(Order(self._wall_seconds(), "a drain is under way"))
            self._hold.lift()
            try:
                async with aclosing(drain(self._queue, first, clock=asyncio.get_running_loop().time)) as draining:
                    async for progress in draining:
                        if self._hold.order is not None:
                            break
                        self._draining = progress
                        yield progress
                self._drained.lift()
            finally:
                self._draining = None

    async def _drain_on(self) -> None:
        """A drain that was begun, and ended because this process or Postfix did."""
        while True:
            if self._drained.order is not None and not self._drain_lock.locked():
                try:
                    async with aclosing(self.drain(())) as draining:
                        async for _ in draining:
                            pass
                except (HoldfastError, OSError) as error:
                    _log.error("the drain does not go on yet: %s", error)
            await asyncio.sleep(DRAIN_AGAIN_SECONDS)

    async def export(self) -> AsyncIterator[dict[str, Any]]:
        """Every message that any relay has accepted and nobody has yet, from the log. Raises HoldfastError."""
        for listed in await self._store.listed():
            named = {
                "machine": listed.shadow.machine,
                "queue_id": listed.shadow.queue_id,
                "delivery": listed.shadow.delivery,
                "accepted_at": listed.head.at,
            }
            try:
                envelope, content = await self._store.read(listed.shadow)
            except Settled:
                continue
            except HoldfastError as error:
                yield {**named, "problem": error.message}
                continue
            yield {
                **named,
                "sender": envelope.sender_text(),
                "recipients": envelope.recipient_texts(),
                "content": msgspec.to_builtins(content),
            }
