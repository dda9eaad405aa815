"""The event history survives what happens to the machine that writes it."""

from __future__ import annotations

import resource
from pathlib import Path

from holdfast.node import history as module
from holdfast.node.history import History


def test_events_come_back_in_order_and_a_line_cut_short_is_skipped(tmp_path: Path) -> None:
    clock = iter(range(100))
    history = History(tmp_path / "history.jsonl", lambda: float(next(clock)))
    history.record("first", "why", epoch=1)
    with (tmp_path / "history.jsonl").open("ab") as file:
        file.write(b'{"at": 1.0, "wh\n')
    history.record("second")
    assert [(event.at, event.what) for event in history.events()] == [(0.0, "first"), (1.0, "second")]


def test_a_full_file_gives_way_to_a_new_one_and_nothing_recent_is_forgotten(tmp_path: Path) -> None:
    history = History(tmp_path / "history.jsonl", lambda: 0.0)
    history.record("old", "x" * (module.HISTORY_BYTES_MAX + 1))
    history.record("new")
    assert [event.what for event in history.events()] == ["old", "new"]
    assert (tmp_path / "history.jsonl").stat().st_size < 1000


def test_what_a_full_disk_does_not_take_waits_and_is_written_when_there_is_room(tmp_path: Path) -> None:
    clock = iter(range(100))
    path = tmp_path / "history.jsonl"
    history = History(path, lambda: float(next(clock)))
    history.record("before")
    whole = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 10, limits[1]))  # it ends within the line
        history.record("first", "no room")
        history.record("second", "no room")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == whole, "no line is cut short"
    told = ["before", "first", "second"]
    assert [event.what for event in history.events()] == told, "a person is told nevertheless"
    assert [event.what for event in history.events(2)] == told[1:]
    history.record("third")
    assert [event.what for event in History(path, lambda: 0.0).events()] == [*told, "third"]
