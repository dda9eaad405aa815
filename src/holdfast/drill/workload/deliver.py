"""SMTP clients that hand messages in as mail servers do: again and again, until each is accepted, or refused for good.

A message whose final dot was sent and not answered is recorded as *unknown* and sent again under the same Message-ID:
an honest sender must (RFC 5321 4.5.4.1), and that is where duplicates come from.
"""

from __future__ import annotations

import random
import threading
import time
from typing import Final

from msgspec import Struct

from holdfast.drill.checkers.facts import Deliver
from holdfast.drill.workload import messages
from holdfast.drill.workload.journal import Journal
from holdfast.drill.workload.net import AnswerLost, Declined, NotSent
from holdfast.drill.workload.plan import Plan
from holdfast.drill.workload.smtp import SmtpClient

SEVERAL_RECIPIENTS_SHARE: Final = 0.05
"""Messages for two or three of our accounts at once: one acknowledgement, several mailboxes."""

STREAM: Final = "smtp"


class Order(Struct, frozen=True):
    """Who gets message *number*: drawn from the seed alone, whichever thread sends it."""

    number: int
    recipients: tuple[str, ...]


def orders(plan: Plan) -> list[Order]:
    """Every delivery of *plan*. Accounts differ in traffic: the first get several times what the last get."""
    chance = random.Random(f"{plan.seed}/orders")
    names = [account.name for account in plan.accounts]
    weights = [1 / (1 + index / 10) for index in range(len(names))]
    made: list[Order] = []
    for number in range(plan.deliveries.messages):
        # Every account gets at least one message, then chance decides.
        first = names[number] if number < len(names) else chance.choices(names, weights)[0]
        extra = chance.randint(1, 2) if chance.random() < SEVERAL_RECIPIENTS_SHARE else 0
        others = [name for name in chance.sample(names, min(extra, len(names))) if name != first]
        made.append(Order(number, (first, *others)))
    return made


class Deliverers:
    """The threads' shared work list: each order is taken once, not before its time."""

    def __init__(self, plan: Plan, journal: Journal, stop: threading.Event) -> None:
        self._plan = plan
        self._journal = journal
        self._stop = stop
        self._orders = iter(orders(plan))
        self._lock = threading.Lock()
        self._began = time.monotonic()

    def run(self, worker: str) -> None:
        """One connection's life: take orders until there are none."""
        client: SmtpClient | None = None
        while (order := self._take()) is not None:
            client = self._hand_in(worker, client, order)
        if client is not None:
            client.quit()

    def _take(self) -> Order | None:
        with self._lock:
            order = next(self._orders, None)
        if order is not None and self._plan.deliveries.rate_per_second:
            due = self._began + order.number / self._plan.deliveries.rate_per_second
            self._stop.wait(max(0.0, due - time.monotonic()))
        return None if self._stop.is_set() else order

    def _hand_in(self, worker: str, client: SmtpClient | None, order: Order) -> SmtpClient | None:
        """Deliver one message however long it takes; the connection to go on with, if it is still good."""
        plan = self._plan
        mail = messages.make(plan.seed, order.number, stream=STREAM, sender=plan.sender, recipient=order.recipients[0])
        give_up = time.monotonic() + plan.deliveries.give_up_seconds
        attempt = 0
        while not self._stop.is_set() and time.monotonic() < give_up:
            try:
                client = client or self._connect()
            except (NotSent, Declined) as error:
                self._journal.trouble(worker, error.message)
                self._stop.wait(plan.backoff_seconds)
                continue
            attempt += 1
            doing = Deliver(mail.message_id, order.recipients, mail.body_digest, len(mail.content), mail.shape, attempt)
            try:
                with self._journal.operation(worker, "", doing) as answered:
                    answered.detail = client.send(plan.sender, order.recipients, mail.content)
                return client
            except Declined as error:
                client = self._after_refusal(worker, client)
                if not error.temporary:
                    return client
            except (NotSent, AnswerLost):
                client.close()
                client = None
            self._stop.wait(plan.backoff_seconds)
        return client

    def _after_refusal(self, worker: str, client: SmtpClient) -> SmtpClient | None:
        try:
            client.reset()
        except (NotSent, AnswerLost, Declined) as error:
            self._journal.trouble(worker, error.message)
            client.close()
            return None
        return client

    def _connect(self) -> SmtpClient:
        plan = self._plan
        login = (plan.accounts[0].name, plan.accounts[0].password) if plan.service.submission_login else None
        return SmtpClient(plan.service.smtp, plan.patience, name="client.drill.example", login=login)
