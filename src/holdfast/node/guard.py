"""Carries out what ``watchman`` decides: twenty times a second it looks, and stops, serves or takes over.

Everything that can wait runs in tasks of its own; looking, and giving the address back, never waits for anything.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable
from typing import Final

from holdfast.errors import HoldfastError
from holdfast.log.port import Fenced
from holdfast.node.address_command import KEEP_SECONDS, CommandedAddresses
from holdfast.node.duties import Duties
from holdfast.node.fencing import Fencing
from holdfast.node.merges import Merges
from holdfast.node.node import Decided, Node
from holdfast.node.oneself import facts_of_self, listen
from holdfast.node.operations import Operations
from holdfast.node.outlook import (
    Rules,
    primary_facts,
    standby_facts,
    superseded_by,
)
from holdfast.node.planned import Planned
from holdfast.node.roles import Role
from holdfast.node.story import REFUSES
from holdfast.node.watchman import (
    MISSING_SECONDS,
    RENEW_SECONDS,
    TICK_SECONDS,
    Order,
    PrimaryRow,
    StandbyRow,
    decide_primary,
    decide_standby,
)

IS_PRIMARY: Final = "the last promotion in the log is this machine's"
GAPS_KEPT: Final = 60
"""Looks of the last seconds: how long this machine itself had stood still, in the history of a stop."""
RENEW_EVERY_SECONDS: Final = 0.25
ANNOUNCE_EVERY_SECONDS: Final = 10.0
"""Neighbours that missed or forgot the last announcement, or heard another's, learn it again."""
PROOF_SECONDS: Final = 10.0
REST_SECONDS: Final = (1.0, 30.0)
"""After an attempt that failed; doubled each time."""


def rules_of(node: Node) -> Rules:
    """The administrator's decisions, as the tables want them."""
    settings = node.world.settings
    mail = [machine.name for machine in settings.mail_machines]
    preferred = [name for name in settings.failover.prefer if name in mail]
    failover = settings.failover
    return Rules(
        me=settings.machine,
        others=tuple(machine.name for machine in settings.machines if machine.name != settings.machine),
        standbys=tuple(preferred + [name for name in mail if name not in preferred]),
        automatic=failover.policy == "automatic",
        loss_seconds_max=failover.loss_seconds_max,
        loss_bytes_max=failover.loss_bytes_max,
        takeovers_max=failover.takeovers_max,
        takeovers_seconds=failover.takeovers_hours * 3600,
        stop_seconds=failover.without_quorum_seconds if failover.without_quorum == "stop" else 0.0,
        read_only_seconds=failover.without_quorum_seconds if failover.without_quorum == "read-only" else 0.0,
    )


class Guard:
    """One machine's. :meth:`start` it beside the node's run, :meth:`stop` it after."""

    def __init__(self, node: Node, operations: Operations) -> None:
        self._node = node
        self.operations = operations
        self.rules = rules_of(node)
        self.merges = Merges(node)
        self.row: PrimaryRow | StandbyRow | None = None
        """The row that applied last."""
        self.duties = Duties(node, self.rules)
        self.planned = Planned(node, operations, self.rules, self._act)
        self._looking: asyncio.Task[None] | None = None
        self._acting: asyncio.Task[None] | None = None
        self._stopping: asyncio.Task[None] | None = None
        self._proving: asyncio.Task[None] | None = None
        self._keeping: asyncio.Task[None] | None = None
        """Looks whether an address that a program moves is still here."""
        self._fencing = Fencing(node.world.settings)
        self._round = 0
        """Counts the stops, and the looks at which nobody heard us: a proof begun before one is none after it."""
        self._looked_at = node.world.clocks.steady()
        self._gaps: deque[float] = deque(maxlen=GAPS_KEPT)
        self._renewed_at = 0.0
        self._announced_at = 0.0
        self._rests_until = 0.0
        self._rest_seconds = REST_SECONDS[0]

    async def start(self) -> None:
        """Raises nothing: what fails is tried again."""
        await self.duties.serve()
        if self._node.asks is not None:
            self.merges.register(self._node.asks)
        self._looking = asyncio.create_task(self._look_on())
        self._looking.add_done_callback(self._no_more_looks)

    async def stop(self) -> None:
        for task in (self._looking, self._acting, self._stopping, self._proving, self._keeping):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    # -- looking -----------------------------------------------------------------------------------------------------

    async def _look_on(self) -> None:
        while True:
            try:
                self.look(self._node.world.clocks.steady())
            except (HoldfastError, OSError) as error:
                self._node.world.history.record("a look failed, the next comes", str(error))
                await asyncio.sleep(REST_SECONDS[0])
            await asyncio.sleep(TICK_SECONDS)

    def _no_more_looks(self, looking: asyncio.Task[None]) -> None:
        """A guard that died of a bug would leave an agent that looks alive: the loop's handler ends the process."""
        if not looking.cancelled() and (error := looking.exception()) is not None:
            looking.get_loop().call_exception_handler({"message": "the guard ended", "exception": error})

    def look(self, now: float) -> None:
        """One look. Never waits."""
        node = self._node
        self._gaps.append(now - self._looked_at)
        self._looked_at = now
        listen(node, now)
        if self._acting is None:
            self.planned.as_ordered()
        self._keep_by_command(now)
        if node.role is Role.PRIMARY:
            self._fencing.forget()
            node.not_switched = ""
        node.not_fenced = self._fencing.problem
        still_serving = node.world.serving.on and node.primary_name in (None, self.rules.me)
        if node.role is Role.PRIMARY or (node.role is Role.WAITING and still_serving):
            self._as_primary(now)
        elif node.role is Role.RETURNED:
            self._as_returned()
        elif self.rules.me in self.rules.standbys and node.primary_name != self.rules.me:
            self._as_standby(now)
        else:
            self._set(None)

    def _set(self, row: PrimaryRow | StandbyRow | None) -> bool:
        """Remember the row; True when it is another than before."""
        changed = row is not self.row
        self.row = row
        if changed:
            advice = row.advice if isinstance(row, StandbyRow) else ""
            self._node.decided = Decided() if row is None else Decided(str(row.order), row.reason, advice)
        return changed

    # -- as the primary ------------------------------------------------------------------------------------------------

    def _as_primary(self, now: float) -> None:
        node = self._node
        logless_seconds = self.rules.stop_seconds or self.rules.read_only_seconds
        if not (node.guarded or logless_seconds) or node.world.serving.released_by_hand:
            self._set(None)
            return
        hearing, beats = node.beats.hearing, node.beats.all
        facts = primary_facts(self.rules, facts_of_self(node, self._rests_until), hearing, beats, now)
        row = decide_primary(facts)
        self._set(row)
        if node.held and facts.replaceable and not facts.confirmed:
            node.proved = False  # what was proved before says nothing of what comes while nobody hears this machine
            self._round += 1
        if row.order is Order.STOP:
            self._stop_serving(row.reason, now)
            return
        if not node.held:
            if not facts.replaceable or hearing.confirmed_seconds(now) < RENEW_SECONDS:
                self._renew(now)
        elif row.order is Order.NOTHING and self._stopping is None:
            node.held_because(row.reason)
        if self._stopping is None and node.role is Role.PRIMARY:
            if row.order is Order.PROVE and self._proving is None and now >= self._rests_until:
                self._proving = asyncio.create_task(self._prove(row.reason))
            elif row.order is Order.SERVE and self._acting is None and not node.busy.locked():
                self._act(self._serve(row.reason))
        if row.order in (Order.REFUSE, Order.ALLOW):
            self._read_only(row)  # last: the address is renewed whether or not this succeeds

    def _read_only(self, row: PrimaryRow) -> None:
        """Raises OSError: it is tried again at the next look."""
        node = self._node
        if row.order is Order.REFUSE:
            node.world.serving.refuse_changes()
            node.world.history.record(REFUSES, row.reason)
            node.serves_because(row.reason)
        else:
            node.world.serving.take_changes()
            node.world.history.record("takes changes again", row.reason)
            node.serves_because(IS_PRIMARY)

    def _renew(self, now: float) -> None:
        addresses = self._node.world.serving.addresses
        if isinstance(addresses, CommandedAddresses):
            return
        if now - self._renewed_at < RENEW_EVERY_SECONDS or not self._node.world.serving.on:
            return
        self._renewed_at = now
        try:
            addresses.renew()
            if now - self._announced_at >= ANNOUNCE_EVERY_SECONDS:
                self._announced_at = now
                addresses.announce()
        except HoldfastError as error:
            if now - self._announced_at >= ANNOUNCE_EVERY_SECONDS:
                self._announced_at = now
                self._node.world.history.record("the service address could not be renewed", error.message)

    def _keep_by_command(self, now: float) -> None:
        """Whatever the policy: what a program moved can be lost behind our back."""
        node = self._node
        addresses = node.world.serving.addresses
        if not isinstance(addresses, CommandedAddresses) or now - self._renewed_at < KEEP_SECONDS:
            return
        if node.role is Role.PRIMARY and node.world.serving.on and not node.held and self._keeping is None:
            self._renewed_at = now
            self._keeping = asyncio.create_task(self._keep(addresses))

    async def _keep(self, addresses: CommandedAddresses) -> None:
        before = addresses.problem
        try:
            await asyncio.to_thread(addresses.renew)
        except HoldfastError as error:
            if error.message != before:
                self._node.world.history.record("the service address could not be kept", error.message)
        finally:
            self._keeping = None

    def _stop_serving(self, reason: str, now: float) -> None:
        """The address goes before this returns, where it is this machine's to give."""
        node = self._node
        self._round += 1
        node.held, node.proved = reason, False
        with contextlib.suppress(HoldfastError):  # the fence tries it again, and says so
            node.world.serving.addresses.let_go()
        confirmed = node.beats.hearing.confirmed_seconds(now)
        superseded = superseded_by(self.rules, node.beats.hearing, node.beats.all, int(node.epoch), now)
        node.world.history.record(
            "stops serving",
            reason,
            confirmed_seconds=round(min(confirmed, 1e6), 3),
            looked_after_seconds=round(max(self._gaps, default=0.0), 3),
            silent={name: round(node.beats.hearing.silent_seconds(name, now), 3) for name in self.rules.others},
            **({"told_by": superseded} if superseded else {}),
        )
        self._stopping = asyncio.create_task(self._fence(reason, look_at_log=bool(superseded)))

    async def _fence(self, reason: str, *, look_at_log: bool) -> None:
        if self._acting is not None:  # it may be starting the mail software
            await asyncio.gather(self._acting, return_exceptions=True)
        node = self._node
        await node.stop_serving(reason)
        node.held_because(reason)
        self._stopping = None
        if look_at_log:
            node.look_again()

    def _act(self, work: Awaitable[None]) -> None:
        async def run() -> None:
            try:
                await work
            finally:
                self._acting = None

        self._acting = asyncio.create_task(run())

    async def _prove(self, reason: str) -> None:
        try:
            await self._prove_once(reason)
        finally:
            self._proving = None

    async def _prove_once(self, reason: str) -> None:
        node, began = self._node, self._round
        primary = node.primary
        if primary is None or primary.capture is None:
            return
        node.held_because(reason)
        try:
            await primary.capture.prove(timeout_seconds=PROOF_SECONDS)
        except Fenced:
            return  # the capture has told the node
        except HoldfastError:
            self._rests_until = node.world.clocks.steady() + REST_SECONDS[0]
            return
        if began == self._round and node.primary is primary:
            node.proved = True

    async def _serve(self, reason: str) -> None:
        node = self._node
        node.held = ""
        try:
            await node.world.serving.start()
        except HoldfastError as error:
            node.world.history.record("could not serve with everything", error.message)
            node.advice = error.hint or "`holdfast takeover` here tries again, and says what fails."
        node.world.history.record("serves", reason, epoch=int(node.epoch))
        node.serves_because(IS_PRIMARY)

    # -- as the machine that was replaced -----------------------------------------------------------------------------

    def _as_returned(self) -> None:
        node = self._node
        self._set(None)
        failover = node.world.settings.failover
        primary = node.primary_name
        if failover.policy != "automatic" or failover.rejoin != "automatic" or primary is None:
            return
        beat = node.beats.last(primary)
        if node.beats.alive(primary) and beat is not None and beat.role == Role.PRIMARY and not node.orders.to_rejoin:
            node.world.history.record("rejoins by itself", f"{primary} is the primary and is heard: [failover] rejoin")
            node.orders.rejoin()

    # -- as a standby ------------------------------------------------------------------------------------------------

    def _as_standby(self, now: float) -> None:
        node = self._node
        hearing, beats, me = node.beats.hearing, node.beats.all, facts_of_self(node, self._rests_until)
        row = decide_standby(standby_facts(self.rules, me, hearing, beats, now))
        silent = hearing.silent_seconds(me.primary, now) if me.primary else 0.0
        if silent < MISSING_SECONDS:
            self._fencing.forget()
        if node.busy.locked() or self._acting is not None or node.role is Role.YIELDED:
            return
        if self._set(row) and silent >= MISSING_SECONDS and node.guarded:
            heard = {name: round(hearing.silent_seconds(name, now), 3) for name in self.rules.others}
            node.world.history.record(f"decided: {row.order}", f"{me.primary}: {row.reason}", silent=heard)
        self.planned.go_home(me, beats)
        if row.order is Order.PROMOTE:
            others = [name for name in self.rules.others if name != me.primary]
            why = f"{me.primary} is not heard for {silent:.1f} s here, nor by {' or '.join(others)}"
            self._act(self._take_over(me.primary, why))

    async def _take_over(self, primary: str, why: str) -> None:
        node = self._node
        failure = ""
        try:
            outcome = await self.operations.takeover(why, confirm=lambda: self._confirm_and_fence(primary))
            failure = outcome.failure
        except HoldfastError as error:
            failure = error.message
        if not failure:
            self._rest_seconds = REST_SECONDS[0]
            return
        node.world.history.record("automatic takeover was given up", failure)
        self._rests_until = node.world.clocks.steady() + self._rest_seconds
        self._rest_seconds = min(self._rest_seconds * 2, REST_SECONDS[1])

    async def _confirm_and_fence(self, primary: str) -> None:
        """Raises Refused: without its proof nobody is promoted, where a fencing command is configured."""
        await self.duties.confirm(primary)
        if not self._fencing.configured:
            return
        history = self._node.world.history
        began = self._node.world.clocks.monotonic()
        try:
            words = await asyncio.to_thread(self._fencing.prove, primary)
        except HoldfastError as error:
            history.record("fencing the old primary failed", error.message)
            raise
        seconds = round(self._node.world.clocks.monotonic() - began, 3)
        history.record("the old primary is fenced", f"{primary}: {words}", seconds=seconds)
