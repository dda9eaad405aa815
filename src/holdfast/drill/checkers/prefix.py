"""Promise 3: the standby's trees equal the primary's trees as they stood at one log position."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from holdfast.drill.checkers.facts import TreeEntry
from holdfast.drill.checkers.findings import Difference, What

Tree = Mapping[bytes, TreeEntry]
"""Path from the tree's root -> entry."""

DIRECTORY_IGNORES: Final = frozenset({"mtime_ns", "size_bytes"})
"""A directory's time and size are by-products of what was done in it, and not promised."""


def prefix(name: str, primary: Tree, standby: Tree) -> list[Difference]:
    """Every path of tree *name* on which the two differ, and in what. Both were taken at one log position."""
    found: list[Difference] = []
    for path in sorted(primary.keys() | standby.keys()):
        was, now = primary.get(path), standby.get(path)
        shown = path.decode("utf-8", "backslashreplace")
        if was is None or now is None:
            sides = (was.kind if was else "", now.kind if now else "")
            found.append(Difference(name, shown, 0, What.TREE, *sides, note="only on one machine"))
            continue
        for field in TreeEntry.__struct_fields__:
            if was.kind == "directory" and field in DIRECTORY_IGNORES:
                continue
            before, after = getattr(was, field), getattr(now, field)
            if before != after:
                found.append(Difference(name, shown, 0, What.TREE, str(before), str(after), note=field))
    return found
