"""What came of the cells: sweep.jsonl with a row a cell, and the combination chosen on validation data."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from instructgpt.errors import InputError
from instructgpt.formatting import format_seconds
from instructgpt.io import format_json_line, write_text_atomic
from instructgpt.report.comparison import find_bounds
from instructgpt.results import read_result_rows
from instructgpt.run.configs import STAGE_SECTIONS
from instructgpt.run.directory import read_jsonl_log, read_run_record
from instructgpt.statistics import intervals
from instructgpt.statistics.intervals import Estimate
from instructgpt.sweep.cells import Axis

_DIRECTORIES = {"base": "pretrain", "reward_base": "reward_pretrain"} | {
    name: name for name in ("start", "reward", "sft", "ppo", "ppo_ptx", "dpo", "public_tasks")
}
"""Stage directories with validation metrics -> name of the stage in a metric."""
DEFAULT_CHOICE = {
    "run": "ppo_ptx:validation/scores",
    "pretrain": "-pretrain:loss/validation",
    "start": "-start:loss/validation",
    "candidates": "reward:validation/accuracy",
    "reward_pretrain": "reward:validation/accuracy",
    "reward": "reward:validation/accuracy",
    "start_samples": "",
    "sft": "sft:validation/score",
    "ppo": "ppo:validation/scores",
    "ppo_ptx": "ppo_ptx:validation/scores",
    "public_tasks": "-public_tasks:loss/validation",
    "dpo": "dpo:validation/accuracy",
    "expert_iteration": "",
    "best_of_n": "",
    "exam": "",
}
"""Validation metric that chooses, by the last stage that is varied; a minus means that lower is better."""

CellRow = dict[str, Any]


@dataclass(frozen=True, slots=True)
class SweepChoice:
    """The combination with the best mean of a validation metric."""

    metric: str
    lowest: bool
    values: Mapping[str, Any]
    mean: float
    seeds: tuple[int, ...]


def read_metrics(directory: Path) -> dict[str, float]:
    """Return all numbers of a cell: results as EVALUATION:METRIC:MODEL:CONDITION, validation as STAGE:METRIC."""
    metrics: dict[str, float] = {}
    for folder, stage in _DIRECTORIES.items():
        if (directory / folder).is_dir():
            metrics |= {f"{stage}:{name}": value for name, value in _read_validation(directory / folder).items()}
    results = directory / "results.json"
    for row in read_result_rows(results) if results.exists() else ():
        if row.value is not None:
            name = ":".join(part for part in (row.evaluation, row.metric, row.model, row.condition) if part)
            metrics[name] = row.value
    return metrics


def _read_validation(stage: Path) -> dict[str, float]:
    """Return the validation metrics of the model that a stage kept."""
    record = read_run_record(stage) or {}
    if isinstance(record.get("validation"), dict):
        return {name: value for name, value in record["validation"].items() if isinstance(value, int | float)}
    rows = [row for row in read_jsonl_log(stage / "metrics.jsonl") if any("validation" in name for name in row)]
    kept_rows = [row for row in rows if _is_kept(row, record)]
    last = (kept_rows or rows or [{}])[-1]
    return {name: value for name, value in last.items() if "validation" in name}


def _is_kept(row: Mapping[str, Any], record: Mapping[str, Any]) -> bool:
    if "epoch" in record and "epoch" in row:
        return math.isclose(row["epoch"], record["epoch"], abs_tol=1e-6)
    return bool(row["step"] == record.get("step"))


def to_value(text: str) -> float | str:
    """Return the value of an axis as a number where it is one."""
    try:
        return float(text)
    except ValueError:
        return text


def write_rows(path: Path, rows: Iterable[CellRow]) -> None:
    write_text_atomic(path, map(format_json_line, rows))


# --- choosing --------------------------------------------------------------------------------------------------------


def resolve_choice(select: str, axes: Sequence[Axis]) -> str:
    """Return the metric that chooses, with a minus where lower is better; empty where nothing can be chosen.

    Raises:
        InputError: the metric is none of validation data.
    """
    order = ["run", *STAGE_SECTIONS]
    sections = sorted({section for axis in axes for section in axis.sections}, key=order.index)
    metric = select or DEFAULT_CHOICE[next((name for name in reversed(sections) if name != "exam"), "exam")]
    stage = metric.removeprefix("-").partition(":")[0]
    if metric and (stage not in _DIRECTORIES.values() or "validation" not in metric):
        raise InputError(
            f"--select {select}: expected STAGE:METRIC of validation data, as ppo_ptx:validation/scores or "
            f"-start:loss/validation; stages: {', '.join(_DIRECTORIES.values())}"
        )
    return metric


def compares_reward_models(metric: str, axes: Sequence[Axis]) -> bool:
    """Return whether a metric is a score, and the cells' scores come from different reward models."""
    upstream = {"run", "pretrain", "start", "candidates", "reward_pretrain", "reward"}
    is_score = "validation/score" in metric
    return is_score and any(section in upstream for axis in axes for section in axis.sections)


def choose(rows: Sequence[CellRow], metric: str) -> SweepChoice | None:
    """Return the best combination of those that all seeds have measured."""
    name, lowest = metric.removeprefix("-"), metric.startswith("-")
    candidates: list[SweepChoice] = []
    for values, cells in group_by_values(row for row in rows if not row["fresh"]):
        numbers = [row["metrics"].get(name) for row in cells]
        measured = [number for number in numbers if number is not None and math.isfinite(number)]
        if len(measured) == len(cells):
            seeds = tuple(row["seed"] for row in cells)
            candidates.append(SweepChoice(name, lowest, values, statistics.fmean(measured), seeds))
    if not candidates:
        return None
    return (min if lowest else max)(candidates, key=lambda choice: choice.mean)


def group_by_values(rows: Iterable[CellRow]) -> list[tuple[Mapping[str, Any], list[CellRow]]]:
    """Return the rows of each combination, in the order of their first."""
    groups: dict[str, tuple[Mapping[str, Any], list[CellRow]]] = {}
    for row in rows:
        groups.setdefault(json.dumps(row["values"], sort_keys=True), (row["values"], []))[1].append(row)
    return list(groups.values())


# --- sweep.md --------------------------------------------------------------------------------------------------------


def format_table(
    rows: Sequence[CellRow], axes: Sequence[Axis], metrics: Sequence[str], choice: SweepChoice | None
) -> str:
    """Return sweep.md: a line a combination with mean and interval over seeds, failures, and what was chosen."""
    head = [axis.name for axis in axes] + ["seeds", *metrics]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for values, cells in group_by_values(row for row in rows if not row["fresh"]):
        finished = [row for row in cells if row["state"] == "done"]
        seeds = str(len(cells)) if len(finished) == len(cells) else f"{len(finished)} of {len(cells)}"
        numbers = [format_mean(metric, [row["metrics"].get(metric) for row in finished]) for metric in metrics]
        lines.append(f"| {' | '.join([*map(format_value, values.values()), seeds, *numbers])} |")
    lines += ["", *_describe_choice(rows, choice)]
    lines += [
        f"- cell {row['cell']} ({format_values(row['values'])}, seed {row['seed']}) {row['state']}: {row['error']}"
        for row in rows
        if row["state"] in ("failed", "blocked")
    ]
    seconds = sum(row["seconds"] or 0 for row in rows)
    return "\n".join([*lines, f"- {format_seconds(seconds)} in cells, beside what they share", ""])


def _describe_choice(rows: Sequence[CellRow], choice: SweepChoice | None) -> list[str]:
    if choice is None:
        return ["- nothing was chosen: no combination has a validation metric on all seeds"]
    direction = "lowest" if choice.lowest else "highest"
    lines = [
        f"- chosen by the {direction} {choice.metric} on validation data: {format_values(choice.values)}, "
        f"{choice.mean:.4g} on seeds {', '.join(map(str, choice.seeds))}"
    ]
    fresh_rows = [row for row in rows if row["fresh"] and row["values"] == choice.values and row["state"] == "done"]
    if fresh_rows:
        numbers = [row["metrics"].get(choice.metric) for row in fresh_rows]
        seeds = ", ".join(str(row["seed"]) for row in fresh_rows)
        lines.append(f"- the chosen one on seeds {seeds}, which chose nothing: {format_mean(choice.metric, numbers)}")
    return lines


def mean_over_seeds(metric: str, numbers: Sequence[float]) -> Estimate:
    """Return the mean of a metric of sweep.jsonl over seeds; intervals of shares and ratings stay inside their range.

    Equal numbers of all seeds have no interval.
    """
    evaluation, *details = metric.split(":")
    bounds = find_bounds(evaluation, details[0]) if len(details) > 1 and evaluation != "overoptimization" else None
    if bounds is not None and (len(set(numbers)) == 1 or not all(bounds[0] <= n <= bounds[1] for n in numbers)):
        bounds = None
    return intervals.mean(numbers, range(len(numbers)), bounds=bounds)


def format_mean(metric: str, numbers: Sequence[float | None]) -> str:
    """Format a mean over seeds with its 95 % interval."""
    measured = [number for number in numbers if number is not None]
    if not measured:
        return "–"
    estimate = mean_over_seeds(metric, measured)
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.4g}"
    return f"{estimate.value:.4g} [{estimate.low:.4g}, {estimate.high:.4g}]"


def format_value(value: float | str) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def format_values(values: Mapping[str, float | str]) -> str:
    return ", ".join(f"{name} {format_value(value)}" for name, value in values.items())
