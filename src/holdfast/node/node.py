"""One machine's part in the site: it takes the role the log gives it, and carries out what people ask for.

The node opens the log, decides by ``roles.TABLE`` (of what it knows: ``role_facts``), and enters the role. It decides
anew when something it relied on ends: the log was replaced, another machine was promoted, the copy does not continue
the log. Orders from people (takeover, switchover, rejoin) run one at a time.

What it does in a role stands beside it: ``promoting`` (it becomes the primary), ``copying`` (it holds a copy),
``yielding`` (it gives its role up for a switchover), ``orders`` (what it was told), ``tending`` (what is looked at on a
timer, whatever the role). A change of role is made with ``busy`` held.

What is guarded: before this machine serves as primary its promotion is in the log and ``served_epoch`` on its disk;
when it learns that another was promoted it stops serving before it does anything else.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import deque
from collections.abc import Awaitable
from typing import Final, NamedTuple

from holdfast.changes.frame import Chain, Frame
from holdfast.changes.names import Epoch, MachineName
from holdfast.errors import HoldfastError, Refused, Unreachable
from holdfast.gate.relay_view import RelayView
from holdfast.log.port import NOBODY_KNOWN, Fenced, Log
from holdfast.node.archiver import Archiver
from holdfast.node.asks import Asks
from holdfast.node.beats import Beat, Beats
from holdfast.node.copies import Copies
from holdfast.node.copying import Copying
from holdfast.node.hearing import Hearing
from holdfast.node.orders import Orders
from holdfast.node.peer import Peer
from holdfast.node.primary import Primary
from holdfast.node.promoting import Promoting
from holdfast.node.readiness import ReadinessCheck
from holdfast.node.role_facts import RoleFacts
from holdfast.node.roles import Role, Row, decide
from holdfast.node.saying import beat_of
from holdfast.node.seeding import Seeding
from holdfast.node.standby import Standby
from holdfast.node.tending import Tending
from holdfast.node.watchman import SERVE_SECONDS
from holdfast.node.world import World
from holdfast.node.yielding import Yielding
from holdfast.trees.index import Index

RETRY_SECONDS: Final = 1.0
TAKEOVERS_KEPT: Final = 100
MAY_SERVE_SECONDS: Final = 5.0


class Decided(NamedTuple):
    """What the guard came to at its last look: for status and alarms. *order* is one of ``watchman.Order``."""

    order: str = ""
    reason: str = ""
    advice: str = ""


class Node:
    """See the module. Public attributes are for status; only this class and its parts change them."""

    def __init__(self, world: World) -> None:
        self.world = world
        settings = world.settings
        self.role = Role.STARTING
        self.reason = "the agent has just started"
        self.advice = ""
        self.epoch = Epoch(0)
        self.primary_name: MachineName | None = None
        self.log: Log | None = None
        self.log_problem = "not opened yet"
        self.primary: Primary | None = None
        self.standby: Standby | None = None
        self.seeding: Seeding | None = None
        self.log_servers = NOBODY_KNOWN
        self.lacking_log: frozenset[str] = frozenset()
        """Machines whose log server lacked records at the last two looks."""
        self.held = ""
        """Why this machine, although the primary, serves nobody for now; empty when it serves."""
        self.proved = False
        """The log took a record of this machine while others heard it, and they did ever since."""
        self.decided = Decided()
        self.not_fenced = ""
        """Why an automatic takeover waits for a person: the fencing command gave no proof. Empty: it does not wait."""
        self.not_switched = ""
        """The switchover that was to come by itself, at a set moment or hour, and did not; and why."""
        self.readiness = ReadinessCheck(
            world, lambda: self.role is Role.STANDBY and not self.busy.locked(), self._clocks_ahead
        )
        self.takeovers: deque[float] = deque(maxlen=TAKEOVERS_KEPT)
        """When machines were promoted without a plan, by the steady clock."""
        self.busy = asyncio.Lock()
        """Held by whatever changes the role."""
        self.beats = Beats(
            world.bus,
            settings.segment_name,
            settings.machine_name,
            self.beat,
            Hearing(
                [machine.name for machine in settings.machines if machine is not settings.me],
                os.urandom(8).hex(),
                world.clocks.steady(),
            ),
            world.clocks.steady,
            world.clocks.wall_seconds,
            self._clock_jumped,
        )
        self.asks = (
            None if world.key is None else Asks(world.bus, settings.segment_name, settings.machine_name, world.key)
        )
        self.peer = None if world.key is None else Peer(world, self)
        self.archiver = None if world.key is None else Archiver(world, self)
        self._index: Index | None = None
        self.known_epoch = -1
        """The latest epoch that this machine's trees are of; -1: not looked yet."""
        self._again = asyncio.Event()
        self._stopping = False
        self.relay_view: RelayView | None = None
        self._background: set[asyncio.Task[None]] = set()
        self.role_facts = RoleFacts(self)
        self.orders = Orders(self)
        self.promoting = Promoting(self)
        self.copying = Copying(self)
        self.yielding = Yielding(self)
        self.tending = Tending(self)

    # -- life ----------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until :meth:`stop`. Raises only what no repeating can mend."""
        self.beats.start()
        if self.asks is not None and self.peer is not None:
            self.peer.register(self.asks)
            await self.asks.serve()
            await self.peer.serve()
        if self.archiver is not None:
            self.archiver.start()
        tending = asyncio.create_task(self.tending.run())
        checking = asyncio.create_task(self.readiness.run())
        try:
            while not self._stopping:
                self._again.clear()
                async with self.busy:
                    settled = await self._take_role()
                if settled:
                    await self._again.wait()
                else:
                    await self._wait_or_again(RETRY_SECONDS)
        finally:
            tending.cancel()
            checking.cancel()
            await asyncio.gather(tending, checking, *self._background, return_exceptions=True)
            await self.beats.stop()

    async def stop(self) -> None:
        """The agent ends in order: what was seen is in the log. The services go on; the supervisor decides of them."""
        self._stopping = True
        if self.archiver is not None:
            await self.archiver.stop()
        if self.seeding is not None:
            await self.seeding.cancel()
        async with self.busy:
            await self._leave_role()
        self.look_again()

    async def _wait_or_again(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._again.wait(), seconds)

    # -- roles ---------------------------------------------------------------------------------------------------------

    def become(self, role: Role, reason: str, advice: str = "") -> None:
        if (role, reason) != (self.role, self.reason):
            self.world.history.record(f"role: {role}", reason, epoch=int(self.epoch))
        self.role, self.reason, self.advice = role, reason, advice
        self.spawn(self.beats.say_now())

    def spawn(self, work: Awaitable[None]) -> None:
        async def run() -> None:
            await work

        task = asyncio.create_task(run())
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    def open_index(self) -> Index:
        if self._index is None:
            self._index = Index.open(self.world.index_path)
        return self._index

    async def _take_role(self) -> bool:
        """Leave the present role, decide, enter the next; False when it is to be tried again soon."""
        await self._leave_role()
        if self._stopping:
            return True
        log = None
        try:
            self.log = log = await self.world.door.open()
            self.log_problem = ""
            state, facts = await self.role_facts.of_log()
        except HoldfastError as error:
            self.log_problem = error.message
            if not self.orders.to_found:
                self.become(Role.WAITING, f"the log cannot be reached: {error.message}", error.hint)
                return False
            # The order is for a log that cannot go on: this one says nothing of itself any more, or nobody leads it.
            self.log, state = log, None
            facts = self.role_facts.of_machine(None, None, Epoch(max(self.epoch, self.world.local.served_epoch)))
        try:
            facts = facts if self.world.key is None else self.role_facts.with_index(facts, state)
        except HoldfastError as error:  # a full or failing disk of our own
            self.epoch, self.primary_name = facts.epoch, facts.primary
            if facts.primary not in (None, facts.me):
                await self.stop_serving(f"{facts.primary} was promoted")
            self.become(Role.WAITING, error.message, error.hint)
            return False
        row = decide(facts)
        self.epoch, self.primary_name = facts.epoch, facts.primary
        try:
            return await self._enter(row)
        except HoldfastError as error:
            self.world.history.record(f"could not be {row.role}", error.message)
            await self._leave_role()
            self.become(Role.WAITING, f"could not be {row.role}: {error.message}", error.hint)
            return False

    async def _enter(self, row: Row) -> bool:
        match row.role:
            case Role.FOUNDER:
                await self.promoting.found(row)
            case Role.PRIMARY:
                await self.promoting.resume(row)
            case Role.STANDBY:
                await self.copying.follow(row)
            case Role.SEEDING:
                return await self.copying.seed(row)
            case Role.RETURNED | Role.BLOCKED:
                await self.stop_serving(row.reason)
                self.become(row.role, row.reason, row.advice)
                return False  # look again: an order, or another log, changes the facts
            case Role.RELAY:
                self.become(row.role, row.reason)
                await asyncio.sleep(RETRY_SECONDS)
                return False  # the epoch and the primary's name in its status stay fresh
            case _:
                self.become(row.role, row.reason, row.advice)
                return False
        return True

    async def _leave_role(self) -> None:
        self.yielding.ended()
        if self.seeding is not None:
            await self.seeding.cancel()
            self.seeding = None
        if self.primary is not None:
            await self.end_primary()
        if self.standby is not None:
            await self.end_standby()
        if self._index is not None:
            self._index.close()
            self._index = None

    async def end_standby(self, *, to_promote: bool = False) -> Chain:
        assert self.standby is not None
        chain = await self.standby.end(to_promote=to_promote)
        self.standby = self._index = None  # the applier closed it
        return chain

    async def end_primary(self) -> Chain:
        assert self.primary is not None
        assert self.peer is not None
        await self.peer.close_source()
        chain = await self.primary.end()
        self.primary = None
        return chain

    async def stop_serving(self, why: str) -> None:
        """Serve nobody from here. Fencing is repeated until it succeeds: nothing else happens before."""
        while True:
            try:
                await self.world.serving.fence()
                return
            except HoldfastError as error:
                self.world.history.record("fencing failed, trying again", f"{why}: {error.message}")
                await asyncio.sleep(RETRY_SECONDS)

    @property
    def guarded(self) -> bool:
        """Whether this machine may be replaced without a person, and so serves only while it is heard."""
        return self.world.settings.failover.policy == "automatic"

    def held_because(self, reason: str) -> None:
        """As the primary: why nobody is served for now."""
        if self.held and self.role is Role.PRIMARY and reason != self.reason:
            self.held = reason
            advice = "It serves by itself when that is over. Is its network broken, or are both others gone?"
            self.become(Role.PRIMARY, reason, advice)

    def serves_because(self, reason: str) -> None:
        """As the primary: it serves, again or for the first time."""
        if not self.held and self.role is Role.PRIMARY:
            self.become(Role.PRIMARY, reason, self.advice if self.world.serving.on is False else "")

    async def may_serve(self) -> None:
        """Returns when this machine is proved the primary and the others confirm that they hear it: not ``held``.

        Raises Unreachable.
        """
        if not self.guarded:
            return
        deadline = self.world.clocks.steady() + MAY_SERVE_SECONDS
        hearing = self.beats.hearing
        while not self.proved or hearing.confirmed_seconds(self.world.clocks.steady()) >= SERVE_SECONDS:
            if self.world.clocks.steady() > deadline:
                raise Unreachable(
                    "the others do not confirm that they hear this machine",
                    hint="It serves by itself as soon as one does. `holdfast status` says who is heard.",
                )
            await asyncio.sleep(0.01)
        self.held = ""

    def look_again(self) -> None:
        """Decide the role anew, by the log."""
        self._again.set()

    async def make_copy(self, *, hold_open: bool) -> None:
        """As the primary, asked by another machine. *hold_open*: returns when only the close is left to do."""
        if self.primary is None or self.primary.copies is None:
            raise Refused(f"{self.world.settings.machine} makes no copies at intervals ({self.role})")
        copies = self.primary.copies
        if hold_open:
            await copies.hold_open()
        else:
            self.spawn(self._copy_now(copies))

    async def _copy_now(self, copies: Copies) -> None:
        with contextlib.suppress(HoldfastError):  # the capture tells why it ended
            await copies.make()

    def promoted(self, frame: Frame) -> None:
        """A standby read a promotion in the log."""
        assert frame.promotion is not None
        if frame.header.epoch > self.epoch and not frame.promotion.planned:
            self.takeovers.append(self.world.clocks.steady())
        self.epoch, self.primary_name = frame.header.epoch, frame.promotion.machine
        self.world.history.record(
            f"{frame.promotion.machine} was promoted", frame.promotion.reason, epoch=int(frame.header.epoch)
        )
        if self.role is Role.YIELDED and self.yielding.ended():
            self.become(Role.STANDBY, "another machine is the primary; this one continues its copy")

    def lost(self, error: HoldfastError) -> None:
        """The primary or standby part ended by itself. Fencing comes before everything else."""
        self.world.history.record(f"{self.role} ended", error.message)
        self.spawn(self._after_loss(error))

    async def _after_loss(self, error: HoldfastError) -> None:
        if isinstance(error, Fenced):
            await self.stop_serving(error.message)
        elif self.standby is not None and not error.retry:
            self.copying.reseed = error.message
        self.look_again()

    # -- what others use -----------------------------------------------------------------------------------------------

    @property
    def index(self) -> Index | None:
        """For counts only: the part that owns it writes it."""
        return self._index

    def _clocks_ahead(self) -> dict[str, float]:
        others = [machine.name for machine in self.world.settings.machines if machine is not self.world.settings.me]
        return {name: -self.beats.clock_ahead_seconds(name) for name in others if self.beats.alive(name)}

    def _clock_jumped(self, machine: str) -> None:
        """Lags measured around the jump say nothing."""
        if self.standby is not None and machine == self.primary_name:
            self.standby.follow.forget_lags()

    def beat(self) -> Beat:
        """What this machine says of itself now."""
        return beat_of(self)

    def require_reachable(self, machine: str) -> None:
        if not self.beats.alive(machine):
            raise Unreachable(f"{machine} is not heard", hint="Is its agent running? `holdfast status` shows who is.")
