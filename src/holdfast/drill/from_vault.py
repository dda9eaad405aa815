"""A drill's worst case: every machine that held the mail is destroyed, and one bare machine is rebuilt from the vault.

The vault lies in the lab's shared folder, is fed from the log by the agents, and opened with an identity that no mail
machine keeps.
"""

from __future__ import annotations

import json
import time
from typing import Any, Final

from msgspec import Struct

from holdfast.drill.lab import mailhost
from holdfast.drill.lab.lab import Machine
from holdfast.drill.lab.spec import LabError
from holdfast.drill.lab_vault import IDENTITY, LOCATION, NAME, share_key
from holdfast.drill.site import AGENT, ProtectedLab
from holdfast.errors import ExitStatus

ARCHIVED_SECONDS_MAX: Final = 60.0
REBUILD_SECONDS_MAX: Final = 300.0
POLL_SECONDS: Final = 0.2


class Recovery(Struct, frozen=True):
    """What a rebuild took, in seconds from the loss of the last machine. *facts*: what the command said."""

    accepted_seconds: float
    first_account_seconds: float
    all_seconds: float
    serves_seconds: float
    facts: dict[str, Any]


def wait_archived(site: ProtectedLab, primary: str) -> None:
    """Until the vault has everything done so far. Raises LabError."""
    sequence = site.order(primary, "barrier")["sequence"]

    def archived(facts: dict[str, Any]) -> bool:
        return any(view["name"] == NAME and view["archived"] >= sequence for view in facts["vaults"])

    site.wait_for(primary, archived, f"archived up to record {sequence}", ARCHIVED_SECONDS_MAX)


def destroy(machines: list[Machine]) -> None:
    """All at once: power, and then the disks. Raises LabError."""
    for machine in machines:
        machine.kill()
    for machine in machines:
        machine.wipe()


def rebuild(bare: Machine, *options: str) -> Recovery:
    """Switch the bare machine on and rebuild it. Raises LabError when it does not serve afterwards."""
    began = time.monotonic()
    bare.start()
    bare.run(["sh", "-c", "userdel vmail; rm -rf /var/vmail /var/lib/radicale"])
    mailhost.put(bare, "/var/log/mail.log", "", mode=0o640, owner="postfix", group="adm")
    argv = ["holdfast", "rebuild", "--vault", LOCATION, "--identity", IDENTITY, "--ordered", "--yes", "--json"]
    done = bare.run([*argv, "--join", "primary", *options], check=False, timeout=REBUILD_SECONDS_MAX)
    if done.returncode not in (ExitStatus.DONE, ExitStatus.DIFFERENCES):
        said = done.stderr.strip() or done.stdout.strip()[-2000:]
        raise LabError(f"the rebuild of {bare.name} ended with {done.returncode}", hint=said)
    whole = time.monotonic() - began
    facts: dict[str, Any] = json.loads(done.stdout)
    before = whole - facts["milestones"]["every service answers"]  # switched on, the program started, the vault opened
    milestones = {name: before + seconds for name, seconds in facts["milestones"].items()}
    return Recovery(
        accepted_seconds=milestones["mail is accepted"],
        first_account_seconds=milestones["the first account is back"],
        all_seconds=milestones["every account is back"],
        serves_seconds=whole,
        facts=facts,
    )


def join_again(site: ProtectedLab, rebuilt: Machine, other: Machine) -> float:
    """Both agents again: *rebuilt* founds the log anew, *other*, bare too, gets a bundle and is seeded. Seconds until
    both have their roles.

    The relay still has the old log, which names a machine that has lost its disk: only a person can say that what this
    one holds now is the mail, although the others know of a later primary. All three log servers must answer for a new
    one. Raises LabError.
    """
    began = time.monotonic()
    bundles = site.order(rebuilt.name, "trust", "renew")["bundles"]
    other.start()
    mailhost.prepare(other)
    site.join(other, rebuilt, bundles[other.name])
    share_key(rebuilt, other)
    for machine in (other, rebuilt):
        machine.boot(AGENT)
    facts = site.wait_for(rebuilt.name, lambda found: found["role"] != "starting", "in a role")
    if facts["role"] != "primary":
        rebuilt.run(["holdfast", "found", "--yes", "--force"])
    site.wait_role(rebuilt.name, "primary")
    site.wait_role(other.name, "standby")
    return time.monotonic() - began
