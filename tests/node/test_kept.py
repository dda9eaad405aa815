"""What waits for a person is counted from what is there."""

from __future__ import annotations

import shutil
from pathlib import Path

from holdfast.apply.aside import Aside
from holdfast.apply.place import Place
from holdfast.node.kept import KeptAside, kept_aside


def test_things_are_counted_until_they_are_deleted(tmp_path: Path) -> None:
    root, state = tmp_path / "store", tmp_path / "state"
    root.mkdir()
    where = str(state / "aside")
    assert kept_aside(state) == KeptAside(0, 0, 0, where)
    place = Place(root)
    first, second = (Aside(state / "aside" / when) for when in ("one", "two"))
    kept = []
    for aside, name in ((first, 'a "kept": b'), (first, "c"), (second, "d")):
        (root / name).write_text("mail")
        kept.append(aside.take(place, "store", name.encode(), "is not on the primary"))
    assert kept_aside(state) == KeptAside(3, 2, 0, where)
    second.drop(place, kept[2], "it came back")
    (state / "rejoin-2026-11-22T16-19-40.json").write_text("{}")
    assert kept_aside(state) == KeptAside(2, 1, 1, where)
    shutil.rmtree(state / "aside" / "one")
    (state / "rejoin-2026-11-22T16-19-40.json").unlink()
    assert kept_aside(state) == KeptAside(0, 0, 0, where)
