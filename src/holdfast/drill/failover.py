"""``make drill-failover``: the primary dies under load, again and again, and nobody gives an order.

A lab under the automatic policy. Each run: quiet accounts are worked on and witnessed; under deliveries and logins to
the others the primary's power is cut; the standby takes over by itself; what was acknowledged is compared with what is
there, and the quiet accounts with what was witnessed; the dead machine comes back, and is the standby of the next run.

``build/drill/failover.json``: ``runs``, ``rto_seconds_median``, ``rto_seconds_max``, ``captured_lost``,
``state_differences``, ``phases`` (where the seconds go), and every run. The recovery time is from the kill to the first
success of a client, on IMAP *and* SMTP at the same address. Exit status 0 only if what is promised held.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import Struct
from rich.console import Console
from rich.table import Table

from holdfast.drill.checkers.exact_state import compare, consistent, resynchronised
from holdfast.drill.checkers.facts import Probe, Protocol, Record
from holdfast.drill.checkers.in_time import outage_since
from holdfast.drill.checkers.nothing_lost import Reach, explain, nothing_lost
from holdfast.drill.lab import mailhost
from holdfast.drill.lab.lab import Lab
from holdfast.drill.lab.spec import USUAL_MACHINES, LabError, LabSpec, MachineSpec
from holdfast.drill.lab.tools import wait_until
from holdfast.drill.remains import queue_of, set_aside
from holdfast.drill.site import ProtectedLab
from holdfast.drill.workload import journal as journals
from holdfast.drill.workload.journal import Journal
from holdfast.drill.workload.net import Endpoint, Patience
from holdfast.drill.workload.plan import Deliveries, Login, Mailboxes, Meter, Plan, Service
from holdfast.drill.workload.run import Workload
from holdfast.drill.workload.settle import settled
from holdfast.drill.workload.witness import observe, resynchronise
from holdfast.errors import ExitStatus, HoldfastError

FILE: Final = Path("build/drill/failover.json")
RUNS: Final = 50
ACCOUNTS: Final = 7
QUIET_ACCOUNTS: Final = 2
RATE_PER_SECOND: Final = 20.0
MESSAGES_BEFORE: Final = 40
PROBE_EVERY_SECONDS: Final = 0.05
SERVED_SECONDS_MAX: Final = 60.0
IN_TRANSIT_SECONDS: Final = 1.0
"""From SMTP's 250 a message needs a moment through Postfix to the mailbox: the log can only have what got there."""
MEDIAN_SECONDS_MAX: Final = 3.0
EACH_SECONDS_MAX: Final = 5.0
STEPS: Final = ("drain", "confirm", "promote", "prepare", "serve")
STRAIGHT_PORT: Final = 2425
"""With an odd seed relays hand mail straight into the primary's gate, with an even one to its Postfix."""
PATIENCE: Final = Patience(connect_seconds=1.0, answer_seconds=10.0)


class Run(Struct, frozen=True):
    """One death. *phases*: seconds by name; *captured_lost* and *differences* are sentences."""

    killed: str
    rto_seconds: float
    imap_seconds: float
    smtp_seconds: float
    phases: dict[str, float]
    acknowledged: int
    excused: int
    captured_lost: list[str]
    differences: list[str]
    rejoin_seconds: float


class Drill:
    """A lab, and what is done to it."""

    def __init__(
        self,
        name: str,
        seed: int,
        folder: Path,
        mail: mailhost.MailSettings | None = None,
        more_configuration: str = "",
        relays: dict[str, str] | None = None,
        accounts: int = ACCOUNTS,
        agent_environment: dict[str, str] | None = None,
    ) -> None:
        Lab.down(name)
        machines = tuple(MachineSpec.parse(text) for text in USUAL_MACHINES)
        self.chance = random.Random(seed)
        self.seed = seed
        self.folder = folder
        self.lab = Lab.up(LabSpec(name=name, machines=machines, accounts=accounts, seed="failover"))
        self.site = ProtectedLab(self.lab, agent_environment)
        self.site.protect(
            mail or mailhost.MailSettings(),
            failover="automatic",
            more_configuration=more_configuration,
            relays=relays,
            straight_port=STRAIGHT_PORT if relays and seed % 2 else 0,
        )
        self.site.wait_settled()
        logins = [Login(account.address, account.password) for account in self.lab.accounts]
        self.quiet, self.busy, self.probe = logins[:QUIET_ACCOUNTS], logins[QUIET_ACCOUNTS:-1], logins[-1]
        address = self.lab.state.service_ipv4
        self.service = Service(smtp=Endpoint(address, 25), imap=Endpoint(address, 993, "implicit"))
        self.primary, self.standby = "main", "backup"

    # -- the clients ---------------------------------------------------------------------------------------------------

    @contextmanager
    def clients(self) -> Iterator[None]:
        with self.lab.machine("client").network():
            yield

    def _work_quietly(self, number: int) -> None:
        plan = Plan(
            self.service,
            tuple(self.quiet),
            seed=self.seed + number,
            deliveries=Deliveries(messages=6, connections=2),
            mailboxes=Mailboxes(clients=1, operations=30),
            patience=PATIENCE,
        )
        with self._load(plan, self.folder / f"quiet-{number}.jsonl") as (_, thread):
            thread.join(60)

    @contextmanager
    def _load(self, plan: Plan, path: Path) -> Iterator[tuple[Journal, threading.Thread]]:
        """A workload on the client machine while the block runs."""
        stop, journal = threading.Event(), Journal(path)
        workload = Workload(plan, journal, stop)
        failed: list[HoldfastError] = []

        def work() -> None:
            try:
                with self.clients():
                    workload.run()
            except HoldfastError as error:
                failed.append(error)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        try:
            yield journal, thread
        finally:
            stop.set()
            thread.join(60)
            journal.close()
        if failed:
            raise failed[0]

    # -- one run -------------------------------------------------------------------------------------------------------

    def run(self, number: int) -> Run:
        """Raises LabError when nobody serves in the end."""
        site, dying, taking = self.site, self.primary, self.standby
        self._work_quietly(number)
        site.wait_for(taking, lambda facts: bool(facts["log"]["leader"] == "relay"), "led by the relay")
        site.settle(dying, taking)
        with self.clients():
            before = observe(self.service, self.quiet)
        path = self.folder / f"busy-{number}.jsonl"
        plan = Plan(
            self.service,
            tuple(self.busy),
            seed=self.seed + 1000 + number,
            deliveries=Deliveries(messages=100_000, rate_per_second=RATE_PER_SECOND, connections=4),
            mailboxes=Mailboxes(clients=0, operations=0),
            meter=Meter(probe=self.probe, every_seconds=PROBE_EVERY_SECONDS),
            patience=PATIENCE,
        )
        with self._load(plan, path) as (journal, _):
            wait_until(lambda: journal.counts.get("acknowledged", 0) >= MESSAGES_BEFORE, 60, "load", 0.01)
            time.sleep(self.chance.random())
            killed, killed_at = time.monotonic_ns(), time.time()
            self.lab.machine(dying).kill()
            dead = time.monotonic_ns()
            wait_until(lambda: _served(path, dead), SERVED_SECONDS_MAX, "service by another machine", 0.05)
        records = list(journals.read(path))
        probes = [record for record in records if isinstance(record, Probe)]
        imap, smtp = (  # begun after it was dead: while it is killed it may still answer
            outage_since(probes, protocol, dead).seconds + (dead - killed) / 1e9
            for protocol in (Protocol.IMAP, Protocol.SMTP)
        )
        phases = self._phases(taking, killed_at, killed_at + max(imap, smtp))
        reach = Reach(safe_mono_ns=self._safe(taking, dying, records), killed_mono_ns=dead, queue_protected=False)
        with self.clients():
            mailboxes, verdict = settled(self.service, [*self.busy, self.probe], records, seconds_max=5.0)
            after = observe(self.service, self.quiet)
            told = resynchronise(self.service, self.quiet, before)
        came = time.monotonic()
        self.lab.machine(dying).start()
        queued = queue_of(self.lab.machine(dying))
        site.wait_role(dying, "standby")
        rejoin_seconds = time.monotonic() - came
        reach = msgspec.structs.replace(reach, queued=queued, set_aside=set_aside(self.lab.machine(dying)))
        lost = explain(verdict.lost, reach)
        differences = [*compare(before, after), *resynchronised(before, told, after), *consistent(mailboxes)]
        self.primary, self.standby = taking, dying
        return Run(
            dying,
            round(max(imap, smtp), 3),
            round(imap, 3),
            round(smtp, 3),
            phases,
            verdict.accepted,
            sum(message.excused for message in lost),
            [str(each) for each in nothing_lost(verdict.lost, reach)],
            [str(each) for each in differences],
            round(rejoin_seconds, 3),
        )

    def _phases(self, machine: str, killed_at: float, served_at: float) -> dict[str, float]:
        """Where the seconds went, by the history of the machine that took over."""
        events: Any = self.site.ask(machine, "/history?last=60")
        events = [event for event in events if event["at"] >= killed_at]
        begun = next((event["at"] for event in events if event["what"] == "takeover begins"), None)
        if begun is None:
            return {}
        phases = {"noticing": round(begun - killed_at, 3)}
        for event in events:
            step = event["what"].removeprefix("takeover: ")
            if step in STEPS:
                phases[step] = round(phases.get(step, 0.0) + event["details"]["seconds"], 3)
        phases["to the slowest protocol's first success"] = round(served_at - killed_at - sum(phases.values()), 3)
        return phases

    def _safe(self, machine: str, dead: str, records: list[Record]) -> int:
        """Until when what was acknowledged had been captured: the last record of *dead*, in the journal's clock."""
        lines: Any = self.site.ask(machine, "/log?last=1000")
        last = max(line["captured_at"] for line in lines if line["writer"] == dead)
        began: Any = records[0]
        return int(began.mono_ns + (last - IN_TRANSIT_SECONDS) * 1e9 - began.real_ns)


def _served(path: Path, since_mono_ns: int) -> bool:
    good = {
        record.protocol
        for record in journals.read(path)
        if isinstance(record, Probe) and record.good and record.mono_ns > since_mono_ns
    }
    return {Protocol.IMAP, Protocol.SMTP, Protocol.DELIVERY} <= good


def summary(runs: list[Run], seed: int) -> dict[str, Any]:
    """The figures, and whether the promises held."""
    seconds = [run.rto_seconds for run in runs]
    names = list(dict.fromkeys(name for run in runs for name in run.phases))
    phases = {
        name: {
            "median": round(statistics.median(values), 3),
            "max": round(max(values), 3),
        }
        for name in names
        if (values := [run.phases[name] for run in runs if name in run.phases])
    }
    lost = sum(len(run.captured_lost) for run in runs)
    differences = sum(len(run.differences) for run in runs)
    median, longest = round(statistics.median(seconds), 3), round(max(seconds), 3)
    held = median <= MEDIAN_SECONDS_MAX and longest <= EACH_SECONDS_MAX and not lost and not differences
    return {
        "runs": len(runs),
        "rto_seconds_median": median,
        "rto_seconds_max": longest,
        "captured_lost": lost,
        "state_differences": differences,
        "phases": phases,
        "held": held,
        "seed": seed,
        "each": [msgspec.to_builtins(run) for run in runs],
    }


def show(found: dict[str, Any], console: Console) -> None:
    table = Table(title=f"The primary died {found['runs']} times")
    for name in ("", "promised", "measured"):
        table.add_column(name)
    table.add_row("to the first IMAP and SMTP success, median", "<= 3 s", f"{found['rto_seconds_median']:.2f} s")
    table.add_row("the longest", "<= 5 s", f"{found['rto_seconds_max']:.2f} s")
    table.add_row("captured changes lost", "0", str(found["captured_lost"]))
    table.add_row("differences in mailbox state", "0", str(found["state_differences"]))
    for name, values in found["phases"].items():
        table.add_row(f"  {name}", "", f"{values['median']:.2f} s (at most {values['max']:.2f} s)")
    console.print(table)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description="The primary dies under load, and nobody gives an order.")
    parser.add_argument("--runs", type=int, default=RUNS)
    parser.add_argument("--seed", type=int, default=20261122)
    parser.add_argument("--minutes", type=float, default=None, help="begin no run later than so long after the start")
    chosen = parser.parse_args(arguments)
    console = Console(highlight=False)
    runs: list[Run] = []
    until = math.inf if chosen.minutes is None else time.monotonic() + chosen.minutes * 60
    name = "failover"
    try:
        with tempfile.TemporaryDirectory() as folder:
            console.print("a lab of four machines, mail software on main, Holdfast on all ...")
            drill = Drill(name, chosen.seed, Path(folder))
            for number in range(1, chosen.runs + 1):
                if time.monotonic() > until:
                    break
                run = drill.run(number)
                runs.append(run)
                wrong = (
                    f", [bold red]{run.captured_lost + run.differences}[/]"
                    if run.captured_lost or run.differences
                    else ""
                )
                console.print(
                    f"{number:3} {run.killed} died: IMAP {run.imap_seconds:.2f} s, SMTP {run.smtp_seconds:.2f} s; "
                    f"back as standby in {run.rejoin_seconds:.1f} s{wrong}"
                )
    except (LabError, TimeoutError) as error:
        console.print(f"[bold red]failed[/] in run {len(runs) + 1}: {error}")
        return ExitStatus.FAILED
    finally:
        Lab.down(name)
        if runs:
            found = summary(runs, chosen.seed)
            FILE.parent.mkdir(parents=True, exist_ok=True)
            FILE.write_bytes(msgspec.json.format(msgspec.json.encode(found)))
            show(found, console)
            console.print(str(FILE))
    return ExitStatus.DONE if found["held"] else ExitStatus.DIFFERENCES


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
