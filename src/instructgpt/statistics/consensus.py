"""Kemeny consensus of several rankings of one prompt:
the ranking with the fewest reversed pairs (for adjudicated gold).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from instructgpt.statistics.arrays import IntArray
from instructgpt.statistics.pair_judgments import HasRanks

_MAX_COMPLETIONS = 9
"""Maximum K: the exact search visits every subset of completions."""


@dataclass(frozen=True, slots=True)
class Consensus:
    completions: tuple[Hashable, ...]
    ranks: tuple[int, ...]
    """1 is best; equal ranks tie."""
    against: int
    """Decided pairs of labelers that the consensus reverses."""
    unique: bool
    """False where another ranking is as good, for example with cyclic majorities; a person should decide."""


def kemeny_consensus(rankings: Sequence[HasRanks]) -> Consensus:
    """Compute the exact Kemeny ranking of one prompt's completions.

    The ranking maximizes the sum of margins (labelers for minus against) over its decided pairs; among equals it has
    the fewest ranks, so completions with margin 0 tie. Labelers may rank different subsets.

    Raises:
        ValueError: no ranking, or more than nine completions.
    """
    order = list(dict.fromkeys(completion for ranking in rankings for completion in ranking.completions))
    if not 1 <= len(order) <= _MAX_COMPLETIONS:
        raise ValueError(f"{len(order)} completions; a consensus is made of 1 to {_MAX_COMPLETIONS}")
    index_of = {completion: number for number, completion in enumerate(order)}
    preferences = np.zeros((len(order), len(order)), dtype=np.int64)
    for ranking in rankings:
        indices = [index_of[completion] for completion in ranking.completions]
        ranks = np.array(ranking.ranks)
        np.add.at(preferences, np.ix_(indices, indices), ranks[:, None] < ranks)
    best, unique = _kemeny_ranks(preferences - preferences.T)
    below = np.array(best)[:, None] > np.array(best)
    return Consensus(tuple(order), best, int(preferences[below].sum()), unique)


def _kemeny_ranks(margins: IntArray) -> tuple[tuple[int, ...], bool]:
    """Return ranks and uniqueness from margins (K, K), row over column, by dynamic programming over ranked subsets.

    best[S]: for rankings that place the set S first, the largest sum of margins, the fewest ranks, and the number of
    optima.
    """
    k = len(margins)
    full_set = (1 << k) - 1
    members = [[i for i in range(k) if subset >> i & 1] for subset in range(full_set + 1)]
    gain = [[0] * (full_set + 1) for _ in range(k)]  # gain[i][S]: the sum of margins of i over the set S
    for i, row in enumerate(margins.tolist()):
        for subset in range(1, full_set + 1):
            gain[i][subset] = gain[i][subset & (subset - 1)] + row[members[subset][0]]
    level = [{j for j in range(k) if margins[i, j] == 0} for i in range(k)]
    tied = [
        subset
        for subset in range(1, full_set + 1)
        if all(level[i].issuperset(members[subset]) for i in members[subset])
    ]
    best: list[tuple[int, int, int, int]] = [(0, 0, 1, 0)] + [
        (-(10**9), 0, 0, 0)
    ] * full_set  # sum, -ranks, ways, last group
    for placed in range(full_set):
        total, ranks, ways, _ = best[placed]
        for subset in tied:
            if not ways or subset & placed:
                continue
            extended = placed | subset
            value = total + sum(gain[i][full_set & ~extended] for i in members[subset]), ranks - 1
            if value > best[extended][:2]:
                best[extended] = (*value, ways, subset)
            elif value == best[extended][:2]:
                best[extended] = (*value, best[extended][2] + ways, best[extended][3])
    completion_ranks, remaining = [0] * k, full_set
    while remaining:
        subset = best[remaining][3]
        for i in members[subset]:
            completion_ranks[i] = -best[remaining][1]
        remaining &= ~subset
    return tuple(completion_ranks), best[full_set][2] == 1
