"""What was kept aside on this machine and waits for a person: counted for status, until the person deletes it.

Folders ``aside/<when>`` with their manifests, and the reports ``rejoin-<when>.json``, in the state directory.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from msgspec import Struct


class KeptAside(Struct, frozen=True):
    """*things* as the manifests list them, in *folders* below *where*; *reports* beside it."""

    things: int
    folders: int
    reports: int
    where: str


def kept_aside(state: Path) -> KeptAside:
    """What there is now below the *state* directory. A folder in which nothing is left does not count."""
    counts = [_things(manifest) for manifest in state.glob("aside/*/manifest")]
    kept = [count for count in counts if count > 0]
    return KeptAside(sum(kept), len(kept), sum(1 for _ in state.glob("rejoin-*.json")), str(state / "aside"))


def _things(manifest: Path) -> int:
    try:
        seen = manifest.stat()
        return _listed(manifest, seen.st_mtime_ns, seen.st_size)
    except OSError:
        return 0  # deleted while it was looked at


@lru_cache(maxsize=256)
def _listed(manifest: Path, mtime_ns: int, size: int) -> int:
    """Lines of things kept, less those dropped again (see ``apply.aside``); read again only when the file changed."""
    count = 0
    with manifest.open("rb") as lines:
        for line in lines:
            count += (b'"kept": ' in line) - (b'"dropped": ' in line)
    return count
