"""What can go wrong, by blame, and the exit status of each.

Three failures, three ways: a bug asserts; the world raises a :class:`HoldfastError` that says what to do; a broken
environment (no right to do the work at all) raises :class:`EnvironmentUnfit`, which ends the process.

Every :class:`HoldfastError` carries a sentence (what happened, to what), a hint (what the administrator does next) and
whether the same call may succeed later unchanged.
"""

from __future__ import annotations

from enum import IntEnum
from typing import ClassVar


class ExitStatus(IntEnum):
    """Exit status of every ``holdfast`` command. Scripts rely on these: numbers are never reused."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    DIFFERENCES = 3
    """Finished, and the result is not clean: differences, gaps or warnings are named in the output."""
    REFUSED = 4
    """Not done because it would not have been safe; the message says what would make it safe."""
    UNREACHABLE = 5
    """The agent, the log or a peer does not answer."""
    CONFIGURATION = 6
    ENVIRONMENT = 7
    """This machine does not permit or provide something the work needs."""
    NO_SPACE = 8
    LOCKED = 9
    """Another command is at work on the same thing: later it goes."""
    WRONG_KEY = 10
    """No key, or one that does not fit; nothing is wrong with what it should open."""
    NEWER_FORMAT = 11
    """Made by a newer program."""
    DAMAGED = 12
    """What was stored is not what was written, or is missing, and nothing could be done with it."""


class HoldfastError(Exception):
    """Something outside this program's control went wrong. ``str()`` is the sentence and the hint."""

    exit_status: ClassVar[ExitStatus] = ExitStatus.FAILED

    def __init__(self, message: str, *, hint: str = "", retry: bool = False) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.retry = retry

    def __str__(self) -> str:
        return f"{self.message}\n  {self.hint}" if self.hint else self.message


class ConfigurationError(HoldfastError):
    """A configuration file is wrong: the message names file, key and what was expected."""

    exit_status = ExitStatus.CONFIGURATION


class EnvironmentUnfit(HoldfastError):
    """The machine lacks a right or a program; the message names it and what still works without."""

    exit_status = ExitStatus.ENVIRONMENT


class Refused(HoldfastError):
    """A safety rule forbids the step. Never overridden by retrying."""

    exit_status = ExitStatus.REFUSED


class Unreachable(HoldfastError):
    """A peer, server or agent does not answer (in time)."""

    exit_status = ExitStatus.UNREACHABLE


class NoSpace(HoldfastError):
    """A disk or quota is full; what was acknowledged before stays safe."""

    exit_status = ExitStatus.NO_SPACE
