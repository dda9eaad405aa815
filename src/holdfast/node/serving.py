"""Serving: the mail software runs here and the service addresses are here. Or neither.

Starting does both at once: the services listen on every address, and a client that meets a refused connection tries
again sooner than one whose packets vanish. Stopping for a fence gives the address back first, because that is what
clients reach us by, then kills; a planned stop ends the services first, so that nothing half-done is answered from
another machine.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from holdfast.errors import HoldfastError
from holdfast.gate.read_only import ReadOnlyMark
from holdfast.mail.port import ProbeResult
from holdfast.mail.site import MailSite
from holdfast.node.address import Addresses
from holdfast.node.address_command import CommandedAddresses
from holdfast.node.gates import Gate
from holdfast.node.served import ServedFile


class Serving:
    """The mail software and the addresses of this machine, as one thing that is on or off."""

    def __init__(
        self,
        find_mail: Callable[[], MailSite],
        addresses: Addresses | CommandedAddresses,
        written: ServedFile | None,
        gate: Gate | None = None,
        mark: ReadOnlyMark | None = None,
    ) -> None:
        """*written*: where it is written down for ``holdfast release``; None where nobody would look (tests).
        *mark*: tells the gates to refuse changes; None where they are never told to.
        """
        self._find_mail = find_mail
        self.mail = find_mail()
        self.addresses = addresses
        self._written = written
        self._gate = gate
        self._mark = mark
        self._started = False
        self.read_only = False
        """The gates refuse changes."""

    @property
    def on(self) -> bool:
        """Whether this machine serves, as far as it was told to."""
        return self._started and not self.released_by_hand

    @property
    def released_by_hand(self) -> bool:
        """It was started here, and `holdfast release` stopped it under the running agent."""
        return self._started and self._written is not None and not self._written.present

    def refuse_changes(self) -> None:
        """Through the gates nothing is changed from now on. Raises OSError."""
        assert self._mark is not None
        self._mark.make()
        self.read_only = True

    def take_changes(self) -> None:
        """Raises OSError."""
        if self._mark is not None:
            self._mark.clear()
        self.read_only = False

    def look_again(self) -> None:
        """Configuration has arrived: which services there are may have changed."""
        self.mail = self._find_mail()

    async def warm(self) -> tuple[str, ...]:
        """As a standby: do beforehand what takes time; what was done, in sentences."""
        done = await self.mail.warm()
        return done if self._gate is None else (*done, *await self._gate.warm())

    async def prepare(self) -> tuple[str, ...]:
        """Make copied configuration fit this machine; what was done, in sentences."""
        return await self.mail.prepare()

    async def start(self) -> None:
        """Take the addresses and start everything. Raises the first failure after trying all."""
        failed: list[object] = []
        if self._written is not None:
            try:
                self._written.write()
            except HoldfastError as error:
                failed.append(error)  # users come first; `holdfast release` then needs the configuration
        self._started = True
        try:
            self.take_changes()  # of an agent before this one
        except OSError as error:
            failed.append(error)
        if self._gate is not None:
            try:
                self._gate.open()  # before Postfix has anything to deliver
                await self._gate.before_mail()
            except (HoldfastError, OSError) as error:
                failed.append(error)
        taking = asyncio.to_thread(self.addresses.take)
        starting = [self.mail.start(), *([self._gate.start()] if self._gate else [])]
        _raise_first([*failed, *await asyncio.gather(taking, *starting, return_exceptions=True)])

    async def missing(self) -> tuple[str, ...]:
        """What of it is not here, by name: addresses that are not held, services that do not run.

        Raises HoldfastError when it cannot be told.
        """
        missing = await asyncio.to_thread(self.addresses.missing)
        running = await self.mail.running()
        return (
            *missing,
            *(name for name, runs in running.items() if not runs),
            *(["the gates"] if self._gate is not None and not self._gate.serving else []),
        )

    async def stop(self) -> None:
        """Planned: services end cleanly, then the addresses are given back."""
        results = await asyncio.gather(self.mail.stop(), return_exceptions=True)
        if self._gate is not None:
            await self._gate.stop()
        await self._give_up_address()
        self._ended(all_of_it=not any(isinstance(result, BaseException) for result in results))
        _raise_first(results)

    async def fence(self) -> None:
        """At once: nobody is served from here any more, whatever it takes."""
        failed: HoldfastError | None = None
        if not self.addresses.by_command:
            try:
                await asyncio.to_thread(self.addresses.release)
            except HoldfastError as error:
                failed = error
        await self.mail.stop(force=True)
        if self._gate is not None:
            await self._gate.stop()
        if self.addresses.by_command:
            await self._give_up_address()
        if failed is not None:
            raise failed
        self._ended(all_of_it=True)

    async def _give_up_address(self) -> None:
        """After the mail software has ended. Where a program does it, that it failed (a machine that is cut off reaches
        no provider) stays in ``problem``: nobody is served from here all the same, and who serves next takes it."""
        try:
            await asyncio.to_thread(self.addresses.release)
        except HoldfastError:
            if not self.addresses.by_command:
                raise

    def _ended(self, *, all_of_it: bool) -> None:
        self._started = False
        if all_of_it and self._written is not None:
            self._written.forget()

    async def probe(self) -> list[ProbeResult]:
        """A real transaction with every service, at every service address (at 127.0.0.1 where there is none here)."""
        here = () if self.addresses.by_command else self.addresses.addresses  # a cloud's is not on this machine
        addresses = [str(address.ip) for address in here] or ["127.0.0.1"]
        results = await asyncio.gather(*(self.mail.probe(address) for address in addresses))
        return [result for group in results for result in group]


def _raise_first(results: Sequence[object]) -> None:
    for result in results:
        if isinstance(result, BaseException):
            raise result
