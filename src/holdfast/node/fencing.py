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
from holdfast.node.outside import NOT_STARTED, Said, run
from holdfast.node.settings import Settings

AGAIN_SECONDS: Final = 0.5


class Fencing:
    """One machine's."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.configured = bool(settings.failover.fence_command)
        self.problem = ""
        """Why the last attempt gave no proof; empty when it did, or there was none."""

    def forget(self) -> None:
        """The primary is heard, or it is this machine: what went wrong with another attempt is over."""
        self.problem = ""

    def prove(self, machine: str) -> str:
        """Have it switched off, unless it is off; what the check said. Waits: call it in a thread. Raises Refused."""
        failover = self._settings.failover
        address = next((each.address for each in self._settings.machines if each.name == machine), "")
        deadline = time.monotonic() + failover.fence_seconds

        def call(verb: str) -> Said:
            argv = (*failover.fence_command, verb, machine, address)
            left = max(deadline - time.monotonic(), AGAIN_SECONDS)
            return run(argv, left, self._settings.outside_environment)

        fenced = Said(NOT_STARTED, "it was not called")
        while (checked := call("check")).exit_status != 0:
            if time.monotonic() >= deadline:
                first = f"fence: {fenced.words}; " if fenced.exit_status != 0 else ""
                self.problem = (
                    f"{machine} was not proven to be off within {failover.fence_seconds:g} s "
                    f"({first}check: {checked.words})"
                )
                raise Refused(self.problem, hint=f"If it is off: `holdfast takeover` on {self._settings.machine}.")
            if fenced.exit_status != 0:
                fenced = call("fence")
            time.sleep(AGAIN_SECONDS)
        self.problem = ""
        return checked.words
