"""``make drill-mail``: nothing accepted is lost or doubled, whatever dies, and the ledger says what became of it.

A lab under the automatic policy with the gates on, and a relay that takes mail. Each run draws one fault from its seed
and breaks one machine or one program under a steady load: SMTP at port 25 of the site and of the relay, submission at
587 to this site and to another, IMAP, CalDAV and CardDAV. Then it is mended, the site settles, and it is judged:

* *acknowledged and lost*: what a server took by SMTP and is in no mailbox and no queue;
* *inbound duplicates*: what was accepted once and is there twice. A client that got no answer and sent again made two
  messages (RFC 5321 4.5.4.1): those are not counted;
* *undone*: a change by IMAP, ManageSieve or DAV that was acknowledged, and is not there;
* *unnamed outbound repeats*: what came to the other site more often than it was sent, and the ledger does not say so;
* *the ledger*: each message's state is compared with the mailboxes, and so is its report.

Runs follow one another in one lab. ``build/drill/mail.json``: ``runs``, ``acknowledged_lost``, ``inbound_duplicates``,
``unnamed_outbound_repeats``, ``ledger_false``, ``undone``, by kind of fault, and each run. Exit status 3 when a promise
did not hold. ``--more`` adds to the runs that are in the file; a run's faults are drawn from its number.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import Struct
from rich.console import Console
from rich.table import Table

from holdfast.drill.chaos import Chaos
from holdfast.drill.checkers.exactly_once import exactly_once
from holdfast.drill.checkers.facts import Attempt, Outcome, Record
from holdfast.drill.checkers.ledger_true import acknowledged, false_report, false_rows
from holdfast.drill.failover import PATIENCE
from holdfast.drill.faults import MAIL, Fault
from holdfast.drill.gated import RELAYS
from holdfast.drill.lab import mailhost
from holdfast.drill.lab.lab import Lab, Machine
from holdfast.drill.lab.spec import LabError
from holdfast.drill.lab.tools import wait_until
from holdfast.drill.outbound import Arrivals, Senders, far_site
from holdfast.drill.remains import queue_of
from holdfast.drill.workload import journal as journals
from holdfast.drill.workload.journal import Journal
from holdfast.drill.workload.net import Endpoint
from holdfast.drill.workload.plan import Deliveries, Groupware, Mailboxes, Meter, Plan, Service
from holdfast.drill.workload.settle import settled
from holdfast.errors import ExitStatus

FILE: Final = Path("build/drill/mail.json")
NAME: Final = "mail"
RUNS: Final = 100
KINDS: Final = (
    "primary killed",
    "standby killed",
    "relay killed",
    "one-way cut",
    "freeze",
    "full disk",
    "gates killed",
    "postfix killed",
    "dovecot killed",
    "nats-server killed",
)
"""The LMTP gate and the milter are one process. Each ten runs have each kind once."""
WARM_MESSAGES: Final = 10
SMTP_PER_SECOND: Final = 8.0
SUBMISSIONS_PER_SECOND: Final = 4.0
OUTBOUND_EVERY_SECONDS: Final = 0.3
FILLER: Final = "/var/lib/filler"
WIDTH: Final = 120


class Run(Struct, frozen=True):
    """One fault. Lists hold sentences. *undone*: changes by IMAP, ManageSieve and DAV that were acknowledged, and are
    not there, or not so."""

    number: int
    kind: str
    fault: str
    seconds: float
    acknowledged: int
    outbound: int
    lost: list[str]
    duplicates: list[str]
    unnamed_repeats: list[str]
    named_repeats: int
    ledger_false: list[str]
    sums: dict[str, int]
    undone: list[str]
    failure: str = ""

    @property
    def held(self) -> bool:
        return not (
            self.lost or self.duplicates or self.unnamed_repeats or self.ledger_false or self.undone or self.failure
        )


def draw(number: int, seed: int) -> tuple[str, random.Random]:
    """The kind of fault of run *number*, and what the rest is drawn from."""
    block = random.Random(f"{seed}/{number // len(KINDS)}")
    kinds = block.sample(KINDS, len(KINDS))
    return kinds[number % len(KINDS)], random.Random(f"{seed}/run/{number}")


class MailDrill(Chaos):
    """A lab with the gates on, that stays up over many runs."""

    def __init__(self, seed: int, folder: Path) -> None:
        super().__init__(NAME, seed, folder, relays=RELAYS)
        self.arrivals = Arrivals()
        self.relay = Endpoint(self.lab.machine("relay").state.ipv4, 25)
        self.submission = Endpoint(self.service.smtp.host, 587, "starttls")

    # -- faults --------------------------------------------------------------------------------------------------------

    def fault(self, kind: str, chance: random.Random) -> Fault:
        anywhere = chance.choice(("main", "backup", "relay"))
        places = {"primary killed": self.primary, "standby killed": self.standby, "relay killed": "relay"}
        own = ("gates killed", "postfix killed", "dovecot killed")
        machine = places.get(kind) or (self.primary if kind in own else anywhere)
        return Fault(kind, machine, "", chance.uniform(0.1, 2.0), chance.uniform(0.5, 6.0))

    def do(self, fault: Fault) -> Callable[[], None]:
        machine = self.lab.machine(fault.machine)
        match fault.kind:
            case "primary killed" | "standby killed" | "relay killed":
                return super().do(fault._replace(kind="kill"))
            case "one-way cut":
                return super().do(fault._replace(kind="cut off one way"))
            case "freeze":
                return super().do(fault)
            case "nats-server killed":
                return super().do(fault._replace(kind="nats"))
            case "full disk":
                return _filled(machine)
            case "gates killed":
                machine.run(["pkill", "-9", "-f", "holdfast.gate "], check=False)
                return lambda: None
            case "postfix killed":
                machine.run(["pkill", "-9", "-f", "/usr/lib/postfix/sbin/master"], check=False)
                machine.run(["pkill", "-9", "-u", "postfix"], check=False)
                return lambda: self._again(machine, "postfix")
            case "dovecot killed":
                machine.run(["pkill", "-9", "-f", "dovecot"], check=False)
                return lambda: self._again(machine, "dovecot")
            case _:
                raise AssertionError(fault)

    def _again(self, machine: Machine, service: mailhost.Service) -> None:
        """As systemd would, where it serves."""
        facts = self._facts(machine.name)
        if facts and facts["serving"]:
            mailhost.start(machine, [service])

    # -- one run -------------------------------------------------------------------------------------------------------

    def one(self, number: int, tell: Callable[[str], None]) -> Run:
        kind, chance = draw(number, self.seed)
        fault = self.fault(kind, chance)
        tell(str(fault))
        began, since = time.monotonic(), time.time()
        senders = Senders(self.submission, self.busy[0], self._far(), self.seed + 7 * number + 2, PATIENCE)
        with self._loads(number, senders) as (journal, paths):
            wait_until(lambda: journal.counts.get("acknowledged", 0) >= WARM_MESSAGES, 60, "load", 0.01)
            time.sleep(fault.after)
            mend = self.do(fault)
            time.sleep(fault.lasts)
            mend()
            self._mend_all(journal)
        self._wait_for_empty_queue()
        run = self._judged(number, fault, _merged(paths), senders, since)
        self.lab.machine(self.primary).run(["doveadm", "expunge", "-A", "mailbox", "*", "all"], check=False)
        return msgspec.structs.replace(run, seconds=round(time.monotonic() - began, 1))

    def _far(self) -> str:
        return f"far@[{self.lab.machine('client').state.ipv4}]"

    @contextmanager
    def _loads(self, number: int, senders: Senders) -> Iterator[tuple[Journal, list[Path]]]:
        """Everything at once; the journal of the deliveries at port 25, and all journals."""
        accounts, seed = tuple(self.busy), self.seed + 7 * number
        plan = Plan(
            self.service,
            accounts,
            seed=seed,
            deliveries=Deliveries(messages=100_000, rate_per_second=SMTP_PER_SECOND, connections=3),
            mailboxes=Mailboxes(clients=1, operations=100_000, pause_seconds=0.1),
            groupware=Groupware(clients=1, operations=100_000, pause_seconds=0.3),
            meter=Meter(probe=self.probe, every_seconds=0.5),
            patience=PATIENCE,
        )
        submitting = Plan(
            Service(smtp=self.submission, imap=self.service.imap, submission_login=True),
            accounts,
            seed=seed + 1,
            deliveries=Deliveries(messages=100_000, rate_per_second=SUBMISSIONS_PER_SECOND, connections=2),
            mailboxes=Mailboxes(clients=0, operations=0),
            groupware=Groupware(clients=0, operations=0),
            patience=PATIENCE,
        )
        relayed = msgspec.structs.replace(
            submitting, service=Service(smtp=self.relay, imap=self.service.imap), seed=seed + 3
        )
        paths = [self.folder / f"mail-{number}-{name}.jsonl" for name in ("smtp", "submission", "relay")]
        with ExitStack() as loads:
            journal, _ = loads.enter_context(self._load(plan, paths[0]))
            loads.enter_context(self._load(submitting, paths[1]))
            loads.enter_context(self._load(relayed, paths[2]))
            loads.enter_context(self._sending(senders))
            yield journal, paths

    @contextmanager
    def _sending(self, senders: Senders) -> Iterator[None]:
        stop = threading.Event()

        def work() -> None:
            with self.clients():
                senders.run(stop, OUTBOUND_EVERY_SECONDS)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join(60)

    # -- the verdict ---------------------------------------------------------------------------------------------------

    def _judged(self, number: int, fault: Fault, records: list[Record], senders: Senders, since: float) -> Run:
        with self.clients():
            _, verdict = settled(self.service, [*self.busy, self.probe], records, seconds_max=15.0)
        queued: set[str] = set()
        for name in (*MAIL, "relay"):
            queued |= queue_of(self.lab.machine(name))
        delivered = [message for message in verdict.lost if message.operation == "Deliver"]
        missing = {(message.message_id, message.account) for message in delivered}
        ledger = self.site.order(self.primary, "ledger", "report", "--hours", str((time.time() - since) / 3600))
        rows: Any = self._export(since)
        named = {row["delivery"] for row in rows if row["requeued_by"] or row["state"] == "re-sent"}
        repeats, told = self._repeats(senders, named)
        return Run(
            number=number,
            kind=fault.kind,
            fault=str(fault),
            seconds=0.0,
            acknowledged=verdict.accepted,
            outbound=len(senders.acknowledged),
            lost=[
                *(f"{name} ({account})" for name, account in sorted(missing) if name not in queued),
                *(f"{name} (to the other site)" for name in self._not_sent(senders, queued)),
            ],
            duplicates=[str(each) for each in exactly_once(verdict.duplicates, allow_explained=True)],
            unnamed_repeats=repeats,
            named_repeats=told,
            ledger_false=[
                *false_rows(acknowledged(records), rows, missing, queued),
                *false_report(ledger, missing, queued),
            ],
            sums=ledger["sums"],
            undone=[
                *(str(each) for each in verdict.state_differences),
                *(
                    f"{each.message_id} ({each.account}): {each.operation}"
                    for each in verdict.lost
                    if each not in delivered
                ),
            ],
        )

    def _not_sent(self, senders: Senders, queued: set[str]) -> list[str]:
        return [name for name in senders.acknowledged if not self.arrivals.copies(name) and name not in queued]

    def _repeats(self, senders: Senders, named: set[str]) -> tuple[list[str], int]:
        """(what came more than once and nothing says why, how many did and the ledger names them)."""
        unnamed, told = [], 0
        for name in senders.acknowledged:
            copies = self.arrivals.copies(name)
            twice = {delivery for delivery in copies if copies.count(delivery) > 1}
            told += len(twice & named)
            unnamed += [f"{name} came {copies.count(delivery)} times" for delivery in sorted(twice - named)]
            if len(set(copies)) > 1 and name not in senders.doubtful:
                unnamed.append(f"{name} came under {len(set(copies))} delivery ids")
        return unnamed, told


def _filled(machine: Machine) -> Callable[[], None]:
    """Fill its disk; what empties it."""
    path = machine.path(FILLER)
    there = os.statvfs(path.parent)
    size = there.f_bfree * there.f_frsize
    with path.open("wb") as file:
        while size > 4096:
            try:
                os.posix_fallocate(file.fileno(), 0, size)
                break
            except OSError:
                size -= max(size // 100, 4096)
        try:
            file.seek(0, os.SEEK_END)
            while True:
                os.write(file.fileno(), bytes(65536))
        except OSError:
            pass
    return lambda: path.unlink(missing_ok=True)


def _merged(paths: Sequence[Path]) -> list[Record]:
    """The records of several journals as one: operations are numbered in each."""
    merged: list[Record] = []
    for place, path in enumerate(paths):
        for record in journals.read(path):
            if isinstance(record, Attempt | Outcome):
                record = msgspec.structs.replace(record, op=record.op * len(paths) + place)
            merged.append(record)
    return merged


def summary(runs: list[Run], seed: int) -> dict[str, Any]:
    def figures(some: list[Run]) -> dict[str, Any]:
        return {
            "runs": len(some),
            "acknowledged": sum(run.acknowledged + run.outbound for run in some),
            "acknowledged_lost": sum(len(run.lost) for run in some),
            "inbound_duplicates": sum(len(run.duplicates) for run in some),
            "unnamed_outbound_repeats": sum(len(run.unnamed_repeats) for run in some),
            "named_outbound_repeats": sum(run.named_repeats for run in some),
            "ledger_false": sum(len(run.ledger_false) for run in some),
            "undone": sum(len(run.undone) for run in some),
            "failures": sum(bool(run.failure) for run in some),
        }

    kinds = {kind: figures([run for run in runs if run.kind == kind]) for kind in KINDS}
    return {
        **figures(runs),
        "seconds_a_run": round(sum(run.seconds for run in runs) / max(len(runs), 1), 1),
        "held": all(run.held for run in runs),
        "seed": seed,
        "by_kind": {kind: found for kind, found in kinds.items() if found["runs"]},
        "each": [msgspec.to_builtins(run) for run in runs],
    }


def show(found: dict[str, Any], console: Console) -> None:
    table = Table(title=f"{found['runs']} faults under load, {found['seconds_a_run']:g} s each", title_justify="left")
    columns = {
        "runs": "runs",
        "accepted": "acknowledged",
        "lost": "acknowledged_lost",
        "undone": "undone",
        "doubled": "inbound_duplicates",
        "re-sent": "named_outbound_repeats",
        "unnamed": "unnamed_outbound_repeats",
        "ledger": "ledger_false",
        "failed": "failures",
    }
    for name in ("", *columns):
        table.add_column(name)
    for kind, figures in {**found["by_kind"], "all": found}.items():
        table.add_row(kind, *(str(figures[key]) for key in columns.values()))
    console.print(table)


def _earlier(more: bool) -> list[Run]:
    if not more or not FILE.exists():
        return []
    return msgspec.convert(msgspec.json.decode(FILE.read_bytes())["each"], list[Run])


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description="Faults under mail load; what was accepted is compared with what came."
    )
    parser.add_argument("--runs", type=int, default=RUNS)
    parser.add_argument("--seed", type=int, default=20261123)
    parser.add_argument(
        "--first", type=int, default=None, help="the first run's number; default: after those in the file"
    )
    parser.add_argument("--more", action="store_true", help="add to the runs in the file")
    parser.add_argument("--seconds", type=float, default=0.0, help="begin no run after so long; 0: no limit")
    chosen = parser.parse_args(arguments)
    console = Console(highlight=False, width=WIDTH)
    runs = _earlier(chosen.more)
    first = chosen.first if chosen.first is not None else len(runs)
    began = time.monotonic()
    try:
        with tempfile.TemporaryDirectory() as folder, ExitStack() as far:
            console.print("a lab of four machines, mail software on main, Holdfast with its gates on all ...")
            drill = MailDrill(chosen.seed, Path(folder))
            with drill.clients():
                far.enter_context(far_site(drill.arrivals))
            for number in range(first, first + chosen.runs):
                if chosen.seconds and time.monotonic() - began > chosen.seconds:
                    break
                try:
                    run = drill.one(number, lambda text, number=number: console.print(f"{number:3} {text}"))  # type: ignore[misc]
                except (LabError, TimeoutError) as error:
                    run = Run(
                        number, draw(number, chosen.seed)[0], "", 0.0, 0, 0, [], [], [], 0, [], {}, [], str(error)
                    )
                runs.append(run)
                said = f"{run.acknowledged} + {run.outbound} acknowledged, {run.seconds:g} s, ledger {run.sums}"
                console.print(f"    {said}", markup=False)
                for wrong in (
                    *run.lost,
                    *run.duplicates,
                    *run.unnamed_repeats,
                    *run.ledger_false,
                    *run.undone,
                    run.failure,
                ):
                    if wrong:
                        console.print(f"    {wrong}", style="bold red", markup=False)
                if run.failure:
                    break
    finally:
        Lab.down(NAME)
        found = summary(runs, chosen.seed)
        FILE.parent.mkdir(parents=True, exist_ok=True)
        FILE.write_bytes(msgspec.json.format(msgspec.json.encode(found)))
        show(found, console)
        console.print(str(FILE))
    return ExitStatus.DONE if found["held"] else ExitStatus.DIFFERENCES


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
