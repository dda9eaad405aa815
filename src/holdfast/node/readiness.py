"""Is this standby able to take over? Asked on a timer, before it is needed.

What is looked at every ten minutes: the mail software's own check of the configuration as copied (``postfix check``,
``doveconf``, the files it names), certificates that end soon or do not fit their keys, secrets that are named and not
here (DKIM keys, passwords, keys), programs of another version than the primary's, the interface that is to carry the
addresses, that the addresses are not here already, room on the disks of the trees, that nothing else listens where the
mail software will, and this machine's clock beside the others'.

And what the last rehearsal found (``rehearsal``): that the software as rendered for this machine starts, lets people
in, and gives them their mail.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
import socket
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from msgspec import Struct

from holdfast.errors import HoldfastError
from holdfast.mail.certificates import wrong
from holdfast.mail.packages import Difference, Severity
from holdfast.node import netlink
from holdfast.node.address_command import CommandedAddresses
from holdfast.node.rehearsal import read
from holdfast.node.world import World
from holdfast.trees.spec import TreeSpec

EVERY_SECONDS: Final = 600.0
SOFTWARE_SECONDS: Final = 3600.0
"""As often as the primary writes its manifest; asking for what is installed here costs a second of a processor."""
FREE_SHARE_MIN: Final = 0.05
PORTS: Final = (25, 143, 465, 587, 993, 4190, 5232)
_SIOCGIFFLAGS, _IFF_UP, _IFF_RUNNING = 0x8913, 0x1, 0x40


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

    def __init__(
        self, world: World, wanted: Callable[[], bool], clocks_ahead: Callable[[], Mapping[str, float]] = dict
    ) -> None:
        """*clocks_ahead*: how far the clock of each other machine that is heard is ahead of this one's."""
        self._world = world
        self._wanted = wanted
        self._clocks_ahead = clocks_ahead
        self.last = Readiness()
        self.rehearsal = read(world.settings.state)
        """The last one; ``Rehearsals`` puts it here."""
        self.software: tuple[Difference, ...] = ()
        """In what this machine's programs differ from the primary's, by the manifest as copied."""
        self._compare_software_at = 0.0

    async def run(self) -> None:
        """Until cancelled."""
        due = 0.0
        while True:
            if not self._wanted():
                self.last, due = Readiness(), 0.0
                self.software, self._compare_software_at = (), 0.0
            elif self._world.clocks.steady() >= due:
                await self.look()
                due = self._world.clocks.steady() + EVERY_SECONDS
            await asyncio.sleep(1.0)

    async def look(self) -> Readiness:
        """Look now; changes are written into the history."""
        problems: list[str] = []
        notes: list[str] = []
        for ask in (self._configuration, self._certificates, self._software):
            try:
                await ask(problems, notes)
            except HoldfastError as error:
                problems.append(error.message)
        problems = list(dict.fromkeys(problems))
        problems += await asyncio.to_thread(lambda: list(self._of_machine()))
        problems += wrong_clock(self._clocks_ahead())
        problems += [f"rehearsal: {problem}" for problem in self.rehearsal.problems]
        if self.rehearsal.impossible:
            notes.append(f"it cannot be rehearsed here: {self.rehearsal.impossible}")
        found = Readiness(self._world.clocks.wall_seconds(), tuple(problems), tuple(notes))
        if found.problems != self.last.problems:
            what = "not ready to take over" if found.problems else "ready to take over"
            self._world.history.record(what, "; ".join(found.problems))
        self.last = found
        return found

    async def _configuration(self, problems: list[str], notes: list[str]) -> None:
        for result in await self._world.serving.mail.check():
            problems += [f"{result.service}: {error}" for error in result.errors]
            notes += [f"{result.service}: {warning}" for warning in result.warnings]

    async def _certificates(self, problems: list[str], notes: list[str]) -> None:
        mail = self._world.serving.mail
        now = datetime.fromtimestamp(self._world.clocks.wall_seconds(), UTC)
        problems += await asyncio.to_thread(wrong, await mail.certificates(), now)
        problems += await mail.secrets_missing()

    async def _software(self, problems: list[str], notes: list[str]) -> None:
        now = self._world.clocks.steady()
        if now >= self._compare_software_at:
            self._compare_software_at = now + SOFTWARE_SECONDS
            self.software = await self._world.serving.mail.software_differences() or ()
        for difference in self.software:
            if difference.severity > Severity.NOTE:
                (problems if difference.severity >= Severity.GRAVE else notes).append(difference.words)

    def _of_machine(self) -> Iterator[str]:
        settings = self._world.settings
        service = settings.service
        addresses = self._world.serving.addresses
        if isinstance(addresses, CommandedAddresses):
            try:
                if not addresses.missing():
                    yield "the service address is this machine's, although it does not serve"
            except HoldfastError as error:
                yield error.message
        elif service.addresses:
            try:
                there = netlink.addresses(service.interface)
            except OSError:
                yield f"there is no interface {service.interface!r} to carry the service addresses"
                there = []
            ours = {address.ip for address in addresses.addresses}
            yield from (
                f"{each.ip} is on this machine, although it does not serve" for each in there if each.ip in ours
            )
            if there and not _carries(service.interface):
                yield f"the interface {service.interface!r} is down, or has no link: it cannot carry the addresses"
        yield from full_disks(self._world.local.state.trees)
        if settings.service.addresses:
            yield from taken_ports(Path("/proc/net"))


def wrong_clock(ahead: Mapping[str, float]) -> list[str]:
    """A sentence when two and more other clocks are ahead of this machine's, or behind it: with one, whose?"""
    values = list(ahead.values())
    if len(values) > 1 and (all(value > 0 for value in values) or all(value < 0 for value in values)):
        least = min(abs(value) for value in values)
        way = "behind" if values[0] > 0 else "ahead of"
        return [f"this machine's clock is {least:.0f} s {way} that of {' and '.join(ahead)}"]
    return []


def _carries(interface: str) -> bool:
    """Whether it is up and has a link: netdevice(7), SIOCGIFFLAGS."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as door:
        try:
            request = struct.pack("16sh14x", interface.encode()[:15], 0)
            (flags,) = struct.unpack_from("16xh", fcntl.ioctl(door, _SIOCGIFFLAGS, request))
        except OSError:
            return False
    return bool(flags & _IFF_UP and flags & _IFF_RUNNING)


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
