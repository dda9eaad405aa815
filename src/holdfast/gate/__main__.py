"""``python -m holdfast.gate MACHINE``: the gates' process, a child of the agent, which tells it what to do
(`holdfast.gate.begin`). SIGTERM ends it."""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Final

from holdfast import priority
from holdfast.errors import ExitStatus, HoldfastError
from holdfast.gate.accept import ShadowMilter
from holdfast.gate.barrier import AgentBarrier, PatientBarrier, SharedBarrier
from holdfast.gate.begin import hear
from holdfast.gate.dav import DavGate
from holdfast.gate.deliveries import Deliveries
from holdfast.gate.imap import ImapSession
from holdfast.gate.keeper import Keeper
from holdfast.gate.noting import NotedBarrier, Unlogged
from holdfast.gate.options import GateOptions
from holdfast.gate.passing import PassingGate
from holdfast.gate.queue import PostfixQueue, flush
from holdfast.gate.read_only import ReadOnlyMark, Refuses, never
from holdfast.gate.relay_process import serve_relay, serve_relays
from holdfast.gate.serve import LmtpGate, Place
from holdfast.gate.shadow_files import FileShadows
from holdfast.gate.sieve import SieveSession
from holdfast.gate.store import DovecotLookup
from holdfast.gate.unsynced import Unsynced
from holdfast.ledger.book import Book, Limits
from holdfast.log.link import tls_context
from holdfast.log.trust import TlsFiles
from holdfast.mail.commands import SystemCommands

PR_SET_PDEATHSIG: Final = 1


def _end_with(parent: int) -> None:
    """Get SIGTERM when *parent* ends, also if it has ended already (prctl(2))."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)


async def _serve(options: GateOptions) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    if options.relay is not None:
        await serve_relay(options, stop)
        return
    agent = AgentBarrier(Path(options.agent_socket), options.barrier_seconds)
    unsynced = Unsynced()
    limits = Limits(options.ledger_days, options.ledger_bytes)
    book = Book(Path(options.ledger), options.machine, time.time, limits, unsynced.wrote)
    barrier = SharedBarrier(Unlogged(book) if options.stand_in else NotedBarrier(agent, book, unsynced))
    refuses = _refuses(options)
    async with AsyncExitStack() as gates:
        gates.push_async_callback(agent.close)
        milter: ShadowMilter | None = None
        if options.lmtp_fd:
            gate = _lmtp(options, barrier, book, unsynced, refuses)
            gates.push_async_callback(gate.stop)
            await gate.start(socket.socket(fileno=options.lmtp_fd))
            if options.straight_fd and options.log is not None and options.relays is not None:
                files = TlsFiles.inside(Path(options.log.tls))
                links = frozenset(f"holdfast:machine/{name}" for name in options.relays.names)
                context = tls_context(files, server=True)
                await gate.start_straight(socket.socket(fileno=options.straight_fd), context, links)
        if options.milter_fd:
            queue = await PostfixQueue.found(SystemCommands())
            milter = ShadowMilter(
                FileShadows(Path(options.shadows), options.machine, barrier.wait),
                queue,
                book,
                subjects=options.ledger_subjects,
                relays=frozenset(options.relays.addresses if options.relays else ()),
                adopts_at_start=not options.stand_in,
                adopts_own=not options.stand_in,
                refuses=refuses,
            )
            gates.push_async_callback(milter.stop)
            await milter.start(socket.socket(fileno=options.milter_fd))
            if options.relays is not None and options.log is not None:
                await serve_relays(options, milter, book, barrier, gates)
        deliveries = bool(options.lmtp_fd or options.milter_fd)
        if deliveries:
            keeper = Keeper(book, barrier, options, milter)
            gates.push_async_callback(keeper.stop)
            keeper.start()
        patient = PatientBarrier(barrier, options.barrier_seconds)
        for made, listening in _holding(options, patient, refuses):
            gates.push_async_callback(made.stop)
            await made.start(socket.socket(fileno=listening))
        print("ready", flush=True)
        if deliveries:
            await _flush()  # what a gate before this one could not take
        await stop.wait()


async def _flush() -> None:
    """A Postfix that is not there, or not running, tries by itself when it starts."""
    try:
        await flush(SystemCommands())
    except HoldfastError as error:
        logging.info("the queue was not told to come: %s", error.message)


def _refuses(options: GateOptions) -> Refuses:
    if not options.read_only:
        return never
    mark = ReadOnlyMark(Path(options.read_only))
    return lambda: mark.present


def _holding(
    options: GateOptions, barrier: PatientBarrier, refuses: Refuses
) -> Iterator[tuple[PassingGate | DavGate, int]]:
    """The gates that pass bytes and hold answers, each with the number of its listening socket."""
    if options.imap_fd:
        yield PassingGate("IMAP gate", partial(ImapSession, refuses), barrier), options.imap_fd
    if options.sieve_fd:
        yield PassingGate("ManageSieve gate", partial(SieveSession, refuses), barrier), options.sieve_fd
    if options.dav_fd:
        yield DavGate(Place.parse(options.dav_server), barrier, refuses), options.dav_fd


def _lmtp(options: GateOptions, barrier: SharedBarrier, book: Book, unsynced: Unsynced, refuses: Refuses) -> LmtpGate:
    deliveries = Deliveries(Path(options.journal), time.time, wrote=unsynced.wrote)
    if deliveries.damaged_lines:
        logging.warning("the journal of deliveries has %d damaged lines", deliveries.damaged_lines)
    return LmtpGate(
        server=Place.parse(options.lmtp_server),
        deliveries=deliveries,
        barrier=barrier,
        in_store=DovecotLookup(SystemCommands()),
        flush=_flush,
        book=book,
        refuses=refuses,
    )


def main() -> int:
    options = hear()
    if options is None:
        return int(ExitStatus.DONE)
    if options.parent:
        _end_with(options.parent)
    priority.may_interrupt()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # two for each IMAP client
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    try:
        asyncio.run(_serve(options))
    except HoldfastError as error:
        logging.error("%s", error)
        return int(error.exit_status)
    return int(ExitStatus.DONE)


if __name__ == "__main__":
    sys.exit(main())
