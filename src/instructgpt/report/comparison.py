"""Several runs side by side: grouped where they differ in nothing but the seed, with means over the runs of a group."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from pathlib import Path, PurePath
from string import ascii_uppercase
from typing import Any

from instructgpt.errors import InputError
from instructgpt.report.cost import RunCost, read_report_cost
from instructgpt.report.inputs import RunFiles, Stage, read_run
from instructgpt.report.language import join_list, translate
from instructgpt.report.naming import NON_PERCENT_METRICS, format_metric_value
from instructgpt.report.opening import list_seeds
from instructgpt.results import DIFFERENCE, ResultRow, read_result_rows
from instructgpt.statistics.intervals import CORRELATION, RATING, SHARE, Bounds, Estimate, mean

_OPTIONS_WITHOUT_EFFECT = frozenset(
    {"out", "seed", "resume", "track", "checkpoints", "checkpoint_minutes", "keep_state", "patience", "data_dir"}
)
"""They change where a run is written and how it goes on, never its numbers."""

_LAST_VALUES = (
    "loss/validation",
    "validation/loss",
    "validation/accuracy",
    "validation/accuracy_heldout",
    "validation/score",
    "objective/scores",
    "objective/kl",
    "completion/length",
)
"""Logged metrics whose last values are compared."""

_RowKey = tuple[str, str, str, str]


@dataclass(frozen=True, slots=True)
class ComparedRun:
    """One run directory, or one file of results."""

    path: Path
    name: str
    rows: tuple[ResultRow, ...]
    stages: Mapping[str, Stage] = field(default_factory=dict)
    options: Mapping[str, str] = field(default_factory=dict)
    """STAGE.OPTION -> value; paths are relative to the run directory."""
    cost: RunCost | None = None
    seeds: tuple[str, ...] = ()
    frontier: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class RunGroup:
    """Runs with equal options."""

    name: str
    runs: tuple[ComparedRun, ...]


def read_groups(sources: Sequence[Path]) -> list[RunGroup]:
    """Read run directories and files of results; group runs that differ in nothing but the seed.

    A file of results has no options, so that it is a group of its own.

    Raises:
        InputError: a source is missing or damaged, or none has anything to compare.
    """
    runs = [_read_source(source, name) for source, name in _name_sources(sources).items()]
    if not any(run.rows or run.stages for run in runs):
        raise InputError(f"{', '.join(map(str, sources))}: no results in it; make some with 'instructgpt evaluate'")
    members: dict[Any, list[ComparedRun]] = {}
    for run in runs:
        members.setdefault(frozenset(run.options.items()) if run.options else run.path, []).append(run)
    return _name_groups(list(members.values()))


def _name_sources(sources: Sequence[Path]) -> dict[Path, str]:
    names = {source: source.resolve().name if source.is_dir() else source.stem for source in sources}
    if len(set(names.values())) < len(names):
        names = {source: f"{source.resolve().parent.name}/{name}" for source, name in names.items()}
    return names


def _read_source(source: Path, name: str) -> ComparedRun:
    if not source.is_dir():
        return ComparedRun(source, name, tuple(read_result_rows(source)))
    run = read_run(source)
    cost = read_report_cost(source)
    return ComparedRun(source, name, run.rows, run.stages, _read_options(run), cost, _read_seeds(run), run.frontier)


def _read_seeds(run: RunFiles) -> tuple[str, ...]:
    return (run.seed,) if run.seed else tuple(list_seeds(run.stages.values()))


def _read_options(run: RunFiles) -> dict[str, str]:
    options = {}
    for stage in run.stages.values():
        config = stage.info.get("config")
        config = config if isinstance(config, Mapping) else {}
        root = str(PurePath(str(config.get("out") or "")).parent)
        for name, value in _flatten(config):
            if name not in _OPTIONS_WITHOUT_EFFECT:
                options[f"{stage.name}.{name}"] = _format_option(value, root)
    return options


def _flatten(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _format_option(value: Any, root: str) -> str:
    if isinstance(value, list):
        return ", ".join(_format_option(item, root) for item in value) or "–"
    text = "–" if value is None else str(value)
    return text.removeprefix(f"{root}/") if root not in ("", ".") else text


def _name_groups(groups: Sequence[Sequence[ComparedRun]]) -> list[RunGroup]:
    """Name each group by what the names of its runs have in common; by letters where that is empty or not unique."""
    names = [_common_name([run.name for run in runs]) for runs in groups]
    if not all(names) or len(set(names)) < len(names):
        names = [_letters(place) for place in range(len(groups))]
    return [RunGroup(name, tuple(runs)) for name, runs in zip(names, groups, strict=True)]


def _common_name(names: Sequence[str]) -> str:
    """Return `lr4` for `lr4-seed0` and `lr4-seed1`."""
    if len(names) == 1:
        return names[0]
    prefix = "".join(
        letters[0] for letters in takewhile(lambda letters: len(set(letters)) == 1, zip(*names, strict=False))
    )
    if any(name[len(prefix) :][:1].isdigit() for name in names):
        prefix = prefix.rstrip("0123456789")  # of seeds 1 and 12 the 1 is in common
    return prefix.rstrip("-_./ ").removesuffix("seed").rstrip("-_./ ")


def _letters(place: int) -> str:
    first, last = divmod(place, len(ascii_uppercase))
    return (ascii_uppercase[first - 1] if first else "") + ascii_uppercase[last]


def combine_rows(groups: Sequence[RunGroup]) -> list[ResultRow]:
    """Return the rows of all groups, each group's as means over its runs.

    A model name that occurs in several groups gets its group appended.
    """
    rows_by_group = [_mean_rows(group) for group in groups]
    models_by_group = [{row.model for row in rows} for rows in rows_by_group]
    ambiguous = {
        model for models in models_by_group for model in models if sum(model in other for other in models_by_group) > 1
    }

    def rename(model: str, group: RunGroup) -> str:
        return f"{model} ({group.name})" if model in ambiguous else model

    return [
        replace(
            row,
            model=rename(row.model, group),
            condition=rename(row.condition, group) if row.evaluation == DIFFERENCE else row.condition,
        )
        for group, rows in zip(groups, rows_by_group, strict=True)
        for row in rows
    ]


def _mean_rows(group: RunGroup) -> list[ResultRow]:
    rows_by_key: dict[_RowKey, list[ResultRow]] = {}
    for run in group.runs:
        for key, row in {(row.evaluation, row.metric, row.model, row.condition): row for row in run.rows}.items():
            rows_by_key.setdefault(key, []).append(row)
    return [_mean_row(rows) for rows in rows_by_key.values()]


def _mean_row(rows: Sequence[ResultRow]) -> ResultRow:
    """Return a single row as it is; of several the mean over runs, with Student's t over them."""
    measured = [row for row in rows if row.value is not None]
    if len(measured) < 2:
        return (measured or rows)[0]
    if len({row.value for row in measured}) == 1 and all({row.low, row.high} <= {None, row.value} for row in measured):
        return measured[0]  # by definition, as SFT against itself
    bounds = find_bounds(measured[0].evaluation, measured[0].metric)
    values = [row.value for row in measured if row.value is not None]
    inside = bounds if bounds and all(bounds[0] <= value <= bounds[1] for value in values) else None
    estimate = mean(values, range(len(values)), bounds=inside)
    return replace(
        measured[0],
        value=estimate.value,
        low=estimate.low,
        high=estimate.high,
        n=len(values),
        caution=translate("comparison.mean_over_runs"),
    )


def find_bounds(evaluation: str, metric: str) -> Bounds | None:
    """Return the smallest and largest value that a metric can have, or None where it has none."""
    if evaluation == DIFFERENCE:
        return None
    if metric == "rating":
        return RATING
    if "_minus_" in metric or metric.endswith("_gain"):
        return CORRELATION
    return SHARE if metric not in NON_PERCENT_METRICS else None


def list_differing_options(groups: Sequence[RunGroup]) -> dict[str, list[str]]:
    """Return option -> value in each group, of the options that are not equal in all groups with options."""
    with_options = [group for group in groups if group.runs[0].options]
    names = dict.fromkeys(name for group in with_options for name in group.runs[0].options)
    values = {name: [group.runs[0].options.get(name, "") for group in groups] for name in names}
    compared = [groups.index(group) for group in with_options]
    return {name: cells for name, cells in values.items() if len({cells[place] for place in compared}) > 1}


def compare_last_values(groups: Sequence[RunGroup]) -> dict[tuple[str, str], list[str]]:
    """Return (stage, metric) -> the mean of the last logged value in each group with its interval."""
    stages = dict.fromkeys(name for group in groups for run in group.runs for name in run.stages)
    table = {}
    for stage in stages:
        for metric in _LAST_VALUES:
            cells = [_last_value(group, stage, metric) for group in groups]
            if any(cells):
                table[stage, metric] = cells
    return table


def _last_value(group: RunGroup, stage: str, metric: str) -> str:
    values = [
        run_values[-1]
        for run in group.runs
        if stage in run.stages and (run_values := run.stages[stage].series(metric)[1])
    ]
    if not values:
        return ""
    return format_group_mean(mean(values, range(len(values))), metric)


def format_group_mean(estimate: Estimate, metric: str) -> str:
    """Format a mean with its interval over runs; a share in percent."""
    name = "share" if metric.startswith("validation/accuracy") else "heldout_loss"
    text = format_metric_value(estimate.value, name)
    if estimate.low is None or estimate.high is None:
        return text
    low, high = (format_metric_value(end, name).removesuffix("\u00a0%") for end in (estimate.low, estimate.high))
    return f"{text} [{low},\u00a0{high}]"


def describe_groups(groups: Sequence[RunGroup]) -> str:
    """Say how many runs there are, and how many seeds each group has."""
    runs = sum(len(group.runs) for group in groups)
    parts = [translate("comparison.group_size", name=group.name, count=len(group.runs)) for group in groups]
    if len(groups) == 1:
        return translate("comparison.one_group", count=runs)
    return translate("comparison.groups", count=runs, groups=len(groups), names=join_list(parts))
