"""Postfix's queue, as the gates need it: which messages are in it, put one in, throw one out."""

from __future__ import annotations

import fcntl
import os
import stat
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from holdfast.errors import HoldfastError
from holdfast.files import write_once
from holdfast.gate.shadows import Envelope
from holdfast.mail.port import Commands

QUEUES: Final = ("maildrop", "incoming", "active", "deferred", "hold")
MARK: Final = "holdfast-queue"
COMMAND_SECONDS_MAX: Final = 60.0
LISTING_SECONDS_MAX: Final = 300.0
WRITTEN_SECONDS: Final = 5.0
"""A file that was written in the last seconds is being written."""
_AT_ONCE: Final = 1000


class QueuedRecipient(Struct, frozen=True):
    address: str
    delay_reason: str = ""


class Queued(Struct, frozen=True):
    """A message in the queue."""

    queue_name: str
    queue_id: str
    arrival_time: int
    """Seconds since 1970."""
    message_size: int
    sender: str
    recipients: tuple[QueuedRecipient, ...]
    """Those that do not have it yet."""


class PostfixQueue:
    """The queue of one Postfix: *directory* is its ``queue_directory``; *options* choose another configuration."""

    def __init__(self, commands: Commands, directory: Path, configuration: str = "") -> None:
        self._commands = commands
        self.directory = directory
        self._options = ("-c", configuration) if configuration else ()
        self._sendmail = ("sendmail", *(("-C", configuration) if configuration else ()))

    @classmethod
    async def found(cls, commands: Commands) -> PostfixQueue:
        """This machine's. Raises HoldfastError."""
        result = await commands.run(["postconf", "-h", "queue_directory"], timeout_seconds=COMMAND_SECONDS_MAX)
        if not result.ok:
            raise HoldfastError(f"Postfix's queue was not found: {result.words}", hint="Is Postfix installed?")
        return cls(commands, Path(result.output.strip()))

    def ids(self) -> frozenset[str]:
        """Queue ids of all messages, also of those that are still coming in. A message that moves meanwhile may be
        missed: ask twice. Raises OSError.

        Not of those that never came in whole because cleanup(8) was killed: their clients were told nothing.
        """
        found: set[str] = set()
        for name in QUEUES:
            for folder, folders, files in os.walk(self.directory / name):
                folders.sort()
                found.update(file for file in files if name != "incoming" or not _is_left(Path(folder, file)))
        return frozenset(found)

    def since(self) -> float:
        """When the gates first met this queue (seconds since 1970). A disk put in anew, or a machine rebuilt from a
        backup, has another queue than the one that accepted what stands in the shadows. Raises OSError."""
        mark = self.directory / MARK
        if not mark.exists():
            write_once(mark, b"Holdfast's gates: how old this queue is.\n")
        return mark.stat().st_mtime

    def started_at(self) -> float:
        """When this Postfix was started (seconds since 1970): master(8) writes its number then. 0: never."""
        try:
            return (self.directory / "pid" / "master.pid").stat().st_mtime
        except OSError:
            return 0.0

    async def listed(self) -> list[Queued]:
        """All messages, as Postfix lists them (postqueue(1), "JSON OBJECT FORMAT"). Raises HoldfastError."""
        result = await self._commands.run(["postqueue", *self._options, "-j"], timeout_seconds=LISTING_SECONDS_MAX)
        if not result.ok:
            raise HoldfastError(f"the queue cannot be listed: {result.words}", hint="Does Postfix run?", retry=True)
        return [msgspec.json.decode(line, type=Queued) for line in result.output.splitlines() if line]

    async def flush(self) -> None:
        """Try everything that was put off, now. Raises HoldfastError."""
        await flush(self._commands, self._options)

    async def hold_all(self) -> None:
        """Put everything that waits, and is not being delivered at this moment, on hold. Raises HoldfastError."""
        await _told(self._commands, ["postsuper", *self._options, "-h", "ALL"])

    async def release(self, ids: Iterable[str]) -> None:
        """From hold, to be delivered at the next :meth:`flush`. Raises HoldfastError."""
        await self._for_all(ids, "-H")

    async def put(self, envelope: Envelope, message: bytes) -> None:
        """Queue *message* (CR LF) as new mail with *envelope*. On return it is on disk. Raises HoldfastError."""
        argv = [*self._sendmail, "-G", "-i", "-f", envelope.sender_text(), "--", *envelope.recipient_texts()]
        result = await self._commands.run(
            argv, timeout_seconds=COMMAND_SECONDS_MAX, stdin=message.replace(b"\r\n", b"\n")
        )
        if not result.ok:
            raise HoldfastError(
                f"sendmail did not take a message: {result.words}", hint="Is Postfix whole?", retry=True
            )

    async def throw_out(self, ids: Iterable[str]) -> None:
        """Remove messages. Raises HoldfastError."""
        await self._for_all(ids, "-d")

    async def _for_all(self, ids: Iterable[str], option: str) -> None:
        left = sorted(ids)
        while left:
            some, left = left[:_AT_ONCE], left[_AT_ONCE:]
            stdin = "".join(f"{queue_id}\n" for queue_id in some).encode()
            await _told(self._commands, ["postsuper", *self._options, option, "-"], stdin)


def _is_left(file: Path) -> bool:
    """Whether cleanup(8) began *file* and was killed.

    It gives a queue file all rights of its owner when the message is whole, through the descriptor that it wrote with;
    before that no other program of Postfix takes the file for a message. What nobody has open cannot become one. While
    it is open, by whomever, the kernel grants no write lease (fcntl(2)); where it grants none at all, nothing is left.
    """
    try:
        about = file.stat()
        if about.st_mode & stat.S_IRWXU == stat.S_IRWXU or time.time() - about.st_mtime < WRITTEN_SECONDS:
            return False
        with file.open("rb") as opened:
            fcntl.fcntl(opened, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    except OSError:
        return False
    return True


async def flush(commands: Commands, options: Sequence[str] = ()) -> None:
    """Make the Postfix that *options* choose, this machine's without any, try everything that was put off, now.

    Raises HoldfastError.
    """
    await _told(commands, ["postqueue", *options, "-f"])


async def _told(commands: Commands, argv: list[str], stdin: bytes = b"") -> None:
    result = await commands.run(argv, timeout_seconds=COMMAND_SECONDS_MAX, stdin=stdin)
    if not result.ok:
        raise HoldfastError(f"{argv[0]} failed: {result.words}", hint="Does Postfix run?", retry=True)
