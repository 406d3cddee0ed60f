"""The `reward_model` evaluation: reward models on rankings, pairs, and RewardBench data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from instructgpt.data.importing.fields import SkipRowError
from instructgpt.data.importing.rankings import from_pairs
from instructgpt.errors import InputError
from instructgpt.evaluate.cache import ResultCache
from instructgpt.evaluate.preference_inputs import parse_named_models, resolve_data_files
from instructgpt.evaluate.reward import reward_bench, reward_bench_2
from instructgpt.evaluate.reward.calibration import reliability_curve
from instructgpt.evaluate.reward.metrics import REWARD_MODEL_EVALUATION, ScoredRanking, measure
from instructgpt.evaluate.reward.scores import attach_reward_scores, cached_reward_scores
from instructgpt.evaluate.tasks.base import EvalSettings, subsample
from instructgpt.models.policy import pick_device
from instructgpt.records import Ranking, iter_rows, validate_record, write_records
from instructgpt.results import ResultRow
from instructgpt.run.directory import console

if TYPE_CHECKING:
    from instructgpt.evaluate.cli import EvaluateConfig

_PROMPT_COLUMNS = ("question", "input", "instruction")


def run_reward_model_evaluation(
    config: EvaluateConfig, map_fn: Callable[..., Any] = map
) -> tuple[list[ResultRow], str | None]:
    """Return the rows of every reward model. Writes each one's scored pairs, in RewardBench's columns, into `settings.folder`."""
    if config.completions or not config.data or not config.model:
        raise InputError("evaluate reward_model: give --model with reward models and --data with rankings or pairs")
    rankings = [
        ranking for file in resolve_data_files(config, "reward_model", "rankings") for ranking in read_comparisons(file)
    ]
    kept_prompts = set(
        subsample(
            list(dict.fromkeys(ranking.prompt for ranking in rankings)),
            EvalSettings(config.limit or None, None, config.seed),
        )
    )
    rankings = [ranking for ranking in rankings if ranking.prompt in kept_prompts]
    folder, device = config.out.with_suffix("") / "reward_model", str(pick_device(config.device))
    rows: list[ResultRow] = []
    for name, source in parse_named_models(config.model).items():
        score_fn = partial(
            cached_reward_scores, source, device, ResultCache(folder / "scores"), f"reward_model {name}", map_fn
        )
        model_rankings, num_too_long = attach_reward_scores(rankings, score_fn)
        if num_too_long:
            console.print(
                f"{name}: {num_too_long} completions are longer than its context and left out of their rankings",
                markup=False,
            )
        if not any(ranking.pairs() for ranking in model_rankings):
            raise InputError(f"evaluate reward_model: no two completions of different ranks fit the context of {name}")
        pairs = list(reward_bench.iter_scored_pairs(model_rankings))
        write_records(folder / f"{name}-pairs.jsonl.gz", pairs)
        rows += measure(model_rankings, name) + reliability_rows(model_rankings, name)
        reward_bench_2_rankings = [
            ranking for ranking in model_rankings if reward_bench_2.NUM_CORRECT_COLUMN in (ranking.model_extra or {})
        ]
        if reward_bench_2_rankings:
            rows += reward_bench_2.measure(reward_bench_2_rankings, name)
        elif any("subset" in (ranking.model_extra or {}) for ranking in model_rankings):
            rows += reward_bench.measure(pairs, name)
    _print_reward_model_rows(rows)
    return rows, None


def read_comparisons(file: Path) -> list[Ranking]:
    """Read rankings, pairs (`chosen`, `rejected`; a `subset` becomes the source), or RewardBench 2's lists of both."""
    rankings: list[Any] = []
    for location, row in iter_rows(file):
        try:
            if all(
                isinstance(row.get(side), list) and all(isinstance(each, str) for each in row[side])
                for side in ("chosen", "rejected")
            ):
                rankings.append(validate_record(Ranking, _parse_reward_bench_2_row(row)))
            elif "chosen" in row and "rejected" in row:
                extra = {name: row[name] for name in ("id", "subset", "labeler", "cohort") if row.get(name) is not None}
                if row.get("subset") is not None:
                    extra |= {"source": str(row["subset"])}
                prompt_column = next(
                    (name for name in _PROMPT_COLUMNS if "prompt" not in row and name in row), "prompt"
                )
                rankings += from_pairs(row | {"prompt": row.get(prompt_column)}, extra)
            else:
                rankings.append(validate_record(Ranking, row))
        except (ValueError, SkipRowError) as error:
            raise InputError(f"{location}: {error}") from error
    if not rankings:
        raise InputError(f"{file}: no ranking in it")
    return rankings


def _parse_reward_bench_2_row(row: dict[str, Any]) -> dict[str, Any]:
    chosen, rejected = row["chosen"], row["rejected"]
    subset = str(row.get("subset") or "")
    fields = {
        "subset": subset,
        "source": subset,
        "id": str(row.get("id", "")),
        reward_bench_2.NUM_CORRECT_COLUMN: len(chosen),
    }
    return {
        "prompt": row.get("prompt"),
        "completions": [*chosen, *rejected],
        "ranks": [1] * len(chosen) + [2] * len(rejected),
    } | fields


def reliability_rows(rankings: Sequence[ScoredRanking], model: str) -> list[ResultRow]:
    """Return `confidence` and `right` of each bin of the reliability diagram: conditions `bin/01` and so on, least confident first."""
    score_differences = [
        (ranking.prompt, ranking.scores[better] - ranking.scores[worse])
        for ranking in rankings
        for better, worse in ranking.pairs()
    ]
    rows: list[ResultRow] = []
    for bin_number, calibration_bin in enumerate(
        reliability_curve(
            [difference for _, difference in score_differences], [prompt for prompt, _ in score_differences]
        ),
        1,
    ):
        condition, accuracy = f"bin/{bin_number:02}", calibration_bin.accuracy
        rows.append(
            ResultRow(
                REWARD_MODEL_EVALUATION,
                "confidence",
                model,
                condition,
                calibration_bin.confidence,
                None,
                None,
                accuracy.n,
            )
        )
        rows.append(
            ResultRow(
                REWARD_MODEL_EVALUATION,
                "right",
                model,
                condition,
                accuracy.value,
                accuracy.low,
                accuracy.high,
                accuracy.n,
            )
        )
    return rows


def _print_reward_model_rows(rows: Sequence[ResultRow]) -> None:
    models = list(dict.fromkeys(row.model for row in rows))
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for row in rows:
        if not row.condition.startswith("bin/") and row.value is not None:
            interval = "" if row.low is None or row.high is None else f" [{row.low:.3f}, {row.high:.3f}]"
            cells.setdefault((row.metric, row.condition), {})[row.model] = f"{row.value:.3f}{interval}  n {row.n}"
    table = Table("", "", *models, box=None, pad_edge=False)
    for cell_key, cells_by_model in cells.items():
        table.add_row(*cell_key, *(cells_by_model.get(model, "") for model in models))
    console.print(table)
