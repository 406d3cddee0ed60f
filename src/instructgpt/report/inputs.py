"""What a run directory holds, read for the report; what is not there is simply not shown."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from instructgpt.errors import BadInput
from instructgpt.evaluate.aggregate import Row, read_rows
from instructgpt.records import Prompt, Ranking, Skipped, read_lines, read_records

STAGE_ORDER = ("base", "sft", "start", "reward", "ppo", "ppo_ptx")


@dataclass(frozen=True, slots=True)
class Parent:
    """What a stage was made from: where it lay, and its hash."""

    name: str
    path: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Stage:
    """One model directory: its run.json, and what it logged."""

    name: str
    info: Mapping[str, Any]
    parents: tuple[Parent, ...]
    metrics: tuple[Mapping[str, float], ...] = ()
    samples: tuple[Mapping[str, Any], ...] = ()

    def series(self, metric: str, along: str = "step") -> tuple[list[float], list[float]]:
        """(x, y) wherever both were logged."""
        points = [(row[along], row[metric]) for row in self.metrics if metric in row and along in row]
        return [x for x, _ in points], [y for _, y in points]

    def logged(self) -> set[str]:
        """The names of everything logged."""
        return {name for row in self.metrics for name in row}


@dataclass(frozen=True, slots=True)
class RunFiles:
    """Everything the report is drawn from."""

    directory: Path
    rows: tuple[Row, ...] = ()
    stages: Mapping[str, Stage] = field(default_factory=dict)
    over_optimisation: tuple[Mapping[str, Any], ...] = ()
    rankings: tuple[Ranking, ...] = ()
    use_cases: Mapping[str, str] = field(default_factory=dict)
    unread: tuple[str, ...] = ()
    name: str = ""


def read_results(sources: Sequence[Path]) -> RunFiles:
    """Rows of several run directories or files of results, for one page: no stages, no samples.

    A model whose name stands in several of them is told apart by where it comes from.

    Raises:
        BadInput: one of them is missing or damaged.
    """
    found = [(source, read_rows(source / "results.json" if source.is_dir() else source)) for source in sources]
    models = [{row.model for row in rows} for _, rows in found]
    twice = {model for mine in models for model in mine if sum(model in other for other in models) > 1}
    names = {source: source.name if source.is_dir() else source.stem for source, _ in found}
    if len(set(names.values())) < len(names):
        names = {source: f"{source.resolve().parent.name}/{name}" for source, name in names.items()}
    rows = [replace(row, model=f"{row.model} ({names[source]})") if row.model in twice else row for source, mine in found for row in mine]
    if not rows:
        raise BadInput(f"{', '.join(map(str, sources))}: no results in it; make some with 'instructgpt evaluate'")
    return RunFiles(directory=sources[0].parent, rows=tuple(rows), name=", ".join(names.values()))


def read_run(directory: Path) -> RunFiles:
    """Read a run directory; docs/report.md lists its files.

    Raises:
        BadInput: it is no directory, holds nothing to report on, or one of its files is damaged beyond the odd unfinished line.
    """
    if not directory.is_dir():
        raise BadInput(f"{directory}: no such directory; give the one that 'instructgpt run' made")
    unread: list[str] = []
    results = directory / "results.json"
    rankings = directory / "evaluation" / "preference" / "rankings.jsonl"
    curve = directory / "evaluation" / "over_optimisation.jsonl"
    run = RunFiles(
        directory=directory,
        rows=tuple(read_rows(results)) if results.is_file() else (),
        stages={stage.name: stage for stage in _stages(directory, unread)},
        over_optimisation=tuple(_json_lines(curve, unread)),
        rankings=tuple(_rankings(rankings, unread)) if rankings.is_file() else (),
        use_cases=_use_cases(directory / "world" / "prompts-test.jsonl"),
        unread=tuple(unread),
    )
    if not (run.rows or run.stages or run.rankings or run.over_optimisation):
        raise BadInput(f"{directory}: nothing to report on; expected results.json or stage directories with a run.json")
    return run


def _stages(directory: Path, unread: list[str]) -> Iterator[Stage]:
    """Every sub-directory with a run.json: those of the paper in its order, then the others by name."""
    names = [path.parent.name for path in sorted(directory.glob("*/run.json"))]
    for name in sorted(names, key=lambda name: (STAGE_ORDER.index(name) if name in STAGE_ORDER else len(STAGE_ORDER), name)):
        info = _json_object(directory / name / "run.json")
        parents = tuple(
            Parent(key, str(each.get("path", "")), str(each.get("sha256") or ""))
            for key, each in _mapping(info.get("parents")).items()
            if isinstance(each, dict)
        )
        metrics = tuple(finite(row) for row in _json_lines(directory / name / "metrics.jsonl", unread))
        yield Stage(name, info, parents, metrics, tuple(_json_lines(directory / name / "samples.jsonl", unread)))


def _json_object(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(f"{path}: not valid JSON ({error}); make the stage again, or take its directory away") from error
    if not isinstance(found, dict):
        raise BadInput(f"{path}: expected a JSON object, found {type(found).__name__}")
    return found


def _mapping(value: Any) -> dict[str, Any]:
    return {str(key): each for key, each in value.items()} if isinstance(value, dict) else {}


def _json_lines(path: Path, unread: list[str]) -> list[dict[str, Any]]:
    """The JSON objects of a log; none where there is no such file. A line that a killed run left unfinished is noted in `unread`."""
    if not path.is_file():
        return []
    rows = []
    for line_number, line in read_lines(path):
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            row = None
        if isinstance(row, dict):
            rows.append(row)
        else:
            unread.append(f"{path.parent.name}/{path.name}:{line_number}")
    return rows


def finite(row: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a logged line."""
    return {name: float(value) for name, value in row.items() if isinstance(value, int | float) and math.isfinite(value)}


def _rankings(path: Path, unread: list[str]) -> list[Ranking]:
    skipped = Skipped()
    rankings = read_records(Ranking, path, skipped)
    unread += [f"{path.parent.name}/{path.name}: {reason.rpartition(': ')[2]}" for reason in skipped.reasons]
    return rankings


def _use_cases(path: Path) -> dict[str, str]:
    """The use case of each test prompt's text."""
    prompts = read_records(Prompt, path, Skipped()) if path.is_file() else []
    return {prompt.text: prompt.use_case for prompt in prompts if prompt.use_case}
