"""Events as a gate would note them."""

from __future__ import annotations

from holdfast.ledger.events import Accepted, Delivered, Event, Refused, Rejected, Restarted, Safe, Settled
from holdfast.ledger.states import Ledger

ALICE, BOB, FAR = "alice@example.org", "bob@example.org", "carol@elsewhere.example"


class Story:
    """Events of a site, numbered as machines do."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self._numbers: dict[str, int] = {}

    def _next(self, machine: str) -> tuple[int, int]:
        number = self._numbers[machine] = self._numbers.get(machine, 0) + 1
        return number, 1_000 * (len(self.events) + 1)

    def accept(self, delivery: str, *to: str, machine: str = "main", queue: str = "", after: str = "") -> Story:
        n, at = self._next(machine)
        self.events.append(
            Accepted(
                machine=machine,
                delivery=delivery,
                queue=queue or f"Q{delivery}{machine}",
                sender="a@outside.example",
                to=to or (ALICE,),
                message_id=f"{delivery}@outside.example",
                after=after,
                after_queue=f"Q{delivery}{after}" if after else "",
                n=n,
                at=at,
            )
        )
        return self

    def refuse(self, delivery: str, machine: str = "main") -> Story:
        n, at = self._next(machine)
        queue = f"Q{delivery}{machine}"
        self.events.append(Refused(machine=machine, delivery=delivery, queue=queue, n=n, at=at))
        return self

    def deliver(self, delivery: str, *to: str, machine: str = "main") -> Story:
        n, at = self._next(machine)
        self.events.append(Delivered(machine=machine, delivery=delivery, to=to or (ALICE,), n=n, at=at))
        return self

    def reject(self, delivery: str, *to: str, machine: str = "main") -> Story:
        n, at = self._next(machine)
        self.events.append(Rejected(machine=machine, delivery=delivery, to=to or (ALICE,), n=n, at=at))
        return self

    def settle(self, delivery: str, machine: str = "main") -> Story:
        n, at = self._next(machine)
        queue = f"Q{delivery}{machine}"
        self.events.append(Settled(machine=machine, delivery=delivery, queue=queue, n=n, at=at))
        return self

    def restart(self, delivery: str, machine: str = "main") -> Story:
        n, at = self._next(machine)
        queue = f"Q{delivery}{machine}"
        self.events.append(Restarted(machine=machine, delivery=delivery, queue=queue, n=n, at=at))
        return self

    def safe(self, machine: str = "main", record: int = 7) -> Story:
        upto = self._numbers.get(machine, 0)
        n, at = self._next(machine)
        self.events.append(Safe(machine=machine, upto=upto, log="L", record=record, n=n, at=at))
        return self

    @property
    def ledger(self) -> Ledger:
        return Ledger(self.events)
