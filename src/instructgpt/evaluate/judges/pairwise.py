"""Pairwise comparison of models by a judge: which completions are compared, the verdicts, and the judge's reliability.

Each comparison is judged twice, with both orders of the completions. It counts if both verdicts are readable and then becomes
two rankings, so that a judge that prefers a position produces a draw. Everything after that is shared with people's rankings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from instructgpt.evaluate.aggregate import Observation, aggregate_per_model, make_row
from instructgpt.evaluate.judges.llm_judge import JudgePrompt, JudgeVerdict, PairwiseOutcome
from instructgpt.records import Completion, Ranking
from instructgpt.results import ResultRow
from instructgpt.statistics.agreement import compare_labelers, summarize_agreement
from instructgpt.statistics.pair_judgments import LabelerRanking

_PAIRWISE_EVALUATION = "preference"
_RANKS_BY_OUTCOME: dict[PairwiseOutcome, tuple[int, int]] = {"first": (1, 2), "second": (2, 1), "tie": (1, 1)}
_SWAPPED_OUTCOME: dict[PairwiseOutcome, PairwiseOutcome] = {"first": "second", "second": "first", "tie": "tie"}


@dataclass(frozen=True, slots=True)
class Comparison:
    candidate: Completion
    opponent: Completion

    def judge_prompts(self) -> tuple[JudgePrompt, JudgePrompt]:
        prompt, a, b = self.candidate.prompt, self.candidate.completion, self.opponent.completion
        return JudgePrompt(prompt, a, b), JudgePrompt(prompt, b, a)


@dataclass(frozen=True, slots=True)
class JudgedComparison:
    """A comparison with its two verdicts, each relative to its own order of the completions."""

    comparison: Comparison
    verdict: JudgeVerdict | None
    swapped_verdict: JudgeVerdict | None

    @property
    def verdicts(self) -> tuple[PairwiseOutcome, PairwiseOutcome] | None:
        """Both verdicts from the candidate's side (`first`: the candidate is better), or None if either is missing or unreadable."""
        if (
            self.verdict is None
            or self.swapped_verdict is None
            or self.verdict.better is None
            or self.swapped_verdict.better is None
        ):
            return None
        return self.verdict.better, _SWAPPED_OUTCOME[self.swapped_verdict.better]

    @property
    def win_share(self) -> float | None:
        """The candidate's share of the win: 0, 1/4, 1/2, 3/4 or 1."""
        return (
            None
            if self.verdicts is None
            else sum({"first": 0.5, "tie": 0.25, "second": 0.0}[each] for each in self.verdicts)
        )

    def rankings(self, labeler: str) -> list[Ranking]:
        if self.verdicts is None or self.verdict is None or self.swapped_verdict is None:
            return []
        orders = (
            (self.comparison.candidate, self.comparison.opponent, self.verdict),
            (self.comparison.opponent, self.comparison.candidate, self.swapped_verdict),
        )
        return [
            Ranking(
                prompt=first.prompt,
                completions=(first.completion, second.completion),
                ranks=_RANKS_BY_OUTCOME[verdict.better],
                labeler=labeler,
                models=(first.model, second.model),
                finish=(first.finish, second.finish),
            )
            for first, second, verdict in orders
            if verdict.better is not None
        ]


def build_comparisons(completion_lists: Iterable[Sequence[Completion]], baseline: str) -> list[Comparison]:
    """Pair every completion with the baseline's in its list; a list of two without the baseline makes one pair.

    Completions of the same model are never compared.
    """
    comparisons: list[Comparison] = []
    for completions in completion_lists:
        opponents = [each for each in completions if each.model == baseline]
        challengers = [each for each in completions if each.model != baseline]
        if not opponents and len(challengers) == 2:
            opponents = [challengers.pop()]
        comparisons += [
            Comparison(one, rival) for rival in opponents for one in challengers if one.model != rival.model
        ]
    return comparisons


def attach_verdicts(
    comparisons: Sequence[Comparison], verdicts: Sequence[JudgeVerdict | None]
) -> list[JudgedComparison]:
    return [
        JudgedComparison(comparison, *verdicts[2 * index : 2 * index + 2])
        for index, comparison in enumerate(comparisons)
    ]


def measure_judge_reliability(comparisons: Sequence[JudgedComparison], condition: str) -> list[ResultRow]:
    """Return how a judge handled each model, clustered by prompt.

    Rows: `unanswered` (of all verdicts), `unparsable` (of those answered), `first_shown_wins` (of those decided),
    `position_consistency` (comparisons whose two verdicts agree), and, if the judge reports probabilities, `win_probability` (that the
    model is better) and `verdict_mass` (that the judge gives a verdict at all).
    """
    observations: dict[str, list[Observation]] = {
        name: [] for name in (*_VERDICT_METRICS, "position_consistency", "win_probability")
    }
    for comparison in comparisons:
        model, clusters = comparison.comparison.candidate.model, (comparison.comparison.candidate.prompt,)
        for verdict in (comparison.verdict, comparison.swapped_verdict):
            for name, metric_fn in _VERDICT_METRICS.items():
                if (value := metric_fn(verdict)) is not None:
                    observations[name].append(Observation(model, value, clusters))
        if comparison.verdicts is not None:
            observations["position_consistency"].append(
                Observation(model, float(len(set(comparison.verdicts)) == 1), clusters)
            )
            if (probability := _win_probability(comparison)) is not None:
                observations["win_probability"].append(Observation(model, probability, clusters))
    return [
        row
        for name, seen in observations.items()
        for row in aggregate_per_model(_PAIRWISE_EVALUATION, name, condition, seen, share=True)
    ]


def _first_wins(verdict: JudgeVerdict | None) -> float | None:
    has_winner = verdict is not None and verdict.better in ("first", "second")
    return float(verdict.better == "first") if verdict is not None and has_winner else None


_VERDICT_METRICS: dict[str, Callable[[JudgeVerdict | None], float | None]] = {
    "unanswered": lambda verdict: float(verdict is None),
    "unparsable": lambda verdict: None if verdict is None else float(verdict.better is None),
    "first_shown_wins": _first_wins,
    "verdict_mass": lambda verdict: None if verdict is None else verdict.mass,
}


def _win_probability(comparison: JudgedComparison) -> float | None:
    """Return the mean of both orders, which cancels position bias."""
    verdict, swapped_verdict = comparison.verdict, comparison.swapped_verdict
    if verdict is None or swapped_verdict is None or verdict.first is None or swapped_verdict.first is None:
        return None
    return (verdict.first + 1 - swapped_verdict.first) / 2


def measure_judge_agreement(
    comparisons: Sequence[JudgedComparison], rankings: Sequence[Ranking], judge: str
) -> list[ResultRow]:
    """Return how often the judge (the mean of its two verdicts) agrees with labelers, and labelers with each other."""
    rows: list[LabelerRanking] = [
        LabelerRanking(comparison.prompt, (comparison.labeler,), comparison.completions, comparison.ranks)
        for comparison in rankings
        if comparison.labeler
    ]
    for comparison in comparisons:
        if comparison.win_share is not None:
            sign = np.sign(comparison.win_share - 0.5)
            texts = (comparison.comparison.candidate.completion, comparison.comparison.opponent.completion)
            rows.append(
                LabelerRanking(comparison.comparison.candidate.prompt, judge, texts, (float(1 - sign), float(1 + sign)))
            )
    cells = compare_labelers(rows)
    is_judge = np.array([labeler == judge for labeler in cells.labelers], dtype=np.bool_)
    if not is_judge.any():
        return []
    involves_judge = is_judge[cells.first] | is_judge[cells.second]
    cells_by_metric = {
        "judge_agreement": cells.where(involves_judge),
        "labeler_agreement": cells.where(~involves_judge),
    }
    shares = {name: summarize_agreement(part).decided for name, part in cells_by_metric.items()}
    return [make_row(_PAIRWISE_EVALUATION, name, judge, judge, share) for name, share in shares.items() if share.n]
