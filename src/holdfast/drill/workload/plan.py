"""What a workload shall do, as a value: read from a JSON file, checked, and kept in the journal's first line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from holdfast.drill.workload.net import Endpoint, Patience
from holdfast.errors import ConfigurationError

Count = Annotated[int, Meta(ge=0)]
Seconds = Annotated[float, Meta(ge=0)]


class Service(Struct, frozen=True, forbid_unknown_fields=True):
    """Where the service answers; a port of 0 leaves that protocol out. TLS: ``none``, ``implicit`` or ``starttls``."""

    smtp: Endpoint
    imap: Endpoint
    dav: Endpoint = Endpoint("", 0)
    sieve: Endpoint = Endpoint("", 0)
    submission_login: bool = False
    """Authenticate on SMTP (port 587) as the first account."""


class Login(Struct, frozen=True, forbid_unknown_fields=True):
    """*name* is both the login and the mail address."""

    name: str
    password: str


class Deliveries(Struct, frozen=True, forbid_unknown_fields=True):
    """*rate_per_second* 0: as fast as the server acknowledges."""

    messages: Count = 1000
    rate_per_second: Seconds = 0.0
    connections: Count = 8
    give_up_seconds: Seconds = 300.0
    """A message that was not accepted is tried again for so long, as a mail server would."""


class Mailboxes(Struct, frozen=True, forbid_unknown_fields=True):
    """IMAP clients. Each owns its share of the accounts. They go on until deliveries and *operations* are done."""

    clients: Count = 4
    operations: Count = 800
    pause_seconds: Seconds = 0.0
    """Between two operations of one client: people pause."""


class Groupware(Struct, frozen=True, forbid_unknown_fields=True):
    """CalDAV and CardDAV clients, as for :class:`Mailboxes`."""

    clients: Count = 2
    operations: Count = 200
    pause_seconds: Seconds = 0.01


class Meter(Struct, frozen=True, forbid_unknown_fields=True):
    """The outage meter; without a *probe* account there is none."""

    probe: Login | None = None
    every_seconds: Seconds = 0.05
    connect_seconds: Seconds = 0.25
    answer_seconds: Seconds = 3.0


class Plan(Struct, frozen=True, forbid_unknown_fields=True):
    """A whole workload. *go_on_seconds*: keep mailbox clients and prober running at least so long."""

    service: Service
    accounts: tuple[Login, ...]
    seed: int = 0
    sender: str = "sender@outside.example"
    deliveries: Deliveries = Deliveries()
    mailboxes: Mailboxes = Mailboxes()
    groupware: Groupware = Groupware()
    meter: Meter = Meter()
    patience: Patience = Patience()
    backoff_seconds: Seconds = 0.1
    """After a failure, before the same address is tried again."""
    go_on_seconds: Seconds = 0.0
    stop_after_seconds: Seconds = 3600.0
    """A workload ends then, done or not."""


def load(path: Path) -> Plan:
    """The plan in *path* (JSON). Raises ConfigurationError naming the file, the key and what was expected."""
    try:
        plan = msgspec.json.decode(path.read_bytes(), type=Plan)
    except (msgspec.ValidationError, msgspec.DecodeError) as error:
        raise ConfigurationError(
            f"{path}: {error}", hint="The keys are those of holdfast.drill.workload.plan."
        ) from error
    if not plan.accounts:
        raise ConfigurationError(f"{path}: `accounts`: expected at least one account")
    return plan


def to_json(plan: Plan) -> str:
    return msgspec.json.encode(plan).decode()
