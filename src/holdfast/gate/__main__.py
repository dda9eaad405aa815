"""``python -m holdfast.gate``: the LMTP gate's process, a child of the agent. SIGTERM ends it; clients come again."""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import logging
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Final

from holdfast.errors import ExitStatus, HoldfastError
from holdfast.gate.barrier import AgentBarrier, SharedBarrier
from holdfast.gate.deliveries import Deliveries
from holdfast.gate.serve import LmtpGate, Place
from holdfast.gate.store import DovecotLookup, PostfixFlush
from holdfast.mail.commands import SystemCommands

PR_SET_PDEATHSIG: Final = 1


def _end_with(parent: int) -> None:
    """Get SIGTERM when *parent* ends, also if it has ended already (prctl(2))."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)


async def _serve(options: argparse.Namespace) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    agent = AgentBarrier(options.agent, options.barrier_seconds)
    deliveries = Deliveries(options.journal, time.time)
    if deliveries.damaged_lines:
        logging.warning("the journal of deliveries has %d damaged lines", deliveries.damaged_lines)
    gate = LmtpGate(
        server=Place.parse(options.server),
        deliveries=deliveries,
        barrier=SharedBarrier(agent),
        in_store=DovecotLookup(SystemCommands(), tuple(options.doveadm.split())),
        flush=PostfixFlush(SystemCommands()),
    )
    await gate.start(socket.socket(fileno=options.listen_fd))
    print("ready", flush=True)
    await gate.flush()  # what a gate before this one could not take
    await stop.wait()
    await gate.stop()
    await agent.close()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m holdfast.gate", description=__doc__)
    parser.add_argument("--listen-fd", required=True, type=int, help="an open listening socket: Postfix delivers there")
    parser.add_argument("--server", required=True, metavar="ADDRESS", help="Dovecot's LMTP, unix:/path or HOST:PORT")
    parser.add_argument("--journal", required=True, type=Path, metavar="FOLDER", help="in a protected tree")
    parser.add_argument("--agent", required=True, type=Path, metavar="SOCKET", help="the agent's socket")
    parser.add_argument("--barrier-seconds", type=float, default=30.0)
    parser.add_argument("--doveadm", default="doveadm", help="the program, with its options")
    parser.add_argument("--parent", type=int, default=0, metavar="PROCESS", help="end with this one")
    options = parser.parse_args()
    if options.parent:
        _end_with(options.parent)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    try:
        asyncio.run(_serve(options))
    except HoldfastError as error:
        logging.error("%s", error)
        return int(error.exit_status)
    return int(ExitStatus.DONE)


if __name__ == "__main__":
    sys.exit(main())
