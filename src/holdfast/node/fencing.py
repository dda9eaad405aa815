"""Fencing: a program of the administrator's switches the old primary off before an automatic takeover goes on.

``COMMAND fence NAME ADDRESS``
    Switch that machine off, or cut it off from everything: by its management controller, the hypervisor, a power strip,
    a switch's port. Exit status 0: it was ordered.
``COMMAND check NAME ADDRESS``
    0: it is off. Anything else: not yet, or it cannot be told. This is the proof; what ``fence`` says is none.

Without the proof nobody is promoted, and a person is asked. It is not needed for safety in the log (the promotion
fences there), nor, while agents run, at the address (``watchman``): it is for machines that hang in ways an agent
cannot see, and for addresses that no kernel takes away. It costs its own seconds in every automatic takeover. A
takeover ordered by a person does not call it: that person has looked.
"""

from __future__ import annotations

import time
from typing import Final

from holdfast.errors import Refused
from holdfast.node.outside import run
from holdfast.node.settings import Settings

AGAIN_SECONDS: Final = 0.5


class Fencing:
    """One machine's. *proven*: which machine is known to be off; empty when none is."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.configured = bool(settings.failover.fence_command)
        self.proven = ""
        self.problem = ""
        """Why the last attempt gave no proof; empty when it did, or there was none."""

    def forget(self) -> None:
        """It is heard: it is not off, or not any more."""
        self.proven = self.problem = ""

    def prove(self, machine: str) -> str:
        """Have it switched off; what the check said. Waits: call it in a thread. Raises Refused."""
        failover = self._settings.failover
        address = next((each.address for each in self._settings.machines if each.name == machine), "")
        deadline = time.monotonic() + failover.fence_seconds

        def call(verb: str) -> tuple[int, str]:
            argv = (*failover.fence_command, verb, machine, address)
            left = max(deadline - time.monotonic(), AGAIN_SECONDS)
            return run(argv, left, self._settings.outside_environment)

        ordered, words = call("fence")
        said = words
        while True:
            status, said = call("check")
            if status == 0:
                self.proven, self.problem = machine, ""
                return said
            if time.monotonic() + AGAIN_SECONDS > deadline:
                break
            if ordered != 0:
                time.sleep(AGAIN_SECONDS)
                ordered, words = call("fence")
            else:
                time.sleep(AGAIN_SECONDS)
        first = f"fence: {words}; " if ordered != 0 else ""
        self.problem = f"{machine} was not proven to be off within {failover.fence_seconds:g} s ({first}check: {said})"
        raise Refused(self.problem, hint=f"If it is off: `holdfast takeover` on {self._settings.machine}.")
