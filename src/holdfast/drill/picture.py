"""Draws a timeline as SVG: acceptances, lag, outages and phases over one axis. Colours come from the page's CSS."""

from __future__ import annotations

import html
import math
from typing import Final

from holdfast.drill.timeline import BIN_SECONDS, Span, Timeline

WIDTH: Final = 1000
LEFT: Final = 64
"""Room for the lanes' names and the axes' figures."""
RIGHT: Final = 16
GAP: Final = 18
BARS_HEIGHT: Final = 110
LAG_HEIGHT: Final = 70
STRIP_HEIGHT: Final = 22
COLUMNS_MAX: Final = 460
"""More columns than this are too thin to see: bins are then added up."""
NARROW_WIDTH: Final = 14.0
"""Phases narrower than this are left to the picture of the window that matters."""
LETTER_WIDTH: Final = 6.2
"""Of the 11 px labels, about; to know what fits."""


def svg(timeline: Timeline, window: tuple[float, float] | None = None) -> str:
    """The picture of *window* (seconds; all of it by default) as one ``<svg>`` element."""
    begin, end = window or (0.0, max(timeline.seconds, BIN_SECONDS))
    return _Picture(timeline, begin, max(end, begin + BIN_SECONDS)).draw()


class _Picture:
    def __init__(self, timeline: Timeline, begin: float, end: float) -> None:
        self._timeline = timeline
        self._begin = begin
        self._end = end
        focus = timeline.focus
        self._thinnest = NARROW_WIDTH if focus and (begin, end) != focus else 0.0
        self._parts: list[str] = []
        self._lines: list[str] = []
        """Drawn first, to stand behind everything."""
        self._top = 22.0 * self._event_rows()

    def draw(self) -> str:
        self._columns("accepted", "SMTP accepted", self._timeline.accepted_per_bin)
        if any(self._timeline.operations_per_bin):
            self._columns("operations", "IMAP, DAV done", self._timeline.operations_per_bin, height=LAG_HEIGHT)
        if self._timeline.lag_ms:
            self._lag()
        for name in dict.fromkeys(span.name for span in self._timeline.spans if span.kind == "outage"):
            self._strip(name, [span for span in self._timeline.spans if span.kind == "outage" and span.name == name])
        phases = [span for span in self._timeline.spans if span.kind == "phase"]
        if phases:
            self._phases(phases)
        self._axis()
        self._events()
        label = f"Timeline from {self._begin:.1f} to {self._end:.1f} seconds"
        head = f'<svg viewBox="0 0 {WIDTH} {self._top:.0f}" role="img" aria-label="{label}">'
        return head + "".join([*self._lines, *self._parts]) + "</svg>"

    def _x(self, seconds: float) -> float:
        inside = min(max(seconds, self._begin), self._end)
        return LEFT + (inside - self._begin) / (self._end - self._begin) * (WIDTH - LEFT - RIGHT)

    def _text(self, x: float, y: float, text: str, classes: str = "") -> None:
        self._parts.append(f'<text x="{x:.1f}" y="{y:.1f}" class="{classes}">{html.escape(text)}</text>')

    def _frame(self, height: float, most: float, unit: str) -> None:
        """A lane's base line, its top line, and the figure that the top stands for."""
        bottom = self._top + height
        for y in (self._top, bottom):
            self._parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        self._text(LEFT - 6, self._top + 9, f"{most:g}{unit}", "figure")
        self._text(LEFT - 6, bottom, "0", "figure")

    def _columns(self, kind: str, name: str, bins: list[int], height: float = BARS_HEIGHT) -> None:
        first = int(self._begin / BIN_SECONDS)
        shown = bins[first : math.ceil(self._end / BIN_SECONDS)]
        together = max(1, math.ceil(len(shown) / COLUMNS_MAX))
        columns = [sum(shown[index : index + together]) for index in range(0, len(shown), together)]
        seconds = together * BIN_SECONDS
        most = _round_up(max(columns, default=0) or 1)
        self._title(f"{name}, per {seconds * 1000:.0f} ms")
        self._frame(height, most, "")
        bottom = self._top + height
        path: list[str] = []
        for index, count in enumerate(columns):
            if count:
                x = self._x((first + index * together) * BIN_SECONDS)
                width = max(0.6, self._x((first + (index + 1) * together) * BIN_SECONDS) - x - 0.5)
                rise = count / most * height
                path.append(f"M{x:.1f} {bottom:.1f}v{-rise:.1f}h{width:.1f}v{rise:.1f}z")
        self._parts.append(f'<path class="bar {kind}" d="{"".join(path)}"/>')
        self._top = bottom + GAP

    def _lag(self) -> None:
        samples = [(at, lag) for at, lag in self._timeline.lag_ms if self._begin <= at <= self._end]
        most = _round_up(max((lag for _, lag in samples), default=1.0) or 1.0)
        self._title("lag, captured to applied")
        self._frame(LAG_HEIGHT, most, " ms")
        bottom = self._top + LAG_HEIGHT
        points = " ".join(f"{self._x(at):.1f},{bottom - lag / most * LAG_HEIGHT:.1f}" for at, lag in _thinned(samples))
        if points:
            self._parts.append(f'<polyline class="lag" points="{points}"/>')
        self._top = bottom + GAP

    def _strip(self, name: str, outages: list[Span]) -> None:
        """One protocol: up, and down for how long."""
        y = self._top
        self._text(LEFT - 6, y + 15, name, "figure")
        width = WIDTH - LEFT - RIGHT
        self._parts.append(f'<rect class="up" x="{LEFT}" y="{y:.1f}" width="{width}" height="{STRIP_HEIGHT}" rx="3"/>')
        for outage in outages:
            if outage.end_seconds < self._begin or outage.begin_seconds > self._end:
                continue
            x, right = self._x(outage.begin_seconds), self._x(outage.end_seconds)
            lasted = f"{outage.end_seconds - outage.begin_seconds:.2f} s"
            self._parts.append(
                f'<rect class="down" x="{x:.1f}" y="{y:.1f}" width="{max(2.0, right - x):.1f}" '
                f'height="{STRIP_HEIGHT}" rx="3"><title>{html.escape(name)}: no answer for {lasted}</title></rect>'
            )
            if right - x > len(lasted) * LETTER_WIDTH + 8:
                self._text((x + right) / 2, y + 15, lasted, "on-down")
            else:
                self._text(right + 5, y + 15, lasted, "on-up")
        self._top = y + STRIP_HEIGHT + 5

    def _phases(self, phases: list[Span]) -> None:
        """Phases one below the other where they overlap or their names would."""
        self._top += 4
        rows: list[float] = []
        base = self._top
        for index, span in enumerate(phases):
            if span.end_seconds < self._begin or span.begin_seconds > self._end:
                continue
            x, right = self._x(span.begin_seconds), self._x(span.end_seconds)
            if right - x < self._thinnest:
                continue
            label = f"{span.name} {span.end_seconds - span.begin_seconds:.2f} s"
            inside = right - x > len(label) * LETTER_WIDTH + 10
            needed = right if inside else right + len(label) * LETTER_WIDTH + 10
            left = x if inside or needed <= WIDTH - RIGHT else x - len(label) * LETTER_WIDTH - 10
            row = next((number for number, used in enumerate(rows) if used <= left), len(rows))
            rows[row : row + 1] = [max(needed if left == x else right, right) + 2]
            y = base + row * (STRIP_HEIGHT + 3)
            self._parts.append(
                f'<rect class="phase p{index % 4}" x="{x:.1f}" y="{y:.1f}" width="{max(2.0, right - x):.1f}" '
                f'height="{STRIP_HEIGHT}" rx="3"><title>{html.escape(label)}</title></rect>'
            )
            if inside:
                self._text(x + 5, y + 15, label, "on-phase")
            else:
                self._text(right + 5 if left == x else left + 4, y + 15, label, "on-up")
        self._text(LEFT - 6, base + 15, "phases", "figure")
        self._top = base + max(1, len(rows)) * (STRIP_HEIGHT + 3)

    def _title(self, text: str) -> None:
        self._text(LEFT, self._top + 10, text, "lane")
        self._top += 18

    def _axis(self) -> None:
        y = self._top + 6
        self._parts.append(f'<path class="axis" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        step = _tick(self._end - self._begin)
        tick = math.ceil(self._begin / step) * step
        while tick <= self._end + 1e-9:
            x = self._x(tick)
            self._parts.append(f'<path class="axis" d="M{x:.1f} {y:.1f}v5"/>')
            self._text(x, y + 17, f"{tick:g} s", "tick")
            tick = round(tick + step, 6)
        self._bottom = y
        self._top = y + 24

    def _shown_events(self) -> list[tuple[float, str, str, bool]]:
        return [
            (event.at_seconds, event.name, event.detail, event.strong)
            for event in sorted(self._timeline.events, key=lambda event: event.at_seconds)
            if self._begin <= event.at_seconds <= self._end
        ]

    def _rows_of_events(self) -> list[tuple[int, float]]:
        """(row, x of the label) for each shown event, so that labels do not cover one another."""
        used: list[float] = []
        placed: list[tuple[int, float]] = []
        for at, name, _, _ in self._shown_events():
            width = len(name) * LETTER_WIDTH + 12
            x = min(self._x(at), WIDTH - RIGHT - width)
            row = next((number for number, right in enumerate(used) if right <= x), len(used))
            used[row : row + 1] = [x + width]
            placed.append((row, x))
        return placed

    def _event_rows(self) -> int:
        return max((row + 1 for row, _ in self._rows_of_events()), default=0)

    def _events(self) -> None:
        for (at, name, detail, strong), (row, label_x) in zip(
            self._shown_events(), self._rows_of_events(), strict=True
        ):
            x = self._x(at)
            y = 14 + 22 * row
            kind = "event strong" if strong else "event"
            hint = html.escape(f"{name} at {at:.2f} s {detail}".strip())
            self._lines.append(
                f'<path class="{kind}" d="M{x:.1f} {y + 4}V{self._bottom:.1f}"><title>{hint}</title></path>'
            )
            self._text(label_x, y, name, kind)


def _round_up(most: float) -> float:
    """The next 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(most))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= most - 1e-9)


def _tick(seconds: float) -> float:
    return next((step for step in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120) if seconds / step <= 12), 300)


def _thinned(samples: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most `COLUMNS_MAX` samples, of each group the worst: a peak must not vanish."""
    group = max(1, math.ceil(len(samples) / COLUMNS_MAX))
    return [
        max(samples[index : index + group], key=lambda sample: sample[1]) for index in range(0, len(samples), group)
    ]
