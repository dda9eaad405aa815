"""One machine's part in the site: it takes the role the log gives it, and carries out what people ask for.

The node opens the log, decides by ``roles.TABLE``, and enters the role. It decides anew when something it relied on
ends: the log was replaced, another machine was promoted, the copy does not continue the log. Orders from people
(takeover, switchover, rejoin) run one at a time.

What is guarded: before this machine serves as primary its promotion is in the log and ``served_epoch`` on its disk;
when it learns that another was promoted it stops serving before it does anything else.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import deque
from collections.abc import Awaitable
from pathlib import Path
from typing import Final, NamedTuple

from holdfast.apply.heal import heal
from holdfast.apply.recovery import Settlement
from holdfast.changes.frame import Chain, Frame, FrameDamaged, Promotion, chain_start, read_header
from holdfast.changes.names import Epoch, MachineName, Sequence
from holdfast.errors import HoldfastError, Refused, Unreachable
from holdfast.gate.relay_view import RelayView
from holdfast.log.port import Fenced, Log, LogDamaged, LogState
from holdfast.node.archiver import Archiver
from holdfast.node.asks import Asks
from holdfast.node.beats import Beat, Beats
from holdfast.node.copies import Copies, copy_words
from holdfast.node.hearing import Hearing
from holdfast.node.local import trees_digest
from holdfast.node.peer import Peer
from holdfast.node.primary import Primary, catch_up, pass_over
from holdfast.node.readiness import ReadinessCheck
from holdfast.node.relaying import relay_view
from holdfast.node.returned import report_unlogged
from holdfast.node.roles import Facts, Role, Row, decide
from holdfast.node.saying import beat_of
from holdfast.node.seeding import Seeding
from holdfast.node.standby import Standby
from holdfast.node.story import ANEW, ENDED
from holdfast.node.watchman import SERVE_SECONDS
from holdfast.node.world import World
from holdfast.trees.index import Index, IndexUnusable
from holdfast.trees.replay import ReplayGap

RETRY_SECONDS: Final = 1.0
KEPT_NAMED_MAX: Final = 50
PIN_LEADER_SECONDS: Final = 3.0
OWN_RECORDS_HINT: Final = (
    "Run `holdfast takeover` on the standby, then `holdfast join --rejoin` here. "
    "Is this machine's mail store the good one? Then run `holdfast found` here."
)
TAKEOVERS_KEPT: Final = 100
MAY_SERVE_SECONDS: Final = 5.0
YIELD_SECONDS_MAX: Final = 30.0
"""A machine that stopped for a switchover serves again when nobody was promoted for so long."""


class Decided(NamedTuple):
    """What the guard came to at its last look: for status and alarms. *order* is one of ``watchman.Order``."""

    order: str = ""
    reason: str = ""
    advice: str = ""


class Node:
    """See the module. Public attributes are for status; only this class changes them."""

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
        self.leader = ""
        self.drained_to = Sequence(0)
        """What was the log's last record when the last drain began."""
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
        self.paused_at = world.clocks.steady()
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
        self._told_to_rejoin = False
        self._told_to_found = False
        self._certificate_wrong = ""
        self.relay_view: RelayView | None = None
        self._reseed = ""
        """Why this copy must be compared with the primary before it can follow again; empty when it need not."""
        self._yield_timer: asyncio.Task[None] | None = None
        self._background: set[asyncio.Task[None]] = set()

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
        tending = asyncio.create_task(self._tend())
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
        self._again.set()

    async def _wait_or_again(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._again.wait(), seconds)

    async def _tend(self) -> None:
        """What is done on a timer, whatever the role: the log's leader stays on the relay."""
        while True:
            try:
                self.leader = await self.world.door.pin_leader()
            except HoldfastError:
                self.leader = ""
            self._look_at_trees()
            self._look_at_certificate()
            self.relay_view = relay_view(self.world.settings, self.world.clocks.wall_seconds())
            await asyncio.sleep(PIN_LEADER_SECONDS)

    def _look_at_certificate(self) -> None:
        """One that is not valid explains what others will say of this machine: it is in the history, once."""
        warning = ""
        with contextlib.suppress(HoldfastError):  # it cannot be read: the connections say so
            warning = self.world.certificate_warning() or ""
        wrong = warning if "expired on" in warning or "is valid from" in warning else ""
        if wrong and wrong != self._certificate_wrong:
            self.world.history.record(ENDED, wrong)
        self._certificate_wrong = wrong

    def _look_at_trees(self) -> None:
        """A standby holds what the primary protects: other trees there mean another comparison here."""
        beat = self.beats.last(self.primary_name) if self.primary_name and self.standby is not None else None
        if beat is not None and beat.trees and beat.trees != trees_digest(self.world.local.state.trees):
            self._reseed = "the primary protects other trees than this copy holds"
            self.world.history.record("copy is compared anew", self._reseed)
            self._again.set()

    # -- roles ---------------------------------------------------------------------------------------------------------

    def _become(self, role: Role, reason: str, advice: str = "") -> None:
        if (role, reason) != (self.role, self.reason):
            self.world.history.record(f"role: {role}", reason, epoch=int(self.epoch))
        self.role, self.reason, self.advice = role, reason, advice
        self._spawn(self.beats.say_now())

    def _spawn(self, work: Awaitable[None]) -> None:
        async def run() -> None:
            await work

        task = asyncio.create_task(run())
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    def _open_index(self) -> Index:
        if self._index is None:
            self._index = Index.open(self.world.index_path)
        return self._index

    async def _take_role(self) -> bool:
        """Leave the present role, decide, enter the next; False when it is to be tried again soon."""
        await self._leave_role()
        if self._stopping:
            return True
        try:
            self.log = await self.world.door.open()
            self.log_problem = ""
            state, facts = await self._log_facts()
        except HoldfastError as error:
            self.log_problem = error.message
            if not self._told_to_found:
                self._become(Role.WAITING, f"the log cannot be reached: {error.message}", error.hint)
                return False
            # The order is for a log that cannot go on, and this one says nothing of itself any more.
            self.log, state = None, None
            facts = self._facts(None, None, Epoch(max(self.epoch, self.world.local.served_epoch)))
        try:
            facts = facts if self.world.key is None else self._with_index(facts, state)
        except HoldfastError as error:  # a full or failing disk of our own
            self.epoch, self.primary_name = facts.epoch, facts.primary
            if facts.primary not in (None, facts.me):
                await self.stop_serving(f"{facts.primary} was promoted")
            self._become(Role.WAITING, error.message, error.hint)
            return False
        row = decide(facts)
        self.epoch, self.primary_name = facts.epoch, facts.primary
        try:
            return await self._enter(row)
        except HoldfastError as error:
            self.world.history.record(f"could not be {row.role}", error.message)
            await self._leave_role()
            self._become(Role.WAITING, f"could not be {row.role}: {error.message}", error.hint)
            return False

    async def _log_facts(self) -> tuple[LogState | None, Facts]:
        """What the log says (its state: None when there is none), and what this machine knows without its index."""
        state = None if self.log is None else await self.log.state()
        primary, epoch = None, Epoch(0)
        if self.log is not None and state is not None and state.last:
            header, _ = read_header((await self.log.read(state.last)).payload)
            primary, epoch = header.writer, header.epoch
        return state, self._facts(state, primary, epoch)

    def _facts(self, state: LogState | None, primary: MachineName | None, epoch: Epoch) -> Facts:
        settings, empty = self.world.settings, state is None or not state.last
        return Facts(
            relay=settings.me.role == "relay",
            log_empty=empty,
            starts_log=settings.starts_log,
            primary=primary,
            epoch=epoch,
            me=settings.machine_name,
            served_epoch=self.world.local.served_epoch,
            index_fits=False,
            index_empty=False,
            told_to_found=self._told_to_found or (empty and bool(self.world.local.state.alone)),
            told_to_rejoin=self._told_to_rejoin,
            known_elsewhere=self._known_elsewhere(),
            unheard=self._unheard(),
        )

    def _heard_mail_machines(self) -> dict[str, Beat | None]:
        """The other machines that hold mail; None: not heard, or it has not looked at its own disk yet."""
        me, beats = self.world.settings.me, self.beats
        return {
            machine.name: beat if beats.alive(machine.name) and beat is not None and beat.known_epoch >= 0 else None
            for machine in self.world.settings.mail_machines
            if machine is not me
            for beat in [beats.last(machine.name)]
        }

    def _known_elsewhere(self) -> Epoch:
        heard = [beat for beat in self._heard_mail_machines().values() if beat is not None]
        return Epoch(max((max(beat.epoch, beat.known_epoch) for beat in heard), default=0))

    def _unheard(self) -> str:
        return next((name for name, beat in self._heard_mail_machines().items() if beat is None), "")

    def _with_index(self, facts: Facts, state: LogState | None) -> Facts:
        """And whether the tree index continues the log. Raises IndexUnusable, NoSpace."""
        index = self._open_index()
        position = index.position
        self.known_epoch = max(index.epoch, self.world.local.served_epoch)
        empty = position.sequence == 0
        fits = (
            state is not None
            and not empty
            and not self._reseed
            and position.incarnation == state.incarnation
            and state.first - 1 <= position.sequence <= state.last
        )
        return facts._replace(index_fits=fits, index_empty=empty)

    async def _enter(self, row: Row) -> bool:
        match row.role:
            case Role.FOUNDER:
                await self._found(row)
            case Role.PRIMARY:
                await self._resume(row)
            case Role.STANDBY:
                await self._follow(row)
            case Role.SEEDING:
                return await self._seed(row)
            case Role.RETURNED | Role.BLOCKED:
                await self.stop_serving(row.reason)
                self._become(row.role, row.reason, row.advice)
                return False  # look again: an order, or another log, changes the facts
            case Role.RELAY:
                self._become(row.role, row.reason)
                await asyncio.sleep(RETRY_SECONDS)
                return False  # the epoch and the primary's name in its status stay fresh
            case _:
                self._become(row.role, row.reason, row.advice)
                return False
        return True

    async def _leave_role(self) -> None:
        if self._yield_timer is not None:
            self._yield_timer.cancel()
            self._yield_timer = None
        if self.seeding is not None:
            await self.seeding.cancel()
            self.seeding = None
        if self.primary is not None:
            await self._end_primary()
        if self.standby is not None:
            await self._end_standby()
        if self._index is not None:
            self._index.close()
            self._index = None

    async def _end_standby(self, *, to_promote: bool = False) -> Chain:
        assert self.standby is not None
        chain = await self.standby.end(to_promote=to_promote)
        self.standby = self._index = None  # the applier closed it
        return chain

    async def _end_primary(self) -> Chain:
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

    async def _found(self, row: Row) -> None:
        """Start the log from what this machine holds."""
        world = self.world
        self._become(Role.FOUNDER, row.reason)
        trees = await world.find_trees()
        for spec in trees:
            Path(spec.root).mkdir(parents=True, exist_ok=True)
        world.local.change(trees=trees)
        again = self._told_to_found or world.local.served_epoch > 0
        index = self._open_index()
        state = None if self.log is None else await self.log.state()
        # What was lost with the log had numbers there, and other machines know them: they are not given a second time.
        used = state is not None and (
            state.last > 0 or (index.position.sequence > 0 and index.position.incarnation == state.incarnation)
        )
        if self._told_to_found or self.log is None or used:
            known_log = None if self.log is None else self.log.incarnation
            self.log = await world.door.found(known_log, ordered=self._told_to_found)
        self._told_to_found = False
        known = index.epoch
        index.clear()
        chain = chain_start(self.log.incarnation)
        epoch = Epoch(max(self.epoch, known, world.local.served_epoch) + 1)
        index.commit(chain, epoch)
        alone = world.local.state.alone
        if again and not alone:
            world.history.record(ANEW, row.reason, machine=str(world.settings.machine), epoch=int(epoch))
        try:
            await self._promote(chain, epoch, f"alone: {alone}" if alone else row.reason, planned=not alone)
        finally:
            # The promotion is in the log, although something that serves may not have started: left standing, the
            # order would set this log aside at the agent's next start.
            if alone and self.primary is not None:
                world.local.change(alone="")
        if alone:
            world.history.record("takeover done", f"alone, with a new log, epoch {epoch}", epoch=int(epoch))

    async def _resume(self, row: Row) -> None:
        """Go on as the primary this machine is: its own records since the last commit, then a scan, while serving."""
        assert self.log is not None
        await self._find_trees_again()
        index = self._open_index()
        try:
            chain, cut_short = await catch_up(index, self.log, self.world, self.epoch)
        except (ReplayGap, FrameDamaged, LogDamaged) as error:
            raise IndexUnusable(error.message, hint=OWN_RECORDS_HINT) from error
        await self._begin_primary(index, chain, self.epoch, None, row.reason, cut_short=cut_short)

    async def _find_trees_again(self) -> None:
        """Configuration may have changed meanwhile. A tree that is not found any more stays protected."""
        known = {spec.name: spec for spec in self.world.local.state.trees}
        try:
            found = await self.world.find_trees()
        except HoldfastError as error:
            self.world.history.record("discovery failed, the trees stay as they were", error.message)
            return
        known.update({spec.name: spec for spec in found})
        self.world.local.change(trees=tuple(known.values()))

    async def _promote(self, chain: Chain, epoch: Epoch, reason: str, *, planned: bool) -> None:
        promotion = Promotion(self.world.settings.machine_name, reason, planned)
        await self._begin_primary(self._open_index(), chain, epoch, promotion, reason)

    async def _begin_primary(
        self,
        index: Index,
        chain: Chain,
        epoch: Epoch,
        promotion: Promotion | None,
        reason: str,
        *,
        cut_short: bool = False,
    ) -> None:
        assert self.log is not None
        primary = Primary(self.world, index, self.log, epoch, self.beats, self._lost)
        await primary.begin(chain, promotion, cut_short=cut_short, prove=self.guarded)
        self._is_primary(primary, reason)
        try:
            await self.world.serving.prepare()
        except HoldfastError as error:
            self.world.history.record("the mail software could not be prepared", error.message)
        if not self.guarded:  # else the guard does it, when the others confirm that they hear this machine
            await self.world.serving.start()

    @property
    def guarded(self) -> bool:
        """Whether this machine may be replaced without a person, and so serves only while it is heard."""
        return self.world.settings.failover.policy == "automatic"

    def held_because(self, reason: str) -> None:
        """As the primary: why nobody is served for now."""
        if self.held and self.role is Role.PRIMARY and reason != self.reason:
            self.held = reason
            advice = "It serves by itself when that is over. Is its network broken, or are both others gone?"
            self._become(Role.PRIMARY, reason, advice)

    def serves_because(self, reason: str) -> None:
        """As the primary: it serves, again or for the first time."""
        if not self.held and self.role is Role.PRIMARY:
            self._become(Role.PRIMARY, reason, self.advice if self.world.serving.on is False else "")

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

    @property
    def told_to_rejoin(self) -> bool:
        return self._told_to_rejoin

    def _is_primary(self, primary: Primary, reason: str) -> None:
        assert self.peer is not None
        self.proved = True
        serving = self.world.serving.on  # decided anew, it never stopped
        self.held = "not heard by the others yet" if self.guarded and not serving else ""
        self.primary = primary
        self.world.local.change(whole_after=0)
        self.peer.open_source(primary)
        self.epoch, self.primary_name = primary.epoch, self.world.settings.machine_name
        self._become(Role.PRIMARY, reason)

    async def _follow(self, row: Row) -> None:
        await self.stop_serving(row.reason)
        await self.follow_again()
        self._become(Role.STANDBY, row.reason)
        self._spawn(self._prepare())

    async def _prepare(self) -> None:
        """What takes time at a first start (Postfix makes its queue folders) is done before it is needed."""
        try:
            self.world.serving.look_again()
            for sentence in await self.world.serving.warm():
                self.world.history.record("standby prepared", sentence)
        except (HoldfastError, OSError) as error:
            self.world.history.record("the mail software could not be prepared", str(error))

    async def _seed(self, row: Row) -> bool:
        """Fetch what differs from the primary. False: the next decision finds an index that fits, or seeds on."""
        await self.stop_serving(row.reason)
        if self.primary_name is None or self.peer is None or not self.beats.alive(self.primary_name):
            self._become(Role.WAITING, f"{row.reason}; the primary {self.primary_name} is not heard", row.advice)
            return False
        self._become(Role.SEEDING, row.reason)
        self.seeding = Seeding(self.world, self._open_index(), self.peer, self.primary_name)
        if self._told_to_rejoin and self.log is not None and self._open_index().position.sequence:
            await report_unlogged(self.world, self._open_index(), self.log)
        keep = self._told_to_rejoin or self.world.local.served_epoch > 0
        try:
            await self.seeding.run(keep_replaced=keep)
        finally:
            self.seeding = None
        self._told_to_rejoin, self._reseed = False, ""
        self.world.local.change(served_epoch=0, doubt_since_ns=0)
        if self.world.settings.at_intervals and self.log is not None:
            # What came later than the listing came as it was then: a copy has to begin after that.
            self.world.local.change(whole_after=int((await self.log.state()).last))
            self._spawn(self._ask_for_copy(self.primary_name))
        return False

    async def _ask_for_copy(self, primary: MachineName) -> None:
        assert self.asks is not None
        try:
            await self.asks.order(primary, "copy", hold_open=False)
        except HoldfastError as error:  # it comes at its time
            self.world.history.record(f"{primary} could not be asked for a copy now", error.message)

    @property
    def copy_whole(self) -> bool:
        """As a standby: whether what is applied is the trees of one instant. False between a seed and the next copy."""
        if self.standby is None or not self.world.settings.at_intervals:
            return True
        return self.standby.follow.applied.sequence > self.world.local.state.whole_after

    async def make_copy(self, *, hold_open: bool) -> None:
        """As the primary, asked by another machine. *hold_open*: returns when only the close is left to do."""
        if self.primary is None or self.primary.copies is None:
            raise Refused(f"{self.world.settings.machine} makes no copies at intervals ({self.role})")
        copies = self.primary.copies
        if hold_open:
            await copies.hold_open()
        else:
            self._spawn(self._copy_now(copies))

    async def _copy_now(self, copies: Copies) -> None:
        with contextlib.suppress(HoldfastError):  # the capture tells why it ended
            await copies.make()

    def _settled(self, settlement: Settlement) -> None:
        """A recovery is over: what lies aside is named, and what is wrong is fetched from the primary."""
        for kept in settlement.kept[:KEPT_NAMED_MAX]:
            path = kept.path.decode("utf-8", "backslashreplace")
            self.world.history.record("kept aside by the recovery", f"{kept.tree}/{path}: {kept.why}")
        spots = [(oddity.tree, oddity.path) for oddity in settlement.differing]
        if spots:
            self.world.history.record(f"{len(spots)} files differ after the recovery", "they are fetched anew")
            self._spawn(self._heal(spots))

    async def _heal(self, spots: list[tuple[str, bytes]]) -> None:
        if self.standby is None or self.peer is None or self.primary_name is None:
            return
        trees = {str(tree.name): tree for tree in self.standby.trees}
        peer, follow = self.peer.exchange_with(self.primary_name), self.standby.follow
        try:
            report = await heal(peer, follow.paused, trees, self.world.new_aside(), spots)
            left = len(report.left)
        except HoldfastError as error:
            self.world.history.record("healing failed", error.message)
            left = len(spots)
        if left:
            self._reseed = f"{left} files differ after a recovery and could not be fetched one by one"
            self._again.set()

    def _promoted(self, frame: Frame) -> None:
        """A standby read a promotion in the log."""
        assert frame.promotion is not None
        if frame.header.epoch > self.epoch and not frame.promotion.planned:
            self.takeovers.append(self.world.clocks.steady())
        self.epoch, self.primary_name = frame.header.epoch, frame.promotion.machine
        self.world.history.record(
            f"{frame.promotion.machine} was promoted", frame.promotion.reason, epoch=int(frame.header.epoch)
        )
        if self.role is Role.YIELDED and self._yield_timer is not None:
            self._yield_timer.cancel()
            self._yield_timer = None
            self._become(Role.STANDBY, "another machine is the primary; this one continues its copy")

    def _lost(self, error: HoldfastError) -> None:
        """The primary or standby part ended by itself. Fencing comes before everything else."""
        self.world.history.record(f"{self.role} ended", error.message)
        self._spawn(self._after_loss(error))

    async def _after_loss(self, error: HoldfastError) -> None:
        if isinstance(error, Fenced):
            await self.stop_serving(error.message)
        elif self.standby is not None and not error.retry:
            self._reseed = error.message
        self._again.set()

    # -- what the operations use ---------------------------------------------------------------------------------------

    async def drain(self, timeout_seconds: float) -> str:
        """As a standby: apply everything the log has now; at intervals, every copy that is whole."""
        assert self.standby is not None
        assert self.log is not None
        last = (await self.log.state()).last
        follow = self.standby.follow
        applied = await follow.drained(last, timeout_seconds=timeout_seconds)
        self.drained_to = last
        if not self.world.settings.at_intervals:
            return f"applied to the log's end, record {last}"
        rest = f"; the {last - applied} records behind it are of a copy that is not whole" if applied < last else ""
        return f"applied to the last whole copy, {copy_words(follow.copied_at_ns)}, record {applied}{rest}"

    async def become_primary(self, reason: str, *, planned: bool, behind: Sequence | None = None) -> str:
        """As a standby: append this machine's promotion and capture from then on.

        *behind*: as the record right after this one and no other. Raises Fenced when somebody else's record came first,
        or has been applied meanwhile; :meth:`follow_again` makes it a standby again.
        """
        assert self.standby is not None
        assert self.log is not None
        chain = await self._end_standby(to_promote=True)
        if behind is not None and chain.sequence != behind:
            raise Fenced(f"record {chain.sequence} came meanwhile, and {behind} was the last", last=chain.sequence)
        self.world.serving.look_again()
        index = self._open_index()
        if index.chain != chain:
            self._again.set()
            raise HoldfastError(
                f"the copy was applied to record {chain.sequence}, but is on disk only to {index.chain.sequence}",
                hint="The agent recovers it now; give the command again. `holdfast history` says more.",
                retry=True,
            )
        reached = index.epoch
        try:
            if self.world.settings.at_intervals:
                chain, reached = await pass_over(index, self.log, self.world.owners, self.world.segment_key())
            epoch = Epoch(max(self.epoch, reached) + 1)
            primary = Primary(self.world, index, self.log, epoch, self.beats, self._lost)
            await primary.begin(chain, Promotion(self.world.settings.machine_name, reason, planned))
        except Fenced:
            index.rollback()
            raise
        except HoldfastError:
            self._again.set()
            raise
        self._is_primary(primary, reason)
        if not planned:
            self.takeovers.append(self.world.clocks.steady())
        return f"record {chain.sequence + 1} of the log promotes this machine, epoch {epoch}"

    @property
    def index(self) -> Index | None:
        """For counts only: the part that owns it writes it."""
        return self._index

    async def follow_again(self) -> None:
        """As neither: follow the log from where the index stands."""
        assert self.log is not None
        self.standby = Standby(
            self.world,
            self._open_index(),
            self.log,
            log_end=(await self.log.state()).last,
            on_settled=self._settled,
            primary_clock_ns=self._primary_clock_ns,
            on_promotion=self._promoted,
            on_lost=self._lost,
        )
        await self.standby.begin()

    def _primary_clock_ns(self) -> int:
        """The time by the primary's clock, as far as its beats tell: frames carry that clock's times."""
        ahead = self.beats.clock_ahead_seconds(self.primary_name) if self.primary_name else 0.0
        return self.world.clocks.wall_ns() - int(ahead * 1e9)

    def _clocks_ahead(self) -> dict[str, float]:
        others = [machine.name for machine in self.world.settings.machines if machine is not self.world.settings.me]
        return {name: -self.beats.clock_ahead_seconds(name) for name in others if self.beats.alive(name)}

    def _clock_jumped(self, machine: str) -> None:
        """Lags measured around the jump say nothing."""
        if self.standby is not None and machine == self.primary_name:
            self.standby.follow.forget_lags()

    async def yield_role(self) -> int:
        """As the primary: stop serving, put everything into the log, follow it. The last record's number."""
        async with self.busy:
            if self.primary is None:
                raise Refused(f"{self.world.settings.machine} is not the primary ({self.role})")
            self.world.history.record("yielding for a switchover", "the other machine asked")
            try:
                await self.world.serving.stop()
                await self.primary.barrier(YIELD_SECONDS_MAX / 3)
            except HoldfastError:
                await self.world.serving.start()
                raise
            chain = await self._end_primary()
            self.world.local.change(served_epoch=0)
            self._become(Role.YIELDED, "stopped for a switchover; waits for the other machine's promotion")
            self._yield_timer = asyncio.create_task(self._resume_unless_promoted())
            self._spawn(self._follow_after_yielding())
            return chain.sequence

    async def _follow_after_yielding(self) -> None:
        """Not before the answer: the other machine waits for it, and so do the users."""
        async with self.busy:
            if self.role is Role.YIELDED and self.standby is None:
                try:
                    await self.follow_again()
                except HoldfastError as error:
                    self._lost(error)

    async def _resume_unless_promoted(self) -> None:
        await asyncio.sleep(YIELD_SECONDS_MAX)
        self._yield_timer = None
        self.world.history.record("nobody was promoted after this machine yielded: it serves again")
        self._again.set()

    async def resume_role(self) -> None:
        """The switchover was given up: serve again at once."""
        if self.role is not Role.YIELDED:
            raise Refused(f"this machine has not yielded ({self.role})")
        self._again.set()

    def order_rejoin(self) -> None:
        if self.role not in (Role.RETURNED, Role.BLOCKED, Role.WAITING):
            raise Refused(
                f"this machine is {self.role}: there is nothing to rejoin", hint="`holdfast status` shows its state."
            )
        self._told_to_rejoin = True
        self._again.set()

    def order_pause(self, why: str) -> None:
        """Nobody takes over without a person until :meth:`order_resume`."""
        if not self.world.local.state.paused:
            self.paused_at = self.world.clocks.steady()
            self.world.history.record("automatic takeover is paused", why)
        self.world.local.change(paused=why)
        self._spawn(self.beats.say_now())

    def order_resume(self, *, told: str) -> None:
        """Raises Refused where the primary is neither heard nor *told*: it may still rely on the pause.

        Told, that is: it knows that the pause is over, whether or not it is heard here again after a cut.
        """
        primary = self.primary_name
        if not self.world.local.state.paused:
            return
        unaware = primary is not None and primary != told and not self.beats.alive(primary)
        if self.role is not Role.PRIMARY and unaware:
            raise Refused(
                f"the primary {primary} is not heard, and may serve on in the belief that nobody takes over",
                hint="Is it gone? Then `holdfast takeover` on the standby. Else resume when it is heard again.",
            )
        self.world.local.change(paused="")
        self.world.history.record("automatic takeover is possible again", "resumed by a person")
        self._spawn(self.beats.say_now())

    async def order_found(self, *, force: bool = False) -> None:
        """Start the log anew from here. A primary may when its log does not answer: it may be lost for good.

        Raises Refused; where another machine knows of a later primary, unless *force*.
        """
        if self.role is Role.RELAY:
            raise Refused("this machine is a relay: it has nothing to start a log from")
        if self.role is Role.PRIMARY and await self._log_answers():
            raise Refused("this machine is the primary, and the log goes on: it is not started anew")
        continues = self.role in (Role.PRIMARY, Role.STANDBY, Role.YIELDED)
        known = max(self.known_epoch, self.epoch if continues else 0)
        later = [
            name for name, beat in self._heard_mail_machines().items() if beat is not None and beat.known_epoch > known
        ]
        if later and not force:
            raise Refused(
                f"{later[0]} knows of a later primary than this machine: what is here is old",
                hint=f"Give the order on the machine that served last; is it gone, on {later[0]}. Or --force.",
            )
        self._told_to_found = True
        self._again.set()

    async def _log_answers(self) -> bool:
        capture = None if self.primary is None else self.primary.capture
        if self.log is None or (capture is not None and capture.status().log_away_seconds is not None):
            return False
        try:
            await self.log.state()
        except HoldfastError:
            return False
        return True

    # -- beats ---------------------------------------------------------------------------------------------------------

    def beat(self) -> Beat:
        """What this machine says of itself now."""
        return beat_of(self)

    def require_reachable(self, machine: str) -> None:
        if not self.beats.alive(machine):
            raise Unreachable(f"{machine} is not heard", hint="Is its agent running? `holdfast status` shows who is.")
