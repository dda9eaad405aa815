"""Wait until what was accepted has arrived: a mail queue takes its time, also after a takeover."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import msgspec

from holdfast.drill.checkers.facts import Mailboxes, Record
from holdfast.drill.checkers.reconcile import Verdict, reconcile
from holdfast.drill.workload.plan import Login, Service
from holdfast.drill.workload.witness import observe

LOOK_AGAIN_SECONDS: Final = 0.3


def settled(
    service: Service,
    accounts: Sequence[Login],
    records: Iterable[Record],
    *,
    seconds_max: float,
    sleep: Callable[[float], None] = time.sleep,
) -> tuple[Mailboxes, Verdict]:
    """Read the mailboxes until no acknowledged message is missing, or *seconds_max* have passed; the last state and its
    verdict. Only accounts that still miss something are read again. Raises as `witness.observe`."""
    known = list(records)
    deadline = time.monotonic() + seconds_max
    mailboxes = observe(service, accounts)
    while True:
        verdict = reconcile(known, mailboxes)
        missing = {message.account for message in verdict.lost}
        if not missing or time.monotonic() > deadline:
            return mailboxes, verdict
        sleep(LOOK_AGAIN_SECONDS)
        again = observe(service, [login for login in accounts if login.name in missing])
        mailboxes = msgspec.structs.replace(
            mailboxes,
            accounts={**mailboxes.accounts, **again.accounts},
            ended_mono_ns=again.ended_mono_ns,
        )
