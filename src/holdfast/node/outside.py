"""Programs of the administrator's that reach what is outside of this machine: a cloud's addresses, a power switch.

Each is called as ``PROGRAM ARGUMENTS... VERB WORDS...`` and answers by its exit status; what it says last is passed on.
It is ended, with everything it started, when its time is up. Blocking, and of the standard library only: ``holdfast
release`` needs it at once, without an agent.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

WORDS_MAX: Final = 300
KILLED: Final = -1
"""Exit status of one that was ended, because its time was up or nobody wanted it any more."""
NOT_STARTED: Final = 127
LOOK_SECONDS: Final = 0.02


class Said(NamedTuple):
    """*words*: the last line it wrote, or why there is none."""

    exit_status: int
    words: str


def run(
    argv: Sequence[str],
    seconds: float,
    environment: Mapping[str, str],
    *,
    unwanted: Callable[[], bool] = lambda: False,
) -> Said:
    """Never raises OSError. *unwanted*: asked again and again; when it says so, the program is ended."""
    with tempfile.TemporaryFile() as output:
        try:
            process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, "LC_ALL": "C", **environment},
                start_new_session=True,
            )
        except OSError as error:
            return Said(NOT_STARTED, f"{argv[0]} cannot be run: {error.strerror}")
        deadline = time.monotonic() + seconds
        why = ""
        while process.poll() is None and not why:
            time.sleep(LOOK_SECONDS)
            if unwanted():
                why = "it was not wanted any more"
            elif time.monotonic() > deadline:
                why = f"it did not end within {seconds:g} s"
        if why:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        status = process.wait()
        output.seek(0)
        lines = output.read(1 << 16).decode("utf-8", "replace").split("\n")
    said = next((line.strip() for line in reversed(lines) if line.strip()), "")[:WORDS_MAX]
    return Said(KILLED, f"{why}: {said}" if said else why) if why else Said(status, said or f"exit status {status}")
