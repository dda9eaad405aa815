"""Serving: the mail software runs here and the service addresses are here. Or neither.

Starting does both at once: the services listen on every address, and a client that meets a refused connection tries
again sooner than one whose packets vanish. Stopping for a fence gives the address back first, because that is what
clients reach us by, then kills; a planned stop ends the services first, so that nothing half-done is answered from
another machine.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from holdfast.errors import HoldfastError
from holdfast.mail.port import ProbeResult, Service
from holdfast.node.address import Addresses


class Serving:
    """The services and addresses of this machine, as one thing that is on or off."""

    def __init__(self, services: Sequence[Service], addresses: Addresses) -> None:
        self.services = tuple(services)
        self.addresses = addresses
        self.on = False

    async def prepare(self) -> tuple[str, ...]:
        """Make copied configuration fit this machine; what was done, in sentences."""
        done: list[str] = []
        for service in self.services:
            done += await service.prepare()
        return tuple(done)

    async def start(self) -> None:
        """Take the addresses and start everything. Raises the first failure after trying all."""
        self.on = True
        results = await asyncio.gather(
            asyncio.to_thread(self.addresses.take),
            *(service.start() for service in self.services),
            return_exceptions=True,
        )
        _raise_first(results)

    async def stop(self) -> None:
        """Planned: services end cleanly, then the addresses are given back."""
        results = await asyncio.gather(*(service.stop() for service in self.services), return_exceptions=True)
        await asyncio.to_thread(self.addresses.release)
        self.on = False
        _raise_first(results)

    async def fence(self) -> None:
        """At once: nobody is served from here any more, whatever it takes."""
        results: list[object] = []
        try:
            await asyncio.to_thread(self.addresses.release)
        except HoldfastError as error:
            results.append(error)
        results += await asyncio.gather(
            *(service.stop(force=True) for service in self.services), return_exceptions=True
        )
        self.on = False
        _raise_first(results)

    async def probe(self) -> list[ProbeResult]:
        """A real transaction with every service, at every service address (at 127.0.0.1 where there is none)."""
        addresses = [str(address.ip) for address in self.addresses.addresses] or ["127.0.0.1"]
        return list(
            await asyncio.gather(*(service.probe(address) for address in addresses for service in self.services))
        )


def _raise_first(results: Sequence[object]) -> None:
    for result in results:
        if isinstance(result, BaseException):
            raise result
