"""What is really there: mailboxes, queue and shadows of this machine, for the ledger's report."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Final
from urllib.parse import unquote

from holdfast.errors import HoldfastError
from holdfast.gate.options import LogOptions
from holdfast.gate.queue import PostfixQueue
from holdfast.gate.shadow_files import standing_in
from holdfast.gate.shadow_stream import StreamShadows
from holdfast.gate.side import SideStreams
from holdfast.ledger.report import Surviving
from holdfast.log.side import SHADOWS
from holdfast.mail.port import Commands

FETCH_SECONDS_MAX: Final = 300.0
"""A mailbox of 100,000 messages whose headers are not cached is read in a minute."""
RELAYS_SECONDS_MAX: Final = 20.0
AT_ONCE: Final = 2
"""Dovecot serves people meanwhile."""
_NO_USER: Final = 67
"""EX_NOUSER of sysexits.h, as doveadm(1) exits."""
_FIELD: Final = "hdr.holdfast-delivery="


class Survey:
    """Of one machine."""

    def __init__(
        self,
        commands: Commands,
        machine: str,
        shadows: Path | None,
        doveadm: tuple[str, ...] = ("doveadm",),
        log: LogOptions | None = None,
    ) -> None:
        """*shadows*: their folder; None where the milter is off: nothing waits that we know of. *log*: where relays'
        shadows are; None where no relay takes mail."""
        self._commands, self._machine, self._shadows, self._doveadm = commands, machine, shadows, doveadm
        self._log = log

    async def __call__(self, recipients: Collection[str], *, days: float, store_at: int = 0) -> Surviving:
        """*recipients* as they stand in the ledger; messages saved within *days*."""
        places = asyncio.Semaphore(AT_ONCE)

        async def look(recipient: str) -> tuple[str, frozenset[str] | None]:
            async with places:
                return recipient, await self.mailbox(recipient, days)

        # In this order: what leaves the queue meanwhile is in a mailbox when that is looked at.
        shadows = await asyncio.to_thread(self._standing)
        if self._log is not None and shadows is not None:
            at_relays = await _at_relays(self._log, self._machine)
            shadows = None if at_relays is None else shadows | at_relays
        queue = await self._queue()
        boxes = dict(await asyncio.gather(*(look(recipient) for recipient in sorted(recipients))))
        return Surviving(mailboxes=boxes, shadows=shadows, queue=queue, machine=self._machine, store_at=store_at)

    async def mailbox(self, recipient: str, days: float) -> frozenset[str] | None:
        """Delivery ids in all folders of *recipient*; None: it could not be looked at. Who does not exist has none."""
        user = unquote(recipient, errors="surrogateescape")
        query = ["HEADER", "Holdfast-Delivery", "", "SAVEDSINCE", f"{int(days) + 1}days"]
        argv = [*self._doveadm, "-f", "flow", "fetch", "-u", user, "hdr.holdfast-delivery", *query]
        try:
            result = await self._commands.run(argv, timeout_seconds=FETCH_SECONDS_MAX)
        except HoldfastError:
            return None
        if result.exit_status == _NO_USER:
            return frozenset()
        if not result.ok:
            return None
        return frozenset(
            word.removeprefix(_FIELD)
            for line in result.output.splitlines()
            if (word := line.strip()).startswith(_FIELD) and len(word) > len(_FIELD)
        )

    def _standing(self) -> frozenset[str] | None:
        if self._shadows is None:
            return frozenset()
        try:
            return frozenset(shadow.delivery for shadow in standing_in(self._shadows))
        except OSError:
            return None

    async def _queue(self) -> frozenset[str]:
        try:
            queue = await PostfixQueue.found(self._commands)
            return await asyncio.to_thread(queue.ids)
        except (HoldfastError, OSError):
            return frozenset()  # a shadow stands for each of them


async def _at_relays(log: LogOptions, machine: str) -> frozenset[str] | None:
    """Delivery ids of what relays have accepted and not handed on. None: the log does not say."""
    sides = SideStreams(log, machine)
    try:
        async with asyncio.timeout(RELAYS_SECONDS_MAX):
            with tempfile.TemporaryDirectory() as spool:
                store = StreamShadows(sides.stream(SHADOWS), machine, Path(spool))
                return frozenset(shadow.delivery for shadow in await store.standing())
    except (HoldfastError, TimeoutError):
        return None
    finally:
        await sides.close()
