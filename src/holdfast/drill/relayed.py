"""A drill's relay: a front MX whose senders never pause, asked what it still holds."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable
from typing import Any, Final

from holdfast.drill.checkers.facts import Attempt, Deliver, Outcome, Record, Result
from holdfast.drill.lab.lab import Machine
from holdfast.drill.lab.spec import LabError
from holdfast.drill.lab.tools import wait_until
from holdfast.drill.workload.net import Endpoint

SECONDS_MAX: Final = 60.0
HANDED_ON_SECONDS_MAX: Final = 150.0
"""A message whose answer died with main is tried again after a minute (node.relay_files), when the queue is run."""
POLL_SECONDS: Final = 0.5
"""Asking is by a command."""


class Relay:
    """One machine that takes mail."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self.smtp = Endpoint(machine.state.ipv4, 25)

    def facts(self) -> dict[str, Any]:
        """``holdfast relay status --json``; empty while it does not answer."""
        done = self._machine.run(["holdfast", "relay", "status", "--json"], check=False)
        told: dict[str, Any] = json.loads(done.stdout) if done.stdout else {}
        return told

    def wait_for_list(self) -> None:
        """Until it knows who there is, and takes mail. Raises LabError."""

        def taking() -> bool:
            facts = self.facts()
            return bool(facts.get("list", {}).get("recipients") and facts["taking"])

        wait_until(taking, SECONDS_MAX, "the relay to take mail", POLL_SECONDS)

    def wait_handed_on(self) -> None:
        """Until nothing waits there. Raises LabError."""

        facts: dict[str, Any] = {}

        def empty() -> bool:
            nonlocal facts
            facts = self.facts()
            return bool(facts) and not facts["waiting"]["messages"] and not facts["shadows"]

        try:
            wait_until(empty, HANDED_ON_SECONDS_MAX, "the relay to have handed everything on", POLL_SECONDS)
        except LabError as error:
            raise LabError(error.message, hint=f"It says: {json.dumps(facts)}") from None


def longest_pause(records: Iterable[Record]) -> float:
    """Between two acceptances, in seconds; infinite when there were not two."""
    deliveries: set[int] = set()
    times: list[int] = []
    for record in records:
        if isinstance(record, Attempt) and isinstance(record.doing, Deliver):
            deliveries.add(record.op)
        elif isinstance(record, Outcome) and record.result is Result.ACKNOWLEDGED and record.op in deliveries:
            times.append(record.mono_ns)
    times.sort()
    pauses = ((later - earlier) / 1e9 for earlier, later in itertools.pairwise(times))
    return max(pauses, default=math.inf)
