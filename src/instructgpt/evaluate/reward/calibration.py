"""Calibration of a reward model: sigmoid(better score minus worse) as the probability that the better completion wins.

A gap (N,) is the score of the completion that labelers prefer minus that of the other. Confidence is sigmoid(|gap|),
from 1/2 to 1; it is correct if the gap is positive, half correct if it is 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import expit

from instructgpt.statistics import intervals
from instructgpt.statistics.intervals import NO_ESTIMATE, Estimate, FloatArray

_CALIBRATION_BINS = 15
_NEWTON_STEPS = 100


@dataclass(frozen=True, slots=True)
class CalibrationBin:
    confidence: float
    accuracy: Estimate


def _confidence_and_correct(gaps: ArrayLike) -> tuple[FloatArray, FloatArray]:
    gap = np.asarray(gaps, dtype=np.float64)
    return np.asarray(expit(np.abs(gap))), np.asarray((np.sign(gap) + 1) / 2)


def _quantile_bins(confidence: FloatArray, bins: int = _CALIBRATION_BINS) -> list[np.ndarray]:
    """Return indices in bins of equal size, the least confident first."""
    return np.array_split(np.argsort(confidence, kind="stable"), min(bins, len(confidence)))


def calibration_error(gaps: ArrayLike, bins: int = _CALIBRATION_BINS) -> float:
    """Return the expected calibration error (ECE) over bins of equal size. gaps (N,), N > 0."""
    confidence, correct = _confidence_and_correct(gaps)
    errors = (abs((confidence[part] - correct[part]).sum()) for part in _quantile_bins(confidence, bins))
    return float(sum(errors) / len(confidence))


def reliability_curve(gaps: ArrayLike, clusters: Sequence[str], bins: int = _CALIBRATION_BINS) -> list[CalibrationBin]:
    """Return the bins of the reliability diagram, with clustered intervals. gaps and clusters (N,)."""
    confidence, correct = _confidence_and_correct(gaps)
    keys = np.asarray(clusters)
    return [
        CalibrationBin(float(confidence[part].mean()), intervals.mean(correct[part], keys[part].tolist(), share=True))
        for part in _quantile_bins(confidence, bins)
        if len(part)
    ]


def brier_losses(gaps: ArrayLike) -> FloatArray:
    """Return (1 - sigmoid(gap))^2 (Brier, 1950). -> (N,); 1/4 is chance."""
    return np.asarray((1 - expit(np.asarray(gaps, dtype=np.float64))) ** 2)


def fit_temperature(gaps: ArrayLike, clusters: Sequence[str]) -> Estimate:
    """Return the T that minimizes the loss of sigmoid(gap / T); above 1 the model is over-confident (Guo et al. 2017).

    Logistic regression through the origin for 1 / T by Newton's method; the interval is Student's t on its clustered
    variance, inverted. There is no estimate if all gaps have one sign or the scores order pairs no better than chance,
    and no interval if that of 1 / T contains 0.
    """
    gap = np.asarray(gaps, dtype=np.float64)
    if not ((gap > 0).any() and (gap < 0).any()):
        return NO_ESTIMATE
    scale = float(np.abs(gap).mean())
    x, weight = gap / scale, 0.0  # weight is scale / T
    for _ in range(_NEWTON_STEPS):
        residual = expit(-weight * x)
        curvature = float((residual * (1 - residual) * x * x).sum())
        step = float((residual * x).sum()) / curvature
        weight += float(np.clip(step, -1.0, 1.0))  # a full step can overshoot where the loss is flat
        if abs(step) < 1e-12:
            break
    if weight <= 0:
        return NO_ESTIMATE
    influence = np.asarray(expit(-weight * x) * x / curvature)
    codes, no_second_clusters = intervals.factorize(list(clusters)), np.zeros(len(x), dtype=np.int64)
    uncertainty = intervals.clustered_uncertainty(influence, codes, no_second_clusters)
    weight_interval = intervals.t_interval(weight, uncertainty, len(x))
    low = None if weight_interval.high is None else scale / weight_interval.high
    high = None if weight_interval.low is None or weight_interval.low <= 0 else scale / weight_interval.low
    return Estimate(scale / weight, low if high is not None else None, high, len(x))
