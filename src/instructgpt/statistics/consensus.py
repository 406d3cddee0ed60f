"""One ranking out of several: Kemeny's, which has the fewest pairs in another order than labelers had them (for adjudicated gold)."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from instructgpt.statistics.intervals import Ints
from instructgpt.statistics.pair_judgments import Ranks

MOST = 9
"""Completions at most: the exact search looks at every subset of them."""


@dataclass(frozen=True, slots=True)
class Consensus:
    """What labelers together say of one prompt's completions."""

    completions: tuple[Hashable, ...]
    ranks: tuple[int, ...]
    """1 is best; equal ranks tie."""
    against: int
    """How many of the labelers' decided pairs stand the other way round here."""
    unique: bool
    """False where another ranking does as well, as with majorities that go round in a circle: a person should look."""


def consensus(rankings: Sequence[Ranks]) -> Consensus:
    """Kemeny's ranking of the completions of one prompt, exact.

    A pair's margin is how many labelers prefer the one minus how many prefer the other. The ranking has the greatest sum of margins of its
    decided pairs; among the rankings that do, the one with the fewest ranks: completions tie where no majority parts them (margin 0). Not
    everyone need have ranked every completion.

    Raises:
        ValueError: no ranking, or more than nine completions.
    """
    order = list(dict.fromkeys(completion for ranking in rankings for completion in ranking.completions))
    if not 1 <= len(order) <= MOST:
        raise ValueError(f"{len(order)} completions; a consensus is made of 1 to {MOST}")
    place = {completion: number for number, completion in enumerate(order)}
    prefer = np.zeros((len(order), len(order)), dtype=np.int64)
    for ranking in rankings:
        shown = [place[completion] for completion in ranking.completions]
        ranks = np.array(ranking.ranks)
        np.add.at(prefer, np.ix_(shown, shown), ranks[:, None] < ranks)
    best, unique = _kemeny(prefer - prefer.T)
    below = np.array(best)[:, None] > np.array(best)
    return Consensus(tuple(order), best, int(prefer[below].sum()), unique)


def _kemeny(margins: Ints) -> tuple[tuple[int, ...], bool]:
    """Ranks from margins (K, K), row over column, and whether no others are as good: dynamic programming over the sets ranked so far.

    best[S]: of the rankings that put the set S first, the greatest sum of margins, with the fewest ranks, and how many reach it.
    """
    k = len(margins)
    everything = (1 << k) - 1
    members = [[i for i in range(k) if group >> i & 1] for group in range(everything + 1)]
    gain = [[0] * (everything + 1) for _ in range(k)]  # gain[i][S]: the sum of margins of i over the set S
    for i, row in enumerate(margins.tolist()):
        for group in range(1, everything + 1):
            gain[i][group] = gain[i][group & (group - 1)] + row[members[group][0]]
    level = [{j for j in range(k) if margins[i, j] == 0} for i in range(k)]
    tied = [group for group in range(1, everything + 1) if all(level[i].issuperset(members[group]) for i in members[group])]
    best: list[tuple[int, int, int, int]] = [(0, 0, 1, 0)] + [(-(10**9), 0, 0, 0)] * everything  # sum, -ranks, ways, last group
    for done in range(everything):
        total, ranks, ways, _ = best[done]
        for group in tied:
            if not ways or group & done:
                continue
            after = done | group
            value = total + sum(gain[i][everything & ~after] for i in members[group]), ranks - 1
            if value > best[after][:2]:
                best[after] = (*value, ways, group)
            elif value == best[after][:2]:
                best[after] = (*value, best[after][2] + ways, best[after][3])
    ranks_of, left = [0] * k, everything
    while left:
        group = best[left][3]
        for i in members[group]:
            ranks_of[i] = -best[left][1]
        left &= ~group
    return tuple(ranks_of), best[everything][2] == 1
