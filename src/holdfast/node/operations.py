"""Takeover and switchover: what a person orders when a machine has died, or before it is worked on.

Both run on the machine that becomes primary. Both make a plan first; both may be given again at any time: on the
primary they only make sure that it serves.

Takeover, the primary is gone::

    drain     apply everything the log has
    promote   append our promotion: from here the old primary can write nothing more
    prepare   make the copied configuration fit this machine
    serve     take the addresses, start the mail software (both at once)
    probe     a real transaction with every service at the service address

Switchover, nothing has failed: the same, and before it

    yield     the primary stops serving, puts everything into the log, gives the addresses back

If anything fails before the promotion is in the log, the primary is told to resume, and serves again.

Under the policy ``interval`` a takeover applies the last copy that is whole and no further, and says which. A
switchover begins with a copy, made while the primary serves; what happens until it has stopped comes with its close.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from holdfast.errors import HoldfastError, Refused, Unreachable
from holdfast.log.port import Fenced
from holdfast.node.asks import Asks
from holdfast.node.copies import copy_words
from holdfast.node.node import Node
from holdfast.node.plan import Execution, Outcome, Plan, Step
from holdfast.node.roles import Role

DRAIN_SECONDS_MAX: Final = 600.0
"""Applying a long backlog takes minutes; a log that gives nothing for so long is away."""
PROBE_SECONDS_MAX: Final = 20.0
"""The machine may be busy with everything that clients held back meanwhile."""
PROBE_PAUSE_SECONDS: Final = 0.05
COPY_SECONDS_MAX: Final = 6 * 3600.0
"""A scan of some millions of files takes minutes; a copy of a new store over a slow line takes hours."""
PROMOTIONS_MAX: Final = 5
"""Attempts to be the log's next record, when a dying primary's last frames still arrive."""

Confirm = Callable[[], Awaitable[None]]
_PREPARE: Final = Step("prepare", "make the copied configuration fit this machine")
_SERVE: Final = Step("serve", "take the service addresses and start the mail software")
_PROBE: Final = Step("probe", "log in, select and greet every service at the service address")


class Operations:
    """The orders a person can give to one node."""

    def __init__(self, node: Node) -> None:
        self._node = node

    # -- plans ---------------------------------------------------------------------------------------------------------

    async def plan_takeover(self, why: str, *, force: bool) -> Plan:
        """What a takeover would do here and now."""
        node, me = self._node, self._node.world.settings.machine
        if node.role is Role.PRIMARY:
            return self._sure_plan("takeover", why, await node.world.serving.missing())
        refusals, warnings = self._standing(), []
        primary = node.primary_name
        if primary and primary != me and node.beats.alive(primary) and not force:
            refusals.append(
                f"the primary {primary} is alive (heard {node.beats.silent_seconds(primary):.1f} s ago): "
                "use `holdfast switchover`, or --force if it serves nobody all the same"
            )
        beat = node.beats.last(primary) if primary else None
        if beat is not None and beat.waiting_bytes and not node.world.settings.at_intervals:
            warnings.append(
                f"when last heard, {primary} had {beat.waiting_bytes:,} bytes (for {beat.waiting_seconds:.1f} s) "
                "that were not yet in the log: they are on its disk only"
            )
        behind = await self._records_behind()
        drain = f"apply the {behind} records of the log that are not applied yet"
        if node.standby is not None and node.world.settings.at_intervals:
            copy = copy_words(node.standby.follow.copied_at_ns)
            drain = "apply the last copy in the log that is whole"
            warnings.append(f"what was done since the last whole copy, {copy}, is on {primary}'s disk only")
            if not node.copying.whole:
                warnings.append("no copy is whole since this machine was seeded: its files are of different moments")
        return Plan(
            "takeover",
            me,
            why or self._why_now(primary),
            (
                Step("drain", drain),
                Step("promote", f"append the promotion of {me} (epoch {node.epoch + 1}) to the log"),
                _PREPARE,
                _SERVE,
                _PROBE,
            ),
            tuple(warnings),
            tuple(refusals),
            {"primary": primary, "epoch": int(node.epoch), "records_behind": behind},
        )

    async def plan_switchover(self, why: str) -> Plan:
        """What a switchover to this machine would do."""
        node, me = self._node, self._node.world.settings.machine
        if node.role is Role.PRIMARY:
            return self._sure_plan("switchover", why, await node.world.serving.missing())
        refusals = self._standing()
        primary = node.primary_name
        if primary and primary != me and not node.beats.alive(primary):
            refusals.append(f"the primary {primary} is not heard: if it is gone, use `holdfast takeover`")
        behind = await self._records_behind()
        copy = Step("copy", f"{primary} makes a copy, while it serves")
        return Plan(
            "switchover",
            me,
            why or "by hand, no reason given",
            (
                *([copy] if node.world.settings.at_intervals else []),
                Step("yield", f"{primary} stops serving, puts everything into the log, gives the addresses back"),
                Step("drain", f"apply what is then in the log ({behind} records now)"),
                Step("promote", f"append the promotion of {me} (epoch {node.epoch + 1}) to the log"),
                _PREPARE,
                _SERVE,
                _PROBE,
            ),
            (),
            tuple(refusals),
            {"primary": primary, "epoch": int(node.epoch), "records_behind": behind},
        )

    def _sure_plan(self, action: str, why: str, missing: tuple[str, ...]) -> Plan:
        """On the primary: start what is missing of what it serves with."""
        node, me = self._node, self._node.world.settings.machine
        what = f"take or start what is missing: {', '.join(missing)}" if missing else "nothing: all of it is here"
        why = f"{me} is the primary already" + (f"; {why}" if why else "")
        facts = {"primary": me, "epoch": int(node.epoch), "missing": missing}
        return Plan(action, me, why, (Step("serve", what), _PROBE), facts=facts)

    def _why_now(self, primary: str | None) -> str:
        """What is known of the primary when nobody gives a reason: it stands in the log for good."""
        if not primary:
            return "by hand, no reason given; who the primary is is not known here"
        silent = self._node.beats.silent_seconds(primary)
        if silent is None:
            return f"by hand, no reason given; {primary} was never heard since the agent here started"
        heard = "is heard" if self._node.beats.alive(primary) else f"is silent for {silent:.0f} s"
        return f"by hand, no reason given; {primary} {heard}"

    def _standing(self) -> list[str]:
        """Why this machine cannot be promoted, and who can."""
        node, machines = self._node, self._node.world.settings.mail_machines
        if node.role is Role.STANDBY:
            return []
        heard = [
            (machine.name, node.beats.last(machine.name)) for machine in machines if node.beats.alive(machine.name)
        ]
        able = [name for name, beat in heard if beat is not None and beat.role == Role.STANDBY]
        advice = node.advice or (f"Give the order on {' or '.join(able)}." if able else "")
        me = node.world.settings.machine
        return [f"{me} is not a standby, its role is {node.role} ({node.reason}). {advice}".rstrip()]

    async def _records_behind(self) -> int:
        node = self._node
        if node.standby is None or node.log is None:
            return 0
        return (await node.log.state()).last - node.standby.follow.chain.sequence

    # -- orders --------------------------------------------------------------------------------------------------------

    async def takeover(self, why: str, *, force: bool = False, confirm: Confirm | None = None) -> Outcome:
        """Carry the plan out. Raises Refused; a failed step is in the outcome.

        *confirm*, where no person has looked: asks the others, after each drain, whether the primary is still missed;
        raises Refused when it is not. Behind a record appended after that there can be no promotion (``watchman``).
        """
        if self._node.role is Role.PRIMARY:
            return await self._make_sure("takeover", why)
        async with self._node.busy:
            plan = await self.plan_takeover(why, force=force)
            _refuse(plan)
            execution = Execution(plan, self._node.world.history, self._node.world.clocks.monotonic)
            try:
                await self._drain(execution, confirm)
                await self._promote_and_serve(execution, planned=False, confirm=confirm)
            except HoldfastError as error:
                return execution.outcome(failure=str(error))
            return execution.outcome(warnings=await self._probe(execution))

    async def switchover(self, why: str) -> Outcome:
        """Carry the plan out. Raises Refused; a failed step is in the outcome, and the old primary serves again."""
        node = self._node
        if node.role is Role.PRIMARY:
            return await self._make_sure("switchover", why)
        async with node.busy:
            plan = await self.plan_switchover(why)
            _refuse(plan)
            primary, asks = node.primary_name, node.asks
            assert primary is not None
            assert asks is not None
            execution = Execution(plan, node.world.history, node.world.clocks.monotonic)
            yielded = False

            async def give_up() -> str:
                nonlocal yielded
                yielded = True
                reply = await asks.order(primary, "yield", seconds=60.0)
                return f"{primary} stopped serving at record {reply['sequence']}"

            try:
                if node.world.settings.at_intervals:
                    await execution.step("copy", self._copy_held_open(primary, asks))
                await execution.step("yield", give_up())
                await execution.step("drain", node.copying.drain(DRAIN_SECONDS_MAX))
                await self._promote_and_serve(execution, planned=True)
            except HoldfastError as error:
                if yielded and node.primary is None:
                    await self._tell_to_resume(primary)
                return execution.outcome(failure=str(error))
            return execution.outcome(warnings=await self._probe(execution))

    async def _copy_held_open(self, primary: str, asks: Asks) -> str:
        """Returns when the primary has made its copy but for the close. Raises Unreachable when it falls silent."""
        order = asyncio.ensure_future(asks.order(primary, "copy", seconds=COPY_SECONDS_MAX, hold_open=True))
        while not (await asyncio.wait([order], timeout=1.0))[0]:
            if not self._node.beats.alive(primary):
                order.cancel()
                raise Unreachable(f"{primary} is not heard any more", hint="If it is gone, use `holdfast takeover`.")
        await order
        return f"{primary} has copied everything but what happens until it stops"

    async def _tell_to_resume(self, primary: str) -> None:
        assert self._node.asks is not None
        try:
            await self._node.asks.order(primary, "resume")
        except HoldfastError as error:  # it serves again by itself when nobody is promoted: see Yielding
            self._node.world.history.record(f"{primary} could not be told to resume", error.message)

    async def _drain(self, execution: Execution, confirm: Confirm | None) -> None:
        await execution.step("drain", self._node.copying.drain(DRAIN_SECONDS_MAX))
        if confirm is not None:
            await execution.step("confirm", confirm())

    async def _promote_and_serve(self, execution: Execution, *, planned: bool, confirm: Confirm | None = None) -> None:
        """Promotion, then serving; the addresses and services start as soon as the promotion is in the log."""
        node, plan = self._node, execution.plan

        async def prepare() -> str:
            return "; ".join(await node.world.serving.prepare())

        async def serve() -> None:
            await node.may_serve()
            await node.world.serving.start()

        why = plan.why
        if node.standby is not None and node.world.settings.at_intervals:
            why = f"{why}; from the copy {copy_words(node.standby.follow.copied_at_ns)}"
        for attempt in range(PROMOTIONS_MAX):
            try:
                behind = None if confirm is None else node.copying.drained_to  # what the votes were asked for behind
                await execution.step("promote", node.promoting.promote(why, planned=planned, behind=behind))
                break
            except Fenced:  # a last record of the old primary came first
                if attempt == PROMOTIONS_MAX - 1:
                    raise
                await node.copying.follow_again()
                await self._drain(execution, confirm)
        await execution.step("prepare", prepare())
        await execution.step("serve", serve())

    async def _make_sure(self, action: str, why: str) -> Outcome:
        """This machine is the primary already: it serves, or serves from now on."""
        node = self._node
        execution = Execution(self._sure_plan(action, why, ()), node.world.history, node.world.clocks.monotonic)
        missing: tuple[str, ...] = ()

        async def serve() -> str:
            nonlocal missing
            missing = await node.world.serving.missing()
            await node.may_serve()
            await node.world.serving.start()
            return f"took or started: {', '.join(missing)}" if missing else "the addresses are here, the services run"

        try:
            await execution.step("serve", serve())
        except HoldfastError as error:
            return execution.outcome(failure=str(error))
        return execution.outcome(warnings=await self._probe(execution), nothing_to_do=not missing)

    async def _probe(self, execution: Execution) -> tuple[str, ...]:
        """Probe until every service answers, or the time is up; what did not answer, in sentences."""
        node = self._node
        failed: list[str] = []

        async def probe() -> str:
            nonlocal failed
            deadline = node.world.clocks.monotonic() + PROBE_SECONDS_MAX
            while True:
                results = await node.world.serving.probe()
                failed = [f"{r.service} at {r.address}: {r.words}" for r in results if not r.ok]
                if not failed or node.world.clocks.monotonic() > deadline:
                    return "; ".join(f"{r.service} {'answers' if r.ok else 'does not answer'}" for r in results)
                await asyncio.sleep(PROBE_PAUSE_SECONDS)

        await execution.step("probe", probe())
        return tuple(failed)


def _refuse(plan: Plan) -> None:
    if plan.refusals:
        raise Refused(f"{plan.action} is not possible here: {plan.refusals[0]}", hint="\n  ".join(plan.refusals[1:]))
