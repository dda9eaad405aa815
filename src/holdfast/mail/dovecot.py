"""Dovecot 2.3 and 2.4 as a :class:`~holdfast.mail.port.Service`."""

from __future__ import annotations

import asyncio
import glob
import os
import re
import signal
import time
from pathlib import Path
from typing import Final

from holdfast.errors import ConfigurationError
from holdfast.mail import certificates, doveconf, probes, processes
from holdfast.mail.dovecot_files import store_tree
from holdfast.mail.dovecot_layout import Layout, Listener, accounts_in, layout, passwd_files
from holdfast.mail.files import read_or_none
from holdfast.mail.port import CheckResult, Commands, ProbeResult, Protection, ServiceFailed
from holdfast.mail.probes import Account
from holdfast.mail.roots import by_device, folder_of
from holdfast.mail.secrets import Secret, of_dovecot
from holdfast.mail.settings import DovecotSettings, ProbeSettings
from holdfast.mail.supervise import START_SECONDS_MAX, SYSTEMD, Units
from holdfast.trees.spec import TreeSpec

_READ_SECONDS_MAX: Final = 20.0
STOP_GRACE_SECONDS: Final = 2.0
"""A signal to the whole group ends an idle Dovecot in 0.12 s; ``doveadm stop`` takes 3 s, a signal to the master
alone up to 10 s, because the idle helpers linger. Two seconds leave a delivery in progress time to finish."""
INCLUDES_MAX: Final = 200
_INCLUDE: Final = re.compile(r"^\s*!include(?:_try)?\s+(\S.*?)\s*$", re.MULTILINE)


class Dovecot:
    """One Dovecot instance, named by its main configuration file."""

    name: Final = "dovecot"

    def __init__(
        self,
        settings: DovecotSettings,
        commands: Commands,
        *,
        probe: ProbeSettings | None = None,
        store_paths: tuple[str, ...] = (),
        store_exclude: tuple[str, ...] = (),
        copy_cache: bool = False,
        systemd: Path = SYSTEMD,
    ) -> None:
        self._settings = settings
        self._commands = commands
        self._probe = probe or ProbeSettings()
        self._store_paths = store_paths
        self._store_exclude = store_exclude
        self._copy_cache = copy_cache
        self._units = Units(commands, settings.units, systemd=systemd)
        self._layout: Layout | None = None

    async def layout(self, *, fresh: bool = True) -> Layout:
        """The configuration as it is now, or as last read. Raises ConfigurationError when doveconf refuses it."""
        if fresh or self._layout is None:
            basics = await self._doveconf("protocols", "base_dir", "state_dir", "libexec_dir")
            root = await self._changed_settings()
            parsed_basics = doveconf.parse(basics)
            root.settings = {**parsed_basics.settings, **root.settings}
            root.sections += [s for s in parsed_basics.sections if not any(root.of(s.kind))]
            texts = {path: _text(path) for path in passwd_files(root)}
            self._layout = layout(root, texts)
        return self._layout

    async def _changed_settings(self) -> doveconf.Section:
        return doveconf.parse(await self._doveconf("-n", "-P"))

    async def secrets(self) -> tuple[Secret, ...]:
        return of_dovecot(await self._changed_settings())

    async def certificates(self) -> tuple[certificates.Pair, ...]:
        return tuple(certificates.of_dovecot(await self._changed_settings()))

    async def _doveconf(self, *arguments: str) -> str:
        argv = ["doveconf", "-c", self._settings.config, *arguments]
        result = await self._commands.run(argv, timeout_seconds=_READ_SECONDS_MAX)
        if not result.ok:
            raise ConfigurationError(result.words, hint="Dovecot would not start with this configuration either.")
        return result.output

    async def protection(self) -> Protection:
        found = await self.layout()
        roots = self._store_paths or found.roots
        if not roots:
            raise ConfigurationError(
                f"{self._settings.config}: no directory of mail could be found ({'; '.join(found.warnings)})",
                hint='Name the directories in [mail] of holdfast.toml: store_paths = ["/srv/mail"]',
            )
        return Protection(
            trees=tuple(self._trees(roots, found)),
            config_paths=(folder_of(self._settings.config), *self._outside_files(found)),
            overrides=(self._settings.overrides,),
            warnings=found.warnings if not self._store_paths else (),
        )

    def _trees(self, roots: tuple[str, ...], found: Layout) -> list[TreeSpec]:
        return [
            store_tree(
                "store" if number == 1 else f"store-{number}",
                group.root,
                drivers=found.drivers,
                include=group.include,
                exclude=self._store_exclude,
                copy_cache=self._copy_cache,
            )
            for number, group in enumerate(by_device(roots), start=1)
        ]

    def _outside_files(self, found: Layout) -> tuple[str, ...]:
        """Files the configuration names that are not in its own folder."""
        named = {*found.config_paths, *found.tls_files, *found.passwd_files, *included_files(self._settings.config)}
        return tuple(sorted(named - {self._settings.config}))

    async def accounts(self) -> tuple[str, ...]:
        """Names of all accounts: from the passwd-files, else by ``doveadm user '*'`` (the server must be running)."""
        found = await self.layout()
        names = [name for path in found.passwd_files for name in accounts_in(_text(path))]
        if not names:
            argv = ["doveadm", "-c", self._settings.config, "user", "*"]
            result = await self._commands.run(argv, timeout_seconds=_READ_SECONDS_MAX)
            if not result.ok:
                raise ServiceFailed(result.words, hint="Listing accounts needs a userdb that can iterate.", retry=True)
            names = result.output.split()
        return tuple(sorted(set(names)))

    async def warm(self) -> tuple[str, ...]:
        return ()

    async def prepare(self) -> tuple[str, ...]:
        """Dovecot reads this machine's overrides by an include, so nothing is made; the new configuration is read."""
        await self.layout()
        return ()

    async def start(self) -> None:
        if self._units.present:
            await self._units.start()
        elif not await self.running():
            await self._sweep(grace_seconds=0)  # leftovers of a dead master hold the ports
            await self._forget_dead_master()
            result = await self._commands.run(
                ["dovecot", "-c", self._settings.config], timeout_seconds=START_SECONDS_MAX
            )
            if not result.ok:
                raise ServiceFailed(result.words, hint="See Dovecot's log (doveadm log find).", retry=True)
        await self._until_running()

    async def _forget_dead_master(self) -> None:
        """Remove what a master that died suddenly leaves behind, and what the next one believes.

        Dovecot refuses to start when the number in its pid file belongs to any process, a stranger's or a zombie's. Its
        ``instances.lock`` lies on a disk that outlives a power cut: a new master waits for it and serves nobody
        meanwhile (seen: a master killed just after its start).
        """
        found = await self.layout()
        if await self._master() is None:
            (Path(found.base_directory) / "master.pid").unlink(missing_ok=True)
        lock = Path(found.state_directory) / "instances.lock"
        holder = _text(str(lock)).partition(":")[0]
        process = processes.seen(int(holder)) if holder.isdigit() else None
        if process is None or os.path.basename(process.executable) != "dovecot":
            lock.unlink(missing_ok=True)

    async def _until_running(self) -> None:
        """``dovecot`` returns a moment before its pid file and its listeners are there."""
        deadline = time.monotonic() + START_SECONDS_MAX
        while await self._master() is None:
            if time.monotonic() > deadline:
                raise ServiceFailed("dovecot started, but no master is running", hint="See Dovecot's log.", retry=True)
            await asyncio.sleep(0.005)

    async def stop(self, *, force: bool = False) -> None:
        if force:
            await self._sweep(grace_seconds=0)
        if self._units.present:
            await self._units.stop(force=force)
        await self._sweep(grace_seconds=0 if force else STOP_GRACE_SECONDS)

    async def _sweep(self, *, grace_seconds: float) -> None:
        found = await self._known_layout()
        await processes.end(lambda: _members(found), self.name, grace_seconds=grace_seconds)

    async def _known_layout(self) -> Layout:
        """For stopping: the layout as last read, so that a configuration broken since then is no obstacle."""
        try:
            return await self.layout(fresh=self._layout is None)
        except ConfigurationError:
            return layout(doveconf.Section())

    async def reload(self) -> None:
        if self._units.present:
            await self._units.reload()
            return
        master = await self._master()
        if master is None:
            raise ServiceFailed("dovecot is not running, so it cannot reload", hint="Start it.")
        os.kill(master.pid, signal.SIGHUP)

    async def running(self) -> bool:
        return await self._master() is not None

    async def _master(self) -> processes.Seen | None:
        found = await self._known_layout()
        pid = processes.pid_in_file(Path(found.base_directory) / "master.pid")
        process = processes.seen(pid) if pid else None
        return process if process is not None and os.path.basename(process.executable) == "dovecot" else None

    async def probe(self, address: str) -> ProbeResult:
        try:
            account = self._probe.account()
        except ConfigurationError as error:
            return ProbeResult(self.name, address, False, 0.0, error.message)
        return await self.log_in(address, account)

    async def log_in(self, address: str, account: Account | None, *, alone: bool = False) -> ProbeResult:
        """A session of *account* at *address*; without one, no further than the greeting. *alone*: see ``probes``."""
        try:
            found = await self.layout(fresh=False)
        except ConfigurationError as error:
            return ProbeResult(self.name, address, False, 0.0, error.message)
        listener = _best(found.listeners)
        if listener is None:
            return ProbeResult(self.name, address, False, 0.0, "Dovecot is configured without an IMAP listener")
        return await probes.imap(address, listener.port, account=account, tls=listener.tls, alone=alone)

    async def check(self) -> CheckResult:
        argv = ["doveconf", "-c", self._settings.config, "-n"]
        result = await self._commands.run(argv, timeout_seconds=_READ_SECONDS_MAX)
        warnings = [line.strip() for line in result.errors.splitlines() if "Warning:" in line]
        if not result.ok:
            return CheckResult(self.name, errors=(result.words,), warnings=tuple(warnings))
        found = await self.layout()
        warnings += found.past_gates
        missing = [f"{path} is not there" for path in found.tls_files if not os.path.exists(path)]
        overrides = self._settings.overrides
        if os.path.exists(overrides) and overrides not in included_files(self._settings.config):
            warnings.append(f"{overrides} is there, but {self._settings.config} does not !include_try it")
        return CheckResult(self.name, errors=tuple(missing), warnings=tuple(warnings))

    async def version(self) -> str:
        result = await self._commands.run(["dovecot", "--version"], timeout_seconds=_READ_SECONDS_MAX)
        return result.output.strip() if result.ok else ""


def _text(path: str) -> str:
    content = read_or_none(Path(path))
    return "" if content is None else content.decode("utf-8", "replace")


def _members(found: Layout) -> list[processes.Seen]:
    """Every process of the instance: the master's group, and orphans of a dead master.

    Helpers stand in the base directory or are confined to a folder of it; a mail process stands in its user's home. An
    orphan whose master is gone cannot be told from another instance's orphan: nobody misses either.
    """
    pid = processes.pid_in_file(Path(found.base_directory) / "master.pid")
    base = os.path.realpath(found.base_directory)

    def ours(process: processes.Seen) -> bool:
        program = os.path.basename(process.executable) == "dovecot"
        if not program and not processes.below(process.executable, found.library_directory):
            return False
        if process.group == pid or process.pid == pid or processes.below(process.directory, base):
            return True
        if processes.below(process.root, base):
            return True
        return not program and process.parent <= 1 and processes.seen(process.group) is None

    return processes.find(ours)


def _best(listeners: tuple[Listener, ...]) -> Listener | None:
    """The plain port where there is one: it offers STARTTLS, and is the quicker to probe on loopback."""
    return min(listeners, key=lambda listener: listener.tls, default=None)


def included_files(config: str) -> tuple[str, ...]:
    """Files that ``!include`` and ``!include_try`` reach from *config*; patterns are relative to the including file.

    https://doc.dovecot.org/2.3/configuration_manual/config_file/#including-config-files
    """
    found: list[str] = []
    waiting = [config]
    while waiting and len(found) < INCLUDES_MAX:
        path = waiting.pop(0)
        for pattern in _INCLUDE.findall(_text(path)):
            full = os.path.normpath(os.path.join(os.path.dirname(path), pattern))
            new = [match for match in sorted(glob.glob(full)) or [full] if match not in found and match != config]
            found += new
            waiting += new
    return tuple(found)
