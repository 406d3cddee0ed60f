"""Numbers as people read them, tables as CSV, and figures as inline SVG.

A page may hold no style attribute (Content-Security-Policy), so figures say everything by presentation attributes and the classes of the
site's style sheet. Every figure has its numbers in a table beside it; for a screen reader it is one labelled picture.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from fastapi import Response
from markupsafe import Markup, escape

if TYPE_CHECKING:
    from instructgpt.statistics.intervals import Estimate

NONE = "–"
WIDTH, ROW, LABEL, ENDS = 640, 26, 190, 130
"""Of a figure, in SVG units: its width, a row's height, the room for a row's name and for its number."""


def percent(value: float | None, digits: int = 1) -> str:
    """0.726 -> `72.6 %`."""
    return NONE if value is None or math.isnan(value) else f"{100 * value:.{digits}f} %"


def number(value: float | None, digits: int = 2) -> str:
    """A plain number, thousands set apart."""
    return NONE if value is None or math.isnan(value) else f"{value:,.{digits}f}".replace(",", " ").replace("-", "−")


def chance(p: float | None) -> str:
    """A p-value; what is too small to tell apart is said to be below 0.001."""
    return NONE if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def percents(measured: Estimate | None) -> str:
    """A share with its interval: `72.6 % [71.1, 74.1]`."""
    if measured is None or measured.value is None:
        return NONE
    if measured.low is None or measured.high is None:
        return percent(measured.value)
    return f"{percent(measured.value)} [{100 * measured.low:.1f}, {100 * measured.high:.1f}]"


def numbers(measured: Estimate | None, digits: int = 2) -> str:
    """A number with its interval."""
    if measured is None or measured.value is None:
        return NONE
    if measured.low is None or measured.high is None:
        return number(measured.value, digits)
    return f"{number(measured.value, digits)} [{number(measured.low, digits)}, {number(measured.high, digits)}]"


def date(ms: int | float | None) -> str:
    """A day, UTC."""
    return NONE if ms is None else datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d")


def moment(ms: int | float | None) -> str:
    """A minute, UTC."""
    return NONE if ms is None else datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%M")


def hours(ms: float) -> str:
    """Milliseconds as hours and minutes: `3:20`."""
    minutes = round(ms / 60_000)
    return f"{minutes // 60}:{minutes % 60:02}"


def spans(
    rows: Sequence[tuple[str, Estimate]],
    title: str,
    low: float,
    high: float,
    band: tuple[float, float] | None = None,
    line: float | None = None,
) -> Markup:
    """Numbers with their intervals, one below the other on a scale from `low` to `high`, over a reference band or line."""
    room = WIDTH - LABEL - ENDS
    height = ROW * len(rows) + 22

    def x(value: float) -> float:
        return round(LABEL + room * (min(max(value, low), high) - low) / (high - low), 1)

    parts: list[str] = []
    if band:
        left, right = map(x, band)
        parts.append(f'<rect x="{left}" y="0" width="{right - left:.1f}" height="{height - 20}" class="band"/>')
    if line is not None:
        parts.append(f'<line x1="{x(line)}" x2="{x(line)}" y1="0" y2="{height - 20}" class="axis" stroke-dasharray="3 3"/>')
    for index, (name, measured) in enumerate(rows):
        y = ROW * index + ROW / 2
        parts.append(f'<text x="{LABEL - 10}" y="{y + 4}" text-anchor="end">{escape(shortened(name))}</text>')
        if measured.value is None:
            continue
        if measured.low is not None and measured.high is not None:
            parts.append(f'<line x1="{x(measured.low)}" x2="{x(measured.high)}" y1="{y}" y2="{y}" class="whisker"/>')
        parts.append(f'<circle cx="{x(measured.value)}" cy="{y}" r="5" class="dot"/>')
        parts.append(f'<text x="{WIDTH - ENDS + 14}" y="{y + 4}">{percent(measured.value)}</text>')
    ticks = (low, (low + high) / 2, high)
    parts += [f'<text x="{x(tick)}" y="{height - 4}" text-anchor="middle">{percent(tick, 0)}</text>' for tick in ticks]
    return svg(parts, height, title)


def columns(values: Sequence[float], names: Sequence[str], title: str, marks: Sequence[float] | None = None, digits: int = 0) -> Markup:
    """Columns side by side; `marks` are drawn across them as what would be expected."""
    height, floor = 150, 122
    top = max([*values, *(marks or ()), 1e-9])
    step = WIDTH / max(len(values), 1)
    parts: list[str] = []
    sparse = max(1, math.ceil(len(values) / 16))
    for index, (value, name) in enumerate(zip(values, names, strict=True)):
        tall = round((floor - 18) * value / top, 1)
        left, wide = round(step * index + step * 0.15, 1), round(step * 0.7, 1)
        middle = round(step * (index + 0.5), 1)
        parts.append(f'<rect x="{left}" y="{floor - tall}" width="{wide}" height="{tall}" rx="2" class="bar"/>')
        if marks:
            y = round(floor - (floor - 18) * marks[index] / top, 1)
            parts.append(f'<line x1="{left - 3}" x2="{left + wide + 3}" y1="{y}" y2="{y}" class="whisker"/>')
        if value and len(values) <= 16:
            shown = number(value, digits)
            parts.append(f'<text x="{middle}" y="{floor - tall - 5}" text-anchor="middle">{shown}</text>')
        if index % sparse == 0:
            second = ' class="second"' if len(values) > 8 and index // sparse % 2 else ""
            parts.append(f'<text x="{middle}" y="{height - 10}" text-anchor="middle"{second}>{escape(name)}</text>')
    parts.append(f'<line x1="0" x2="{WIDTH}" y1="{floor}" y2="{floor}" class="axis"/>')
    return svg(parts, height, title)


def shade(value: float | None) -> str:
    """The class of a cell of a matrix of shares: `shade-0` (half and below) to `shade-8` (90 % and above)."""
    return "" if value is None or math.isnan(value) else f"shade-{min(max(int((value - 0.5) * 20), 0), 8)}"


def win_shade(value: float | None) -> str:
    """The class of a cell of a matrix of win rates: `shade-3` is even."""
    ends = (0.3, 0.4, 0.47, 0.53, 0.6, 0.7, 0.8, 0.9)
    return "" if value is None else f"shade-{sum(value >= end for end in ends)}"


def svg(parts: Iterable[str], height: float, title: str) -> Markup:
    """A picture as wide as its place."""
    said = escape(title)
    return Markup(
        f'<div class="scroll"><svg class="chart" viewBox="0 0 {WIDTH} {height:g}" width="{WIDTH}" height="{height:g}" role="img" '
        f'aria-label="{said}">'
        f"<title>{said}</title>{''.join(parts)}</svg></div>"
    )


def shortened(text: str, most: int = 26) -> str:
    """A name that fits beside a figure."""
    return text if len(text) <= most else text[: most - 1] + "…"


def table(name: str, head: Sequence[str], rows: Iterable[Sequence[Any]]) -> Response:
    """A table as a CSV file to download. Text that a spreadsheet would take for a formula gets an apostrophe in front."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    for row in rows:
        writer.writerow([cell(value) for value in row])
    headers = {"Content-Disposition": f'attachment; filename="{name}.csv"'}
    return Response(text.getvalue(), media_type="text/csv; charset=utf-8", headers=headers)


def cell(value: Any) -> Any:
    """One value of a CSV file."""
    if isinstance(value, float):
        return "" if math.isnan(value) else repr(value)
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r"):
        return "'" + value
    return "" if value is None else value
