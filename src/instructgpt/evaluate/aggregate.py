"""Turn observations into rows of results.json: one per model, and paired differences between models."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from instructgpt.results import ResultRow
from instructgpt.statistics import intervals
from instructgpt.statistics.intervals import Estimate

DIFFERENCE = "difference"
"""The evaluation name of paired differences: metric `toxicity/mean_toxicity/respectful`,
condition the subtracted model.
"""


@dataclass(frozen=True, slots=True)
class Observation:
    """One measured value of one model.

    `clusters` identifies shared sources of variance: (prompt,) or (prompt, labeler).
    """

    model: str
    value: float
    clusters: tuple[str, ...]
    weight: float = 1.0


def make_row(evaluation: str, metric: str, model: str, condition: str, statistic: Estimate) -> ResultRow:
    return ResultRow(evaluation, metric, model, condition, statistic.value, statistic.low, statistic.high, statistic.n)


def aggregate_per_model(
    evaluation: str,
    metric: str,
    condition: str,
    observations: Iterable[Observation],
    *,
    share: bool = False,
    baselines: Sequence[str] = (),
) -> list[ResultRow]:
    """Return one row per model, then one per model and baseline with their difference, paired by shared clusters.

    `share` says that the values lie in 0..1 (see `intervals.mean`). Raise ValueError for values that are not finite.
    """
    by_model: dict[str, list[Observation]] = {}
    for observation in observations:
        by_model.setdefault(observation.model, []).append(observation)
    rows = [
        make_row(evaluation, metric, model, condition, _weighted_mean(model_observations, share))
        for model, model_observations in by_model.items()
    ]
    name = "/".join(part for part in (evaluation, metric, condition) if part)
    return rows + [
        make_row(DIFFERENCE, name, model, baseline, _paired_difference(by_model[model], by_model[baseline]))
        for baseline in baselines
        for model in by_model
        if baseline in by_model and model != baseline
    ]


def _weighted_mean(observations: Sequence[Observation], share: bool) -> Estimate:
    clusters = zip(*(observation.clusters for observation in observations), strict=True)
    weights = [observation.weight for observation in observations]
    return intervals.mean([observation.value for observation in observations], *clusters, weights=weights, share=share)


def _paired_difference(
    model_observations: Sequence[Observation], baseline_observations: Sequence[Observation]
) -> Estimate:
    model_means, baseline_means = _cluster_means(model_observations), _cluster_means(baseline_observations)
    shared_clusters = [clusters for clusters in model_means if clusters in baseline_means]
    if not shared_clusters:
        return intervals.NO_ESTIMATE
    return intervals.paired_difference(
        [model_means[key] for key in shared_clusters],
        [baseline_means[key] for key in shared_clusters],
        *zip(*shared_clusters, strict=True),
    )


def _cluster_means(observations: Iterable[Observation]) -> dict[tuple[str, ...], float]:
    sums: dict[tuple[str, ...], tuple[float, float]] = {}
    for observation in observations:
        value, weight = sums.get(observation.clusters, (0.0, 0.0))
        sums[observation.clusters] = (value + observation.value, weight + observation.weight)
    return {clusters: value / weight for clusters, (value, weight) in sums.items()}
