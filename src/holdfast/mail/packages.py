"""The tree ``software``: a manifest of what is installed, so that a difference between two machines is seen beforehand.

A manifest is made anew from the package database, the release files, Python environments of services and the enabled
systemd units. It holds no time, so the same machine gives the same bytes, and nothing is copied until it changes.
"""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Iterable
from enum import IntEnum
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from holdfast.errors import ConfigurationError, EnvironmentUnfit
from holdfast.mail.files import PARTIAL_SUFFIX, write_whole
from holdfast.mail.port import Commands
from holdfast.trees.spec import TreeSpec

_QUERY_SECONDS_MAX: Final = 60.0
_BY_HAND: Final = (
    "apt-mark",
    *("-o", "Dir::State::Lists=/nonexistent/"),
    *("-o", "Dir::Cache::pkgcache=", "-o", "Dir::Cache::srcpkgcache="),
    "showmanual",
)
"""Of what is installed alone: with the lists of all packages there are, apt takes a second of processor where it keeps
no cache, at every start of an agent. And it must not write its cache anew without them (apt.conf(5), Dir)."""
MANIFEST_NAME: Final = "manifest.json"
PACKAGES_NAME: Final = "packages.txt"
FORMAT: Final = 1

SERVING: Final = ("postfix*", "dovecot-*", "radicale*", "python:radicale*")
"""Packages that answer clients: with another feature version the copied configuration or mail may not work."""
HELPING: Final = (
    *("opendkim*", "opendmarc*", "rspamd*", "spamassassin*", "spamc", "amavisd*", "clamav*", "postgrey*", "postsrsd*"),
    *("sqlite3", "mariadb-*", "mysql-*", "postgresql*", "redis*", "unbound*", "bind9", "openssl", "libssl*"),
    *("ca-certificates", "sasl2-bin", "libsasl2*", "certbot*", "procmail", "maildrop", "mailman*", "python:*"),
)
"""Packages that mail passes through, or that the above are built on."""


class Severity(IntEnum):
    NOTE = 1
    """Different, and nothing of mail depends on it."""
    WARNING = 2
    """Mail may behave differently: look before it matters."""
    GRAVE = 3
    """After a takeover mail would likely not be served: repair now."""


class Manifest(Struct, frozen=True, forbid_unknown_fields=True):
    """What is installed. Maps are from name to version."""

    format: int
    release: str
    kernel: str
    packages: dict[str, str]
    """Mail software and everything installed by hand; Python packages of services as ``python:name``."""
    units: tuple[str, ...]
    """Enabled systemd units."""


class Difference(Struct, frozen=True):
    severity: Severity
    name: str
    primary: str
    """Version on the primary; empty where it is not installed."""
    own: str
    words: str


async def collect(
    commands: Commands,
    *,
    environments: Iterable[str] = (),
    more: tuple[str, ...] = (),
    root: Path = Path("/"),
) -> Manifest:
    """Look at this machine. *environments*: folders of Python environments of services; *more*: package patterns.

    Raises EnvironmentUnfit on a system without dpkg.
    """
    query = ["dpkg-query", "-W", "-f", "${db:Status-Status} ${Package} ${Version}\n"]
    listed = await commands.run(query, timeout_seconds=_QUERY_SECONDS_MAX)
    if not listed.ok:
        raise EnvironmentUnfit(
            listed.words,
            hint="The manifest is made from dpkg's database; without it, differences of versions are not shown.",
        )
    by_hand = await commands.run(_BY_HAND, timeout_seconds=_QUERY_SECONDS_MAX)
    manual = set(by_hand.output.split()) if by_hand.ok else set()
    packages = {}
    for line in listed.output.splitlines():
        status, _, rest = line.partition(" ")
        name, _, version = rest.partition(" ")
        if status == "installed" and (name in manual or matches(name, (*SERVING, *HELPING, *more))):
            packages[name] = version
    for folder in environments:
        packages |= {f"python:{name}": version for name, version in environment_packages(Path(folder)).items()}
    return Manifest(
        format=FORMAT,
        release=_release(root / "etc/os-release"),
        kernel=os.uname().release,
        packages=dict(sorted(packages.items())),
        units=_units(root / "etc/systemd/system"),
    )


def environment_packages(folder: Path) -> dict[str, str]:
    """Distributions of a Python environment, from their folders' names (PEP 376): name, in lower case, to version."""
    found = {}
    for path in folder.glob("lib/python3*/site-packages/*.dist-info"):
        name, _, version = path.name.removesuffix(".dist-info").partition("-")
        found[re.sub(r"[-_.]+", "-", name).lower()] = version
    return found


def environment_of(program: str) -> str:
    """The Python environment that a script belongs to, by ``pyvenv.cfg`` above its folder; empty if it has none."""
    folder = Path(program).parent.parent
    return str(folder) if (folder / "pyvenv.cfg").is_file() else ""


def _release(path: Path) -> str:
    try:
        text = path.read_text(errors="replace")
    except OSError:
        return ""
    match = re.search(r'^PRETTY_NAME="?([^"\n]*)', text, re.MULTILINE)
    return match[1] if match else ""


def _units(folder: Path) -> tuple[str, ...]:
    """Units that an enabled unit file links to: no running systemd is needed to see them."""
    wants = [*folder.glob("*.wants/*"), *folder.glob("*.requires/*")]
    return tuple(sorted({path.name for path in wants}))


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether a package is one of *patterns*."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def write(manifest: Manifest, directory: Path) -> bool:
    """Write the manifest for programs and a list for people and apt. Returns whether anything changed."""
    directory.mkdir(parents=True, exist_ok=True)
    encoded = msgspec.json.format(msgspec.json.encode(manifest, order="sorted"), indent=1) + b"\n"
    lines = [f"{name}={version}\n" for name, version in manifest.packages.items() if not name.startswith("python:")]
    changed = write_whole(directory / MANIFEST_NAME, encoded)
    return write_whole(directory / PACKAGES_NAME, "".join(lines).encode()) or changed


def read(directory: Path) -> Manifest | None:
    """The manifest in *directory*; None when there is none. Raises ConfigurationError when it cannot be read."""
    path = directory / MANIFEST_NAME
    try:
        return decode(path.read_bytes(), str(path))
    except FileNotFoundError:
        return None


def decode(content: bytes, source: str) -> Manifest:
    """Raises ConfigurationError naming *source*."""
    try:
        return msgspec.json.decode(content, type=Manifest)
    except msgspec.DecodeError as error:
        raise ConfigurationError(
            f"{source}: {error}",
            hint="It is generated: it is written anew by the primary's agent; both agents should be of one version.",
        ) from error


def tree(directory: Path) -> TreeSpec:
    return TreeSpec(name="software", root=str(directory), exclude=("*" + PARTIAL_SUFFIX,)).checked()


def compare(primary: Manifest, own: Manifest, *, more: tuple[str, ...] = ()) -> tuple[Difference, ...]:
    """What differs, the gravest first. *more*: package patterns that matter to mail at this site."""
    found = []
    for name in sorted(primary.packages.keys() | own.packages.keys()):
        theirs, ours = primary.packages.get(name, ""), own.packages.get(name, "")
        if theirs != ours:
            found.append(_difference(name, theirs, ours, more))
    if primary.release != own.release:
        words = f"the primary runs {primary.release}, this machine {own.release}"
        found.append(Difference(Severity.WARNING, "release", primary.release, own.release, words))
    if primary.kernel != own.kernel:
        words = f"kernel {primary.kernel} there, {own.kernel} here"
        found.append(Difference(Severity.NOTE, "kernel", primary.kernel, own.kernel, words))
    for unit in sorted(set(primary.units) ^ set(own.units)):
        there = unit in primary.units
        words = f"unit {unit} is enabled on {'the primary' if there else 'this machine'} only"
        found.append(Difference(Severity.NOTE, unit, "enabled" if there else "", "" if there else "enabled", words))
    return tuple(sorted(found, key=lambda difference: (-difference.severity, difference.name)))


def _difference(name: str, theirs: str, ours: str, more: tuple[str, ...]) -> Difference:
    serving, helping = matches(name, SERVING), matches(name, (*HELPING, *more))
    if theirs and not ours:
        severity = Severity.GRAVE if serving else Severity.WARNING if helping else Severity.NOTE
        return Difference(severity, name, theirs, ours, f"{name} {theirs} is not installed here")
    if ours and not theirs:
        return Difference(Severity.NOTE, name, theirs, ours, f"{name} {ours} is installed here only")
    severity = Severity.WARNING if serving or helping else Severity.NOTE
    if serving and feature_version(theirs) != feature_version(ours):
        severity = Severity.GRAVE
    return Difference(severity, name, theirs, ours, f"{name}: {theirs} on the primary, {ours} here")


def feature_version(version: str) -> tuple[int, ...]:
    """The part of a version that changes features: ``1:2.3.19.1+dfsg1-2`` gives (2, 3). See deb-version(7)."""
    upstream = version.partition(":")[2] if ":" in version else version
    numbers = re.match(r"\d+(?:\.\d+)*", upstream)
    return tuple(int(number) for number in numbers[0].split(".")[:2]) if numbers else ()
