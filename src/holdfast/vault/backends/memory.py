"""A store in memory, for tests: obeys the port, and fails when it is told to."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import NamedTuple

from holdfast.vault.port import BackendUnavailable, Found, ObjectExists, ObjectMissing, check_name


class Call(NamedTuple):
    """One call that changed the store, or would have."""

    method: str
    name: str


class MemoryBackend:
    """Objects in a dictionary.

    Faults: the ``fail_at``-th change from now (a put or a delete, counted from 0) raises BackendUnavailable, and so do
    all later ones until :meth:`recover`: like a process killed there, seen from the store. With *after* the change
    itself is done and only its success is lost.
    """

    def __init__(self, objects: dict[str, bytes] | None = None, clock: Callable[[], float] = lambda: 0.0) -> None:
        self.objects: dict[str, bytes] = dict(objects or {})
        self.calls: list[Call] = []
        """Changes asked for, in order, those that failed included."""
        self.reads: list[Call] = []
        self._modified_at: dict[str, float] = {}
        self._clock = clock
        self._lock = threading.Lock()
        self._fail_at: int | None = None
        self._fail_after = False
        self._down = False

    def fail(self, fail_at: int, *, after: bool = False) -> None:
        """Fail at the change number *fail_at* from now on (0: the next)."""
        self._fail_at, self._fail_after, self._down = fail_at, after, False

    def recover(self) -> None:
        self._fail_at, self._down = None, False

    def fork(self) -> MemoryBackend:
        """A copy of the objects, without faults."""
        return MemoryBackend(self.objects, self._clock)

    def put(self, name: str, data: bytes) -> None:
        check_name(name)
        with self._lock:
            lost = self._change(Call("put", name))
            if name not in self.objects:
                self.objects[name], self._modified_at[name] = data, self._clock()
            elif self.objects[name] != data:
                raise ObjectExists(f"object {name} exists with other content", hint="Two writers took one name.")
            if lost:
                raise BackendUnavailable(f"put of {name}: the answer was lost (injected)")

    def get(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        check_name(name)
        self.reads.append(Call("get", name))
        data = self.objects.get(name)
        if data is None:
            raise ObjectMissing(f"object {name} is missing", hint="`holdfast vault verify` names what it held.")
        return data[start:] if length is None else data[start : start + length]

    def size(self, name: str) -> int | None:
        data = self.objects.get(name)
        return None if data is None else len(data)

    def list(self, prefix: str) -> Iterator[Found]:
        with self._lock:
            names = [name for name in self.objects if name.startswith(prefix)]
        for name in names:
            if (data := self.objects.get(name)) is not None:
                yield Found(name, len(data), self._modified_at.get(name, 0.0))

    def delete(self, name: str) -> None:
        check_name(name)
        with self._lock:
            lost = self._change(Call("delete", name))
            self.objects.pop(name, None)
            self._modified_at.pop(name, None)
            if lost:
                raise BackendUnavailable(f"delete of {name}: the answer was lost (injected)")

    def close(self) -> None:
        pass

    def _change(self, call: Call) -> bool:
        """Count; raise where the fault stands before the change; True where it stands after it."""
        self.calls.append(call)
        if self._down:
            raise BackendUnavailable(f"{call.method} of {call.name}: store is down (injected)")
        if self._fail_at is None:
            return False
        self._fail_at -= 1
        if self._fail_at >= 0:
            return False
        self._down = True
        if not self._fail_after:
            raise BackendUnavailable(f"{call.method} of {call.name} failed (injected)")
        return True
