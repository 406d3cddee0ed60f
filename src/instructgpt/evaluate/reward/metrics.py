"""How well a reward model predicts labelers, beside a length baseline and the labelers' own agreement (paper, 3.5, 4.1)."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Self

import numpy as np
from pydantic import model_validator
from scipy import stats

from instructgpt.evaluate.aggregate import Observation, aggregate_per_model, make_row
from instructgpt.evaluate.reward.calibration import brier_losses, calibration_error, fit_temperature
from instructgpt.records import Ranking
from instructgpt.results import ResultRow
from instructgpt.statistics.agreement import compare_labelers, summarize_agreement
from instructgpt.statistics.pair_judgments import LabelerRanking

REWARD_MODEL_EVALUATION = "reward_model"
_LENGTH_RATIO_BINS = {
    "length/alike": 1.1,
    "length/half_longer": 1.5,
    "length/twice": 2.0,
    "length/more_than_twice": np.inf,
}


class ScoredRanking(Ranking):
    """A ranking with the reward model's scores; `lengths` in tokens, without them characters count."""

    scores: tuple[float, ...]
    lengths: tuple[int, ...] | None = None

    @model_validator(mode="after")
    def _check_column_lengths(self) -> Self:
        for name, column in (("scores", self.scores), ("lengths", self.lengths)):
            if column is not None and len(column) != len(self.completions):
                raise ValueError(f"{len(self.completions)} completions but {len(column)} {name}")
        if not np.isfinite(self.scores).all():
            raise ValueError("a score is not finite")
        return self

    def completion_lengths(self) -> tuple[int, ...]:
        return self.lengths or tuple(len(completion) for completion in self.completions)


_MetricFn = Callable[[ScoredRanking], Iterable[float]]


def measure(rankings: Sequence[ScoredRanking], model: str = "reward") -> list[ResultRow]:
    """Return the accuracy of a reward model, its baselines, and its calibration.

    By cohort, clustered by prompt: `pair_accuracy` and `length_baseline` (decided pairs; equal scores or lengths count one half);
    `labeler_agreement` (pairs that two labelers of the cohort decided; `between` cohorts, too); `kendall_tau` (tau-b, mean of rankings);
    `top_1` (the highest score is on a completion of the best rank); `best_of_n` (share of the other completions ranked below the one with
    the highest score; 1/2 is chance); the last three also for the longest completion, `…_by_length`; `length_difference` and
    `score_length_difference` (better minus worse by labelers and by score); `pair_loss` (nats), `brier`, `temperature`,
    `calibration_error` (no interval). `pair_accuracy` and `length_baseline` also by source (`source/hh`), length (`length/twice`,
    `length/longer_is_better`, …) and labeler agreement, against the majority (`agreement/all`, …).
    """
    cohorts: dict[str, list[ScoredRanking]] = {}
    for ranking in rankings:
        cohorts.setdefault(ranking.cohort or "", []).append(ranking)
    rows: list[ResultRow] = []
    for cohort, condition_rankings in cohorts.items():
        for metric, (metric_fn, share) in _RANKING_METRICS.items():
            rows += aggregate_per_model(
                REWARD_MODEL_EVALUATION,
                metric,
                cohort,
                _observations(model, condition_rankings, metric_fn),
                share=share,
            )
        rows += _calibration_rows(condition_rankings, model, cohort)
    sources = {
        f"source/{name}": [each for each in rankings if each.source == name]
        for name in sorted({r.source for r in rankings if r.source})
    }
    for condition, condition_rankings in sources.items():
        for metric in ("pair_accuracy", "length_baseline"):
            observations = _observations(model, condition_rankings, _RANKING_METRICS[metric][0])
            rows += aggregate_per_model(REWARD_MODEL_EVALUATION, metric, condition, observations, share=True)
    pairs = [pair for ranking in rankings for pair in _decided_pairs(ranking)]
    for condition, condition_pairs in (_group_by_length_ratio(pairs) | _group_by_agreement(rankings)).items():
        values_by_metric = {
            "pair_accuracy": [pair.correct for pair in condition_pairs],
            "length_baseline": [pair.longer_wins for pair in condition_pairs],
        }
        for metric, values in values_by_metric.items():
            if metric == "length_baseline" and condition.endswith("_is_better"):
                continue  # all of them or none, by construction
            pair_observations = [
                Observation(model, value, (pair.prompt,)) for pair, value in zip(condition_pairs, values, strict=True)
            ]
            rows += aggregate_per_model(REWARD_MODEL_EVALUATION, metric, condition, pair_observations, share=True)
    return rows + _labeler_agreement_rows(rankings, model)


@dataclass(frozen=True, slots=True)
class _DecidedPair:
    prompt: str
    correct: float
    longer_wins: float
    length_ratio: float


def _make_decided_pair(ranking: ScoredRanking, better: int, worse: int) -> _DecidedPair:
    lengths, scores = ranking.completion_lengths(), ranking.scores
    correct, longer_wins = _correctness([scores[better] - scores[worse], lengths[better] - lengths[worse]])
    short, long = sorted((lengths[better], lengths[worse]))
    return _DecidedPair(ranking.prompt, correct, longer_wins, long / short if short else np.inf if long else 1.0)


def _decided_pairs(ranking: ScoredRanking) -> list[_DecidedPair]:
    return [_make_decided_pair(ranking, better, worse) for better, worse in ranking.pairs()]


def _group_by_length_ratio(pairs: Sequence[_DecidedPair]) -> dict[str, list[_DecidedPair]]:
    groups: dict[str, list[_DecidedPair]] = {}
    for pair in pairs:
        groups.setdefault(
            next(name for name, most in _LENGTH_RATIO_BINS.items() if pair.length_ratio <= most), []
        ).append(pair)
        if pair.longer_wins != 0.5:
            groups.setdefault("length/longer_is_better" if pair.longer_wins else "length/shorter_is_better", []).append(
                pair
            )
    return dict(sorted(groups.items()))


def _group_by_agreement(rankings: Sequence[ScoredRanking]) -> dict[str, list[_DecidedPair]]:
    """Group pairs that several labelers judged, by the share of labelers who agree with the majority; ties are left out."""
    votes: dict[tuple[str, str, str], dict[str, int]] = {}
    pair_locations: dict[tuple[str, str, str], tuple[ScoredRanking, int, int]] = {}
    for ranking in rankings:
        for first, second in combinations(range(len(ranking.ranks)), 2) if ranking.labeler else ():
            first, second = sorted((first, second), key=lambda place: ranking.completions[place])
            key = (ranking.prompt, ranking.completions[first], ranking.completions[second])
            pair_locations.setdefault(key, (ranking, first, second))
            votes.setdefault(key, {}).setdefault(
                ranking.labeler or "", int(np.sign(ranking.ranks[second] - ranking.ranks[first]))
            )
    groups: dict[str, list[_DecidedPair]] = {}
    for key, decision_by_labeler in votes.items():
        ranking, first, second = pair_locations[key]
        decisions = list(decision_by_labeler.values())
        if len(decisions) > 1 and sum(decisions) != 0:
            better, worse = (first, second) if sum(decisions) > 0 else (second, first)
            share = decisions.count(1 if sum(decisions) > 0 else -1) / len(decisions)
            name = "agreement/all" if share == 1 else "agreement/two_thirds" if share >= 2 / 3 else "agreement/fewer"
            groups.setdefault(name, []).append(_make_decided_pair(ranking, better, worse))
    return dict(sorted(groups.items()))


def _calibration_rows(rankings: Sequence[ScoredRanking], model: str, cohort: str) -> list[ResultRow]:
    prompt_gaps = [(ranking.prompt, gap) for ranking in rankings for gap in _gaps(ranking, ranking.scores)]
    if not prompt_gaps:
        return []
    prompts, gaps = zip(*prompt_gaps, strict=True)
    error_row = ResultRow(
        REWARD_MODEL_EVALUATION,
        "calibration_error",
        model,
        cohort,
        calibration_error(gaps),
        None,
        None,
        len(prompt_gaps),
    )
    losses = [
        Observation(model, loss, (prompt,)) for prompt, loss in zip(prompts, brier_losses(gaps).tolist(), strict=True)
    ]
    return [
        error_row,
        *aggregate_per_model(REWARD_MODEL_EVALUATION, "brier", cohort, losses, share=True),
        make_row(REWARD_MODEL_EVALUATION, "temperature", model, cohort, fit_temperature(gaps, prompts)),
    ]


def _gaps(ranking: ScoredRanking, values: Sequence[float]) -> Iterator[float]:
    return (values[better] - values[worse] for better, worse in ranking.pairs())


def _correctness(gaps: Iterable[float]) -> list[float]:
    return [(np.sign(gap) + 1) / 2 for gap in gaps]


def _kendall_tau(ranks: Sequence[int], values: Sequence[float]) -> list[float]:
    if len(set(ranks)) < 2 or len(set(values)) < 2:
        return []
    return [float(stats.kendalltau(values, [-rank for rank in ranks]).statistic)]


def _top_1(ranks: Sequence[int], values: Sequence[float]) -> list[float]:
    """Return the share of the highest values on a completion of the best rank; nothing if all ranks are equal."""
    if len(set(ranks)) < 2:
        return []
    top_ranks = [rank for rank, number in zip(ranks, values, strict=True) if number == max(values)]
    return [top_ranks.count(min(ranks)) / len(top_ranks)]


def _best_of_n(ranks: Sequence[int], values: Sequence[float]) -> list[float]:
    """Return the share of other completions ranked below the one with the highest value (ties half)."""
    if len(set(ranks)) < 2:
        return []
    top_indices = [place for place, number in enumerate(values) if number == max(values)]
    shares_below = [
        (np.sign(rank - ranks[place]) + 1) / 2
        for place in top_indices
        for other, rank in enumerate(ranks)
        if other != place
    ]
    return [float(np.mean(shares_below))]


def _score_length_differences(ranking: ScoredRanking) -> list[float]:
    return [
        float(np.sign(gap) * longer)
        for gap, longer in zip(
            _gaps(ranking, ranking.scores), _gaps(ranking, ranking.completion_lengths()), strict=True
        )
        if gap != 0
    ]


_RANKING_METRICS: dict[str, tuple[_MetricFn, bool]] = {
    "pair_accuracy": (lambda ranking: _correctness(_gaps(ranking, ranking.scores)), True),
    "length_baseline": (lambda ranking: _correctness(_gaps(ranking, ranking.completion_lengths())), True),
    "kendall_tau": (lambda ranking: _kendall_tau(ranking.ranks, ranking.scores), False),
    "kendall_tau_by_length": (lambda ranking: _kendall_tau(ranking.ranks, ranking.completion_lengths()), False),
    "top_1": (lambda ranking: _top_1(ranking.ranks, ranking.scores), True),
    "top_1_by_length": (lambda ranking: _top_1(ranking.ranks, ranking.completion_lengths()), True),
    "best_of_n": (lambda ranking: _best_of_n(ranking.ranks, ranking.scores), True),
    "best_of_n_by_length": (lambda ranking: _best_of_n(ranking.ranks, ranking.completion_lengths()), True),
    "pair_loss": (lambda ranking: [float(np.logaddexp(0, -gap)) for gap in _gaps(ranking, ranking.scores)], False),
    "length_difference": (lambda ranking: _gaps(ranking, ranking.completion_lengths()), False),
    "score_length_difference": (_score_length_differences, False),
}
"""The values of each metric for one ranking, and whether they lie in 0..1."""


def _observations(model: str, rankings: Sequence[ScoredRanking], metric_fn: _MetricFn) -> list[Observation]:
    return [Observation(model, number, (ranking.prompt,)) for ranking in rankings for number in metric_fn(ranking)]


def _labeler_agreement_rows(rankings: Sequence[ScoredRanking], model: str) -> list[ResultRow]:
    """Return the share of equal decisions over pairs that two labelers decided, within and between cohorts."""
    cohorts = list(dict.fromkeys(ranking.cohort or "" for ranking in rankings))
    cohort_of: dict[Hashable, int] = {}
    rows: list[LabelerRanking] = []
    for ranking in rankings:
        labeler = ranking.labeler and (ranking.cohort or "", ranking.labeler)
        cohort_of[labeler] = cohorts.index(ranking.cohort or "")
        rows.append(LabelerRanking(ranking.prompt, labeler, ranking.completions, ranking.ranks))
    cells = compare_labelers(rows)
    cohort = np.array([cohort_of[labeler] for labeler in cells.labelers], dtype=np.int64)
    first, second = cohort[cells.first], cohort[cells.second]
    cell_masks = {name: (first == number) & (second == number) for number, name in enumerate(cohorts)} | {
        "between": first != second
    }
    shares = {name: summarize_agreement(cells.where(part)).decided for name, part in cell_masks.items()}
    return [
        make_row(REWARD_MODEL_EVALUATION, "labeler_agreement", model, name, share)
        for name, share in shares.items()
        if share.n
    ]
