"""The rehearsal: on a timer, a standby shows that its copy can serve. The real mail software, on a sample, in private.

A sample of the copy is taken (``sample``: why a sample), a stage is made of Linux namespaces (``stage``: what keeps
everything inside), and there Dovecot, Postfix and Radicale are started and asked (``mail.rehearse``: what is asked). An
order that changes this machine's role ends a rehearsal at once: nobody waits for it, and nothing of it is left.

The last one's result stays in ``rehearsal.json`` in the state directory; its problems are readiness problems. Where a
stage cannot be made (a container without the right to make namespaces, Linux before 5.12) that is said, and is no
problem of the copy.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
from msgspec import Struct

from holdfast.errors import HoldfastError, Refused
from holdfast.files import PRIVATE, write_once
from holdfast.mail.dovecot import Dovecot
from holdfast.mail.mailboxes import Accounts
from holdfast.mail.port import CommandResult, Commands
from holdfast.mail.rehearse import Part, Performance, Play
from holdfast.node import stage
from holdfast.node.roles import Role
from holdfast.node.sample import Sampler, Taken, choose

if TYPE_CHECKING:
    from holdfast.node.node import Node

FIRST_SECONDS: Final = 900.0
"""A standby that has just become one may soon be needed, or seeded again; then it is rehearsed for the first time."""
RETRY_SECONDS: Final = 3600.0
"""After one with problems: what was mended is to be seen soon, and a rehearsal costs some seconds of a processor."""
SECONDS_MAX: Final = 90.0
_LOOK_SECONDS: Final = 0.05


class Rehearsal(Struct, frozen=True):
    """The last one. *at*: seconds since 1970; 0: none yet. *rested_seconds*: for so long applying waited for it."""

    at: float = 0.0
    seconds: float = 0.0
    rested_seconds: float = 0.0
    accounts: int = 0
    messages: int = 0
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    parts: tuple[Part, ...] = ()
    impossible: str = ""
    """Why nothing could be rehearsed on this machine; empty when it was."""

    @property
    def ok(self) -> bool:
        return bool(self.at) and not self.problems and not self.impossible


def read(state: Path) -> Rehearsal:
    """The last result; an empty one where there is none that can be read."""
    try:
        return msgspec.json.decode((state / "rehearsal.json").read_bytes(), type=Rehearsal)
    except (OSError, msgspec.DecodeError):
        return Rehearsal()


class Rehearsals:
    """Runs beside the node; :meth:`now` for `holdfast rehearse`."""

    def __init__(self, node: Node, commands: Commands, chance: random.Random) -> None:
        self._node = node
        self._commands = commands
        self._chance = chance
        self._folder = node.world.settings.run / "rehearsal"
        self._one = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._clean()
        if self._node.world.settings.failover.rehearse_hours > 0:
            self._task = asyncio.create_task(self._on_time())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _on_time(self) -> None:
        clocks = self._node.world.clocks
        since = clocks.steady()
        while True:
            await asyncio.sleep(1.0)
            if not self._wanted():
                since = clocks.steady()
            elif clocks.steady() - since >= FIRST_SECONDS and self._due(clocks.wall_seconds()):
                with contextlib.suppress(Refused):  # something else happens here just now
                    await self.now()

    def _due(self, now: float) -> bool:
        last = self._node.readiness.rehearsal
        hours = self._node.world.settings.failover.rehearse_hours
        return not 0 <= now - last.at < (RETRY_SECONDS if last.problems else hours * 3600)

    def _wanted(self) -> bool:
        return self._node.role is Role.STANDBY and self._node.standby is not None and not self._node.busy.locked()

    async def now(self) -> Rehearsal:
        """Rehearse, and remember the result. Raises Refused: no standby, another one runs, or an order came."""
        node = self._node
        if not self._wanted():
            raise Refused(f"only a standby rehearses; this machine is {node.role}", hint="Run it on the standby.")
        if self._one.locked():
            raise Refused("a rehearsal is under way", hint="`holdfast status` shows its result in a minute.")
        async with self._one:
            try:
                result = await self._unless_needed()
            finally:
                await asyncio.to_thread(self._clean)
            node.readiness.rehearsal = result
            write_once(node.world.settings.state / "rehearsal.json", msgspec.json.encode(result), PRIVATE)
            what = (
                "rehearsal went well"
                if result.ok
                else "rehearsal could not be made"
                if result.impossible
                else "rehearsal failed"
            )
            said = result.impossible or "; ".join(result.problems)
            node.world.history.record(
                what,
                said or f"{result.messages} messages of {result.accounts} accounts are as stored",
                seconds=round(result.seconds, 2),
                rested_seconds=round(result.rested_seconds, 3),
            )
            await node.readiness.look()
            return result

    async def _unless_needed(self) -> Rehearsal:
        """Rehearse, and give it up as soon as this machine is no standby any more, or about to be none."""
        rehearsing = asyncio.create_task(self._rehearse())
        while not (await asyncio.wait({rehearsing}, timeout=_LOOK_SECONDS))[0]:
            if not self._wanted():
                rehearsing.cancel()
                await asyncio.gather(rehearsing, return_exceptions=True)
                raise Refused("the rehearsal was given up: this machine got an order")
        return rehearsing.result()

    def _clean(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    async def _rehearse(self) -> Rehearsal:
        world = self._node.world
        began = world.clocks.monotonic()
        try:
            taken, rested = await self._take()
        except (HoldfastError, OSError) as error:
            problem = f"sample: {error.message if isinstance(error, HoldfastError) else error}"
            return self._result(began, 0.0, Performance((), ()), None, (problem,))
        settings = world.settings
        play = Play(
            mail=settings.mail,
            addresses=settings.service.addresses,
            accounts=taken.accounts,
            items=taken.items,
            gate=settings.gate.lmtp,
            behind_gate=settings.gate.lmtp_server,
            imap_gate=bool(settings.gate.imap),
        )
        said = await self._commands.run(
            [*stage.UNSHARE, sys.executable, "-m", "holdfast.node.stage"],
            timeout_seconds=SECONDS_MAX,
            stdin=msgspec.json.encode(stage.Setting(play, taken.binds)),
        )
        strange = tuple(f"copy: {each}" for each in taken.strange)
        if said.ok:
            performance = msgspec.json.decode(said.output.encode(), type=Performance)
            return self._result(began, rested, performance, taken, (*strange, *performance.problems))
        result = self._result(began, rested, Performance((), ()), taken, strange)
        if _no_stage(said):
            return msgspec.structs.replace(result, impossible=said.words)
        return msgspec.structs.replace(result, problems=(*result.problems, f"stage: {said.words}"))

    def _result(
        self, began: float, rested: float, performance: Performance, taken: Taken | None, problems: tuple[str, ...]
    ) -> Rehearsal:
        clocks = self._node.world.clocks
        return Rehearsal(
            at=clocks.wall_seconds(),
            seconds=clocks.monotonic() - began,
            rested_seconds=rested,
            accounts=len(taken.accounts) if taken is not None else 0,
            messages=performance.messages,
            problems=problems,
            notes=performance.notes,
            parts=performance.parts,
        )

    async def _take(self) -> tuple[Taken, float]:
        """The sample, and for how long applying rested for it. Raises HoldfastError, OSError."""
        node, world = self._node, self._node.world
        standby, index = node.standby, node.index
        if standby is None or index is None:
            raise Refused("this machine is no standby any more")
        dovecot = world.serving.mail.services.get("dovecot")
        layout = await dovecot.layout() if isinstance(dovecot, Dovecot) else None
        trees = world.local.state.trees
        chosen = await asyncio.to_thread(choose, trees, Accounts(layout), self._chance) if layout else []
        await asyncio.to_thread(self._clean)
        self._folder.mkdir(mode=0o700, parents=True)
        sampler = Sampler(self._folder, trees, chosen, self._chance)
        await asyncio.to_thread(sampler.prepare)

        def take() -> tuple[Taken, float]:
            began = world.clocks.monotonic()
            try:
                taken = sampler.take(index)
            except OSError as error:
                raise HoldfastError(f"the sample could not be taken: {error}") from error
            return taken, world.clocks.monotonic() - began

        return await standby.follow.settled(take)


def _no_stage(said: CommandResult) -> bool:
    """The namespaces or mounts are not permitted here, or this kernel has not got them."""
    return said.exit_status == stage.NO_STAGE or said.errors.startswith("unshare:")
