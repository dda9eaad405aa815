"""The report: one value, on disk as JSON and as a page that needs nothing else."""

from __future__ import annotations

import io
import json
import math
import re
from pathlib import Path
from xml.etree import ElementTree

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from holdfast.drill import picture, report
from holdfast.drill.checkers.facts import Mark, Protocol, Result
from holdfast.drill.checkers.findings import Difference, Duplicate, LostMessage, What
from holdfast.drill.checkers.in_time import Outage
from holdfast.drill.report import DrillResult, LedgerEntry, LedgerFound, Row
from holdfast.drill.timeline import Event, Span, Timeline, timeline
from tests.drill.made import ANN, SECOND, Story

ISSUE_KEYS = {
    *("accepted", "present", "lost", "duplicates", "state_differences", "outage_seconds", "lag_ms_p99", "phases"),
}


def result() -> DrillResult:
    story = Story().delivered("a").delivered("b", Result.UNKNOWN).delivered("c")
    outage = Outage(Protocol.IMAP, 2 * SECOND, 3 * SECOND, 1.0, 4, 0.05)
    line = timeline(
        story.records,
        lag_ms=[(2 * SECOND, 12.5)],
        spans={"start": (2 * SECOND, 3 * SECOND)},
        events=[(2 * SECOND, "main killed", "power cut", True)],
        outages=[outage],
    )
    return DrillResult(
        title="A <drill> & its result",
        accepted=2,
        present=1,
        lost=1,
        duplicates=1,
        state_differences=1,
        outage_seconds=1.0,
        lag_ms_p99=12.5,
        phases={"start": 1.0},
        rows=[Row("outage", "≤ 2 s", "1.00 s", True), Row("lost", "0", "1", False), Row("accepted", "", "2")],
        timeline=line,
        outages={"imap": 1.0, "smtp": None},
        lost_messages=[LostMessage(ANN, "c", "Deliver", 3 * SECOND, 3 * SECOND, "INBOX", "because", False)],
        duplicate_messages=[Duplicate(ANN, "a", ("INBOX",), 2, 1, True)],
        differences=[Difference(ANN, "日本語", 4, What.FLAGS, "(\\Seen)", "()")],
        ledger=LedgerFound(
            3, {"present": 2, "lost": 1}, [LedgerEntry("c", ANN, "main", "lost", "no <copy>")], ["c: it is there"]
        ),
        seed=42,
        began_real_ns=SECOND,
    )


def test_the_files_hold_the_result_and_the_keys_that_others_read(tmp_path: Path) -> None:
    data, page = report.write(result(), tmp_path / "deep" / "er")
    assert report.read(data) == result()
    assert json.loads(data.read_text()).keys() >= ISSUE_KEYS
    assert page.read_text().startswith("<!doctype html>")
    assert sorted(path.name for path in data.parent.iterdir()) == ["report.html", "report.json"]


def test_the_page_names_everything_and_takes_nothing_from_elsewhere() -> None:
    page = report.html(result())
    for words in (
        "A &lt;drill&gt; &amp; its result",
        ANN,
        "because",
        "日本語",
        "flags differ",
        "main killed",
        "no end",
        "no &lt;copy&gt;",
        "c: it is there",
    ):
        assert words in page
    assert "1 of 3 promises broken: lost" in page
    assert re.findall(r"""(?:src|href)=|url\(|@import|https?://|<script""", page) == []


def test_a_page_without_anything_wrong_says_so() -> None:
    good = msgspec.structs.replace(
        result(),
        rows=[Row("lost", "0", "0", True)],
        lost_messages=[],
        duplicate_messages=[],
        differences=[],
        lost=0,
        ledger=LedgerFound(2, {"present": 2}, [], []),
    )
    assert good.held
    page = report.html(good)
    assert "Every promise held" in page
    assert "broken" not in page.partition("<body>")[2]


def test_the_table_says_held_and_broken() -> None:
    out = io.StringIO()
    report.show(result(), Console(file=out, width=120))
    assert re.search(r"outage.*1\.00 s.*held", out.getvalue())
    assert re.search(r"lost.*BROKEN", out.getvalue())
    assert f"lost: {ANN} c (because)" in out.getvalue()
    assert not result().held


def test_a_timeline_counts_what_was_acknowledged_in_tenths_of_seconds() -> None:
    records = [*Story().delivered("a").delivered("b", Result.REFUSED).records, Mark("end", 4 * SECOND, 0)]
    made = timeline(records)
    assert (made.seconds, len(made.accepted_per_bin)) == (3.0, 31)
    assert [index for index, count in enumerate(made.accepted_per_bin) if count] == [5]
    assert made.focus is None


def test_the_focus_is_around_the_failure_and_inside_the_run() -> None:
    begin, end = result().timeline.focus or (0.0, 0.0)
    assert 0 <= begin < 1
    assert 2 <= end <= result().timeline.seconds


def test_an_outage_without_end_is_none_in_json() -> None:
    assert report.finite(math.inf) is None
    assert report.finite(1.23456) == 1.2346


times = st.floats(0, 200, allow_nan=False)


@given(
    st.lists(st.integers(0, 1000), max_size=300),
    st.lists(st.tuples(times, st.floats(0, 1e6)), max_size=30),
    st.lists(st.tuples(st.text(max_size=12), times, times, st.sampled_from(["phase", "outage"])), max_size=12),
    st.lists(st.tuples(st.text(max_size=12), times), max_size=8),
    st.one_of(st.none(), st.tuples(times, times).map(sorted)),
)
def test_any_timeline_is_drawn_as_well_formed_svg_inside_its_frame(
    bins: list[int],
    lag: list[tuple[float, float]],
    spans: list[tuple[str, float, float, str]],
    events: list[tuple[str, float]],
    window: list[float] | None,
) -> None:
    made = Timeline(
        seconds=200.0,
        accepted_per_bin=bins,
        operations_per_bin=bins,
        lag_ms=lag,
        spans=[Span(_printable(name), min(a, b), max(a, b), kind) for name, a, b, kind in spans],
        events=[Event(_printable(name), at) for name, at in events],
    )
    drawn = ElementTree.fromstring(picture.svg(made, (window[0], window[1]) if window else None))
    _, _, width, height = (float(part) for part in drawn.attrib["viewBox"].split())
    for rectangle in drawn.iter("rect"):
        assert 0 <= float(rectangle.attrib["x"]) <= width
        assert float(rectangle.attrib["y"]) + float(rectangle.attrib["height"]) <= height


def _printable(text: str) -> str:
    return "".join(char for char in text if char.isprintable())


@pytest.mark.parametrize(("most", "top"), [(1, 1), (3, 5), (5, 5), (11, 20), (0.3, 0.5), (99, 100)])
def test_axes_end_on_round_figures(most: float, top: float) -> None:
    line = Timeline(seconds=1.0, lag_ms=[(0.5, most)])
    assert f">{top:g} ms<" in picture.svg(line)
