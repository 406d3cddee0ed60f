"""Which completions labelers prefer (paper, sections 3.6 and 4.1; Figures 1, 3, 5 and 31)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from instructgpt.errors import InputError
from instructgpt.evaluate.aggregate import Observation, aggregate_per_model, make_row
from instructgpt.records import Ranking
from instructgpt.results import ResultRow
from instructgpt.statistics.arrays import FloatArray
from instructgpt.statistics.bradley_terry import estimate_strengths
from instructgpt.statistics.intervals import RATING, Estimate
from instructgpt.statistics.pair_judgments import HasRanks, LabelerRanking
from instructgpt.statistics.win_rate import Comparisons, comparisons, length_controlled_win_rates

_PREFERENCE = "preference"


def measure(
    rankings: Sequence[Ranking], baseline: str = "sft", use_cases: Mapping[str, str] | None = None, judge: str = ""
) -> list[ResultRow]:
    """Return win rates against the baseline and mean ratings on the scale from 1 to 7, by cohort and by use case too.

    Ties and identical texts count one half; intervals are clustered by prompt and labeler. The baseline's own rate is
    one half.

    Args:
        use_cases: use case of each prompt, unless the rankings have a column `use_case`; gives conditions like
            `training/open_qa`.
        judge: the condition of rankings without a cohort.
    """
    rows: list[ResultRow] = []
    metric = f"win_rate_vs_{baseline}"
    models: tuple[str, ...]
    for condition, condition_rankings in _conditions(rankings, use_cases or {}, judge).items():
        wins = _win_observations(condition_rankings, baseline)
        is_whole_cohort = "/" not in condition
        models = ("base", "ppo") if is_whole_cohort else ()
        rows += aggregate_per_model(_PREFERENCE, metric, condition, wins, share=True, baselines=models)
        if wins:
            half = Estimate(0.5, 0.5, 0.5, len(condition_rankings))
            rows.append(make_row(_PREFERENCE, metric, baseline, condition, half))
        ratings = [rating for ranking in condition_rankings for rating in _rating_observations(ranking)]
        models = (baseline,) if is_whole_cohort else ()
        rows += aggregate_per_model(_PREFERENCE, "rating", condition, ratings, bounds=RATING, baselines=models)
    return rows


def measure_pooled_preference(rankings: Sequence[Ranking], baseline: str, judge: str = "") -> list[ResultRow]:
    """Return measures over all rankings together, with condition `judge` (empty for people).

    `length_controlled_win_rate_vs_<baseline>` (win_rate.py), `length_difference` (characters, model minus baseline),
    `tie_rate`, `bradley_terry` (points above the baseline); with several cohorts `win_rate_vs_<baseline>`; with ratings
    `rating_win_rate_vs_<baseline>` (the higher rating wins).
    """
    rows: list[ResultRow] = []
    metric = f"win_rate_vs_{baseline}"
    if len({ranking.cohort for ranking in rankings}) > 1:
        wins = _win_observations(rankings, baseline)
        rows += aggregate_per_model(_PREFERENCE, metric, judge, wins, share=True)
    for model, estimate in length_controlled_win_rates(rankings, baseline, _character_counts).items():
        rows.append(make_row(_PREFERENCE, f"length_controlled_{metric}", model, judge, estimate))
    table = comparisons(rankings, _character_counts)
    ties = _versus_baseline(table, baseline, lambda pairs: (pairs.won == 0.5).astype(np.float64))
    rows += aggregate_per_model(_PREFERENCE, "tie_rate", judge, ties, share=True)
    differences = _versus_baseline(table, baseline, lambda pairs: pairs.longer)
    rows += aggregate_per_model(_PREFERENCE, "length_difference", judge, differences)
    strengths = estimate_strengths(rankings, baseline)
    rows += [make_row(_PREFERENCE, "bradley_terry", s.model, judge, s.strength) for s in strengths]
    by_rating = [
        LabelerRanking.from_ratings(r.prompt, r.labeler, r.completions, r.ratings, require_ranking_models(r))
        for r in rankings
        if r.ratings is not None
    ]
    wins = _win_observations(by_rating, baseline)
    return rows + aggregate_per_model(_PREFERENCE, f"rating_{metric}", judge, wins, share=True)


def require_ranking_models(ranking: Ranking) -> tuple[str, ...]:
    """Return the model of each completion. Raise InputError if the ranking does not name them."""
    if ranking.models is None:
        problem = "does not name its models; evaluations need the column 'models'"
        raise InputError(f"the ranking of {ranking.prompt[:60]!r} {problem}")
    return ranking.models


def ranking_clusters(ranking: Ranking) -> tuple[str, str]:
    return ranking.prompt, ranking.labeler or ""


def ranking_use_case(ranking: Ranking, use_cases: Mapping[str, str]) -> str | None:
    """Return the use case from the ranking's own column, or from its prompt."""
    column_value = (ranking.model_extra or {}).get("use_case")
    return str(column_value) if column_value else use_cases.get(ranking.prompt)


def _conditions(rankings: Sequence[Ranking], use_cases: Mapping[str, str], judge: str) -> dict[str, list[Ranking]]:
    cohorts: dict[str, list[Ranking]] = {}
    cases: dict[str, list[Ranking]] = {}
    for ranking in rankings:
        cohorts.setdefault(ranking.cohort or judge, []).append(ranking)
        case = ranking_use_case(ranking, use_cases)
        if case:
            cases.setdefault(f"{ranking.cohort or judge or 'all'}/{case}", []).append(ranking)
    return cohorts | dict(sorted(cases.items()))


def _win_observations(rankings: Sequence[HasRanks], baseline: str) -> list[Observation]:
    return _versus_baseline(comparisons(rankings), baseline, lambda pairs: pairs.won)


def _versus_baseline(
    table: Comparisons, baseline: str, value_fn: Callable[[Comparisons], FloatArray]
) -> list[Observation]:
    """Return a value of each comparison of a model with the baseline."""
    observations: list[Observation] = []
    for model_index, model in enumerate(table.models):
        if baseline in table.models and model != baseline:
            pairs = table.between(model_index, table.models.index(baseline))
            values = zip(value_fn(pairs).tolist(), pairs.prompt.tolist(), pairs.labeler.tolist(), strict=True)
            observations += [Observation(model, value, (f"{p}", f"{q}")) for value, p, q in values]
    return observations


def _character_counts(ranking: Ranking) -> list[int]:
    return [len(completion) for completion in ranking.completions]


def _rating_observations(ranking: Ranking) -> Iterator[Observation]:
    for model, rating in zip(
        require_ranking_models(ranking), ranking.scaled_ratings or (), strict=bool(ranking.ratings)
    ):
        yield Observation(model, float(rating), ranking_clusters(ranking))
