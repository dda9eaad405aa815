from __future__ import annotations

import csv
import os
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from holdfast.console.ledger import ledger as command
from holdfast.errors import ExitStatus, NoSpace
from holdfast.ledger.book import Book, Limits, book_files, erase, naming, read
from holdfast.ledger.events import Accepted, Delivered, Event, Safe, decode, encode
from holdfast.ledger.kept import keep_report, view
from holdfast.ledger.report import Surviving, report
from holdfast.ledger.states import Ledger
from tests.ledger.made import ALICE, BOB, Story

NOW = 1_795_348_800.0
LIMITS = Limits(days=30, bytes=1024**2)


class Clock:
    def __init__(self) -> None:
        self.seconds = NOW

    def __call__(self) -> float:
        return self.seconds


def book(directory: Path, machine: str = "main", clock: Clock | None = None, limits: Limits = LIMITS) -> Book:
    return Book(directory, machine, clock or Clock(), limits)


def delivered(made: Book, delivery: str) -> Delivered:
    return Delivered(at=made.now(), machine=made.machine, delivery=delivery, to=(ALICE,))


def test_events_are_written_in_one_go_and_numbered_on_over_restarts(tmp_path: Path) -> None:
    made = book(tmp_path)
    made.note(delivered(made, "a"))
    made.note(delivered(made, "b"))
    assert list(read(tmp_path)) == []
    assert made.flush() == 2
    made.safe(2, "L", 9)
    again = book(tmp_path)
    again.note(delivered(again, "c"))
    assert made.flush() == 3
    again.flush()
    assert [(event.n, type(event).__name__) for event in read(tmp_path)] == [
        (1, "Delivered"),
        (2, "Delivered"),
        (3, "Safe"),
        (3, "Delivered"),
    ]
    other = book(tmp_path, "backup")
    other.note(delivered(other, "d"))
    other.flush()
    assert book(tmp_path, "backup").flush() == 1


def test_a_line_cut_short_by_a_crash_spoils_no_other(tmp_path: Path) -> None:
    made = book(tmp_path)
    made.note(delivered(made, "a"))
    made.flush()
    (path,) = book_files(tmp_path)
    path.write_bytes(path.read_bytes() + b'{"type":"deliv')
    again = book(tmp_path)
    again.note(delivered(again, "b"))
    again.flush()
    assert [event.delivery for event in read(tmp_path) if isinstance(event, Delivered)] == ["a", "b"]


def test_what_a_newer_program_writes_is_passed_over(tmp_path: Path) -> None:
    assert decode(b'{"type":"moved","at":1,"machine":"main"}\n') is None
    assert decode(b'{"type":"began","at":1,"machine":"main","new":2}\n') is not None


def test_the_oldest_hours_go_by_age_and_by_bytes(tmp_path: Path) -> None:
    clock = Clock()
    made = book(tmp_path, clock=clock, limits=Limits(days=1, bytes=10_000))
    for _ in range(30):
        made.note(delivered(made, "a"))
        made.flush()
        clock.seconds += 3600
    assert len(book_files(tmp_path)) == 25
    made.note(delivered(made, "x" * 9_500))
    made.flush()
    clock.seconds += 3600
    made.note(delivered(made, "b"))
    made.flush()
    assert len(book_files(tmp_path)) < 5


def test_a_full_disk_is_an_error_and_loses_no_line(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", disk], check=True)
    try:
        made = book(disk / "ledger")
        made.note(delivered(made, "a"))
        made.flush()
        filler = disk / "filler"
        with pytest.raises(OSError, match="No space"):
            filler.write_bytes(bytes(100_000))
        made.note(delivered(made, "b" * 5000))
        with pytest.raises(NoSpace):
            made.flush()
        assert [event.n for event in read(disk / "ledger")] == [1]
        filler.unlink()
        made.flush()
        assert [event.n for event in read(disk / "ledger")] == [1, 2]
    finally:
        subprocess.run(["umount", disk], check=True)


def whole(directory: Path) -> list[Event]:
    """The story of three messages, in files."""
    story = Story().accept("d1", ALICE).accept("d2", ALICE, BOB).safe().deliver("d1").deliver("d2", ALICE, BOB)
    story.settle("d1").settle("d2").accept("d3", BOB).safe()
    made = book(directory)
    for event in story.events:
        made.note(event)
    made.flush()
    return story.events


def test_a_person_is_erased_and_the_sums_stay(tmp_path: Path) -> None:
    directory = tmp_path / "ledger"
    before = whole(directory)
    surviving = Surviving({BOB: frozenset()}, frozenset(), frozenset())
    assert naming(directory, "Alice@example.org") == 4
    assert erase(directory, "Alice@example.org") == 4
    data = b"".join(path.read_bytes() for path in book_files(directory))
    assert ALICE.encode() not in data
    assert b"d1@outside.example" not in data
    assert b"d3@outside.example" in data
    made = report(Ledger(read(directory)), surviving, at=1, since=0, why="")
    assert made.accepted == report(Ledger(before), surviving, at=1, since=0, why="").accepted == 4
    assert made.sums["present"] == 2  # whose mailbox cannot be named
    writer = book(directory)
    writer.note(delivered(writer, "later"))
    writer.flush()
    assert [event.delivery for event in read(directory) if isinstance(event, Delivered)][-1] == "later"


def run(*argv: str) -> tuple[int, str]:
    result = CliRunner().invoke(command, list(argv), catch_exceptions=False)
    return result.exit_code, result.output


def test_the_command_shows_finds_and_exports(tmp_path: Path) -> None:
    directory = str(tmp_path / "ledger")
    whole(Path(directory))
    status, said = run("show", "--ledger", directory)
    assert status == 0
    assert said.count("durable") == 3
    assert said.count("queued") == 1
    status, said = run("show", "d2@outside.example", "--ledger", directory)
    assert status == 0
    assert "delivered to alice@example.org, bob@example.org [record 7]" in said
    assert run("find", "carol@example.org", "--ledger", directory) == (1, "nothing found\n")
    assert run("find", "example.org", "--ledger", directory)[0] == 1  # a part of an address is none
    status, said = run("find", "BOB@example.org", "--ledger", directory)
    assert (status, said.count("bob@example.org")) == (0, 2)
    status, said = run("export", "--ledger", directory)
    rows = list(csv.DictReader(said.splitlines()))
    assert [row["state"] for row in rows] == ["durable", "durable", "durable", "queued"]
    assert rows[0]["durable_record"] == "7"


def test_exports_hold_no_formulas(tmp_path: Path) -> None:
    made = book(tmp_path / "ledger")
    made.note(Accepted(at=1, machine="main", delivery="d", queue="Q", to=(ALICE,), message_id='=HYPERLINK("http://x")'))
    made.flush()
    _, said = run("export", "--ledger", str(tmp_path / "ledger"))
    assert "'=HYPERLINK" in said


def test_a_report_is_kept_and_stands_in_the_status(tmp_path: Path) -> None:
    events = whole(tmp_path / "ledger")
    surviving = Surviving({ALICE: frozenset({"d1", "d2"}), BOB: frozenset({"d2"})}, frozenset(), frozenset())
    made = report(Ledger(events), surviving, at=1_795_348_800_000, since=0, why="main served before")
    keep_report(tmp_path / "ledger", made)
    seen = view(tmp_path / "ledger", tmp_path / "none.json")
    assert seen is not None
    assert (seen.sums["present"], seen.sums["lost"]) == (3, 1)
    status, said = run("report", "--last", "--ledger", str(tmp_path / "ledger"))
    assert status == ExitStatus.DIFFERENCES
    assert "3 present, 1 lost, 0 unknown" in said
    assert "no copy" in said
    assert run("erase", BOB, "--yes", "--ledger", str(tmp_path / "ledger"))[0] == 0
    assert BOB not in run("report", "--last", "--json", "--ledger", str(tmp_path / "ledger"))[1]


def test_lines_survive_the_trip(tmp_path: Path) -> None:
    for event in (*Story().accept("d").safe().events, Safe(at=1, machine="m", upto=1, log="x", record=2)):
        assert decode(encode(event)) == event
    assert os.listdir(tmp_path) == []
