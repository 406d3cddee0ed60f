"""The rows of results.json, and how observations become rows: one a model, with the paired differences beside them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from instructgpt.errors import InputError
from instructgpt.records import write_text_atomic
from instructgpt.results import ResultRow as ResultRow
from instructgpt.results import result_row_to_dict
from instructgpt.statistics import intervals
from instructgpt.statistics.intervals import Estimate

DIFFERENCE = "difference"
"""The evaluation name of paired differences: metric `toxicity/mean_toxicity/respectful`, condition the model that was subtracted."""


@dataclass(frozen=True, slots=True)
class Observation:
    """One thing measured about one model. `clusters` are what it shares with others: (prompt,) or (prompt, labeler)."""

    model: str
    value: float
    clusters: tuple[str, ...]
    weight: float = 1.0


def make_row(evaluation: str, metric: str, model: str, condition: str, statistic: Estimate) -> ResultRow:
    """An estimate under its names."""
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
    """One row a model, then one row for each model minus each of the models in `against`.

    Args:
        share: the values lie in 0..1 (see `estimate.mean`).
        against: models to subtract, paired by cluster: only what both were measured on counts.

    Raises:
        ValueError: observations with different numbers of clusters, or a value that is not finite.
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
    """Paired by cluster: the mean of each cluster counts once."""
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


def write_result_rows(path: Path, rows: Iterable[ResultRow]) -> None:
    """Write results.json, one row a line. Raises BadInput where it cannot be written."""
    lines = ",\n".join(
        "  " + json.dumps(result_row_to_dict(each), ensure_ascii=False, allow_nan=False) for each in rows
    )
    write_text_atomic(path, f"[\n{lines}\n]\n")


def with_judge(rows: Iterable[ResultRow], judge: str) -> list[ResultRow]:
    """The same rows with who judged beside each."""
    return [replace(row, judge=judge) for row in rows]


def read_result_rows(path: Path) -> list[ResultRow]:
    """The rows of a results.json.

    Raises:
        BadInput: the file is missing, is not a JSON list of rows, or a row lacks a column.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        items = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not valid JSON ({error}); make it again with 'instructgpt evaluate'") from error
    if not isinstance(items, list):
        raise InputError(f"{path}: expected a JSON list of rows, found {type(items).__name__}")
    return [_parse_result_row(f"{path}: row {number}", each) for number, each in enumerate(items, 1)]


def _parse_result_row(location: str, values: Any) -> ResultRow:
    names = [field.name for field in fields(ResultRow) if field.name != "judge"]
    if not isinstance(values, dict) or not set(names) <= set(values):
        missing = [name for name in names if not isinstance(values, dict) or name not in values]
        raise InputError(f"{location}: a row needs the columns {', '.join(names)}; missing: {', '.join(missing)}")
    texts = {name: str(values.get(name) or "") for name in ("evaluation", "metric", "model", "condition", "judge")}
    try:
        value, low, high = (None if values[name] is None else float(values[name]) for name in ("value", "low", "high"))
        n = int(values["n"] or 0)
    except (TypeError, ValueError) as error:
        raise InputError(f"{location}: value, low, high and n must be numbers or null ({error})") from error
    if any(number is not None and not math.isfinite(number) for number in (value, low, high)):
        raise InputError(f"{location}: a number is not finite; what is not available is null")
    return ResultRow(**texts, value=value, low=low, high=high, n=n)
