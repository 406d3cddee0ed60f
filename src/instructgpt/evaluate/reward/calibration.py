"""Does a reward model's confidence come true? The chance that the better completion wins is read as sigmoid(better score minus worse).

A gap (N,) is the score of the completion that labelers put first minus that of the other. Confidence is sigmoid(|gap|), from 1/2 to 1: how
sure the model is of the one it prefers; it is right where the gap is positive, half right where it is 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import expit

from instructgpt.statistics import intervals
from instructgpt.statistics.intervals import NOTHING, Estimate, Floats

BINS = 15
STEPS = 100


@dataclass(frozen=True, slots=True)
class Bin:
    """Pairs of about the same confidence: their mean confidence, and the share that was right, with its interval."""

    confidence: float
    right: Estimate


def sides(gaps: ArrayLike) -> tuple[Floats, Floats]:
    """Confidence and whether it was right, both (N,)."""
    gap = np.asarray(gaps, dtype=np.float64)
    return np.asarray(expit(np.abs(gap))), np.asarray((np.sign(gap) + 1) / 2)


def equal_bins(confidence: Floats, bins: int = BINS) -> list[np.ndarray]:
    """Places (N,) in bins of equally many pairs, the least confident first."""
    return np.array_split(np.argsort(confidence, kind="stable"), min(bins, len(confidence)))


def calibration_error(gaps: ArrayLike, bins: int = BINS) -> float:
    """How far the stated confidence is from the share that came true (ECE), over bins of equally many pairs. gaps (N,), N > 0."""
    confidence, right = sides(gaps)
    return float(sum(abs((confidence[part] - right[part]).sum()) for part in equal_bins(confidence, bins)) / len(confidence))


def reliability_curve(gaps: ArrayLike, clusters: Sequence[str], bins: int = BINS) -> list[Bin]:
    """The reliability figure: for each bin its confidence and the share that was right, clustered. gaps and clusters (N,)."""
    confidence, right = sides(gaps)
    keys = np.asarray(clusters)
    return [
        Bin(float(confidence[part].mean()), intervals.mean(right[part], keys[part].tolist(), share=True))
        for part in equal_bins(confidence, bins)
        if len(part)
    ]


def brier(gaps: ArrayLike) -> Floats:
    """The squared distance of each pair's forecast, sigmoid(gap), from what happened, 1 (Brier, 1950). -> (N,); 1/4 knows nothing."""
    return np.asarray((1 - expit(np.asarray(gaps, dtype=np.float64))) ** 2)


def temperature(gaps: ArrayLike, clusters: Sequence[str]) -> Estimate:
    """The T for which sigmoid(gap / T) loses least: above 1 the model is over-confident (Guo and others, 2017, "On calibration").

    A logistic regression through the origin for 1 / T, by Newton's steps; Student's t on its clustered variance, turned over. There is
    none where every gap has one sign, or where the scores order pairs no better than chance, and no interval where 1 / T might be 0.
    """
    gap = np.asarray(gaps, dtype=np.float64)
    if not ((gap > 0).any() and (gap < 0).any()):
        return NOTHING
    scale = float(np.abs(gap).mean())
    x, weight = gap / scale, 0.0
    for _ in range(STEPS):
        miss = expit(-weight * x)
        bend = float((miss * (1 - miss) * x * x).sum())
        step = float((miss * x).sum()) / bend
        weight += float(np.clip(step, -1.0, 1.0))
        if abs(step) < 1e-12:
            break
    if weight <= 0:
        return NOTHING
    key = intervals.codes(list(clusters))
    spread = intervals.clustered(np.asarray(expit(-weight * x) * x / bend), key, np.zeros(len(x), dtype=np.int64))
    found = intervals.interval(weight, spread, len(x))
    low = None if found.high is None else scale / found.high
    high = None if found.low is None or found.low <= 0 else scale / found.low
    return Estimate(scale / weight, low if high is not None else None, high, len(x))
