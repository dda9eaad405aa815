"""The port of the vault: a store of named objects, written once.

What the repository needs of a store is on this page; the adapters stand in ``backends``. One contract suite runs over
all of them.

Names are components of ``a-z``, ``0-9``, ``-``, ``.`` and ``_``, separated by one ``/``, none beginning with a dot; at
most ``NAME_BYTES_MAX`` long. Adapters keep what they need besides (temporary files, a lock) under other names and never
list it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final, NamedTuple, Protocol

from holdfast.errors import ExitStatus, HoldfastError

NAME_BYTES_MAX: Final = 200
"""Below NAME_MAX of Linux (255) with room for an adapter's temporary suffix."""
OBJECT_BYTES_MAX: Final = 64 * 1024 * 1024
"""One object is in memory whole; no store splits an upload of this size."""

_COMPONENT: Final = r"[a-z0-9_-][a-z0-9._-]*"
_NAME: Final = re.compile(_COMPONENT + "(?:/" + _COMPONENT + ")*")


class ObjectMissing(HoldfastError):
    """No object of this name."""


class ObjectExists(HoldfastError):
    """An object of this name with other bytes stands there already: it is never replaced."""

    exit_status = ExitStatus.REFUSED


class BackendUnavailable(HoldfastError):
    """The store does not answer, or answers with errors; the same call may succeed later. ``retry`` is True.

    After a ``put`` that failed so, the object may stand there nevertheless: a repeated put finds out.
    """

    exit_status = ExitStatus.UNREACHABLE

    def __init__(self, message: str, *, hint: str = "Repeat the command: it goes on where it stopped.") -> None:
        super().__init__(message, hint=hint, retry=True)


class BackendFull(HoldfastError):
    """The store has no room; what stood there before still does."""

    exit_status = ExitStatus.NO_SPACE


class BackendRefused(HoldfastError):
    """The store does not permit this: read only, no right to write or to delete, object lock."""

    exit_status = ExitStatus.REFUSED


class Found(NamedTuple):
    """One object of a listing. *modified_at_seconds*: the store's clock, seconds since 1970; for people and for
    "older than", never for order."""

    name: str
    size: int
    modified_at_seconds: float


class Backend(Protocol):
    """A store of objects. Calls may come from several threads at once.

    Every method raises BackendUnavailable (network, server, disk error) and BackendRefused (no right).
    """

    def put(self, name: str, data: bytes) -> None:
        """Write *data* under *name*, whole or not at all; durable when it returns.

        Write-once: the same bytes again succeed and change nothing; other bytes raise ObjectExists. Raises BackendFull.
        """

    def get(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        """The bytes from *start* on, *length* of them; fewer, even none, where the object ends before.

        Raises ObjectMissing.
        """

    def size(self, name: str) -> int | None:
        """The object's size in bytes; None when there is none."""

    def list(self, prefix: str) -> Iterator[Found]:
        """All objects whose name begins with *prefix* (plain text: ``packs/`` or ``packs/0a``), in any order.

        What was put before the call began is in it, what was deleted before is not.
        """

    def delete(self, name: str) -> None:
        """Take the object away; success when there is none."""

    def close(self) -> None:
        """Free connections and the like. Nothing is lost without it."""


def is_name(name: str) -> bool:
    """For adapters: what else lies in a shared store is not listed."""
    return len(name) <= NAME_BYTES_MAX and _NAME.fullmatch(name) is not None


def check_name(name: str) -> None:
    """For adapters: a bug of the caller unless *name* is one in the sense of this module."""
    assert is_name(name), name
