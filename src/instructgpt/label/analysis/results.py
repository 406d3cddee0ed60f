"""Which model wins a blind evaluation, by how much, and how sure that is. Names stay hidden until the batch is closed.

The statistics package is imported when numbers are asked for, so that a site starts without it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from instructgpt.label.analysis.rankings import (
    StoredRanking,
    StoredRating,
    attach_models,
    load_completion_models,
    load_stored_rankings,
    load_stored_ratings,
)
from instructgpt.label.db.models import Batch, CompletionRow, Task, TaskCompletion
from instructgpt.records import LABELS
from instructgpt.results import ResultRow, result_row_to_dict

if TYPE_CHECKING:
    from instructgpt.statistics.bradley_terry import Strength
    from instructgpt.statistics.intervals import Estimate
    from instructgpt.statistics.win_rate import WinRate

_REDACTION = "▇▇▇"
"""What stands in a text where a model's name stood, as long as names are hidden."""


@dataclass(frozen=True, slots=True)
class EvaluationPrecision:
    """What may be known before names are: how much there is, and how wide the widest interval of a win rate would be."""

    rankings: int
    labelers: int
    prompts: int
    half_width: float | None


@dataclass(frozen=True, slots=True)
class EvaluationResults:
    """Everything the page shows."""

    baseline: str | None
    models: Sequence[str]
    precision: EvaluationPrecision
    wins: Sequence[WinRate]
    """Each model against the baseline; every two models where there is none."""
    by_cohort: Sequence[WinRate]
    by_use_case: Sequence[WinRate]
    matrix: Mapping[tuple[str, str], WinRate]
    """Every two models, each way round; `holm` counts every two models once."""
    strengths: Sequence[Strength]
    length_controlled: Mapping[str, Estimate]
    ratings: Mapping[tuple[str, str], Estimate]
    """(model, cohort) -> mean rating, 1 to 7; the cohort is empty for everybody."""
    labels: Mapping[tuple[str, str], Estimate]
    """(model, label) -> share of yes where the question applies."""


def is_blind(batch: Batch) -> bool:
    """Whether the names of the models of a batch are hidden, from everybody."""
    return batch.purpose == "evaluation" and batch.state != "closed" and batch.unblinded_at is None


def mark_unblinded(db: Session, batch: Batch, now_ms: int) -> None:
    """Show names before the batch is closed. Whoever calls notes it in the journal, with the reason."""
    batch.unblinded_at = batch.unblinded_at or now_ms
    db.flush()


def get_hidden_model_names(db: Session) -> set[str]:
    """The names of all models of batches that are blind now. One statement."""
    statement = (
        select(TaskCompletion.models)
        .join(Task, Task.id == TaskCompletion.task_id)
        .join(Batch, Batch.id == Task.batch_id)
        .where(Batch.purpose == "evaluation", Batch.state != "closed", Batch.unblinded_at.is_(None))
    )
    return {model for models in db.scalars(statement) for model in models}


def redact_model_names(text: str, names: Iterable[str]) -> str:
    """A text without these names, in whatever case; the longest first, so that no half of one is left."""
    name_variants = {part for name in names for part in (name, name.rstrip("/").rsplit("/", 1)[-1]) if part}
    for name in sorted(name_variants, key=len, reverse=True):
        text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", _REDACTION, text, flags=re.IGNORECASE)
    return text


def _load_rankings_and_ratings(db: Session, batch: Batch) -> tuple[list[StoredRanking], list[StoredRating]]:
    """The rankings of a batch with the names of the models, and its ratings. No hidden repeats, no gold. Four statements."""
    rankings = [each for each in load_stored_rankings(db, batch.id) if each.round == 0 and not each.gold]
    return attach_models(rankings, load_completion_models(db, batch.id)), load_stored_ratings(db, batch.id)


def compute_precision(db: Session, batch: Batch) -> EvaluationPrecision:
    """How far a batch is, without a name and without a result."""
    rankings, _ = _load_rankings_and_ratings(db, batch)
    return _build_precision(rankings, _pairwise_win_rates(rankings))


def compute_results(db: Session, batch: Batch, baseline: str | None = None) -> EvaluationResults:
    """Everything about a batch whose names may be seen. Four statements.

    Args:
        baseline: the model to compare with; the batch's own where not given.

    Raises:
        BadInput: nothing of what was ranked is of the baseline.
    """
    from instructgpt.statistics import bradley_terry, win_rate

    rankings, ratings = _load_rankings_and_ratings(db, batch)
    baseline_model = (baseline or batch.baseline) if rankings else None
    lengths = _completion_lengths(db, batch)
    pairs = _pairwise_win_rates(rankings)

    def win_rates_against_baseline(groups: Sequence[str | None] | None) -> list[WinRate]:
        """Win rates against the baseline, in groups where there are any."""
        if baseline_model is None or (groups is not None and not any(groups)):
            return []
        return win_rate.compute_win_rates(rankings, baseline_model, groups)

    def ranking_lengths(ranking: StoredRanking) -> list[float]:
        return [lengths[completion] for completion in ranking.completions]

    return EvaluationResults(
        baseline=baseline_model,
        models=sorted({model for each in rankings for model in each.models or ()}),
        precision=_build_precision(rankings, pairs),
        wins=win_rates_against_baseline(None) if baseline_model else pairs,
        by_cohort=win_rates_against_baseline([each.cohort for each in rankings]),
        by_use_case=win_rates_against_baseline([each.use_case for each in rankings]),
        matrix=_mirror_win_rates(pairs),
        strengths=bradley_terry.estimate_strengths(rankings, baseline_model) if rankings else [],
        length_controlled=win_rate.length_controlled_win_rates(rankings, baseline_model, ranking_lengths)
        if baseline_model
        else {},
        ratings=_mean_ratings(rankings, ratings),
        labels=_label_shares(rankings, ratings),
    )


def _pairwise_win_rates(rankings: Sequence[StoredRanking]) -> list[WinRate]:
    """Every two models."""
    from instructgpt.statistics import win_rate

    return win_rate.compute_win_rates(rankings) if rankings else []


def _build_precision(rankings: Sequence[StoredRanking], pairs: Sequence[WinRate]) -> EvaluationPrecision:
    half_widths = [
        (each.rate.high - each.rate.low) / 2
        for each in pairs
        if each.rate.high is not None and each.rate.low is not None
    ]
    return EvaluationPrecision(
        len(rankings),
        len({each.labeler for each in rankings}),
        len({each.prompt for each in rankings}),
        max(half_widths, default=None),
    )


def _completion_lengths(db: Session, batch: Batch) -> dict[str, float]:
    """Characters of every completion of a batch. One statement."""
    statement = (
        select(CompletionRow.id, func.length(CompletionRow.text))
        .join(TaskCompletion, TaskCompletion.completion_id == CompletionRow.id)
        .join(Task, Task.id == TaskCompletion.task_id)
        .where(Task.batch_id == batch.id)
    )
    return {completion: float(length) for completion, length in db.execute(statement)}


def _mirror_win_rates(pairs: Sequence[WinRate]) -> dict[tuple[str, str], WinRate]:
    """The rows of every two models, and the same rows seen from the other side."""
    table: dict[tuple[str, str], WinRate] = {}
    for win_rate in pairs:
        rate = win_rate.rate
        mirrored_rate = replace(
            rate,
            value=None if rate.value is None else 1 - rate.value,
            low=None if rate.high is None else 1 - rate.high,
            high=None if rate.low is None else 1 - rate.low,
        )
        table[win_rate.model, win_rate.opponent] = win_rate
        table[win_rate.opponent, win_rate.model] = replace(
            win_rate,
            model=win_rate.opponent,
            opponent=win_rate.model,
            wins=win_rate.losses,
            losses=win_rate.wins,
            rate=mirrored_rate,
        )
    return table


def _iter_model_ratings(
    rankings: Sequence[StoredRanking], ratings: Sequence[StoredRating]
) -> Iterable[tuple[StoredRanking, str, StoredRating]]:
    """(ranking, model, rating) of every completion; a text that several models gave counts for each of them."""
    rating_by_key = {(each.submission, each.completion): each for each in ratings}
    for ranking in rankings:
        for completion, model in zip(ranking.completions, ranking.models or (), strict=True):
            if (stored_rating := rating_by_key.get((ranking.submission, completion))) is not None:
                yield ranking, model, stored_rating


def _mean_ratings(
    rankings: Sequence[StoredRanking], ratings: Sequence[StoredRating]
) -> dict[tuple[str, str], Estimate]:
    """Mean ratings of each model, by everybody and by each cohort."""
    rows: dict[tuple[str, str], list[tuple[float, str, str]]] = {}
    for ranking, model, stored_rating in _iter_model_ratings(rankings, ratings):
        if stored_rating.rating is not None:
            for cohort in ("", ranking.cohort):
                rows.setdefault((model, cohort), []).append(
                    (float(stored_rating.rating), ranking.prompt, ranking.labeler)
                )
    return _clustered_means(rows, share=False)


def _label_shares(
    rankings: Sequence[StoredRanking], ratings: Sequence[StoredRating]
) -> dict[tuple[str, str], Estimate]:
    """How often each label of Table 3 was answered yes, of the answers yes and no."""
    rows: dict[tuple[str, str], list[tuple[float, str, str]]] = {}
    for ranking, model, stored_rating in _iter_model_ratings(rankings, ratings):
        for name, answer in stored_rating.labels.items():
            if answer is not None:
                rows.setdefault((model, name), []).append((float(answer), ranking.prompt, ranking.labeler))
    return _clustered_means(rows, share=True)


def _clustered_means(
    rows: Mapping[tuple[str, str], Sequence[tuple[float, str, str]]], share: bool
) -> dict[tuple[str, str], Estimate]:
    """Means clustered by prompt and labeler."""
    from instructgpt.statistics import intervals

    means = {}
    for key, observations in rows.items():
        values, prompts, labelers = zip(*observations, strict=True)
        means[key] = intervals.mean(values, prompts, labelers, share=share)
    return means


def to_result_rows(results: EvaluationResults) -> list[dict[str, object]]:
    """The rows of results.json: what `report` reads, with the same names as `evaluate` gives."""
    rows: list[ResultRow] = []

    def add(evaluation: str, metric: str, model: str, condition: str, value: Estimate) -> None:
        rows.append(ResultRow(evaluation, metric, model, condition, value.value, value.low, value.high, value.n))

    for wins, prefix in ((results.wins, ""), (results.by_cohort, ""), (results.by_use_case, "all/")):
        for win_rate in wins:
            add(
                "preference",
                f"win_rate_vs_{win_rate.opponent}",
                win_rate.model,
                f"{prefix}{win_rate.group}",
                win_rate.rate,
            )
    for model, value in results.length_controlled.items():
        add("preference", f"length_controlled_win_rate_vs_{results.baseline}", model, "", value)
    for strength in results.strengths:
        add("preference", "bradley_terry", strength.model, "", strength.strength)
    for (model, cohort), value in sorted(results.ratings.items()):
        add("preference", "rating", model, cohort, value)
    for name in LABELS:
        for model in results.models:
            if (model, name) in results.labels:
                add("labels", name, model, "", results.labels[model, name])
    return [result_row_to_dict(row) for row in rows]
