"""Two kinds of panel, bars and lines, as small SVGs that follow the page: its font, its colours, light or dark.

A figure is a row of panels, so that it folds into one column on a phone.
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

from instructgpt.report.naming import COLOURS, PLAIN, number, palette

WIDTH = 300  # of a panel, points
FONT = 10
GAP, HEAD = 16, 34  # of a file: between its panels, and above them
LONGEST = 24  # letters of a label
INK, MUTED, LINE = "#010101", "#020202", "#030303"
FOLLOWING = {INK: "currentColor", MUTED: "var(--muted, #767676)", LINE: "var(--line, #8884)"}
FOLLOWING |= {colour: f"var(--{model}, {colour})" for model, colour in COLOURS.items()}
"""Colours in the drawing, and what the page puts in their place."""

SETTINGS: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "instructgpt",
    "text.parse_math": False,
    "axes.formatter.use_mathtext": False,
    "font.size": FONT,
    "axes.edgecolor": LINE,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": INK,
    "axes.unicode_minus": False,
    "path.simplify": True,
}


@dataclass(frozen=True, slots=True)
class Bar:
    """One model in a panel. `behind` is a wider gray bar at its back."""

    label: str
    colour: str
    value: float | None
    low: float | None = None
    high: float | None = None
    behind: float | None = None


@dataclass(frozen=True, slots=True)
class Line:
    """One curve of a panel, with its band where `low` and `high` are given."""

    label: str
    colour: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    dashed: bool = False
    points: bool = False


def figure(panels: Sequence[str], legend: Sequence[tuple[str, str, bool]] = ()) -> str:
    """Panels side by side, with one legend of (label, colour, dashed) above them."""
    keys = "".join(
        f'<li><i class="{"dashed" if dashed else "solid"}" style="color:{FOLLOWING.get(colour, colour)}"></i>{html.escape(label)}</li>'
        for label, colour, dashed in legend
    )
    return (
        f'<ul class="legend">{keys}</ul>' if keys else ""
    ) + f'<div class="{"panels pairs" if len(panels) in (2, 4) else "panels"}">{"".join(panels)}</div>'


def file(title: str, panels: Sequence[str], legend: Sequence[tuple[str, str, bool]], columns: int = 2) -> str:
    """Panels in rows under a title and one legend, as an SVG file that stands alone: it brings its own colours, light and dark."""
    sizes = [tuple(map(float, re.findall(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', panel)[0])) for panel in panels]
    wide, high = (max(size[i] for size in sizes) for i in (0, 1))
    keys, x = f'<text x="{GAP}" y="21.5" font-size="{FONT}" fill="var(--muted)">{html.escape(title)}</text>', GAP + 20 + 5.6 * len(title)
    for label, colour, dashed in legend:
        dashes = ' stroke-dasharray="4 3"' if dashed else ""
        colour = FOLLOWING.get(colour, colour)
        keys += f'<path d="M{x:g} 18h18" style="stroke:{colour}" stroke-width="2"{dashes}/>'
        keys += f'<text x="{x + 24:g}" y="21.5" font-size="{FONT}" fill="currentColor">{html.escape(label)}</text>'
        x += 44 + 5.6 * len(label)
    placed = ""
    for i, (panel, (width, height)) in enumerate(zip(panels, sizes, strict=True)):
        row, column = divmod(i, columns)
        at = f'x="{GAP + column * (wide + GAP):g}" y="{HEAD + row * (high + GAP):g}" width="{width:g}" height="{height:g}"'
        placed += panel.replace("<svg", f"<svg {at}", 1)
    rows = -(-len(panels) // columns)
    width, height = columns * (wide + GAP) + GAP, HEAD + rows * (high + GAP)
    style = f"{palette()} :root {{ color: var(--ink); font-family: ui-sans-serif, system-ui, sans-serif; }}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:g}" height="{height:g}" viewBox="0 0 {width:g} {height:g}" role="img" '
        f'aria-label="{html.escape(title)}">'
        f'<style>{style}</style><rect width="100%" height="100%" rx="6" fill="var(--page)"/>{keys}{placed}</svg>\n'
    )


def bars(
    title: str, entries: Sequence[Bar], *, metric: str = "", limits: tuple[float, float] | None = None, mark: float | None = None
) -> str:
    """One bar an entry with its 95 % interval; `mark` is a dashed line to compare with.

    Where `limits` do not start at 0 (ratings, losses) dots take the place of bars, because a bar's length would mean nothing.
    """
    labels = [entry.label if len(entry.label) <= LONGEST else entry.label[: LONGEST - 1] + "…" for entry in entries]
    left = 14 + 5.6 * max(map(len, labels), default=0)
    low, high = limits or (0.0, _top(entries, mark))
    ax, canvas = _axes(title, left=left, height=46 + 23 * max(len(entries), 1), bottom=20)
    y = np.arange(len(entries))[::-1]
    ax.set(xlim=(low, low + (high - low) * 1.17), ylim=(-0.6, len(entries) - 0.4), yticks=y, yticklabels=labels)
    ax.set_xticks([x for x in MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high) if low <= x <= high * 1.001])
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: number(x, metric) if metric and metric not in PLAIN else _tick(x)))
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x", color=LINE, linewidth=0.6)
    if mark is not None:
        ax.axvline(mark, color=MUTED, linewidth=1, dashes=(4, 3))
    for at, entry in zip(y, entries, strict=True):
        _bar(ax, float(at), entry, metric, low)
    return _svg(canvas, title)


def _bar(ax: Any, at: float, entry: Bar, metric: str, start: float) -> None:
    """One entry of `bars` at height `at`."""
    room = ax.get_xlim()[1] - start
    if entry.value is None:
        ax.text(start + 0.01 * room, at, "not available", color=MUTED, va="center", fontsize=FONT - 1.5)
        return
    if entry.behind is not None:
        ax.barh(at, entry.behind - start, left=start, height=0.78, color=MUTED, alpha=0.35)
    if start == 0:
        ax.barh(at, entry.value, height=0.44 if entry.behind is not None else 0.62, color=entry.colour, alpha=0.9)
    else:
        ax.plot([entry.value], [at], "o", color=entry.colour, markersize=7)
    end = max(entry.value, entry.behind or entry.value)
    if entry.low is not None and entry.high is not None:
        ax.plot([entry.low, entry.high], [at, at], color=INK, linewidth=1.2, solid_capstyle="butt", alpha=0.8)
        end = max(end, entry.high)
    ax.text(end + 0.015 * room, at, number(entry.value, metric), va="center", color=INK, fontsize=FONT - 1)


def _top(entries: Sequence[Bar], mark: float | None) -> float:
    """The largest thing a panel has to show."""
    ends = [end for entry in entries for end in (entry.value, entry.high, entry.behind) if end is not None]
    return max([*ends, mark or 0]) or 1.0


def lines(
    title: str, entries: Sequence[Line], xlabel: str, *, floor: float | None = None, sizes: Sequence[float] = (), powers: bool = False
) -> str:
    """Curves over a common axis; `floor` is where the vertical axis must begin.

    With `sizes` the axis is logarithmic, with a mark at each of them, and intervals are strokes at the points. With `powers`, too,
    the vertical one is as well, so that a power is a straight line.
    """
    ax, canvas = _axes(title, left=44, height=190, bottom=36)
    for entry in entries:
        style = {"dashes": (3, 2)} if entry.dashed else {}
        ax.plot(entry.x, entry.y, color=entry.colour, linewidth=1.6, marker="o" if entry.points else None, markersize=3, **style)
        if entry.low is not None and entry.high is not None and sizes:
            ax.vlines(entry.x, entry.low, entry.high, color=entry.colour, linewidth=1.2, alpha=0.8)
        elif entry.low is not None and entry.high is not None:
            ax.fill_between(entry.x, entry.low, entry.high, color=entry.colour, alpha=0.18, linewidth=0)
    ax.set_xlabel(xlabel, fontsize=FONT - 1, labelpad=2)
    if sizes:
        ax.set_xscale("log")
        ax.set_xlim(min(sizes) / 1.4, max(sizes) * 1.4)
        ax.set_xticks(list(sizes), [_size(size) for size in sizes], minor=False)
        ax.xaxis.set_minor_locator(NullLocator())
    for axis in (ax.yaxis,) if sizes else (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        axis.set_major_formatter(FuncFormatter(lambda value, _: _tick(value)))
    if powers:
        ax.set_yscale("log")
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_minor_locator(NullLocator())
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _size(value)))
    ax.grid(axis="y", color=LINE, linewidth=0.6)
    if floor is not None:
        ax.set_ylim(bottom=floor)
    return _svg(canvas, title)


def _size(value: float) -> str:
    """A number on a logarithmic axis: parameters in millions and billions."""
    return f"{value / 1e9:g}B" if value >= 1e9 else f"{value / 1e6:g}M" if value >= 1e6 else f"{value:,.6g}"


def _tick(value: float) -> str:
    """An axis label without the zeros that say nothing."""
    return f"{value / 1000:.6g}k" if abs(value) >= 1_000 else f"{round(value, 9):.6g}"


def _axes(title: str, *, left: float, height: float, bottom: float) -> tuple[Any, FigureCanvasSVG]:
    """An empty panel with its title; margins in points, so that nothing moves with the data."""
    with matplotlib.rc_context(SETTINGS):
        canvas = FigureCanvasSVG(Figure(figsize=(WIDTH / 72, height / 72), facecolor="none"))
        ax = canvas.figure.add_axes(
            (left / WIDTH, bottom / height, (WIDTH - left - 8) / WIDTH, (height - bottom - 24) / height), facecolor="none"
        )
    canvas.figure.text(2 / WIDTH, 1 - 5 / height, title, va="top", ha="left", color=INK, fontweight="bold", fontsize=FONT)
    for side in ("top", "right", "left"):
        ax.spines[side].set_visible(False)
    ax.tick_params(labelsize=FONT - 1, length=0, pad=4)
    ax.set_axisbelow(True)
    return ax, canvas


def _svg(canvas: FigureCanvasSVG, title: str) -> str:
    """The drawing as an `<svg>` element that belongs to the page: no fixed size, no font, no name that another drawing has too."""
    buffer = io.StringIO()
    with matplotlib.rc_context(SETTINGS), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # letters that the layout font lacks: the reader's own font draws them
        canvas.figure.savefig(
            buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
        )
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", text[text.index("<svg") :], flags=re.DOTALL)
    own = f"d{zlib.crc32(text.encode()):08x}"
    text = re.sub(r"<[^>]+>", lambda tag: _tidy(tag[0], own), text)
    text = re.sub(r'<svg [^>]*viewBox="([^"]+)"[^>]*>', _opening(title), text, count=1)
    return re.sub(r"\s*<g/>|\s*<path d=\"[^\"]*\" style=\"fill: none\"/>", "", re.sub(r"\s*\n\s*", " ", text)).strip()


def _tidy(tag: str, own: str) -> str:
    """One tag with the page's colours and font, shorter numbers, and names that start with `own`."""
    tag = re.sub(r' id="(?:figure|axes|patch|text|line2d|xtick|ytick|matplotlib\.axis|[A-Z]\w*)_\d+"| transform="rotate\([^"]*"', "", tag)
    tag = re.sub(r"(?<= id=\")|(?<=url\(#)|(?<=href=\"#)", own, tag).replace("xlink:href", "href")
    tag = re.sub(r"font-family: [^;\"]+;? ?", "", tag)
    tag = re.sub(r"(\d\.\d)\d+", r"\1", tag)
    for drawn, followed in FOLLOWING.items():
        tag = tag.replace(drawn, followed)
    return tag


def _opening(title: str) -> str:
    name = html.escape(title).replace("\\", "\\\\")
    return rf'<svg viewBox="\1" role="img" aria-label="{name}">'
