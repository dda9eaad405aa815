"""What a machine that died still has on its disk, by Message-ID: the reasons why a message may be missing elsewhere."""

from __future__ import annotations

import re
import stat
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
    return queued_in(machine.path("/var/spool/postfix"))


def queued_in(spool: Path) -> frozenset[str]:
    """As :func:`queue_of`. A file that is not yet executable by its owner is still being written (mail_queue.h of
    Postfix: MAIL_QUEUE_STAT_READY): nobody was told that it was accepted, nobody delivers it, and where Postfix was
    stopped meanwhile it stands there for days."""
    return message_ids((spool / name for name in QUEUES), needs=stat.S_IXUSR)


def set_aside(machine: Machine) -> frozenset[str]:
    """What it had and the log never got: kept aside when it rejoined."""
    return message_ids(machine.path(folder) for folder in ASIDE)


def message_ids(folders: Iterable[Path], needs: int = 0) -> frozenset[str]:
    """Of all files below *folders* that have the mode bits *needs*, as far as their first ``HEADERS_BYTES`` tell."""
    found: set[str] = set()
    for path in (path for folder in folders if folder.is_dir() for path in folder.rglob("*")):
        if path.is_file() and not path.is_symlink() and path.stat().st_mode & needs == needs:
            with path.open("rb") as file:
                heads = MESSAGE_ID.findall(file.read(HEADERS_BYTES))
            found.update(each.decode("ascii", "replace").strip("<>") for each in heads)
    return frozenset(found)
