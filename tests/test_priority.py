"""What the agent raises for itself and its log server reaches no mail software."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

SHOW = "import os; print(os.sched_getscheduler(0), os.getpriority(os.PRIO_PROCESS, 0))"


def shown(before: str) -> tuple[int, int]:
    """Policy and niceness of a program that a process with raised priority starts; *before*: Python, in front of it."""
    program = f"""
import subprocess, sys
from holdfast import priority
priority.raised()
subprocess.run([{before} sys.executable, "-c", {SHOW!r}], check=True)
"""
    argv = [sys.executable, "-c", program]
    policy, nice = subprocess.run(argv, stdout=subprocess.PIPE, text=True, check=True).stdout.split()
    return int(policy), int(nice)


@pytest.mark.system
def test_the_log_server_goes_before_mail_software_but_interrupts_nobody() -> None:
    assert shown("") == (os.SCHED_BATCH, -10)


@pytest.mark.system
def test_mail_software_inherits_neither() -> None:
    assert shown("*priority.usual(),") == (os.SCHED_OTHER, 0)


def test_where_nothing_is_raised_nothing_is_put_before_a_command() -> None:
    argv = [sys.executable, "-c", "from holdfast import priority; print(priority.usual())"]
    assert subprocess.run(argv, stdout=subprocess.PIPE, text=True, check=True).stdout == "()\n"
