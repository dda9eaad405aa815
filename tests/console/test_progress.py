"""One line of progress: what it says, where it is silent."""

from __future__ import annotations

import io

from holdfast.console.progress import WIDTH, Progress
from holdfast.vault.patient import Transfer


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_bytes_files_speed_and_time_left() -> None:
    out, clock = Terminal(), Clock()
    with Progress("restoring", 100_000_000, out=out, clock=clock) as progress:
        for second in range(1, 6):
            clock.now += 1
            progress.at(second * 10_000_000, second)
        last = out.getvalue().rpartition("\x1b[K")[2]
    assert last == "restoring  5 files  50.0 MB of 100.0 MB  10.0 MB/s  0:05 left"
    assert out.getvalue().endswith("\r\x1b[K"), "the line is wiped"


def test_trouble_with_the_store_takes_the_lines_place_at_once() -> None:
    out, clock = Terminal(), Clock()
    with Progress("backing up", out=out, clock=clock) as progress:
        progress.at(10, 1)
        progress.transfer(Transfer(0, 0, 0, 1, "s3://b: connection refused " + "x" * 100))
        shown = out.getvalue().rpartition("\x1b[K")[2]
        assert shown.startswith("backing up  trying again: s3://b: connection refused")
        assert len(shown) <= WIDTH
        clock.now += 1
        progress.transfer(Transfer(5_000_000, 0, 1, 1))
        assert out.getvalue().rpartition("\x1b[K")[2] == "backing up  1 files  10 B  5.0 MB sent"


def test_a_journal_gets_a_line_a_minute() -> None:
    out, clock = io.StringIO(), Clock()
    with Progress("backing up", 1000, out=out, clock=clock) as progress:
        for _ in range(150):
            clock.now += 1
            progress.at(500, 2)
    assert out.getvalue().count("\n") == 2
    assert "\x1b" not in out.getvalue()


def test_quiet_is_quiet() -> None:
    out, clock = Terminal(), Clock()
    with Progress("backing up", 1000, quiet=True, out=out, clock=clock) as progress:
        clock.now += 100
        progress.at(500, 2)
    assert out.getvalue() == ""
