"""The trees of this machine's site, discovered as the agent does it."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import NamedTuple

from holdfast.errors import HoldfastError
from holdfast.mail import inventory, packages
from holdfast.mail.commands import SystemCommands
from holdfast.mail.site import MailSite
from holdfast.node.settings import load_settings
from holdfast.trees.spec import Tree
from holdfast.vault.record import Gap


class SiteTrees(NamedTuple):
    machine: str
    trees: tuple[Tree, ...]
    warnings: tuple[str, ...]
    """What discovery could not see: it may be missing."""
    gaps: tuple[Gap, ...] = ()
    """What a restore would lack, whatever the trees hold: keys in no tree, an account's store that is gone."""


def site_trees(configuration: Path) -> SiteTrees:
    """Raises ConfigurationError, and what the mail software's adapters raise."""
    settings = load_settings(configuration)
    mail = MailSite(settings.mail, SystemCommands())
    return asyncio.run(_discovered(settings.machine, mail))


async def _discovered(machine: str, mail: MailSite) -> SiteTrees:
    warnings: list[str] = []
    try:
        manifest = await mail.manifest()
    except HoldfastError as error:
        warnings.append(f"the software manifest could not be written: {error.message}")
    else:
        packages.write(manifest, mail.software_directory)
    protection = await mail.protection()
    taken = await mail.inventory()
    inventory.write(taken, mail.software_directory)
    own = inventory.own_tree()
    trees = tuple(Tree(spec) for spec in (*protection.trees, *([own] if own else [])))
    gaps = tuple(Gap("inventory", os.fsencode(gap.path), gap.words) for gap in taken.gaps())
    return SiteTrees(machine, trees, (*warnings, *protection.warnings, *taken.remarks()), gaps)
