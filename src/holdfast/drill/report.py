"""The report of a drill: one value, written as ``report.json``, as a page to read, and as a table on the terminal.

The page (``report.html``) is self-contained: no script, no font, no picture from elsewhere, light and dark by the
reader's setting. Its pictures are drawn by `holdfast.drill.picture`. Both files are what a drill leaves behind, next to
the journal and the states it judged; numbers in them are counts, lists beside them name each message.
"""

from __future__ import annotations

import math
import time
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
from msgspec import Struct, field

from holdfast.drill import picture
from holdfast.drill.checkers.findings import Difference, Duplicate, LostMessage
from holdfast.drill.timeline import Timeline
from holdfast.files import write_once

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

LISTED_MAX: Final = 200
"""Of one kind of finding on the page; ``report.json`` has all."""


class Row(Struct, frozen=True):
    """One promise beside its measurement. *held* None: measured, and nothing was promised."""

    name: str
    promised: str
    measured: str
    held: bool | None = None


class LedgerEntry(Struct, frozen=True):
    """One message for one recipient that is not simply present, as ``holdfast ledger report`` names it."""

    message_id: str
    recipient: str
    machine: str
    kind: str
    reason: str


class LedgerFound(Struct, frozen=True):
    """What the ledger says became of everything that was accepted: *sums* by kind add up to *accepted*. *false*: where
    that is not so, by what senders heard and mailboxes hold."""

    accepted: int
    sums: dict[str, int]
    named: list[LedgerEntry]
    false: list[str]


class DrillResult(Struct):
    """All a drill has to say. *lag_ms_p99* and *outage_seconds* are None when not measured (an outage without end too).

    *phases*: seconds by name, in order. *notes*: what this run could not show, in sentences.
    """

    title: str
    accepted: int
    present: int
    lost: int
    duplicates: int
    state_differences: int
    outage_seconds: float | None
    lag_ms_p99: float | None
    phases: dict[str, float]
    rows: list[Row]
    timeline: Timeline
    outages: dict[str, float | None] = field(default_factory=dict)
    accepted_by_kind: dict[str, int] = field(default_factory=dict)
    lost_messages: list[LostMessage] = field(default_factory=list)
    duplicate_messages: list[Duplicate] = field(default_factory=list)
    differences: list[Difference] = field(default_factory=list)
    ledger: LedgerFound | None = None
    """None: no ledger was kept."""
    figures: dict[str, float | int | str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    seed: int = 0
    began_real_ns: int = 0

    @property
    def held(self) -> bool:
        """Whether every promise of the rows held."""
        return all(row.held is not False for row in self.rows)


def finite(seconds: float) -> float | None:
    """*seconds*, or None for an outage that never ended: JSON has no infinity."""
    return None if math.isinf(seconds) else round(seconds, 4)


def write(result: DrillResult, folder: Path) -> tuple[Path, Path]:
    """Write ``report.json`` and ``report.html`` into *folder* (made when missing); their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / "report.json"
    page = folder / "report.html"
    write_once(data, msgspec.json.format(msgspec.json.encode(result), indent=2) + b"\n")
    write_once(page, html(result).encode())
    return data, page


def read(path: Path) -> DrillResult:
    """The result in a ``report.json``."""
    return msgspec.json.decode(path.read_bytes(), type=DrillResult)


def html(result: DrillResult) -> str:
    """The page."""
    import jinja2  # late: imports in 40 ms, and only a report needs it

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["clock"] = clock
    template = environment.from_string(resources.files(__package__).joinpath("report.html.j2").read_text())
    pictures = [("The whole run", picture.svg(result.timeline))]
    if result.timeline.focus is not None:
        pictures.insert(0, ("Around the failure", picture.svg(result.timeline, window=result.timeline.focus)))
    return template.render(
        result=result,
        pictures=pictures,
        listed_max=LISTED_MAX,
        longest_phase=max(result.phases.values(), default=1.0) or 1.0,
        began=time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(result.began_real_ns / 1e9))
        if result.began_real_ns
        else "",
        broken=[row for row in result.rows if row.held is False],
    )


def clock(real_ns: int) -> str:
    """Time of day, UTC, in milliseconds."""
    whole, milliseconds = divmod(real_ns // 1_000_000, 1000)
    return f"{time.strftime('%H:%M:%S', time.gmtime(whole))}.{milliseconds:03d}"


def table(result: DrillResult) -> Table:
    """Promised and measured, side by side."""
    from rich.table import Table

    made = Table(title=result.title, title_justify="left", header_style="bold")
    made.add_column("")
    made.add_column("promised", justify="right")
    made.add_column("measured", justify="right")
    made.add_column("")
    for row in result.rows:
        mark = {True: "[green]held[/green]", False: "[bold red]BROKEN[/bold red]", None: ""}[row.held]
        made.add_row(row.name, row.promised, row.measured, mark)
    return made


def show(result: DrillResult, console: Console) -> None:
    """Print the table, then the names of what was lost, doubled or different (as many as fit a screen)."""
    console.print(table(result))
    for message in result.lost_messages[:10]:
        console.print(f"lost: {message.account} {message.message_id} ({message.reason})", markup=False, highlight=False)
    for double in result.duplicate_messages[:10]:
        why = "sent again after no answer, or from the dead machine's queue" if double.explained else "unexplained"
        console.print(f"doubled: {double.account} {double.message_id} ({why})", markup=False, highlight=False)
    for note in result.notes[:10]:
        console.print(f"note: {note}", markup=False, highlight=False)
    for difference in result.differences[:10]:
        console.print(f"differs: {difference}", markup=False, highlight=False)
