"""The real :class:`~holdfast.mail.port.Commands`: asyncio subprocesses, each in its own session, all with deadlines."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import signal
import tempfile
import time
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from holdfast.mail.port import CommandResult

OUTPUT_BYTES_MAX: Final = 16 << 20
"""``doveadm user '*'`` with 100,000 accounts is about 3 MB; nothing else comes near."""
NOT_FOUND: Final = 127
"""What a shell says for a program that is not there; 126 for one that must not be run."""
_PIECE_BYTES: Final = 1 << 16


class SystemCommands:
    """Runs programs of this machine with ``LC_ALL=C`` (their words are parsed) and no terminal."""

    async def run(
        self,
        argv: Sequence[str],
        *,
        timeout_seconds: float,
        stdin: bytes = b"",
        environment: Mapping[str, str] | None = None,
    ) -> CommandResult:
        began = time.monotonic()
        try:
            process = await asyncio.create_subprocess_exec(
                *argv,
                stdin=PIPE if stdin else DEVNULL,
                stdout=PIPE,
                stderr=PIPE,
                env=_environment(environment),
                start_new_session=True,
                limit=OUTPUT_BYTES_MAX,
            )
        except OSError as error:
            return _not_run(argv, error, began)
        try:
            async with asyncio.timeout(timeout_seconds):
                if stdin and process.stdin is not None:
                    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                        process.stdin.write(stdin)
                        await process.stdin.drain()
                    process.stdin.close()
                (output, over), (errors, _) = await asyncio.gather(_read(process.stdout), _read(process.stderr))
                if over:
                    _end(process)
                await process.wait()
        except TimeoutError:
            _end(process)
            await process.wait()
            return _result(argv, process, b"", b"", began, timed_out=True)
        except asyncio.CancelledError:
            _end(process)
            raise
        return _result(argv, process, output, errors, began, too_big=over)

    async def capture(
        self, argv: Sequence[str], target: Path, *, timeout_seconds: float, bytes_max: int
    ) -> CommandResult:
        began = time.monotonic()
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with open(descriptor, "wb") as file:
            try:
                process = await asyncio.create_subprocess_exec(
                    *argv, stdin=DEVNULL, stdout=PIPE, stderr=PIPE, env=_environment(None), start_new_session=True
                )
            except OSError as error:
                return _not_run(argv, error, began)
            errors, over = b"", False
            reader = asyncio.create_task(_read(process.stderr))
            try:
                async with asyncio.timeout(timeout_seconds):
                    over = await _pour(process, file.write, bytes_max)
                    if over:
                        _end(process)
                    await process.wait()
                    errors, _ = await reader
            except TimeoutError:
                _end(process)
                await process.wait()
                return _result(argv, process, b"", b"", began, timed_out=True)
            except (asyncio.CancelledError, OSError):
                _end(process)
                raise
            finally:
                reader.cancel()
            file.flush()
            os.fsync(descriptor)
        return _result(argv, process, b"", errors, began, too_big=over)

    async def launch(self, argv: Sequence[str], *, timeout_seconds: float) -> CommandResult:
        began = time.monotonic()
        with tempfile.TemporaryFile() as said:
            try:
                process = await asyncio.create_subprocess_exec(
                    *argv, stdin=DEVNULL, stdout=said, stderr=said, env=_environment(None), start_new_session=True
                )
            except OSError as error:
                return _not_run(argv, error, began)
            timed_out = False
            try:
                async with asyncio.timeout(timeout_seconds):
                    await process.wait()
            except TimeoutError:
                timed_out = True
                _end(process)
                await process.wait()
            except asyncio.CancelledError:
                _end(process)
                raise
            said.seek(0)
            return _result(argv, process, b"", said.read(_PIECE_BYTES), began, timed_out=timed_out)

    async def spawn(self, argv: Sequence[str], *, log: Path, user: str = "") -> int:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
        try:
            process = await asyncio.create_subprocess_exec(
                *argv,
                stdin=DEVNULL,
                stdout=descriptor,
                stderr=descriptor,
                env=_environment(None),
                start_new_session=True,
                user=user or None,
                group=_group_of(user),
                extra_groups=[] if user else None,
            )
        finally:
            os.close(descriptor)
        return process.pid


def _environment(extra: Mapping[str, str] | None) -> dict[str, str]:
    """PATH with the administrator's folders: an agent started by hand may lack them."""
    path = os.environ.get("PATH", "/usr/bin:/bin")
    for folder in ("/usr/sbin", "/sbin", "/usr/local/sbin"):
        if folder not in path.split(":"):
            path += ":" + folder
    return {**os.environ, "LC_ALL": "C", "PATH": path, **(extra or {})}


def _group_of(user: str) -> int | None:
    return pwd.getpwnam(user).pw_gid if user else None


async def _read(stream: asyncio.StreamReader | None) -> tuple[bytes, bool]:
    """Everything up to the limit, and whether there was more."""
    assert stream is not None
    pieces: list[bytes] = []
    size = 0
    while piece := await stream.read(_PIECE_BYTES):
        pieces.append(piece)
        size += len(piece)
        if size > OUTPUT_BYTES_MAX:
            return b"".join(pieces), True
    return b"".join(pieces), False


async def _pour(process: Process, write: Callable[[bytes], object], bytes_max: int) -> bool:
    """Standard output into *write*; True when it was more than *bytes_max*."""
    assert process.stdout is not None
    size = 0
    while piece := await process.stdout.read(_PIECE_BYTES):
        size += len(piece)
        if size > bytes_max:
            return True
        write(piece)
    return False


def _end(process: Process) -> None:
    """Kill the program with everything it started (it leads a session)."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _not_run(argv: Sequence[str], error: OSError, began: float) -> CommandResult:
    status = NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_FOUND - 1
    return CommandResult(tuple(argv), status, "", error.strerror or str(error), time.monotonic() - began)


def _result(
    argv: Sequence[str],
    process: Process,
    output: bytes,
    errors: bytes,
    began: float,
    *,
    timed_out: bool = False,
    too_big: bool = False,
) -> CommandResult:
    status = process.returncode if process.returncode is not None else -signal.SIGKILL
    return CommandResult(
        argv=tuple(argv),
        exit_status=status,
        output=output.decode("utf-8", "surrogateescape"),
        errors=errors.decode("utf-8", "replace"),
        seconds=time.monotonic() - began,
        timed_out=timed_out,
        too_big=too_big,
    )
