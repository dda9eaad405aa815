"""Alarms without storms: one message when a cause has lasted, one when it is over, and one for each failover.

A cause is a warning of ``status`` with a key. Each machine tells of its own; what concerns the site is told by one of
them: the primary, or, while it is not heard, the first of the others that are. When that one changes, causes that still
last may be told once more. What could not be delivered is tried again, and then given up with a line in the history.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import urllib.request
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, Literal

import msgspec
from msgspec import Struct

from holdfast.errors import HoldfastError
from holdfast.mail.port import Commands
from holdfast.node.node import Node
from holdfast.node.roles import Role
from holdfast.node.settings import AlarmSettings
from holdfast.node.status import SiteStatus, Warned, site_status

LOOK_SECONDS: Final = 2.0
PATIENCE_SECONDS: Final = {"own:no takeover": 0.0, "nobody served": 5.0}
"""Of causes for which nobody waits as for others. A failover that goes well is over by then, and told as such."""
DELIVER_SECONDS_MAX: Final = 20.0
TRY_AGAIN_SECONDS: Final = (2.0, 10.0, 60.0, 300.0)
WAITING_MAX: Final = 100
"""Messages not delivered yet; the oldest go."""
OWN: Final = "own:"


class Alarm(Struct, frozen=True):
    """One message. *text* is all of it in a line; chat services show the key of that name."""

    state: Literal["raised", "over", "event", "test"]
    key: str
    text: str
    what: str
    advice: str
    site: str
    machine: str
    at: float


class Causes:
    """Which causes are known, since when, and which were told of. Pure."""

    def __init__(self, settings: AlarmSettings) -> None:
        self._settings = settings
        self._since: dict[str, float] = {}
        self._seen: dict[str, tuple[float, Warned]] = {}
        self._told: dict[str, float] = {}

    def look(self, warned: Iterable[Warned], now: float) -> list[tuple[Literal["raised", "over"], Warned, float]]:
        """What is to be told now: state, cause, and for how long it has lasted in seconds."""
        messages: list[tuple[Literal["raised", "over"], Warned, float]] = []
        for each in warned:
            if each.key:
                self._since.setdefault(each.key, now)
                self._seen[each.key] = (now, each)
        for key, (seen, each) in list(self._seen.items()):
            lasted = seen - self._since[key]
            patience = min(PATIENCE_SECONDS.get(key, math.inf), self._settings.after_seconds)
            if key not in self._told and seen == now and lasted >= patience:
                self._told[key] = now
                messages.append(("raised", each, lasted))
            if now - seen >= self._settings.over_seconds:
                if self._told.pop(key, None) is not None:
                    messages.append(("over", each, lasted))
                del self._seen[key], self._since[key]
        return messages

    def forget(self, keys: Callable[[str], bool]) -> None:
        """Somebody else tells of these from now on."""
        for key in [key for key in self._seen if keys(key)]:
            del self._seen[key], self._since[key]
            self._told.pop(key, None)


def speaks(me: str, primary: str, machines: Iterable[tuple[str, bool]]) -> bool:
    """Whether *me* is the one that tells of what concerns the site. *machines*: names in order, and who is heard."""
    heard = [name for name, alive in machines if alive or name == me]
    return me == (primary if primary in heard else heard[0])


def of_site(status: SiteStatus) -> list[Warned]:
    """The warnings, and that nobody is served when it is so: then that the primary is silent is the same cause."""
    view = next((view for view in status.machines if view.name == status.primary), None)
    if view is None or (view.alive and view.serving):
        return list(status.warnings)
    why = view.reason if view.alive else f"{status.primary} is not heard"
    advice = "See `holdfast status`; where a person is asked, it says so."
    silent = f"silent {status.primary}"
    others = [Warned(each.what, each.advice) if each.key == silent else each for each in status.warnings]
    return [*others, Warned(f"nobody is known to be served: {why}", advice, "nobody served")]


class Alarms:
    """Runs beside the node."""

    def __init__(self, node: Node, commands: Commands) -> None:
        self._node = node
        self._commands = commands
        self.settings = node.world.settings.alarms
        self._causes = Causes(self.settings)
        self._waiting: asyncio.Queue[Alarm] = asyncio.Queue()
        self._epoch: int | None = None
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        if self.settings.command or self.settings.webhook:
            self._tasks = [asyncio.create_task(self._look_on()), asyncio.create_task(self._deliver_all())]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _look_on(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            self.look(await site_status(self._node))

    def look(self, status: SiteStatus) -> None:
        """Tell of what has changed."""
        machines = [(view.name, view.alive) for view in status.machines]
        warned = of_site(status)
        if not speaks(status.machine, status.primary, machines):
            self._causes.forget(lambda key: not key.startswith(OWN))
            warned = [each for each in warned if each.key.startswith(OWN)]
        for state, each, seconds in self._causes.look(warned, self._node.world.clocks.steady()):
            if state == "raised":
                self._put("raised", each.key, each.what, each.advice)
            else:
                self._put("over", each.key, f"over, after {seconds:.0f} s: {each.what}", "")
        self._tell_of_failover(status)

    def _tell_of_failover(self, status: SiteStatus) -> None:
        """By the machine that was promoted, from its own history."""
        before, self._epoch = self._epoch, status.epoch
        if before is None or status.epoch <= before or self._node.role is not Role.PRIMARY:
            return
        words = {"takeover begins": "failed over", "switchover begins": "switched over"}
        for event in reversed(self._node.world.history.events(60)):
            if event.what in words:
                self._put("event", "promoted", f"{words[event.what]} to {status.machine}, because: {event.why}", "")
                return

    def _put(self, state: Literal["raised", "over", "event", "test"], key: str, what: str, advice: str) -> None:
        settings = self._node.world.settings
        text = f"Holdfast, site {settings.site}, {settings.machine}: {what}{f' ({advice})' if advice else ''}"
        while self._waiting.qsize() >= WAITING_MAX:
            self._waiting.get_nowait()
        at = self._node.world.clocks.wall_seconds()
        self._waiting.put_nowait(Alarm(state, key, text, what, advice, settings.site, settings.machine, at))

    # -- delivering ----------------------------------------------------------------------------------------------------

    async def _deliver_all(self) -> None:
        while True:
            alarm = await self._waiting.get()
            failed = await self.deliver(alarm)
            for pause in TRY_AGAIN_SECONDS:
                if not failed:
                    break
                await asyncio.sleep(pause)
                failed = await self.deliver(alarm, only=failed)
            if failed:
                self._node.world.history.record("an alarm could not be delivered", "; ".join(failed.values()))

    async def deliver(self, alarm: Alarm, only: Mapping[str, str] | None = None) -> dict[str, str]:
        """To all ways that are configured, or those of *only*: way to what went wrong; empty when nothing did."""
        failed = {}
        if self.settings.command and (only is None or "command" in only):
            environment = {"HOLDFAST_TEXT": alarm.text, "HOLDFAST_STATE": alarm.state, "HOLDFAST_KEY": alarm.key}
            result = await self._commands.run(
                self.settings.command,
                timeout_seconds=DELIVER_SECONDS_MAX,
                stdin=msgspec.json.encode(alarm) + b"\n",
                environment=environment,
            )
            if not result.ok:
                failed["command"] = result.words
        if self.settings.webhook and (only is None or "webhook" in only):
            try:
                await asyncio.to_thread(post, self.settings.webhook, msgspec.to_builtins(alarm))
            except (OSError, ValueError) as error:
                failed["webhook"] = f"{self.settings.webhook.split('?')[0]}: {error}"
        return failed

    async def test(self) -> dict[str, str]:
        """Send a message now, by every way. Raises HoldfastError when there is none."""
        settings = self._node.world.settings
        if not (self.settings.command or self.settings.webhook):
            raise HoldfastError(
                "nobody is configured to be told", hint="Set command or webhook under [alarms] in holdfast.toml."
            )
        what = "a test of the alarms: nothing is wrong"
        text = f"Holdfast, site {settings.site}, {settings.machine}: {what}"
        at = self._node.world.clocks.wall_seconds()
        failed = await self.deliver(Alarm("test", "test", text, what, "", settings.site, settings.machine, at))
        ways = [way for way, there in (("command", self.settings.command), ("webhook", self.settings.webhook)) if there]
        return {way: failed.get(way, "") for way in ways}


def post(address: str, value: dict[str, Any]) -> None:
    """POST *value* as JSON. Raises OSError (of which HTTPError and URLError are), ValueError."""
    if not address.startswith(("https://", "http://")):
        raise ValueError("no web address")
    body = json.dumps(value).encode()
    headers = {"Content-Type": "application/json", "User-Agent": "holdfast"}
    request = urllib.request.Request(address, data=body, headers=headers)  # checked above
    with contextlib.closing(urllib.request.urlopen(request, timeout=DELIVER_SECONDS_MAX)) as answer:
        answer.read(1024)
