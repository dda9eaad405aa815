"""A machine's mail software as a whole: its services, all trees, and the steps done to all services at once."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from msgspec import Struct

from holdfast.errors import ConfigurationError, HoldfastError
from holdfast.mail import packages
from holdfast.mail.certificates import Pair
from holdfast.mail.config_tree import ETC, config_trees
from holdfast.mail.dovecot import Dovecot
from holdfast.mail.inventory import OWN_FOLDER, Inventory
from holdfast.mail.outputs import Outputs
from holdfast.mail.port import CheckResult, Commands, ProbeResult, Service, ServiceFailed
from holdfast.mail.postfix import Postfix
from holdfast.mail.postfix_render import canonical
from holdfast.mail.radicale import Radicale
from holdfast.mail.secrets import LOSS, of_filters
from holdfast.mail.settings import MailSettings, ServiceName
from holdfast.mail.supervise import SYSTEMD
from holdfast.mail.take_inventory import take_inventory
from holdfast.trees.spec import TreeSpec

STOP_ORDER: Final[tuple[ServiceName, ...]] = ("postfix", "dovecot", "radicale")
"""Planned stop: first who accepts mail, so that nothing is accepted that cannot be delivered any more."""


class SiteProtection(Struct, frozen=True):
    """Everything this machine wants copied."""

    trees: tuple[TreeSpec, ...]
    rendered: tuple[str, ...]
    """Absolute paths of files to compare by :meth:`MailSite.canonical`."""
    warnings: tuple[str, ...]


class MailSite:
    """Built from the settings; knows nothing of roles, logs or addresses."""

    def __init__(self, settings: MailSettings, commands: Commands, *, systemd: Path = SYSTEMD) -> None:
        self._settings = settings
        self._commands = commands
        self._state = Path(settings.state_directory)
        names = settings.services if settings.services is not None else installed(settings)
        self.services: dict[str, Service] = {
            name: _service(name, settings, commands, systemd) for name in STOP_ORDER if name in names
        }
        self.outputs = Outputs(settings.outputs, self._state / "outputs", commands)
        self.software_directory = self._state / "software"

    async def protection(self) -> SiteProtection:
        """Discover again. Raises ConfigurationError when a service's configuration gives no root, or trees collide."""
        found = [await service.protection() for service in self.services.values()]
        data = [tree for protection in found for tree in protection.trees]
        trees = [*data, *config_trees(found, self._settings, data), packages.tree(self.software_directory)]
        if self._settings.outputs:
            trees.append(self.outputs.tree())
        trees += [tree.checked() for tree in self._settings.trees]
        _refuse_collisions(trees)
        return SiteProtection(
            trees=tuple(trees),
            rendered=tuple(path for protection in found for path in protection.rendered),
            warnings=tuple(warning for protection in found for warning in protection.warnings),
        )

    @staticmethod
    def canonical(content: bytes) -> bytes:
        """What all machines share of a rendered file: two such files agree if these are equal."""
        return canonical(content)

    async def prepare(self) -> tuple[str, ...]:
        """Make the copied configuration fit this machine. Returns what was done. Raises what the services raise."""
        done = await asyncio.gather(*(service.prepare() for service in self.services.values()))
        return tuple(sentence for sentences in done for sentence in sentences)

    async def warm(self) -> tuple[str, ...]:
        """On a standby: what takes time at a first start is done beforehand. Returns what was done."""
        done = await asyncio.gather(*(service.warm() for service in self.services.values()))
        return tuple(sentence for sentences in done for sentence in sentences)

    async def start(self) -> None:
        """Start all at once. Raises ServiceFailed naming every service that did not start; the others run."""
        await self._all("start", lambda service: service.start())

    async def stop(self, *, force: bool = False) -> None:
        """Returns when no process of any service is left. Planned: Postfix first; *force*: all at once.

        Every service is tried. Raises ServiceFailed naming those that may still be serving.
        """
        if force:
            await self._all("stop", lambda service: service.stop(force=True))
            return
        failed: list[HoldfastError] = []
        for service in self.services.values():
            try:
                await service.stop()
            except (HoldfastError, OSError) as error:
                failed.append(_failure(service.name, error))
        _raise("stop", failed)

    async def reload(self) -> None:
        await self._all("reload", lambda service: service.reload())

    async def _all(self, verb: str, step: Callable[[Service], Awaitable[None]]) -> None:
        results = await asyncio.gather(*(step(service) for service in self.services.values()), return_exceptions=True)
        failed: list[HoldfastError] = []
        for name, result in zip(self.services, results, strict=True):
            if isinstance(result, HoldfastError | OSError):
                failed.append(_failure(name, result))
            elif isinstance(result, BaseException):
                raise result
        _raise(verb, failed)

    async def running(self) -> dict[str, bool]:
        states = await asyncio.gather(*(service.running() for service in self.services.values()))
        return dict(zip(self.services, states, strict=True))

    async def probe(self, address: str) -> tuple[ProbeResult, ...]:
        return tuple(await asyncio.gather(*(service.probe(address) for service in self.services.values())))

    async def check(self) -> tuple[CheckResult, ...]:
        return tuple(await asyncio.gather(*(service.check() for service in self.services.values())))

    async def certificates(self) -> tuple[Pair, ...]:
        """What the services are configured with. Raises ConfigurationError."""
        found = [await service.certificates() for service in self.services.values()]
        return tuple(pair for pairs in found for pair in pairs)

    async def secrets_missing(self) -> tuple[str, ...]:
        """One sentence for each secret that a configuration names and that is not here. Raises ConfigurationError."""
        found = {secret for service in self.services.values() for secret in await service.secrets()}
        found |= set(of_filters(Path(ETC)))
        gone = [secret for secret in sorted(found) if not _readable(secret.path)]
        return tuple(f"{each.kind} {each.path} ({each.named_by}) is not there: {LOSS[each.kind]}" for each in gone)

    async def versions(self) -> dict[str, str]:
        found = await asyncio.gather(*(service.version() for service in self.services.values()))
        return dict(zip(self.services, found, strict=True))

    async def manifest(self) -> packages.Manifest:
        """What is installed here, now. The primary writes it by :func:`packages.write`; a standby compares it."""
        environments = []
        radicale = self.services.get("radicale")
        if isinstance(radicale, Radicale):
            # Not installed: then its version is missing from the manifest, and that is the difference to be seen.
            with contextlib.suppress(ConfigurationError):
                environments.append(packages.environment_of(radicale.command()[0]))
        return await packages.collect(
            self._commands, environments=[e for e in environments if e], more=self._settings.software_packages
        )

    async def inventory(self, *, own_folder: str = OWN_FOLDER) -> Inventory:
        """What a restore of this machine needs beside its files: see the module ``inventory``.

        Raises ConfigurationError when a service's configuration cannot be read.
        """
        return await take_inventory(
            self.services, self._settings, (await self.protection()).trees, self.software_directory, own_folder
        )

    async def software_differences(self) -> tuple[packages.Difference, ...] | None:
        """This machine against the primary's manifest as copied here; None when none has arrived."""
        primary = packages.read(self.software_directory)
        if primary is None:
            return None
        return packages.compare(primary, await self.manifest(), more=self._settings.software_packages)


def _readable(path: str) -> bool:
    """Whether there is something in it."""
    try:
        return os.stat(path).st_size > 0
    except OSError:
        return False


def installed(settings: MailSettings) -> tuple[ServiceName, ...]:
    """The services whose configuration is there, and for Dovecot and Postfix the program too."""
    found: list[ServiceName] = []
    path = os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin"
    if os.path.exists(settings.postfix.config_directory) and shutil.which("postfix", path=path):
        found.append("postfix")
    if os.path.exists(settings.dovecot.config) and shutil.which("dovecot", path=path):
        found.append("dovecot")
    if os.path.exists(settings.radicale.config):
        found.append("radicale")
    return tuple(found)


def _service(name: ServiceName, settings: MailSettings, commands: Commands, systemd: Path) -> Service:
    if name == "dovecot":
        return Dovecot(
            settings.dovecot,
            commands,
            probe=settings.probe,
            store_paths=settings.store_paths,
            store_exclude=settings.store_exclude,
            copy_cache=settings.copy_cache,
            systemd=systemd,
        )
    state, probe = settings.state_directory, settings.probe
    if name == "postfix":
        return Postfix(settings.postfix, commands, state_directory=state, probe=probe, systemd=systemd)
    return Radicale(settings.radicale, commands, state_directory=state, probe=probe, systemd=systemd)


def _failure(name: str, error: HoldfastError | OSError) -> HoldfastError:
    """What the system refused a service, as the service's failure."""
    return error if isinstance(error, HoldfastError) else ServiceFailed(f"{name}: {error}")


def _raise(verb: str, failed: list[HoldfastError]) -> None:
    if failed:
        raise ServiceFailed(
            f"{verb}: " + "; ".join(error.message for error in failed),
            hint="\n  ".join(error.hint for error in failed if error.hint),
            retry=all(error.retry for error in failed),
        )


def _refuse_collisions(trees: list[TreeSpec]) -> None:
    names = [tree.name for tree in trees]
    for name in names:
        if names.count(name) > 1:
            raise ConfigurationError(f"two trees are called {name!r}", hint="Rename the one in [[mail.trees]].")
