"""The gates' process, beside the services: started with them, ended with them, started again when it dies.

It is a child that ends with the agent: without an agent there is no barrier, and Postfix keeps what it cannot deliver.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import os
import pwd
import select
import socket
import subprocess
import sys
from pathlib import Path
from typing import Final

import msgspec

from holdfast.errors import HoldfastError
from holdfast.gate.begin import channel, tell
from holdfast.gate.options import GateOptions, LogOptions, RelaysOptions
from holdfast.gate.queue import PostfixQueue
from holdfast.gate.serve import Place, listening_at
from holdfast.gate.shadow_files import PART, FileShadows
from holdfast.mail.commands import SystemCommands
from holdfast.node.settings import Settings
from holdfast.node.stand_in import end_stand_in, note_stand_in, stand_in_runs
from holdfast.trees.spec import TreeSpec

READY_SECONDS_MAX: Final = 20.0
STOP_SECONDS_MAX: Final = 3.0
AGAIN_SECONDS: Final = 0.5
DELIVERIES: Final = "deliveries"
SHADOWS: Final = "shadows"
OF_POSTFIX: Final = frozenset({"lmtp_fd", "milter_fd", "policy_fd", "straight_fd"})
"""The sockets that Postfix opens; all others are for root alone."""
STRAIGHT: Final = "straight_fd"
LEDGER: Final = "ledger"
GATE_TREES: Final = frozenset({DELIVERIES, SHADOWS, LEDGER})
LEDGER_VIEW: Final = "ledger.json"
RELAY_SPOOL: Final = "relay-spool"
_log = logging.getLogger("holdfast.gate")


def gate_trees(settings: Settings) -> tuple[TreeSpec, ...]:
    """What the gates know of deliveries and of the queue: a standby has it with the mailboxes it belongs to."""
    trees = []
    if settings.gate.lmtp:
        trees.append(TreeSpec(name=DELIVERIES, root=str(settings.state / DELIVERIES), append=("deliveries-*",)))
        root = str(settings.state / LEDGER)
        trees.append(TreeSpec(name=LEDGER, root=root, append=("ledger-*",), exclude=("*.tmp",)))
    if settings.gate.milter:
        trees.append(TreeSpec(name=SHADOWS, root=str(settings.state / SHADOWS), exclude=("*" + PART,)))
    return tuple(trees)


def relays_options(settings: Settings) -> RelaysOptions | None:
    """For a machine that holds mail; None where no relay takes any."""
    relay = settings.relay
    if not relay.takes_mail:
        return None
    return RelaysOptions(
        names=tuple(machine.name for machine in settings.relays),
        addresses=tuple(
            str(ipaddress.ip_address(text))
            for text in (*(machine.address for machine in settings.relays), *relay.also_from)
        ),
        adopt_seconds=relay.adopt_seconds,
        hold_bytes=relay.hold_bytes,
        spool=str(settings.state / RELAY_SPOOL),
        lmtp=settings.gate.lmtp if relay.straight_port else "",
        milter=settings.gate.milter,
    )


def _postfix() -> tuple[int, int] | None:
    """Postfix's user, who opens the socket; None where there is none: root alone can open it then."""
    try:
        found = pwd.getpwnam("postfix")
    except KeyError:
        return None
    return found.pw_uid, found.pw_gid


class Gate:
    """The gates of this machine: on while it serves."""

    def __init__(self, settings: Settings, log: LogOptions | None = None) -> None:
        """*log*: needed where relays take mail. Raises ConfigurationError."""
        gate = settings.gate
        places = {"lmtp": gate.lmtp, "milter": gate.milter, "imap": gate.imap, "sieve": gate.sieve, "dav": gate.dav}
        self._places = {f"{name}_fd": Place.parse(text) for name, text in places.items() if text}
        if settings.relay.takes_mail and settings.relay.straight_port:
            # "::" listens for IPv4, too (ipv6(7)), and is not there on a machine without IPv6.
            anywhere = "::" if any(":" in address for address in settings.service.addresses) else "0.0.0.0"
            self._places[STRAIGHT] = Place("", anywhere, settings.relay.straight_port)
        self._shadows = settings.state / SHADOWS
        self._run = settings.run
        self._options = GateOptions(
            machine=settings.machine,
            agent_socket=str(settings.control_socket),
            barrier_seconds=gate.barrier_seconds,
            parent=os.getpid(),
            read_only=str(settings.run) if settings.failover.without_quorum == "read-only" else "",
            lmtp_server=gate.lmtp_server,
            dav_server=gate.dav_server,
            journal=str(settings.state / DELIVERIES),
            shadows=str(self._shadows),
            ledger=str(settings.state / LEDGER),
            ledger_days=gate.ledger_days,
            ledger_bytes=gate.ledger_bytes,
            ledger_subjects=gate.ledger_subjects,
            ledger_view=str(settings.run / LEDGER_VIEW),
            log=log,
            relays=None if log is None else relays_options(settings),
        )
        self._sockets: dict[str, socket.socket] = {}
        self._process: asyncio.subprocess.Process | None = None
        self._channel: socket.socket | None = None
        """To a process that waits to be told what to do."""
        self._starting = asyncio.Lock()
        self._watching: asyncio.Task[None] | None = None

    @property
    def running(self) -> bool:
        """A process is there; it serves, or waits to be told to."""
        return self._process is not None and self._process.returncode is None

    @property
    def serving(self) -> bool:
        return self.running and self._channel is None

    def open(self) -> None:
        """Listen: who connects from now on waits for the process. A refused connection would make Postfix put all
        deliveries off for minutes. Raises EnvironmentUnfit."""
        end_stand_in(self._run)
        for name, place in self._places.items():
            if name not in self._sockets:
                self._sockets[name] = listening_at(place, _postfix() if name in OF_POSTFIX else None)

    async def before_mail(self) -> None:
        """Throw out of this machine's queue what another has taken over meanwhile. Raises HoldfastError, OSError."""
        if "milter_fd" not in self._places or not self._shadows.is_dir():
            return
        taken = await FileShadows(self._shadows, self._options.machine).taken_from_here()
        if taken:
            queue = await PostfixQueue.found(SystemCommands())
            await queue.throw_out(taken & await asyncio.to_thread(queue.ids))

    async def start(self) -> None:
        """Start it and wait until it serves. Raises HoldfastError."""
        if self._watching is not None:
            return
        self.open()
        await self._start()
        self._watching = asyncio.create_task(self._keep(), name="gate")

    async def warm(self) -> tuple[str, ...]:
        """Have a process ready that has only to be told to begin; what was done, in sentences. Raises OSError."""
        async with self._starting:
            if self.running:
                return ()
            await self._launch()
        return ("the gates' process is ready to begin",)

    async def _launch(self) -> None:
        here, there = channel()
        with there:
            self._process = await asyncio.create_subprocess_exec(
                *self._argv, stdin=there.fileno(), stdout=asyncio.subprocess.PIPE, start_new_session=True
            )
        self._channel = here

    async def _start(self) -> None:
        async with self._starting:
            if self.running and await self._begun():
                return
            await self._launch()  # none was ready, or it has just died
            if await self._begun():
                return
        raise HoldfastError(
            "the gates did not start",
            hint="The agent's log says why. Until it runs, Postfix keeps what it cannot deliver: nothing is lost.",
            retry=True,
        )

    async def _begun(self) -> bool:
        """Tell the process what to do, and wait until it does it; ended if it does not."""
        process, here = self._process, self._channel
        assert process is not None
        assert process.stdout is not None
        assert here is not None
        self._channel = None
        said = b""
        with contextlib.suppress(TimeoutError, OSError):
            with here:
                tell(here, self._options, self._sockets)
            said = await asyncio.wait_for(process.stdout.readline(), READY_SECONDS_MAX)
        if said != b"ready\n":
            await self._end()
        return said == b"ready\n"

    @property
    def _argv(self) -> tuple[str, ...]:
        return (sys.executable, "-m", "holdfast.gate", self._options.machine)

    def stand_in(self, log: Path) -> None:
        """Start the gates of a machine whose agent does not run yet, unless they do; they outlive this process. What
        they say goes to *log*. Raises HoldfastError, OSError."""
        if stand_in_runs(self._run):
            return
        self._run.mkdir(parents=True, exist_ok=True)
        self._places.pop(STRAIGHT, None)  # what a relay holds is safe there, and would not be here
        self.open()
        alone = msgspec.structs.replace(self._options, stand_in=True, parent=0, log=None, read_only="")
        here, there = channel()
        with log.open("ab") as told, there:  # not asyncio's: that kills its children when its loop ends
            process = subprocess.Popen(
                self._argv, stdin=there.fileno(), stdout=subprocess.PIPE, stderr=told, start_new_session=True
            )
        with here:
            tell(here, alone, self._sockets)
        self._close()
        assert process.stdout is not None
        with process.stdout as said:
            readable, _, _ = select.select([said], [], [], READY_SECONDS_MAX)
            if not readable or said.readline() != b"ready\n":
                process.kill()
                process.wait()
                raise HoldfastError("the gates did not start", hint=f"{log} says why.")
        note_stand_in(self._run, process.pid)

    async def _keep(self) -> None:
        while True:
            assert self._process is not None
            status = await self._process.wait()
            _log.error("the gates' process ended with status %s; it is started again", status)
            while not self.serving:
                await asyncio.sleep(AGAIN_SECONDS)
                try:
                    await self._start()
                except (HoldfastError, OSError) as error:
                    _log.error("%s", error)

    async def stop(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
            self._watching = None
        await self._end()
        self._close()

    def _close(self) -> None:
        for opened in self._sockets.values():
            opened.close()
        self._sockets.clear()

    async def _end(self) -> None:
        process, self._process = self._process, None
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), STOP_SECONDS_MAX)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
