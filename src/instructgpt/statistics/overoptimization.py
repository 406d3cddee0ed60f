"""Curves of reward-model over-optimization: Gao, Schulman and Hilton (2022), with rival forms.

The truth over the start, y, is a function of d = sqrt(KL from the start):

    best of n    y = d (alpha - beta d)
    RL           y = d (alpha - beta log d),    after k rounds  d (alpha - beta log d + beta log k)

Both are linear in their coefficients, so that a fit of mean values is the mean of the fits of prompts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import minimize_scalar

from instructgpt.statistics.arrays import FloatArray


@dataclass(frozen=True, slots=True)
class CurveForm:
    """A form of the curve: `basis` takes d (N,) and returns the factors of the coefficients, (N, F).

    With a `shape` the basis takes it, too: a coefficient that is not linear, found by search between its bounds.
    """

    formula: str
    basis: Callable[..., FloatArray]
    shape: tuple[float, float] | None = None

    @property
    def is_linear(self) -> bool:
        return self.shape is None


def _d_log_d(d: FloatArray) -> FloatArray:
    """Return d log d, which is 0 at 0."""
    positive = np.where(d > 0, d, 1.0)
    return d * np.log(positive)


def basis_quadratic(d: FloatArray) -> FloatArray:
    return np.stack([d, -(d**2)], 1)


def basis_log(d: FloatArray, rounds: ArrayLike = 1) -> FloatArray:
    """Return the basis of the RL form; `rounds`: of reward models and policies so far, a number or (N,)."""
    return np.stack([d, d * np.log(np.asarray(rounds, dtype=np.float64)) - _d_log_d(d)], 1)


FORMS: Mapping[str, CurveForm] = {
    "quadratic": CurveForm("d (alpha - beta d)", basis_quadratic),
    "log": CurveForm("d (alpha - beta log d)", basis_log),
    "linear": CurveForm("alpha d", lambda d: d[:, None]),
    "kl": CurveForm("alpha d^2", lambda d: (d**2)[:, None]),
    "saturating": CurveForm("alpha (1 - exp(-gamma d))", lambda d, gamma: -np.expm1(-gamma * d)[:, None], (1e-3, 1e2)),
}
"""The two laws, and what else the curves could be: proportional to d or to KL, or rising to a limit."""


@dataclass(frozen=True, slots=True)
class CurveFit:
    """A fitted form: coefficients in the order of its formula, and the sum of squared residuals of n points."""

    form: str
    coefficients: tuple[float, ...]
    squares: float
    n: int

    def predict(self, d: ArrayLike) -> FloatArray:
        """Return the curve at d (N,)."""
        form, distances = FORMS[self.form], np.asarray(d, dtype=np.float64)
        if form.is_linear:
            return np.asarray(form.basis(distances) @ np.array(self.coefficients))
        return np.asarray(form.basis(distances, self.coefficients[1])[:, 0] * self.coefficients[0])

    @property
    def aicc(self) -> float:
        """Akaike's criterion for few points (Hurvich and Tsai 1989); infinite where there are too few.

        Points of one curve depend on each other, so that differences speak for less than for independent points.
        """
        parameters = len(self.coefficients) + 1  # with the variance
        if self.n <= parameters + 1:
            return math.inf
        variance = max(self.squares / self.n, 1e-300)
        return self.n * math.log(variance) + 2 * parameters * self.n / (self.n - parameters - 1)


def fit_curve(form: str, d: ArrayLike, values: ArrayLike) -> CurveFit:
    """Fit a form to values at d, (N,) each, by least squares.

    Raises:
        ValueError: fewer points than coefficients, or negative d.
    """
    distances, y = np.asarray(d, dtype=np.float64), np.asarray(values, dtype=np.float64)
    curve = FORMS[form]
    count = 2 if not curve.is_linear else curve.basis(distances[:1]).shape[1]
    if len(distances) < count or (distances < 0).any():
        raise ValueError(f"{len(distances)} points for the form {form}: expected {count} or more, with d of 0 or more")
    if curve.is_linear:
        coefficients = tuple(float(value) for value in project(form, distances, y[None])[0])
    else:
        coefficients = _search(curve, distances, y)
    fit = CurveFit(form, coefficients, 0.0, len(y))
    residuals = y - fit.predict(distances)
    return CurveFit(form, coefficients, float(residuals @ residuals), len(y))


def project(form: str, d: ArrayLike, rows: ArrayLike) -> FloatArray:
    """Return the coefficients of a linear form for each row of values, (R, N) at d (N,) -> (R, F)."""
    basis = FORMS[form].basis(np.asarray(d, dtype=np.float64))
    inverse = np.asarray(np.linalg.pinv(basis), dtype=np.float64)
    coefficients: FloatArray = np.einsum("rn,fn->rf", np.asarray(rows, dtype=np.float64), inverse)
    return coefficients


def _search(curve: CurveForm, d: FloatArray, y: FloatArray) -> tuple[float, float]:
    """Return amplitude and shape with the least squares: a grid over log shape, then Brent's method in between."""
    low, high = (math.log(end) for end in curve.shape or (1.0, 1.0))

    def amplitude(log_shape: float) -> float:
        column = curve.basis(d, math.exp(log_shape))[:, 0]
        return float(column @ y) / max(float(column @ column), 1e-300)

    def squares(log_shape: float) -> float:
        residuals = y - amplitude(log_shape) * curve.basis(d, math.exp(log_shape))[:, 0]
        return float(residuals @ residuals)

    grid = np.linspace(low, high, 60)
    best = int(np.argmin([squares(point) for point in grid]))
    ends = (grid[max(0, best - 1)], grid[min(len(grid) - 1, best + 1)])
    log_shape = float(minimize_scalar(squares, bounds=ends, method="bounded", options={"xatol": 1e-9}).x)
    return amplitude(log_shape), math.exp(log_shape)


def find_peak(form: str, alpha: float, beta: float) -> tuple[float, float] | None:
    """Return d and height of a law's highest point, None where it has none at d above 0.

    Quadratic: d = alpha / (2 beta), alpha^2 / (4 beta). Log: d = exp(alpha / beta - 1), beta d.
    """
    if form not in ("quadratic", "log"):
        raise ValueError(f"the form {form} has no peak")
    if beta <= 0 or (form == "quadratic" and alpha <= 0):
        return None
    if form == "quadratic":
        return alpha / (2 * beta), alpha**2 / (4 * beta)
    exponent = alpha / beta - 1
    if exponent > 50:  # beyond any KL that could be reached
        return None
    d = math.exp(exponent)
    return d, beta * d


def extrapolation_error(form: str, d: ArrayLike, values: ArrayLike, limit: float) -> float | None:
    """Fit at d up to `limit`. Return the root mean square error beyond it, None where a side has too few points."""
    distances, y = np.asarray(d, dtype=np.float64), np.asarray(values, dtype=np.float64)
    near = distances <= limit
    if near.sum() < 3 or near.all():
        return None
    errors = y[~near] - fit_curve(form, distances[near], y[near]).predict(distances[~near])
    return float(np.sqrt(np.mean(errors**2)))


def effect_code(keys: Sequence[object]) -> FloatArray:
    """Return columns (N, L - 1) for a factor of L levels whose effects sum to 0."""
    levels = list(dict.fromkeys(keys))
    index = np.array([levels.index(key) for key in keys])
    code = np.vstack([np.eye(len(levels) - 1), -np.ones((1, len(levels) - 1))])
    columns: FloatArray = code[index]
    return columns
