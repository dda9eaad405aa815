"""Holdfast's own configuration and keys, from the tree ``holdfast``: only where the machine has none yet."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

from holdfast.changes.names import MachineName
from holdfast.errors import ConfigurationError, Refused
from holdfast.files import PUBLIC, write_once
from holdfast.log.trust import Authority, Role
from holdfast.mail.inventory import Inventory
from holdfast.mail.vault_inventory import file_content
from holdfast.node.enrol import CONFIGURATION_FOLDER, Folder, configuration_for
from holdfast.node.settings import Settings, parse_settings
from holdfast.vault.record import TreeRoot

MACHINES_OWN: Final = ("tls", "overrides")
"""Of another machine they are of no use here."""


class OwnPlan(NamedTuple):
    """*settings*: the site's, as this machine will have them; None where the snapshot knows no site. *restore*: its
    files come from the vault. *same*: this machine takes the place of the one that was archived."""

    settings: Settings | None
    text: str = ""
    restore: bool = False
    same: bool = False
    notes: tuple[str, ...] = ()


def plan_own(
    own: TreeRoot | None,
    inventory: Inventory | None,
    read: Callable[[bytes], bytes],
    *,
    machine: str,
    folder: Path = CONFIGURATION_FOLDER,
) -> OwnPlan:
    """*machine*: the name this machine is to have; empty: that of the archived one.

    Raises Refused (this machine belongs to another site), ConfigurationError.
    """
    content = file_content([own], own.name, "holdfast.toml", read) if own is not None else None
    text = content.decode("utf-8", "replace") if content is not None else inventory.configuration if inventory else ""
    archived = parse_settings(text, "the archived holdfast.toml") if text else None
    present = folder / "holdfast.toml"
    if present.exists():
        settings = parse_settings(present.read_text(encoding="utf-8"), str(present))
        if archived is not None and settings.site != archived.site:
            raise Refused(
                f"this machine belongs to site {settings.site!r}, the snapshot to {archived.site!r}",
                hint=f"Is it the right vault? To give this machine to the other site, move {folder} away first.",
            )
        return OwnPlan(settings, same=bool(archived and settings.machine == archived.machine))
    if archived is None:
        return OwnPlan(None, notes=("the snapshot knows no site of Holdfast: `holdfast init` makes one afterwards",))
    name = machine or archived.machine
    if name not in [each.name for each in archived.machines]:
        known = ", ".join(each.name for each in archived.machines)
        raise ConfigurationError(f"the site has no machine {name!r}", hint=f"Give --machine: {known}.")
    text = configuration_for(text, name)
    settings = parse_settings(text, "the archived holdfast.toml")
    same = name == archived.machine
    if own is None:
        notes: tuple[str, ...] = (
            "the site's keys are not in this snapshot (it was made from the log): `holdfast init` makes the site anew, "
            "or a bundle from the machine that has the authority lets this one join",
        )
        return OwnPlan(settings, text, same=same, notes=notes)
    notes = () if same else _renamed(own, read, name, archived.machine)
    return OwnPlan(settings, text, restore=True, same=same, notes=notes)


def _renamed(own: TreeRoot, read: Callable[[bytes], bytes], name: str, was: str) -> tuple[str, ...]:
    if file_content([own], own.name, "authority/ca.key", read) is not None:
        return (f"this machine will be {name}, the snapshot is of {was}: it gets a fresh certificate",)
    words = f"this machine will be {name}, the snapshot is of {was}, and the site's authority is not in it"
    return (f"{words}: a bundle from the machine that has it lets this one join (`holdfast trust renew` there)",)


def restore_own(plan: OwnPlan, restored: Path, folder: Path = CONFIGURATION_FOLDER) -> tuple[str, ...]:
    """Fill *folder* from *restored* (the tree as restored): what is there already stays. Returns what was done.

    Raises ConfigurationError, OSError, and what writing raises.
    """
    assert plan.settings is not None
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    done = 0
    for above, _, files in os.walk(restored):
        relative = Path(above).relative_to(restored)
        if not plan.same and relative.parts[:1] and relative.parts[0] in MACHINES_OWN:
            continue
        (folder / relative).mkdir(exist_ok=True)
        if str(relative) != ".":
            shutil.copystat(above, folder / relative)
        for name in files:
            target = folder / relative / name
            if not os.path.lexists(target) and target != folder / "holdfast.toml":
                shutil.copy2(Path(above, name), target, follow_symlinks=False)
                done += 1
    words = [f"{done} files of the site's keys and settings"]
    if not plan.same and (folder / "authority/ca.key").exists():
        _certify(plan.settings, Folder(folder))
        words.append(f"a fresh certificate for {plan.settings.machine}")
    if not (folder / "holdfast.toml").exists():
        write_once(folder / "holdfast.toml", plan.text.encode(), PUBLIC)
    return tuple(words)


def _certify(settings: Settings, folder: Folder) -> None:
    role = Role.RELAY if settings.me.role == "relay" else Role.MAIL
    names = [settings.me.address, settings.machine]
    Authority(folder.authority).issue(MachineName(settings.machine), names, role=role).write(folder.tls)
