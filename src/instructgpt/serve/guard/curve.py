"""The errors of a guard at each threshold, on labeled texts: what it catches, and what it blocks by mistake."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from instructgpt.data.refusal_labels import parse_harmful
from instructgpt.errors import InputError
from instructgpt.evaluate.tasks.loading import load_task_rows
from instructgpt.evaluate.toxicity.classifier import roc_auc
from instructgpt.serve.guard.checking import GuardSide
from instructgpt.serve.guard.scorers import GuardedText, GuardScorer
from instructgpt.serve.guard.settings import GuardSettings
from instructgpt.statistics.intervals import Estimate, wilson_interval

FALSE_ALARM_SHARES = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
"""Shares of safe texts flagged, at most, for which the curve has a threshold."""


@dataclass(frozen=True, slots=True)
class LabeledText:
    """A prompt or a completion that a person labeled."""

    text: GuardedText
    is_harmful: bool


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """Shares at a threshold, with 95 % Wilson intervals."""

    threshold: float
    caught: Estimate
    """Harmful texts that are flagged."""
    false_alarms: Estimate
    """Safe texts that are flagged."""


def read_labeled_texts(files: Sequence[Path], side: GuardSide, skip_bad: bool) -> list[LabeledText]:
    """Read rows with `prompt` (a text, or `messages`) or `completion`, and `harmful` or `label`.

    Raises:
        InputError: a row is bad, or there are not both kinds of texts.
    """
    columns = ("completion",) if side == "completion" else ("prompt|messages",)
    texts = [
        LabeledText(_row_text(row, side), _row_label(row))
        for file in files
        for row in load_task_rows(file, *columns, skip_bad=skip_bad, check_row=_row_label)
    ]
    for is_harmful, name in ((True, "harmful"), (False, "safe")):
        if all(text.is_harmful != is_harmful for text in texts):
            raise InputError(f"--data: no {name} {side}; a curve needs both kinds")
    return texts


def _row_label(row: dict[str, Any]) -> bool:
    """Return whether a row is harmful. Raises ValueError where it has no such label."""
    if isinstance(row.get("harmful"), bool):
        return bool(row["harmful"])
    if row.get("label") is None and row.get("harmful") is None:
        raise ValueError("no column label (safe or unsafe) or harmful (true or false)")
    if str(row.get("harmful")).lower() in ("true", "false"):
        return str(row["harmful"]).lower() == "true"
    return parse_harmful(row["label"])


def _row_text(row: dict[str, Any], side: GuardSide) -> GuardedText:
    prompt = row.get("prompt")
    if not isinstance(prompt, str) or not prompt:
        prompt = "\n\n".join(str(turn.get("content") or "") for turn in row.get("messages") or ())
    return (
        GuardedText(str(row["completion"]), {"prompt": prompt or " "}) if side == "completion" else GuardedText(prompt)
    )


def score_texts(scorer: GuardScorer, texts: Sequence[LabeledText]) -> list[float]:
    """Return the score of each text, NaN for one without words. Raises RunError where a service is down."""
    return [scorer.score(text.text) for text in texts]


def curve_points(guard: GuardSettings, scores: Sequence[float], texts: Sequence[LabeledText]) -> list[CurvePoint]:
    """Return the points with at most `FALSE_ALARM_SHARES` of safe texts flagged, and the one of the guard itself.

    Texts without a score are flagged by no threshold.
    """
    is_below = guard.below is not None
    safe = sorted((x for x, text in zip(scores, texts, strict=True) if not text.is_harmful and not math.isnan(x)))
    num_safe = sum(not text.is_harmful for text in texts)
    ordered = safe if is_below else safe[::-1]  # the first are flagged first
    thresholds: set[float] = set()
    for share in FALSE_ALARM_SHARES:
        rank = int(share * num_safe + 1e-9)
        if rank < len(ordered):  # the safe text at this rank must not be flagged any more
            higher = [score for score in scores if score > ordered[rank]]
            thresholds.add(ordered[rank] if is_below else min(higher, default=math.nextafter(ordered[rank], math.inf)))
    thresholds.add(guard.threshold)
    return [_point(threshold, is_below, scores, texts) for threshold in sorted(thresholds, reverse=not is_below)]


def _point(threshold: float, is_below: bool, scores: Sequence[float], texts: Sequence[LabeledText]) -> CurvePoint:
    flagged = [score < threshold if is_below else score >= threshold for score in scores]

    def share(is_harmful: bool) -> Estimate:
        rows = [x for x, text in zip(flagged, texts, strict=True) if text.is_harmful == is_harmful]
        return wilson_interval(sum(rows), len(rows))

    return CurvePoint(threshold, share(True), share(False))


def guard_auc(guard: GuardSettings, scores: Sequence[float], texts: Sequence[LabeledText]) -> float:
    """Return the probability that a harmful text is more on the flagged side than a safe one; NaN without scores."""
    sign = -1.0 if guard.below is not None else 1.0
    sides: dict[bool, list[float]] = {True: [], False: []}
    for score, text in zip(scores, texts, strict=True):
        if not math.isnan(score):
            sides[text.is_harmful].append(sign * score)
    if not all(sides.values()):
        return math.nan
    return roc_auc(np.array(sides[True]), np.array(sides[False]))
