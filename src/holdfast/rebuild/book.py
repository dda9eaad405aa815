"""What a rebuild has done, on the machine's disk: an interrupted one goes on, and the report tells where time went."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct, field

from holdfast.errors import HoldfastError, Refused
from holdfast.files import PRIVATE, write_once

FOLDER: Final = Path("/var/lib/holdfast/rebuild")


class StepTime(Struct):
    """One step, of all runs together. *bytes*, *files*: what it wrote."""

    name: str
    seconds: float = 0.0
    bytes: int = 0
    files: int = 0
    done: bool = False


class Failed(Struct, frozen=True):
    """Something that was not put back, or not exactly."""

    path: str
    reason: str


class State(Struct):
    """``book.json``."""

    vault: str
    """The vault's id."""
    source: str
    """The snapshot, and the position where records follow it."""
    ordered: bool
    began_ns: int
    runs: int = 0
    finished: bool = False
    steps: dict[str, StepTime] = field(default_factory=dict)
    failures: list[Failed] = field(default_factory=list)
    failures_total: int = 0
    milestones: dict[str, float] = field(default_factory=dict)
    """Seconds of work until then, by name."""


class Book:
    """``placed`` is written one line a unit, so that a power cut loses none that was reported."""

    def __init__(self, folder: Path, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.folder = folder
        self._file = folder / "book.json"
        self._placed_file = folder / "placed"
        self._monotonic = monotonic
        self._began = monotonic()
        self._before = 0.0
        self.placed: set[str] = set()
        self.state: State | None = self._read()

    @property
    def begun(self) -> bool:
        return self.state is not None and not self.state.finished

    def _read(self) -> State | None:
        try:
            state = msgspec.json.decode(self._file.read_bytes(), type=State)
        except FileNotFoundError:
            return None
        except msgspec.DecodeError as error:
            hint = f"Move {self.folder} away: the rebuild then begins anew, and refuses to replace what is there."
            raise HoldfastError(f"{self._file} is damaged: {error}", hint=hint) from None
        if self._placed_file.exists():
            lines = self._placed_file.read_bytes().split(b"\n")
            self.placed = {os.fsdecode(line) for line in lines[:-1]}
        self._before = sum(step.seconds for step in state.steps.values())
        return state

    def begin(self, vault: str, source: str, *, ordered: bool, now_ns: int) -> State:
        """Begin, or go on. Raises Refused when a rebuild from something else was begun here."""
        state = self.state
        if state is None or state.finished:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._placed_file.unlink(missing_ok=True)
            self.placed.clear()
            self._before = 0.0
            state = State(vault, source, ordered, now_ns)
        elif (state.vault, state.source) != (vault, source):
            raise Refused(
                f"a rebuild from {state.source} was begun on this machine and is not finished",
                hint=f"Go on with it (--at {state.source}), or --anew to begin again with this one.",
            )
        state.runs += 1
        self.state = state
        self.save()
        return state

    def finish(self) -> None:
        assert self.state is not None
        self.state.finished = True
        self.save()

    def save(self) -> None:
        assert self.state is not None
        write_once(self._file, msgspec.json.format(msgspec.json.encode(self.state)), PRIVATE)

    @contextmanager
    def step(self, name: str) -> Iterator[StepTime]:
        """Time a step; it is done when the block ends without an error."""
        assert self.state is not None
        step = self.state.steps.setdefault(name, StepTime(name))
        began = self._monotonic()
        try:
            yield step
            step.done = True
        finally:
            step.seconds += self._monotonic() - began
            self.save()

    def done(self, name: str) -> bool:
        return self.state is not None and name in self.state.steps and self.state.steps[name].done

    def note_placed(self, target: str) -> None:
        """Durable on return."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        descriptor = os.open(self._placed_file, flags, PRIVATE)
        try:
            os.write(descriptor, os.fsencode(target) + b"\n")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        self.placed.add(target)

    def fail(self, path: str, reason: str) -> None:
        assert self.state is not None
        self.state.failures_total += 1
        if len(self.state.failures) < 1000:
            self.state.failures.append(Failed(path, reason))

    @property
    def seconds(self) -> float:
        """Of work so far, all runs together."""
        return self._before + self._monotonic() - self._began

    def milestone(self, name: str) -> None:
        """The first time counts."""
        assert self.state is not None
        self.state.milestones.setdefault(name, round(self.seconds, 3))
