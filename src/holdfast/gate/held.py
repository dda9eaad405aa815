"""What waits in a relay's queue: how much, since when, what would go back to its senders when. Pure, but for the file
that says that mail is held by a person's order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from holdfast.errors import ConfigurationError
from holdfast.files import PRIVATE, write_once
from holdfast.gate.queue import Queued

DAY_SECONDS: Final = 86_400.0
DAYS_SHOWN: Final = 7
ACCOUNTS_SHOWN: Final = 10


class Due(Struct, frozen=True):
    """What goes back to its senders within so many days, if nothing can be handed on until then."""

    days: int
    messages: int


class Waiting(Struct, frozen=True):
    """A queue in brief."""

    messages: int
    bytes: int
    on_hold: int
    oldest_at: float
    """Seconds since 1970; 0: nothing waits."""
    first_bounce_at: float
    """When the oldest would go back; 0: nothing waits."""
    bounces: tuple[Due, ...]
    accounts: dict[str, int]
    """Those with most messages."""
    reasons: dict[str, int]
    """Why messages were put off, with most of them first."""


def waiting(queued: Iterable[Queued], now: float, hold_days: int) -> Waiting:
    messages = list(queued)
    oldest = min((message.arrival_time for message in messages), default=0)
    hold = hold_days * DAY_SECONDS
    dues = [message.arrival_time + hold - now for message in messages]
    within = (Due(days, sum(due <= days * DAY_SECONDS for due in dues)) for days in range(1, DAYS_SHOWN + 1))
    accounts = Counter(recipient.address.lower() for message in messages for recipient in message.recipients)
    reasons = Counter(
        {recipient.delay_reason for message in messages for recipient in message.recipients if recipient.delay_reason}
    )
    return Waiting(
        messages=len(messages),
        bytes=sum(message.message_size for message in messages),
        on_hold=sum(message.queue_name == "hold" for message in messages),
        oldest_at=float(oldest),
        first_bounce_at=oldest + hold if messages else 0.0,
        bounces=tuple(due for due in within if due.messages),
        accounts=dict(accounts.most_common(ACCOUNTS_SHOWN)),
        reasons=dict(reasons.most_common(ACCOUNTS_SHOWN)),
    )


def in_order(queued: Iterable[Queued], first: Collection[str]) -> list[str]:
    """Queue ids of what is on hold: those for *first* (addresses, or ``@domain``) before all others, each by age."""
    wanted = {address.lower() for address in first}

    def chosen(message: Queued) -> bool:
        addresses = [recipient.address.lower() for recipient in message.recipients]
        return any(address in wanted or f"@{address.rpartition('@')[2]}" in wanted for address in addresses)

    held = [message for message in queued if message.queue_name == "hold"]
    return [m.queue_id for m in sorted(held, key=lambda m: (not chosen(m), m.arrival_time, m.queue_id))]


class Order(Struct, frozen=True):
    """A person has ordered that mail is held."""

    since: float
    why: str


class HoldOrder:
    """The order, as it stands in a file: it outlives the process."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.order = self._read()

    def _read(self) -> Order | None:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=Order)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError) as error:
            hint = "Remove it: then mail is handed on; `holdfast relay hold` holds it again."
            raise ConfigurationError(f"{self._path} cannot be read: {error}", hint=hint) from None

    def give(self, order: Order) -> None:
        """Raises NoSpace, HoldfastError."""
        write_once(self._path, msgspec.json.encode(order), PRIVATE)
        self.order = order

    def lift(self) -> None:
        self._path.unlink(missing_ok=True)
        self.order = None
