"""The trees of this machine's site, discovered as the agent does it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import NamedTuple

from holdfast.errors import HoldfastError
from holdfast.mail import packages
from holdfast.mail.commands import SystemCommands
from holdfast.mail.site import MailSite
from holdfast.node.settings import load_settings
from holdfast.trees.spec import Tree


class SiteTrees(NamedTuple):
    machine: str
    trees: tuple[Tree, ...]
    warnings: tuple[str, ...]
    """What discovery could not see: it may be missing."""


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
    trees = tuple(Tree(spec) for spec in protection.trees)
    return SiteTrees(machine, trees, (*warnings, *protection.warnings))
