"""The figure of the scaling laws: the truth over d with the fitted laws, and the coefficients by size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from instructgpt.formatting import format_si
from instructgpt.io import write_text_atomic
from instructgpt.report.svg import MUTED_COLOR, create_axes, export_svg, render_svg_file
from instructgpt.sweep.scaling_laws import LAWS, CellCurve, mean_fit

_COLORS = ("#b58a2c", "#2a9d6f", "#3f88c5", "#7b6fc4", "#b9508a", "#d9652e")
_LABEL_HEIGHT = 0.06
"""Of a label, as a share of an axis."""
_METHODS = {"best_of_n": "best of n", "ppo": "PPO", "ppo_ptx": "PPO-ptx"}


def write_laws_figure(path: Path, cells: Sequence[CellCurve]) -> None:
    """Draw the setting with the most cells of each method: a panel a number of ranked prompts, then coefficients."""
    panels: list[str] = []
    sizes = sorted({cell.size for cell in cells})
    colors = {size: _COLORS[index % len(_COLORS)] for index, size in enumerate(sizes)}
    for method in _METHODS:
        settings: dict[tuple[Any, ...], list[CellCurve]] = {}
        for cell in cells:
            if cell.row["method"] == method:
                settings.setdefault(cell.setting, []).append(cell)
        if settings:
            largest = max(settings.values(), key=len)
            panels += _draw_curves(method, largest, colors)
            if len({cell.size for cell in largest}) > 2:  # of two sizes the table says as much
                panels += _draw_coefficients(method, largest)
    title = "Truth over √KL, by parameters" if len(sizes) > 1 else "Truth over √KL"
    legend = [(format_si(size, "").strip(), colors[size], False) for size in sizes] if len(sizes) > 1 else []
    write_text_atomic(path, render_svg_file(title, panels, legend, columns=min(3, len(panels))))


def _draw_curves(method: str, cells: Sequence[CellCurve], colors: dict[int, str]) -> list[str]:
    """Draw truth (solid), fitted law (dotted) and proxy (thin) by size; a panel a number of ranked prompts."""
    panels = []
    for prompts in sorted({cell.prompts for cell in cells}):
        title = f"{_METHODS[method]}: {prompts} ranked prompts"
        ax, canvas = create_axes(title, left_margin=40, height=200, bottom_margin=36)
        for size in sorted({cell.size for cell in cells if cell.prompts == prompts}):
            group = [cell for cell in cells if cell.prompts == prompts and cell.size == size]
            d, truth, fit = mean_fit(group, LAWS[method])
            proxy = np.mean([cell.proxy.mean(0)[: len(d)] for cell in group], axis=0)
            smooth = np.linspace(0, float(d[-1]), 80)
            ax.plot(d, proxy, color=colors[size], linewidth=1, alpha=0.8, linestyle="--")
            ax.plot(smooth, fit.predict(smooth), color=colors[size], linewidth=1, linestyle=":")
            ax.plot(d, truth, "o-", color=colors[size], linewidth=1.6, markersize=3)
        ax.axhline(0, color=MUTED_COLOR, linewidth=0.6, alpha=0.5)
        ax.set_xlabel("√KL; dots: truth, dotted: law, dashed: proxy", fontsize=8, labelpad=2)
        ax.locator_params(axis="both", nbins=5)
        panels.append(export_svg(canvas, title))
    return panels


def _draw_coefficients(method: str, cells: Sequence[CellCurve]) -> list[str]:
    """Draw both coefficients over the reward model's size: every cell as a dot, a line a number of ranked prompts."""
    panels, law = [], LAWS[method]
    sizes = sorted({cell.size for cell in cells})
    for index, name in enumerate(("α", "β")):
        title = f"{_METHODS[method]}: {name} by parameters"
        ax, canvas = create_axes(title, left_margin=40, height=200, bottom_margin=36)
        ends: list[tuple[float, int, str]] = []
        for order, prompts in enumerate(sorted({cell.prompts for cell in cells})):
            points = {
                size: [
                    float(cell.coefficients(law).mean(0)[index])
                    for cell in cells
                    if cell.prompts == prompts and cell.size == size
                ]
                for size in sizes
            }
            measured = [size for size in sizes if points[size]]
            shade = str(0.65 - 0.5 * order / max(1, len({cell.prompts for cell in cells}) - 1))
            ax.plot(measured, [fmean(points[size]) for size in measured], color=shade, linewidth=1.4)
            for size in measured:
                ax.plot([size] * len(points[size]), points[size], "o", color=shade, markersize=3.5)
            ends.append((fmean(points[measured[-1]]), measured[-1], f"{prompts}"))
        ax.set_xscale("log")
        ax.set_xlim(sizes[0] / 1.2, sizes[-1] * 1.2 * (sizes[-1] / sizes[0]) ** 0.08)  # room for the labels
        _label_ends(ax, ends)
        ax.set_xticks(sizes, [format_si(size, "").strip() for size in sizes], minor=False)
        ax.set_xticks([], [], minor=True)
        ax.set_xlabel("parameters without embeddings; a line a number of prompts", fontsize=8, labelpad=2)
        ax.locator_params(axis="y", nbins=5)
        panels.append(export_svg(canvas, title))
    return panels


def _label_ends(ax: Any, ends: Sequence[tuple[float, int, str]]) -> None:
    """Write a label right of the end of each line, (y, x, text), none over another."""
    bottom, top = ax.get_ylim()
    next_free = -math.inf
    for y, x, text in sorted(ends):
        height = max(y, next_free)
        ax.annotate(text, (x, height), (5, 0), textcoords="offset points", va="center", fontsize=7, color=MUTED_COLOR)
        next_free = height + _LABEL_HEIGHT * (top - bottom)
