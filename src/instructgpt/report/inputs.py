"""Files of a run directory as inputs of the report; missing files are skipped."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from instructgpt.errors import InputError
from instructgpt.records import Prompt, Ranking, SkippedLines, iter_lines, read_records
from instructgpt.results import ResultRow, read_result_rows
from instructgpt.run.rounds import find_newest_round, find_rounds, is_round_directory

_OVER_OPTIMIZATION_NAME = "over_optimisation.jsonl"
_STAGE_ORDER = ("base", "public_tasks", "sft", "start", "reward", "dpo", "expert_iteration", "ppo", "ppo_ptx")


@dataclass(frozen=True, slots=True)
class Parent:
    name: str
    path: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Stage:
    """One model directory: run.json and logged metrics."""

    name: str
    info: Mapping[str, Any]
    parents: tuple[Parent, ...]
    metrics: tuple[Mapping[str, float], ...] = ()
    samples: tuple[Mapping[str, Any], ...] = ()

    def series(self, metric: str, x_metric: str = "step") -> tuple[list[float], list[float]]:
        """Return (x, y) of the steps that logged both."""
        points = [(row[x_metric], row[metric]) for row in self.metrics if metric in row and x_metric in row]
        return [x for x, _ in points], [y for _, y in points]

    def metric_names(self) -> set[str]:
        return {name for row in self.metrics for name in row}


@dataclass(frozen=True, slots=True)
class RunFiles:
    directory: Path
    rows: tuple[ResultRow, ...] = ()
    stages: Mapping[str, Stage] = field(default_factory=dict)
    over_optimization: tuple[Mapping[str, Any], ...] = ()
    frontier: tuple[Mapping[str, Any], ...] = ()
    """Points of every method: truth and proxy over KL, with costs."""
    rankings: tuple[Ranking, ...] = ()
    use_cases: Mapping[str, str] = field(default_factory=dict)
    unreadable_lines: tuple[str, ...] = ()
    name: str = ""
    """Of a page of results from several sources; empty for the page of one run."""
    seed: str = ""
    """Of the whole run; its stages may derive theirs from it."""
    round_curves: Mapping[str, tuple[Mapping[str, Any], ...]] = field(default_factory=dict)
    """Points of score and true utility by round; empty in a run of one round."""


def read_run(directory: Path) -> RunFiles:
    """Read a run directory, or one of its rounds; docs/reference/report.md lists its files.

    Of a run with several rounds, reward model and policies are those of the newest.

    Raises:
        InputError: not a directory, nothing to report on, or a file is damaged beyond an unfinished last line.
    """
    if not directory.is_dir():
        raise InputError(f"{directory}: no such directory; give the one that 'instructgpt run' made")
    unreadable_lines: list[str] = []
    results_path, newest = _results_file(directory), find_newest_round(directory) or directory
    rankings_path = newest / "evaluation" / "preference" / "rankings.jsonl"
    over_optimization_path = newest / "evaluation" / _OVER_OPTIMIZATION_NAME
    folders = [directory] if newest is directory else [directory, newest]
    stages = (stage for folder in folders for stage in _iter_stages(folder, unreadable_lines))
    run = RunFiles(
        directory=directory,
        rows=tuple(read_result_rows(results_path)) if results_path.is_file() else (),
        stages={stage.name: stage for stage in stages},
        over_optimization=tuple(_read_json_lines(over_optimization_path, unreadable_lines)),
        frontier=tuple(_read_json_lines(newest / "evaluation" / "frontier.jsonl", unreadable_lines)),
        rankings=tuple(_read_rankings(rankings_path, unreadable_lines)) if rankings_path.is_file() else (),
        use_cases=_read_use_cases(directory / "world" / "prompts-test.jsonl"),
        round_curves={
            folder.name: tuple(_read_json_lines(folder / "evaluation" / _OVER_OPTIMIZATION_NAME, unreadable_lines))
            for folder in find_rounds(directory)
        },
        unreadable_lines=tuple(unreadable_lines),
        seed=_read_seed(directory / "run.json"),
    )
    if not (run.rows or run.stages or run.rankings or run.over_optimization):
        raise InputError(
            f"{directory}: nothing to report on; expected results.json or stage directories with a run.json"
        )
    return run


def _results_file(directory: Path) -> Path:
    """Return the results of a run directory, or of a round, which has them in `evaluation/`."""
    path = directory / "results.json"
    return path if path.is_file() or not is_round_directory(directory) else directory / "evaluation" / "results.json"


def _iter_stages(directory: Path, unreadable_lines: list[str]) -> Iterator[Stage]:
    """Yield every sub-directory with a run.json: the paper's in its order, then the others by name."""
    names = [path.parent.name for path in sorted(directory.glob("*/run.json"))]
    for name in sorted(
        names, key=lambda name: (_STAGE_ORDER.index(name) if name in _STAGE_ORDER else len(_STAGE_ORDER), name)
    ):
        info = _read_json_object(directory / name / "run.json")
        parents = tuple(
            Parent(parent_name, str(parent.get("path", "")), str(parent.get("sha256") or ""))
            for parent_name, parent in _as_mapping(info.get("parents")).items()
            if isinstance(parent, dict)
        )
        metrics = tuple(
            finite_numbers(row) for row in _read_json_lines(directory / name / "metrics.jsonl", unreadable_lines)
        )
        yield Stage(
            name, info, parents, metrics, tuple(_read_json_lines(directory / name / "samples.jsonl", unreadable_lines))
        )


def _read_json_object(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}: not valid JSON ({error}); make the stage again, or take its directory away"
        ) from error
    if not isinstance(document, dict):
        raise InputError(f"{path}: expected a JSON object, found {type(document).__name__}")
    return document


def _read_seed(path: Path) -> str:
    record = _read_json_object(path) if path.is_file() else {}
    seed = record.get("seed", _as_mapping(record.get("config")).get("seed"))
    return "" if seed is None else str(seed)


def _as_mapping(value: Any) -> dict[str, Any]:
    return {str(key): each for key, each in value.items()} if isinstance(value, dict) else {}


def _read_json_lines(path: Path, unreadable_lines: list[str]) -> list[dict[str, Any]]:
    """Read the JSON objects of a log, empty if missing.

    An unfinished line of a killed run is noted in `unreadable_lines`.
    """
    if not path.is_file():
        return []
    rows = []
    for line_number, line in iter_lines(path):
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            row = None
        if isinstance(row, dict):
            rows.append(row)
        else:
            unreadable_lines.append(f"{path.parent.name}/{path.name}:{line_number}")
    return rows


def finite_numbers(row: Mapping[str, Any]) -> dict[str, float]:
    return {
        name: float(value) for name, value in row.items() if isinstance(value, int | float) and math.isfinite(value)
    }


def _read_rankings(path: Path, unreadable_lines: list[str]) -> list[Ranking]:
    skipped = SkippedLines()
    rankings = read_records(Ranking, path, skipped)
    unreadable_lines += [f"{path.parent.name}/{path.name}: {reason.rpartition(': ')[2]}" for reason in skipped.reasons]
    return rankings


def _read_use_cases(path: Path) -> dict[str, str]:
    """Read the use case of each test prompt."""
    prompts = read_records(Prompt, path, SkippedLines()) if path.is_file() else []
    return {prompt.prompt: prompt.use_case for prompt in prompts if prompt.use_case}
