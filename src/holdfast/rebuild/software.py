"""The packages of the manifest, by apt: what is missing here, what can be had, and installing it.

The exact version where the repositories have it, the one they offer where not, and the difference is named. Another
*feature* version of what serves mail is a reason to stop: Dovecot 2.4 does not read a configuration of 2.3.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

from holdfast.errors import EnvironmentUnfit, HoldfastError
from holdfast.mail.packages import HELPING, SERVING, Manifest, feature_version, matches
from holdfast.mail.port import Commands

QUERY_SECONDS_MAX: Final = 120.0
UPDATE_SECONDS_MAX: Final = 600.0
INSTALL_SECONDS_MAX: Final = 3600.0
POLICY: Final = Path("/usr/sbin/policy-rc.d")
"""invoke-rc.d asks it whether a service may be started; 101 forbids (see /usr/share/doc/init-system-helpers)."""
_FORBID: Final = (
    "#!/bin/sh\n# Holdfast is rebuilding this machine: nothing is started before its mail is there.\nexit 101\n"
)
_ENVIRONMENT: Final = {"DEBIAN_FRONTEND": "noninteractive"}
_KEEP: Final = ("-o", "Dpkg::Options::=--force-confdef", "-o", "Dpkg::Options::=--force-confold")


class InstallFailed(HoldfastError):
    """apt did not do it; the message ends with what it said."""


class Wanted(NamedTuple):
    """One package. *version*: as it was; *here*: what is installed, empty when nothing is; *offered*: what apt would
    install, empty when it knows none."""

    name: str
    version: str
    here: str
    offered: str
    exact: bool
    """The version as it was can be had."""
    serving: bool

    @property
    def argument(self) -> str:
        return f"{self.name}={self.version}" if self.exact else self.name

    @property
    def becomes(self) -> str:
        """The version that will be here."""
        return self.here or (self.version if self.exact else self.offered)


class SoftwarePlan(NamedTuple):
    install: tuple[Wanted, ...] = ()
    present: int = 0
    differences: tuple[str, ...] = ()
    """Other versions, and what cannot be had but does not serve: in sentences."""
    refusals: tuple[str, ...] = ()
    by_hand: tuple[str, ...] = ()
    """Installed there by hand and of no use to mail; or of a Python environment."""


async def plan_software(manifest: Manifest, commands: Commands, *, offline: bool = False) -> SoftwarePlan:
    """Compare the manifest with this machine and with what apt offers. *offline*: the lists are not fetched anew.

    Raises EnvironmentUnfit (no dpkg, no apt-cache).
    """
    here = await _installed(commands)
    matter = {name: version for name, version in manifest.packages.items() if matches(name, (*SERVING, *HELPING))}
    packages = {name: version for name, version in matter.items() if not name.startswith("python:")}
    missing = sorted(name for name in packages if name not in here)
    offered = await _offered(commands, missing, fetch=bool(missing) and not offline)
    install: list[Wanted] = []
    differences: list[str] = []
    refusals: list[str] = []
    for name, version in sorted(packages.items()):
        wanted = _wanted(name, version, here, offered)
        if not wanted.becomes:
            words = f"{name} {version} is not installed, and no repository of this machine has it"
            (refusals if wanted.serving else differences).append(words)
            continue
        if wanted.becomes != version:
            words = f"{name}: {version} there, {wanted.becomes} here"
            other = wanted.serving and feature_version(version) != feature_version(wanted.becomes)
            if other:
                refusals.append(f"{words}: it may not read the configuration")
            else:
                differences.append(words)
        if not wanted.here:
            install.append(wanted)
    manual = [name for name in manifest.packages if name not in matter and name not in here]
    by_hand = [*(name for name in manual if not name.startswith("python:")), *_python(matter)]
    present = sum(name in here for name in packages)
    return SoftwarePlan(tuple(install), present, tuple(differences), tuple(refusals), tuple(by_hand))


def _wanted(name: str, version: str, here: Mapping[str, str], offered: Mapping[str, tuple[str, ...]]) -> Wanted:
    versions = offered.get(name, ())
    serving = matches(name, SERVING)
    return Wanted(name, version, here.get(name, ""), versions[0] if versions else "", version in versions, serving)


def _python(matter: Mapping[str, str]) -> list[str]:
    """Programs that serve and came from a Python environment, when none of that name is here."""
    import shutil

    names = [name for name in matter if name.startswith("python:") and matches(name, SERVING)]
    return [f"{name.partition(':')[2]} {matter[name]} (Python)" for name in names if not shutil.which(name[7:])]


async def _installed(commands: Commands) -> dict[str, str]:
    argv = ["dpkg-query", "-W", "-f", "${db:Status-Status} ${Package} ${Version}\n"]
    result = await commands.run(argv, timeout_seconds=QUERY_SECONDS_MAX)
    if not result.ok and "no packages found" not in result.errors:
        hint = "Install what `holdfast vault show software/packages.txt` lists, and give --skip-packages."
        raise EnvironmentUnfit(result.words, hint=hint)
    rows = (line.split(" ") for line in result.output.splitlines())
    return {row[1]: row[2] for row in rows if len(row) == 3 and row[0] == "installed"}


async def _offered(commands: Commands, names: list[str], *, fetch: bool) -> dict[str, tuple[str, ...]]:
    """Versions that can be had, the one apt would take first."""
    if not names:
        return {}
    if fetch:
        result = await commands.run(["apt-get", "update"], timeout_seconds=UPDATE_SECONDS_MAX, environment=_ENVIRONMENT)
        if not result.ok:
            hint = "Mend the machine's package sources or its network, or install by hand and give --skip-packages."
            raise InstallFailed(result.words, hint=hint, retry=True)
    found: dict[str, tuple[str, ...]] = {}
    policy = await commands.run(["apt-cache", "policy", *names], timeout_seconds=QUERY_SECONDS_MAX)
    for block in re.split(r"\n(?=\S+:\n)", policy.output):
        name = block.partition(":\n")[0].strip()
        candidate = re.search(r"Candidate: (\S+)", block)
        if candidate is None or candidate[1] == "(none)":
            continue
        rows = re.findall(r"^ (?:\*\*\*|   ) (\S+) -?\d+$", block, re.MULTILINE)
        found[name] = tuple(dict.fromkeys([candidate[1], *rows]))
    return found


async def install(plan: SoftwarePlan, commands: Commands, *, policy: Path = POLICY) -> None:
    """Install what is missing; nothing of it is started. Raises InstallFailed, and what writing *policy* raises."""
    if not plan.install:
        return
    ours = not policy.exists()
    if ours:
        policy.write_text(_FORBID)
        policy.chmod(0o755)
    try:
        argv = ["apt-get", "install", "--yes", "--no-install-recommends", "--allow-downgrades", *_KEEP]
        result = await commands.run(
            [*argv, *(wanted.argument for wanted in plan.install)],
            timeout_seconds=INSTALL_SECONDS_MAX,
            environment=_ENVIRONMENT,
        )
    finally:
        if ours:
            policy.unlink(missing_ok=True)
    if not result.ok:
        said = " ".join((result.errors.strip() or result.output.strip()).splitlines()[-3:])
        hint = "Install by hand what is missing, then repeat the command: it goes on here."
        raise InstallFailed(f"apt-get install ended with {result.exit_status}: {said}", hint=hint, retry=True)
    here = await _installed(commands)
    absent = [wanted.name for wanted in plan.install if wanted.name not in here]
    if absent:
        raise InstallFailed(f"apt-get said it was done, and these are not installed: {', '.join(absent)}")


def is_systemd() -> bool:
    """sd_booted(3)."""
    return os.path.isdir("/run/systemd/system")
