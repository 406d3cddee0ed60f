"""Measure refusal labels against people's: accuracy, F1 of each class, calibration; splits by model and by prompt."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse, special

from instructgpt.data.refusal_labels import NO_CLASS, REFUSAL_CLASSES
from instructgpt.evaluate.refusal.detector import fit_refusal_detector, fit_refusal_temperature
from instructgpt.statistics import intervals
from instructgpt.statistics.intervals import SHARE, Estimate

_Floats = NDArray[np.float64]
_Ints = NDArray[np.int64]

PROMPT_FOLDS = 5
_CALIBRATION_BINS = 10


def prompt_folds(prompts: Sequence[str]) -> _Ints:
    """Return each prompt's fold, by a hash of its words, so that spellings of a prompt share a fold."""
    return np.array([zlib.crc32(" ".join(prompt.lower().split()).encode()) % PROMPT_FOLDS for prompt in prompts])


def cross_validate_logits(
    ngrams: sparse.csr_array, cues: _Floats, classes: _Ints, l2: float, *groups: Sequence[int] | _Ints
) -> _Floats:
    """Return each answer's logits by a detector that saw no answer of its group: (N, 3).

    With two keys of groups (model, prompt's fold), answers that share either are left out of training.
    """
    keys = np.stack([np.asarray(group) for group in groups], axis=1)
    logits = np.empty((len(classes), len(REFUSAL_CLASSES)))
    for key in np.unique(keys, axis=0):
        test = np.flatnonzero((keys == key).all(axis=1))
        training = np.flatnonzero((keys != key).all(axis=1))
        detector = fit_refusal_detector(ngrams[training], cues[training], classes[training], l2)
        logits[test] = detector.logits(ngrams[test], cues[test])
    return logits


def calibrate_by_fold(logits: _Floats, classes: _Ints, folds: Sequence[int] | _Ints) -> _Floats:
    """Return probabilities, those of each fold with the temperature that is best on the other folds' logits."""
    folds = np.asarray(folds)
    probabilities = np.empty_like(logits)
    for fold in np.unique(folds):
        temperature = fit_refusal_temperature(logits[folds != fold], classes[folds != fold])
        probabilities[folds == fold] = special.softmax(logits[folds == fold] / temperature, axis=1)
    return probabilities


def label_metrics(predicted: _Ints, classes: _Ints, prompts: Sequence[str]) -> dict[str, Any]:
    """Return accuracy and the F1 of each class, with 95 % intervals clustered by prompt, and the mean of the F1.

    `refusal_bias` is the share of refusals, partial or full, less people's: what an evaluation with them is off.
    """
    metrics: dict[str, Any] = {"accuracy": _as_dict(intervals.mean(predicted == classes, prompts, bounds=SHARE))}
    f1_values = []
    for index, name in enumerate(REFUSAL_CLASSES):
        sizes = (predicted == index).astype(float) + (classes == index)
        hits = 2.0 * ((predicted == index) & (classes == index))
        estimate = intervals.mean(hits, prompts, weights=sizes, bounds=SHARE)
        metrics[f"f1_{name}"] = _as_dict(estimate)
        f1_values += [] if estimate.value is None else [estimate.value]
    excess = (predicted > 0).astype(float) - (classes > 0)
    metrics["refusal_bias"] = _as_dict(intervals.mean(excess, prompts, bounds=intervals.CORRELATION))
    metrics["macro_f1"] = float(np.mean(f1_values))
    metrics["answers"] = len(classes)
    metrics["no_class"] = int((predicted == NO_CLASS).sum())
    return metrics


def _as_dict(estimate: Estimate) -> dict[str, float | None]:
    return {"value": estimate.value, "low": estimate.low, "high": estimate.high}


def calibration_metrics(probabilities: _Floats, classes: _Ints) -> dict[str, Any]:
    """Return the expected calibration error of the likeliest class in ten bins, the Brier score (0 to 2), and bins.

    A bin has the mean confidence, the accuracy and the number of answers.
    """
    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == classes
    bins = np.minimum((confidence * _CALIBRATION_BINS).astype(int), _CALIBRATION_BINS - 1)
    rows = [
        {
            "confidence": float(confidence[bins == index].mean()),
            "accuracy": float(correct[bins == index].mean()),
            "answers": int((bins == index).sum()),
        }
        for index in np.unique(bins)
    ]
    error = sum(row["answers"] * abs(row["accuracy"] - row["confidence"]) for row in rows) / len(classes)
    targets = np.eye(len(REFUSAL_CLASSES))[classes]
    brier = float(((probabilities - targets) ** 2).sum(axis=1).mean())
    return {"expected_calibration_error": float(error), "brier": brier, "bins": rows}
