"""CalDAV and CardDAV clients: they make, change and delete appointments and cards of their accounts."""

from __future__ import annotations

import random
import re
import threading
from typing import Final

from holdfast.drill.checkers.facts import DavDelete, DavPut, MakeCollection
from holdfast.drill.workload.dav import DavClient
from holdfast.drill.workload.journal import Journal
from holdfast.drill.workload.net import AnswerLost, Declined, NotSent
from holdfast.drill.workload.plan import Login, Plan

SESSION_OPERATIONS: Final = (10, 30)
ITEMS_MAX: Final = 40
"""Of one collection; then items are changed and deleted, not added."""

MARK: Final = re.compile(r"holdfast-mark-[0-9a-z-]+")
"""The word inside an item by which the journal knows this version of it: servers rewrite items, words stay."""

EVENT: Final = """BEGIN:VCALENDAR\r
VERSION:2.0\r
PRODID:-//holdfast//drill//EN\r
BEGIN:VEVENT\r
UID:{uid}\r
DTSTAMP:20260101T000000Z\r
DTSTART:202601{day:02d}T090000Z\r
DTEND:202601{day:02d}T100000Z\r
SUMMARY:Besprechung – 会議 {number}\r
DESCRIPTION:{mark}\r
END:VEVENT\r
END:VCALENDAR\r
"""
CARD: Final = """BEGIN:VCARD\r
VERSION:3.0\r
UID:{uid}\r
FN:Jürgen Müller {number}\r
N:Müller;Jürgen;;;\r
EMAIL:person{number}@outside.example\r
NOTE:{mark}\r
END:VCARD\r
"""


class GroupwareClient:
    """One thread's work. It owns the collections of its accounts."""

    def __init__(
        self, plan: Plan, journal: Journal, stop: threading.Event, worker: str, accounts: list[Login], operations: int
    ) -> None:
        self._plan = plan
        self._journal = journal
        self._stop = stop
        self._worker = worker
        self._accounts = accounts
        self._chance = random.Random(f"{plan.seed}/{worker}")
        self._left = operations
        self._versions = 0
        self._collections: set[str] = set()
        self._items: dict[str, list[str]] = {}

    def run(self, enough: threading.Event) -> None:
        """As :meth:`holdfast.drill.workload.mailbox.MailboxClient.run`."""
        while not self._stop.is_set() and (self._left > 0 or not enough.is_set()):
            try:
                self._session(self._chance.choice(self._accounts))
            except (NotSent, AnswerLost, Declined) as error:
                self._journal.trouble(self._worker, error.message)
                self._stop.wait(self._plan.backoff_seconds)

    def _session(self, account: Login) -> None:
        client = DavClient(self._plan.service.dav, self._plan.patience, account.name, account.password)
        try:
            for _ in range(self._chance.randint(*SESSION_OPERATIONS)):
                if self._stop.is_set():
                    break
                self._step(client, account)
                self._left -= 1
                self._stop.wait(self._plan.groupware.pause_seconds)
        finally:
            client.close()

    def _step(self, client: DavClient, account: Login) -> None:
        calendar = self._chance.random() < 0.6
        collection = f"/{account.name}/{'drill-calendar' if calendar else 'drill-contacts'}/"
        if collection not in self._collections:
            self._make(client, account, collection, calendar)
            return
        items = self._items.setdefault(collection, [])
        kind = self._chance.random()
        if items and kind < 0.15:
            href = self._chance.choice(items)
            items.remove(href)
            with self._journal.operation(self._worker, account.name, DavDelete(href)):
                client.delete(href)
            return
        number = self._versions
        self._versions += 1
        if items and (kind < 0.45 or len(items) >= ITEMS_MAX):
            href = self._chance.choice(items)
        else:
            href = f"{collection}{self._worker}-{number}.{'ics' if calendar else 'vcf'}"
            items.append(href)
        mark = f"holdfast-mark-{self._worker}-{number}"
        uid = href.rpartition("/")[2].rpartition(".")[0]
        content = (EVENT if calendar else CARD).format(uid=uid, mark=mark, number=number, day=number % 28 + 1)
        with self._journal.operation(self._worker, account.name, DavPut(href, mark)) as answered:
            answered.etag = client.put(href, content)

    def _make(self, client: DavClient, account: Login, collection: str, calendar: bool) -> None:
        """Make the collection; one that is there already (an earlier workload, an unanswered try) is as good."""
        with self._journal.operation(self._worker, account.name, MakeCollection(collection)):
            try:
                client.make_collection(collection, calendar=calendar, name="Drill – Übung")
            except Declined as error:
                if error.code not in ("405", "409"):
                    raise
        self._collections.add(collection)
