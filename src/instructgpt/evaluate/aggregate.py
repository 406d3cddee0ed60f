"""Turn observations into rows of results.json: one per model, and paired differences between models."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from instructgpt.results import DIFFERENCE, ResultRow
from instructgpt.statistics import intervals
from instructgpt.statistics.intervals import SHARE, Bounds, Estimate, Measurements


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
    numbers = (statistic.value, statistic.low, statistic.high, statistic.n)
    return ResultRow(evaluation, metric, model, condition, *numbers, caution=statistic.caution)


def aggregate_per_model(
    evaluation: str,
    metric: str,
    condition: str,
    observations: Iterable[Observation],
    *,
    share: bool = False,
    bounds: Bounds | None = None,
    baselines: Sequence[str] = (),
) -> list[ResultRow]:
    """Return one row per model, then one per model and baseline with their difference, paired by shared clusters.

    `share` says that the values lie in 0..1, `bounds` in what other range (see `intervals.mean`). Raise ValueError for
    values that are not finite.
    """
    bounds = SHARE if share else bounds
    by_model: dict[str, list[Observation]] = {}
    for observation in observations:
        by_model.setdefault(observation.model, []).append(observation)
    measured = {model: to_measurements(model_observations) for model, model_observations in by_model.items()}
    rows = [
        make_row(
            evaluation,
            metric,
            model,
            condition,
            intervals.mean(m.values, *m.clusters, weights=m.weights, bounds=bounds),
        )
        for model, m in measured.items()
    ]
    name = "/".join(part for part in (evaluation, metric, condition) if part)
    return rows + [
        make_row(DIFFERENCE, name, model, baseline, intervals.difference(measured[model], measured[baseline], bounds))
        for baseline in baselines
        for model in measured
        if baseline in measured and model != baseline and _has_common_prompt(by_model[model], by_model[baseline])
    ]


def _has_common_prompt(first: Iterable[Observation], second: Iterable[Observation]) -> bool:
    """Return whether two models were measured on some prompt together; else they are not compared."""
    return not {each.clusters[0] for each in first}.isdisjoint(each.clusters[0] for each in second)


def to_measurements(observations: Sequence[Observation]) -> Measurements:
    """Return the values, cluster keys and weights of observations as columns."""
    return Measurements(
        [observation.value for observation in observations],
        list(zip(*(observation.clusters for observation in observations), strict=True)),
        [observation.weight for observation in observations],
    )
