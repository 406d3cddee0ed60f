"""Charts as inline SVG, and tables as CSV.

The Content-Security-Policy forbids style attributes, so charts use presentation attributes and the classes of site.css.
Pages show the numbers of every chart in a table beside it; screen readers get the chart as one labeled image.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from itertools import chain, islice
from typing import TYPE_CHECKING, Any
from unicodedata import east_asian_width

from fastapi.responses import StreamingResponse
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

_CHART_WIDTH, _ROW_HEIGHT, _VALUE_WIDTH = 640, 26, 130
"""Of a figure, in SVG units: its width, a row's height, the room for a row's number."""
_LETTER_WIDTH, _MIN_NAME_WIDTH, _MAX_NAME_WIDTH = 12.0, 120.0, 330.0
"""Of a letter on a phone, where owner.css enlarges the letters; the room for the names of rows."""


def interval_chart(
    rows: Sequence[tuple[str, Estimate]],
    title: str,
    low: float,
    high: float,
    band: tuple[float, float] | None = None,
    reference_line: float | None = None,
) -> Markup:
    """Draw estimates with their intervals as rows over a reference band or line.

    The scale goes from `low` to `high`, or further where an interval does: no end of a whisker is cut off.
    """
    ends = [end for _, estimate in rows for end in (estimate.low, estimate.value, estimate.high) if end is not None]
    low, high = min([low, *(math.floor(10 * end) / 10 for end in ends)]), max([high, *ends])
    names = [_truncate_name(name) for name, _ in rows]
    name_width = min(max([_MIN_NAME_WIDTH, *(_text_width(name) + 14 for name in names)]), _MAX_NAME_WIDTH)
    plot_width = _CHART_WIDTH - name_width - _VALUE_WIDTH
    height = _ROW_HEIGHT * len(rows) + 22

    def x(value: float) -> float:
        return round(name_width + plot_width * (min(max(value, low), high) - low) / (high - low), 1)

    parts: list[str] = []
    if band:
        start_x, end_x = map(x, band)
        parts.append(f'<rect x="{start_x}" y="0" width="{end_x - start_x:.1f}" height="{height - 20}" class="band"/>')
    if reference_line is not None:
        position = x(reference_line)
        parts.append(_line(position, position, 0, height - 20, 'class="axis" stroke-dasharray="3 3"'))
    for index, (name, (_, estimate)) in enumerate(zip(names, rows, strict=True)):
        y = _ROW_HEIGHT * index + _ROW_HEIGHT / 2
        parts.append(_text(name_width - 10, y + 4, name, "end"))
        if estimate.value is None:
            continue
        if estimate.low is not None and estimate.high is not None:
            parts.append(_line(x(estimate.low), x(estimate.high), y, y, 'class="whisker"'))
        parts.append(f'<circle cx="{x(estimate.value)}" cy="{y}" r="5" class="dot"/>')
        parts.append(_text(_CHART_WIDTH - _VALUE_WIDTH + 14, y + 4, percent(estimate.value)))
    parts += [_text(x(tick), height - 4, percent(tick, 0), "middle") for tick in (low, (low + high) / 2, high)]
    return _render_svg(parts, height, title)


def bar_chart(
    values: Sequence[float], names: Sequence[str], title: str, expected: Sequence[float] | None = None, digits: int = 0
) -> Markup:
    """Draw columns; `expected` values are lines across them."""
    height, baseline, max_height = 158, 130, 104
    max_value = max([*values, *(expected or ()), 1e-9])
    step = _CHART_WIDTH / max(len(values), 1)
    parts: list[str] = []
    label_interval = max(1, math.ceil(len(values) / 16))
    for index, (value, name) in enumerate(zip(values, names, strict=True)):
        bar_height = round(max_height * value / max_value, 1)
        start_x, center = round(step * index + step * 0.15, 1), round(step * (index + 0.5), 1)
        width = round(step * 0.7, 1)
        box = f'x="{start_x}" y="{baseline - bar_height}" width="{width}" height="{bar_height}"'
        parts.append(f'<rect {box} rx="2" class="bar"/>')
        top = baseline - bar_height
        if expected:
            y = round(baseline - max_height * expected[index] / max_value, 1)
            parts.append(_line(start_x - 3, start_x + width + 3, y, y, 'class="whisker"'))
            top = min(top, y)
        if value and len(values) <= 16:
            parts.append(_centered_text(center, round(top - 5, 1), decimal(value, digits)))
        if index % label_interval == 0:
            # on narrow screens the style sheet hides every second name of a long chart
            is_second = len(values) > 8 and index // label_interval % 2
            parts.append(_centered_text(center, height - 10, name, ' class="second"' if is_second else ""))
    parts.append(_line(0, _CHART_WIDTH, baseline, baseline, 'class="axis"'))
    return _render_svg(parts, height, title)


def _text(x: float, y: float, text: str, anchor: str = "", attributes: str = "") -> str:
    anchor = f' text-anchor="{anchor}"' if anchor else ""
    return f'<text x="{x}" y="{y}"{anchor}{attributes}>{escape(text)}</text>'


def _centered_text(x: float, y: float, text: str, attributes: str = "") -> str:
    """Return a text around `x`, or at the side where a phone's larger letters would leave the chart."""
    half = _text_width(text) / 2
    if x < half:
        return _text(0, y, text, "start", attributes)
    if x > _CHART_WIDTH - half:
        return _text(_CHART_WIDTH, y, text, "end", attributes)
    return _text(x, y, text, "middle", attributes)


def _text_width(text: str) -> float:
    """Estimate the room for a text on a phone; letters of East Asian scripts are twice as wide."""
    return _LETTER_WIDTH * sum(2 if east_asian_width(letter) in "WF" else 1 for letter in text)


def _line(x1: float, x2: float, y1: float, y2: float, attributes: str) -> str:
    return f'<line x1="{x1}" x2="{x2}" y1="{y1}" y2="{y2}" {attributes}/>'


def heat_class(value: float | None) -> str:
    """Return the CSS class of a share: `shade-0` (half and below) to `shade-8` (90 % and above)."""
    return "" if value is None or math.isnan(value) else f"shade-{min(max(int((value - 0.5) * 20), 0), 8)}"


def win_rate_class(value: float | None) -> str:
    """Return the CSS class of a win rate: `shade-0` to `shade-8`, `shade-3` is even."""
    thresholds = (0.3, 0.4, 0.47, 0.53, 0.6, 0.7, 0.8, 0.9)
    return "" if value is None else f"shade-{sum(value >= end for end in thresholds)}"


def _render_svg(parts: Iterable[str], height: float, title: str) -> Markup:
    label = escape(title)
    size = f'viewBox="0 0 {_CHART_WIDTH} {height:g}" width="{_CHART_WIDTH}" height="{height:g}"'
    svg = f'<svg class="chart" {size} role="img" aria-label="{label}"><title>{label}</title>{"".join(parts)}</svg>'
    return Markup(f'<div class="scroll">{svg}</div>')


def _truncate_name(text: str) -> str:
    room = _MAX_NAME_WIDTH - 14
    if _text_width(text) <= room:
        return text
    while text and _text_width(f"{text}…") > room:
        text = text[:-1]
    return f"{text}…"


_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""First characters of a cell that a spreadsheet runs as a formula, their full-width forms included."""


_CSV_ROWS_PER_CHUNK = 200


def csv_download(name: str, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> StreamingResponse:
    """Return a CSV file (RFC 4180) that spreadsheets read as UTF-8, because of its byte-order mark.

    Rows are sent while they are read. The first one is read here, so that a statement that fails is answered by a page.
    Text that a spreadsheet would run as a formula gets an apostrophe in front.
    """
    remaining_rows = iter(rows)
    all_rows = chain(list(islice(remaining_rows, 1)), remaining_rows)

    def iter_chunks() -> Iterator[bytes]:
        yield _format_csv([header]).encode("utf-8-sig")
        while chunk := list(islice(all_rows, _CSV_ROWS_PER_CHUNK)):
            yield _format_csv([_csv_cell(value) for value in row] for row in chunk).encode("utf-8", "replace")

    headers = {"Content-Disposition": f'attachment; filename="{name}.csv"'}
    return StreamingResponse(iter_chunks(), media_type="text/csv; charset=utf-8", headers=headers)


def _format_csv(rows: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\r\n").writerows(rows)
    return text.getvalue()


def csv_time(time_ms: int) -> str:
    """Return a time in UTC as spreadsheets recognize it."""
    return f"{datetime.fromtimestamp(time_ms / 1000, UTC):%Y-%m-%d %H:%M:%S}"


def _csv_cell(value: Any) -> Any:
    if isinstance(value, float):
        return "" if math.isnan(value) else repr(value)
    if isinstance(value, str):
        # A leading space does not keep a spreadsheet from running a formula; a NUL ends the file for some readers.
        text = value.replace("\0", "")
        return "'" + text if text.lstrip(" ").startswith(_FORMULA_STARTS) else text
    return "" if value is None else value
