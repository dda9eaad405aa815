"""What must not be deleted and is in the way: moved aside, listed, never overwritten.

Things stay on their tree's own filesystem, below ``.holdfast/aside/<when>/<number>/`` with their path: a rename needs
no space and cannot fail half-way. The folder ``/var/lib/holdfast/aside/<when>`` holds a link to it for each tree, and
``manifest``: a JSON object a line with tree, path, where it is kept, and why. Names that are no UTF-8 stand there with
surrogate escapes (PEP 383).
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import NamedTuple

from holdfast.apply.place import ASIDE, Place


class Kept(NamedTuple):
    """One thing moved aside: where it stood, where it is (relative to its tree's root), and why."""

    tree: str
    path: bytes
    kept: bytes
    why: str


class Aside:
    """Moves things aside into *folder*, which is made when the first one comes. Its name is the ``<when>``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.count = 0
        self._linked: set[str] = set()

    def take(self, place: Place, tree: str, path: bytes, why: str, *, origin: bytes | None = None) -> Kept:
        """Move what stands at *path* aside, listed as *origin* where that is not where it stood. Raises OSError."""
        self._link(place, tree)
        kept = Kept(tree, origin or path, place.move_aside(path, os.fsencode(self.folder.name)), why)
        self.count += 1
        self._list({"kept": os.fsdecode(kept.kept), "why": why}, kept)
        return kept

    def drop(self, place: Place, kept: Kept, why: str) -> None:
        """Delete a thing that was moved aside, because *why*."""
        place.unlink(kept.kept)
        self.count -= 1
        self._list({"dropped": os.fsdecode(kept.kept), "why": why}, kept)

    def _link(self, place: Place, tree: str) -> None:
        if tree in self._linked:
            return
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        link = self.folder / tree
        if not link.is_symlink():
            link.symlink_to(place.root / os.fsdecode(ASIDE) / self.folder.name)
        self._linked.add(tree)

    def _list(self, line: dict[str, str], kept: Kept) -> None:
        line = {"tree": kept.tree, "path": os.fsdecode(kept.path), **line}
        with (self.folder / "manifest").open("a", encoding="ascii") as manifest:
            manifest.write(json.dumps(line) + "\n")
