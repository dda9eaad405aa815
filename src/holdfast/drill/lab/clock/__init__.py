"""A wall clock that can be moved, for the Python processes of one machine.

Linux has no namespace for CLOCK_REALTIME, and to set the host's clock would move every machine's. So the units that ask
for it (:func:`environment`) start Python with the folder of this package on its path, and Python runs the
``sitecustomize`` in it before anything else: ``time.time`` and ``time.time_ns`` then give the kernel's clock plus what
stands in a file of the machine (:func:`jump`). Their children, such as the gates' process, do the same.

*What it cannot show.* ``datetime.now`` (the end of certificates, planned switchovers), OpenSSL's and nats-server's
clocks, the times the kernel gives to files, and the clocks of Dovecot and Postfix are not moved. libfaketime moves more
of them, but stops Python 3.11: its ``time.sleep`` gets EINVAL as soon as the clock is moved (0.9.10). Clocks that never
jump (CLOCK_MONOTONIC, CLOCK_BOOTTIME) are left alone, as a set clock leaves them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from holdfast.drill.lab import backend
from holdfast.drill.lab.clock.sitecustomize import FILE
from holdfast.drill.lab.lab import Machine

FOLDER: Final = Path(__file__).parent


def environment() -> dict[str, str]:
    """For a unit whose clock is to be movable."""
    return {"PYTHONPATH": f"{FOLDER}:{backend.source_folder()}"}


def jump(machine: Machine, seconds: int) -> None:
    """Let *machine*'s clock be so far ahead (behind: below 0) of the others'; a restart of it sets it right.

    Raises LabError (it is off).
    """
    path = machine.path(FILE)
    new = path.with_suffix(".new")
    new.write_text(str(seconds))
    new.rename(path)
