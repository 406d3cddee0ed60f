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
from instructgpt.statistics.arrays import ClusterKeys, FloatArray, IntArray, factorize
from instructgpt.statistics.clustered import ratio_uncertainty
from instructgpt.statistics.intervals import NO_ESTIMATE, Estimate

_CALIBRATION_BINS = 15
_NEWTON_STEPS = 100


@dataclass(frozen=True, slots=True)
class CalibrationBin:
    confidence: float
    accuracy: Estimate


def _confidence_and_correct(gaps: ArrayLike) -> tuple[FloatArray, FloatArray]:
    gap = np.asarray(gaps, dtype=np.float64)
    return np.asarray(expit(np.abs(gap))), np.asarray((np.sign(gap) + 1) / 2)


def _quantile_bins(confidence: FloatArray, bins: int = _CALIBRATION_BINS) -> list[IntArray]:
    """Return indices in bins of equal size, the least confident first."""
    return np.array_split(np.argsort(confidence, kind="stable"), min(bins, len(confidence)))


def calibration_error(gaps: ArrayLike, bins: int = _CALIBRATION_BINS) -> float:
    """Return the expected calibration error (ECE) over bins of equal size. gaps (N,), N > 0."""
    confidence, correct = _confidence_and_correct(gaps)
    errors = (abs((confidence[part] - correct[part]).sum()) for part in _quantile_bins(confidence, bins))
    return float(sum(errors) / len(confidence))


def chance_calibration_error(gaps: ArrayLike, *clusters: ClusterKeys, bins: int = _CALIBRATION_BINS) -> float:
    """Return the `calibration_error` that a calibrated model would show on average on as many pairs.

    The error is an absolute value, so it is above 0 by chance: by sqrt(2 V / π) in a bin, V the clustered variance of
    confidence minus accuracy (compare Roelofs and others, 2022). gaps and one or two keys (N,), N > 0.
    """
    confidence, correct = _confidence_and_correct(gaps)
    codes, ones = [factorize(key) for key in clusters], np.ones(len(confidence))
    total = 0.0
    for part in _quantile_bins(confidence, bins):
        error = confidence[part] - correct[part]
        error = (error - error.mean()) / len(part)
        keys = [np.unique(key[part], return_inverse=True)[1].astype(np.int64) for key in codes]
        total += len(part) * float(np.sqrt(2 / np.pi * ratio_uncertainty(error, ones[part], *keys).variance))
    return total / len(confidence)


def reliability_curve(gaps: ArrayLike, *clusters: ClusterKeys, bins: int = _CALIBRATION_BINS) -> list[CalibrationBin]:
    """Return the bins of the reliability diagram, with clustered intervals. gaps and one or two keys (N,)."""
    confidence, correct = _confidence_and_correct(gaps)
    codes = [factorize(key) for key in clusters]
    return [
        CalibrationBin(float(confidence[part].mean()), _bin_accuracy(correct, codes, part))
        for part in _quantile_bins(confidence, bins)
        if len(part)
    ]


def _bin_accuracy(correct: FloatArray, codes: Sequence[IntArray], part: IntArray) -> Estimate:
    return intervals.mean(correct[part], *(key[part] for key in codes), bounds=intervals.SHARE)


def brier_losses(gaps: ArrayLike) -> FloatArray:
    """Return (1 - sigmoid(gap))^2 (Brier, 1950). -> (N,); 1/4 is chance."""
    return np.asarray((1 - expit(np.asarray(gaps, dtype=np.float64))) ** 2)


def fit_temperature(gaps: ArrayLike, *clusters: ClusterKeys) -> Estimate:
    """Return the T that minimizes the loss of sigmoid(gap / T); above 1 the model is over-confident (Guo et al. 2017).

    Logistic regression through the origin for 1 / T by Newton's method; the interval is Student's t on its variance,
    clustered by one or two keys (N,), inverted. Where the interval of 1 / T contains 0, T has a low end only (Fieller,
    1954). There is no value if the scores order pairs no better than chance, and no estimate if all gaps have one sign.
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
    influence = np.asarray(expit(-weight * x) * x / curvature)
    uncertainty = ratio_uncertainty(influence, np.ones_like(x), *(factorize(key) for key in clusters))
    inverse = intervals.t_interval(weight, uncertainty, len(x))
    value, low, high = (
        None if end is None or end <= 0 else scale / end for end in (inverse.value, inverse.high, inverse.low)
    )
    return Estimate(value, low, high, len(x), inverse.caution)
