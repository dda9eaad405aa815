"""The service address moved by a program of the administrator's: a cloud's floating address, a record in the DNS.

``COMMAND take ADDRESS...``
    It becomes this machine's, whoever has it. Exit status 0: it was ordered.
``COMMAND check ADDRESS...``
    0: it is this machine's; 1: it is not; anything else: it cannot be told. This is the proof: taking is done when it
    says so.
``COMMAND release ADDRESS...``
    It is given up, if it is this machine's, and nothing is done if it is not: another may have it already. It is not
    called when ``check`` says that it is not here.

What differs from an address of our own interface. *The network does not take it away*: a machine that hangs keeps it
until another takes it; then, and no later, clients reach the other. *It takes seconds*, so a machine that must stop
serving at once ends its mail software first and gives the address up after; that this fails while it is cut off from
everything is no reason to wait. *It can be lost behind our back*: so it is checked now and then, and taken again.
"""

from __future__ import annotations

import ipaddress
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Final

from holdfast.errors import HoldfastError
from holdfast.node.netlink import Interface
from holdfast.node.outside import Said, run

AGAIN_SECONDS: Final = 0.5
"""Between two questions whether it has come."""
KEEP_SECONDS: Final = 15.0
"""How often it is looked whether it is still here: a question to a provider each time."""
HERE, NOT_HERE = 0, 1


class AddressCommandFailed(HoldfastError):
    """The program could not do it, or it did not come true."""


class CommandedAddresses:
    """As ``address.Addresses``, by a program. Its methods wait for it: call them in a thread."""

    lease_seconds: Final = None
    by_command: Final = True

    def __init__(
        self, command: Sequence[str], addresses: Sequence[str], seconds: float, environment: Mapping[str, str]
    ) -> None:
        """*seconds*: how long taking, with its proof, may take, and how long each other call."""
        self.addresses: tuple[Interface, ...] = tuple(ipaddress.ip_interface(address) for address in addresses)
        self.interface = ""
        self.problem = ""
        """What went wrong last; empty when it went well."""
        self._command = tuple(command)
        self._seconds = seconds
        self._environment = dict(environment)
        self._wanted = False
        self._one = threading.Lock()

    def missing(self) -> tuple[str, ...]:
        """What is not here, in words. Raises AddressCommandFailed when it cannot be told."""
        said = self._call("check", self._seconds)
        if said.exit_status not in (HERE, NOT_HERE):
            raise self._failed(f"whether the address is here cannot be told: {said.words}")
        return () if said.exit_status == HERE else ("the service address",)

    def let_go(self) -> None:
        """What can be done at once: a taking under way is ended. The mail software ends next, then :meth:`release`."""
        self._wanted = False

    def take(self) -> None:
        """Returns when ``check`` has said that it is here. Raises AddressCommandFailed."""
        self._wanted = True
        with self._one:
            self._take(time.monotonic() + self._seconds)

    def _take(self, deadline: float) -> None:
        words = "it was not wanted any more"
        while self._wanted:
            left = deadline - time.monotonic()
            if left <= 0:
                raise self._failed(f"the address was not here {self._seconds:g} s after it was to be taken: {words}")
            if (said := self._call("check", left)).exit_status == HERE:
                self.problem = ""
                return
            words = said.words
            taken = self._call("take", max(deadline - time.monotonic(), AGAIN_SECONDS))
            if taken.exit_status != 0:
                words = taken.words
            while self._wanted and time.monotonic() < deadline and taken.exit_status == 0:
                if (said := self._call("check", self._seconds)).exit_status == HERE:
                    self.problem = ""
                    return
                words = said.words
                time.sleep(AGAIN_SECONDS)
            time.sleep(AGAIN_SECONDS)
        raise self._failed(f"the address was not taken: {words}")

    def renew(self) -> None:
        """Take it again if it is not here any more, unless it is being taken or given up just now.

        Raises AddressCommandFailed.
        """
        if not self._wanted or not self._one.acquire(blocking=False):
            return
        try:
            self._take(time.monotonic() + self._seconds)
        finally:
            self._one.release()

    def release(self) -> tuple[Interface, ...]:
        """Give it up if it is here; what that was. A taking under way is ended. Raises AddressCommandFailed."""
        self._wanted = False
        with self._one:
            said = self._call("check", self._seconds, always=True)
            if said.exit_status == NOT_HERE:
                self.problem = ""
                return ()
            said = self._call("release", self._seconds, always=True)
            if said.exit_status != 0:
                raise self._failed(f"the address could not be given up: {said.words}")
            self.problem = ""
            return self.addresses

    def announce(self) -> None:
        """Whoever moves it tells everybody."""

    def _call(self, verb: str, seconds: float, *, always: bool = False) -> Said:
        argv = (*self._command, verb, *(str(address.ip) for address in self.addresses))
        taking = verb == "take" and not always
        return run(argv, seconds, self._environment, unwanted=lambda: taking and not self._wanted)

    def _failed(self, what: str) -> AddressCommandFailed:
        self.problem = what
        return AddressCommandFailed(what, hint=f"Try it by hand: {' '.join(self._command)} check", retry=True)
