"""Which completions labelers prefer (paper, sections 3.6 and 4.1; Figures 1, 3, 5 and 31)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from instructgpt.errors import BadInput
from instructgpt.evaluate.aggregate import Observation, Row, per_model, row
from instructgpt.records import Ranking
from instructgpt.statistics.bradley_terry import strengths
from instructgpt.statistics.intervals import Floats
from instructgpt.statistics.pair_judgments import Ranked, Ranks
from instructgpt.statistics.win_rate import Comparisons, comparisons, length_controlled

EVALUATION = "preference"


def measure(rankings: Sequence[Ranking], baseline: str = "sft", use_cases: Mapping[str, str] | None = None, judge: str = "") -> list[Row]:
    """Win rates against the baseline and mean ratings, for each cohort of labelers, and again for each use case.

    Args:
        rankings: completions of several models to one prompt, each by one labeler, with `models`; `cohort`, `labeler`, `ratings` where
            known.
        baseline: the model that win rates compare with (paper: the 175B SFT model). Its own rate is one half by construction.
        use_cases: use case of each prompt's text, unless the rankings carry a column `use_case`; rows `training/open_qa` come of it.
        judge: the condition of rankings without a cohort.

    Returns:
        `win_rate_vs_<baseline>` (ties, and completions that are the same text, count one half) and `rating` (1 to 7); intervals clustered
        by prompt and labeler.

    Raises:
        BadInput: a ranking does not name its models.
    """
    rows: list[Row] = []
    for condition, chosen in _conditions(rankings, use_cases or {}, judge).items():
        wins = _wins(chosen, baseline)
        whole = "/" not in condition
        rows += per_model(EVALUATION, f"win_rate_vs_{baseline}", condition, wins, share=True, against=("base", "ppo") if whole else ())
        if wins:
            rows.append(Row(EVALUATION, f"win_rate_vs_{baseline}", baseline, condition, 0.5, 0.5, 0.5, len(chosen)))
        ratings = [rating for ranking in chosen for rating in _ratings(ranking)]
        rows += per_model(EVALUATION, "rating", condition, ratings, against=(baseline,) if whole else ())
    return rows


def measure_whole(rankings: Sequence[Ranking], baseline: str, judge: str = "") -> list[Row]:
    """What takes all rankings together, whoever made them: condition `judge`, empty for people.

    Returns:
        `length_controlled_win_rate_vs_<baseline>` (win_rate.py), `length_difference` (characters, the model's minus the baseline's),
        `tie_rate`, `bradley_terry` (points above the baseline, where it can be reached); `win_rate_vs_<baseline>` of all cohorts together
        where there are several; and where there are ratings `rating_win_rate_vs_<baseline>`, the higher rating winning.
    """
    rows: list[Row] = []
    if len({ranking.cohort for ranking in rankings}) > 1:
        rows += per_model(EVALUATION, f"win_rate_vs_{baseline}", judge, _wins(rankings, baseline), share=True)
    equal = length_controlled(rankings, baseline, _characters)
    rows += [row(EVALUATION, f"length_controlled_win_rate_vs_{baseline}", model, judge, found) for model, found in equal.items()]
    table = comparisons(rankings, _characters)
    ties = _beside(table, baseline, lambda pairs: (pairs.won == 0.5).astype(np.float64))
    rows += per_model(EVALUATION, "tie_rate", judge, ties, share=True)
    rows += per_model(EVALUATION, "length_difference", judge, _beside(table, baseline, lambda pairs: pairs.longer))
    rows += [row(EVALUATION, "bradley_terry", each.model, judge, each.strength) for each in strengths(rankings, baseline)]
    rated = [
        Ranked.by_rating(ranking.prompt, ranking.labeler, ranking.completions, ranking.ratings, models_of(ranking))
        for ranking in rankings
        if ranking.ratings is not None
    ]
    return rows + per_model(EVALUATION, f"rating_win_rate_vs_{baseline}", judge, _wins(rated, baseline), share=True)


def models_of(ranking: Ranking) -> tuple[str, ...]:
    """Which model wrote each completion. Raises BadInput where the ranking does not say."""
    if ranking.models is None:
        raise BadInput(f"the ranking of {ranking.prompt[:60]!r} does not name its models; an evaluation needs the column 'models'")
    return ranking.models


def clusters(ranking: Ranking) -> tuple[str, str]:
    """What a ranking shares with others: its prompt and its labeler."""
    return ranking.prompt, ranking.labeler or ""


def use_case(ranking: Ranking, use_cases: Mapping[str, str]) -> str | None:
    """The use case of a ranking's prompt: its own column, or the prompt's."""
    own = (ranking.model_extra or {}).get("use_case")
    return str(own) if own else use_cases.get(ranking.prompt)


def _conditions(rankings: Sequence[Ranking], use_cases: Mapping[str, str], judge: str) -> dict[str, list[Ranking]]:
    """The rankings of each cohort, then of each cohort and use case."""
    cohorts: dict[str, list[Ranking]] = {}
    cases: dict[str, list[Ranking]] = {}
    for ranking in rankings:
        cohorts.setdefault(ranking.cohort or judge, []).append(ranking)
        case = use_case(ranking, use_cases)
        if case:
            cases.setdefault(f"{ranking.cohort or judge or 'all'}/{case}", []).append(ranking)
    return cohorts | dict(sorted(cases.items()))


def _wins(rankings: Sequence[Ranks], baseline: str) -> list[Observation]:
    """1, one half or 0 for each completion beside each of the baseline's."""
    return _beside(comparisons(rankings), baseline, lambda pairs: pairs.won)


def _beside(table: Comparisons, baseline: str, number: Callable[[Comparisons], Floats]) -> list[Observation]:
    """A number of each comparison of a model with the baseline."""
    found = []
    for place, model in enumerate(table.models):
        if baseline in table.models and model != baseline:
            pairs = table.between(place, table.models.index(baseline))
            keys = zip(pairs.prompt.tolist(), pairs.labeler.tolist(), strict=True)
            found += [Observation(model, value, (f"{p}", f"{q}")) for value, (p, q) in zip(number(pairs).tolist(), keys, strict=True)]
    return found


def _characters(ranking: Ranking) -> list[int]:
    return [len(completion) for completion in ranking.completions]


def _ratings(ranking: Ranking) -> Iterator[Observation]:
    for model, rating in zip(models_of(ranking), ranking.ratings or (), strict=bool(ranking.ratings)):
        yield Observation(model, float(rating), clusters(ranking))
