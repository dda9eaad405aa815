"""Gates without an agent: on a machine that was rebuilt and serves, until its agent starts.

Postfix and Dovecot of such a site hand everything to the gates, so without them nothing is accepted and nobody logs in.
There is no log yet to wait for: what is acknowledged meanwhile is on this machine's disk alone. The rest holds: what a
journal restored from the vault knows as delivered is not delivered again, shadows and ledger are kept, and the agent
finds them. Shadows that came out of the vault are left alone: whether this machine is the site's, or a spare one on
which somebody tries a restore, only the agent knows, and what is adopted is sent.

The agent ends this process when it opens the gates' sockets itself. `Gate.stand_in` starts it.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
from pathlib import Path
from typing import Final

from holdfast.files import PRIVATE, write_once

PID_FILE: Final = "gates.pid"
END_SECONDS_MAX: Final = 5.0
"""Its barrier never waits, so it ends at once; after this it is killed."""


def end_stand_in(run: Path) -> None:
    """End the one that runs, if any. Clients whose answer is cut off come again, and then to whoever listens next."""
    path = run / PID_FILE
    with contextlib.suppress(FileNotFoundError, ValueError, ProcessLookupError):
        descriptor = os.pidfd_open(pid := int(path.read_text()))
        try:
            if b"holdfast.gate" in Path(f"/proc/{pid}/cmdline").read_bytes():
                signal.pidfd_send_signal(descriptor, signal.SIGTERM)
                if not select.select([descriptor], [], [], END_SECONDS_MAX)[0]:
                    signal.pidfd_send_signal(descriptor, signal.SIGKILL)
                    select.select([descriptor], [], [], END_SECONDS_MAX)
        finally:
            os.close(descriptor)
    path.unlink(missing_ok=True)


def stand_in_runs(run: Path) -> bool:
    """Whether there is one."""
    try:
        pid = int((run / PID_FILE).read_text())
        return b"holdfast.gate" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except (OSError, ValueError):
        return False


def note_stand_in(run: Path, pid: int) -> None:
    """Raises HoldfastError."""
    write_once(run / PID_FILE, f"{pid}\n".encode(), PRIVATE)
