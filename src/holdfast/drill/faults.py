"""Faults: what is drawn from a seed's number, and how each is done to a lab and mended.

Machines are drawn by what they are at that moment (``primary``, ``standby``) or by name (``relay``), so that a seed
means the same whoever is primary when it begins.

| kind | what |
|---|---|
| ``kill`` | power cut: processes gone, and what the disk had not synced |
| ``freeze``, ``freeze past takeover`` | every process stopped; the second is thawed after another machine serves |
| ``kill in takeover`` | the primary's power is cut, and then, once or twice, that of the one that is taking over |
| ``agent``, ``hang``, ``nats`` | the agent killed alone, stopped alone; the log's server killed |
| ``cut off``, ``cut off one way`` | from every other machine, clients too; one way: what it sends is lost |
| ``cut``, ``cut one way`` | between two machines |
| ``flap`` | a ``cut off`` or ``cut`` that comes and goes |
| ``slow`` | its link delays everything (``lab.slow``) |
| ``clock`` | its wall clock jumps, and back (``lab.clock``, which says what that cannot show) |
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from holdfast.drill.failover import Drill
from holdfast.drill.lab import clock
from holdfast.drill.lab.lab import Machine
from holdfast.drill.lab.slow import SlowLink
from holdfast.drill.lab.spec import LabError
from holdfast.drill.lab.tools import wait_until

MAIL: Final = ("main", "backup")
TAKEOVER_SECONDS_MAX: Final = 20.0
"""Until a takeover begins, or has been done. On an idle machine 2 s and 3 s."""
TIED: Final = frozenset({"freeze past takeover", "kill in takeover"})
"""Kinds that need a takeover, and so the primary."""
KINDS: Final = (
    "kill",
    "freeze",
    "freeze past takeover",
    "kill in takeover",
    "agent",
    "hang",
    "nats",
    "cut off",
    "cut off one way",
    "cut",
    "cut one way",
    "flap",
    "slow",
    "clock",
)
WHERE: Final = ("primary", "primary", "standby", "standby", "relay")
DELAYS_SECONDS: Final = (0.02, 0.1, 0.3, 0.8)
"""One way. A beat's echo over the third takes longer than ``watchman.RENEW_SECONDS`` allows, over the last so long that
machines miss each other."""
JUMPS_SECONDS: Final = (2, 60, 3600)
"""Ahead or behind."""


class Fault(NamedTuple):
    """*lasts*: seconds until it is mended. *moments*: seconds of its steps. *amount*: a delay, or a clock's jump."""

    kind: str
    machine: str
    other: str
    after: float
    lasts: float
    moments: tuple[float, ...] = ()
    amount: float = 0.0

    def __str__(self) -> str:
        other = f" and {self.other}" if self.other else ""
        amount = f" by {self.amount:g} s" if self.amount else ""
        moments = f" ({', '.join(f'{each:.1f}' for each in self.moments)})" if self.moments else ""
        return f"{self.kind}: {self.machine}{other}{amount}{moments}, for {self.lasts:.1f} s"


def draw(chance: random.Random) -> list[Fault]:
    """The faults of one seed."""
    return [_one(chance) for _ in range(chance.choice((1, 1, 2, 2, 3)))]


def _one(chance: random.Random) -> Fault:
    kind = chance.choice(KINDS)
    machine = "primary" if kind in TIED else chance.choice(WHERE)
    others = [name for name in ("primary", "standby", "relay") if name != machine]
    fault = Fault(kind, machine, "", chance.uniform(0.2, 3.0), chance.uniform(0.5, 7.0))
    match kind:
        case "freeze past takeover":
            return fault._replace(lasts=chance.uniform(0.0, 3.0))
        case "kill in takeover":
            moments = (chance.uniform(0.0, 1.0), chance.uniform(0.3, 4.0))[: chance.randint(1, 2)]
            return fault._replace(lasts=chance.uniform(0.0, 2.0), moments=moments)
        case "cut" | "cut one way":
            return fault._replace(other=chance.choice(others))
        case "flap":
            moments = tuple(chance.uniform(0.1, 2.2) for _ in range(2 * chance.randint(2, 4)))
            return fault._replace(other=chance.choice(["", *others]), lasts=0.0, moments=moments)
        case "slow":
            return fault._replace(amount=chance.choice(DELAYS_SECONDS))
        case "clock":
            return fault._replace(amount=chance.choice((1, -1)) * chance.choice(JUMPS_SECONDS))
        case _:
            return fault


class Breaking(Drill):
    """A lab whose machines are broken and mended."""

    def placed(self, fault: Fault) -> Fault:
        """*fault* with the names of machines in the place of what they are now."""
        serving = [name for name in MAIL if (facts := self._facts(name)) and facts["serving"]]
        primary = serving[0] if len(serving) == 1 else self.primary
        names = {"primary": primary, "standby": _other(primary)}
        return fault._replace(
            machine=names.get(fault.machine, fault.machine), other=names.get(fault.other, fault.other)
        )

    def do(self, fault: Fault) -> Callable[[], None]:
        """Break it; what mends it. Raises LabError: not possible now."""
        lab, machine = self.lab, self.lab.machine(fault.machine)
        match fault.kind:
            case "kill":
                machine.kill()
                return lambda: on(machine)
            case "freeze":
                machine.freeze()
                return machine.thaw
            case "freeze past takeover":
                machine.freeze()
                self._wait_serves(_other(fault.machine))
                return machine.thaw
            case "kill in takeover":
                return self._kill_in_takeover(fault)
            case "agent":
                machine.run(["pkill", "-9", "-f", "holdfast.agent"], check=False)
            case "hang":
                pid = machine.unit("holdfast").pid
                machine.run(["kill", "-STOP", str(pid)], check=False)
                return lambda: _quietly(machine, ["kill", "-CONT", str(pid)])
            case "nats":
                machine.run(["pkill", "-9", "-x", "nats-server"], check=False)
            case "flap":
                for down, up in zip(fault.moments[::2], fault.moments[1::2], strict=True):
                    lab.cut(fault.machine, fault.other or None)
                    time.sleep(down)
                    lab.heal()
                    time.sleep(up)
            case "slow":
                return SlowLink(machine, fault.amount).close
            case "clock":
                clock.jump(machine, int(fault.amount))
                return lambda: _right(machine)
            case _:
                lab.cut(fault.machine, fault.other or None, one_way=fault.kind.endswith("one way"))
                return lab.heal
        return lambda: None

    def _kill_in_takeover(self, fault: Fault) -> Callable[[], None]:
        dying, taking = self.lab.machine(fault.machine), self.lab.machine(_other(fault.machine))
        since = time.time()
        dying.kill()
        self._wait_begins(taking.name, since)
        for moment in fault.moments:
            time.sleep(moment)
            taking.kill()
            taking.start()
        return lambda: on(dying)

    def _wait_begins(self, name: str, since: float) -> None:
        """Until a takeover of *name* has begun. Raises LabError."""

        def begun() -> bool:
            try:
                events: Any = self.site.ask(name, "/history?last=20")
            except LabError:
                return False
            return any(event["what"] == "takeover begins" and event["at"] >= since for event in events)

        wait_until(begun, TAKEOVER_SECONDS_MAX, f"{name} to begin a takeover", 0.02)

    def _wait_serves(self, name: str) -> None:
        def serves() -> bool:
            facts = self._facts(name)
            return bool(facts and facts["serving"])

        wait_until(serves, TAKEOVER_SECONDS_MAX, f"{name} to serve", 0.05)

    def _facts(self, name: str) -> dict[str, Any] | None:
        try:
            return self.site.status(name)
        except (LabError, TimeoutError):
            return None


def on(machine: Machine) -> None:
    if not machine.running:
        machine.start()


def _other(name: str) -> str:
    return MAIL[1 - MAIL.index(name)]


def _right(machine: Machine) -> None:
    if machine.running:
        clock.jump(machine, 0)


def _quietly(machine: Machine, argv: list[str]) -> None:
    if machine.running:
        machine.run(argv, check=False)
