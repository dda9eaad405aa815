"""What ``holdfast decide`` has to look up on a standby's disk: how many accounts, whose messages wait, and times.

Nothing of it is asked of anybody: it is read when the other machine is gone.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from holdfast.errors import HoldfastError
from holdfast.gate.shadows import Envelope
from holdfast.mail import inventory
from holdfast.mail.headers import fields, message_id, split_header
from holdfast.node.history import Event

WAITING_MAX: Final = 1000
HEAD_BYTES: Final = 64 * 1024
STARTED_SECONDS_MAX: Final = 1800.0
"""An agent that started later after its machine was started by somebody, not by the machine's start."""
_SHADOW: Final = re.compile(r"([a-z0-9-]{1,32})\.[0-9A-Za-z]{5,32}\.[0-9A-Za-z]{1,64}")


class Waiting(Struct, frozen=True):
    """A message that the primary had accepted and not delivered, and of which there is a copy here."""

    message_id: str
    sender: str
    recipients: tuple[str, ...]


class DeskFacts(Struct, frozen=True):
    """*accounts*: -1 where they are not known. *waiting*: None where no gate keeps copies of the queue. *started*:
    seconds from this machine's starts to its agent's. *rehearsed_start*: of the mail software, in the last rehearsal;
    -1: there was none."""

    accounts: int = -1
    waiting: tuple[Waiting, ...] | None = None
    started: tuple[float, ...] = ()
    rehearsed_start: float = -1.0

    @property
    def starts_in(self) -> float:
        """What a machine like this one needs from power to agent; -1: not measured."""
        return statistics.median(self.started) if self.started else -1.0


def accounts_in(software: Path) -> int:
    """By the inventory that the primary writes and this machine has a copy of."""
    try:
        found = inventory.read(software)
    except HoldfastError:
        return -1
    gone = inventory.AccountState.GONE
    return -1 if found is None else sum(account.state is not gone for account in found.accounts)


def waiting_of(machine: str, shadows: Path) -> tuple[Waiting, ...]:
    """*machine*'s messages in its queue, as copied here (``gate.shadow_files`` has the form). Unreadable ones are named
    by their files."""
    found = []
    for path in sorted(shadows.glob(f"{machine}.*"))[:WAITING_MAX]:
        if _SHADOW.fullmatch(path.name) is None:
            continue
        try:
            with path.open("rb") as file:
                envelope = msgspec.json.decode(file.readline(), type=Envelope)
                head = split_header(file.read(HEAD_BYTES))
        except (OSError, msgspec.DecodeError):
            found.append(Waiting(path.name, "", ()))
            continue
        name = next((message_id(value) for field, value in fields(head) if field == b"message-id"), "")
        found.append(Waiting(name or path.name, envelope.sender_text(), tuple(envelope.recipient_texts())))
    return tuple(found)


def started_in(events: Iterable[Event]) -> tuple[float, ...]:
    """From the starts of this machine to those of its agent, where one followed the other."""
    found = (event.details.get("machine_up_seconds") for event in events if event.what == "agent started")
    return tuple(float(each) for each in found if isinstance(each, int | float) and each < STARTED_SECONDS_MAX)
