"""Random faults on real machines under load: whatever happens, the promises hold. ``make chaos`` (lab part).

A lab with all gates on, under the automatic policy. One seed: one to three faults out of ``faults``' list, at random
moments, each mended after a while, under recorded deliveries, IMAP clients, and CalDAV and CardDAV clients. Each seed
has accounts of its own, so that it is judged by what its own clients did. Then everything is mended, the site settles,
and it is judged, by one checker for each promise of the design page:

* 1: what was acknowledged (a message, a change by IMAP or DAV) is there, or in the queue of who serves: no excuses,
  for it passed a gate;
* 2: the log has one writer an epoch, none of an older epoch behind a promotion; and the kernels of two running machines
  had the service address together for no longer than the bound of ``watchman``;
* 3: standby and primary are equal: the seed's accounts by listing both disks, everything by ``verify --full``;
* 5: after the first fault, if it took the primary from its clients while all machines were well, a client logged in and
  handed a message in in time (``IN_TIME_SECONDS_MAX``);
* 6: no message is there twice without a reason; 4: no mailbox contradicts itself;
* 7: the ledger says of each message what is so, and what is lost it names.

``python -m holdfast.drill.chaos --seeds 5 --first 10``; a seed that fails says its number, ``--seed N`` draws the same
faults again (real machines' timing is their own), and what the machines wrote about it is in ``build/chaos/N``, with
the mailboxes of the accounts that are not as they should be, as both machines have them.

*Not shown.* What ``lab.clock`` cannot move. Promise 5's figure: ``make drill-failover`` measures it on a calm machine.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
from rich.console import Console

from holdfast.drill.checkers.exact_state import consistent
from holdfast.drill.checkers.exactly_once import exactly_once
from holdfast.drill.checkers.facts import Appended, Mailboxes, Probe, Protocol, Record
from holdfast.drill.checkers.in_time import in_time, outage_since
from holdfast.drill.checkers.ledger_true import acknowledged, false_report, false_rows
from holdfast.drill.checkers.nothing_lost import Reach, nothing_lost
from holdfast.drill.checkers.one_writer import one_writer
from holdfast.drill.checkers.reconcile import Verdict
from holdfast.drill.checkers.truthful import truthful
from holdfast.drill.failover import ACCOUNTS, EACH_SECONDS_MAX, PATIENCE
from holdfast.drill.faults import JUMPS_SECONDS, MAIL, Breaking, Fault, draw, on
from holdfast.drill.gated import CONFIGURATION, DAV_PORT, gated
from holdfast.drill.lab import clock, mailhost
from holdfast.drill.lab.lab import Machine
from holdfast.drill.lab.spec import LabError
from holdfast.drill.lab.tools import wait_until
from holdfast.drill.remains import queue_of
from holdfast.drill.two_trees import GROUPWARE, STORE, differences
from holdfast.drill.workload import journal as journals
from holdfast.drill.workload import plan as plans
from holdfast.drill.workload.journal import Journal
from holdfast.drill.workload.net import Endpoint
from holdfast.drill.workload.plan import Deliveries, Groupware, Login, Meter, Plan
from holdfast.drill.workload.settle import settled
from holdfast.errors import ExitStatus, HoldfastError
from holdfast.node import netlink
from holdfast.node.watchman import OVERLAP_SECONDS_MAX

NAME: Final = "chaos"
SETTLE_SECONDS: Final = 120.0
SAMPLE_SECONDS: Final = 0.03
LOG_EVERY_SECONDS: Final = 3.0
LOG_RECORDS: Final = 1000
"""The agent gives no more at once; far more than are written between two looks."""
IN_TIME_SECONDS_MAX: Final = 2 * EACH_SECONDS_MAX
"""Twice the promise: machines, clients and whatever runs beside them share the processors."""
LEADER_SECONDS_MAX: Final = 15.0
QUEUE_SECONDS_MAX: Final = 60.0
ACCOUNTS_PER_SEED: Final = 5
"""Four for the clients, one for the prober. The lab's first is for the agents' own."""
TAKES_PRIMARY: Final = frozenset(
    {"kill", "freeze", "freeze past takeover", "hang", "cut off", "cut off one way"},
)
"""Kinds of fault that take a primary from its clients."""
WARM_OPERATIONS: Final = 15
SHOWN_MAX: Final = 20
EVIDENCE: Final = Path("build/chaos")
WRITTEN: Final = ("/var/lib/holdfast/history.jsonl", "/var/log/holdfast.log", "/var/log/mail.log")
MAILDIR_FILES: Final = ("dovecot-keywords", "dovecot-uidlist", "dovecot.index.log", "dovecot.index.log.2")


class Broken(NamedTuple):
    """A fault that was done, and when."""

    fault: Fault
    mono_ns: int
    primary: str


class Chaos(Breaking):
    """A lab that stays up over many seeds."""

    def __init__(
        self, name: str, seed: int, folder: Path, accounts: int = ACCOUNTS, relays: dict[str, str] | None = None
    ) -> None:
        super().__init__(
            name,
            seed,
            folder,
            gated(mailhost.MailSettings()),
            CONFIGURATION,
            relays,
            accounts,
            clock.environment(),
        )
        self.service = msgspec.structs.replace(self.service, dav=Endpoint(self.service.smtp.host, DAV_PORT))
        self._spans: list[float] = []
        self._log: dict[int, dict[str, Any]] = {}

    def seed_of(self, number: int, place: int, tell: Callable[[str], None]) -> list[str]:
        """What did not hold; empty when everything did. *place*: how many seeds were before it in this lab."""
        users = [Login(account.address, account.password) for account in self.lab.accounts]
        *accounts, probe = users[1 + place * ACCOUNTS_PER_SEED :][:ACCOUNTS_PER_SEED]
        path = self.folder / f"chaos-{number}.jsonl"
        plan = Plan(
            self.service,
            tuple(accounts),
            seed=self.seed + number,
            deliveries=Deliveries(messages=100_000, rate_per_second=6.0, connections=3),
            mailboxes=plans.Mailboxes(clients=2, operations=100_000, pause_seconds=0.1),
            groupware=Groupware(clients=1, operations=100_000, pause_seconds=0.2),
            meter=Meter(probe=probe, every_seconds=0.25),
            patience=PATIENCE,
        )
        since = time.time()
        self._wait_for_leader()
        with self._watching(), self._load(plan, path) as (journal, _):
            wait_until(lambda: journal.counts.get("acknowledged", 0) >= WARM_OPERATIONS, 60, "load", 0.01)
            broken = self._break(draw(random.Random(number)), tell)
            self._mend_all(journal)
        return self._judge(number, [*accounts, probe], list(journals.read(path)), broken, since)

    def _break(self, faults: Iterable[Fault], tell: Callable[[str], None]) -> list[Broken]:
        broken: list[Broken] = []
        for drawn in faults:
            time.sleep(drawn.after)
            fault = self.placed(drawn)
            tell(str(fault))
            broken.append(Broken(fault, time.monotonic_ns(), self.placed(Fault("", "primary", "", 0, 0)).machine))
            try:
                mend = self.do(fault)
            except LabError as error:  # what it should break is broken already
                tell(f"  not possible now: {error}")
                continue
            time.sleep(fault.lasts)
            try:
                mend()
            except LabError as error:
                tell(f"  not mended yet: {error}")
        return broken

    def _wait_for_leader(self) -> None:
        """The relay leads the log again, as it should: else a primary's death costs an election, too."""
        with suppress(LabError):
            self.site.wait_for(
                self.standby, lambda facts: bool(facts["log"]["leader"] == "relay"), "led by it", LEADER_SECONDS_MAX
            )

    # -- what is looked at all the while -------------------------------------------------------------------------------

    @contextmanager
    def _watching(self) -> Iterator[None]:
        """The seconds in a row for which both kernels had the address, while both machines ran; and the log."""
        self._spans, self._log = [], {}
        stop = threading.Event()
        threads = [threading.Thread(target=each, args=(stop,), daemon=True) for each in (self._hold, self._follow)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            stop.set()
            for thread in threads:
                thread.join()

    def _hold(self, stop: threading.Event) -> None:
        since: float | None = None
        while not stop.wait(SAMPLE_SECONDS):
            both = all(self._holds(self.lab.machine(name)) for name in MAIL)
            now = time.monotonic()
            if both and since is None:
                since = now
            elif not both and since is not None:
                self._spans.append(now - since)
                since = None

    def _holds(self, machine: Machine) -> bool:
        try:
            if not machine.running or machine.state.frozen:
                return False
            with machine.network():
                return any(str(there.ip) == self.lab.state.service_ipv4 for there in netlink.addresses("eth0"))
        except (LabError, OSError):
            return False

    def _follow(self, stop: threading.Event) -> None:
        while not stop.wait(LOG_EVERY_SECONDS):
            for name in MAIL:
                with suppress(LabError):
                    self._read_log(name)

    def _read_log(self, name: str) -> None:
        lines: Any = self.site.ask(name, f"/log?last={LOG_RECORDS}")
        self._log |= {line["sequence"]: line for line in lines}

    # -- afterwards ----------------------------------------------------------------------------------------------------

    def _mend_all(self, journal: Journal) -> None:
        """Everything on and connected, one serving and one standby, and users are served. Raises LabError."""
        self.lab.heal()
        for machine in self.lab.machines():
            if machine.running and machine.state.frozen:
                machine.thaw()
            on(machine)
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

    def _wait_for_empty_queue(self) -> str:
        """Postfix waits minutes before it tries again what it put off: an administrator, too, tells it to come.

        What is still there in the end, in words.
        """
        machines = [self.lab.machine(name) for name in ("relay", self.primary)]
        deadline = time.monotonic() + QUEUE_SECONDS_MAX
        while time.monotonic() < deadline:
            if not any(queue_of(machine) for machine in machines) and not self._shadows():
                return ""
            for machine in machines:
                machine.run(["postqueue", "-f"], check=False)
            time.sleep(0.5)
        queues = {machine.name: sorted(queue_of(machine)) for machine in machines}
        return f"after {QUEUE_SECONDS_MAX:g} s the queues hold {queues}, and {self._shadows()} shadows are not settled"

    def _shadows(self) -> int:
        folder = self.lab.machine(self.primary).path("/var/lib/holdfast/shadows")
        return sum(path.is_file() and not path.name.startswith(("_", ".")) for path in folder.iterdir())

    def _queued(self) -> set[str]:
        """What waits in a queue whose machine hands it on."""
        return set().union(*(queue_of(self.lab.machine(name)) for name in (self.primary, "relay")))

    # -- the verdict ---------------------------------------------------------------------------------------------------

    def _judge(
        self, number: int, accounts: list[Login], records: list[Record], broken: list[Broken], since: float
    ) -> list[str]:
        undelivered = self._wait_for_empty_queue()
        with self.clients():
            mailboxes, verdict = settled(self.service, accounts, records, seconds_max=15.0)
        queued = self._queued()
        verdict.lost = [message for message in verdict.lost if message.message_id not in queued]
        self._read_log(self.primary)
        wrong: dict[int, list[Any]] = {
            1: [*nothing_lost(verdict.lost, Reach()), *verdict.state_differences, *[undelivered] * bool(undelivered)],
            2: [*one_writer(_appended(self._log)), *_too_long(self._spans)],
            3: self._prefix(accounts),
            4: consistent(mailboxes),
            5: self._in_time(records, broken),
            6: exactly_once(verdict.duplicates, allow_explained=True),
            7: self._truthful(verdict, records, queued, since),
        }
        if wrong[1] or wrong[4]:
            differing: list[Any] = [*verdict.lost, *verdict.state_differences, *wrong[4]]
            accounts_wrong = {each.account for each in differing}
            self._keep_mailboxes(EVIDENCE / str(number), accounts_wrong, mailboxes)
        return [f"promise {promise}: {each}" for promise, found in wrong.items() for each in found]

    def _prefix(self, accounts: list[Login]) -> list[Any]:
        names = [login.name for login in accounts]
        parts = [
            (STORE, [f"{self.lab.state.domain}/{name.partition('@')[0]}" for name in names]),
            (GROUPWARE, [f"collection-root/{name}" for name in names]),
        ]
        machines = [self.lab.machine(name) for name in (self.primary, self.standby)]
        found = differences(machines[0], machines[1], parts, lambda: self.site.settle(self.primary, self.standby))
        verified = self.site.order(self.standby, "verify", "--full")
        if verified["found"]:
            return [*found, f"verify: {verified['found']} differences: {verified['differences'][:SHOWN_MAX]}"]
        return found

    def _in_time(self, records: list[Record], broken: list[Broken]) -> list[Any]:
        """Of the first fault; while a second one lasts nothing is promised of it any more."""
        first, *others = broken
        if first.fault.machine != first.primary or first.fault.kind not in TAKES_PRIMARY:
            return []
        probes = [record for record in records if isinstance(record, Probe)]
        outages = [outage_since(probes, protocol, first.mono_ns) for protocol in (Protocol.IMAP, Protocol.SMTP)]
        end = first.mono_ns + int(IN_TIME_SECONDS_MAX * 1e9)
        if others and others[0].mono_ns < end:
            return []
        return list(in_time(outages, IN_TIME_SECONDS_MAX))

    def _truthful(self, verdict: Verdict, records: list[Record], queued: set[str], since: float) -> list[Any]:
        taken = acknowledged(records)
        missing = {(message.message_id, message.account) for message in verdict.lost if message.operation == "Deliver"}
        since -= max(JUMPS_SECONDS)  # by a clock that was behind
        rows = self._export(since)
        report = self.site.order(self.primary, "ledger", "report", "--hours", str((time.time() - since) / 3600))
        mine = [entry for entry in report["named"] if (entry["message_id"], entry["recipient"]) in taken]
        named = {entry["message_id"] for entry in mine if entry["kind"] == "lost"}
        return [
            *truthful([message for message in verdict.lost if message.operation == "Deliver"], named),
            *false_rows(taken, rows, missing, queued),
            *false_report({**report, "named": mine}, missing, queued),
        ]

    def _export(self, since: float) -> list[dict[str, Any]]:
        argv = ["holdfast", "ledger", "export", "--format", "json", "--since", f"@{int(since)}"]
        found: list[dict[str, Any]] = msgspec.json.decode(self.lab.machine(self.primary).run(argv).stdout)
        return found

    # -- evidence ------------------------------------------------------------------------------------------------------

    def keep_evidence(self, number: int) -> None:
        """What the machines wrote, and what the clients saw, before the next seed writes over it."""
        folder = EVIDENCE / str(number)
        folder.mkdir(parents=True, exist_ok=True)
        for machine in self.lab.machines():
            with suppress(LabError):
                for path in (machine.path(name) for name in WRITTEN):
                    if path.exists():
                        shutil.copyfile(path, folder / f"{machine.name}-{path.name}")
        for path in self.folder.glob(f"chaos-{number}.jsonl"):
            shutil.copyfile(path, folder / path.name)

    def _keep_mailboxes(self, folder: Path, accounts: set[str], seen: Mailboxes) -> None:
        """As both machines have them (names, and the files that say what they mean), and as a client saw them."""
        for name in accounts & seen.accounts.keys():
            for machine in (self.lab.machine(each) for each in MAIL):
                home = machine.path(f"{STORE.root}/{self.lab.state.domain}/{name.partition('@')[0]}")
                kept = folder / name / machine.name
                kept.mkdir(parents=True, exist_ok=True)
                there = [path for path in sorted(home.rglob("*")) if path.is_file()]
                (kept / "names").write_text("".join(f"{path.relative_to(home)}\n" for path in there))
                for path in (each for each in there if each.name in MAILDIR_FILES):
                    target = kept / path.relative_to(home)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(path, target)
            (folder / name / "seen.json").write_bytes(
                msgspec.json.format(msgspec.json.encode(seen.accounts[name]), indent=1)
            )


def _appended(log: dict[int, dict[str, Any]]) -> list[Appended]:
    return [
        Appended(line["sequence"], line["epoch"], line["writer"], promotion=line["kind"] == "promotion")
        for line in log.values()
    ]


def _delivers_on(journal: Journal) -> None:
    """Until more is acknowledged than now. Raises LabError."""
    more = journal.counts.get("acknowledged", 0) + 5
    wait_until(lambda: journal.counts.get("acknowledged", 0) >= more, 60, "deliveries", 0.05)


def _too_long(spans: list[float]) -> list[str]:
    return [f"two machines had the address for {span:.2f} s" for span in spans if span > OVERLAP_SECONDS_MAX]


def main(arguments: list[str]) -> int:
    """Exit status 3 when a promise did not hold."""
    parser = argparse.ArgumentParser(description="Random faults on real machines under load.")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, default=None, help="only this one")
    parser.add_argument("--lab", default=NAME, help="the lab's name: two runs at once need two")
    parser.add_argument("--minutes", type=float, default=None, help="begin no seed later than so long after the start")
    chosen = parser.parse_args(arguments)
    console = Console(highlight=False, width=200)
    first, count = (chosen.first, chosen.seeds) if chosen.seed is None else (chosen.seed, 1)
    until = float("inf") if chosen.minutes is None else time.monotonic() + chosen.minutes * 60
    passed = failed = 0
    with tempfile.TemporaryDirectory() as folder:
        chaos = Chaos(chosen.lab, 7, Path(folder), 1 + ACCOUNTS_PER_SEED * count)
        try:
            for place, number in enumerate(range(first, first + count)):
                if time.monotonic() > until:
                    break
                began = time.monotonic()
                console.print(f"seed {number}")
                try:
                    wrong = chaos.seed_of(number, place, lambda text: console.print(f"  {text}", markup=False))
                except (HoldfastError, TimeoutError) as error:
                    wrong = [str(error)]
                passed, failed = passed + (not wrong), failed + bool(wrong)
                console.print(f"  {time.monotonic() - began:.0f} s")
                for each in wrong[:SHOWN_MAX]:
                    console.print(f"  {each}", style="bold red", markup=False)
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
