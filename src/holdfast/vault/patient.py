"""A store behind a bad line: bounded retries with growing pauses, counted bytes, told to whoever watches.

Only BackendUnavailable is tried again. Every call of the port may be repeated: a put that succeeded and whose answer
was lost finds its own bytes there, a delete finds nothing.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple, TypeVar

from holdfast.vault.port import Backend, BackendUnavailable, Found

T = TypeVar("T")


class Patience(NamedTuple):
    """How long to go on trying. The pause doubles from *pause_seconds* to *pause_seconds_max*, less up to half of it
    by chance: many clients of one store must not come back all at once."""

    attempts_max: int = 8
    pause_seconds: float = 0.5
    pause_seconds_max: float = 30.0
    seconds_max: float = 600.0
    """No new attempt begins later: attempts that end in timeouts are long."""


NETWORK: Final = Patience()
"""At most about a minute and a half: a restarted server or a switch is over by then, and a dead one should be told."""
DISK: Final = Patience(attempts_max=2)
"""A stale handle of a network filesystem is gone with the second try; all else is for people."""


class Transfer(NamedTuple):
    """What went over since the store was opened. *trouble*: why the last call is waiting to be tried again; else
    empty."""

    put_bytes: int
    got_bytes: int
    objects_put: int
    retries: int
    trouble: str = ""


class PatientBackend:
    """*backend*, tried again. *progress* hears of calls that moved bytes, and of trouble, in the calling thread."""

    def __init__(
        self,
        backend: Backend,
        patience: Patience = NETWORK,
        *,
        progress: Callable[[Transfer], None] | None = None,
        clock_seconds: Callable[[], float] = time.monotonic,
        wait: Callable[[float], None] = time.sleep,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._backend = backend
        self._patience = patience
        self._progress = progress
        self._clock_seconds = clock_seconds
        self._wait = wait
        self._chance = chance
        self._lock = threading.Lock()
        self._moved = Transfer(0, 0, 0, 0)

    @property
    def inner(self) -> Backend:
        """The store itself."""
        return self._backend

    @property
    def moved(self) -> Transfer:
        return self._moved

    def put(self, name: str, data: bytes) -> None:
        self._try(lambda: self._backend.put(name, data))
        self._count(put_bytes=len(data), objects_put=1)

    def get(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        data = self._try(lambda: self._backend.get(name, start, length))
        self._count(got_bytes=len(data))
        return data

    def size(self, name: str) -> int | None:
        return self._try(lambda: self._backend.size(name))

    def list(self, prefix: str) -> Iterator[Found]:
        """Whole before the first is given: a listing that broke in the middle begins anew."""
        return iter(self._try(lambda: [*self._backend.list(prefix)]))

    def delete(self, name: str) -> None:
        self._try(lambda: self._backend.delete(name))

    def close(self) -> None:
        self._backend.close()

    def _try(self, call: Callable[[], T]) -> T:
        until_seconds = self._clock_seconds() + self._patience.seconds_max
        for attempt in range(1, self._patience.attempts_max):
            try:
                return call()
            except BackendUnavailable as error:
                if self._clock_seconds() >= until_seconds:
                    raise
                pause = min(self._patience.pause_seconds * 2 ** (attempt - 1), self._patience.pause_seconds_max)
                self._count(retries=1, trouble=error.message)
                self._wait(pause * (1 - self._chance() / 2))
        return call()

    def _count(
        self, *, put_bytes: int = 0, got_bytes: int = 0, objects_put: int = 0, retries: int = 0, trouble: str = ""
    ) -> None:
        with self._lock:
            old = self._moved
            self._moved = Transfer(
                old.put_bytes + put_bytes,
                old.got_bytes + got_bytes,
                old.objects_put + objects_put,
                old.retries + retries,
                trouble,
            )
            moved = self._moved
        if self._progress is not None:
            self._progress(moved)
