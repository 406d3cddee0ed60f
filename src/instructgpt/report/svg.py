"""Bar and line panels as small SVGs that use the page's font and colors, light or dark.

A figure is a row of panels, so it folds into one column on a phone.
"""

from __future__ import annotations

import html
import io
import re
import warnings
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from instructgpt.report.language import translate
from instructgpt.report.naming import MODEL_COLORS, NON_PERCENT_METRICS, format_metric_value, palette_css

_PANEL_WIDTH = 300  # of a panel, points
_FONT_SIZE = 10
_PANEL_GAP, _HEADER_HEIGHT = 16, 34  # of a file: between its panels, and above them
_MAX_LABEL_CHARS = 24  # letters of a label
_INK_COLOR, MUTED_COLOR, _LINE_COLOR = "#010101", "#020202", "#030303"
CSS_COLORS = {_INK_COLOR: "currentColor", MUTED_COLOR: "var(--muted, #767676)", _LINE_COLOR: "var(--line, #8884)"}
CSS_COLORS |= {color: f"var(--{model}, {color})" for model, color in MODEL_COLORS.items()}
"""Drawing colors -> CSS variables of the page."""

_MATPLOTLIB_SETTINGS: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "instructgpt",
    "text.parse_math": False,
    "axes.formatter.use_mathtext": False,
    "font.size": _FONT_SIZE,
    "axes.edgecolor": _LINE_COLOR,
    "text.color": _INK_COLOR,
    "axes.labelcolor": MUTED_COLOR,
    "xtick.color": _LINE_COLOR,
    "ytick.color": _LINE_COLOR,
    "xtick.labelcolor": MUTED_COLOR,
    "ytick.labelcolor": _INK_COLOR,
    "axes.unicode_minus": False,
    "path.simplify": True,
}


@dataclass(frozen=True, slots=True)
class Bar:
    """One model in a panel; `behind` is a wider gray bar."""

    label: str
    color: str
    value: float | None
    low: float | None = None
    high: float | None = None
    background_value: float | None = None


@dataclass(frozen=True, slots=True)
class Curve:
    """One curve, with a band if `low` and `high` are given."""

    label: str
    color: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    dashed: bool = False
    show_markers: bool = False


@dataclass(frozen=True, slots=True)
class ScatterPoint:
    """One model as a point, with an interval on each axis where there is one."""

    label: str
    color: str
    x: float
    y: float
    x_interval: tuple[float, float] | None = None
    y_interval: tuple[float, float] | None = None


def render_figure(panels: Sequence[str], legend: Sequence[tuple[str, str, bool]] = ()) -> str:
    """Place panels side by side under one legend of (label, color, dashed)."""
    legend_items = "".join(
        f'<li><i class="{"dashed" if dashed else "solid"}" '
        f'style="color:{CSS_COLORS.get(color, color)}"></i>{html.escape(label)}</li>'
        for label, color, dashed in legend
    )
    return (
        f'<ul class="legend">{legend_items}</ul>' if legend_items else ""
    ) + f'<div class="{"panels pairs" if len(panels) in (2, 4) else "panels"}">{"".join(panels)}</div>'


def render_svg_file(
    title: str, panels: Sequence[str], legend: Sequence[tuple[str, str, bool]], columns: int = 2
) -> str:
    """Render panels under a title and one legend as a standalone SVG file with its own light and dark colors."""
    sizes = [tuple(map(float, re.findall(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', panel)[0])) for panel in panels]
    panel_width = max(width for width, _ in sizes)
    row_heights = [max(height for _, height in sizes[i : i + columns]) for i in range(0, len(sizes), columns)]
    legend_items, x = (
        f'<text x="{_PANEL_GAP}" y="21.5" font-size="{_FONT_SIZE}" fill="var(--muted)">{html.escape(title)}</text>',
        _PANEL_GAP + 20 + 5.6 * len(title),
    )
    for label, color, dashed in legend:
        dash_attribute = ' stroke-dasharray="4 3"' if dashed else ""
        color = CSS_COLORS.get(color, color)
        legend_items += f'<path d="M{x:g} 18h18" style="stroke:{color}" stroke-width="2"{dash_attribute}/>'
        legend_items += (
            f'<text x="{x + 24:g}" y="21.5" font-size="{_FONT_SIZE}" fill="currentColor">{html.escape(label)}</text>'
        )
        x += 44 + 5.6 * len(label)
    placed_panels = ""
    for i, (panel, (width, height)) in enumerate(zip(panels, sizes, strict=True)):
        row, column = divmod(i, columns)
        geometry = (
            f'x="{_PANEL_GAP + column * (panel_width + _PANEL_GAP):g}" '
            f'y="{_HEADER_HEIGHT + sum(row_heights[:row]) + row * _PANEL_GAP:g}" width="{width:g}" height="{height:g}"'
        )
        placed_panels += panel.replace("<svg", f"<svg {geometry}", 1)
    width = columns * (panel_width + _PANEL_GAP) + _PANEL_GAP
    height = _HEADER_HEIGHT + sum(row_heights) + len(row_heights) * _PANEL_GAP
    style = f"{palette_css()} :root {{ color: var(--ink); font-family: ui-sans-serif, system-ui, sans-serif; }}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:g}" height="{height:g}" viewBox="0 0 {width:g} '
        f'{height:g}" role="img" '
        f'aria-label="{html.escape(title)}">'
        f'<style>{style}</style><rect width="100%" height="100%" rx="6" '
        f'fill="var(--page)"/>{legend_items}{placed_panels}</svg>\n'
    )


def render_bar_panel(
    title: str,
    bars: Sequence[Bar],
    *,
    metric: str = "",
    limits: tuple[float, float] | None = None,
    reference_line: float | None = None,
) -> str:
    """Render a bar for each entry with its 95 % interval; `reference_line` is dashed.

    If `limits` do not start at 0 (ratings, losses), dots replace bars, because bar lengths would mislead.
    """
    labels = [
        bar.label if len(bar.label) <= _MAX_LABEL_CHARS else bar.label[: _MAX_LABEL_CHARS - 1] + "…" for bar in bars
    ]
    left_margin = 14 + 5.6 * max(map(len, labels), default=0)
    low, high = limits or (0.0, _axis_maximum(bars, reference_line))
    ax, canvas = create_axes(title, left_margin=left_margin, height=46 + 23 * max(len(bars), 1), bottom_margin=20)
    y = np.arange(len(bars))[::-1]
    ax.set(xlim=(low, low + (high - low) * 1.17), ylim=(-0.6, len(bars) - 0.4), yticks=y, yticklabels=labels)
    ax.set_xticks(
        [x for x in MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high) if low <= x <= high * 1.001]
    )
    ax.xaxis.set_major_formatter(_tick_formatter(metric))
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x", color=_LINE_COLOR, linewidth=0.6)
    if reference_line is not None:
        ax.axvline(reference_line, color=MUTED_COLOR, linewidth=1, dashes=(4, 3))
    for y_position, bar in zip(y, bars, strict=True):
        _draw_bar(ax, float(y_position), bar, metric, low)
    return export_svg(canvas, title)


def _draw_bar(ax: Any, y_position: float, bar: Bar, metric: str, start: float) -> None:
    axis_length = ax.get_xlim()[1] - start
    if bar.value is None:
        ax.text(
            start + 0.01 * axis_length,
            y_position,
            translate("charts.not_available"),
            color=MUTED_COLOR,
            va="center",
            fontsize=_FONT_SIZE - 1.5,
        )
        return
    if bar.background_value is not None:
        ax.barh(y_position, bar.background_value - start, left=start, height=0.78, color=MUTED_COLOR, alpha=0.35)
    if start == 0:
        ax.barh(
            y_position, bar.value, height=0.44 if bar.background_value is not None else 0.62, color=bar.color, alpha=0.9
        )
    else:
        ax.plot([bar.value], [y_position], "o", color=bar.color, markersize=7)
    bar_end = max(bar.value, bar.background_value or bar.value)
    if bar.low is not None and bar.high is not None:
        ax.plot(
            [bar.low, bar.high],
            [y_position, y_position],
            color=_INK_COLOR,
            linewidth=1.2,
            solid_capstyle="butt",
            alpha=0.8,
        )
        bar_end = max(bar_end, bar.high)
    ax.text(
        bar_end + 0.015 * axis_length,
        y_position,
        format_metric_value(bar.value, metric),
        va="center",
        color=_INK_COLOR,
        fontsize=_FONT_SIZE - 1,
    )


def _axis_maximum(bars: Sequence[Bar], reference_line: float | None) -> float:
    ends = [end for bar in bars for end in (bar.value, bar.high, bar.background_value) if end is not None]
    return max([*ends, reference_line or 0]) or 1.0


def render_line_panel(
    title: str,
    curves: Sequence[Curve],
    xlabel: str,
    *,
    y_min: float | None = None,
    sizes: Sequence[float] = (),
    log_scale_y: bool = False,
    metric: str = "",
    x_metric: str = "",
) -> str:
    """Render curves over a common axis; `y_min` is the start of the vertical axis.

    With `sizes` the x axis is logarithmic with a tick at each size, and intervals are error bars. With `log_scale_y`
    power laws are straight lines. Axes of a `metric` have the unit of its numbers in tables.
    """
    ax, canvas = create_axes(title, left_margin=44, height=190, bottom_margin=36)
    for curve in curves:
        style = {"dashes": (3, 2)} if curve.dashed else {}
        ax.plot(
            curve.x,
            curve.y,
            color=curve.color,
            linewidth=1.6,
            marker="o" if curve.show_markers else None,
            markersize=3,
            **style,
        )
        if curve.low is not None and curve.high is not None and sizes:
            ax.vlines(curve.x, curve.low, curve.high, color=curve.color, linewidth=1.2, alpha=0.8)
        elif curve.low is not None and curve.high is not None:
            ax.fill_between(curve.x, curve.low, curve.high, color=curve.color, alpha=0.18, linewidth=0)
    ax.set_xlabel(xlabel, fontsize=_FONT_SIZE - 1, labelpad=2)
    if sizes:
        ax.set_xscale("log")
        ax.set_xlim(min(sizes) / 1.4, max(sizes) * 1.4)
        ax.set_xticks(list(sizes), [_format_log_tick(size) for size in sizes], minor=False)
        ax.xaxis.set_minor_locator(NullLocator())
    for axis, axis_metric in ((ax.yaxis, metric),) if sizes else ((ax.xaxis, x_metric), (ax.yaxis, metric)):
        axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        axis.set_major_formatter(_tick_formatter(axis_metric))
    if log_scale_y:
        ax.set_yscale("log")
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_minor_locator(NullLocator())
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _format_log_tick(value)))
    ax.grid(axis="y", color=_LINE_COLOR, linewidth=0.6)
    if y_min is not None:
        ax.set_ylim(bottom=y_min)
    return export_svg(canvas, title)


def render_scatter_panel(title: str, points: Sequence[ScatterPoint], xlabel: str, *, metric: str) -> str:
    """Render shares as points over both axes from 0 to 1, with their intervals and the dashed line x = y."""
    ax, canvas = create_axes(title, left_margin=44, height=230, bottom_margin=36)
    ax.plot([0, 1], [0, 1], color=MUTED_COLOR, linewidth=1, dashes=(3, 2))
    for point in points:
        if point.x_interval is not None:
            ax.hlines(point.y, *point.x_interval, color=point.color, linewidth=1.2, alpha=0.8)
        if point.y_interval is not None:
            ax.vlines(point.x, *point.y_interval, color=point.color, linewidth=1.2, alpha=0.8)
        ax.plot([point.x], [point.y], color=point.color, marker="o", markersize=5)
    ax.set_xlabel(xlabel, fontsize=_FONT_SIZE - 1, labelpad=2)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        axis.set_major_formatter(_tick_formatter(metric))
    ax.grid(color=_LINE_COLOR, linewidth=0.6)
    ax.set_xlim(-0.02, 1.06)
    ax.set_ylim(-0.02, 1.02)
    return export_svg(canvas, title)


def _tick_formatter(metric: str) -> FuncFormatter:
    """Return the format of an axis: shares in percent, as in tables."""
    is_share = bool(metric) and metric not in NON_PERCENT_METRICS
    return FuncFormatter(lambda value, _: f"{_format_tick(100 * value)}\u00a0%" if is_share else _format_tick(value))


def _format_log_tick(value: float) -> str:
    return f"{value / 1e9:g}B" if value >= 1e9 else f"{value / 1e6:g}M" if value >= 1e6 else f"{value:,.6g}"


def _format_tick(value: float) -> str:
    return f"{value / 1000:.6g}k" if abs(value) >= 1_000 else f"{round(value, 9):.6g}"


def create_axes(title: str, *, left_margin: float, height: float, bottom_margin: float) -> tuple[Any, FigureCanvasSVG]:
    """Create an empty panel with fixed margins in points."""
    with matplotlib.rc_context(_MATPLOTLIB_SETTINGS):
        canvas = FigureCanvasSVG(Figure(figsize=(_PANEL_WIDTH / 72, height / 72), facecolor="none"))
        ax = canvas.figure.add_axes(
            (
                left_margin / _PANEL_WIDTH,
                bottom_margin / height,
                (_PANEL_WIDTH - left_margin - 8) / _PANEL_WIDTH,
                (height - bottom_margin - 24) / height,
            ),
            facecolor="none",
        )
    canvas.figure.text(
        2 / _PANEL_WIDTH,
        1 - 5 / height,
        title,
        va="top",
        ha="left",
        color=_INK_COLOR,
        fontweight="bold",
        fontsize=_FONT_SIZE,
    )
    for side in ("top", "right", "left"):
        ax.spines[side].set_visible(False)
    ax.tick_params(labelsize=_FONT_SIZE - 1, length=0, pad=4)
    ax.set_axisbelow(True)
    return ax, canvas


def export_svg(canvas: FigureCanvasSVG, title: str) -> str:
    """Return the drawing as an `<svg>` element with page fonts and unique ids."""
    buffer = io.StringIO()
    with matplotlib.rc_context(_MATPLOTLIB_SETTINGS), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # letters that the layout font lacks: the reader's own font draws them
        canvas.figure.savefig(
            buffer,
            format="svg",
            transparent=True,
            metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
        )
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", text[text.index("<svg") :], flags=re.DOTALL)
    id_prefix = f"d{zlib.crc32(text.encode()):08x}"
    text = re.sub(r"<[^>]+>", lambda tag: _clean_svg_tag(tag[0], id_prefix), text)
    text = re.sub(r'<svg [^>]*viewBox="([^"]+)"[^>]*>', _svg_opening_tag(title), text, count=1)
    return re.sub(r"\s*<g/>|\s*<path d=\"[^\"]*\" style=\"fill: none\"/>", "", re.sub(r"\s*\n\s*", " ", text)).strip()


def _clean_svg_tag(tag: str, id_prefix: str) -> str:
    """Rewrite one tag: page colors and font, short numbers, prefixed ids."""
    tag = re.sub(
        r' id="(?:figure|axes|patch|text|line2d|xtick|ytick|matplotlib\.axis|[A-Z]\w*)_\d+"| transform="rotate\([^"]*"',
        "",
        tag,
    )
    tag = re.sub(r"(?<= id=\")|(?<=url\(#)|(?<=href=\"#)", id_prefix, tag).replace("xlink:href", "href")
    tag = re.sub(r"font-family: [^;\"]+;? ?", "", tag)
    tag = re.sub(r"(\d\.\d)\d+", r"\1", tag)
    for drawing_color, css_color in CSS_COLORS.items():
        tag = tag.replace(drawing_color, css_color)
    return tag


def _svg_opening_tag(title: str) -> str:
    name = html.escape(title).replace("\\", "\\\\")
    return rf'<svg viewBox="\1" role="img" aria-label="{name}">'
