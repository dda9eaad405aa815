"""What is known of a directory is the directory, in whatever order its names came and went."""

from __future__ import annotations

from pathlib import Path

import apsw
from hypothesis import given
from hypothesis import strategies as st

from holdfast.changes.change import Meta
from holdfast.changes.exchange import EntryKind
from holdfast.vault.catalog import Catalog
from holdfast.vault.known import Known, KnownDirectory, KnownEntry
from holdfast.vault.record import Entry, directory_parts

META = Meta(0o640, "root", "mail", 1_700_000_000_000_000_000, ())


def known(name: bytes, size: int) -> KnownEntry:
    return KnownEntry(size + 7, size, Entry(name, EntryKind.FILE, META, size, bytes(16)), b"d" * (size % 2))


NAMES = st.sampled_from([b"%d.M%d" % (number, number) for number in range(400)])
Steps = list[tuple[bytes, int | None]]
STEPS = st.lists(st.tuples(NAMES, st.none() | st.integers(0, 9)), max_size=300)


@given(STEPS, STEPS)
def test_columns_are_what_was_put_and_not_removed(before: Steps, after: Steps) -> None:
    rows = Known(Catalog("v"), 100_000)
    expected: dict[bytes, KnownEntry] = {}
    for steps in (before, after):
        row = rows.directory("store", b"cur") or KnownDirectory()
        for name, size in steps:
            if size is None:
                row.remove(name)
                expected.pop(name, None)
            else:
                expected[name] = known(name, size)
                row.put(expected[name])
        ordered = [expected[name] for name in sorted(expected)]
        assert row.written(lambda part: part) == b"".join(directory_parts(entry.entry for entry in ordered))
        rows.keep("store", b"cur", row)
        kept = rows.directory("store", b"cur")
        assert kept is not None
        assert kept.all() == ordered
        assert all(kept.entry(name) == expected.get(name) for name, _ in steps)


def test_rows_of_an_older_shape_are_forgotten(tmp_path: Path) -> None:
    with apsw.Connection(str(tmp_path / "cache")) as connection:
        connection.execute("CREATE TABLE known (tree TEXT, path BLOB, seen BLOB NOT NULL, PRIMARY KEY (tree, path))")
        connection.execute("INSERT INTO known VALUES ('store', x'', x'00')")
    rows = Known(Catalog("v", tmp_path / "cache"))
    assert rows.directory("store", b"") is None
