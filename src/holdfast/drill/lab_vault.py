"""A vault for a lab: in the folder that outlives all disks, fed by the agents, its identity on no mail machine."""

from __future__ import annotations

from typing import Final

from holdfast.drill.lab import mailhost
from holdfast.drill.lab.lab import Machine
from holdfast.drill.lab.rootfs import SHARED_FOLDER
from holdfast.drill.lab.spec import LabError
from holdfast.errors import ExitStatus

NAME: Final = "lab"
LOCATION: Final = f"/{SHARED_FOLDER}/vault"
IDENTITY: Final = f"/{SHARED_FOLDER}/identity"
KEY: Final = f"/etc/holdfast/vaults/{NAME}.key"
ARCHIVE_SECONDS: Final = 10.0
"""A drill waits for it; more often would cost the processors that are measured."""
CONFIGURATION: Final = f"""
[[vaults]]
name = "{NAME}"
location = "{LOCATION}"
key = "{KEY}"
archive_seconds = {ARCHIVE_SECONDS}
"""


def make_vault(main: Machine) -> None:
    """Before ``holdfast init``: the site's configuration names it. Raises LabError."""
    main.run(["holdfast", "vault", "init", LOCATION, "--name", NAME, "--identity-out", IDENTITY])


def share_key(main: Machine, other: Machine) -> None:
    """The writer key, for a machine that may feed the vault. Raises LabError."""
    mailhost.put(other, KEY, main.path(KEY).read_text(), mode=0o600)


def keep_keys(machine: Machine) -> None:
    """A scan of the machine: the site's own keys go into the vault with it, the log never has them. Raises LabError."""
    done = machine.run(["holdfast", "vault", "backup", "--vault", NAME, "--json"], check=False)
    if done.returncode not in (ExitStatus.DONE, ExitStatus.DIFFERENCES):
        raise LabError(f"the backup of {machine.name} ended with {done.returncode}", hint=done.stderr.strip())
