"""Is this standby able to take over? Asked on a timer, before it is needed.

What is looked at: the mail software's own check of the configuration as copied (``postfix check``, ``doveconf``, the
files it names), certificates that end soon, the interface that is to carry the addresses, that the addresses are not
here already, room on the disks of the trees, and that nothing else listens where the mail software will.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from msgspec import Struct

from holdfast.errors import HoldfastError
from holdfast.node import netlink
from holdfast.node.world import World
from holdfast.trees.spec import TreeSpec

EVERY_SECONDS: Final = 600.0
FREE_SHARE_MIN: Final = 0.05
ENDS_WITHIN: Final = timedelta(days=14)
"""A mail certificate that ends so soon would end in somebody's holidays."""
PORTS: Final = (25, 143, 465, 587, 993, 4190, 5232)
CERTIFICATE_BYTES_MAX: Final = 256 * 1024
SUFFIXES: Final = (".pem", ".crt", ".cert", ".cer")


class Readiness(Struct, frozen=True):
    """What was found. *checked_at*: seconds since 1970; 0: not looked at yet, or no standby."""

    checked_at: float = 0.0
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def ready(self) -> bool:
        return not self.problems


class ReadinessCheck:
    """Looks while *wanted* says that this machine is a standby."""

    def __init__(self, world: World, wanted: Callable[[], bool]) -> None:
        self._world = world
        self._wanted = wanted
        self.last = Readiness()

    async def run(self) -> None:
        """Until cancelled."""
        due = 0.0
        while True:
            if not self._wanted():
                self.last, due = Readiness(), 0.0
            elif self._world.clocks.steady() >= due:
                await self.look()
                due = self._world.clocks.steady() + EVERY_SECONDS
            await asyncio.sleep(1.0)

    async def look(self) -> Readiness:
        """Look now; changes are written into the history."""
        problems: list[str] = []
        notes: list[str] = []
        try:
            for result in await self._world.serving.mail.check():
                problems += [f"{result.service}: {error}" for error in result.errors]
                notes += [f"{result.service}: {warning}" for warning in result.warnings]
        except HoldfastError as error:
            problems.append(error.message)
        problems += await asyncio.to_thread(lambda: list(self._of_machine()))
        found = Readiness(self._world.clocks.wall_seconds(), tuple(problems), tuple(notes))
        if found.problems != self.last.problems:
            what = "not ready to take over" if found.problems else "ready to take over"
            self._world.history.record(what, "; ".join(found.problems))
        self.last = found
        return found

    def _of_machine(self) -> Iterator[str]:
        settings = self._world.settings
        service = settings.service
        try:
            there = netlink.addresses(service.interface) if service.addresses else []
        except OSError:
            yield f"there is no interface {service.interface!r} to carry the service addresses"
            there = []
        ours = {address.ip for address in self._world.serving.addresses.addresses}
        yield from (f"{each.ip} is on this machine, although it does not serve" for each in there if each.ip in ours)
        yield from full_disks(self._world.local.state.trees)
        now = datetime.fromtimestamp(self._world.clocks.wall_seconds(), UTC)
        yield from ending_certificates(self._world.local.state.trees, now)
        if settings.service.addresses:
            yield from taken_ports(Path("/proc/net"))


def full_disks(trees: Iterable[TreeSpec]) -> Iterator[str]:
    """One sentence for each filesystem of *trees* that is nearly full."""
    seen: set[int] = set()
    for spec in trees:
        try:
            device = os.stat(spec.root).st_dev
            usage = shutil.disk_usage(spec.root)
        except OSError as error:
            yield f"{spec.root} cannot be looked at: {error.strerror}"
            continue
        if device not in seen and usage.free < FREE_SHARE_MIN * usage.total:
            yield f"the disk of {spec.root} is {100 - 100 * usage.free // usage.total} % full"
        seen.add(device)


def ending_certificates(trees: Iterable[TreeSpec], now: datetime) -> Iterator[str]:
    """One sentence for each certificate in the tree ``config`` that has ended or soon will."""
    for spec in trees:
        if spec.name != "config":
            continue
        for path in sorted(Path(spec.root).glob("ssl/certs/*")) + sorted(Path(spec.root).glob("dovecot/**/*")):
            plain = path.suffix in SUFFIXES and path.is_file() and not path.is_symlink()
            if plain and (ends := _ends(path, now)):
                yield ends


def _ends(path: Path, now: datetime) -> str:
    try:
        if path.stat().st_size > CERTIFICATE_BYTES_MAX:
            return ""
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError):
        return ""  # no certificate, or none that we can read: the mail software's own check says so
    until = certificate.not_valid_after_utc
    if until < now:
        return f"the certificate {path} ended on {until:%Y-%m-%d}"
    return f"the certificate {path} ends on {until:%Y-%m-%d}" if until - now < ENDS_WITHIN else ""


def taken_ports(net: Path) -> Iterator[str]:
    """One sentence for each port of the mail protocols that something listens on (*net*: tcp and tcp6 of proc(5))."""
    taken: set[int] = set()
    for name in ("tcp", "tcp6"):
        try:
            lines = (net / name).read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            address, _, port = fields[1].rpartition(":")
            local = address in ("0100007F", "00000000000000000000000001000000")
            if fields[3] == "0A" and int(port, 16) in PORTS and not local:
                taken.add(int(port, 16))
    if taken:
        ports = ", ".join(str(port) for port in sorted(taken))
        yield f"something listens on port {ports} already: the mail software must not run on a standby"
