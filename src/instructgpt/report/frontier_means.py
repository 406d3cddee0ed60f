"""The frontier of runs that differ in nothing but the seed: means over the runs, with intervals over them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from instructgpt.statistics.intervals import SHARE, mean

Point = Mapping[str, Any]
_MEASURES = ("utility", "heldout", "score")
_WIN_RATES = (
    *("win_rate_validation_training", "win_rate_test_training"),
    *("win_rate_validation_heldout", "win_rate_test_heldout"),
)
_MEANS = ("kl", "sqrt_kl", *_MEASURES, "training_flops", "answer_flops")


def mean_frontier(runs: Sequence[Sequence[Point]]) -> list[dict[str, Any]]:
    """Return the points that every run has, by label, in the order of the first run.

    Gains become multiples of each run's own standard deviation of the start's answers before they are averaged, as
    worlds differ in it; `…_start_sd` is 1 then. One run is returned as it is.
    """
    if len(runs) == 1:
        return [dict(point) for point in runs[0]]
    by_label = [{str(point["label"]): point for point in run} for run in runs]
    shared = [label for label in by_label[0] if all(label in points for points in by_label)]
    return [_mean_point([points[label] for points in by_label]) for label in shared]


def _mean_point(points: Sequence[Point]) -> dict[str, Any]:
    pooled: dict[str, Any] = {name: points[0].get(name) for name in ("method", "label", "n", "kl_is_bound")}
    for name in _MEANS:
        values = [float(point[name]) for point in points if point.get(name) is not None]
        pooled[name] = sum(values) / len(values) if values else None
    for name in _MEASURES:
        gains = [
            float(point[f"{name}_gain"]) / (float(point.get(f"{name}_start_sd") or 0) or 1.0)
            for point in points
            if point.get(f"{name}_gain") is not None
        ]
        if gains:
            gain = mean(gains, range(len(gains)))
            pooled |= {f"{name}_gain": gain.value, f"{name}_low": gain.low, f"{name}_high": gain.high}
            pooled[f"{name}_start_sd"] = 1.0
    for name in _WIN_RATES:
        rates = [float(point[name]) for point in points if point.get(name) is not None]
        if rates:
            rate = mean(rates, range(len(rates)), bounds=SHARE)
            pooled |= {name: rate.value, f"{name}_low": rate.low, f"{name}_high": rate.high}
    return pooled
