"""How the agent and its log server share the processors with the mail software.

They go before it (``NICE``): what they do is little, and what they have not done yet is what a machine's death would
take. Measured in the demo, on two cores with all of them busy: without it the copy was 200 ms behind at the 99th
percentile.

But they do not take a processor away in the middle of something (SCHED_BATCH, sched(7): who wakes up waits for the next
switch, which its priority makes a near one). Each frame passes five programs, and wakes each of them several times: for
every TLS record, every acknowledgement, every event. When each of these wake-ups interrupts a program at work, all are
woken for less, switch more often, and find the processor's caches full of something else. Three log servers and two
agents took up to a quarter more of the processors for a delivery that way, and frames came later, not sooner
(docs/reference/performance.md).
"""

from __future__ import annotations

import contextlib
import os
from typing import Final

NICE: Final = -10


def raised() -> None:
    """For this process, its threads to come and its children. Does nothing where it is not permitted."""
    with contextlib.suppress(PermissionError):  # then it is as fast as everybody else
        os.setpriority(os.PRIO_PROCESS, 0, NICE)
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def may_interrupt() -> None:
    """For a child that somebody waits for, such as a mail client: it runs as soon as there is something to do."""
    with contextlib.suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def usual() -> tuple[str, ...]:
    """What to put before the command line of a program that must inherit neither (nice(1), chrt(1))."""
    words: tuple[str, ...] = ()
    if os.sched_getscheduler(0) == os.SCHED_BATCH:
        words = ("chrt", "--other", "0")
    mine = os.getpriority(os.PRIO_PROCESS, 0)
    return (*words, "nice", "-n", str(-mine)) if mine < 0 else words
