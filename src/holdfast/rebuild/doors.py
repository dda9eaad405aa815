"""Accounts that are not back yet: nobody logs in to them, and mail for them waits.

*Login*: a user database is put before Dovecot's own, one file a user. A symbolic link to itself in its folder is a
file that cannot be read (ELOOP), so Dovecot answers for that user, and no other, with a temporary failure
(``[UNAVAILABLE]``, RFC 5530), which makes no client ask for another password. Removing the link opens the door.
*Delivery*: the wall at the account's place has Dovecot's LMTP answer 451; Postfix keeps the message and tries again.
Measured with Dovecot 2.3.19: without the door a login succeeds and LIST shows an account without folders.

The setting stands between marks at the beginning of ``dovecot.conf``, and is taken out when all are back. For Dovecot
2.4, whose syntax is another, only the wall is used.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from holdfast.mail.files import write_whole
from holdfast.mail.port import Commands

BEGIN: Final = "# holdfast-rebuild-begin: who is not back yet cannot log in; `holdfast rebuild` takes this out.\n"
END: Final = "# holdfast-rebuild-end\n"
FOLDER_NAME: Final = "holdfast-rebuild"
QUEUE_SECONDS_MAX: Final = 60.0
_BLOCK: Final = re.compile(re.escape(BEGIN) + r".*?" + re.escape(END), re.DOTALL)


def block(folder: Path) -> str:
    """For Dovecot 2.3. The penalty for failed logins is off meanwhile: it would slow down everybody behind the same
    address (https://doc.dovecot.org/2.3/configuration_manual/authentication/auth_penalty/)."""
    return f"""{BEGIN}passdb {{
  driver = passwd-file
  args = {folder}/%u
  result_internalfail = return
}}
service anvil {{
  unix_listener anvil-auth-penalty {{
    mode = 0
  }}
}}
{END}"""


class Doors:
    """Of one Dovecot. *config*: its main file; *folder*: below its state directory, which its auth process can read."""

    def __init__(self, config: Path, state_directory: Path) -> None:
        self._config = config
        self._folder = state_directory / FOLDER_NAME

    def close(self, accounts: Iterable[str]) -> None:
        """Before Dovecot starts. Raises OSError."""
        self._folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        self._folder.chmod(0o755)
        for account in accounts:
            for name in {account, account.lower()}:
                if "/" not in name and not os.path.lexists(self._folder / name):
                    os.symlink(name, self._folder / name)
        text = self._config.read_text(encoding="utf-8", errors="surrogateescape")
        changed = block(self._folder) + _BLOCK.sub("", text)
        write_whole(self._config, changed.encode("utf-8", "surrogateescape"))

    def open(self, account: str) -> None:
        for name in {account, account.lower()}:
            (self._folder / name).unlink(missing_ok=True)

    @property
    def closed(self) -> bool:
        return self._folder.is_dir()

    def take_out(self) -> bool:
        """The configuration as it was; whether anything had to be done (then Dovecot must reload). Raises OSError."""
        status = self._config.stat()
        text = self._config.read_text(encoding="utf-8", errors="surrogateescape")
        changed = write_whole(self._config, _BLOCK.sub("", text).encode("utf-8", "surrogateescape"))
        if changed:
            os.utime(self._config, ns=(status.st_atime_ns, status.st_mtime_ns))
        if self._folder.is_dir():
            shutil.rmtree(self._folder)
        return changed


async def requeue(commands: Commands, accounts: frozenset[str]) -> int:
    """Have Postfix try again what waits for *accounts*; how many messages. A queue that cannot be read is left alone:
    Postfix tries by itself later."""
    listed = await commands.run(["postqueue", "-j"], timeout_seconds=QUEUE_SECONDS_MAX)
    found = waiting_for(listed.output, accounts) if listed.ok else ()
    for identity in found:
        await commands.run(["postqueue", "-i", identity], timeout_seconds=QUEUE_SECONDS_MAX)
    return len(found)


def waiting_for(listing: str, accounts: frozenset[str]) -> tuple[str, ...]:
    """Queue identities of deferred messages for *accounts*, from ``postqueue -j`` (one JSON object a line)."""
    found = []
    for line in listing.splitlines():
        try:
            message = json.loads(line)
            recipients = [recipient["address"] for recipient in message["recipients"]]
            deferred, identity = message["queue_name"] == "deferred", str(message["queue_id"])
        except (ValueError, KeyError, TypeError):
            continue
        if deferred and any(_plain(address) in accounts for address in recipients):
            found.append(identity)
    return tuple(found)


def _plain(address: str) -> str:
    """Without the part after ``+``."""
    local, at, domain = address.rpartition("@")
    return f"{local.partition('+')[0]}{at}{domain}"
