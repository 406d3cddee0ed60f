"""How well a reward model predicts labelers, beside a length baseline and labeler agreement (paper, 3.5, 4.1)."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Self

import numpy as np
from pydantic import model_validator
from scipy import stats

from instructgpt.evaluate.aggregate import Observation, aggregate_per_model, make_row, to_measurements
from instructgpt.evaluate.reward.calibration import (
    brier_losses,
    calibration_error,
    chance_calibration_error,
    fit_temperature,
)
from instructgpt.records import Ranking
from instructgpt.results import ResultRow
from instructgpt.statistics import intervals
from instructgpt.statistics.agreement import compare_labelers, summarize_agreement
from instructgpt.statistics.intervals import Estimate
from instructgpt.statistics.pair_judgments import LabelerRanking

REWARD_MODEL_EVALUATION = "reward_model"
_RATIO_BINS = {
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

    By cohort, clustered by prompt and labeler: `pair_accuracy` and `length_baseline` (decided pairs; equal scores or
    lengths count one half) and their paired difference, `pair_accuracy_minus_length_baseline`; `labeler_agreement`
    (pairs that two labelers of the cohort decided; `between` cohorts, too); `kendall_tau` (tau-b, mean of rankings);
    `top_1` (the highest score is on a completion of the best rank); `best_of_n` (share of the other completions ranked
    below the one with the highest score; 1/2 is chance); the last three also for the longest completion,
    `…_by_length`; `length_difference` and `score_length_difference` (better minus worse by labelers and by score);
    `pair_loss` (nats), `brier`, `temperature`, `calibration_error` (no interval) and beside it
    `chance_calibration_error`, what a calibrated model would show. With both cohorts of labelers
    `pair_accuracy_heldout_minus_training`. `pair_accuracy` and `length_baseline` also by source (`source/hh`), length
    (`length/twice`, `length/longer_is_better`, …) and, clustered by prompt, labeler agreement, against the majority
    (`agreement/all`, …).
    """
    cohorts: dict[str, list[ScoredRanking]] = {}
    for ranking in rankings:
        cohorts.setdefault(ranking.cohort or "", []).append(ranking)
    rows: list[ResultRow] = []
    for cohort, cohort_rankings in cohorts.items():
        rows += _ranking_rows(cohort_rankings, model, cohort, _RANKING_METRICS)
        rows += _length_difference_rows(cohort_rankings, model, cohort)
        rows += _calibration_rows(cohort_rankings, model, cohort)
    if {"training", "heldout"} <= set(cohorts):
        rows += _generalization_rows(cohorts["training"], cohorts["heldout"], model)
    for source in sorted({ranking.source for ranking in rankings if ranking.source}):
        selected = [ranking for ranking in rankings if ranking.source == source]
        rows += _ranking_rows(selected, model, f"source/{source}", ("pair_accuracy", "length_baseline"))
    pairs = [pair for ranking in rankings for pair in _decided_pairs(ranking)]
    for condition, group in (_group_by_length_ratio(pairs) | _group_by_agreement(rankings)).items():
        keys = _cluster_keys(rankings) if condition.startswith("length/") else 1
        correct = [Observation(model, pair.correct, pair.clusters[:keys]) for pair in group]
        rows += aggregate_per_model(REWARD_MODEL_EVALUATION, "pair_accuracy", condition, correct, share=True)
        if not condition.endswith("_is_better"):  # there it is 0 or 1 by construction
            longer = [Observation(model, pair.longer_wins, pair.clusters[:keys]) for pair in group]
            rows += aggregate_per_model(REWARD_MODEL_EVALUATION, "length_baseline", condition, longer, share=True)
    return rows + _labeler_agreement_rows(rankings, model)


def _cluster_keys(rankings: Iterable[ScoredRanking]) -> int:
    """Return the number of cluster keys: the prompt, and the labeler if any is named."""
    return 2 if any(ranking.labeler for ranking in rankings) else 1


def _observations(rankings: Sequence[ScoredRanking], model: str, metric: str) -> list[Observation]:
    keys, (metric_fn, _) = _cluster_keys(rankings), _RANKING_METRICS[metric]
    return [Observation(model, value, _clusters(r)[:keys]) for r in rankings for value in metric_fn(r)]


def pair_accuracy_measurements(rankings: Sequence[ScoredRanking], model: str) -> intervals.Measurements:
    """Return whether the model orders each decided pair as its labeler does, with prompts and labelers as clusters."""
    return to_measurements(_observations(rankings, model, "pair_accuracy"))


def _clusters(ranking: ScoredRanking) -> tuple[str, str]:
    return ranking.prompt, ranking.labeler or ""


def _length_difference_rows(rankings: Sequence[ScoredRanking], model: str, cohort: str) -> list[ResultRow]:
    accuracy, length = (_observations(rankings, model, name) for name in ("pair_accuracy", "length_baseline"))
    if not accuracy:
        return []
    gain = intervals.difference(to_measurements(accuracy), to_measurements(length), intervals.SHARE)
    return [make_row(REWARD_MODEL_EVALUATION, "pair_accuracy_minus_length_baseline", model, cohort, gain)]


def _generalization_rows(
    training: Sequence[ScoredRanking], heldout: Sequence[ScoredRanking], model: str
) -> list[ResultRow]:
    keys = _cluster_keys([*training, *heldout])
    heldout_pairs, training_pairs = (
        [Observation(model, value, _clusters(r)[:keys]) for r in rankings for value in _pair_accuracy(r)]
        for rankings in (heldout, training)
    )
    if not heldout_pairs or not training_pairs:
        return []
    gap = intervals.difference(to_measurements(heldout_pairs), to_measurements(training_pairs), intervals.SHARE)
    return [make_row(REWARD_MODEL_EVALUATION, "pair_accuracy_heldout_minus_training", model, "", gap)]


def _ranking_rows(
    rankings: Sequence[ScoredRanking], model: str, condition: str, metrics: Iterable[str]
) -> list[ResultRow]:
    rows: list[ResultRow] = []
    for metric in metrics:
        observations, bounds = _observations(rankings, model, metric), _RANKING_METRICS[metric][1]
        rows += aggregate_per_model(REWARD_MODEL_EVALUATION, metric, condition, observations, bounds=bounds)
    return rows


@dataclass(frozen=True, slots=True)
class _DecidedPair:
    clusters: tuple[str, str]
    """Prompt and labeler."""
    correct: float
    longer_wins: float
    length_ratio: float


def _make_decided_pair(ranking: ScoredRanking, better: int, worse: int) -> _DecidedPair:
    lengths, scores = ranking.completion_lengths(), ranking.scores
    correct, longer_wins = _correctness([scores[better] - scores[worse], lengths[better] - lengths[worse]])
    short, long = sorted((lengths[better], lengths[worse]))
    return _DecidedPair(_clusters(ranking), correct, longer_wins, long / short if short else np.inf if long else 1.0)


def _decided_pairs(ranking: ScoredRanking) -> list[_DecidedPair]:
    return [_make_decided_pair(ranking, better, worse) for better, worse in ranking.pairs()]


def _group_by_length_ratio(pairs: Sequence[_DecidedPair]) -> dict[str, list[_DecidedPair]]:
    groups: dict[str, list[_DecidedPair]] = {}
    for pair in pairs:
        ratio_bin = next(name for name, limit in _RATIO_BINS.items() if pair.length_ratio <= limit)
        groups.setdefault(ratio_bin, []).append(pair)
        if pair.longer_wins != 0.5:
            better = "longer" if pair.longer_wins else "shorter"
            groups.setdefault(f"length/{better}_is_better", []).append(pair)
    return dict(sorted(groups.items()))


def _group_by_agreement(rankings: Sequence[ScoredRanking]) -> dict[str, list[_DecidedPair]]:
    """Group pairs that several labelers judged, by the share who agree with the majority; ties are left out."""
    votes: dict[tuple[str, str, str], dict[str, int]] = {}
    locations: dict[tuple[str, str, str], tuple[ScoredRanking, int, int]] = {}
    for ranking in rankings:
        for pair in combinations(range(len(ranking.ranks)), 2) if ranking.labeler else ():
            first, second = sorted(pair, key=lambda index: ranking.completions[index])
            key = (ranking.prompt, ranking.completions[first], ranking.completions[second])
            locations.setdefault(key, (ranking, first, second))
            vote = int(np.sign(ranking.ranks[second] - ranking.ranks[first]))
            votes.setdefault(key, {}).setdefault(ranking.labeler or "", vote)
    groups: dict[str, list[_DecidedPair]] = {}
    for key, votes_by_labeler in votes.items():
        ranking, first, second = locations[key]
        decisions = list(votes_by_labeler.values())
        majority = int(np.sign(sum(decisions)))
        if len(decisions) > 1 and majority:
            better, worse = (first, second) if majority > 0 else (second, first)
            share = decisions.count(majority) / len(decisions)
            name = "agreement/all" if share == 1 else "agreement/two_thirds" if share >= 2 / 3 else "agreement/fewer"
            groups.setdefault(name, []).append(_make_decided_pair(ranking, better, worse))
    return dict(sorted(groups.items()))


def _calibration_rows(rankings: Sequence[ScoredRanking], model: str, cohort: str) -> list[ResultRow]:
    gaps, keys = score_gaps(rankings)
    if not gaps:
        return []
    errors = {
        "calibration_error": calibration_error(gaps),
        "chance_calibration_error": chance_calibration_error(gaps, *keys),
    }
    brier = intervals.mean(brier_losses(gaps), *keys, bounds=intervals.SHARE)
    return [
        *(
            make_row(REWARD_MODEL_EVALUATION, name, model, cohort, Estimate(error, None, None, len(gaps)))
            for name, error in errors.items()
        ),
        make_row(REWARD_MODEL_EVALUATION, "brier", model, cohort, brier),
        make_row(REWARD_MODEL_EVALUATION, "temperature", model, cohort, fit_temperature(gaps, *keys)),
    ]


def score_gaps(rankings: Sequence[ScoredRanking]) -> tuple[list[float], list[list[str]]]:
    """Return the score of the better completion less the other's for every pair (N,), and one or two cluster keys."""
    gap_rows = [(gap, _clusters(ranking)) for ranking in rankings for gap in _gaps(ranking, ranking.scores)]
    keys = [list(key) for key in zip(*(clusters for _, clusters in gap_rows), strict=True)]
    return [gap for gap, _ in gap_rows], keys[: _cluster_keys(rankings)]


def _gaps(ranking: ScoredRanking, values: Sequence[float]) -> Iterator[float]:
    return (values[better] - values[worse] for better, worse in ranking.pairs())


def _correctness(gaps: Iterable[float]) -> list[float]:
    return [(np.sign(gap) + 1) / 2 for gap in gaps]


def _pair_accuracy(ranking: ScoredRanking) -> list[float]:
    return _correctness(_gaps(ranking, ranking.scores))


def _kendall_tau(ranks: Sequence[int], values: Sequence[float]) -> list[float]:
    if len(set(ranks)) < 2 or len(set(values)) < 2:
        return []
    return [float(stats.kendalltau(values, [-rank for rank in ranks]).statistic)]


def _top_1(ranks: Sequence[int], values: Sequence[float]) -> list[float]:
    """Return the share of the highest values on a completion of the best rank; nothing if all ranks are equal."""
    if len(set(ranks)) < 2:
        return []
    top_ranks = [rank for rank, value in zip(ranks, values, strict=True) if value == max(values)]
    return [top_ranks.count(min(ranks)) / len(top_ranks)]


def _best_of_n(ranks: Sequence[int], values: Sequence[float]) -> list[float]:
    """Return the share of other completions ranked below the one with the highest value (ties half)."""
    if len(set(ranks)) < 2:
        return []
    top = [index for index, value in enumerate(values) if value == max(values)]
    shares = [(np.sign(rank - ranks[i]) + 1) / 2 for i in top for j, rank in enumerate(ranks) if i != j]
    return [float(np.mean(shares))]


def _score_length_differences(ranking: ScoredRanking) -> list[float]:
    gaps = zip(_gaps(ranking, ranking.scores), _gaps(ranking, ranking.completion_lengths()), strict=True)
    return [float(np.sign(gap) * longer) for gap, longer in gaps if gap != 0]


_RANKING_METRICS: dict[str, tuple[_MetricFn, intervals.Bounds | None]] = {
    "pair_accuracy": (_pair_accuracy, intervals.SHARE),
    "length_baseline": (lambda ranking: _correctness(_gaps(ranking, ranking.completion_lengths())), intervals.SHARE),
    "kendall_tau": (lambda ranking: _kendall_tau(ranking.ranks, ranking.scores), intervals.CORRELATION),
    "kendall_tau_by_length": (
        lambda ranking: _kendall_tau(ranking.ranks, ranking.completion_lengths()),
        intervals.CORRELATION,
    ),
    "top_1": (lambda ranking: _top_1(ranking.ranks, ranking.scores), intervals.SHARE),
    "top_1_by_length": (lambda ranking: _top_1(ranking.ranks, ranking.completion_lengths()), intervals.SHARE),
    "best_of_n": (lambda ranking: _best_of_n(ranking.ranks, ranking.scores), intervals.SHARE),
    "best_of_n_by_length": (lambda ranking: _best_of_n(ranking.ranks, ranking.completion_lengths()), intervals.SHARE),
    "pair_loss": (lambda ranking: [float(np.logaddexp(0, -gap)) for gap in _gaps(ranking, ranking.scores)], None),
    "length_difference": (lambda ranking: _gaps(ranking, ranking.completion_lengths()), None),
    "score_length_difference": (_score_length_differences, None),
}
"""The values of each metric for one ranking, and their bounds."""


def _labeler_agreement_rows(rankings: Sequence[ScoredRanking], model: str) -> list[ResultRow]:
    """Return the share of equal decisions over pairs that two labelers decided, within and between cohorts."""
    cohorts = list(dict.fromkeys(ranking.cohort or "" for ranking in rankings))
    cohort_of: dict[Hashable, int] = {}
    labeler_rankings: list[LabelerRanking] = []
    for ranking in rankings:
        labeler = ranking.labeler and (ranking.cohort or "", ranking.labeler)
        cohort_of[labeler] = cohorts.index(ranking.cohort or "")
        labeler_rankings.append(LabelerRanking(ranking.prompt, labeler, ranking.completions, ranking.ranks))
    cells = compare_labelers(labeler_rankings)
    cohort = np.array([cohort_of[labeler] for labeler in cells.labelers], dtype=np.int64)
    first, second = cohort[cells.first], cohort[cells.second]
    masks = {name: (first == index) & (second == index) for index, name in enumerate(cohorts)}
    rows: list[ResultRow] = []
    for condition, mask in (masks | {"between": first != second}).items():
        share = summarize_agreement(cells.where(mask)).decided
        if share.n:
            rows.append(make_row(REWARD_MODEL_EVALUATION, "labeler_agreement", model, condition, share))
    return rows
