"""Postfix 3.x as a :class:`~holdfast.mail.port.Service`."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from msgspec import Struct

from holdfast.errors import ConfigurationError
from holdfast.mail import certificates, probes, processes
from holdfast.mail.files import read_or_none, write_whole
from holdfast.mail.port import CheckResult, Commands, ProbeResult, Protection, ServiceFailed
from holdfast.mail.postfix_maps import Compiler, Table, named_files, tables
from holdfast.mail.postfix_render import parse_overrides, render
from holdfast.mail.secrets import Secret, of_postfix
from holdfast.mail.settings import PostfixSettings, ProbeSettings
from holdfast.mail.supervise import START_SECONDS_MAX, SYSTEMD, Units
from holdfast.trees.spec import TreeSpec

_READ_SECONDS_MAX: Final = 20.0
SETTLED_SECONDS: Final = 10.0
"""Postfix reads a main.cf younger than two seconds again and again until it is older: a
takeover would wait for that."""
_CHECK_SECONDS_MAX: Final = 60.0
STOP_GRACE_SECONDS: Final = 2.0
"""What master(8) does on ``postfix stop``, a signal to its group, ends Postfix in 0.05 s unless a delivery hangs."""
DELIVERIES_SECONDS_MAX: Final = 0.5
"""How long a planned stop waits for deliveries under way; to a local Dovecot one takes milliseconds. Some processes do
not leave: they look for a service that the dead master would have started (mail_connect_wait sleeps 10 s)."""
_DELIVERERS: Final = frozenset({"lmtp", "smtp", "local", "virtual", "pipe"})
_BASICS: Final = ("queue_directory", "data_directory", "daemon_directory", "alias_maps", "alias_database")
_QUEUES: Final = ("maildrop", "incoming", "active", "deferred", "hold", "corrupt", "bounce", "defer", "trace")
_PORTS: Final = {"smtp": 25, "submission": 587, "smtps": 465, "submissions": 465}
_AUTODETECT_DEFAULT: Final = "sendmail, verify"
_DEBIAN_CHROOT: Final = Path("/usr/lib/postfix/configure-instance.sh")
"""Debian's units run it before every start: it copies resolv.conf and others to where chrooted daemons find them."""
_CHROOT_SOURCES: Final = ("resolv.conf", "services", "hosts", "localtime", "nsswitch.conf")


class PostfixLayout(Struct, frozen=True):
    """What ``postconf`` says, variables expanded."""

    settings: dict[str, str]
    """Parameters set in main.cf, overrides of master.cf (``service/type/parameter``), and the basics."""
    services: tuple[tuple[str, ...], ...]
    """master.cf, a tuple of its eight columns each."""
    config_directory: str

    @property
    def queue_directory(self) -> str:
        return self.settings["queue_directory"]

    @property
    def tables(self) -> tuple[Table, ...]:
        return tables({key.rpartition("/")[2]: value for key, value in self.settings.items()})

    def smtp_port(self) -> int | None:
        """Of the first smtpd that speaks without TLS from the start; None when Postfix listens nowhere."""
        for name, kind, *_, command in self.services:
            wrapped = self.settings.get(f"{name}/{kind}/smtpd_tls_wrappermode", "no") == "yes"
            if kind == "inet" and command.split()[0] in ("smtpd", "postscreen") and not wrapped:
                port = name.rpartition(":")[2]
                return int(port) if port.isdigit() else _port(port)
        return None


def _port(service: str) -> int | None:
    if service in _PORTS:
        return _PORTS[service]
    try:
        return socket.getservbyname(service, "tcp")
    except OSError:
        return None


class Postfix:
    """One Postfix instance, named by its configuration directory."""

    name: Final = "postfix"

    def __init__(
        self,
        settings: PostfixSettings,
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
        self._directory = settings.config_directory
        self._main = Path(settings.config_directory) / "main.cf"
        memory = Path(state_directory) / "mail" / "postfix-tables.json"
        self._compiler = Compiler(commands, memory, settings.config_directory)
        self._layout: PostfixLayout | None = None

    async def layout(self, *, fresh: bool = True) -> PostfixLayout:
        """The configuration as it is now, or as last read. Raises ConfigurationError when postconf refuses it."""
        if fresh or self._layout is None:
            settings = _settings(await self._postconf("-x", *_BASICS))
            settings |= _settings(await self._postconf("-n", "-x"))
            settings |= _settings(await self._postconf("-P", "-x"))
            lines = (await self._postconf("-M")).splitlines()
            services = tuple(tuple(line.split(None, 7)) for line in lines if len(line.split(None, 7)) == 8)
            self._layout = PostfixLayout(settings, services, self._directory)
        return self._layout

    async def _postconf(self, *arguments: str) -> str:
        argv = ["postconf", "-c", self._directory, *arguments]
        result = await self._commands.run(argv, timeout_seconds=_READ_SECONDS_MAX)
        if not result.ok:
            raise ConfigurationError(result.words, hint="Postfix would not start with this configuration either.")
        return result.output

    async def protection(self) -> Protection:
        found = await self.layout()
        files = named_files(value for key, value in found.settings.items() if not key.endswith("_directory"))
        own = (found.queue_directory, found.settings["data_directory"])
        named = {path for path in files if path != "/" and not any(processes.below(path, folder) for folder in own)}
        compiled = tuple(path for table in found.tables for path in table.compiled)
        trees: tuple[TreeSpec, ...] = ()
        if self._settings.protect_queue:
            trees = (TreeSpec(name="queue", root=found.queue_directory, include=_QUEUES).checked(),)
        return Protection(
            trees=trees,
            config_paths=tuple(sorted({self._directory, *named} - set(compiled))),
            config_exclude=tuple(sorted(compiled)),
            overrides=(self._settings.overrides,),
            rendered=(str(self._main),),
        )

    async def secrets(self) -> tuple[Secret, ...]:
        return of_postfix((await self.layout()).settings)

    async def certificates(self) -> tuple[certificates.Pair, ...]:
        return tuple(certificates.of_postfix((await self.layout()).settings))

    def own_values(self) -> dict[str, str]:
        """This machine's overrides of main.cf; empty when there is no such file."""
        content = read_or_none(Path(self._settings.overrides))
        return {} if content is None else parse_overrides(content.decode("utf-8", "replace"), self._settings.overrides)

    async def warm(self) -> tuple[str, ...]:
        if read_or_none(self._main) is None:
            return ()
        found = await self.layout()
        done = list(await self._compiler.bring_up_to_date(found.tables))
        if not self._units.present:
            done += await self._folders(found)
        return tuple(done)

    async def prepare(self) -> tuple[str, ...]:
        done: list[str] = []
        shared = read_or_none(self._main)
        if shared is None:
            raise ConfigurationError(
                f"{self._main} is not there", hint="Has the configuration arrived from the primary?"
            )
        values = self.own_values()
        if write_whole(self._main, render(shared, values), dated_back_seconds=SETTLED_SECONDS):
            done.append(f"put {len(values)} values of this machine into {self._main}")
        found = await self.layout()
        done += await self._compiler.bring_up_to_date(found.tables)
        if not self._units.present:
            done += await self._folders(found)
        return tuple(done)

    async def _folders(self, found: PostfixLayout) -> list[str]:
        """What Debian's units and the first start would make: two seconds that a takeover should not spend."""
        queue = Path(found.queue_directory)
        done = []
        if not (queue / "pid").is_dir() or not (queue / "deferred").is_dir():
            await self._commands.run(["postfix", "-c", self._directory, "check"], timeout_seconds=_CHECK_SECONDS_MAX)
            done.append(f"made the folders of {queue}")
        chrooted = any(columns[4] == "y" for columns in found.services)
        if chrooted and self._directory == "/etc/postfix" and _DEBIAN_CHROOT.exists() and _chroot_stale(queue):
            await self._commands.run([str(_DEBIAN_CHROOT), "-"], timeout_seconds=_CHECK_SECONDS_MAX)
            done.append(f"copied system files into {queue}/etc")
        return done

    async def start(self) -> None:
        if self._units.present:
            await self._units.start()
        elif not await self.running():
            await self._sweep(grace_seconds=0)
            argv = ["postfix", "-c", self._directory, "start"]
            result = await self._commands.run(argv, timeout_seconds=START_SECONDS_MAX)
            if not result.ok:
                raise ServiceFailed(result.words, hint="See the mail log; run: postfix check", retry=True)
        if not await self.running():
            raise ServiceFailed("postfix started, but no master is running", hint="See the mail log.", retry=True)

    async def stop(self, *, force: bool = False) -> None:
        if force:
            await self._sweep(grace_seconds=0)
        else:
            await self._finish_deliveries()
        if self._units.present:
            await self._units.stop(force=force)
        await self._sweep(grace_seconds=0 if force else STOP_GRACE_SECONDS)

    async def _finish_deliveries(self) -> None:
        """End the master alone, and wait for who delivers: each process leaves when it has done what it is doing.

        master(8), SIGTERM: "Normally one would terminate only the master and allow running processes to finish what
        they are doing"; asked by SIGTERM it passes that on. Measured under load: a stop by SIGTERM ended ten deliveries
        between Dovecot's answer and the note of it in the queue, and all ten messages came a second time later.
        """
        queue, daemons = await self._places()
        master = processes.seen(processes.pid_in_file(Path(queue) / "pid" / "master.pid") or 0)
        if master is None or master.executable != os.path.join(daemons, "master"):
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(master.pid, signal.SIGKILL)

        def delivering() -> list[processes.Seen]:
            return [each for each in _members(queue, daemons) if os.path.basename(each.executable) in _DELIVERERS]

        await processes.gone(delivering, seconds_max=DELIVERIES_SECONDS_MAX)

    async def _places(self) -> tuple[str, str]:
        """The queue and daemon directories."""
        try:
            found = await self.layout(fresh=self._layout is None)
            return found.queue_directory, found.settings["daemon_directory"]
        except ConfigurationError:
            return "/var/spool/postfix", "/usr/lib/postfix/sbin"

    async def _sweep(self, *, grace_seconds: float) -> None:
        queue, daemons = await self._places()
        await processes.end(lambda: _members(queue, daemons), self.name, grace_seconds=grace_seconds)

    async def reload(self) -> None:
        argv = ["postfix", "-c", self._directory, "reload"]
        result = await self._commands.run(argv, timeout_seconds=START_SECONDS_MAX)
        if not result.ok:
            raise ServiceFailed(result.words, hint="Run: postfix check", retry=True)

    async def running(self) -> bool:
        found = await self.layout(fresh=False)
        pid = processes.pid_in_file(Path(found.queue_directory) / "pid" / "master.pid")
        process = processes.seen(pid) if pid else None
        return process is not None and process.executable == os.path.join(found.settings["daemon_directory"], "master")

    async def probe(self, address: str) -> ProbeResult:
        try:
            port = (await self.layout(fresh=False)).smtp_port()
        except ConfigurationError as error:
            return ProbeResult(self.name, address, False, 0.0, error.message)
        if port is None:
            return ProbeResult(self.name, address, False, 0.0, "master.cf has no smtpd on a port")
        return await probes.smtp(address, port, recipient=self._probe.smtp_recipient)

    async def check(self) -> CheckResult:
        argv = ["postfix", "-c", self._directory, "check"]
        result = await self._commands.run(argv, timeout_seconds=_CHECK_SECONDS_MAX)
        said = [line.strip() for line in (result.errors + result.output).splitlines() if line.strip()]
        errors = [line for line in said if any(word in line for word in ("fatal:", "error:", "panic:"))]
        if not result.ok and not errors:
            errors = [result.words]
        warnings = [line for line in said if "warning:" in line]
        try:
            found = await self.layout()
            warnings += for_gates(found.settings)
            errors += [f"{path} is not there" for path in sorted(named_files(_certificates(found))) if not _there(path)]
            errors += [f"{table.source} is not there" for table in found.tables if not _there(table.source)]
            self.own_values()
        except ConfigurationError as error:
            errors.append(error.message)
        return CheckResult(self.name, errors=tuple(errors), warnings=tuple(warnings))

    async def version(self) -> str:
        result = await self._commands.run(["postconf", "-d", "-h", "mail_version"], timeout_seconds=_READ_SECONDS_MAX)
        return result.output.strip() if result.ok else ""


def _settings(text: str) -> dict[str, str]:
    """``key = value`` lines as postconf prints them; a continued line belongs to the one before."""
    found: dict[str, str] = {}
    last = ""
    for line in text.splitlines():
        if line[:1].isspace() and last:
            found[last] += " " + line.strip()
        elif "=" in line:
            key, _, value = line.partition("=")
            last = key.strip()
            found[last] = value.strip()
    return found


def for_gates(settings: Mapping[str, str]) -> list[str]:
    """A sentence for each setting that our milter needs otherwise (docs/concepts/gates.md): what another machine has
    taken over is thrown out by its queue id, and must be none of a new message; what is adopted comes by sendmail(1),
    and must not be called SMTPUTF8 for a raw header field, because its next hop may not offer that."""
    if not any("holdfast" in settings.get(name, "") for name in ("smtpd_milters", "non_smtpd_milters")):
        return []
    found = []
    if settings.get("enable_long_queue_ids", "no") != "yes":
        found.append("the gates' milter needs enable_long_queue_ids = yes in main.cf: short queue ids come again")
    classes = set(re.split(r"[\s,]+", settings.get("smtputf8_autodetect_classes", _AUTODETECT_DEFAULT)))
    if classes & {"sendmail", "all"} and settings.get("smtputf8_enable", "yes") != "no":
        found.append(
            "the gates' milter needs smtputf8_autodetect_classes = verify in main.cf: after a takeover, mail with raw "
            "UTF-8 in its header could be returned to its sender"
        )
    return found


def _certificates(found: PostfixLayout) -> list[str]:
    return [v for k, v in found.settings.items() if "_tls_" in k and k.endswith(("_file", "_files"))]


def _there(path: str) -> bool:
    return os.path.exists(path)


def _chroot_stale(queue: Path) -> bool:
    for name in _CHROOT_SOURCES:
        source, copy = Path("/etc") / name, queue / "etc" / name
        if source.exists() and (not copy.exists() or copy.stat().st_mtime < source.stat().st_mtime):
            return True
    return False


def _members(queue: str, daemons: str) -> list[processes.Seen]:
    """Every daemon of the instance: their programs stand in one folder, and they stand in the queue directory."""
    pid = processes.pid_in_file(Path(queue) / "pid" / "master.pid")
    queue = os.path.realpath(queue)

    def ours(process: processes.Seen) -> bool:
        if not processes.below(process.executable, daemons):
            return False
        return process.group == pid or processes.below(process.directory, queue) or processes.below(process.root, queue)

    return processes.find(ours)
