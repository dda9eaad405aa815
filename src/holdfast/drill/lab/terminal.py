"""Running a command of a machine attached to this terminal: ``holdfast lab exec``.

On a terminal the command gets one of its own (so job control, editors and Ctrl-C work there); otherwise it gets our
descriptors themselves, so pipes and redirections are exact.
"""

from __future__ import annotations

import os
import pty
import select
import signal
import sys
import termios
import tty
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from holdfast.drill.lab.control import RemoteProcess
from holdfast.drill.lab.lab import Machine

FORWARDED: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
CHUNK_BYTES: Final = 64 << 10
POLL_SECONDS: Final = 0.05
"""How soon the end of a command is noticed that leaves its terminal open to a child."""


def run_attached(machine: Machine, argv: Sequence[str], *, user: str | None) -> int:
    """The command's exit status; 128 + number when a signal ended it. Raises LabError."""
    if os.isatty(0) and os.isatty(1):
        code = _on_own_terminal(machine, argv, user)
    else:
        process = machine.spawn(argv, user=user, attached=True, stdin=0, stdout=1, stderr=2)
        for number in FORWARDED:
            signal.signal(number, lambda got, _: process.signal(got))
        code = process.wait()
    return 128 - code if code < 0 else code


def _on_own_terminal(machine: Machine, argv: Sequence[str], user: str | None) -> int:
    ours, theirs = pty.openpty()
    _copy_size(ours)
    # setsid(1) makes the terminal the controlling one of the new session.
    command = ["setsid", "--ctty", "--wait", *argv]
    env = {"TERM": os.environ.get("TERM", "linux")}
    process = machine.spawn(command, user=user, env=env, attached=True, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    signal.signal(signal.SIGWINCH, lambda *_: _copy_size(ours))
    before = termios.tcgetattr(0)
    tty.setraw(0)
    try:
        return _relay(ours, process)
    finally:
        termios.tcsetattr(0, termios.TCSAFLUSH, before)


def _relay(terminal: int, process: RemoteProcess) -> int:
    sources = [0, terminal]
    while True:
        code = process.poll()
        for source in select.select(sources, [], [], 0 if code is not None else POLL_SECONDS)[0]:
            try:
                data = os.read(source, CHUNK_BYTES)
            except OSError:  # EIO: nobody has the other end open any more
                data = b""
            if not data:
                sources.remove(source)
            else:
                _write_all(1 if source == terminal else terminal, data)
        if code is not None:
            return code


def _write_all(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _copy_size(terminal: int) -> None:
    with suppress(termios.error):
        termios.tcsetwinsize(terminal, termios.tcgetwinsize(sys.stdout.fileno()))
