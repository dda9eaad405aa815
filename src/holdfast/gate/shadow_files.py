"""Shadows as files in a protected tree: those of machines that hold mail.

::

    <directory>/<machine>.<queue id>.<delivery id>     one message
    <directory>/_taken.<machine>.<queue id>            empty: another machine has taken this message over
    <directory>/*.part                                 being written; never protected

A message's file is one line of JSON (``sender``, ``recipients``, both as in SMTP), then the message. A new primary has
the whole folder, because its tree is copied as the mail store is.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Collection, Iterator
from pathlib import Path
from typing import BinaryIO, Final

import msgspec

from holdfast.errors import HoldfastError
from holdfast.gate.shadows import Envelope, Shadow, checked_queue_id, full_disk

PART: Final = ".part"
TAKEN: Final = "_taken"
TAKEN_DAYS: Final = 60
"""A machine away for longer comes back with a queue that its Postfix has given up (5 days) anyway."""
_NAME: Final = re.compile(r"([a-z0-9-]{1,32})\.([0-9A-Za-z]{5,32})\.([0-9A-Za-z]{1,64})")
_TAKEN: Final = re.compile(r"_taken\.([a-z0-9-]{1,32})\.([0-9A-Za-z]{5,32})")


async def no_barrier() -> None:
    """For who only looks."""


class FileWriting:
    """A :class:`holdfast.gate.shadows.Writing`."""

    def __init__(
        self, directory: Path, machine: str, delivery: str, envelope: Envelope, barrier: Callable[[], Awaitable[None]]
    ) -> None:
        """Raises NoSpace."""
        self._directory, self._machine, self._delivery = directory, machine, delivery
        self._barrier = barrier
        self.left: Shadow | None = None
        # One id may come in several transactions at once: a relay splits a message with many recipients.
        self._part = directory / (f"{delivery}.{secrets.token_hex(4)}{PART}")
        self._file: BinaryIO | None = None
        with full_disk(directory):
            self._file = open(self._part, "xb", buffering=256 * 1024, opener=_private)  # noqa: SIM115  # closed by keep or drop
            self._file.write(msgspec.json.encode(envelope) + b"\n")

    def write(self, data: bytes) -> None:
        assert self._file is not None
        with full_disk(self._directory):
            self._file.write(data)

    async def keep(self, queue_id: str) -> Shadow:
        assert self._file is not None
        name = f"{self._machine}.{checked_queue_id(queue_id)}.{self._delivery}"
        with full_disk(self._directory):
            self._file.close()
            self._part.rename(self._directory / name)
        self._file = None
        try:
            await self._barrier()
        except HoldfastError:
            with full_disk(self._directory):
                (self._directory / name).unlink(missing_ok=True)
            raise
        return Shadow(name, self._machine, queue_id, self._delivery)

    def drop(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):  # a full disk: it goes anyway
                self._file.close()
            self._part.unlink(missing_ok=True)
            self._file = None


class FileShadows:
    """A :class:`holdfast.gate.shadows.ShadowStore`: the whole segment's, as they stand in *directory*."""

    def __init__(
        self,
        directory: Path,
        machine: str,
        barrier: Callable[[], Awaitable[None]] = no_barrier,
        wall_seconds: Callable[[], float] = time.time,
    ) -> None:
        """Raises HoldfastError."""
        self.directory, self.machine = directory, machine
        self._barrier = barrier
        self._wall_seconds = wall_seconds
        with self._readable():
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            for path in directory.glob("*" + PART):
                path.unlink()

    @contextlib.contextmanager
    def _readable(self, *, retry: bool = False) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            hint = "Mend the disk, then restart the agent."
            raise HoldfastError(f"{self.directory}: {error}", hint=hint, retry=retry) from None

    def path(self, shadow: Shadow) -> Path:
        return self.directory / shadow.name

    def write(self, delivery: str, envelope: Envelope) -> FileWriting:
        return FileWriting(self.directory, self.machine, delivery, envelope, self._barrier)

    async def standing(self) -> list[Shadow]:
        with self._readable():
            return standing_in(self.directory)

    async def accepted_at(self, shadow: Shadow) -> float:
        with self._readable():
            try:
                return self.path(shadow).stat().st_mtime
            except FileNotFoundError:
                return 0.0

    async def read(self, shadow: Shadow) -> tuple[Envelope, bytes]:
        with self._readable(retry=True):
            content = await asyncio.to_thread(self.path(shadow).read_bytes)
        head, _, message = content.partition(b"\n")
        try:
            return msgspec.json.decode(head, type=Envelope), message
        except msgspec.DecodeError as error:
            hint = "It stays where it is: look at it by hand."
            raise HoldfastError(f"{self.path(shadow)} is no shadow: {error}", hint=hint) from None

    async def settle(self, shadow: Shadow) -> None:
        with self._readable():
            self.path(shadow).unlink(missing_ok=True)

    async def take(self, shadow: Shadow) -> None:
        with self._readable():
            (self.directory / f"{TAKEN}.{shadow.machine}.{shadow.queue_id}").touch(mode=0o600)
            self.path(shadow).unlink(missing_ok=True)

    async def taken_from_here(self) -> frozenset[str]:
        """And old marks are dropped."""
        found = set()
        with self._readable():
            for path in self.directory.iterdir():
                match = _TAKEN.fullmatch(path.name)
                if match is None:
                    continue
                if self._wall_seconds() - path.stat().st_mtime > TAKEN_DAYS * 86400:
                    path.unlink(missing_ok=True)
                elif match[1] == self.machine:
                    found.add(match[2])
        return frozenset(found)

    async def thrown_out(self, queue_ids: Collection[str]) -> None:
        """Marks stay for their days: what is thrown out is looked for again at each start."""


def standing_in(directory: Path) -> list[Shadow]:
    """Whole ones, of all machines. Raises OSError."""
    names = sorted(path.name for path in directory.iterdir())
    matches = [match for match in map(_NAME.fullmatch, names) if match is not None]
    return [Shadow(match[0], match[1], match[2], match[3]) for match in matches]


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
