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

from instructgpt.label.analysis.rankings import Ranked, Rated, models_of, read_rankings, read_ratings, with_models
from instructgpt.label.db.models import Batch, Completion, Task, TaskCompletion
from instructgpt.records import LABELS
from instructgpt.results import Row, as_json

if TYPE_CHECKING:
    from instructgpt.statistics.bradley_terry import Strength
    from instructgpt.statistics.intervals import Estimate
    from instructgpt.statistics.win_rate import WinRate

HIDDEN = "▇▇▇"
"""What stands in a text where a model's name stood, as long as names are hidden."""


@dataclass(frozen=True, slots=True)
class Precision:
    """What may be known before names are: how much there is, and how wide the widest interval of a win rate would be."""

    rankings: int
    labelers: int
    prompts: int
    half_width: float | None


@dataclass(frozen=True, slots=True)
class Results:
    """Everything the page shows."""

    baseline: str | None
    models: Sequence[str]
    precision: Precision
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


def unblind(db: Session, batch: Batch, at: int) -> None:
    """Show names before the batch is closed. Whoever calls notes it in the journal, with the reason."""
    batch.unblinded_at = batch.unblinded_at or at
    db.flush()


def names_hidden(db: Session) -> set[str]:
    """The names of all models of batches that are blind now. One statement."""
    statement = (
        select(TaskCompletion.models)
        .join(Task, Task.id == TaskCompletion.task_id)
        .join(Batch, Batch.id == Task.batch_id)
        .where(Batch.purpose == "evaluation", Batch.state != "closed", Batch.unblinded_at.is_(None))
    )
    return {model for models in db.scalars(statement) for model in models}


def masked(text: str, names: Iterable[str]) -> str:
    """A text without these names, in whatever case; the longest first, so that no half of one is left."""
    tails = {part for name in names for part in (name, name.rstrip("/").rsplit("/", 1)[-1]) if part}
    for name in sorted(tails, key=len, reverse=True):
        text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", HIDDEN, text, flags=re.IGNORECASE)
    return text


def measured(db: Session, batch: Batch) -> tuple[list[Ranked], list[Rated]]:
    """The rankings of a batch with the names of the models, and its ratings. No hidden repeats, no gold. Four statements."""
    rankings = [each for each in read_rankings(db, batch.id) if each.round == 0 and not each.gold]
    return with_models(rankings, models_of(db, batch.id)), read_ratings(db, batch.id)


def precision(db: Session, batch: Batch) -> Precision:
    """How far a batch is, without a name and without a result."""
    rankings, _ = measured(db, batch)
    return _precision(rankings, _against_each(rankings))


def results(db: Session, batch: Batch, baseline: str | None = None) -> Results:
    """Everything about a batch whose names may be seen. Four statements.

    Args:
        baseline: the model to compare with; the batch's own where not given.

    Raises:
        BadInput: nothing of what was ranked is of the baseline.
    """
    from instructgpt.statistics import bradley_terry, win_rate

    rankings, ratings = measured(db, batch)
    chosen = (baseline or batch.baseline) if rankings else None
    lengths = _lengths(db, batch)
    pairs = _against_each(rankings)

    def against(groups: Sequence[str | None] | None) -> list[WinRate]:
        """Win rates against the baseline, in groups where there are any."""
        if chosen is None or (groups is not None and not any(groups)):
            return []
        return win_rate.win_rates(rankings, chosen, groups)

    def characters(ranking: Ranked) -> list[float]:
        return [lengths[completion] for completion in ranking.completions]

    return Results(
        baseline=chosen,
        models=sorted({model for each in rankings for model in each.models or ()}),
        precision=_precision(rankings, pairs),
        wins=against(None) if chosen else pairs,
        by_cohort=against([each.cohort for each in rankings]),
        by_use_case=against([each.use_case for each in rankings]),
        matrix=_both_ways(pairs),
        strengths=bradley_terry.strengths(rankings, chosen) if rankings else [],
        length_controlled=win_rate.length_controlled(rankings, chosen, characters) if chosen else {},
        ratings=mean_ratings(rankings, ratings),
        labels=label_shares(rankings, ratings),
    )


def _against_each(rankings: Sequence[Ranked]) -> list[WinRate]:
    """Every two models."""
    from instructgpt.statistics import win_rate

    return win_rate.win_rates(rankings) if rankings else []


def _precision(rankings: Sequence[Ranked], pairs: Sequence[WinRate]) -> Precision:
    widths = [(each.rate.high - each.rate.low) / 2 for each in pairs if each.rate.high is not None and each.rate.low is not None]
    return Precision(
        len(rankings), len({each.labeler for each in rankings}), len({each.prompt for each in rankings}), max(widths, default=None)
    )


def _lengths(db: Session, batch: Batch) -> dict[str, float]:
    """Characters of every completion of a batch. One statement."""
    statement = (
        select(Completion.id, func.length(Completion.text))
        .join(TaskCompletion, TaskCompletion.completion_id == Completion.id)
        .join(Task, Task.id == TaskCompletion.task_id)
        .where(Task.batch_id == batch.id)
    )
    return {completion: float(length) for completion, length in db.execute(statement)}


def _both_ways(pairs: Sequence[WinRate]) -> dict[tuple[str, str], WinRate]:
    """The rows of every two models, and the same rows seen from the other side."""
    table: dict[tuple[str, str], WinRate] = {}
    for each in pairs:
        rate = each.rate
        turned = replace(
            rate,
            value=None if rate.value is None else 1 - rate.value,
            low=None if rate.high is None else 1 - rate.high,
            high=None if rate.low is None else 1 - rate.low,
        )
        table[each.model, each.other] = each
        table[each.other, each.model] = replace(
            each, model=each.other, other=each.model, wins=each.losses, losses=each.wins, rate=turned
        )  # fmt: skip
    return table


def _by_model(rankings: Sequence[Ranked], ratings: Sequence[Rated]) -> Iterable[tuple[Ranked, str, Rated]]:
    """(ranking, model, rating) of every completion; a text that several models gave counts for each of them."""
    given = {(each.submission, each.completion): each for each in ratings}
    for ranking in rankings:
        for completion, model in zip(ranking.completions, ranking.models or (), strict=True):
            if (rated := given.get((ranking.submission, completion))) is not None:
                yield ranking, model, rated


def mean_ratings(rankings: Sequence[Ranked], ratings: Sequence[Rated]) -> dict[tuple[str, str], Estimate]:
    """Mean ratings of each model, by everybody and by each cohort."""
    rows: dict[tuple[str, str], list[tuple[float, str, str]]] = {}
    for ranking, model, rated in _by_model(rankings, ratings):
        if rated.rating is not None:
            for cohort in ("", ranking.cohort):
                rows.setdefault((model, cohort), []).append((float(rated.rating), ranking.prompt, ranking.labeler))
    return _means(rows, share=False)


def label_shares(rankings: Sequence[Ranked], ratings: Sequence[Rated]) -> dict[tuple[str, str], Estimate]:
    """How often each label of Table 3 was answered yes, of the answers yes and no."""
    rows: dict[tuple[str, str], list[tuple[float, str, str]]] = {}
    for ranking, model, rated in _by_model(rankings, ratings):
        for name, answer in rated.labels.items():
            if answer is not None:
                rows.setdefault((model, name), []).append((float(answer), ranking.prompt, ranking.labeler))
    return _means(rows, share=True)


def _means(rows: Mapping[tuple[str, str], Sequence[tuple[float, str, str]]], share: bool) -> dict[tuple[str, str], Estimate]:
    """Means clustered by prompt and labeler."""
    from instructgpt.statistics import intervals

    found = {}
    for key, seen in rows.items():
        values, prompts, labelers = zip(*seen, strict=True)
        found[key] = intervals.mean(values, prompts, labelers, share=share)
    return found


def as_rows(found: Results) -> list[dict[str, object]]:
    """The rows of results.json: what `report` reads, with the same names as `evaluate` gives."""
    rows: list[Row] = []

    def add(evaluation: str, metric: str, model: str, condition: str, value: Estimate) -> None:
        rows.append(Row(evaluation, metric, model, condition, value.value, value.low, value.high, value.n))

    for wins, prefix in ((found.wins, ""), (found.by_cohort, ""), (found.by_use_case, "all/")):
        for each in wins:
            add("preference", f"win_rate_vs_{each.other}", each.model, f"{prefix}{each.group}", each.rate)
    for model, value in found.length_controlled.items():
        add("preference", f"length_controlled_win_rate_vs_{found.baseline}", model, "", value)
    for strength in found.strengths:
        add("preference", "bradley_terry", strength.model, "", strength.strength)
    for (model, cohort), value in sorted(found.ratings.items()):
        add("preference", "rating", model, cohort, value)
    for name in LABELS:
        for model in found.models:
            if (model, name) in found.labels:
                add("labels", name, model, "", found.labels[model, name])
    return [as_json(row) for row in rows]
