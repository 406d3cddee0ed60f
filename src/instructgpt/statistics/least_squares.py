"""Ordinary least squares with Student's t intervals."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from instructgpt.statistics.arrays import FloatArray
from instructgpt.statistics.clustered import t_quantile
from instructgpt.statistics.intervals import Estimate


@dataclass(frozen=True, slots=True)
class LinearFit:
    """A fitted linear model.

    Attributes:
        coefficients: (F,).
        inverse: pseudo-inverse of X'X, (F, F).
        residual_variance: None without degrees of freedom.
        degrees: rows minus the rank of the design.
        n: rows.
    """

    coefficients: FloatArray
    inverse: FloatArray
    residual_variance: float | None
    degrees: int
    n: int

    def estimate(self, contrast: ArrayLike) -> Estimate:
        """Return a linear combination of the coefficients, (F,) weights, with its 95 % interval."""
        weights = np.asarray(contrast, dtype=np.float64)
        value = float(weights @ self.coefficients)
        if self.residual_variance is None:
            return Estimate(value, None, None, self.n)
        variance = self.residual_variance * float(weights @ self.inverse @ weights)
        margin = t_quantile(self.degrees) * math.sqrt(max(0.0, variance))
        return Estimate(value, value - margin, value + margin, self.n)


def fit_least_squares(design: ArrayLike, values: ArrayLike) -> LinearFit:
    """Fit values (N,) by the columns of a design (N, F). Errors are independent and of equal variance.

    Raises:
        ValueError: shapes differ, or something is not finite.
    """
    x, y = np.asarray(design, dtype=np.float64), np.asarray(values, dtype=np.float64)
    if x.ndim != 2 or y.shape != x.shape[:1] or not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError(f"design {x.shape} and values {y.shape}: expected finite (N, F) and (N,)")
    inverse = np.asarray(np.linalg.pinv(x.T @ x, hermitian=True), dtype=np.float64)
    coefficients = np.linalg.pinv(x) @ y
    residuals = y - x @ coefficients
    degrees = len(y) - int(np.linalg.matrix_rank(x))
    variance = float(residuals @ residuals) / degrees if degrees > 0 else None
    return LinearFit(coefficients, inverse, variance, degrees, len(y))
