"""Fit the scaling laws of over-optimization to measurements of many reward models.

A setting is what cells have in common besides the size of the reward model, the number of its ranked prompts and the
seed: the method, the noise of labelers, completions of a ranking, and PPO's options. Within a setting, each cell has a
curve; its coefficients are a linear model of both sizes and of seeds.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from instructgpt.errors import InputError
from instructgpt.run.directory import console
from instructgpt.statistics import intervals
from instructgpt.statistics.arrays import BoolArray, FloatArray
from instructgpt.statistics.intervals import Estimate
from instructgpt.statistics.least_squares import fit_least_squares
from instructgpt.statistics.overoptimization import (
    FORMS,
    CurveFit,
    effect_code,
    extrapolation_error,
    find_peak,
    fit_curve,
    project,
)

MEASUREMENT_FILE = Path("evaluation") / "overoptimization.json"
LAWS = {"best_of_n": "quadratic", "ppo": "log", "ppo_ptx": "log"}
"""Form of Gao et al. by method."""
SETTING_COLUMNS = (
    *("method", "labeler_noise", "labelers", "reward_max_completions", "trunk_tokens"),
    *("kl_coef", "ptx_coef", "episodes", "samples", "prompts"),
)
COEFFICIENTS = ("alpha", "beta")
_NEAR_SHARE = 0.7
"""Part of the range of d that forms are fitted on to predict the rest."""


@dataclass(frozen=True, slots=True)
class CellCurve:
    """One measurement: the truth and the proxy over d, for each group of prompts.

    Attributes:
        row: the record as measured.
        d: square root of the KL, ascending, (N,).
        truth: (groups, N).
        proxy: (groups, N).
    """

    row: Mapping[str, Any]
    d: FloatArray
    truth: FloatArray
    proxy: FloatArray

    @property
    def setting(self) -> tuple[Any, ...]:
        return tuple(self.row.get(name) for name in SETTING_COLUMNS)

    @property
    def size(self) -> int:
        """Parameters of the reward model without embeddings."""
        return int(self.row["reward_parameters_without_embeddings"])

    @property
    def prompts(self) -> int:
        """Ranked prompts of the reward model; as asked for, so that seeds have the same number."""
        return int(self.row["reward_max_prompts"] or self.row["labels"]["prompts"])

    @property
    def seed(self) -> int:
        return int(self.row["seed"])

    @property
    def mean_truth(self) -> FloatArray:
        return np.asarray(self.truth.mean(0))

    def coefficients(self, form: str) -> FloatArray:
        """Return the law's coefficients for each group of prompts, (groups, 2)."""
        return project(form, self.d, self.truth)


def read_measurements(sources: Iterable[Path]) -> list[CellCurve]:
    """Read cells of sweeps, run directories, and files with a measurement a line; equal cells once, the latest.

    Raises:
        InputError: a source has none, or a line is damaged.
    """
    cells: dict[tuple[Any, ...], CellCurve] = {}
    for source in sources:
        curves = list(_read_source(source))
        if not curves:
            mend = "name a sweep or a run with --overoptimization, or a file of measurements"
            raise InputError(f"{source}: no {MEASUREMENT_FILE}; {mend}")
        for cell in curves:
            cells[*cell.setting, cell.size, cell.prompts, cell.seed] = cell
    return sorted(cells.values(), key=lambda cell: (str(cell.setting), cell.size, cell.prompts, cell.seed))


def _read_source(source: Path) -> Iterable[CellCurve]:
    if source.is_dir():
        files = [source / MEASUREMENT_FILE, *sorted(source.glob(f"cells/*/{MEASUREMENT_FILE}"))]
        lines = [(file, 1, file.read_text(encoding="utf-8")) for file in files if file.exists()]
    else:
        try:
            texts = source.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{source}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
        lines = [(source, number, text) for number, text in enumerate(texts, 1) if text.strip()]
    for file, number, text in lines:
        try:
            curve = parse_curve(json.loads(text))
            if len(curve.d) > 1:
                yield curve
            else:
                console.print(
                    f"[bold]scaling-laws[/] left out: {file}:{number} has {len(curve.d)} points with a KL above 0"
                )
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{file}:{number}: no measurement of overoptimization ({error!r})") from error


def parse_curve(row: Mapping[str, Any]) -> CellCurve:
    """Return a measurement's curves. Points with a KL of 0 are left out: they say nothing about a curve from 0."""
    points = sorted((point for point in row["points"] if point["kl"] > 0), key=lambda point: point["kl"])
    if row["method"] not in LAWS:
        raise ValueError(f"unknown method {row['method']}")
    truth, proxy = (np.array([point[name] for point in points], dtype=np.float64).T for name in ("truth", "proxy"))
    curve = CellCurve(row, np.sqrt([point["kl"] for point in points]), truth, proxy)
    _ = curve.setting, curve.size, curve.prompts, curve.seed  # all are there
    return curve


# --- fits ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CombinationFit:
    """A law's coefficients for one size and number of prompts, over seeds."""

    size: int
    prompts: int
    seeds: int
    coefficients: tuple[Estimate, ...]
    peak: tuple[float, float] | None
    reward_accuracy: float
    truth_accuracy: float


@dataclass(frozen=True, slots=True)
class HeldoutPrediction:
    """Error of cells that were left out: of curves predicted from the rest, of the nearest cells', and of a fit."""

    axis: str
    value: int
    predicted: float
    nearest: float
    fitted: float


@dataclass(frozen=True, slots=True)
class SettingFit:
    """All fits of a setting. `trends` are coefficients by tenfold size and prompts, `forms` errors by form."""

    setting: Mapping[str, Any]
    law: str
    cells: int
    combinations: tuple[CombinationFit, ...]
    mean_coefficients: tuple[Estimate, ...]
    trends: Mapping[str, tuple[Estimate, ...]]
    heldout: tuple[HeldoutPrediction, ...]
    forms: Mapping[str, Mapping[str, float]]
    falling: int


def fit_settings(cells: Sequence[CellCurve]) -> list[SettingFit]:
    """Fit every setting on its own, in their order."""
    groups: dict[tuple[Any, ...], list[CellCurve]] = {}
    for cell in cells:
        groups.setdefault(cell.setting, []).append(cell)
    return [fit_setting(group) for group in groups.values()]


def fit_setting(cells: Sequence[CellCurve]) -> SettingFit:
    law = LAWS[str(cells[0].row["method"])]
    coefficients = np.array([cell.coefficients(law).mean(0) for cell in cells])  # (cells, 2)
    trends = _fit_trends(cells, coefficients)
    mean_coefficients = trends.pop("level") if len(cells) > 1 else _fit_prompts(cells[0], law)
    return SettingFit(
        setting=dict(zip(SETTING_COLUMNS, cells[0].setting, strict=True)),
        law=law,
        cells=len(cells),
        combinations=tuple(_fit_combinations(cells, coefficients, law)),
        mean_coefficients=mean_coefficients,
        trends=trends,
        heldout=tuple(_predict_heldout(cells, coefficients, law)),
        forms=compare_forms(cells),
        falling=sum(map(is_falling, cells)),
    )


def is_falling(cell: CellCurve) -> bool:
    """Return whether the truth at the largest d is below its highest point, by an interval over groups of prompts.

    Each group's highest point is chosen by the other groups, so that chance alone makes no drop.
    """
    count = len(cell.truth)
    peaks = ((cell.truth.sum(0) - cell.truth) / max(1, count - 1)).argmax(1)
    drop = intervals.mean(cell.truth[np.arange(count), peaks] - cell.truth[:, -1], range(count))
    return drop.low is not None and drop.low > 0


def _fit_prompts(cell: CellCurve, law: str) -> tuple[Estimate, ...]:
    """Return the coefficients of a single cell with intervals over its groups of prompts."""
    groups = cell.coefficients(law)
    return tuple(intervals.mean(column, range(len(column))) for column in groups.T)


def _fit_combinations(cells: Sequence[CellCurve], coefficients: FloatArray, law: str) -> Iterable[CombinationFit]:
    """Yield the coefficients of each size and number of prompts.

    With several seeds the interval is that of a two-way layout, combinations and seeds, whose residual variance all
    combinations share: it speaks of reward models trained again in these worlds. With one seed it is over prompts.
    """
    keys = [(cell.size, cell.prompts) for cell in cells]
    combinations, seeds = list(dict.fromkeys(keys)), [cell.seed for cell in cells]
    design = np.hstack([np.array([[key == other for other in combinations] for key in keys]), effect_code(seeds)])
    fits = [fit_least_squares(design, column) for column in coefficients.T]
    for index, (size, prompts) in enumerate(combinations):
        group = [cell for cell, key in zip(cells, keys, strict=True) if key == (size, prompts)]
        contrast = np.arange(design.shape[1]) == index
        is_layout = len(set(seeds)) > 1
        estimates = tuple(fit.estimate(contrast) for fit in fits) if is_layout else _fit_prompts(group[0], law)
        alpha, beta = (estimate.value or 0.0 for estimate in estimates)
        accuracies = [fmean(cell.row[name] for cell in group) for name in ("reward_accuracy", "truth_accuracy")]
        peak = find_peak(law, alpha, beta)
        yield CombinationFit(size, prompts, len(group), estimates, peak, *accuracies)


def _trend_design(cells: Sequence[CellCurve]) -> tuple[FloatArray, list[str]]:
    """Return the columns of the linear model: 1, log10 of both sizes where they vary, and seeds."""
    columns, names = [np.ones(len(cells))], ["level"]
    for name in ("size", "prompts"):
        logs = np.log10([getattr(cell, name) for cell in cells])
        if np.ptp(logs) > 0:
            columns.append(logs - logs.mean())
            names.append(name)
    return np.hstack([np.stack(columns, 1), effect_code([cell.seed for cell in cells])]), names


def _fit_trends(cells: Sequence[CellCurve], coefficients: FloatArray) -> dict[str, tuple[Estimate, ...]]:
    """Return each coefficient at the mean of all cells, and its change with ten times the size or the prompts."""
    design, names = _trend_design(cells)
    fits = [fit_least_squares(design, column) for column in coefficients.T]
    return {
        name: tuple(fit.estimate(np.arange(design.shape[1]) == index) for fit in fits)
        for index, name in enumerate(names)
    }


def _predict_heldout(cells: Sequence[CellCurve], coefficients: FloatArray, law: str) -> Iterable[HeldoutPrediction]:
    """Leave out the largest and the smallest of both sizes in turn, and predict their curves from the others."""
    for axis in ("size", "prompts"):
        values = sorted({getattr(cell, axis) for cell in cells})
        for value in (values[-1], values[0]) if len(values) > 2 else ():
            is_out = np.array([getattr(cell, axis) == value for cell in cells])
            nearest = values[-2] if value == values[-1] else values[1]
            yield _predict_value(cells, coefficients, law, axis, value, is_out, nearest)


def _predict_value(
    cells: Sequence[CellCurve],
    coefficients: FloatArray,
    law: str,
    axis: str,
    value: int,
    is_out: BoolArray,
    nearest: int,
) -> HeldoutPrediction:
    design, _ = _trend_design(cells)
    out = [index for index in range(len(cells)) if is_out[index]]
    rest = np.array(design)[~is_out]
    trend = [fit_least_squares(rest, column[~is_out]).coefficients for column in coefficients.T]
    errors: dict[str, list[float]] = {"predicted": [], "nearest": [], "fitted": []}
    for index in out:
        cell = cells[index]
        twin = _find_twin(cells, coefficients, cell, axis, nearest)
        candidates = {
            "predicted": np.array([design[index] @ weights for weights in trend]),
            "nearest": twin,
            "fitted": coefficients[index],
        }
        for name, values in candidates.items():
            predicted = FORMS[law].basis(cell.d) @ values
            errors[name] += list((predicted - cell.mean_truth) ** 2)
    means = {name: math.sqrt(fmean(squares)) for name, squares in errors.items()}
    return HeldoutPrediction(axis, value, **means)


def _find_twin(
    cells: Sequence[CellCurve], coefficients: FloatArray, cell: CellCurve, axis: str, nearest: int
) -> FloatArray:
    """Return the mean coefficients of cells with the nearest value, of the same seed and other size where there are."""
    second = "prompts" if axis == "size" else "size"
    candidates = [index for index, neighbor in enumerate(cells) if getattr(neighbor, axis) == nearest]
    for name in (second, "seed"):
        matching = [index for index in candidates if getattr(cells[index], name) == getattr(cell, name)]
        candidates = matching or candidates
    return np.asarray(coefficients[candidates].mean(0))


def compare_forms(cells: Sequence[CellCurve]) -> dict[str, dict[str, float]]:
    """Return for each form the error of its fit, of its prediction of larger d, and how often it predicts best.

    Errors are root mean squares over cells, in standard deviations of the truth.
    """
    squares: dict[str, list[float]] = {name: [] for name in FORMS}
    beyond: dict[str, list[float]] = {name: [] for name in FORMS}
    criteria: dict[str, list[float]] = {name: [] for name in FORMS}
    wins = dict.fromkeys(FORMS, 0)
    for cell in cells:
        if len(cell.d) < 3:
            continue
        fits = {name: fit_curve(name, cell.d, cell.mean_truth) for name in FORMS}
        limit = float(cell.d[0] + _NEAR_SHARE * (cell.d[-1] - cell.d[0]))
        errors = {name: extrapolation_error(name, cell.d, cell.mean_truth, limit) for name in FORMS}
        errors_beyond = {name: error for name, error in errors.items() if error is not None}
        for name, fit in fits.items():
            squares[name].append(fit.squares / fit.n)
            criteria[name].append(fit.aicc - min(other.aicc for other in fits.values()))
            if name in errors_beyond:
                beyond[name].append(errors_beyond[name] ** 2)
        if errors_beyond:
            wins[min(errors_beyond, key=errors_beyond.__getitem__)] += 1
    return {
        name: {
            "error": math.sqrt(fmean(squares[name])),
            "error_beyond": math.sqrt(fmean(beyond[name])) if beyond[name] else math.nan,
            "aicc_above_best": fmean(value for value in criteria[name] if math.isfinite(value))
            if any(map(math.isfinite, criteria[name]))
            else math.nan,
            "best_beyond": wins[name],
        }
        for name in FORMS
        if squares[name]
    }


def mean_fit(cells: Sequence[CellCurve], law: str) -> tuple[FloatArray, FloatArray, CurveFit]:
    """Return mean d and truth over cells point by point, as far as all have points, and the law fitted to them."""
    count = min(len(cell.d) for cell in cells)
    d = np.mean([cell.d[:count] for cell in cells], axis=0)
    truth = np.mean([cell.mean_truth[:count] for cell in cells], axis=0)
    return d, truth, fit_curve(law, d, truth)
