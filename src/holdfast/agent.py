"""The agent: the one place that builds real clocks, disks, sockets and processes, and wires the parts together.

Order of a start: configuration, identity, state directory, log server (a child), connection, control socket, node.
Order of an end (SIGTERM): node (what was seen is in the log), control socket, connection, log server. The mail services
and the address stay as they are: the supervisor calls ``holdfast release`` when nobody comes back (docs/operations).
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import random
import resource
import signal
import sys
import threading
import time
from collections.abc import Coroutine
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Final

import msgspec

from holdfast import __version__, priority
from holdfast.apply.applier import clean_marker
from holdfast.changes.names import Incarnation
from holdfast.errors import ExitStatus, HoldfastError, Refused
from holdfast.gate.read_only import ReadOnlyMark
from holdfast.log.anew import Anew, whole
from holdfast.log.bus import NatsBus
from holdfast.log.connection import Connection, LogConnection
from holdfast.log.jetstream import JetStreamLog, open_again, open_log, replace
from holdfast.log.leader import LeaderPin
from holdfast.log.port import NOBODY_KNOWN, Leaders, Log, LogUnavailable, Missing
from holdfast.log.server import LogServer
from holdfast.log.server_config import Peer, ServerSettings
from holdfast.log.side import SIDE_STREAMS
from holdfast.log.trust import describe
from holdfast.mail.commands import SystemCommands
from holdfast.mail.postfix import Postfix
from holdfast.mail.site import MailSite
from holdfast.memory import keep_freed
from holdfast.node.address import Addresses
from holdfast.node.address_command import CommandedAddresses
from holdfast.node.alarms import Alarms
from holdfast.node.alone import Alone, carry_out
from holdfast.node.control import Control
from holdfast.node.enrol import Folder
from holdfast.node.errands import write_manifest
from holdfast.node.gates import Gate, gate_trees
from holdfast.node.guard import Guard
from holdfast.node.history import History
from holdfast.node.local import LocalFile
from holdfast.node.node import Node
from holdfast.node.operations import Operations
from holdfast.node.rehearsal import Rehearsals
from holdfast.node.relaying import RelayGate, Relaying, log_options, log_urls
from holdfast.node.served import Served, ServedFile
from holdfast.node.serving import Serving
from holdfast.node.settings import Settings, load_settings
from holdfast.node.watchman import ADDRESS_SECONDS
from holdfast.node.world import Clocks, World
from holdfast.trees.spec import TreeSpec
from holdfast.trees.stat import Owners

_log = logging.getLogger("holdfast")
CONNECT_RETRY_SECONDS: Final = 1.0
ANSWERED_SECONDS: Final = 0.5
"""Who gave an order that ends the agent has the answer by then."""
OPEN_FILES_MAX: Final = 65_536
"""Directories and files in use are kept open. The unit file allows so many; a shell's 1024 serve fewer mailboxes."""
EXIT_BUG: Final = 70
"""EX_SOFTWARE of sysexits.h: the supervisor starts the agent again, its log has the traceback."""
WRITEBACK_SECONDS_MAX: Final = 600.0
"""The kernel writes dirty pages within 30 s (vm.dirty_expire_centisecs) and ext4 commits every 5 s; a slow disk and a
wrong clock get twenty times that."""


class JetStreamDoor:
    """The segment's log on one connection."""

    def __init__(
        self, settings: Settings, connection: Connection, steward: LogConnection | None, anew: Anew | None
    ) -> None:
        """*anew*: None when the log's servers are not ours."""
        self._settings = settings
        self._connection = connection
        self._steward = steward
        self._anew = anew
        self._log: JetStreamLog | None = None
        self._pin: LeaderPin | None = None

    async def open(self) -> Log | None:
        before = self._log
        try:
            if before is None:
                self._log = await open_log(self._connection, self._settings.segment_name)
            else:
                self._log = await open_again(before)
        except Missing:
            self._log = None
        if self._log is not before:
            self._pin = None
        return self._log

    async def found(self, expected: Incarnation | None, *, ordered: bool) -> Log:
        names = frozenset(str(machine.name) for machine in self._settings.machines)
        replicas = 3 if len(names) >= 3 else 1
        if self._anew is not None and replicas > 1 and not await whole(self._connection, names):
            await self._anew.order(names - {str(self._settings.machine)}, by_person=ordered)
            expected = None
        self._log = await replace(
            self._connection,
            self._settings.segment_name,
            expected=expected,
            replicas=replicas,
            bytes_max=self._settings.log.limit_bytes,
        )
        self._pin = None
        return self._log

    async def pin_leader(self) -> Leaders:
        if self._log is None:
            return NOBODY_KNOWN
        if self._pin is None:
            relays = self._settings.relays if self._settings.me.role == "mail" else ()
            sides = SIDE_STREAMS if relays and self._settings.relay.takes_mail else ()
            self._pin = LeaderPin(self._log, relays[0].name if relays else None, self._steward, sides=sides)
        return await self._pin.tick()


def _server_settings(settings: Settings, folder: Folder) -> ServerSettings:
    log = settings.log
    return ServerSettings(
        machine=settings.machine_name,
        site=settings.site,
        folder=settings.state / "log",
        tls=folder.tls_files(),
        address=settings.me.address,
        client_port=log.client_port,
        route_port=log.cluster_port,
        peers=tuple(Peer(m.address, log.cluster_port) for m in settings.machines if m.name != settings.machine),
        segments=(settings.segment_name,),
        binary=Path(log.program) if log.program else None,
    )


def _only_agent(settings: Settings) -> IO[str]:
    """Hold the lock that makes this the machine's only agent. Raises Refused."""
    lock = (settings.state / "agent.lock").open("a+")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        raise Refused(
            f"another agent runs on this machine (process {lock.read().strip() or 'unknown'})",
            hint="Stop it first: two agents would both write this machine's copy.",
        ) from None
    lock.truncate(0)
    lock.write(str(os.getpid()))
    lock.flush()
    return lock


def _relaying(settings: Settings, folder: Folder, history: History) -> Relaying | None:
    """None on machines that hold mail, and on relays that only store the log."""
    log = log_options(settings, folder.base)
    if settings.me.role != "relay" or log is None:
        return None
    state = str(settings.state)
    postfix = Postfix(settings.mail.postfix, SystemCommands(), state_directory=state, probe=settings.mail.probe)
    main_cf = Path(settings.mail.postfix.config_directory) / "main.cf"
    return Relaying(RelayGate(settings, log), postfix, main_cf, history)


def _addresses(settings: Settings) -> Addresses | CommandedAddresses:
    service = settings.service
    if service.command:
        given = (service.command, service.addresses, service.command_seconds, settings.outside_environment)
        return CommandedAddresses(*given)
    lease = ADDRESS_SECONDS if settings.failover.policy == "automatic" else None
    return Addresses(service.interface, service.addresses, lease_seconds=lease)


def _serving(settings: Settings, folder: Folder) -> Serving:
    service = settings.service
    return Serving(
        lambda: MailSite(settings.mail, SystemCommands()),
        _addresses(settings),
        ServedFile(
            settings.run,
            Served(
                service.interface,
                service.addresses,
                msgspec.to_builtins(settings.mail),
                service.command,
                service.command_seconds,
                tuple(settings.outside_environment.items()),
            ),
        ),
        Gate(settings, log_options(settings, folder.base)) if settings.gate.used else None,
        ReadOnlyMark(settings.run) if settings.failover.without_quorum == "read-only" else None,
    )


def _world(settings: Settings, folder: Folder, connection: Connection, bus: NatsBus, anew: Anew | None) -> World:
    mail_machine = settings.me.role == "mail"
    urls = log_urls(settings)
    steward = folder.tls_files().as_steward()
    serving = _serving(settings, folder)
    local = LocalFile(settings.state / "node.json")
    if mail_machine:
        _doubt_after_unclean_end(settings, local)

    history = History(settings.state / "history.jsonl", time.time)

    async def find_trees() -> tuple[TreeSpec, ...]:
        await write_manifest(serving.mail, history)
        protection = await serving.mail.protection()
        for warning in protection.warnings:
            _log.warning("discovery: %s", warning)
        return (*protection.trees, *gate_trees(settings))

    return World(
        settings=settings,
        door=JetStreamDoor(settings, connection, None if steward is None else LogConnection(urls, steward), anew),
        bus=bus,
        key=folder.read_segment_key() if mail_machine else None,
        owners=Owners(),
        history=history,
        local=local,
        serving=serving,
        clocks=Clocks(time.time, time.time_ns, time.monotonic),
        find_trees=find_trees,
        certificate_warning=lambda: describe(folder.tls_files().certificate).warning(datetime.now(UTC)),
        version=__version__,
        open_files_max=_allow_open_files(),
    )


def _allow_open_files() -> int:
    """Raise this process's limit of open files as far as it may, up to OPEN_FILES_MAX; the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = OPEN_FILES_MAX if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES_MAX)
    wanted = allowed if soft == resource.RLIM_INFINITY else max(soft, allowed)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return wanted


def _doubt_after_unclean_end(settings: Settings, local: LocalFile) -> None:
    """The last run did not stop in order, so power may have been cut: remember since when files are to be doubted.

    A filesystem may keep a file's new size and lose its new bytes: what had not been synced within the writeback time
    before the end. The index is written every second while something happens, so it tells when the end was.
    """
    index = settings.state / "index.db"
    if not index.exists() or clean_marker(index).exists():
        return
    wal = index.with_name(index.name + "-wal")
    last = max(path.stat().st_mtime_ns for path in (index, wal) if path.exists())
    since = last - int(WRITEBACK_SECONDS_MAX * 1e9)
    known = local.state.doubt_since_ns
    local.change(doubt_since_ns=min(since, known) if known else since)


def _records_connection(settings: Settings, folder: Folder, own: Connection) -> Connection:
    """For the log's records: to the server that leads the log, which is the relay's as long as it lives. Through this
    machine's own each frame would be received, sealed and sent once more on its way there, and the standby's on its way
    back: a fifth of the servers' work. Beats and orders stay on *own*: they need no leader."""
    relays = settings.relays
    if not (settings.log.embedded and relays) or settings.me in relays:
        return own
    urls = log_urls(settings, relays[0])
    return Connection.begin(LogConnection(urls, folder.tls_files(), name=f"{settings.machine} records"))


async def _connect(settings: Settings, folder: Folder) -> Connection:
    """The connection to the log's servers: tried until one answers, said once."""
    said = False
    while True:
        try:
            return await Connection.open(LogConnection(log_urls(settings), folder.tls_files(), name=settings.machine))
        except LogUnavailable as error:
            if not said:
                _log.warning("waiting for the log's servers: %s", error.message)
                said = True
            await asyncio.sleep(CONNECT_RETRY_SECONDS)


async def _unless_stopped(connecting: Coroutine[None, None, Connection], stop: asyncio.Event) -> Connection | None:
    """The connection; None when the agent is asked to end first: no server may ever answer."""
    tasks = asyncio.create_task(connecting), asyncio.create_task(stop.wait())
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    connected, asked = tasks
    asked.cancel()
    if connected.done():
        return connected.result()
    connected.cancel()
    await asyncio.gather(connected, return_exceptions=True)
    return None


def _end_on_bugs(loop: asyncio.AbstractEventLoop) -> None:
    """A thread or task that died of a bug would leave an agent that looks alive: the process ends, and is restarted."""

    def bug(text: str, error: BaseException | None) -> None:
        _log.critical("a bug: %s", text, exc_info=error)
        os._exit(EXIT_BUG)

    def in_task(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if isinstance(error, HoldfastError | OSError | ConnectionError) or error is None:
            _log.error("%s: %s", context.get("message"), error)  # the world, in a part that nobody waited for
        else:
            bug(str(context.get("message")), error)

    threading.excepthook = lambda arguments: bug("in a thread", arguments.exc_value)
    loop.set_exception_handler(in_task)


def _machine_started_at() -> float:
    """When process 1 was started, in seconds since 1970: the machine's, or its container's, last start (proc(5))."""
    fields = Path("/proc/1/stat").read_text().rpartition(")")[2].split()
    after_boot = int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + after_boot


async def _agent(settings: Settings, configuration: Path) -> None:
    folder = Folder(configuration.parent)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    _end_on_bugs(loop)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    server = LogServer(_server_settings(settings, folder)) if settings.log.embedded else None
    if server is not None:
        await server.start()
    try:
        connection = await _unless_stopped(_connect(settings, folder), stop)
        if connection is None:
            return
        bus = NatsBus(connection)
        anew = None
        if server is not None:
            anew = Anew(bus, settings.segment_name, settings.machine_name, server)
            await anew.serve()
        records = _records_connection(settings, folder, connection)
        node = Node(_world(settings, folder, records, bus, anew))
        guard = Guard(node, Operations(node))
        alarms = Alarms(node, SystemCommands())
        rehearsals = Rehearsals(node, SystemCommands(), random.Random())
        alone = Alone(node, configuration, lambda: loop.call_later(ANSWERED_SECONDS, stop.set))
        control = Control(node, guard, alarms, rehearsals, alone)
        await control.start(settings.control_socket, settings.metrics_port)
        await guard.start()
        alarms.start()
        rehearsals.start()
        relaying = _relaying(settings, folder, node.world.history)
        if relaying is not None:
            relaying.start()
        running = asyncio.create_task(node.run())
        stopping = asyncio.create_task(stop.wait())
        up = round(time.time() - _machine_started_at(), 1)
        node.world.history.record("agent started", f"version {__version__}", machine_up_seconds=up)
        await asyncio.wait({running, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        await rehearsals.stop()
        if relaying is not None:
            await relaying.stop()
        await node.stop()
        await running
        await guard.stop()
        await alarms.stop()
        node.world.history.record("agent stopped", "asked to")
        await control.stop()
        await bus.close()
        await records.close()
        await connection.close()
    finally:
        if server is not None:
            await server.stop()


def run_agent(configuration: Path) -> int:
    """Run until SIGTERM. The exit status."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    settings = load_settings(configuration)
    settings.state.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = _only_agent(settings)
    if done := carry_out(settings, LocalFile(settings.state / "node.json")):
        _log.warning("%s", done)
    priority.raised()
    try:
        asyncio.run(_agent(settings, configuration))
    except HoldfastError as error:
        _log.error("%s", error)
        return int(error.exit_status)
    finally:
        lock.close()
    return int(ExitStatus.DONE)


def main() -> int:
    """``python -m holdfast.agent CONFIGURATION``: what `holdfast agent` becomes."""
    keep_freed()
    try:
        return run_agent(Path(sys.argv[1]))
    except HoldfastError as error:
        print(f"holdfast: {error}", file=sys.stderr)
        return int(error.exit_status)


if __name__ == "__main__":
    sys.exit(main())
