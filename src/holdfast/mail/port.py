"""The words of this package: services, commands, probe results, and what a service wants protected."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from msgspec import Struct

from holdfast.errors import HoldfastError
from holdfast.mail.certificates import Pair
from holdfast.mail.secrets import Secret
from holdfast.trees.spec import TreeSpec


class ServiceFailed(HoldfastError):
    """A service did not start, stop or reload as asked; the message ends with what the program itself said."""


class CommandResult(Struct, frozen=True):
    """What a program did. ``exit_status`` is negative for a signal, as in :mod:`subprocess`."""

    argv: tuple[str, ...]
    exit_status: int
    output: str
    errors: str
    seconds: float
    timed_out: bool = False
    too_big: bool = False
    """The output was longer than allowed; the program was ended."""

    @property
    def ok(self) -> bool:
        return self.exit_status == 0 and not self.timed_out and not self.too_big

    @property
    def words(self) -> str:
        """One line for a person: what ran, how it ended, the last thing it said."""
        said = (self.errors.strip() or self.output.strip()).splitlines()
        if self.timed_out:
            ending = f"did not end within {self.seconds:.1f} s"
        elif self.too_big:
            ending = "wrote more than allowed"
        elif self.exit_status < 0:
            ending = f"died by signal {-self.exit_status}"
        else:
            ending = f"exit status {self.exit_status}"
        return f"{' '.join(self.argv)}: {ending}" + (f": {said[-1].strip()}" if said else "")


class Commands(Protocol):
    """Runs programs. The only way anything here starts one."""

    async def run(
        self,
        argv: Sequence[str],
        *,
        timeout_seconds: float,
        stdin: bytes = b"",
        environment: Mapping[str, str] | None = None,
    ) -> CommandResult:
        """Run until the program itself ends, whatever daemons it leaves behind, or end it at the deadline.

        A program that is not there gives exit status 127.
        """
        ...

    async def capture(
        self, argv: Sequence[str], target: Path, *, timeout_seconds: float, bytes_max: int
    ) -> CommandResult:
        """Run with standard output going to the file *target* (made, mode 0600; existing content is replaced)."""
        ...

    async def spawn(self, argv: Sequence[str], *, log: Path, user: str = "") -> int:
        """Start a program that stays, in a session of its own, output appended to *log*. Returns its process id."""
        ...


class ProbeResult(Struct, frozen=True):
    """One real transaction with a service at an address."""

    service: str
    address: str
    ok: bool
    latency_seconds: float
    words: str
    """What was done, or at which step it failed and what was answered."""


class CheckResult(Struct, frozen=True):
    """What the service's own configuration check says. Warnings do not stop it from starting; errors do."""

    service: str
    errors: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        return not self.errors


class Protection(Struct, frozen=True):
    """What one service wants copied."""

    trees: tuple[TreeSpec, ...] = ()
    """Trees of data."""
    config_paths: tuple[str, ...] = ()
    """Absolute paths (files, directories) that configure it; may not exist (yet)."""
    config_exclude: tuple[str, ...] = ()
    """Absolute paths below those that are compiled or generated from others, so are left out."""
    overrides: tuple[str, ...] = ()
    """Absolute paths that stay each machine's own."""
    rendered: tuple[str, ...] = ()
    """Absolute paths of files that hold this machine's own values; compare them by their canonical form."""
    warnings: tuple[str, ...] = ()
    """What discovery could not tell, in sentences for the administrator."""


class Service(Protocol):
    """One program family of the mail software, on this machine.

    ``start``, ``stop`` and ``prepare`` are idempotent; they raise :class:`ServiceFailed` when it did not come true.
    """

    @property
    def name(self) -> str: ...

    async def protection(self) -> Protection:
        """Read the configuration as it is now. Raises ConfigurationError when it cannot be read or gives no root."""
        ...

    async def secrets(self) -> tuple[Secret, ...]:
        """Files without which it cannot do its work, as configured now. Raises ConfigurationError."""
        ...

    async def certificates(self) -> tuple[Pair, ...]:
        """With the keys they go with, as configured now. Raises ConfigurationError."""
        ...

    async def warm(self) -> tuple[str, ...]:
        """On a standby: do beforehand what a first start would take its time for, without touching anything copied.

        Returns what was done, in sentences. Configuration that has not arrived yet is nothing to do.
        """
        ...

    async def prepare(self) -> tuple[str, ...]:
        """Make what was copied fit this machine: own values, compiled maps. Returns what was done, in sentences.

        Call it before ``start`` on the machine that becomes primary: a standby's copy stays as the log says.
        """
        ...

    async def start(self) -> None:
        """Returns when the service accepts connections."""
        ...

    async def stop(self, *, force: bool = False) -> None:
        """Returns when no process of the service is left. *force* (fencing): all are killed at once."""
        ...

    async def reload(self) -> None:
        """Take over a changed configuration without refusing connections."""
        ...

    async def running(self) -> bool: ...

    async def probe(self, address: str) -> ProbeResult:
        """A real transaction with the service at *address* (an IP address). Never raises for a service that is down."""
        ...

    async def check(self) -> CheckResult: ...

    async def version(self) -> str:
        """For people and for comparing two machines; empty when the program is not there."""
        ...
