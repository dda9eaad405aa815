"""Random faults on real machines under load: whatever happens, the promises hold. ``make chaos`` (lab part).

One seed: one to three faults out of the list, at random moments, each mended after a while, under recorded deliveries
and logins. Then everything is mended, the site settles, and it is checked: never two machines with the service address
beyond the bound of ``watchman``; no record of an older epoch behind a promotion; every acknowledged message is in its
mailbox, in a queue, or aside, or came right before a power cut; no message twice without a reason; standby and primary
equal in every byte.

``python -m holdfast.drill.chaos --seeds 5 --first 10``; a seed that fails says its number, ``--seed N`` draws the same
faults again (real machines' timing is their own), and what the machines wrote about it is in ``build/chaos/N``.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

from rich.console import Console

from holdfast.drill.checkers.exactly_once import exactly_once
from holdfast.drill.checkers.facts import Appended, Record
from holdfast.drill.checkers.one_writer import one_writer
from holdfast.drill.failover import PATIENCE, Drill
from holdfast.drill.lab.lab import Machine
from holdfast.drill.lab.spec import LabError
from holdfast.drill.lab.tools import wait_until
from holdfast.drill.remains import queue_of, set_aside
from holdfast.drill.workload import journal as journals
from holdfast.drill.workload.journal import Journal
from holdfast.drill.workload.plan import Deliveries, Mailboxes, Meter, Plan
from holdfast.drill.workload.settle import settled
from holdfast.errors import ExitStatus
from holdfast.node import netlink
from holdfast.node.watchman import OVERLAP_SECONDS_MAX

SETTLE_SECONDS: Final = 120.0
CLOSE_SECONDS: Final = 2.0
"""What was acknowledged so shortly before a power cut may not have been captured: SMTP's 250 comes before the delivery.
Whatever else happens to a machine, what it accepted is on its disk."""
SAMPLE_SECONDS: Final = 0.03
SHOWN_MAX: Final = 20
EVIDENCE: Final = Path("build/chaos")
WRITTEN: Final = ("/var/lib/holdfast/history.jsonl", "/var/log/holdfast.log", "/var/log/mail.log")
MAIL: Final = ("main", "backup")


class Fault(NamedTuple):
    """*lasts*: seconds until it is mended."""

    kind: str
    machine: str
    other: str
    after: float
    lasts: float

    def __str__(self) -> str:
        other = f" and {self.other}" if self.other else ""
        return f"{self.kind}: {self.machine}{other}, for {self.lasts:.1f} s"


def draw(chance: random.Random) -> list[Fault]:
    """The faults of one seed."""
    found = []
    for _ in range(chance.randint(1, 3)):
        kind = chance.choice(("kill", "freeze", "agent", "hang", "nats", "cut off", "cut off one way", "cut"))
        machine = chance.choice(("main", "main", "backup", "backup", "relay"))
        others = [name for name in ("main", "backup", "relay") if name != machine]
        other = chance.choice(others) if kind == "cut" else ""
        found.append(Fault(kind, machine, other, chance.uniform(0.2, 4.0), chance.uniform(0.5, 8.0)))
    return found


class Chaos(Drill):
    """A lab that stays up over many seeds."""

    def do(self, fault: Fault) -> Callable[[], None]:
        """Break it; what mends it."""
        lab, machine = self.lab, self.lab.machine(fault.machine)
        match fault.kind:
            case "kill":
                machine.kill()
                return lambda: _on(machine)
            case "freeze":
                machine.freeze()
                return machine.thaw
            case "agent":
                machine.run(["pkill", "-9", "-f", "holdfast.agent"], check=False)
            case "hang":
                pid = machine.unit("holdfast").pid
                machine.run(["kill", "-STOP", str(pid)], check=False)
                return lambda: _quietly(machine, ["kill", "-CONT", str(pid)])
            case "nats":
                machine.run(["pkill", "-9", "-x", "nats-server"], check=False)
            case "cut":
                lab.cut(fault.machine, fault.other)
                return lab.heal
            case _:
                lab.cut(fault.machine, one_way=fault.kind.endswith("one way"))
                return lab.heal
        return lambda: None

    def seed_of(self, number: int, tell: Callable[[str], None]) -> list[str]:
        """What did not hold; empty when everything did."""
        chance = random.Random(number)
        path = self.folder / f"chaos-{number}.jsonl"
        plan = Plan(
            self.service,
            tuple(self.busy),
            seed=self.seed + number,
            deliveries=Deliveries(messages=100_000, rate_per_second=10.0, connections=3),
            mailboxes=Mailboxes(clients=0, operations=0),
            meter=Meter(probe=self.probe, every_seconds=0.1),
            patience=PATIENCE,
        )
        cuts: list[int] = []
        with self._holders() as both, self._load(plan, path) as (journal, _):
            wait_until(lambda: journal.counts.get("acknowledged", 0) >= 10, 60, "load", 0.01)
            for fault in draw(chance):
                time.sleep(fault.after)
                tell(str(fault))
                try:
                    mend = self.do(fault)
                except LabError as error:  # what it should break is broken already
                    tell(f"  not possible now: {error}")
                    continue
                if fault.kind == "kill":
                    cuts.append(time.monotonic_ns())
                time.sleep(fault.lasts)
                mend()
            self._mend_all(journal)
        return [*self._judge(list(journals.read(path)), cuts), *_too_long(both)]

    @contextmanager
    def _holders(self) -> Iterator[list[float]]:
        """The seconds in a row for which both kernels had the address, while both machines ran."""
        spans: list[float] = []
        stop = threading.Event()

        def look() -> None:
            since: float | None = None
            while not stop.wait(SAMPLE_SECONDS):
                both = all(self._holds(self.lab.machine(name)) for name in MAIL)
                now = time.monotonic()
                if both and since is None:
                    since = now
                elif not both and since is not None:
                    spans.append(now - since)
                    since = None

        thread = threading.Thread(target=look, daemon=True)
        thread.start()
        try:
            yield spans
        finally:
            stop.set()
            thread.join()

    def _holds(self, machine: Machine) -> bool:
        try:
            if not machine.running or machine.state.frozen:
                return False
            with machine.network():
                return any(str(there.ip) == self.lab.state.service_ipv4 for there in netlink.addresses("eth0"))
        except (LabError, OSError):
            return False

    def _mend_all(self, journal: Journal) -> None:
        """Everything on and connected, one serving and one standby, and users are served. Raises LabError."""
        self.lab.heal()
        for machine in self.lab.machines():
            if machine.running and machine.state.frozen:
                machine.thaw()
            _on(machine)
        deadline = time.monotonic() + SETTLE_SECONDS
        while time.monotonic() < deadline:
            facts = [self._facts(name) for name in MAIL]
            serving = [name for name, each in zip(MAIL, facts, strict=True) if each and each["serving"]]
            roles = sorted(each["role"] if each else "" for each in facts)
            if len(serving) == 1 and roles == ["primary", "standby"]:
                self.primary, self.standby = serving[0], next(name for name in MAIL if name != serving[0])
                return _delivers_on(journal)
            time.sleep(0.2)
        roles = [f"{name} is {each['role'] if each else 'silent'}" for name, each in zip(MAIL, facts, strict=True)]
        raise LabError(f"the site did not settle within {SETTLE_SECONDS:g} s: {', '.join(roles)}")

    def keep_evidence(self, number: int) -> None:
        """What the machines wrote, and what the clients saw, before the next seed writes over it."""
        folder = EVIDENCE / str(number)
        for machine in self.lab.machines():
            for path in (machine.path(name) for name in WRITTEN):
                if path.exists():
                    folder.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(path, folder / f"{machine.name}-{path.name}")
        for path in self.folder.glob(f"chaos-{number}.jsonl"):
            shutil.copyfile(path, folder / path.name)

    def _facts(self, name: str) -> dict[str, Any] | None:
        try:
            return self.site.status(name)
        except (LabError, TimeoutError):
            return None

    def _judge(self, records: list[Record], cuts: list[int]) -> list[str]:
        with self.clients():
            _, verdict = settled(self.service, [*self.busy, self.probe], records, seconds_max=10.0)
        excused: set[str] = set()
        for name in MAIL:
            excused |= queue_of(self.lab.machine(name)) | set_aside(self.lab.machine(name))
        close = int(CLOSE_SECONDS * 1e9)
        wrong = [
            f"lost: {message.message_id} ({message.account})"
            for message in verdict.lost
            if message.message_id not in excused
            and not any(at - close <= message.acknowledged_mono_ns <= at for at in cuts)
        ]
        wrong += [str(each) for each in exactly_once(verdict.duplicates, allow_explained=True)]
        lines: Any = self.site.ask(self.primary, "/log?last=1000")
        appends = [
            Appended(line["sequence"], line["epoch"], line["writer"], promotion=line["kind"] == "promotion")
            for line in lines
        ]
        wrong += [str(each) for each in one_writer(appends)]
        self.site.settle(self.primary, self.standby)
        verified = self.site.order(self.standby, "verify", "--full")
        return wrong + [f"verify: {verified['found']} differences"] * bool(verified["found"])


def _delivers_on(journal: Journal) -> None:
    """Until more is acknowledged than now. Raises TimeoutError."""
    more = journal.counts.get("acknowledged", 0) + 5
    wait_until(lambda: journal.counts.get("acknowledged", 0) >= more, 60, "deliveries", 0.05)


def _on(machine: Machine) -> None:
    if not machine.running:
        machine.start()


def _quietly(machine: Machine, argv: list[str]) -> None:
    if machine.running:
        machine.run(argv, check=False)


def _too_long(spans: list[float]) -> list[str]:
    return [f"two machines had the address for {span:.2f} s" for span in spans if span > OVERLAP_SECONDS_MAX]


def main(arguments: list[str]) -> int:
    """Exit status 3 when a promise did not hold."""
    parser = argparse.ArgumentParser(description="Random faults on real machines under load.")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, default=None, help="only this one")
    parser.add_argument("--minutes", type=float, default=None, help="begin no seed later than so long after the start")
    chosen = parser.parse_args(arguments)
    console = Console(highlight=False)
    first, count = (chosen.first, chosen.seeds) if chosen.seed is None else (chosen.seed, 1)
    until = float("inf") if chosen.minutes is None else time.monotonic() + chosen.minutes * 60
    passed = failed = 0
    with tempfile.TemporaryDirectory() as folder:
        chaos = Chaos("chaos", 7, Path(folder))
        try:
            for number in range(first, first + count):
                if time.monotonic() > until:
                    break
                console.print(f"seed {number}")
                try:
                    wrong = chaos.seed_of(number, lambda text: console.print(f"  {text}"))
                except (LabError, TimeoutError) as error:
                    wrong = [str(error)]
                passed, failed = passed + (not wrong), failed + bool(wrong)
                for each in wrong[:SHOWN_MAX]:
                    console.print(f"  [bold red]{each}[/]")
                if len(wrong) > SHOWN_MAX:
                    console.print(f"  and {len(wrong) - SHOWN_MAX} more")
                if wrong:
                    chaos.keep_evidence(number)
                if wrong and "did not settle" in wrong[0]:
                    break
        finally:
            chaos.lab.down(chaos.lab.name)
    console.print(f"seeds {first} to {first + passed + failed - 1}: {passed} passed, {failed} failed")
    return ExitStatus.DIFFERENCES if failed else ExitStatus.DONE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
