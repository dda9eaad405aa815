"""What machines ask each other beside the sealed orders: votes, pauses, and the history for a story.

A machine asked for its vote answers at once, from its own ears. A pause is told to every machine, and holds when the
primary relies on it (``outlook``).
"""

from __future__ import annotations

import asyncio
from typing import Final

import msgspec
from msgspec import Struct

from holdfast.errors import HoldfastError, Refused, Unreachable
from holdfast.node.asks import Answers
from holdfast.node.history import Event
from holdfast.node.node import Node
from holdfast.node.oneself import facts_of_self, listen
from holdfast.node.outlook import Rules, confirmed_by, primary_facts, vote
from holdfast.node.story import Story, lines_of, tell

VOTE_SECONDS: Final = 0.5
"""A voter that does not answer by then is as good as not heard."""
PAUSE_SECONDS: Final = 2.0
"""A primary relies on a pause when every standby has said so twice: eight beats, and it takes three."""
PAUSE_LOOK_SECONDS: Final = 0.1
EVENTS_MAX: Final = 1000
"""Of each machine, for a story: some weeks of a quiet site."""


class Duty(Struct, frozen=True, omit_defaults=True):
    """What one agent asks another, outside the sealed orders: a relay has no key for those.

    *verb*: ``vote`` (about *primary*), ``pause`` (because of *why*), ``relied`` (does the primary serve on, cut off or
    not?), ``resume`` (*primary* has been told already; empty: it could not be).
    """

    verb: str
    primary: str = ""
    why: str = ""


class Done(Struct, frozen=True, omit_defaults=True):
    """The answer. *misses*: the vote."""

    misses: bool = False
    refused: str = ""


class Duties:
    """One machine's. :meth:`serve` it once."""

    def __init__(self, node: Node, rules: Rules) -> None:
        self._node = node
        self.rules = rules
        self._prefix = f"hf.{node.world.settings.segment}.duty."

    async def serve(self) -> None:
        """From now on answer."""
        await self._node.world.bus.serve(self._prefix + self._node.world.settings.machine, self._asked)
        if self._node.asks is not None:
            self._node.asks.answer("history", self._history, changes=False)

    # -- votes and pauses --------------------------------------------------------------------------------------------

    async def confirm(self, primary: str) -> None:
        """Ask the others, now. Raises Refused when not enough of them miss *primary*, or it is heard again."""
        node = self._node
        voters = [name for name in self.rules.others if name != primary]
        asked = [asyncio.create_task(self._ask(name, Duty("vote", primary=primary))) for name in voters]
        missing = []
        for name, answer in zip(voters, await asyncio.gather(*asked), strict=True):
            if answer is not None and answer.misses:
                missing.append(name)
        steady = node.world.clocks.steady()
        why = confirmed_by(self.rules, node.beats.hearing, primary, missing, steady)
        if why:
            raise Refused(f"not confirmed: {why}")
        node.world.history.record("confirmed by votes", f"{' and '.join(missing)} miss {primary} too")

    async def _ask(self, machine: str, duty: Duty) -> Done | None:
        """Its answer; None when there is none."""
        try:
            reply = await self._node.world.bus.request(
                self._prefix + machine, msgspec.json.encode(duty), timeout_seconds=VOTE_SECONDS
            )
            return msgspec.json.decode(reply, type=Done)
        except (HoldfastError, msgspec.DecodeError):
            return None

    async def _asked(self, subject: str, payload: bytes) -> bytes:
        try:
            duty = msgspec.json.decode(payload, type=Duty)
        except msgspec.DecodeError:
            return msgspec.json.encode(Done(refused="it does not understand the question"))
        return msgspec.json.encode(self._answer(duty))

    def _answer(self, duty: Duty) -> Done:
        node = self._node
        now = node.world.clocks.steady()
        listen(node, now)
        if duty.verb == "vote":
            paused = bool(node.world.local.state.paused)
            return Done(misses=not paused and vote(node.beats.hearing, duty.primary, now))
        try:
            if duty.verb == "pause":
                node.orders.pause(duty.why)
            elif duty.verb == "resume":
                node.orders.resume(told=duty.primary)
            elif duty.verb == "relied":
                return Done(refused=self._not_relied())
            else:
                return Done(refused=f"it does not know {duty.verb!r}")
        except HoldfastError as error:
            return Done(refused=error.message)
        return Done()

    async def pause(self, why: str) -> dict[str, str]:
        """Here and on every machine that answers. Machine to what is wrong there; empty: it is done.

        Returns when the primary relies on it, or does not for ``PAUSE_SECONDS``: until then it would still stop.
        """
        self._node.orders.pause(why)
        told = await self._tell_all(Duty("pause", why=why))
        primary = self._node.primary_name or ""
        if told.get(primary) or primary not in (self.rules.me, *told):
            return told
        missing = await self._until_relied_on(primary)
        return {**told, primary: missing} if missing else told

    async def _until_relied_on(self, primary: str) -> str:
        """Why *primary* does not rely on the pause after ``PAUSE_SECONDS``; empty as soon as it does."""
        duty, clock = Duty("relied"), self._node.world.clocks.steady
        deadline = clock() + PAUSE_SECONDS
        while True:
            answer = self._answer(duty) if primary == self.rules.me else await self._ask(primary, duty)
            missing = "it does not answer" if answer is None else answer.refused
            if not missing or clock() > deadline:
                return missing
            await asyncio.sleep(PAUSE_LOOK_SECONDS)

    def _not_relied(self) -> str:
        """As the primary: why it would stop serving if nobody heard it now; empty when it would not."""
        facts = primary_facts(
            self.rules,
            facts_of_self(self._node),
            self._node.beats.hearing,
            self._node.beats.all,
            self._node.world.clocks.steady(),
        )
        return "it cannot rely on it yet: not every standby has confirmed it" if facts.replaceable else ""

    async def resume(self) -> dict[str, str]:
        """As :meth:`pause`; the primary first. Raises Refused."""
        primary = self._node.primary_name or ""
        found = await self._tell_all(Duty("resume"), [name for name in self.rules.others if name == primary])
        told = primary if primary == self.rules.me or found.get(primary) == "" else ""
        self._node.orders.resume(told=told)
        rest = [name for name in self.rules.others if name != primary]
        return {**found, **await self._tell_all(Duty("resume", primary=told), rest)}

    # -- the story -----------------------------------------------------------------------------------------------------

    async def why(self, at: float | None) -> Story:
        """The story of the last event, or of that nearest to *at*, by every machine that answers."""
        node = self._node
        lines = lines_of(self.rules.me, node.world.history.events(EVENTS_MAX))
        missing = {}
        for name in self.rules.standbys:
            if name == self.rules.me:
                continue
            try:
                if node.asks is None:
                    raise HoldfastError("a relay has no key to ask with: ask on a machine that holds the mail")
                reply = await node.asks.ask(name, "history", seconds=VOTE_SECONDS * 4)
                lines += lines_of(name, msgspec.convert(reply["events"], list[Event]))
            except (HoldfastError, msgspec.ValidationError) as error:
                missing[name] = "it does not answer" if isinstance(error, Unreachable) else str(error)
        return tell(lines, at, missing)

    async def _history(self, request: Answers) -> Answers:
        return {"events": msgspec.to_builtins(self._node.world.history.events(EVENTS_MAX))}

    async def _tell_all(self, duty: Duty, machines: list[str] | None = None) -> dict[str, str]:
        asked = list(self.rules.others) if machines is None else machines
        answers = await asyncio.gather(*(self._ask(name, duty) for name in asked))
        return {
            name: "it does not answer" if answer is None else answer.refused
            for name, answer in zip(asked, answers, strict=True)
        }
