"""Radicale 3.x (CalDAV, CardDAV) as a :class:`~holdfast.mail.port.Service`; a process, never imported."""

from __future__ import annotations

import asyncio
import configparser
import os
import pwd
import re
import shutil
import sys
import time
from pathlib import Path
from typing import Final

from msgspec import Struct

from holdfast.errors import ConfigurationError
from holdfast.mail import probes, processes
from holdfast.mail.certificates import Pair
from holdfast.mail.files import read_or_none, write_whole
from holdfast.mail.port import CheckResult, Commands, ProbeResult, Protection, ServiceFailed
from holdfast.mail.roots import folder_of
from holdfast.mail.secrets import Secret, SecretKind
from holdfast.mail.settings import ProbeSettings, RadicaleSettings
from holdfast.mail.supervise import START_SECONDS_MAX, SYSTEMD, Units
from holdfast.trees.spec import TreeSpec

_READ_SECONDS_MAX: Final = 20.0
STOP_GRACE_SECONDS: Final = 1.0
_ATTEMPT_SECONDS: Final = 0.05
_PATH_KEYS: Final = frozenset(
    {"htpasswd_filename", "certificate", "key", "certificate_authority", "file", "database_path"}
)

EXCLUDE: Final = (
    ".Radicale.lock",
    ".Radicale.lock.*",
    ".Radicale.tmp-*",
    ".Radicale.mtime_test",
    ".Radicale.cache/item/",
)
"""Of ``.Radicale.cache`` only the parsed items are left out. ``history`` and ``sync-token`` are state: a history entry
begins with random data, so without them every client's sync token is void after a takeover (RFC 6578, 3.2)."""


class RadicaleLayout(Struct, frozen=True):
    storage: str
    hosts: tuple[tuple[str, int], ...]
    tls: bool
    files: tuple[str, ...]
    """Files the configuration names: users, rights, certificates."""
    users_file: str = ""
    """Of an htpasswd file; empty where users come from elsewhere."""
    key_file: str = ""
    certificate_file: str = ""


def parse(text: str) -> RadicaleLayout:
    """A Radicale configuration file (https://radicale.org/v3.html#configuration). Raises ConfigurationError."""
    parser = configparser.RawConfigParser()
    try:
        parser.read_string(text)
    except configparser.Error as error:
        raise ConfigurationError(
            f"Radicale's configuration: {error}", hint="Radicale would not start with it."
        ) from error
    hosts = parser.get("server", "hosts", fallback="localhost:5232")
    files = [
        os.path.expanduser(value)
        for section in ("auth", "rights", "server", "sharing")
        if parser.has_section(section)
        for key, value in parser.items(section)
        if key in _PATH_KEYS and value.startswith(("/", "~"))
    ]
    return RadicaleLayout(
        storage=os.path.normpath(
            os.path.expanduser(parser.get("storage", "filesystem_folder", fallback="/var/lib/radicale/collections"))
        ),
        hosts=tuple(_host(word) for word in re.split(r"[,\s]+", hosts) if word),
        tls=parser.getboolean("server", "ssl", fallback=False),
        files=tuple(sorted(set(files))),
        users_file=os.path.expanduser(parser.get("auth", "htpasswd_filename", fallback="/etc/radicale/users"))
        if parser.get("auth", "type", fallback="") == "htpasswd"
        else "",
        key_file=os.path.expanduser(parser.get("server", "key", fallback="")),
        certificate_file=os.path.expanduser(parser.get("server", "certificate", fallback="")),
    )


def _host(word: str) -> tuple[str, int]:
    address, _, port = word.rpartition(":")
    if not port.isdigit():
        raise ConfigurationError(f"Radicale's configuration: hosts: {word!r} has no port", hint="Write address:port.")
    return address.strip("[]"), int(port)


class Radicale:
    """One Radicale, named by its configuration file."""

    name: Final = "radicale"

    def __init__(
        self,
        settings: RadicaleSettings,
        commands: Commands,
        *,
        state_directory: str,
        probe: ProbeSettings | None = None,
        systemd: Path = SYSTEMD,
    ) -> None:
        self._settings = settings
        self._commands = commands
        self._probe = probe or ProbeSettings()
        self._units = Units(commands, settings.units, systemd=systemd)
        self._run_directory = Path(state_directory) / "mail"
        self._pid_file = self._run_directory / "radicale.pid"

    def layout(self) -> RadicaleLayout:
        """The configuration as it is now. Raises ConfigurationError."""
        content = read_or_none(Path(self._settings.config))
        if content is None:
            raise ConfigurationError(f"{self._settings.config} is not there", hint="Name it in [mail.radicale]: config")
        return parse(content.decode("utf-8", "replace"))

    def command(self) -> tuple[str, ...]:
        """How it is started where there is no systemd. Raises ConfigurationError when there is no such program."""
        if self._settings.command:
            return self._settings.command
        beside = os.path.join(os.path.dirname(sys.executable), "radicale")
        program = shutil.which("radicale") or (beside if os.path.exists(beside) else "")
        if not program:
            raise ConfigurationError("there is no program radicale", hint="Name it in [mail.radicale]: command")
        return (program, "--config", self._settings.config)

    async def protection(self) -> Protection:
        found = self.layout()
        tree = TreeSpec(name="groupware", root=os.path.realpath(found.storage), exclude=EXCLUDE).checked()
        return Protection(trees=(tree,), config_paths=(folder_of(self._settings.config), *found.files))

    async def secrets(self) -> tuple[Secret, ...]:
        found = self.layout()
        named = [Secret(SecretKind.PASSWORDS, found.users_file, "radicale htpasswd_filename")]
        named.append(Secret(SecretKind.TLS, found.key_file if found.tls else "", "radicale key"))
        return tuple(secret for secret in named if secret.path)

    async def certificates(self) -> tuple[Pair, ...]:
        found = self.layout()
        there = found.tls and found.certificate_file and found.key_file
        return (Pair(found.certificate_file, found.key_file, "radicale certificate"),) if there else ()

    async def warm(self) -> tuple[str, ...]:
        return ()

    async def prepare(self) -> tuple[str, ...]:
        return ()

    async def start(self) -> None:
        found = self.layout()
        if self._units.present:
            await self._units.start()
        elif not await self.running():
            await self._start_directly(found)
        address, port = found.hosts[0]
        deadline = time.monotonic() + START_SECONDS_MAX
        while not await probes.accepts(_reachable(address), port, seconds_max=_ATTEMPT_SECONDS):
            if time.monotonic() > deadline or not (self._units.present or await self.running()):
                raise ServiceFailed(
                    f"radicale does not accept connections on {address}:{port}",
                    hint=f"See {self._run_directory / 'radicale.log'} or: journalctl -u {self._settings.units[0]}",
                    retry=True,
                )

    async def _start_directly(self, found: RadicaleLayout) -> None:
        self._run_directory.mkdir(parents=True, exist_ok=True)
        user = self._settings.user
        if not user and os.geteuid() == 0 and os.path.isdir(found.storage):
            user = _name_of(os.stat(found.storage).st_uid)
        log = self._run_directory / "radicale.log"
        try:
            pid = await self._commands.spawn(self.command(), log=log, user="" if user == "root" else user)
        except (OSError, KeyError) as error:
            raise ServiceFailed(
                f"radicale did not start: {error}", hint="Check [mail.radicale]: command, user"
            ) from error
        process = processes.seen(pid)
        if process is not None:
            write_whole(self._pid_file, f"{pid} {process.started}\n".encode())

    async def stop(self, *, force: bool = False) -> None:
        if force:
            await processes.end(self._members, self.name, grace_seconds=0)
        if self._units.present:
            await self._units.stop(force=force)
        await processes.end(self._members, self.name, grace_seconds=0 if force else STOP_GRACE_SECONDS)
        self._pid_file.unlink(missing_ok=True)

    def _members(self) -> list[processes.Seen]:
        """The process started here with all of its session, and any other Radicale with the same configuration."""
        known = self._started_here()
        config = os.fsencode(self._settings.config)

        def ours(process: processes.Seen) -> bool:
            if known is not None and process.group == known.pid:
                return True
            words = processes.command_line(process.pid)
            return config in words and any(os.path.basename(word) == b"radicale" for word in words[:3])

        return processes.find(ours)

    def _started_here(self) -> processes.Seen | None:
        words = (read_or_none(self._pid_file) or b"").split()
        if len(words) != 2 or not all(word.isdigit() for word in words):
            return None
        process = processes.seen(int(words[0]))
        return process if process is not None and process.started == int(words[1]) else None

    async def reload(self) -> None:
        """Radicale reads its configuration at start only, its users file at every login."""
        await self.stop()
        await self.start()

    async def running(self) -> bool:
        await asyncio.sleep(0)
        return bool(self._members())

    async def probe(self, address: str) -> ProbeResult:
        try:
            found, account = self.layout(), self._probe.account()
        except ConfigurationError as error:
            return ProbeResult(self.name, address, False, 0.0, error.message)
        return await probes.caldav(address, found.hosts[0][1], account=account, tls=found.tls)

    async def check(self) -> CheckResult:
        try:
            found = self.layout()
            if not self._units.present:
                self.command()
        except ConfigurationError as error:
            return CheckResult(self.name, errors=(error.message,))
        missing = tuple(f"{path} is not there" for path in (*found.files, found.storage) if not os.path.exists(path))
        return CheckResult(self.name, errors=missing)

    async def version(self) -> str:
        try:
            program = self.command()[0]
        except ConfigurationError:
            return ""
        result = await self._commands.run([program, "--version"], timeout_seconds=_READ_SECONDS_MAX)
        return result.output.strip().splitlines()[-1] if result.ok and result.output.strip() else ""


def _name_of(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return ""


def _reachable(address: str) -> str:
    """Where to knock for a listener: any address is reached over loopback."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1", "localhost": "127.0.0.1"}.get(address, address)
