"""``make demo``: one machine dies in the middle of its work, the other carries on, and the sums are checked.

A lab of four machines: ``main`` has the mail, ``backup`` stands by, ``relay`` is the front MX and keeps the third copy
of the log, ``client`` is the users and the world. All gates are on. In this order:

1. Load on the *quiet* accounts, until it is done and settled; their mailboxes are witnessed, message by message.
2. Load on the *busy* accounts: SMTP deliveries, IMAP, CalDAV and CardDAV at once, all straight to the mail server. And
   mail for the *relayed* accounts, to the relay; this goes on without a pause until main serves again.
3. In the middle of it the power of ``main`` is cut: its processes die and what its disk had not synced is gone.
4. Nobody gives an order: ``backup`` and ``relay`` miss main for 2 s, backup takes over. The clients go on against the
   same address.
5. When the busy accounts' clients are done, everything acknowledged is compared with what is there; the quiet accounts
   with what was witnessed.
6. ``main`` comes back, rejoins by itself, and ``verify --full`` compares it with backup. A planned switchover home.
7. The relay's senders stop. Of everything that was acknowledged, by whomever, each message must be in its mailbox once;
   and the ledger is asked what became of each, and must say the same.
8. Both machines' disks are destroyed. ``main``, bare, is rebuilt from the vault that the agents fed all the while, mail
   flow first; every account is compared with what was witnessed before. Then ``backup``, bare too, joins again.

Exit status 0 only if what the report calls a promise held. ``KEEP=1`` leaves the lab up.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec
from rich.console import Console

from holdfast.console.client import Client
from holdfast.drill import from_vault, lab_vault, report
from holdfast.drill.checkers.exact_state import compare, consistent, resynchronised
from holdfast.drill.checkers.exactly_once import exactly_once
from holdfast.drill.checkers.facts import Mailboxes, Probe, Protocol, Record
from holdfast.drill.checkers.findings import Difference
from holdfast.drill.checkers.in_time import outage_since
from holdfast.drill.checkers.ledger_true import acknowledged, false_report, false_rows
from holdfast.drill.checkers.nothing_lost import Reach, explain, nothing_lost
from holdfast.drill.checkers.reconcile import Verdict, reconcile
from holdfast.drill.gated import CONFIGURATION, DAV_PORT, RELAYS, gated
from holdfast.drill.lab import mailhost
from holdfast.drill.lab.lab import Lab, Machine
from holdfast.drill.lab.mail_files import MailFormat
from holdfast.drill.lab.spec import USUAL_MACHINES, LabError, LabSpec, MachineSpec
from holdfast.drill.relayed import Relay, longest_pause
from holdfast.drill.remains import queue_of
from holdfast.drill.report import DrillResult, Row
from holdfast.drill.site import ProtectedLab
from holdfast.drill.timeline import timeline
from holdfast.drill.workload import journal as journals
from holdfast.drill.workload.net import Endpoint
from holdfast.drill.workload.plan import (
    Deliveries,
    Groupware,
    Login,
    Meter,
    Plan,
    Service,
    to_json,
)
from holdfast.drill.workload.plan import (
    Mailboxes as MailboxLoad,
)
from holdfast.drill.workload.settle import settled
from holdfast.drill.workload.witness import observe, resynchronise
from holdfast.errors import ExitStatus, HoldfastError, Refused
from holdfast.ledger.report import sums_words

FOLDER: Final = Path("build/demo")
ACCOUNTS: Final = 50
QUIET_ACCOUNTS: Final = 20
QUIET_MESSAGES: Final = 400
RELAYED_ACCOUNTS: Final = 10
BUSY_MESSAGES: Final = 400
RATE_PER_SECOND: Final = 20.0
"""Messages. Four machines, their mail software and all clients share what may be two processors."""
RELAYED_MAX: Final = 10_000
RELAYED_PER_SECOND: Final = 6.0
"""Of the rate, once the relay's senders have begun."""
KILL_AFTER_MESSAGES: Final = 400
SEED: Final = 20261122
LOAD_SECONDS_MAX: Final = 180.0
SAMPLE_SECONDS: Final = 0.1
QUEUE_SECONDS_MAX: Final = 30.0
ARRIVED_SECONDS_MAX: Final = 30.0
"""What waited somewhere is tried again every few seconds."""
PAUSE_SECONDS_MAX: Final = 2.0
"""The relay's longest time between two acceptances; its senders bring six messages a second."""
TAKEOVER_SECONDS_MAX: Final = 2.0
"""Promised: from the takeover's beginning to the first login, and to the first message accepted."""
OUTAGE_SECONDS_MAX: Final = 5.0
"""Promised of every single one, from the kill; the median is 3 s (`make drill-failover`)."""
SWITCHOVER_SECONDS_MAX: Final = 2.0
LAG_MS_MAX: Final = 100.0


class Demo:
    """One run. Facts are collected in attributes, judged at the end."""

    def __init__(self, console: Console, folder: Path, mail_format: MailFormat) -> None:
        self.console = console
        self.folder = folder
        self.mail_format = mail_format
        self.phases: dict[str, float] = {}
        self.events: list[tuple[int, str, str, bool]] = []
        self.spans: dict[str, tuple[int, int]] = {}
        self.lags: list[tuple[int, float]] = []
        self.notes: list[str] = []
        self.worst_failure = ""

    # -- telling -------------------------------------------------------------------------------------------------------

    @contextmanager
    def phase(self, name: str, words: str) -> Iterator[None]:
        """Say what begins, time it."""
        began = time.monotonic_ns()
        with self.console.status(words):
            yield
        seconds = (time.monotonic_ns() - began) / 1e9
        self.phases[name] = round(seconds, 3)
        self.spans[name] = (began, time.monotonic_ns())
        self.console.print(f"[green]\u2713[/] {words} [dim]{seconds:.1f} s[/]")

    def event(self, name: str, detail: str = "", *, strong: bool = False) -> int:
        at = time.monotonic_ns()
        self.events.append((at, name, detail, strong))
        return at

    # -- the lab -------------------------------------------------------------------------------------------------------

    def set_up(self, name: str) -> None:
        with self.phase("lab", "four machines, mail software on main, Holdfast on all"):
            Lab.down(name)
            machines = tuple(MachineSpec.parse(text) for text in USUAL_MACHINES)
            self.lab = Lab.up(
                LabSpec(name=name, machines=machines, domain="example.test", accounts=ACCOUNTS, seed="demo")
            )
            self.site = ProtectedLab(self.lab)
            mail = gated(mailhost.MailSettings(format=self.mail_format))
            self.site.protect(mail, more_configuration=CONFIGURATION, failover="automatic", vault=True, relays=RELAYS)
            self.site.wait_role("main", "primary")
        with self.phase("seed", "backup fetches its copy and follows"):
            self.site.wait_role("backup", "standby")
            lab_vault.keep_keys(self.lab.machine("main"))
            self.relay = Relay(self.lab.machine("relay"))
            self.relay.wait_for_list()
        logins = [Login(account.address, account.password) for account in self.lab.accounts]
        self.quiet, self.probe = logins[:QUIET_ACCOUNTS], logins[-1]
        self.relayed, self.busy = logins[-1 - RELAYED_ACCOUNTS : -1], logins[QUIET_ACCOUNTS : -1 - RELAYED_ACCOUNTS]
        address = self.lab.state.service_ipv4
        self.service = Service(
            smtp=Endpoint(address, 25),
            imap=Endpoint(address, 993, "implicit"),
            dav=Endpoint(address, DAV_PORT),
            sieve=Endpoint(address, 0),
        )

    def _agent(self, machine: str) -> Client:
        return Client(self.lab.machine(machine).path("/run/holdfast/agent.sock"), seconds=60.0)

    def _start_load(self, name: str, plan: Plan) -> tuple[Any, Path]:
        """The workload as a process on the client machine; its journal, as this side sees it."""
        client = self.lab.machine("client")
        client.path(f"/root/{name}.json").write_text(to_json(plan))
        argv = [sys.executable, "-m", "holdfast.drill.workload"]
        argv += ["--plan", f"/root/{name}.json", "--journal", f"/root/{name}.jsonl"]
        process = client.spawn(argv, attached=True, log=f"/var/log/{name}.log")
        return process, client.path(f"/root/{name}.jsonl")

    def _finish(self, process: Any, path: Path) -> list[Record]:
        if process.wait(LOAD_SECONDS_MAX) != 0:
            raise LabError(
                "the workload failed", hint=f"See {path.with_suffix('.log')} in the client machine's /var/log."
            )
        return list(journals.read(path))

    # -- the story -----------------------------------------------------------------------------------------------------

    def quiet_load(self) -> None:
        plan = Plan(
            self.service,
            tuple(self.quiet),
            seed=SEED,
            deliveries=Deliveries(messages=QUIET_MESSAGES, rate_per_second=RATE_PER_SECOND, connections=4),
            mailboxes=MailboxLoad(clients=2, operations=400, pause_seconds=0.05),
            groupware=Groupware(clients=1, operations=60, pause_seconds=0.2),
        )
        with self.phase("quiet_load", f"{QUIET_MESSAGES} messages and 460 operations for {QUIET_ACCOUNTS} accounts"):
            self._agent("backup").post("/lags/forget")
            process, path = self._start_load("quiet", plan)
            self.quiet_records = self._finish(process, path)
        with self.phase("witness_before", "their mailboxes are witnessed, message by message"), self._client():
            _, verdict = settled(self.service, self.quiet, self.quiet_records, seconds_max=30.0)
            if not verdict.clean:
                raise LabError("the mailboxes are wrong before anything was broken", hint=str(verdict)[:500])
            self.before = observe(self.service, self.quiet)
            self.site.settle("main", "backup")

    @contextmanager
    def _client(self) -> Iterator[None]:
        with self.lab.machine("client").network():
            yield

    def busy_load_until_kill(self) -> None:
        plan = Plan(
            self.service,
            tuple(self.busy),
            seed=SEED + 1,
            deliveries=Deliveries(
                messages=BUSY_MESSAGES, rate_per_second=RATE_PER_SECOND - RELAYED_PER_SECOND, connections=8
            ),
            mailboxes=MailboxLoad(clients=4, operations=600, pause_seconds=0.1),
            groupware=Groupware(clients=2, operations=120, pause_seconds=0.2),
            meter=Meter(probe=self.probe, every_seconds=0.1),
            stop_after_seconds=LOAD_SECONDS_MAX,
        )
        relayed = Plan(
            msgspec.structs.replace(self.service, smtp=self.relay.smtp, dav=Endpoint("", 0)),
            tuple(self.relayed),
            seed=SEED + 2,
            deliveries=Deliveries(messages=RELAYED_MAX, rate_per_second=RELAYED_PER_SECOND, connections=4),
            mailboxes=MailboxLoad(clients=0, operations=0),
            groupware=Groupware(clients=0, operations=0),
        )
        with self.phase("load", "traffic on all other accounts: SMTP, IMAP, CalDAV, CardDAV; and SMTP to the relay"):
            agent = self._agent("backup")
            self.relayed_process, self.relayed_path = self._start_load("relayed", relayed)
            self.process, self.path = self._start_load("busy", plan)
            while self._accepted() < KILL_AFTER_MESSAGES:
                if self.process.poll() is not None:
                    raise LabError("the workload ended before main was killed", hint="See /var/log/busy.log.")
                view = _view(agent.get("/status"), "backup")
                self.lags.append((time.monotonic_ns(), view["lag_ms_p99"]))
                time.sleep(SAMPLE_SECONDS)
            self.lag_ms_p99 = _view(agent.get("/status"), "backup")["lag_ms_p99"]
        self.killed_ns = self.event("main dies", "power cut in the middle of the traffic", strong=True)
        self.lab.machine("main").kill()
        self.dead_ns = time.monotonic_ns()
        self.console.print("[bold red]\u2717 the power of main is cut[/]")

    def _accepted(self) -> int:
        try:
            return self.path.read_bytes().count(b'"acknowledged"')
        except FileNotFoundError:
            return 0

    def take_over(self) -> None:
        """Nobody gives an order: what backup does, and when, is read from its history."""
        agent = self._agent("backup")
        began_ns, began = time.monotonic_ns(), time.time()
        with self.phase("takeover", "backup notices, asks the relay, and takes over by itself"):
            while not (done := self._since_kill(agent, "takeover done")):
                if time.time() - began > LOAD_SECONDS_MAX:
                    raise LabError("backup did not take over", hint="See `holdfast status` and `history` there.")
                time.sleep(SAMPLE_SECONDS / 2)
        (begins,) = self._since_kill(agent, "takeover begins")[-1:]
        self.ordered_ns = began_ns + int((begins["at"] - began) * 1e9)
        self.events.append((self.ordered_ns, "takeover begins", begins["why"], False))
        self.phases["noticing"] = round((self.ordered_ns - self.killed_ns) / 1e9, 3)
        self.spans["noticing"] = (self.killed_ns, self.ordered_ns)
        self.spans["takeover"] = (self.ordered_ns, began_ns + int((done[-1]["at"] - began) * 1e9))
        self.phases["takeover"] = done[-1]["details"]["seconds"]
        for event in self._since_kill(agent, "takeover: "):
            self.phases[f"takeover_{event['what'].removeprefix('takeover: ')}"] = event["details"]["seconds"]
        self.console.print(f"  [dim]because {begins['why']}[/]")

    def _since_kill(self, agent: Client, what: str) -> list[dict[str, Any]]:
        """Events of its history whose names begin with *what*, since the kill; both are on this host's clock."""
        killed_at = time.time() - (time.monotonic_ns() - self.killed_ns) / 1e9
        events = agent.get("/history?last=100")
        return [event for event in events if event["at"] > killed_at and event["what"].startswith(what)]

    def finish_load(self) -> None:
        with self.phase("traffic_after", "the clients go on, against the same address"):
            self.busy_records = self._finish(self.process, self.path)
        with self.phase("witness_after", "everything acknowledged is compared with what is there"), self._client():
            everyone = [*self.busy, self.probe]
            mailboxes, self.busy_verdict = settled(
                self.service, everyone, self.busy_records, seconds_max=ARRIVED_SECONDS_MAX
            )
            self.busy_mailboxes = mailboxes
            self.after = observe(self.service, self.quiet)
            self.quiet_verdict = reconcile(self.quiet_records, self.after)
            self.told = resynchronise(self.service, self.quiet, self.before)
            self.missing_meanwhile = len(self.busy_verdict.lost)

    def bring_main_back(self) -> None:
        with self.phase("rejoin", "main gets power again, is compared, and is the standby, by itself"):
            self.lab.machine("main").start()
            self.reach = Reach(killed_mono_ns=self.dead_ns, queued=queue_of(self.lab.machine("main")))
            self.site.wait_role("main", "standby")
        with self.phase("verify", "verify --full: main beside backup, every byte"):
            self.site.settle("backup", "main")
            self.verified = self.site.order("main", "verify", "--full")

    def go_home(self) -> None:
        with self.phase("switchover", "a planned switchover home: main is the primary again"):
            outcome = self.site.order("main", "switchover", "--why", "home again")
            if not outcome["done"]:
                raise LabError("the switchover failed", hint=outcome["failure"])
            self.switched_seconds = outcome["seconds"]

    def stop_relayed(self) -> None:
        """Until here mail came to the relay all the while."""
        self.relayed_process.signal(signal.SIGTERM)
        with self.phase("arrived", "the relay's senders stop; everything acknowledged is in its mailbox, once"):
            self.relayed_records = self._finish(self.relayed_process, self.relayed_path)
            self.relay.wait_handed_on()
            with self._client():
                busy = [*self.busy, self.probe]
                _, self.last_verdict = settled(self.service, busy, self.busy_records, seconds_max=ARRIVED_SECONDS_MAX)
                _, self.relayed_verdict = settled(
                    self.service, self.relayed, self.relayed_records, seconds_max=ARRIVED_SECONDS_MAX
                )

    def ask_ledger(self) -> None:
        """What became of every message that was accepted, by the ledger; and whether that is so."""
        with self.phase("ledger", "the ledger says what became of each message, and is held against the mailboxes"):
            self.ledger = self.site.order("main", "ledger", "report", "--hours", "24")
            argv = ["holdfast", "ledger", "export", "--format", "json"]
            rows: Any = msgspec.json.decode(self.lab.machine("main").run(argv).stdout)
        taken: set[tuple[str, str]] = set()
        for records in (self.quiet_records, self.busy_records, self.relayed_records):
            taken |= acknowledged(records)
        self.taken = len(taken)
        lost = [*self.quiet_verdict.lost, *self.last_verdict.lost, *self.relayed_verdict.lost]
        missing = {(message.message_id, message.account) for message in lost if message.operation == "Deliver"}
        queued = queue_of(self.lab.machine("main")) | queue_of(self.lab.machine("relay"))
        self.ledger_false = [*false_rows(taken, rows, missing, queued), *false_report(self.ledger, missing, queued)]
        self.relay_took = sum(row["machine"] == "relay" for row in rows)
        self.console.print(f"  [dim]{self.ledger['accepted']} accepted: {sums_words(self.ledger['sums'])}[/]")

    def lose_everything(self) -> None:
        """As :meth:`_lose_everything`; what was shown before is reported, whatever becomes of this."""
        try:
            self._lose_everything()
        except HoldfastError as error:
            self.console.print(f"[bold red]\u2717 {error}[/]")
            self.worst_failure = str(error)

    def _lose_everything(self) -> None:
        """Both machines that held the mail are destroyed; one bare machine, the vault and an identity are left."""
        main, backup = self.lab.machine("main"), self.lab.machine("backup")
        everyone = [*self.quiet, *self.busy, *self.relayed, self.probe]
        with self.phase("archived", "every mailbox is witnessed, and the vault has all of it"), self._client():
            self._wait_for_empty_queue(main)
            self.before_loss = observe(self.service, everyone)
            from_vault.wait_archived(self.site, "main")
        self.console.print("[bold red]\u2717 main and backup are destroyed, disks and all[/]")
        from_vault.destroy([main, backup])
        with self.phase("rebuild", "holdfast rebuild on a bare machine, from the vault"):
            self.recovery = from_vault.rebuild(main)
        for step in self.recovery.facts["steps"]:
            self.phases[f"rebuild_{step['name'].replace(' ', '_')}"] = round(step["seconds"], 3)
        with self.phase("witness_rebuilt", "every mailbox is compared with what was witnessed"), self._client():
            self.after_loss = observe(self.service, everyone)
        with self.phase("pair_again", "a bare backup joins: a new log, and two machines again"):
            self.paired_seconds = from_vault.join_again(self.site, main, backup)

    def _wait_for_empty_queue(self, machine: Machine) -> None:
        """What would be delivered after the witness is no loss: nothing for our accounts may be on its way."""
        deadline = time.monotonic() + QUEUE_SECONDS_MAX
        while f"@{self.lab.state.domain}" in machine.run(["postqueue", "-j"]).stdout:
            if time.monotonic() > deadline:
                self.notes.append(
                    "Main's mail queue was not empty when it was destroyed: what lay there was not archived."
                )
                return
            machine.run(["postqueue", "-f"])
            time.sleep(SAMPLE_SECONDS * 5)

    # -- the verdict ---------------------------------------------------------------------------------------------------

    def result(self) -> DrillResult:
        probes = [record for record in self.busy_records if isinstance(record, Probe)]
        outages = [outage_since(probes, protocol, self.killed_ns) for protocol in (Protocol.IMAP, Protocol.DELIVERY)]
        after_order = max(((o.until_mono_ns - self.ordered_ns) / 1e9 for o in outages if o.until_mono_ns), default=None)
        whole_outage = max(outage.seconds for outage in outages)
        verdicts = (self.quiet_verdict, self.last_verdict, self.relayed_verdict)
        missing = [message for verdict in verdicts for message in verdict.lost]
        lost = explain(missing, self.reach)
        broken = nothing_lost(missing, self.reach)
        doubles = [double for verdict in verdicts for double in verdict.duplicates]
        unexplained = exactly_once(doubles, allow_explained=True)
        exact = [
            *compare(self.before, self.after),
            *resynchronised(self.before, self.told, self.after),
            *consistent(self.busy_mailboxes),
            *self.quiet_verdict.state_differences,
            *self.busy_verdict.state_differences,
            *self.relayed_verdict.state_differences,
        ]
        accepted = sum(verdict.accepted for verdict in verdicts)
        present = sum(verdict.present for verdict in verdicts)
        pause = longest_pause(self.relayed_records)
        rows = [
            Row("acknowledged, and in its mailbox", f"{accepted}", f"{present}", present == accepted),
            Row("lost", "0", str(len(broken)), not broken),
            Row("messages doubled", "0", str(len(unexplained)), not unexplained),
            Row(
                "sent again, for main died before its answer",
                "named",
                f"{len(doubles) - len(unexplained)} named",
                True,
            ),
            Row("missing until main came back", "0", str(self.missing_meanwhile), not self.missing_meanwhile),
            Row(
                "longest pause of the relay's acceptances",
                f"<= {PAUSE_SECONDS_MAX:g} s",
                f"{pause:.2f} s",
                pause <= PAUSE_SECONDS_MAX,
            ),
            *self._ledger_rows(),
            Row(f"mailbox state of {ACCOUNTS} accounts", "equal", _count(exact, "difference"), not exact),
            Row(
                "of that, from noticing to login and delivery",
                f"<= {TAKEOVER_SECONDS_MAX:g} s",
                "never" if after_order is None else f"{after_order:.2f} s",
                after_order is not None and after_order <= TAKEOVER_SECONDS_MAX,
            ),
            Row(
                "kill to first login and delivery, without a person",
                f"<= {OUTAGE_SECONDS_MAX:g} s",
                f"{whole_outage:.2f} s",
                whole_outage <= OUTAGE_SECONDS_MAX,
            ),
            Row(
                "captured to applied, p99",
                f"<= {LAG_MS_MAX:g} ms",
                f"{self.lag_ms_p99:.0f} ms",
                0 <= self.lag_ms_p99 <= LAG_MS_MAX,
            ),
            Row(
                "switchover home",
                "<= 2 s",
                f"{self.switched_seconds:.2f} s",
                self.switched_seconds <= SWITCHOVER_SECONDS_MAX,
            ),
            Row(
                "main after rejoin, beside backup",
                "equal",
                _count(self.verified["remaining"], "difference"),
                not self.verified["remaining"],
            ),
        ]
        worst = [] if self.worst_failure else compare(self.before_loss, self.after_loss)
        rows += self._worst_rows(worst)
        self.notes += [f"The ledger is wrong: {words}" for words in self.ledger_false]
        focus = (self.killed_ns - int(2e9), self.killed_ns + int(max(whole_outage, 1.0) * 1e9) + int(2e9))
        made = timeline(self.busy_records, lag_ms=self.lags, spans=self._spans(), events=self.events, outages=outages)
        zero = next(iter(self.busy_records)).mono_ns
        made.focus = (max((focus[0] - zero) / 1e9, 0.0), (focus[1] - zero) / 1e9)
        return DrillResult(
            title="One machine dies, the other carries on; both die, the vault brings one back",
            accepted=accepted,
            present=present,
            lost=len(lost),
            duplicates=len(doubles),
            state_differences=len(exact),
            outage_seconds=report.finite(whole_outage),
            lag_ms_p99=round(self.lag_ms_p99, 1),
            phases=self.phases,
            rows=rows,
            timeline=made,
            outages={outage.protocol.value: report.finite(outage.seconds) for outage in outages},
            accepted_by_kind=_summed(*verdicts),
            lost_messages=lost,
            duplicate_messages=doubles,
            differences=[*broken, *unexplained, *exact, *worst],
            ledger=report.LedgerFound(
                self.ledger["accepted"],
                self.ledger["sums"],
                msgspec.convert(self.ledger["named"], list[report.LedgerEntry]),
                self.ledger_false,
            ),
            figures={
                "missing_meanwhile": self.missing_meanwhile,
                "relay_pause_seconds": round(pause, 3),
                "relay_took": self.relay_took,
                "switchover_seconds": round(self.switched_seconds, 3),
                "mail_format": self.mail_format,
                "takeover_to_service_seconds": -1.0 if after_order is None else round(after_order, 3),
                "acknowledged_operations": self.quiet_verdict.acknowledged_operations
                + self.busy_verdict.acknowledged_operations,
                "verified_files": self.verified["files"],
                **self._worst_figures(worst),
            },
            notes=self.notes,
            seed=SEED,
            began_real_ns=next(iter(self.quiet_records)).real_ns,
        )

    def _ledger_rows(self) -> list[Row]:
        sums, accepted = self.ledger["sums"], self.ledger["accepted"]
        whole = sum(sums.values()) == accepted
        return [
            Row(
                "ledger: what became of all that was accepted",
                "0 lost, 0 unknown",
                f"{accepted}: {sums_words(sums)}",
                whole and not sums["lost"] and not sums["unknown"] and not sums["waiting"],
            ),
            Row(
                f"... beside senders and mailboxes: {self.taken} taken",
                "the same",
                _count(len(self.ledger_false), "difference"),
                not self.ledger_false,
            ),
        ]

    def _worst_figures(self, differences: list[Difference]) -> dict[str, float | int | str]:
        if self.worst_failure:
            return {}
        recovery = self.recovery
        return {
            "rebuild_accepted_seconds": round(recovery.accepted_seconds, 3),
            "rebuild_first_account_seconds": round(recovery.first_account_seconds, 3),
            "rebuild_every_account_seconds": round(recovery.all_seconds, 3),
            "rebuild_serves_seconds": round(recovery.serves_seconds, 3),
            "rebuild_bytes": recovery.facts["bytes"],
            "rebuild_files": recovery.facts["files"],
            "rebuild_differences": len(differences),
            "pair_again_seconds": round(self.paired_seconds, 3),
        }

    def _worst_rows(self, differences: list[Difference]) -> list[Row]:
        if self.worst_failure:
            return [Row("both disks destroyed: rebuilt from the vault", "done", self.worst_failure, False)]
        self.notes += [f"The rebuilt machine lacks: {words}" for words in self.recovery.facts["lacks"]]
        there, back = _messages(self.before_loss), _messages(self.after_loss)
        recovery = self.recovery
        return [
            Row("both disks destroyed: messages back from the vault", f"{there}", f"{back}", back == there),
            Row(
                f"state of {len(self.before_loss.accounts)} accounts after the rebuild",
                "equal",
                _count(differences, "difference"),
                not differences,
            ),
            Row("bare machine switched on, to mail accepted", "", f"{recovery.accepted_seconds:.1f} s"),
            Row("... to the first account back", "", f"{recovery.first_account_seconds:.1f} s"),
            Row("... to every account back, every service answering", "", f"{recovery.serves_seconds:.1f} s"),
            Row("and from there to two machines again", "", f"{self.paired_seconds:.1f} s"),
        ]

    def _spans(self) -> dict[str, tuple[int, int]]:
        wanted = ("load", "noticing", "takeover", "traffic_after")
        return {name: span for name, span in self.spans.items() if name in wanted}


def _view(facts: dict[str, Any], machine: str) -> dict[str, Any]:
    found: dict[str, Any] = next(view for view in facts["machines"] if view["name"] == machine)
    return found


def _count(found: list[Difference] | int, noun: str) -> str:
    count = found if isinstance(found, int) else len(found)
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _messages(state: Mailboxes) -> int:
    return sum(len(folder.messages) for account in state.accounts.values() for folder in account.folders.values())


def _summed(*verdicts: Verdict) -> dict[str, int]:
    kinds: dict[str, int] = {}
    for verdict in verdicts:
        for kind, count in verdict.accepted_by_kind.items():
            kinds[kind] = kinds.get(kind, 0) + count
    return kinds


def run(console: Console, folder: Path, mail_format: MailFormat, *, keep: bool) -> ExitStatus:
    """The whole demo; its exit status."""
    demo = Demo(console, folder, mail_format)
    name = "demo"
    try:
        demo.set_up(name)
        demo.quiet_load()
        demo.busy_load_until_kill()
        demo.take_over()
        demo.finish_load()
        demo.bring_main_back()
        demo.go_home()
        demo.stop_relayed()
        demo.ask_ledger()
        demo.lose_everything()
        result = demo.result()
        data, page = report.write(result, folder)
        console.print()
        report.show(result, console)
        console.print(f"\n{data}\n{page}")
        return ExitStatus.DONE if result.held else ExitStatus.DIFFERENCES
    finally:
        if keep:
            console.print(
                f"\nThe lab {name!r} is still up (KEEP=1). Look around:\n"
                f"  .venv/bin/holdfast lab status --lab {name}\n"
                f"  .venv/bin/holdfast lab exec --lab {name} backup -- holdfast status\n"
                f"  .venv/bin/holdfast lab exec --lab {name} main -- holdfast history\n"
                f"  .venv/bin/holdfast lab down --lab {name}"
            )
        else:
            Lab.down(name)


def main() -> int:
    """``python -m holdfast.drill.demo [maildir|sdbox|mdbox]``."""
    console = Console(highlight=False)
    chosen: Any = sys.argv[1] if len(sys.argv) > 1 else "maildir"
    if chosen not in ("maildir", "sdbox", "mdbox"):
        console.print(f"unknown mailbox format {chosen!r}: maildir, sdbox or mdbox")
        return ExitStatus.USAGE
    try:
        return run(console, FOLDER, chosen, keep=os.environ.get("KEEP") == "1")
    except Refused as error:
        console.print(f"[bold red]refused[/]: {error}", markup=True)
        return error.exit_status
    except HoldfastError as error:
        console.print(f"[bold red]failed[/]: {error}")
        return error.exit_status


if __name__ == "__main__":
    sys.exit(main())
