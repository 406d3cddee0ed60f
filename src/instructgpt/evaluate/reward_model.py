"""How well a reward model predicts labelers, beside the longer completion and the labelers themselves (paper, sections 3.5, 4.1)."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Self

import numpy as np
from numpy.typing import ArrayLike
from pydantic import model_validator
from scipy import stats
from scipy.special import expit

from instructgpt.evaluate.rows import Observation, Row, per_model, row
from instructgpt.records import Ranking
from instructgpt.statistics.agreement import compare, summary
from instructgpt.statistics.ranked import Ranked

EVALUATION = "reward_model"
BINS = 15


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
        `length_difference` (better minus worse, as the reward model and as labelers see it: `score_length_difference`), `pair_loss`
        (nats) and `calibration_error` (no interval). `pair_accuracy` once more by source: condition `source/hh`; agreement of labelers of
        different cohorts: `between`.
    """
    cohorts: dict[str, list[ScoredRanking]] = {}
    for ranking in rankings:
        cohorts.setdefault(ranking.cohort or "", []).append(ranking)
    rows: list[Row] = []
    for cohort, chosen in cohorts.items():
        for metric, (formula, share) in MEASUREMENTS.items():
            rows += per_model(EVALUATION, metric, cohort, _observations(model, chosen, formula), share=share)
        gaps = [gap for ranking in chosen for gap in _gaps(ranking, ranking.scores)]
        if gaps:
            rows.append(Row(EVALUATION, "calibration_error", model, cohort, calibration_error(gaps), None, None, len(gaps)))
    for source in sorted({ranking.source for ranking in rankings if ranking.source}):
        chosen = [ranking for ranking in rankings if ranking.source == source]
        for metric in ("pair_accuracy", "length_baseline"):
            observations = _observations(model, chosen, MEASUREMENTS[metric][0])
            rows += per_model(EVALUATION, metric, f"source/{source}", observations, share=True)
    return rows + _agreement(rankings, model)


def calibration_error(gaps: ArrayLike, bins: int = BINS) -> float:
    """How far the stated confidence is from the share that came true (ECE), over bins of equally many pairs.

    gaps (N,): score of the better minus score of the worse. The model's confidence is sigmoid(|gap|), and it is right where gap > 0.
    """
    gap = np.asarray(gaps, dtype=np.float64)
    confidence, right = expit(np.abs(gap)), (np.sign(gap) + 1) / 2
    parts = np.array_split(np.argsort(confidence, kind="stable"), min(bins, len(gap)))
    return float(sum(abs((confidence[part] - right[part]).sum()) for part in parts) / len(gap))


def _gaps(ranking: ScoredRanking, numbers: Sequence[float]) -> Iterator[float]:
    """The number of the better minus the number of the worse, for every decided pair."""
    return (numbers[better] - numbers[worse] for better, worse in ranking.pairs())


def _right(gaps: Iterable[float]) -> list[float]:
    return [(np.sign(gap) + 1) / 2 for gap in gaps]


def _kendall(ranking: ScoredRanking) -> list[float]:
    """Tau-b of scores and ranks; none where all ranks or all scores are equal."""
    if len(set(ranking.ranks)) < 2 or len(set(ranking.scores)) < 2:
        return []
    return [float(stats.kendalltau(ranking.scores, [-rank for rank in ranking.ranks]).statistic)]


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
    "kendall_tau": (_kendall, False),
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
