"""A relay that takes mail, as its agent sees it: the gates' process first, then Postfix, and both kept running.

In this order, because the gates throw out of the queue what the primary has taken over while this machine was away,
before Postfix hands it on a second time. When the agent ends, Postfix goes on: it hands on what it has, and accepts
nothing (451), because nobody answers for the log.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Final

from holdfast.errors import ConfigurationError, HoldfastError
from holdfast.gate.agent import Heard, HeardMachine
from holdfast.gate.options import GateOptions, LogOptions, RelayOptions
from holdfast.gate.relay_view import RelayView, read_view
from holdfast.gate.serve import Place
from holdfast.mail.port import Service
from holdfast.node.beats import Beats
from holdfast.node.gates import Gate
from holdfast.node.history import History
from holdfast.node.relay_files import STRAIGHT, TABLES, straight_to
from holdfast.node.settings import MachineSettings, Settings

LOOK_SECONDS: Final = 5.0
CONTROL: Final = "relay.sock"
FOLDER: Final = "relay"
_log = logging.getLogger("holdfast.gate")


def heard(beats: Beats, primary: str | None) -> Heard:
    """What the gates are told of the other machines."""
    silent = beats.silent()
    return Heard(
        primary=primary or "",
        machines={
            name: HeardMachine(
                silent_seconds=silent[name],
                known=(last := beats.last(name)) is not None,
                role="" if last is None else last.role,
                serving=last is not None and last.serving,
                misses={} if last is None else last.said.silent,
            )
            for name in beats.hearing.others
        },
    )


def log_urls(settings: Settings, first: MachineSettings | None = None) -> tuple[str, ...]:
    """The log's servers, *first*'s first and then this machine's own."""
    if not settings.log.embedded:
        return settings.log.servers
    ordered = sorted(settings.machines, key=lambda machine: (machine is not first, machine is not settings.me))
    return tuple(
        f"tls://{f'[{m.address}]' if ':' in m.address else m.address}:{settings.log.client_port}" for m in ordered
    )


def log_options(settings: Settings, folder: Path) -> LogOptions | None:
    """For the gates' side streams; None where no relay takes mail. *folder*: where the configuration is."""
    if not settings.relay.takes_mail:
        return None
    return LogOptions(
        urls=log_urls(settings),
        tls=str(folder / "tls"),
        relay_key=str(folder / "relay.key"),
        segment=settings.segment,
        replicas=3 if len(settings.machines) >= 3 else 1,
    )


class RelayGate(Gate):
    """The gates' process of a relay."""

    def __init__(self, settings: Settings, log: LogOptions) -> None:
        """Raises ConfigurationError."""
        super().__init__(settings)
        relay = settings.relay
        self._places = {"milter_fd": Place.parse(relay.milter), "policy_fd": Place.parse(relay.policy)}
        if relay.straight_port:
            self._places["straight_fd"] = Place.parse(STRAIGHT)
        self._options = GateOptions(
            machine=settings.machine,
            agent_socket=str(settings.control_socket),
            barrier_seconds=settings.gate.barrier_seconds,
            parent=self._options.parent,
            log=log,
            relay=RelayOptions(
                mode=relay.mode,
                folder=str(settings.state / FOLDER),
                tables=TABLES,
                control=str(settings.run / CONTROL),
                hold_days=relay.hold_days,
                list_hours=relay.list_hours,
                straight_to=straight_to(settings),
            ),
        )


def relay_view(settings: Settings, now: float) -> RelayView | None:
    """What this machine's beats say of it as a relay that takes mail; None when it is none."""
    if settings.me.role != "relay" or not settings.relay.takes_mail:
        return None
    return read_view(settings.state / FOLDER, now)


class Relaying:
    """Of one event loop."""

    def __init__(self, gate: Gate, postfix: Service, main_cf: Path, history: History) -> None:
        self._gate, self._postfix, self._main_cf, self._history = gate, postfix, main_cf, history
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="relaying")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._gate.stop()

    async def _run(self) -> None:
        said = ""
        while True:
            try:
                await self._gate.start()
                await self._keep_postfix()
                said = ""
            except (HoldfastError, OSError) as error:
                if str(error) != said:  # once, and not every five seconds
                    said = str(error)
                    _log.error("%s", error)
                    self._history.record("the relay does not take mail", said)
            await asyncio.sleep(LOOK_SECONDS)

    async def _keep_postfix(self) -> None:
        if not _ours(self._main_cf):
            raise ConfigurationError(
                f"{self._main_cf} is not the relay's", hint="Look at `holdfast relay configure --dry-run`, then do it."
            )
        if not await self._postfix.running():
            await self._postfix.prepare()
            await self._postfix.start()
            self._history.record("postfix started", "it did not run")


def _ours(main_cf: Path) -> bool:
    """Another one would be an open door, or know nothing of the log."""
    try:
        return "holdfast relay configure" in main_cf.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return False
