"""Plan, show, execute: the steps of what can hurt, as a value.

A plan is made first; ``--dry-run`` prints it, the real run executes the same value and writes each step's outcome and
duration into the event history.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from msgspec import Struct

from holdfast.errors import HoldfastError
from holdfast.node.history import History


class Step(Struct, frozen=True):
    """*name* is a word for tables and JSON keys; *what* the sentence for people."""

    name: str
    what: str


class Plan(Struct, frozen=True):
    """What would be done, in order, and why; ``refusals`` say why it must not be done now."""

    action: str
    machine: str
    why: str
    steps: tuple[Step, ...]
    warnings: tuple[str, ...] = ()
    refusals: tuple[str, ...] = ()
    facts: dict[str, Any] = {}


class StepDone(Struct, frozen=True):
    name: str
    seconds: float
    words: str = ""


class Outcome(Struct, frozen=True):
    """How a plan's execution went. ``done`` is False when a step failed; *failure* says which and why."""

    action: str
    machine: str
    done: bool
    steps: tuple[StepDone, ...]
    seconds: float
    warnings: tuple[str, ...] = ()
    failure: str = ""
    nothing_to_do: bool = False


class Execution:
    """Runs steps one after another, timing each; the event history gets every one as it ends."""

    def __init__(self, plan: Plan, history: History, monotonic: Callable[[], float]) -> None:
        self.plan = plan
        self._history = history
        self._monotonic = monotonic
        self._began = monotonic()
        self.steps: list[StepDone] = []
        history.record(f"{plan.action} begins", plan.why, machine=plan.machine, primary=plan.facts.get("primary"))

    async def step(self, name: str, run: Awaitable[str | None]) -> None:
        """Await *run*; its words go to the record. Raises HoldfastError, recorded; so is what the system refuses."""
        began = self._monotonic()
        try:
            words = await run or ""
        except (HoldfastError, OSError) as error:
            words = error.message if isinstance(error, HoldfastError) else str(error)
            seconds = self._monotonic() - began
            self._history.record(f"{self.plan.action}: {name} failed", words, seconds=round(seconds, 3))
            if isinstance(error, HoldfastError):
                raise
            raise HoldfastError(f"{name}: {error}", hint="Mend that, then give the order again.") from error
        done = StepDone(name, self._monotonic() - began, words)
        self.steps.append(done)
        self._history.record(f"{self.plan.action}: {name}", words, seconds=round(done.seconds, 3))

    def outcome(self, *, warnings: tuple[str, ...] = (), failure: str = "", nothing_to_do: bool = False) -> Outcome:
        """The end, recorded."""
        seconds = self._monotonic() - self._began
        verb = "failed" if failure else "done"
        self._history.record(f"{self.plan.action} {verb}", failure, seconds=round(seconds, 3))
        steps = tuple(self.steps)
        return Outcome(
            self.plan.action, self.plan.machine, not failure, steps, seconds, warnings, failure, nothing_to_do
        )
