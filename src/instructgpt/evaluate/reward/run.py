"""The `reward_model` evaluation: reward models on rankings, pairs, and RewardBench data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.table import Table

from instructgpt.data.importing.fields import RowContext, SkipRowError
from instructgpt.data.importing.rankings import from_pairs
from instructgpt.errors import InputError
from instructgpt.evaluate.aggregate import make_row
from instructgpt.evaluate.cache import ResultCache
from instructgpt.evaluate.comparison_settings import ComparisonSettings
from instructgpt.evaluate.preference_inputs import resolve_data_files, subsample_prompts
from instructgpt.evaluate.reward import reward_bench
from instructgpt.evaluate.reward.calibration import reliability_curve
from instructgpt.evaluate.reward.groups import group_notices, group_rows
from instructgpt.evaluate.reward.metrics import REWARD_MODEL_EVALUATION, ScoredRanking, measure, score_gaps
from instructgpt.evaluate.reward.scores import attach_reward_scores, cached_reward_scores
from instructgpt.io import SkippedLines, iter_rows, skip_or_raise
from instructgpt.models.loading import parse_named_models
from instructgpt.models.policy import pick_device
from instructgpt.records import Ranking, validate_record, write_records
from instructgpt.results import ResultRow
from instructgpt.run.directory import console
from instructgpt.statistics.intervals import Estimate

_PROMPT_COLUMNS = ("question", "input", "instruction")


def run_reward_model_evaluation(settings: ComparisonSettings, map_fn: Callable[..., Any] = map) -> list[ResultRow]:
    """Return the rows of every reward model. Writes scored pairs, in RewardBench's columns, into the folder."""
    if settings.completions or not settings.data or not settings.model:
        raise InputError("evaluate reward_model: give --model with reward models and --data with rankings or pairs")
    files = resolve_data_files(settings.data, "reward_model", "rankings")
    skipped = SkippedLines(settings.skip_bad)
    rankings = [ranking for file in files for ranking in read_comparisons(file, skipped)]
    if skipped.reasons:
        summary = f"left out {len(skipped.reasons)} bad rows (the first: {skipped.reasons[0]})"
        console.print(f"reward_model: {summary}", highlight=False, markup=False, soft_wrap=True)
    kept_prompts = subsample_prompts([ranking.prompt for ranking in rankings], settings)
    rankings = [ranking for ranking in rankings if ranking.prompt in kept_prompts]
    cache, device = ResultCache(settings.folder / "scores"), str(pick_device(settings.device))
    rows: list[ResultRow] = []
    for name, source in parse_named_models(settings.model).items():
        score_fn = partial(cached_reward_scores, source, device, cache, f"reward_model {name}", map_fn)
        scored, num_too_long = attach_reward_scores(rankings, score_fn)
        if num_too_long:
            summary = f"{num_too_long} completions are longer than its context and left out of their rankings"
            console.print(f"{name}: {summary}", markup=False)
        if not any(ranking.pairs() for ranking in scored):
            raise InputError(f"evaluate reward_model: no two completions of different ranks fit the context of {name}")
        pairs = list(reward_bench.iter_scored_pairs(scored))
        write_records(settings.folder / f"{name}-pairs.jsonl.gz", pairs)
        rows += measure(scored, name) + group_rows(scored, name) + reliability_rows(scored, name)
        for notice in group_notices(scored):
            console.print(f"{name}: {notice}", markup=False, soft_wrap=True)
        if second := [r for r in scored if reward_bench.NUM_CORRECT_COLUMN in (r.model_extra or {})]:
            rows += reward_bench.measure_reward_bench_2(second, name)
        elif any("subset" in (ranking.model_extra or {}) for ranking in scored):
            rows += reward_bench.measure_reward_bench(pairs, name)
    _print_reward_model_rows(rows)
    return rows


def read_comparisons(file: Path, skipped: SkippedLines | None = None) -> list[Ranking]:
    """Read rankings, pairs (`chosen`, `rejected`; a `subset` becomes the source), or RewardBench 2's lists of both."""
    rankings: list[Any] = []
    for location, row in iter_rows(file, skipped):
        try:
            if _is_text_list(row.get("chosen")) and _is_text_list(row.get("rejected")):
                rankings.append(validate_record(Ranking, _parse_reward_bench_2_row(row)))
            elif "chosen" in row and "rejected" in row:
                extra = {name: row[name] for name in ("id", "subset", "labeler", "cohort") if row.get(name) is not None}
                if row.get("subset") is not None:
                    extra["source"] = str(row["subset"])
                column = next((name for name in _PROMPT_COLUMNS if "prompt" not in row and name in row), "prompt")
                rankings += from_pairs(row | {"prompt": row.get(column)}, RowContext(extra))
            else:
                rankings.append(validate_record(Ranking, row))
        except (ValueError, SkipRowError) as error:
            skip_or_raise(location, ValueError(str(error)), skipped)
    if not rankings:
        raise InputError(f"{file}: the file has no rankings")
    return rankings


def _is_text_list(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _parse_reward_bench_2_row(row: dict[str, Any]) -> dict[str, Any]:
    chosen, rejected, subset = row["chosen"], row["rejected"], str(row.get("subset") or "")
    return {
        "prompt": row.get("prompt"),
        "completions": [*chosen, *rejected],
        "ranks": [1] * len(chosen) + [2] * len(rejected),
        "subset": subset,
        "source": subset,
        "id": str(row.get("id", "")),
        reward_bench.NUM_CORRECT_COLUMN: len(chosen),
    }


def reliability_rows(rankings: Sequence[ScoredRanking], model: str) -> list[ResultRow]:
    """Return `confidence` and `right` of each bin of the reliability diagram: `bin/01` …, least confident first."""
    gaps, keys = score_gaps(rankings)
    bins = reliability_curve(gaps, *keys)
    rows: list[ResultRow] = []
    for number, calibration_bin in enumerate(bins, 1):
        condition, accuracy = f"bin/{number:02}", calibration_bin.accuracy
        confidence = Estimate(calibration_bin.confidence, None, None, accuracy.n)
        rows.append(make_row(REWARD_MODEL_EVALUATION, "confidence", model, condition, confidence))
        rows.append(make_row(REWARD_MODEL_EVALUATION, "right", model, condition, accuracy))
    return rows


def _print_reward_model_rows(rows: Sequence[ResultRow]) -> None:
    models = list(dict.fromkeys(row.model for row in rows))
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for row in rows:
        if not row.condition.startswith("bin/") and row.value is not None:
            interval = "" if row.low is None or row.high is None else f" [{row.low:.3f}, {row.high:.3f}]"
            cells.setdefault((row.metric, row.condition), {})[row.model] = f"{row.value:.3f}{interval}  n {row.n}"
    table = Table("", "", *models, box=None, pad_edge=False)
    for key, values in cells.items():
        table.add_row(*key, *(values.get(model, "") for model in models))
    console.print(table)
