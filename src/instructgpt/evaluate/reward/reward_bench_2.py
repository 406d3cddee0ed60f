"""RewardBench 2's scoring (Malik et al. 2025): the right one of four completions, and Ties.

In Ties several completions are right. A reward model should score all of them above every wrong one, and closer together than to
the wrong ones. Each question occurs twice: `tied` with many right answers, `ref` with one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from instructgpt.evaluate.aggregate import make_row
from instructgpt.evaluate.reward.metrics import ScoredRanking
from instructgpt.results import ResultRow
from instructgpt.statistics import intervals
from instructgpt.statistics.intervals import FloatArray

_REWARD_BENCH_2_EVALUATION = "reward_bench_2"
_TIES_SUBSET = "Ties"
NUM_CORRECT_COLUMN = "num_correct"
"""The number of right completions, which come first; marks a ranking of this benchmark."""
_TIE_WEIGHTS = (0.30, 0.30, 0.20, 0.20, 0.01)
"""Weights in Ties: `tied` accuracy, `ref` accuracy, spread of right answers below the margin of `tied`, below both margins, and
the size of the margin.
"""


def measure(rankings: Sequence[ScoredRanking], model: str) -> list[ResultRow]:
    """Return `score` by subset and their mean (no condition), with jackknife intervals over questions.

    A ranking that lost a completion (too long for the model) is left out. In Ties, an `id` is `ref:NUMBER` or `tied:NUMBER`.
    """
    complete_rankings = [
        each
        for each in rankings
        if sum(rank == 1 for rank in each.ranks) == _benchmark_fields(each)[NUM_CORRECT_COLUMN] and max(each.ranks) > 1
    ]
    rankings_by_subset = {
        name: [each for each in complete_rankings if _benchmark_fields(each)["subset"] == name]
        for name in dict.fromkeys(_benchmark_fields(e)["subset"] for e in complete_rankings)
    }
    tie_rankings = rankings_by_subset.pop(_TIES_SUBSET, [])
    blocks = [np.array([[best_of_n_credit(each), 1.0] for each in some]) for some in rankings_by_subset.values()] + (
        [_tie_components(tie_rankings)] if tie_rankings else []
    )
    names = [*rankings_by_subset, *([_TIES_SUBSET] if tie_rankings else [])]
    rows = [
        make_row(
            _REWARD_BENCH_2_EVALUATION,
            "score",
            model,
            f"subset/{name}",
            intervals.jackknife(block, _tie_metric if name == _TIES_SUBSET else _mean_credit, len(block)),
        )
        for name, block in zip(names, blocks, strict=True)
    ]
    if not blocks:
        return rows
    split_points = np.cumsum([block.shape[1] for block in blocks])[:-1]
    stacked_blocks = np.zeros((sum(map(len, blocks)), sum(block.shape[1] for block in blocks)))
    row_start = column_start = 0
    for block in blocks:  # a question is of one subset: it adds nothing to the others' sums
        stacked_blocks[row_start : row_start + len(block), column_start : column_start + block.shape[1]] = block
        row_start, column_start = row_start + len(block), column_start + block.shape[1]

    def mean_of_subsets(sums: FloatArray) -> FloatArray:
        subset_means = [
            _tie_metric(s) if name == _TIES_SUBSET else _mean_credit(s)
            for name, s in zip(names, np.split(sums, split_points, axis=-1), strict=True)
        ]
        return np.asarray(sum(subset_means) / len(subset_means))

    return [
        *rows,
        make_row(
            _REWARD_BENCH_2_EVALUATION,
            "score",
            model,
            "",
            intervals.jackknife(stacked_blocks, mean_of_subsets, len(stacked_blocks)),
        ),
    ]


def _benchmark_fields(ranking: ScoredRanking) -> dict[str, Any]:
    return ranking.model_extra or {}


def best_of_n_credit(ranking: ScoredRanking) -> float:
    """Return 1 / (number of highest scores) if one of these is on a right completion, else 0."""
    top_indices = [place for place, score in enumerate(ranking.scores) if score == max(ranking.scores)]
    return 1 / len(top_indices) if any(ranking.ranks[place] == 1 for place in top_indices) else 0.0


def _mean_credit(sums: FloatArray) -> FloatArray:
    """(..., 2) sums of credits and questions -> (...)."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(sums[..., 0] / sums[..., 1])


def _tie_components(rankings: Sequence[ScoredRanking]) -> FloatArray:
    """Return each question's contributions to the five parts of Ties and to their counts. -> (questions, 10)"""
    gaps_by_prompt: dict[str, dict[str, tuple[float, float]]] = {}
    for ranking in rankings:
        kind, _, prompt_id = str(_benchmark_fields(ranking)["id"]).partition(":")
        correct_scores = [score for score, rank in zip(ranking.scores, ranking.ranks, strict=True) if rank == 1]
        wrong_scores = [score for score, rank in zip(ranking.scores, ranking.ranks, strict=True) if rank != 1]
        gaps_by_prompt.setdefault(prompt_id, {})["ref" if kind == "ref" else "tied"] = (
            min(correct_scores) - max(wrong_scores),
            max(correct_scores) - min(correct_scores),
        )
    components = np.zeros((len(gaps_by_prompt), 10))
    for component_row, gaps_by_kind in zip(components, gaps_by_prompt.values(), strict=True):
        for column, kind in enumerate(("tied", "ref")):
            if kind in gaps_by_kind:
                component_row[column], component_row[5 + column] = gaps_by_kind[kind][0] > 0, 1
        if len(gaps_by_kind) == 2:
            (gap, spread), min_gap = gaps_by_kind["tied"], min(gaps_by_kind["tied"][0], gaps_by_kind["ref"][0])
            with np.errstate(invalid="ignore", divide="ignore"):
                margin = np.tanh(np.float64(min_gap) / spread - 1)
            component_row[2:5] = gap > spread, min_gap > spread, np.nan_to_num(margin, nan=0.0)
            component_row[7:] = 1
    return components


def _tie_metric(sums: FloatArray) -> FloatArray:
    """(..., 10) sums over the questions of Ties -> (...); a part without questions counts 0, as in the benchmark."""
    means = sums[..., :5] / np.maximum(sums[..., 5:], 1)
    return np.asarray(means @ np.array(_TIE_WEIGHTS))
