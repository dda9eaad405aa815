"""What a primary does on a timer so that the trees hold it: command outputs, and the manifest of its software."""

from __future__ import annotations

import asyncio
from typing import Final

from holdfast.errors import HoldfastError
from holdfast.mail import inventory, packages
from holdfast.mail.site import MailSite
from holdfast.node.history import History

OUTPUTS_SECONDS: Final = 5.0
"""How often it is looked whether an output is due."""
MANIFEST_SECONDS: Final = 3600.0
"""An upgrade of packages is in the log within the hour."""


async def write_manifest(mail: MailSite, history: History) -> None:
    """Bring the ``software`` tree up to date: the manifest, and the inventory of secrets. What cannot be made (there is
    no dpkg here) is missing, and the history says why."""
    try:
        manifest = await mail.manifest()
    except HoldfastError as error:
        mail.software_directory.mkdir(parents=True, exist_ok=True)
        history.record("the software manifest could not be written", error.message)
        return
    await asyncio.to_thread(packages.write, manifest, mail.software_directory)
    try:
        taken = await mail.inventory()
    except HoldfastError as error:
        history.record("the inventory of secrets could not be written", error.message)
        return
    await asyncio.to_thread(inventory.write, taken, mail.software_directory)


async def run_errands(mail: MailSite, history: History) -> None:
    """Until cancelled."""
    manifest_in = 0.0
    while True:
        for name in mail.outputs.due():
            state = await mail.outputs.run(name)
            if state.failure:
                history.record(f"output {name} failed", state.failure)
        if manifest_in <= 0:
            await write_manifest(mail, history)
            manifest_in = MANIFEST_SECONDS
        await asyncio.sleep(OUTPUTS_SECONDS)
        manifest_in -= OUTPUTS_SECONDS
