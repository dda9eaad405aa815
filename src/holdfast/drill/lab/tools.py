"""Running the host's tools (ip, tc, mount, mkfs.ext4), and waiting for facts."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from typing import Final

from holdfast.drill.lab.spec import LabError
from holdfast.errors import EnvironmentUnfit

TOOL_SECONDS_MAX: Final = 60.0
"""All of them take milliseconds."""
POLL_SECONDS: Final = 0.005
PACKAGES: Final = {
    "ip": "iproute2",
    "tc": "iproute2",
    "nsenter": "util-linux",
    "mount": "mount",
    "umount": "mount",
    "mkfs.ext4": "e2fsprogs",
    "cp": "coreutils",
}
"""Which Debian package has it."""


def run_tool(argv: Sequence[str], *, text: str = "") -> str:
    """Its standard output.

    Raises LabError with what it wrote to standard error, EnvironmentUnfit when it is not installed.
    """
    try:
        done = subprocess.run(argv, input=text, capture_output=True, text=True, timeout=TOOL_SECONDS_MAX, check=False)
    except FileNotFoundError as error:
        raise EnvironmentUnfit(
            f"{argv[0]} is not installed", hint=f"apt install {PACKAGES.get(argv[0], argv[0])}"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise LabError(f"{' '.join(argv)} did not end within {TOOL_SECONDS_MAX:g} s") from error
    if done.returncode:
        raise LabError(f"{' '.join(argv)}: {done.stderr.strip() or done.stdout.strip() or f'status {done.returncode}'}")
    return done.stdout


def missing_tools() -> list[str]:
    """Packages to install before a lab of namespaces can be made."""
    return sorted({package for tool, package in PACKAGES.items() if shutil.which(tool) is None})


def wait_until(fact: Callable[[], bool], seconds_max: float, what: str, poll_seconds: float = POLL_SECONDS) -> None:
    """Look at *fact* every *poll_seconds* until it is true. Raises LabError when it has not become so in time."""
    deadline = time.monotonic() + seconds_max
    while not fact():
        if time.monotonic() > deadline:
            raise LabError(f"{what}: not within {seconds_max:g} s")
        time.sleep(poll_seconds)
