"""Results of blind evaluations: win rates, strengths, ratings and labels, with intervals.

Model names stay hidden until the batch is closed or unblinded.

The statistics package is imported inside the functions to keep scipy out of the site's start.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from sqlalchemy import Text, cast, func, select
from sqlalchemy.orm import Session

from instructgpt.label.analysis.quality import load_question_sets, put_on_one_scale
from instructgpt.label.analysis.rankings import (
    StoredRanking,
    StoredRating,
    attach_models,
    load_completion_models,
    load_stored_rankings,
    load_stored_ratings,
)
from instructgpt.label.db.models.submissions import Assignment
from instructgpt.label.db.models.tasks import Batch, CompletionRow, Task, TaskCompletion
from instructgpt.records import LABELS, rescale_rating
from instructgpt.results import ResultRow, result_row_to_dict

if TYPE_CHECKING:
    from instructgpt.statistics.bradley_terry import Strength
    from instructgpt.statistics.intervals import Bounds, Estimate
    from instructgpt.statistics.win_rate import WinRate

    _Estimates = dict[tuple[str, str], Estimate]
    _Observations = dict[tuple[str, str], list[tuple[float, str, str]]]  # (value, prompt, labeler) each

_REDACTION = "▇▇▇"


@dataclass(frozen=True, slots=True)
class EvaluationPrecision:
    """The progress of a blind evaluation, without names or results."""

    rankings: int
    labelers: int
    prompts: int
    half_width: float | None
    """Half the width of the widest win-rate interval."""


@dataclass(frozen=True, slots=True)
class EvaluationResults:
    baseline: str | None
    models: Sequence[str]
    precision: EvaluationPrecision
    wins: Sequence[WinRate]
    """Each model against the baseline, or all pairs of models without a baseline."""
    by_cohort: Sequence[WinRate]
    by_use_case: Sequence[WinRate]
    matrix: Mapping[tuple[str, str], WinRate]
    """All ordered pairs of models; the Holm correction counts each unordered pair once."""
    strengths: Sequence[Strength]
    length_controlled: Mapping[str, Estimate]
    ratings: Mapping[tuple[str, str], Estimate]
    """(model, cohort) -> mean rating, 1 to `rating_points`; cohort "" is all labelers."""
    rating_points: int
    has_mixed_scales: bool
    """The batches have different scales; their ratings were rescaled to the paper's."""
    labels: Mapping[tuple[str, str], Estimate]
    """(model, label) -> share of yes among yes and no."""


def is_blind(batch: Batch) -> bool:
    """Return whether the batch's model names are hidden from every account."""
    return batch.purpose == "evaluation" and batch.state != "closed" and batch.unblinded_at is None


def mark_unblinded(db: Session, batch: Batch, now_ms: int) -> None:
    """Reveal the names before the batch is closed. The caller writes the audit log entry with the reason."""
    batch.unblinded_at = batch.unblinded_at or now_ms
    db.flush()


def get_hidden_model_names(db: Session) -> set[str]:
    """Return the model names of all batches that are blind now. One statement."""
    statement = (
        select(cast(TaskCompletion.models, Text))
        .join(Task, Task.id == TaskCompletion.task_id)
        .join(Batch, Batch.id == Task.batch_id)
        .where(Batch.purpose == "evaluation", Batch.state != "closed", Batch.unblinded_at.is_(None))
        .distinct()
    )
    return {model for models in db.scalars(statement) for model in json.loads(models)}


def redact_model_names(text: str, names: Iterable[str]) -> str:
    """Replace model names, and the last components of model paths, regardless of case."""
    variants = {part for name in names for part in (name, name.rstrip("/").rsplit("/", 1)[-1]) if part}
    for name in sorted(variants, key=len, reverse=True):  # longest first: one name may be part of another
        text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", _REDACTION, text, flags=re.IGNORECASE)
    return text


def redact_turns(messages: Sequence[Mapping[str, str]] | None, names: Iterable[str]) -> list[dict[str, str]] | None:
    """Redact the turns of a conversation; None stays None."""
    if messages is None:
        return None
    names = list(names)
    return [{**message, "content": redact_model_names(message["content"], names)} for message in messages]


def _load_rankings_and_ratings(db: Session, batches: Sequence[Batch]) -> tuple[list[StoredRanking], list[StoredRating]]:
    """Load rankings with model names, without hidden repeats and gold, and ratings. Four statements a batch."""
    rankings: list[StoredRanking] = []
    ratings: list[StoredRating] = []
    for batch in batches:
        rows = [row for row in load_stored_rankings(db, batch.id) if row.round == 0 and not row.gold]
        rankings += attach_models(rows, load_completion_models(db, batch.id))
        ratings += load_stored_ratings(db, batch.id)
    return rankings, ratings


def compute_precision(db: Session, batch: Batch) -> EvaluationPrecision:
    rankings, _ = _load_rankings_and_ratings(db, [batch])
    return _build_precision(rankings, _pairwise_win_rates(rankings))


def compute_results(db: Session, batches: Sequence[Batch], baseline: str | None = None) -> EvaluationResults:
    """Compute the results of batches whose names may be shown, together. Six statements a batch at most.

    Args:
        baseline: by default that of the batches, if they have the same.

    Raises:
        InputError: no ranking contains the baseline.
    """
    from instructgpt.statistics import bradley_terry, win_rate

    rankings, ratings = _load_rankings_and_ratings(db, batches)
    ratings, rating_points, has_mixed_scales = put_on_one_scale(load_question_sets(db), rankings, ratings)
    pairs, lengths = _pairwise_win_rates(rankings), _completion_lengths(db, batches)
    baseline_model = (baseline or get_common_baseline(batches)) if rankings else None

    def grouped_win_rates(groups: Sequence[str | None]) -> list[WinRate]:
        if baseline_model is None or not any(groups):
            return []
        return win_rate.compute_win_rates(rankings, baseline_model, groups)

    def ranking_lengths(ranking: StoredRanking) -> list[float]:
        return [lengths[completion] for completion in ranking.completions]

    length_controlled: Mapping[str, Estimate] = {}
    if baseline_model:
        length_controlled = win_rate.length_controlled_win_rates(rankings, baseline_model, ranking_lengths)
    return EvaluationResults(
        baseline=baseline_model,
        models=sorted({model for ranking in rankings for model in ranking.models or ()}),
        precision=_build_precision(rankings, pairs),
        wins=win_rate.compute_win_rates(rankings, baseline_model) if baseline_model else pairs,
        by_cohort=grouped_win_rates([ranking.cohort for ranking in rankings]),
        by_use_case=grouped_win_rates([ranking.use_case for ranking in rankings]),
        matrix=_mirror_win_rates(pairs),
        strengths=bradley_terry.estimate_strengths(rankings, baseline_model) if rankings else [],
        length_controlled=length_controlled,
        ratings=_mean_ratings(rankings, ratings, rating_points),
        rating_points=rating_points,
        has_mixed_scales=has_mixed_scales,
        labels=_label_shares(rankings, ratings),
    )


def _pairwise_win_rates(rankings: Sequence[StoredRanking]) -> list[WinRate]:
    from instructgpt.statistics import win_rate

    return win_rate.compute_win_rates(rankings) if rankings else []


def _build_precision(rankings: Sequence[StoredRanking], pairs: Sequence[WinRate]) -> EvaluationPrecision:
    rates = [pair.rate for pair in pairs]
    widths = [rate.high - rate.low for rate in rates if rate.high is not None and rate.low is not None]
    labelers, prompts = {ranking.labeler for ranking in rankings}, {ranking.prompt for ranking in rankings}
    return EvaluationPrecision(len(rankings), len(labelers), len(prompts), max(widths) / 2 if widths else None)


def get_common_baseline(batches: Sequence[Batch]) -> str | None:
    """Return the baseline that all batches have; None without one."""
    baselines = {batch.baseline for batch in batches}
    return baselines.pop() if len(baselines) == 1 else None


def find_pool_warnings(db: Session, batches: Sequence[Batch]) -> list[tuple[str, dict[str, str]]]:
    """Return what makes batches hard to compare, as (key of the catalogue, values): models, baselines, questions."""
    models = {
        batch.name: {name for names in load_completion_models(db, batch.id).values() for name in names}
        for batch in batches
    }
    warnings: list[tuple[str, dict[str, str]]] = []
    everywhere = set.intersection(*models.values())
    if partial := sorted(set.union(*models.values()) - everywhere):
        warnings.append(("models", {"models": ", ".join(partial)}))
    if len({batch.baseline for batch in batches}) > 1:
        warnings.append(("baselines", {}))
    if len({repr(batch.questions) for batch in batches}) > 1:
        warnings.append(("questions", {}))
    return warnings


def _completion_lengths(db: Session, batches: Sequence[Batch]) -> dict[str, float]:
    statement = (
        select(CompletionRow.id, func.length(CompletionRow.text))
        .join(TaskCompletion, TaskCompletion.completion_id == CompletionRow.id)
        .join(Task, Task.id == TaskCompletion.task_id)
        .where(Task.batch_id.in_([batch.id for batch in batches]), Task.id.in_(select(Assignment.task_id)))
    )
    return {completion: float(length) for completion, length in db.execute(statement)}


def _mirror_win_rates(pairs: Sequence[WinRate]) -> dict[tuple[str, str], WinRate]:
    """Return each row under both orders of its two models, the second one mirrored."""
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
    """Yield (ranking, model, rating) per completion; a completion of several models counts for each of them."""
    rating_by_key = {(row.submission, row.completion): row for row in ratings}
    for ranking in rankings:
        for completion, model in zip(ranking.completions, ranking.models or (), strict=True):
            if (rating := rating_by_key.get((ranking.submission, completion))) is not None:
                yield ranking, model, rating


def _mean_ratings(rankings: Sequence[StoredRanking], ratings: Sequence[StoredRating], rating_points: int) -> _Estimates:
    rows: _Observations = {}
    for ranking, model, row in _iter_model_ratings(rankings, ratings):
        if row.rating is not None:
            observation = (float(row.rating), ranking.prompt, ranking.labeler)
            for cohort in ("", ranking.cohort):
                rows.setdefault((model, cohort), []).append(observation)
    return _clustered_means(rows, (1.0, float(rating_points)))


def _label_shares(rankings: Sequence[StoredRanking], ratings: Sequence[StoredRating]) -> _Estimates:
    from instructgpt.statistics import intervals

    rows: _Observations = {}
    for ranking, model, row in _iter_model_ratings(rankings, ratings):
        for name, answer in row.labels.items():
            if answer is not None:
                rows.setdefault((model, name), []).append((float(answer), ranking.prompt, ranking.labeler))
    return _clustered_means(rows, intervals.SHARE)


def _clustered_means(rows: _Observations, bounds: Bounds) -> _Estimates:
    from instructgpt.statistics import intervals

    means = {}
    for key, observations in rows.items():
        values, prompts, labelers = zip(*observations, strict=True)
        means[key] = intervals.mean(values, prompts, labelers, bounds=bounds)
    return means


def _on_paper_scale(estimate: Estimate, points: int) -> Estimate:
    ends = (estimate.value, estimate.low, estimate.high)
    value, low, high = (None if end is None else rescale_rating(end, points) for end in ends)
    return replace(estimate, value=value, low=low, high=high)


def to_result_rows(results: EvaluationResults) -> list[dict[str, object]]:
    """Return the rows of results.json, with the names of `instructgpt evaluate`, ratings on the paper's scale."""
    rows: list[ResultRow] = []

    def add(evaluation: str, metric: str, model: str, condition: str, value: Estimate) -> None:
        numbers = (value.value, value.low, value.high, value.n)
        rows.append(ResultRow(evaluation, metric, model, condition, *numbers, caution=value.caution))

    for wins, prefix in ((results.wins, ""), (results.by_cohort, ""), (results.by_use_case, "all/")):
        for row in wins:
            add("preference", f"win_rate_vs_{row.opponent}", row.model, f"{prefix}{row.group}", row.rate)
    for model, value in results.length_controlled.items():
        add("preference", f"length_controlled_win_rate_vs_{results.baseline}", model, "", value)
    for strength in results.strengths:
        add("preference", "bradley_terry", strength.model, "", strength.strength)
    for (model, cohort), value in sorted(results.ratings.items()):
        add("preference", "rating", model, cohort, _on_paper_scale(value, results.rating_points))
    for name in dict.fromkeys((*LABELS, *sorted({name for _, name in results.labels}))):
        for model in results.models:
            if (model, name) in results.labels:
                add("labels", name, model, "", results.labels[model, name])
    return [result_row_to_dict(row) for row in rows]
