"""The rows of results.json, and how observations become rows: one a model, with the paired differences beside them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from instructgpt.errors import BadInput
from instructgpt.records import write_text
from instructgpt.results import Row as Row
from instructgpt.results import as_json
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
    over: float = 1.0


def row(evaluation: str, metric: str, model: str, condition: str, measured: Estimate) -> Row:
    """An estimate under its names."""
    return Row(evaluation, metric, model, condition, measured.value, measured.low, measured.high, measured.n)


def per_model(
    evaluation: str, metric: str, condition: str, observations: Iterable[Observation], *, share: bool = False, against: Sequence[str] = ()
) -> list[Row]:
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
    rows = [row(evaluation, metric, model, condition, _mean(mine, share)) for model, mine in by_model.items()]
    name = "/".join(part for part in (evaluation, metric, condition) if part)
    return rows + [
        row(DIFFERENCE, name, model, other, _difference(by_model[model], by_model[other]))
        for other in against
        for model in by_model
        if other in by_model and model != other
    ]


def _mean(observations: Sequence[Observation], share: bool) -> Estimate:
    clusters = zip(*(observation.clusters for observation in observations), strict=True)
    over = [observation.over for observation in observations]
    return intervals.mean([observation.value for observation in observations], *clusters, over=over, share=share)


def _difference(mine: Sequence[Observation], other: Sequence[Observation]) -> Estimate:
    """Paired by cluster: the mean of each cluster counts once."""
    first, second = _cluster_means(mine), _cluster_means(other)
    shared = [clusters for clusters in first if clusters in second]
    if not shared:
        return intervals.NOTHING
    return intervals.difference([first[key] for key in shared], [second[key] for key in shared], *zip(*shared, strict=True))


def _cluster_means(observations: Iterable[Observation]) -> dict[tuple[str, ...], float]:
    sums: dict[tuple[str, ...], tuple[float, float]] = {}
    for observation in observations:
        value, over = sums.get(observation.clusters, (0.0, 0.0))
        sums[observation.clusters] = (value + observation.value, over + observation.over)
    return {clusters: value / over for clusters, (value, over) in sums.items()}


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write results.json, one row a line. Raises BadInput where it cannot be written."""
    lines = ",\n".join("  " + json.dumps(as_json(each), ensure_ascii=False, allow_nan=False) for each in rows)
    write_text(path, f"[\n{lines}\n]\n")


def judged(rows: Iterable[Row], judge: str) -> list[Row]:
    """The same rows with who judged beside each."""
    return [replace(row, judge=judge) for row in rows]


def read_rows(path: Path) -> list[Row]:
    """The rows of a results.json.

    Raises:
        BadInput: the file is missing, is not a JSON list of rows, or a row lacks a column.
    """
    if not path.is_file():
        raise BadInput(f"{path}: no such file")
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: not valid JSON ({error}); make it again with 'instructgpt evaluate'") from error
    if not isinstance(listed, list):
        raise BadInput(f"{path}: expected a JSON list of rows, found {type(listed).__name__}")
    return [_row(f"{path}: row {number}", each) for number, each in enumerate(listed, 1)]


def _row(where: str, values: Any) -> Row:
    names = [field.name for field in fields(Row) if field.name != "judge"]
    if not isinstance(values, dict) or not set(names) <= set(values):
        missing = [name for name in names if not isinstance(values, dict) or name not in values]
        raise BadInput(f"{where}: a row needs the columns {', '.join(names)}; missing: {', '.join(missing)}")
    texts = {name: str(values.get(name) or "") for name in ("evaluation", "metric", "model", "condition", "judge")}
    try:
        value, low, high = (None if values[name] is None else float(values[name]) for name in ("value", "low", "high"))
        n = int(values["n"] or 0)
    except (TypeError, ValueError) as error:
        raise BadInput(f"{where}: value, low, high and n must be numbers or null ({error})") from error
    if any(number is not None and not math.isfinite(number) for number in (value, low, high)):
        raise BadInput(f"{where}: a number is not finite; what is not available is null")
    return Row(**texts, value=value, low=low, high=high, n=n)
