"""A protected lab for tests: real mail software, nats-server and agents; asked as clients and people do."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any, Final

import msgspec

from holdfast.drill.checkers.exact_state import compare, resynchronised
from holdfast.drill.checkers.facts import Mailboxes, Probe, Protocol, Record
from holdfast.drill.checkers.reconcile import Verdict
from holdfast.drill.lab import mail_files, mailhost
from holdfast.drill.lab.lab import Lab, Machine
from holdfast.drill.lab.mail_files import MailFormat
from holdfast.drill.lab.spec import LabError, LabSpec, MachineSpec
from holdfast.drill.lab.tools import wait_until
from holdfast.drill.site import ProtectedLab
from holdfast.drill.workload import journal, witness
from holdfast.drill.workload.imap import ImapClient
from holdfast.drill.workload.journal import Journal
from holdfast.drill.workload.net import Endpoint, Patience
from holdfast.drill.workload.plan import Deliveries, Groupware, Login, Plan, Service
from holdfast.drill.workload.plan import Mailboxes as MailboxPlan
from holdfast.drill.workload.run import Workload
from holdfast.drill.workload.settle import settled

MACHINES: Final = ("main:primary", "backup:standby", "relay:relay", "client:client")
SERVED: Final = {Protocol.IMAP, Protocol.SMTP, Protocol.DELIVERY}
PATIENCE: Final = Patience(connect_seconds=2.0, answer_seconds=30.0)
ACCOUNTS: Final = 5
_numbers = count(1)


class Site:
    """One protected lab, and what tests do with it."""

    def __init__(self, lab: Lab, failover: str = "manual") -> None:
        self.lab = lab
        self.failover = failover
        self.protected = ProtectedLab(lab)
        self.accounts = tuple(Login(account.address, account.password) for account in lab.accounts)
        host = lab.state.service_ipv4
        self.service = Service(
            smtp=Endpoint(host, 25),
            imap=Endpoint(host, 143),
            dav=Endpoint(host, 5232),
            sieve=Endpoint(host, 4190),
        )

    def machine(self, name: str) -> Machine:
        return self.lab.machine(name)

    def holdfast(self, machine: str, *argv: str, timeout: float = 120.0) -> subprocess.CompletedProcess[str]:
        """``holdfast ARGV`` there; whatever its exit status."""
        return self.machine(machine).run(["holdfast", *argv], check=False, timeout=timeout)

    def status(self, machine: str) -> dict[str, Any]:
        return self.protected.status(machine)

    def warnings(self, machine: str) -> str:
        """What ``status`` warns of there, as one text."""
        return "\n".join(f"{warned['what']} ({warned['advice']})" for warned in self.status(machine)["warnings"])

    def history(self, machine: str) -> list[dict[str, Any]]:
        events: list[dict[str, Any]] = self.protected.ask(machine, "/history?last=200")
        return events

    def records(self, machine: str, last: int = 1000) -> list[dict[str, Any]]:
        """The log's last records, as *machine* reads them; just after a cut its servers may disagree for a moment."""
        found: list[dict[str, Any]] = []

        def agreed() -> bool:
            try:
                found[:] = self.protected.ask(machine, f"/log?last={last}")
            except LabError as error:
                print(error)
                return False
            return True

        wait_until(agreed, 20, f"the log's records as {machine} reads them", 0.2)
        return found

    @property
    def primary(self) -> str:
        """By its own word."""
        running = [machine.name for machine in self.protected.mail_machines if machine.running]
        names = [name for name in running if self.status(name)["role"] == "primary"]
        assert len(names) == 1, f"{len(names)} machines say they are primary: {names}"
        return names[0]

    def primary_of(self, machine: str) -> str:
        """Who is primary, as *machine* sees it."""
        return str(self.status(machine)["primary"])

    @property
    def standby(self) -> str:
        return next(m.name for m in self.protected.mail_machines if m.name != self.primary)

    def settle(self) -> None:
        """Everything done so far is applied on the standby."""
        primary = self.primary
        standby = next(m.name for m in self.protected.mail_machines if m.name != primary)
        self.protected.wait_role(standby, "standby")
        self.protected.settle(primary, standby)

    def verify_clean(self) -> None:
        """``holdfast verify --full`` finds nothing."""
        self.settle()
        report = self.protected.order(self.standby, "verify", "--full")
        assert report["found"] == 0, report["differences"]
        assert report["failures"] == {}
        assert report["unsettled"] == 0
        assert report["files"] > 0

    def make_main_primary(self) -> None:
        """As a test found the site, the next finds it: all machines on, agents running, main serving."""
        self.lab.heal()
        for machine in self.lab.machines():
            if not machine.running:
                machine.start()
        for machine in self.protected.mail_machines:
            facts = self.protected.wait_for(
                machine.name, lambda facts: facts["role"] in ("primary", "standby", "returned"), "in a role"
            )
            if facts["role"] == "returned" and self.failover == "manual":
                self.protected.order(machine.name, "join", "--rejoin")
                self.protected.wait_role(machine.name, "standby")
        if self.primary != "main":
            self.settle()
            self.protected.order("main", "switchover")
            self.protected.wait_role("backup", "standby")
        self.settle()

    # -- as clients ----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def client(self) -> Iterator[None]:
        """Inside, this thread (and threads it starts) speaks from the client machine."""
        with self.machine("client").network():
            yield

    def imap(self, account: int = 0) -> ImapClient:
        """A session; call it inside :meth:`client`."""
        login = self.accounts[account]
        session = ImapClient(self.service.imap, PATIENCE, login.name, login.password)
        session.enable_qresync()
        return session

    def observe(self) -> Mailboxes:
        with self.client():
            return witness.observe(self.service, self.accounts, PATIENCE)

    def assert_same_to_clients(self, before: Mailboxes) -> None:
        """Nothing a mail client can see differs from *before*, nor does QRESYNC tell of anything."""
        with self.client():
            told = witness.resynchronise(self.service, self.accounts, before, PATIENCE)
            after = witness.observe(self.service, self.accounts, PATIENCE)
        assert [str(difference) for difference in compare(without_tags(before), without_tags(after))] == []
        assert [str(difference) for difference in resynchronised(before, told, after)] == []
        for account in told.values():
            for folder, news in account.items():
                assert not news.vanished, f"{folder}: told of expunges that were none: {news.vanished}"

    @property
    def probe(self) -> Login:
        """The account that meters send to; workloads leave it alone."""
        return self.accounts[-1]

    def plan(self, *, messages: int = 40, operations: int = 80, rate: float = 0.0, seed: int = 1) -> Plan:
        return Plan(
            self.service,
            self.accounts[:-1],
            seed=seed,
            deliveries=Deliveries(messages=messages, connections=2, rate_per_second=rate),
            mailboxes=MailboxPlan(clients=2 if operations else 0, operations=operations),
            groupware=Groupware(clients=1 if operations else 0, operations=operations // 8),
            patience=Patience(connect_seconds=1.0, answer_seconds=10.0),
        )

    def load(self, plan: Plan, path: Path) -> Load:
        return Load(self, plan, path)

    def work(self, plan: Plan, path: Path) -> list[Record]:
        """The whole workload, to its end."""
        with self.load(plan, path) as load:
            load.finish()
        return load.records()

    def queue_of(self, machine: str) -> frozenset[str]:
        """Message-IDs in the machine's mail queue: accepted, and not yet in a mailbox."""
        found: set[str] = set()
        for name in ("maildrop", "incoming", "active", "deferred"):
            for path in self.machine(machine).path(f"/var/spool/postfix/{name}").rglob("*"):
                with contextlib.suppress(FileNotFoundError, IsADirectoryError):  # it has moved on: looked for later
                    found.update(each.decode() for each in re.findall(rb"Message-ID: <([^>]+)>", path.read_bytes()))
        return frozenset(found)

    def judge(self, records: list[Record], seconds_max: float = 30.0) -> tuple[Mailboxes, Verdict]:
        """What is there against what was acknowledged; waits for queued mail."""
        self.machine(self.primary).run(["postqueue", "-f"], check=False)
        with self.client():
            return settled(self.service, self.accounts, records, seconds_max=seconds_max)


class Load:
    """A workload running on the client machine while the block runs; :meth:`finish` lets it end by itself."""

    def __init__(self, site: Site, plan: Plan, path: Path) -> None:
        self._site = site
        self._path = path
        self._stop = threading.Event()
        self._journal = Journal(path)
        self._workload = Workload(plan, self._journal, self._stop)
        self._thread = threading.Thread(target=self._run, name="load", daemon=True)
        self._failed: list[BaseException] = []

    def _run(self) -> None:
        try:
            with self._site.client():
                self._workload.run()
        except Exception as error:  # noqa: BLE001  # given to the test by finish()
            self._failed.append(error)

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(60)
        assert not self._thread.is_alive()
        self._journal.close()
        if self._failed:
            raise self._failed[0]

    def acknowledged(self) -> int:
        return self._journal.counts.get("acknowledged", 0)

    def wait_acknowledged(self, more: int, seconds_max: float = 60.0) -> None:
        """Until *more* operations than now were acknowledged."""
        until = self.acknowledged() + more
        wait_until(lambda: self.acknowledged() >= until, seconds_max, f"{more} more acknowledged operations", 0.01)

    def finish(self, seconds_max: float = 120.0) -> None:
        """Until the plan is done."""
        self._thread.join(seconds_max)
        assert not self._thread.is_alive(), "the workload did not end"

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(60)

    def records(self) -> list[Record]:
        return journal.read(self._path)


@contextlib.contextmanager
def protected_site(
    kind: MailFormat = "maildir",
    *,
    machines: tuple[str, ...] = MACHINES,
    more_configuration: str = "",
    disk_bytes: int = 1 << 30,
    deliver_to: str = mail_files.DOVECOT_LMTP,
    milter: str = "",
    dovecot_more: str = "",
    failover: str = "manual",
    more_failover: str = "",
    relays: dict[str, str] | None = None,
    straight_port: int = 0,
) -> Iterator[Site]:
    """A lab under protection, settled; gone when the block is left."""
    spec = LabSpec(
        name=f"scn-{os.getpid()}-{next(_numbers)}",
        machines=tuple(MachineSpec.parse(text) for text in machines),
        accounts=ACCOUNTS,
        seed="scenario",
        disk_bytes=disk_bytes,
    )
    lab = Lab.up(spec)
    try:
        site = Site(lab, failover)
        site.protected.protect(
            mailhost.MailSettings(
                format=kind, plaintext=True, deliver_to=deliver_to, milter=milter, dovecot_more=dovecot_more
            ),
            more_configuration=more_configuration,
            failover=failover,
            more_failover=more_failover,
            relays=relays,
            straight_port=straight_port,
        )
        site.protected.wait_settled()
        yield site
    finally:
        Lab.down(lab.name)


def probes(load: Load, since_mono_ns: int) -> list[Probe]:
    return [each for each in load.records() if isinstance(each, Probe) and each.mono_ns >= since_mono_ns]


def wait_served(load: Load, since_mono_ns: int) -> None:
    """Until logging in, handing a message in and finding it in the mailbox have each succeeded since then."""
    wait_until(
        lambda: {each.protocol for each in probes(load, since_mono_ns) if each.good} == SERVED, 60, "service", 0.1
    )


def without_tags(state: Mailboxes) -> Mailboxes:
    """*state* without the CTags of collections: Radicale makes them from its items in the order the directory gives
    them, which is another on another filesystem. A client then lists the ETags again, and finds them equal."""
    accounts = {
        name: msgspec.structs.replace(
            account,
            collections={
                href: {key: text for key, text in properties.items() if key != "tag"}
                for href, properties in account.collections.items()
            },
        )
        for name, account in state.accounts.items()
    }
    return msgspec.structs.replace(state, accounts=accounts)


def seconds(run: Callable[[], object]) -> float:
    """How long *run* takes."""
    began = time.monotonic()
    run()
    return time.monotonic() - began
