"""Numbers as people read them, tables as CSV, and figures as inline SVG.

A page may hold no style attribute (Content-Security-Policy), so figures say everything by presentation attributes and the classes of the
site's style sheet. Every figure has its numbers in a table beside it; for a screen reader it is one labelled picture.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from fastapi import Response
from markupsafe import Markup, escape

# Templates call these as attributes of this module.
from instructgpt.formatting import date as date
from instructgpt.formatting import date_time as date_time
from instructgpt.formatting import decimal as decimal
from instructgpt.formatting import decimal_interval as decimal_interval
from instructgpt.formatting import format_p_value as format_p_value
from instructgpt.formatting import hours as hours
from instructgpt.formatting import percent as percent
from instructgpt.formatting import percent_interval as percent_interval

if TYPE_CHECKING:
    from instructgpt.statistics.intervals import Estimate

_CHART_WIDTH, _ROW_HEIGHT, _NAME_WIDTH, _VALUE_WIDTH = 640, 26, 190, 130
"""Of a figure, in SVG units: its width, a row's height, the room for a row's name and for its number."""


def interval_chart(
    rows: Sequence[tuple[str, Estimate]],
    title: str,
    low: float,
    high: float,
    band: tuple[float, float] | None = None,
    reference_line: float | None = None,
) -> Markup:
    """Numbers with their intervals, one below the other on a scale from `low` to `high`, over a reference band or line."""
    plot_width = _CHART_WIDTH - _NAME_WIDTH - _VALUE_WIDTH
    height = _ROW_HEIGHT * len(rows) + 22

    def x(value: float) -> float:
        return round(_NAME_WIDTH + plot_width * (min(max(value, low), high) - low) / (high - low), 1)

    parts: list[str] = []
    if band:
        band_left, band_right = map(x, band)
        parts.append(
            f'<rect x="{band_left}" y="0" width="{band_right - band_left:.1f}" height="{height - 20}" class="band"/>'
        )
    if reference_line is not None:
        parts.append(
            f'<line x1="{x(reference_line)}" x2="{x(reference_line)}" y1="0" y2="{height - 20}" class="axis" stroke-dasharray="3 3"/>'
        )
    for index, (name, estimate) in enumerate(rows):
        y = _ROW_HEIGHT * index + _ROW_HEIGHT / 2
        parts.append(
            f'<text x="{_NAME_WIDTH - 10}" y="{y + 4}" text-anchor="end">{escape(_truncate_name(name))}</text>'
        )
        if estimate.value is None:
            continue
        if estimate.low is not None and estimate.high is not None:
            parts.append(f'<line x1="{x(estimate.low)}" x2="{x(estimate.high)}" y1="{y}" y2="{y}" class="whisker"/>')
        parts.append(f'<circle cx="{x(estimate.value)}" cy="{y}" r="5" class="dot"/>')
        parts.append(f'<text x="{_CHART_WIDTH - _VALUE_WIDTH + 14}" y="{y + 4}">{percent(estimate.value)}</text>')
    ticks = (low, (low + high) / 2, high)
    parts += [f'<text x="{x(tick)}" y="{height - 4}" text-anchor="middle">{percent(tick, 0)}</text>' for tick in ticks]
    return _render_svg(parts, height, title)


def bar_chart(
    values: Sequence[float], names: Sequence[str], title: str, expected: Sequence[float] | None = None, digits: int = 0
) -> Markup:
    """Columns side by side; `marks` are drawn across them as what would be expected."""
    height, baseline = 150, 122
    max_value = max([*values, *(expected or ()), 1e-9])
    step = _CHART_WIDTH / max(len(values), 1)
    parts: list[str] = []
    label_interval = max(1, math.ceil(len(values) / 16))
    for index, (value, name) in enumerate(zip(values, names, strict=True)):
        bar_height = round((baseline - 18) * value / max_value, 1)
        bar_left, bar_width = round(step * index + step * 0.15, 1), round(step * 0.7, 1)
        bar_center = round(step * (index + 0.5), 1)
        parts.append(
            f'<rect x="{bar_left}" y="{baseline - bar_height}" width="{bar_width}" height="{bar_height}" rx="2" class="bar"/>'
        )
        if expected:
            y = round(baseline - (baseline - 18) * expected[index] / max_value, 1)
            parts.append(
                f'<line x1="{bar_left - 3}" x2="{bar_left + bar_width + 3}" y1="{y}" y2="{y}" class="whisker"/>'
            )
        if value and len(values) <= 16:
            value_text = decimal(value, digits)
            parts.append(
                f'<text x="{bar_center}" y="{baseline - bar_height - 5}" text-anchor="middle">{value_text}</text>'
            )
        if index % label_interval == 0:
            second_line_class = ' class="second"' if len(values) > 8 and index // label_interval % 2 else ""
            parts.append(
                f'<text x="{bar_center}" y="{height - 10}" text-anchor="middle"{second_line_class}>{escape(name)}</text>'
            )
    parts.append(f'<line x1="0" x2="{_CHART_WIDTH}" y1="{baseline}" y2="{baseline}" class="axis"/>')
    return _render_svg(parts, height, title)


def heat_class(value: float | None) -> str:
    """The class of a cell of a matrix of shares: `shade-0` (half and below) to `shade-8` (90 % and above)."""
    return "" if value is None or math.isnan(value) else f"shade-{min(max(int((value - 0.5) * 20), 0), 8)}"


def win_rate_class(value: float | None) -> str:
    """The class of a cell of a matrix of win rates: `shade-3` is even."""
    thresholds = (0.3, 0.4, 0.47, 0.53, 0.6, 0.7, 0.8, 0.9)
    return "" if value is None else f"shade-{sum(value >= end for end in thresholds)}"


def _render_svg(parts: Iterable[str], height: float, title: str) -> Markup:
    """A picture as wide as its place."""
    escaped_title = escape(title)
    return Markup(
        f'<div class="scroll"><svg class="chart" viewBox="0 0 {_CHART_WIDTH} {height:g}" width="{_CHART_WIDTH}" height="{height:g}" role="img" '
        f'aria-label="{escaped_title}">'
        f"<title>{escaped_title}</title>{''.join(parts)}</svg></div>"
    )


def _truncate_name(text: str, max_length: int = 26) -> str:
    """A name that fits beside a figure."""
    return text if len(text) <= max_length else text[: max_length - 1] + "…"


def csv_download(name: str, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> Response:
    """A table as a CSV file to download. Text that a spreadsheet would take for a formula gets an apostrophe in front."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    for row in rows:
        writer.writerow([_csv_cell(value) for value in row])
    headers = {"Content-Disposition": f'attachment; filename="{name}.csv"'}
    return Response(text.getvalue(), media_type="text/csv; charset=utf-8", headers=headers)


def _csv_cell(value: Any) -> Any:
    """One value of a CSV file."""
    if isinstance(value, float):
        return "" if math.isnan(value) else repr(value)
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r"):
        return "'" + value
    return "" if value is None else value
