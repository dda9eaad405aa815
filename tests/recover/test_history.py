"""Whatever happens to mail between snapshots, the search tells of it what a record of each moment tells."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.mail.mailboxes import Accounts, base_name
from holdfast.recover.headers import Headers
from holdfast.recover.search import Query, search
from tests.recover.site import Store

FOLDERS = ("INBOX", "Trash", "Projects/2026")
STEPS = st.tuples(st.integers(0, 4), st.integers(0, 30), st.integers(0, 2))
DAYS = st.lists(st.lists(STEPS, max_size=5), min_size=2, max_size=6)

Picture = set[tuple[str, str]]
"""What a moment holds: (folder, what of the file's name stays)."""


def picture(store: Store) -> Picture:
    return {
        (folder, base_name(file.name.encode()).decode())
        for folder in FOLDERS
        for part in ("cur", "new")
        for file in (store.folder(folder) / part).iterdir()
    }


def do(store: Store, step: tuple[int, int, int], number: int) -> None:
    """Deliver, delete, flag, move, or see a message."""
    kind, chosen, place = step
    folder = FOLDERS[place]
    files = sorted(
        file for name in FOLDERS for part in ("cur", "new") for file in (store.folder(name) / part).iterdir()
    )
    if kind == 0 or not files:
        made = store.message(number, folder)
        if chosen % 2:
            made.rename(store.folder(folder) / "new" / base_name(made.name.encode()).decode())
        return
    file = files[chosen % len(files)]
    base = base_name(file.name.encode()).decode()
    if kind == 1:
        file.unlink()
    elif kind == 2:
        file.rename(file.parent.parent / "cur" / f"{base}:2,{'FRS'[chosen % 3]}")
    elif kind == 3:
        target = store.folder(folder) / "cur" / f"{base}:2,S"
        if not list(target.parent.glob(f"{base}*")) and not (target.parent.parent / "new" / base).exists():
            file.rename(target)
    else:
        file.rename(file.parent.parent / "cur" / f"{base}:2,")


@settings(max_examples=25, deadline=None)
@given(DAYS)
def test_presences_are_those_of_the_record(days: list[list[tuple[int, int, int]]]) -> None:
    with tempfile.TemporaryDirectory(prefix="hf-find-") as name:
        store = Store(Path(name))
        for folder in FOLDERS:
            store.folder(folder)
        moments, pictures = [], list[Picture]()
        number = 0
        for day in days:
            for step in day:
                number += 1
                do(store, step, number)
            moments.append(store.snapshot())
            pictures.append(picture(store))
        found = search(moments, Query(), Headers(), Accounts())
        store.vault.close()
    labels = [moment.label for moment in moments]
    told = sorted(
        (one.box.mailbox.folder, one.stored.key.decode(), one.first.label, one.last.label, one.gone is None)
        for one in found.presences
    )
    assert told == sorted(expected(pictures, labels))
    assert found.problems == {}


def expected(pictures: list[Picture], labels: list[str]) -> list[tuple[str, str, str, str, bool]]:
    spans = []
    for key in set().union(*pictures):
        first: int | None = None
        for at, there in enumerate([*pictures, set[tuple[str, str]]()]):
            if key in there and first is None:
                first = at
            elif key not in there and first is not None:
                spans.append((*key, labels[first], labels[at - 1], at == len(pictures)))
                first = None
    return spans
