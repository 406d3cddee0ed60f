"""Which completions labelers prefer (paper, sections 3.6 and 4.1; Figures 1, 3, 5 and 31)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from instructgpt.errors import BadInput
from instructgpt.evaluate.rows import Observation, Row, per_model
from instructgpt.records import Ranking
from instructgpt.statistics.win_rate import comparisons

EVALUATION = "preference"


def measure(rankings: Sequence[Ranking], baseline: str = "sft", use_cases: Mapping[str, str] | None = None) -> list[Row]:
    """Win rates against the baseline and mean ratings, for each cohort of labelers, and again for each use case.

    Args:
        rankings: completions of several models to one prompt, each by one labeler, with `models`; `cohort`, `labeler`, `ratings` where
            known.
        baseline: the model that win rates compare with (paper: the 175B SFT model). Its own rate is one half by construction.
        use_cases: use case of each prompt's text, unless the rankings carry a column `use_case`; rows `training/open_qa` come of it.

    Returns:
        `win_rate_vs_<baseline>` (ties, and completions that are the same text, count one half) and `rating` (1 to 7); intervals clustered
        by prompt and labeler.

    Raises:
        BadInput: a ranking does not name its models.
    """
    rows: list[Row] = []
    for condition, chosen in _conditions(rankings, use_cases or {}).items():
        wins = _wins(chosen, baseline)
        whole = "/" not in condition
        rows += per_model(EVALUATION, f"win_rate_vs_{baseline}", condition, wins, share=True, against=("base", "ppo") if whole else ())
        if wins:
            rows.append(Row(EVALUATION, f"win_rate_vs_{baseline}", baseline, condition, 0.5, 0.5, 0.5, len(chosen)))
        ratings = [rating for ranking in chosen for rating in _ratings(ranking)]
        rows += per_model(EVALUATION, "rating", condition, ratings, against=(baseline,) if whole else ())
    return rows


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


def _conditions(rankings: Sequence[Ranking], use_cases: Mapping[str, str]) -> dict[str, list[Ranking]]:
    """The rankings of each cohort, then of each cohort and use case."""
    cohorts: dict[str, list[Ranking]] = {}
    cases: dict[str, list[Ranking]] = {}
    for ranking in rankings:
        cohorts.setdefault(ranking.cohort or "", []).append(ranking)
        case = use_case(ranking, use_cases)
        if case:
            cases.setdefault(f"{ranking.cohort or 'all'}/{case}", []).append(ranking)
    return cohorts | dict(sorted(cases.items()))


def _wins(rankings: Sequence[Ranking], baseline: str) -> list[Observation]:
    """1, one half or 0 for each completion beside each of the baseline's."""
    table = comparisons(rankings)
    found = []
    for number, model in enumerate(table.models):
        if baseline in table.models and model != baseline:
            pairs = table.between(number, table.models.index(baseline))
            keys = zip(pairs.prompt.tolist(), pairs.labeler.tolist(), strict=True)
            found += [Observation(model, won, (f"{p}", f"{q}")) for won, (p, q) in zip(pairs.won.tolist(), keys, strict=True)]
    return found


def _ratings(ranking: Ranking) -> Iterator[Observation]:
    for model, rating in zip(models_of(ranking), ranking.ratings or (), strict=bool(ranking.ratings)):
        yield Observation(model, float(rating), clusters(ranking))
