"""How well a reward model predicts labelers, beside the longer completion and the labelers themselves (paper, sections 3.5, 4.1)."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Self

import numpy as np
from pydantic import model_validator
from scipy import stats

from instructgpt.evaluate.aggregate import Observation, Row, per_model, row
from instructgpt.evaluate.reward.calibration import brier, calibration_error, temperature
from instructgpt.records import Ranking
from instructgpt.statistics.agreement import compare, summary
from instructgpt.statistics.pair_judgments import Ranked

EVALUATION = "reward_model"
LENGTHS = {"length/alike": 1.1, "length/half_longer": 1.5, "length/twice": 2.0, "length/more_than_twice": np.inf}
"""Pairs by how many times longer the longer completion is: up to these."""


class ScoredRanking(Ranking):
    """A ranking with the reward model's score of each completion; `lengths` in tokens where known, else characters are counted."""

    scores: tuple[float, ...]
    lengths: tuple[int, ...] | None = None

    @model_validator(mode="after")
    def _scores_fit(self) -> Self:
        for name, column in (("scores", self.scores), ("lengths", self.lengths)):
            if column is not None and len(column) != len(self.completions):
                raise ValueError(f"{len(self.completions)} completions but {len(column)} {name}")
        if not np.isfinite(self.scores).all():
            raise ValueError("a score is not finite")
        return self

    def sizes(self) -> tuple[int, ...]:
        """The length of each completion."""
        return self.lengths or tuple(len(completion) for completion in self.completions)


Measurement = Callable[[ScoredRanking], Iterable[float]]


def measure(rankings: Sequence[ScoredRanking], model: str = "reward") -> list[Row]:
    """Accuracy, its two yardsticks, and how far the scores can be trusted.

    Args:
        rankings: scored; of prompts that the reward model was not trained on. Where two labelers ranked the same completions, agreement
            follows.
        model: the name of the reward model in the rows.

    Returns:
        By cohort, clustered by prompt: `pair_accuracy` and `length_baseline` (decided pairs; equal scores or lengths count one half),
        `labeler_agreement` (pairs that two labelers of the cohort both decided; by labeler, too), `kendall_tau` (tau-b, mean of rankings),
        `top_1` (is the completion with the highest score one that the labeler put first? several highest share) and `best_of_n` (the share
        of the others that the labeler puts below it, ties half; 1/2 is chance), both also for the longest completion: `…_by_length`;
        `length_difference` (better minus worse, as the reward model and as labelers see it: `score_length_difference`), `pair_loss`
        (nats), `brier`, `temperature` (calibration.py) and `calibration_error` (no interval). `pair_accuracy` and `length_baseline` once
        more by source (`source/hh`), by length (`length/twice`, `length/longer_is_better`, …) and by how many labelers agree
        (`agreement/all`, …: pairs with a majority, against the majority); agreement of labelers of different cohorts: `between`.
    """
    cohorts: dict[str, list[ScoredRanking]] = {}
    for ranking in rankings:
        cohorts.setdefault(ranking.cohort or "", []).append(ranking)
    rows: list[Row] = []
    for cohort, chosen in cohorts.items():
        for metric, (formula, share) in MEASUREMENTS.items():
            rows += per_model(EVALUATION, metric, cohort, _observations(model, chosen, formula), share=share)
        rows += _calibration(chosen, model, cohort)
    sources = {
        f"source/{name}": [each for each in rankings if each.source == name] for name in sorted({r.source for r in rankings if r.source})
    }
    for condition, chosen in sources.items():
        for metric in ("pair_accuracy", "length_baseline"):
            observations = _observations(model, chosen, MEASUREMENTS[metric][0])
            rows += per_model(EVALUATION, metric, condition, observations, share=True)
    pairs = [pair for ranking in rankings for pair in _pairs(ranking)]
    for condition, some in (_by_length(pairs) | _by_agreement(rankings)).items():
        numbers = {"pair_accuracy": [pair.right for pair in some], "length_baseline": [pair.longer for pair in some]}
        for metric, rights in numbers.items():
            if metric == "length_baseline" and condition.endswith("_is_better"):
                continue  # all of them or none, by construction
            seen = [Observation(model, value, (pair.prompt,)) for pair, value in zip(some, rights, strict=True)]
            rows += per_model(EVALUATION, metric, condition, seen, share=True)
    return rows + _agreement(rankings, model)


@dataclass(frozen=True, slots=True)
class _Decided:
    """One decided pair: whether the score is right about it, whether the longer completion is the better one, how many times longer."""

    prompt: str
    right: float
    longer: float
    times: float


def _pair(ranking: ScoredRanking, better: int, worse: int) -> _Decided:
    sizes, scores = ranking.sizes(), ranking.scores
    right, longer = _right([scores[better] - scores[worse], sizes[better] - sizes[worse]])
    short, long = sorted((sizes[better], sizes[worse]))
    return _Decided(ranking.prompt, right, longer, long / short if short else np.inf if long else 1.0)


def _pairs(ranking: ScoredRanking) -> list[_Decided]:
    return [_pair(ranking, better, worse) for better, worse in ranking.pairs()]


def _by_length(pairs: Sequence[_Decided]) -> dict[str, list[_Decided]]:
    """Pairs by how much longer the longer completion is, and by which of the two it is."""
    found: dict[str, list[_Decided]] = {}
    for pair in pairs:
        found.setdefault(next(name for name, most in LENGTHS.items() if pair.times <= most), []).append(pair)
        if pair.longer != 0.5:
            found.setdefault("length/longer_is_better" if pair.longer else "length/shorter_is_better", []).append(pair)
    return dict(sorted(found.items()))


def _by_agreement(rankings: Sequence[ScoredRanking]) -> dict[str, list[_Decided]]:
    """Pairs that two or more labelers judged and more of them decided one way than the other, by the share of all who did."""
    votes: dict[tuple[str, str, str], dict[str, int]] = {}
    where: dict[tuple[str, str, str], tuple[ScoredRanking, int, int]] = {}
    for ranking in rankings:
        for one, other in combinations(range(len(ranking.ranks)), 2) if ranking.labeler else ():
            one, other = sorted((one, other), key=lambda place: ranking.completions[place])
            key = (ranking.prompt, ranking.completions[one], ranking.completions[other])
            where.setdefault(key, (ranking, one, other))
            votes.setdefault(key, {}).setdefault(ranking.labeler or "", int(np.sign(ranking.ranks[other] - ranking.ranks[one])))
    found: dict[str, list[_Decided]] = {}
    for key, by_labeler in votes.items():
        ranking, one, other = where[key]
        given = list(by_labeler.values())
        if len(given) > 1 and sum(given) != 0:
            better, worse = (one, other) if sum(given) > 0 else (other, one)
            share = given.count(1 if sum(given) > 0 else -1) / len(given)
            name = "agreement/all" if share == 1 else "agreement/two_thirds" if share >= 2 / 3 else "agreement/fewer"
            found.setdefault(name, []).append(_pair(ranking, better, worse))
    return dict(sorted(found.items()))


def _calibration(rankings: Sequence[ScoredRanking], model: str, cohort: str) -> list[Row]:
    gaps = [(ranking.prompt, gap) for ranking in rankings for gap in _gaps(ranking, ranking.scores)]
    if not gaps:
        return []
    prompts, numbers = zip(*gaps, strict=True)
    off = Row(EVALUATION, "calibration_error", model, cohort, calibration_error(numbers), None, None, len(gaps))
    losses = [Observation(model, loss, (prompt,)) for prompt, loss in zip(prompts, brier(numbers).tolist(), strict=True)]
    return [
        off,
        *per_model(EVALUATION, "brier", cohort, losses, share=True),
        row(EVALUATION, "temperature", model, cohort, temperature(numbers, prompts)),
    ]


def _gaps(ranking: ScoredRanking, numbers: Sequence[float]) -> Iterator[float]:
    """The number of the better minus the number of the worse, for every decided pair."""
    return (numbers[better] - numbers[worse] for better, worse in ranking.pairs())


def _right(gaps: Iterable[float]) -> list[float]:
    return [(np.sign(gap) + 1) / 2 for gap in gaps]


def _kendall(ranks: Sequence[int], numbers: Sequence[float]) -> list[float]:
    """Tau-b of numbers and ranks; none where all ranks or all numbers are equal."""
    if len(set(ranks)) < 2 or len(set(numbers)) < 2:
        return []
    return [float(stats.kendalltau(numbers, [-rank for rank in ranks]).statistic)]


def _top(ranks: Sequence[int], numbers: Sequence[float]) -> list[float]:
    """Whether the highest number is at a completion of the best rank; several highest share. None where all ranks are equal."""
    if len(set(ranks)) < 2:
        return []
    chosen = [rank for rank, number in zip(ranks, numbers, strict=True) if number == max(numbers)]
    return [chosen.count(min(ranks)) / len(chosen)]


def _best_of_n(ranks: Sequence[int], numbers: Sequence[float]) -> list[float]:
    """The share of the other completions below the one with the highest number, ties half; several highest share."""
    if len(set(ranks)) < 2:
        return []
    chosen = [place for place, number in enumerate(numbers) if number == max(numbers)]
    beaten = [(np.sign(rank - ranks[place]) + 1) / 2 for place in chosen for other, rank in enumerate(ranks) if other != place]
    return [float(np.mean(beaten))]


def _preferred_length(ranking: ScoredRanking) -> list[float]:
    """How much longer the completion with the higher score is, for the same pairs."""
    return [
        float(np.sign(gap) * longer)
        for gap, longer in zip(_gaps(ranking, ranking.scores), _gaps(ranking, ranking.sizes()), strict=True)
        if gap != 0
    ]


MEASUREMENTS: dict[str, tuple[Measurement, bool]] = {
    "pair_accuracy": (lambda ranking: _right(_gaps(ranking, ranking.scores)), True),
    "length_baseline": (lambda ranking: _right(_gaps(ranking, ranking.sizes())), True),
    "kendall_tau": (lambda ranking: _kendall(ranking.ranks, ranking.scores), False),
    "kendall_tau_by_length": (lambda ranking: _kendall(ranking.ranks, ranking.sizes()), False),
    "top_1": (lambda ranking: _top(ranking.ranks, ranking.scores), True),
    "top_1_by_length": (lambda ranking: _top(ranking.ranks, ranking.sizes()), True),
    "best_of_n": (lambda ranking: _best_of_n(ranking.ranks, ranking.scores), True),
    "best_of_n_by_length": (lambda ranking: _best_of_n(ranking.ranks, ranking.sizes()), True),
    "pair_loss": (lambda ranking: [float(np.logaddexp(0, -gap)) for gap in _gaps(ranking, ranking.scores)], False),
    "length_difference": (lambda ranking: _gaps(ranking, ranking.sizes()), False),
    "score_length_difference": (_preferred_length, False),
}
"""Each metric: its numbers for one ranking, and whether they are shares."""


def _observations(model: str, rankings: Sequence[ScoredRanking], formula: Measurement) -> list[Observation]:
    return [Observation(model, number, (ranking.prompt,)) for ranking in rankings for number in formula(ranking)]


def _agreement(rankings: Sequence[ScoredRanking], model: str) -> list[Row]:
    """The share of equal decisions, over pairs of completions that two labelers both decided: within each cohort, and between cohorts."""
    cohorts = list(dict.fromkeys(ranking.cohort or "" for ranking in rankings))
    cohort_of: dict[Hashable, int] = {}
    rows: list[Ranked] = []
    for each in rankings:
        labeler = each.labeler and (each.cohort or "", each.labeler)
        cohort_of[labeler] = cohorts.index(each.cohort or "")
        rows.append(Ranked(each.prompt, labeler, each.completions, each.ranks))
    cells = compare(rows)
    cohort = np.array([cohort_of[labeler] for labeler in cells.labelers], dtype=np.int64)
    first, second = cohort[cells.first], cohort[cells.second]
    parts = {name: (first == number) & (second == number) for number, name in enumerate(cohorts)} | {"between": first != second}
    found = {name: summary(cells.where(part)).decided for name, part in parts.items()}
    return [row(EVALUATION, "labeler_agreement", model, name, share) for name, share in found.items() if share.n]
