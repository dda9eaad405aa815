"""The real :class:`~holdfast.mail.port.Commands`: subprocesses in sessions of their own, all with deadlines and limits.

Output goes to files, never to pipes: a daemon that keeps its starter's output open, or a program that writes faster
than it is read, would otherwise hold up the wait for its end.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import resource
import signal
import tempfile
import time
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Final

from holdfast import priority
from holdfast.mail.port import CommandResult

OUTPUT_BYTES_MAX: Final = 16 << 20
"""``doveadm user '*'`` with 100,000 accounts is about 3 MB; nothing else comes near."""
ERRORS_BYTES_MAX: Final = 64 << 10
"""Of what a program says on standard error, this much is kept."""
_LOOK_SECONDS: Final = 0.05
"""How often the size of the output is looked at: a program writes at most some 100 MB too much in that time."""
NOT_FOUND: Final = 127
"""What a shell says for a program that is not there; 126 for one that must not be run."""


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
        with tempfile.TemporaryFile() as output:
            result = await _execute(argv, output, timeout_seconds, OUTPUT_BYTES_MAX, stdin, environment, bounded=False)
            output.seek(0)
            text = output.read(OUTPUT_BYTES_MAX).decode("utf-8", "surrogateescape")
        return CommandResult(
            argv=result.argv,
            exit_status=result.exit_status,
            output=text,
            errors=result.errors,
            seconds=result.seconds,
            timed_out=result.timed_out,
            too_big=result.too_big,
        )

    async def capture(
        self, argv: Sequence[str], target: Path, *, timeout_seconds: float, bytes_max: int
    ) -> CommandResult:
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with open(descriptor, "wb") as output:
            result = await _execute(argv, output, timeout_seconds, bytes_max, b"", None, bounded=True)
            if result.ok:
                await asyncio.to_thread(os.fsync, descriptor)
        return result

    async def spawn(self, argv: Sequence[str], *, log: Path, user: str = "") -> int:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
        try:
            process = await asyncio.create_subprocess_exec(
                *priority.usual(),
                *argv,
                stdin=DEVNULL,
                stdout=descriptor,
                stderr=descriptor,
                env=_environment(None),
                start_new_session=True,
                user=user or None,
                group=pwd.getpwnam(user).pw_gid if user else None,
                extra_groups=[] if user else None,
            )
        finally:
            os.close(descriptor)
        return process.pid


async def _execute(
    argv: Sequence[str],
    output: IO[bytes],
    timeout_seconds: float,
    bytes_max: int,
    stdin: bytes,
    environment: Mapping[str, str] | None,
    *,
    bounded: bool,
) -> CommandResult:
    """*bounded*: the kernel ends the program at the limit. Daemons would inherit that, so only outputs are bounded."""
    began = time.monotonic()
    with tempfile.TemporaryFile() as errors, tempfile.TemporaryFile() as given:
        given.write(stdin)
        given.seek(0)
        try:
            process = await asyncio.create_subprocess_exec(
                *priority.usual(),
                *argv,
                stdin=given if stdin else DEVNULL,
                stdout=output,
                stderr=errors,
                env=_environment(environment),
                start_new_session=True,
            )
        except OSError as error:
            status = NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_FOUND - 1
            return CommandResult(tuple(argv), status, "", error.strerror or str(error), time.monotonic() - began)
        if bounded:
            with contextlib.suppress(ProcessLookupError):  # one byte more than allowed shows that it was too much
                resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (bytes_max + 1, bytes_max + 1))
        timed_out = await _wait(process, timeout_seconds, output.fileno(), bytes_max)
        errors.seek(0)
        assert process.returncode is not None
        return CommandResult(
            argv=tuple(argv),
            exit_status=process.returncode,
            output="",
            errors=errors.read(ERRORS_BYTES_MAX).decode("utf-8", "replace"),
            seconds=time.monotonic() - began,
            timed_out=timed_out,
            too_big=os.fstat(output.fileno()).st_size > bytes_max,
        )


async def _wait(process: Process, timeout_seconds: float, output: int, bytes_max: int) -> bool:
    """Until it ends, or is ended: at the deadline (then True), by its output growing too big, by our being cancelled.

    The size is looked at as well as limited by the kernel: what the program started before the limit was set is free
    of it.
    """
    ended = asyncio.ensure_future(process.wait())
    try:
        async with asyncio.timeout(timeout_seconds):
            while not (await asyncio.wait({ended}, timeout=_LOOK_SECONDS))[0]:
                if os.fstat(output).st_size > bytes_max:
                    _end(process)
    except TimeoutError:
        _end(process)
        await ended
        return True
    except asyncio.CancelledError:
        _end(process)
        raise
    return False


def _end(process: Process) -> None:
    """Kill the program with everything it started (it leads a session)."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _environment(extra: Mapping[str, str] | None) -> dict[str, str]:
    """PATH with the administrator's folders: an agent started by hand may lack them."""
    path = os.environ.get("PATH", "/usr/bin:/bin")
    for folder in ("/usr/sbin", "/sbin", "/usr/local/sbin"):
        if folder not in path.split(":"):
            path += ":" + folder
    return {**os.environ, "LC_ALL": "C", "PATH": path, **(extra or {})}
