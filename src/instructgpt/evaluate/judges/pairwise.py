"""Pairwise comparison of models by a judge: which completions are compared, the verdicts, and the judge's reliability.

Each comparison is judged twice, with both orders of the completions. It counts if both verdicts are readable and then
becomes two rankings, so that a judge that prefers a position produces a draw. The rest is shared with people's
rankings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from instructgpt.evaluate.aggregate import Observation, aggregate_per_model, make_row
from instructgpt.evaluate.judges.llm_judge import JudgePrompt, JudgeVerdict, PairwiseOutcome
from instructgpt.records import Completion, Ranking
from instructgpt.results import ResultRow
from instructgpt.statistics.agreement import compare_labelers, summarize_agreement
from instructgpt.statistics.pair_judgments import LabelerRanking

_Verdict = JudgeVerdict | None
_PAIRWISE_EVALUATION = "preference"
_RANKS: dict[PairwiseOutcome, tuple[int, int]] = {"first": (1, 2), "second": (2, 1), "tie": (1, 1)}
_SWAPPED: dict[PairwiseOutcome, PairwiseOutcome] = {"first": "second", "second": "first", "tie": "tie"}
_WIN_SHARES: dict[PairwiseOutcome, float] = {"first": 0.5, "tie": 0.25, "second": 0.0}


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
    verdict: _Verdict
    swapped_verdict: _Verdict

    @property
    def verdicts(self) -> tuple[PairwiseOutcome, PairwiseOutcome] | None:
        """Both verdicts from the candidate's side (`first`: the candidate is better), or None if either is missing."""
        if self.verdict is None or self.swapped_verdict is None:
            return None
        better, swapped_better = self.verdict.better, self.swapped_verdict.better
        return None if better is None or swapped_better is None else (better, _SWAPPED[swapped_better])

    @property
    def win_share(self) -> float | None:
        """The candidate's share of the win: 0, 1/4, 1/2, 3/4 or 1."""
        return None if self.verdicts is None else sum(_WIN_SHARES[outcome] for outcome in self.verdicts)

    def rankings(self, labeler: str) -> list[Ranking]:
        """Return the two verdicts as rankings, with the completions in the order the judge saw."""
        if self.verdicts is None:
            return []
        candidate, opponent = self.comparison.candidate, self.comparison.opponent
        better, swapped_better = self.verdicts[0], _SWAPPED[self.verdicts[1]]
        return [
            Ranking(
                prompt=first.prompt,
                messages=first.messages,
                completions=(first.completion, second.completion),
                ranks=_RANKS[outcome],
                labeler=labeler,
                models=(first.model, second.model),
                finish=(first.finish, second.finish),
            )
            for first, second, outcome in ((candidate, opponent, better), (opponent, candidate, swapped_better))
        ]


def build_comparisons(completion_lists: Iterable[Sequence[Completion]], baseline: str) -> list[Comparison]:
    """Pair every completion with the baseline's in its list; a list of two without the baseline makes one pair.

    Completions of the same model are never compared.
    """
    comparisons: list[Comparison] = []
    for completions in completion_lists:
        opponents = [completion for completion in completions if completion.model == baseline]
        candidates = [completion for completion in completions if completion.model != baseline]
        if not opponents and len(candidates) == 2:
            opponents = [candidates.pop()]
        comparisons += [Comparison(a, b) for b in opponents for a in candidates if a.model != b.model]
    return comparisons


def attach_verdicts(comparisons: Sequence[Comparison], verdicts: Sequence[_Verdict]) -> list[JudgedComparison]:
    return [JudgedComparison(*parts) for parts in zip(comparisons, verdicts[::2], verdicts[1::2], strict=True)]


def measure_judge_reliability(comparisons: Sequence[JudgedComparison], condition: str) -> list[ResultRow]:
    """Return how a judge handled each model, clustered by prompt.

    Rows: `unanswered` (of all verdicts), `unparsable` (of those answered), `first_shown_wins` (of those decided),
    `position_consistency` (comparisons whose two verdicts agree), and, if the judge reports probabilities,
    `win_probability` (that the model is better) and `verdict_mass` (that the judge gives a verdict at all).
    """
    metrics = (*_VERDICT_METRICS, "position_consistency", "win_probability")
    observations: dict[str, list[Observation]] = {name: [] for name in metrics}
    for comparison in comparisons:
        model, cluster = comparison.comparison.candidate.model, (comparison.comparison.candidate.prompt,)
        for verdict in (comparison.verdict, comparison.swapped_verdict):
            for name, metric_fn in _VERDICT_METRICS.items():
                if (value := metric_fn(verdict)) is not None:
                    observations[name].append(Observation(model, value, cluster))
        if comparison.verdicts is not None:
            is_consistent = float(len(set(comparison.verdicts)) == 1)
            observations["position_consistency"].append(Observation(model, is_consistent, cluster))
            if (probability := _win_probability(comparison)) is not None:
                observations["win_probability"].append(Observation(model, probability, cluster))
    return [
        row
        for name, metric_observations in observations.items()
        for row in aggregate_per_model(_PAIRWISE_EVALUATION, name, condition, metric_observations, share=True)
    ]


def _first_wins(verdict: _Verdict) -> float | None:
    return None if verdict is None or verdict.better in (None, "tie") else float(verdict.better == "first")


_VERDICT_METRICS: dict[str, Callable[[_Verdict], float | None]] = {
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
    rows = [LabelerRanking(r.prompt, (r.labeler,), r.completions, r.ranks) for r in rankings if r.labeler]
    for judged in comparisons:
        if judged.win_share is not None:
            sign, candidate = np.sign(judged.win_share - 0.5), judged.comparison.candidate
            texts = (candidate.completion, judged.comparison.opponent.completion)
            rows.append(LabelerRanking(candidate.prompt, judge, texts, (float(1 - sign), float(1 + sign))))
    cells = compare_labelers(rows)
    is_judge = np.array([labeler == judge for labeler in cells.labelers], dtype=np.bool_)
    if not is_judge.any():
        return []
    has_judge = is_judge[cells.first] | is_judge[cells.second]
    by_labeler = cells.where(has_judge)  # a row belongs to the labeler: the judge is on one side of all of them
    labeler = np.where(is_judge[by_labeler.first], by_labeler.second, by_labeler.first)
    parts = {
        "judge_agreement": replace(by_labeler, first=labeler, second=labeler),
        "labeler_agreement": cells.where(~has_judge),
    }
    shares = {name: summarize_agreement(part).decided for name, part in parts.items()}
    return [make_row(_PAIRWISE_EVALUATION, name, judge, judge, share) for name, share in shares.items() if share.n]
