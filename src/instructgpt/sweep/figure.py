"""The figure of a sweep: a panel a metric with the mean, every seed as a dot, the interval, and the paper in gray."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import pairwise
from pathlib import Path
from typing import Any

from instructgpt.io import write_text_atomic
from instructgpt.report.naming import MODEL_COLORS, condition_name, metric_name, model_name, task_name
from instructgpt.report.svg import MUTED_COLOR, create_axes, export_svg, render_svg_file
from instructgpt.sweep.cells import Axis
from instructgpt.sweep.paper_readings import PAPER_FIGURES, PaperCurve
from instructgpt.sweep.table import CellRow, format_value, mean_over_seeds, to_value

_COLORS = ("#2a9d6f", "#d9652e", "#3f88c5", "#b58a2c", "#7b6fc4", "#b9508a")
_LOG_RATIO = 8.0
"""Values that span more than this factor are drawn on a logarithmic axis."""


@dataclass(frozen=True, slots=True)
class SeedCurve:
    """A line of a panel: at each place on the horizontal axis the values of all seeds."""

    metric: str
    label: str
    color: str
    places: Sequence[float]
    values: Sequence[Sequence[float]]


def write_figure(
    path: Path,
    rows: Sequence[CellRow],
    axes: Sequence[Axis],
    metrics: Sequence[str],
    paper_figure: int | None = None,
    recipe_choice: float | None = None,
) -> bool:
    """Draw every metric pattern that a finished cell has; return whether there was one.

    Args:
        path: the SVG file.
        rows: those of sweep.jsonl.
        axes: the first is the horizontal axis, combinations of the others are curves.
        metrics: patterns; all metrics that match one are curves of its panel.
        paper_figure: the figure whose readings are drawn behind.
        recipe_choice: the recipe's value of what that figure varies.
    """
    cells = [row for row in rows if row["state"] == "done" and not row["fresh"]]
    placing = Placing([to_value(value) for value in axes[0].values])
    panels, legend = [], dict[str, str]()
    for pattern in metrics:
        curves = _collect_curves(cells, axes, placing, pattern)
        if curves:
            paper = _find_paper_curve(paper_figure, pattern, recipe_choice)
            panels.append(_render_panel(_panel_title(pattern), curves, axes[0].name, placing, paper))
            legend |= {curve.label: curve.color for curve in curves if curve.label}
    if panels:
        title = f"{', '.join(axis.name for axis in axes)}: mean, every seed, 95 % interval"
        if paper_figure:
            title += f"; gray, right axis: the paper's Figure {paper_figure}, read by eye"
        entries = [(label, color, False) for label, color in legend.items()] if len(legend) > 1 else []
        write_text_atomic(path, render_svg_file(title, panels, entries, columns=min(3, len(panels))))
    return bool(panels)


class Placing:
    """Where the values of an axis stand: on a logarithmic or linear axis, or side by side where they are no numbers."""

    def __init__(self, values: Sequence[float | str]) -> None:
        self.values = list(values)
        numbers = [value for value in values if isinstance(value, float)]
        self.is_numeric = len(numbers) == len(values)
        positive = sorted(number for number in numbers if number > 0)
        self.is_log = self.is_numeric and len(positive) > 1 and positive[-1] / positive[0] > _LOG_RATIO
        self.is_log = self.is_log and min(numbers) >= 0
        step = min((b / a for a, b in pairwise(positive)), default=2.0) if self.is_log else 1.0
        self._zero = positive[0] / max(step, 2.0) if self.is_log else 0.0

    def place(self, value: float | str) -> float:
        """Return the coordinate of a value; 0 stands left of the smallest one on a logarithmic axis."""
        if not self.is_numeric:
            return float(self.values.index(value))
        number = float(value)
        return self._zero if self.is_log and number == 0 else number


def _collect_curves(rows: Sequence[CellRow], axes: Sequence[Axis], placing: Placing, pattern: str) -> list[SeedCurve]:
    names = sorted({name for row in rows for name in row["metrics"] if fnmatchcase(name, pattern)})
    groups: dict[tuple[str, str], dict[float, list[float]]] = {}
    for name in names:
        for row in rows:
            if (value := row["metrics"].get(name)) is not None and math.isfinite(value):
                combination = ", ".join(f"{axis.option} {format_value(row['values'][axis.name])}" for axis in axes[1:])
                points = groups.setdefault((name, combination), {})
                points.setdefault(placing.place(row["values"][axes[0].name]), []).append(value)
    curves = []
    for position, ((name, combination), points) in enumerate(groups.items()):
        model = _model_of(name)
        label = ", ".join(part for part in (model_name(model) if len(names) > 1 else "", combination) if part)
        color = MODEL_COLORS.get(model, _COLORS[0]) if not combination else _COLORS[position % len(_COLORS)]
        places = sorted(points)
        curves.append(SeedCurve(name, label, color, places, [points[place] for place in places]))
    return curves


def _model_of(name: str) -> str:
    """Return the model or stage that a metric of sweep.jsonl is about."""
    parts = name.split(":")
    return parts[2] if len(parts) > 2 else parts[0]


def _panel_title(pattern: str) -> str:
    evaluation, *details = pattern.split(":")
    if len(details) < 2:
        model = "" if "*" in evaluation else f"{model_name(evaluation)}: "
        return model + (details[0] if details else "")
    parts = (task_name(evaluation), metric_name(details[0]), *map(condition_name, details[2:]))
    return ", ".join(part for part in parts if part and "*" not in part)


def _find_paper_curve(number: int | None, pattern: str, recipe_choice: float | None) -> tuple[PaperCurve, float] | None:
    """Return the paper's curve for a panel, and the factor from its horizontal axis to ours."""
    figure = PAPER_FIGURES.get(number or 0)
    if figure is None:
        return None
    factor = recipe_choice / figure.choice if figure.choice and recipe_choice else 1.0
    return next(((curve, factor) for name, curve in figure.curves if name == pattern), None)


def _render_panel(
    title: str, curves: Sequence[SeedCurve], xlabel: str, placing: Placing, paper: tuple[PaperCurve, float] | None
) -> str:
    ax, canvas = create_axes(title, left_margin=44, height=200, bottom_margin=36)
    if paper is not None:
        _draw_paper(ax, *paper)
    for curve in curves:
        means = [mean_over_seeds(curve.metric, values) for values in curve.values]
        ax.plot(curve.places, [estimate.value for estimate in means], color=curve.color, linewidth=1.6, zorder=3)
        for place, values, estimate in zip(curve.places, curve.values, means, strict=True):
            ax.plot([place] * len(values), values, "o", color=curve.color, markersize=4, alpha=0.7, zorder=4)
            if estimate.low is not None and estimate.high is not None:
                ax.vlines(place, estimate.low, estimate.high, color=curve.color, linewidth=1.2, alpha=0.8, zorder=3)
    _set_horizontal_axis(ax, placing)
    ax.set_xlabel(xlabel, fontsize=9, labelpad=2)
    ax.locator_params(axis="y", nbins=5)
    return export_svg(canvas, title)


def _set_horizontal_axis(ax: Any, placing: Placing) -> None:
    if placing.is_log:
        ax.set_xscale("log")
    ticks = [placing.place(value) for value in placing.values]
    ax.set_xticks(ticks, [format_value(value) for value in placing.values], minor=False)
    ax.set_xticks([], [], minor=True)
    if len(ticks) > 6:
        ax.tick_params(axis="x", labelsize=7)


def _draw_paper(ax: Any, curve: PaperCurve, factor: float) -> None:
    """Draw the paper's readings behind, on a vertical axis of their own."""
    behind = ax.twinx()
    behind.set_zorder(ax.get_zorder() - 1)
    ax.patch.set_visible(False)
    x, y = [factor * x for x, _ in curve.points], [y for _, y in curve.points]
    behind.plot(x, y, "s--", color=MUTED_COLOR, linewidth=1, markersize=4, alpha=0.5)
    label = f"paper: {curve.ylabel} (right)"
    behind.text(1, 1.01, label, transform=behind.transAxes, ha="right", va="bottom", color=MUTED_COLOR, fontsize=8)
    behind.tick_params(labelsize=8, length=0, pad=2, labelcolor=MUTED_COLOR)
    behind.locator_params(axis="y", nbins=4)
    for side in ("top", "right", "left", "bottom"):
        behind.spines[side].set_visible(False)
    x_start, bottom, width, height = ax.get_position().bounds
    for axes in (ax, behind):
        axes.set_position((x_start, bottom, width - 0.08, height - 0.05))
