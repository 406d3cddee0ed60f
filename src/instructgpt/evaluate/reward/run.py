"""Reward models on rankings or on pairs in RewardBench's format: how often they are right, about what, and how far they can be trusted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from instructgpt.data.importing.fields import Dropped
from instructgpt.data.importing.rankings import from_pairs
from instructgpt.errors import BadInput
from instructgpt.evaluate.aggregate import Row
from instructgpt.evaluate.cache import Cache
from instructgpt.evaluate.preference_inputs import files_of, named_models
from instructgpt.evaluate.reward import reward_bench, reward_bench_2
from instructgpt.evaluate.reward.calibration import reliability_curve
from instructgpt.evaluate.reward.metrics import EVALUATION, ScoredRanking, measure
from instructgpt.evaluate.reward.scores import kept_scores, scored_rankings
from instructgpt.evaluate.tasks.base import Told, some
from instructgpt.models.policy import pick_device
from instructgpt.records import Ranking, as_record, read_rows, write_records
from instructgpt.run.directory import console

if TYPE_CHECKING:
    from instructgpt.evaluate.cli import EvaluateConfig

PROMPT_COLUMNS = ("question", "input", "instruction")
"""Other names under which pairs have their prompt."""


def run(config: EvaluateConfig, over: Callable[..., Any] = map) -> tuple[list[Row], str | None]:
    """The rows of every reward model. Writes each one's scored pairs, in RewardBench's columns, into the folder beside `--out`.

    Raises:
        BadInput: a file or a model is wrong, or no ranking can be read by a model.
    """
    if config.completions or not config.data or not config.model:
        raise BadInput("evaluate reward_model: give --model with reward models and --data with rankings or pairs")
    rankings = [ranking for file in files_of(config, "reward_model", "rankings") for ranking in read_comparisons(file)]
    kept = set(some(list(dict.fromkeys(ranking.prompt for ranking in rankings)), Told(config.limit or None, None, config.seed)))
    rankings = [ranking for ranking in rankings if ranking.prompt in kept]
    folder, device = config.out.with_suffix("") / "reward_model", str(pick_device(config.device))
    rows: list[Row] = []
    for name, source in named_models(config.model).items():
        score = partial(kept_scores, source, device, Cache(folder / "scores"), f"reward_model {name}", over)
        scored, unread = scored_rankings(rankings, score)
        if unread:
            console.print(f"{name}: {unread} completions are longer than its context and left out of their rankings", markup=False)
        if not any(ranking.pairs() for ranking in scored):
            raise BadInput(f"evaluate reward_model: no two completions of different ranks fit the context of {name}")
        pairs = list(reward_bench.scored_pairs(scored))
        write_records(folder / f"{name}-pairs.jsonl.gz", pairs)
        rows += measure(scored, name) + reliability(scored, name)
        second = [ranking for ranking in scored if reward_bench_2.COUNT in (ranking.model_extra or {})]
        if second:
            rows += reward_bench_2.measure(second, name)
        elif any("subset" in (ranking.model_extra or {}) for ranking in scored):
            rows += reward_bench.measure(pairs, name)
    show(rows)
    return rows, None


def read_comparisons(file: Path) -> list[Ranking]:
    """Rankings, or pairs (`chosen`, `rejected`, and a `subset` that becomes the source), or RewardBench 2's lists of both.

    Raises:
        BadInput: a row is neither.
    """
    found: list[Any] = []
    for where, row in read_rows(file):
        try:
            if all(isinstance(row.get(side), list) and all(isinstance(each, str) for each in row[side]) for side in ("chosen", "rejected")):
                found.append(as_record(Ranking, from_lists(row)))
            elif "chosen" in row and "rejected" in row:
                extra = {name: row[name] for name in ("id", "subset", "labeler", "cohort") if row.get(name) is not None}
                if row.get("subset") is not None:
                    extra |= {"source": str(row["subset"])}
                alias = next((name for name in PROMPT_COLUMNS if "prompt" not in row and name in row), "prompt")
                found += from_pairs(row | {"prompt": row.get(alias)}, extra)
            else:
                found.append(as_record(Ranking, row))
        except (ValueError, Dropped) as error:
            raise BadInput(f"{where}: {error}") from error
    if not found:
        raise BadInput(f"{file}: no ranking in it")
    return found


def from_lists(row: dict[str, Any]) -> dict[str, Any]:
    """A row of RewardBench 2 as a ranking: right completions first, all of rank 1, then the wrong ones, of rank 2."""
    right, wrong = row["chosen"], row["rejected"]
    subset = str(row.get("subset") or "")
    about = {"subset": subset, "source": subset, "id": str(row.get("id", "")), reward_bench_2.COUNT: len(right)}
    return {"prompt": row.get("prompt"), "completions": [*right, *wrong], "ranks": [1] * len(right) + [2] * len(wrong)} | about


def reliability(rankings: Sequence[ScoredRanking], model: str) -> list[Row]:
    """The reliability figure as rows: `confidence` and `right` of each bin, conditions `bin/01` and so on, the least confident first."""
    gaps = [(ranking.prompt, ranking.scores[better] - ranking.scores[worse]) for ranking in rankings for better, worse in ranking.pairs()]
    rows: list[Row] = []
    for number, each in enumerate(reliability_curve([gap for _, gap in gaps], [prompt for prompt, _ in gaps]), 1):
        condition, right = f"bin/{number:02}", each.right
        rows.append(Row(EVALUATION, "confidence", model, condition, each.confidence, None, None, right.n))
        rows.append(Row(EVALUATION, "right", model, condition, right.value, right.low, right.high, right.n))
    return rows


def show(rows: Sequence[Row]) -> None:
    """A line for each thing measured, a column for each model; the bins of the reliability figure stand in the file alone."""
    models = list(dict.fromkeys(row.model for row in rows))
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for row in rows:
        if not row.condition.startswith("bin/") and row.value is not None:
            ends = "" if row.low is None or row.high is None else f" [{row.low:.3f}, {row.high:.3f}]"
            cells.setdefault((row.metric, row.condition), {})[row.model] = f"{row.value:.3f}{ends}  n {row.n}"
    table = Table("", "", *models, box=None, pad_edge=False)
    for names, measured in cells.items():
        table.add_row(*names, *(measured.get(model, "") for model in models))
    console.print(table)
