"""Outputs of commands kept as files: a database dump on a timer becomes a file in a tree, and is copied like any other.

A run goes to a temporary and replaces the last good file only if the command succeeded within its limits. An output
equal to the last one touches the file's time only, so nothing of it is copied again.
"""

from __future__ import annotations

import filecmp
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from msgspec import Struct

from holdfast.errors import ConfigurationError
from holdfast.mail.files import PARTIAL_SUFFIX, put_in_place
from holdfast.mail.port import Commands
from holdfast.trees.spec import TreeSpec

_NAME_LETTERS: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")
_RETRY_SECONDS_MIN: Final = 60.0
"""After a failure the command runs again at its next time, but not sooner than this."""


class OutputSpec(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One command whose output is kept."""

    name: str
    """The file's name under the outputs directory."""
    argv: tuple[str, ...]
    every_seconds: float = 3600.0
    timeout_seconds: float = 600.0
    bytes_max: int = 16 << 30
    """A dump that grows past this is a mistake; it is ended before it fills the disk."""

    def checked(self) -> OutputSpec:
        """Itself. Raises ConfigurationError for a name that is no plain file name, an empty command or a bad limit."""
        plain = self.name and self.name[0] not in ".-" and set(self.name) <= _NAME_LETTERS
        if not plain or not self.argv or min(self.every_seconds, self.timeout_seconds, self.bytes_max) <= 0:
            raise ConfigurationError(
                f"mail.outputs: {self.name!r} cannot be used",
                hint="Give a plain file name, a command as a list, and intervals and limits above 0.",
            )
        return self


class OutputState(Struct, frozen=True):
    """How one output stands."""

    name: str
    age_seconds: float | None
    """Since the last good run; None when there was none."""
    bytes: int
    failure: str
    """What the last run said, when it failed; empty when it succeeded."""
    overdue: bool
    """The last good one is older than two intervals."""


class Outputs:
    """Runs the commands that are due and knows how each stands. *now* is the time of day in seconds (file times)."""

    def __init__(
        self,
        specs: tuple[OutputSpec, ...],
        directory: Path,
        commands: Commands,
        *,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._specs = {spec.checked().name: spec for spec in specs}
        self._directory = directory
        self._commands = commands
        self._now = now
        self._failed: dict[str, tuple[float, str]] = {}

    def tree(self) -> TreeSpec:
        return TreeSpec(name="outputs", root=str(self._directory), exclude=("*" + PARTIAL_SUFFIX,)).checked()

    def due(self) -> tuple[str, ...]:
        """Names of outputs whose time has come."""
        return tuple(name for name in self._specs if self.wait_seconds(name) <= 0)

    def wait_seconds(self, name: str) -> float:
        """Until the next run of *name*; zero or less when it is due."""
        spec, now = self._specs[name], self._now()
        last = self._last_good(name)
        wait = 0.0 if last is None else last + spec.every_seconds - now
        if name in self._failed:
            wait = max(wait, self._failed[name][0] + min(_RETRY_SECONDS_MIN, spec.every_seconds) - now)
        return min(wait, spec.every_seconds)  # a clock set back must not stop the dumps

    async def run(self, name: str) -> OutputState:
        """Run *name* now. A failure is in the state returned, and the last good file stays.

        Raises OSError when the outputs directory itself cannot be written.
        """
        spec = self._specs[name]
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        target = self._directory / name
        temporary = self._directory / (name + PARTIAL_SUFFIX)
        try:
            result = await self._commands.capture(
                spec.argv, temporary, timeout_seconds=spec.timeout_seconds, bytes_max=spec.bytes_max
            )
            if not result.ok:
                self._failed[name] = (self._now(), result.words)
            else:
                self._keep(temporary, target)
                self._failed.pop(name, None)
        finally:
            temporary.unlink(missing_ok=True)
        return self.state(name)

    def _keep(self, temporary: Path, target: Path) -> None:
        now = self._now()
        if target.is_file() and filecmp.cmp(temporary, target, shallow=False):
            os.utime(target, (now, now))
            return
        os.utime(temporary, (now, now))
        put_in_place(temporary, target)

    def _last_good(self, name: str) -> float | None:
        try:
            return (self._directory / name).stat().st_mtime
        except FileNotFoundError:
            return None

    def state(self, name: str) -> OutputState:
        last = self._last_good(name)
        age = None if last is None else max(0.0, self._now() - last)
        return OutputState(
            name=name,
            age_seconds=age,
            bytes=0 if last is None else (self._directory / name).stat().st_size,
            failure=self._failed.get(name, (0.0, ""))[1],
            overdue=age is None or age > 2 * self._specs[name].every_seconds,
        )

    def states(self) -> tuple[OutputState, ...]:
        return tuple(self.state(name) for name in self._specs)
