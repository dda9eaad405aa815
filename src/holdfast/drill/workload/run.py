"""Run a whole workload: all clients of a plan, in threads of one process, writing one journal."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

from holdfast.drill.workload import plan as plans
from holdfast.drill.workload.deliver import Deliverers
from holdfast.drill.workload.groupware import GroupwareClient
from holdfast.drill.workload.journal import Journal
from holdfast.drill.workload.mailbox import MailboxClient, View
from holdfast.drill.workload.plan import Plan
from holdfast.drill.workload.prober import Prober
from holdfast.errors import HoldfastError

DELIVERIES_OVER: Final = "deliveries over"
"""Mark in the journal: every delivery was accepted, refused or given up."""

WAKE_SECONDS: Final = 0.5


class ClientBroke(HoldfastError):
    """A client thread ended with a bug of the drill's own; the journal is incomplete and must not be judged."""


class Workload:
    """``run`` blocks until the plan is done or *stop* is set (by a signal); then the journal has its last line."""

    def __init__(self, plan: Plan, journal: Journal, stop: threading.Event) -> None:
        self._plan = plan
        self._journal = journal
        self._stop = stop
        self._deliveries_over = threading.Event()
        self._enough = threading.Event()
        self._broken: list[str] = []
        self._threads: list[threading.Thread] = []

    def run(self) -> None:
        """Raises ClientBroke."""
        plan = self._plan
        began = time.monotonic()
        self._journal.begin(plan.seed, plans.to_json(plan))
        prober_stop = threading.Event()
        prober: threading.Thread | None = None
        if plan.meter.probe is not None:
            prober = self._thread("prober", Prober(plan, self._journal, prober_stop).run)
        deliverers = Deliverers(plan, self._journal, self._stop)
        senders = [
            self._thread(name, lambda name=name: deliverers.run(name))  # type: ignore[misc]
            for name in (f"smtp-{index}" for index in range(plan.deliveries.connections))
        ]
        clients = self._mailbox_clients() + self._groupware_clients()
        self._wait(senders, began)
        self._journal.mark(DELIVERIES_OVER)
        while not self._over(began) and time.monotonic() < began + plan.go_on_seconds:
            self._stop.wait(WAKE_SECONDS)
        self._enough.set()
        self._wait(clients, began)
        prober_stop.set()
        if prober is not None:
            prober.join()
        self._journal.end()
        if self._broken:
            raise ClientBroke("; ".join(self._broken))

    def _mailbox_clients(self) -> list[threading.Thread]:
        plan = self._plan
        views = [View(login, f"imap{index}") for index, login in enumerate(plan.accounts)]
        count = min(plan.mailboxes.clients, len(views))
        threads: list[threading.Thread] = []
        for index in range(count):
            client = MailboxClient(
                plan,
                self._journal,
                self._stop,
                f"imap-{index}",
                views[index::count],
                plan.mailboxes.operations // count,
            )
            threads.append(self._thread(f"imap-{index}", lambda client=client: client.run(self._enough)))  # type: ignore[misc]
        return threads

    def _groupware_clients(self) -> list[threading.Thread]:
        plan = self._plan
        count = min(plan.groupware.clients, len(plan.accounts)) if plan.service.dav.port else 0
        threads: list[threading.Thread] = []
        for index in range(count):
            client = GroupwareClient(
                plan,
                self._journal,
                self._stop,
                f"dav-{index}",
                list(plan.accounts[index::count]),
                plan.groupware.operations // count,
            )
            threads.append(self._thread(f"dav-{index}", lambda client=client: client.run(self._enough)))  # type: ignore[misc]
        return threads

    def _thread(self, name: str, work: Callable[[], None]) -> threading.Thread:
        def guarded() -> None:
            done = False
            try:
                work()
                done = True
            finally:
                if not done:  # the traceback goes to standard error by itself; the run must not pass for whole
                    self._broken.append(f"client {name} broke")
                    self._stop.set()

        thread = threading.Thread(target=guarded, name=name, daemon=True)
        thread.start()
        return thread

    def _over(self, began: float) -> bool:
        if time.monotonic() - began > self._plan.stop_after_seconds:
            self._stop.set()
        return self._stop.is_set()

    def _wait(self, threads: list[threading.Thread], began: float) -> None:
        for thread in threads:
            while thread.is_alive():
                thread.join(WAKE_SECONDS)
                self._over(began)
