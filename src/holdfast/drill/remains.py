"""What a machine that died still has on its disk, by Message-ID: the reasons why a message may be missing elsewhere."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from holdfast.drill.lab.lab import Machine

HEADERS_BYTES: Final = 64 * 1024
MESSAGE_ID: Final = re.compile(rb"(?i)message-id:\s*(<[^>\r\n]{1,200}>)")
QUEUES: Final = ("incoming", "active", "deferred", "maildrop")
ASIDE: Final = ("/var/vmail/.holdfast/aside", "/var/lib/holdfast/aside")


def queue_of(machine: Machine) -> frozenset[str]:
    """What waits in its mail queue: accepted, not yet in a mailbox."""
    spool = machine.path("/var/spool/postfix")
    return message_ids(spool / name for name in QUEUES)


def set_aside(machine: Machine) -> frozenset[str]:
    """What it had and the log never got: kept aside when it rejoined."""
    return message_ids(machine.path(folder) for folder in ASIDE)


def message_ids(folders: Iterable[Path]) -> frozenset[str]:
    """Of all files below *folders*, as far as their first ``HEADERS_BYTES`` tell."""
    found: set[str] = set()
    for path in (path for folder in folders if folder.is_dir() for path in folder.rglob("*")):
        if path.is_file() and not path.is_symlink():
            with path.open("rb") as file:
                heads = MESSAGE_ID.findall(file.read(HEADERS_BYTES))
            found.update(each.decode("ascii", "replace").strip("<>") for each in heads)
    return frozenset(found)
