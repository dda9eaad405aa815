"""The gate's process, beside the services: started with them, ended with them, started again when it dies.

It is a child that ends with the agent: without an agent there is no barrier, and Postfix keeps what it cannot deliver.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import pwd
import socket
import sys
from pathlib import Path
from typing import Final

from holdfast.errors import HoldfastError
from holdfast.gate.serve import Place, listening_at
from holdfast.trees.spec import TreeSpec

READY_SECONDS_MAX: Final = 20.0
STOP_SECONDS_MAX: Final = 3.0
AGAIN_SECONDS: Final = 0.5
TREE: Final = "deliveries"
_log = logging.getLogger("holdfast.gate")


def journal_tree(state: Path) -> TreeSpec:
    """The tree that holds the journal of deliveries: a standby has it with the mailboxes it belongs to."""
    return TreeSpec(name=TREE, root=str(state / TREE), append=("deliveries-*",))


def _postfix() -> tuple[int, int] | None:
    """Postfix's user, who opens the socket; None where there is none: root alone can open it then."""
    try:
        found = pwd.getpwnam("postfix")
    except KeyError:
        return None
    return found.pw_uid, found.pw_gid


class Gate:
    """The LMTP gate of this machine: on while the machine serves."""

    def __init__(self, *, listen: Place, server: str, journal: Path, agent: Path, barrier_seconds: float) -> None:
        self._argv = (
            sys.executable, "-m", "holdfast.gate",
"--server", server, "--journal", str(journal), "--agent", str(agent),
            "--barrier-seconds", str(barrier_seconds), "--parent", str(os.getpid()),
        )  # fmt: skip
        self._place = listen
        self._socket: socket.socket | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._watching: asyncio.Task[None] | None = None

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    def open(self) -> None:
        """Listen: who connects from now on waits for the process. A refused connection would make Postfix put all
        deliveries off for minutes. Raises EnvironmentUnfit."""
        if self._socket is None:
            self._socket = listening_at(self._place, _postfix())

    async def start(self) -> None:
        """Start it and wait until it serves. Raises HoldfastError."""
        if self._watching is not None:
            return
        self.open()
        await self._start()
        self._watching = asyncio.create_task(self._keep(), name="gate")

    async def _start(self) -> None:
        assert self._socket is not None
        process = await asyncio.create_subprocess_exec(
            *self._argv,
            "--listen-fd",
            str(self._socket.fileno()),
            pass_fds=(self._socket.fileno(),),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        self._process = process
        assert process.stdout is not None
        try:
            said = await asyncio.wait_for(process.stdout.readline(), READY_SECONDS_MAX)
        except TimeoutError:
            said = b""
        if said != b"ready\n":
            await self._end()
            raise HoldfastError(
                "the LMTP gate did not start",
                hint="The agent's log says why. Until it runs, Postfix keeps what it cannot deliver: nothing is lost.",
                retry=True,
            )

    async def _keep(self) -> None:
        while True:
            assert self._process is not None
            status = await self._process.wait()
            _log.error("the LMTP gate ended with status %s; it is started again", status)
            while not self.running:
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
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    async def _end(self) -> None:
        process, self._process = self._process, None
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
