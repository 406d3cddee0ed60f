"""Many people's shares, each from its own few counts, drawn towards the share of all: the fewer the counts, the further."""

from __future__ import annotations

import numpy as np
from scipy import special

from instructgpt.statistics.intervals import TAIL, Estimate, Floats

SPREADS, MIDDLES = 16, 7
"""How finely the two unknowns of the prior are searched."""
HALVINGS = 22
NEGLIGIBLE = 1e-3
"""Priors so much less likely than the likeliest are left out."""


def shrunk(alike: Floats, n: Floats) -> list[Estimate]:
    """Shares with 95 % posterior intervals by the beta-binomial model.

    People's long-run shares follow a beta distribution; its mean and its weight s (how many observations it is worth) are unknown, and are
    summed over, evenly in the mean and in the shrinkage s / (s + mean n) (Gelman and others, 2013, "Bayesian Data Analysis", 5.3). Putting
    in the likeliest prior instead would make intervals too short where people hardly differ.

    Args:
        alike: (L,) how often; need not be whole.
        n: (L,) of how many independent observations, above 0.
    """
    pool, total = float(alike.sum() / n.sum()), float(n.sum())
    shrinkage = (np.arange(SPREADS) + 0.5) / SPREADS
    weight = np.repeat(n.mean() * shrinkage / (1 - shrinkage), MIDDLES)
    variance = max(pool * (1 - pool), 1 / (total + 2))
    doubt = np.sqrt(variance * (1 / total + 1 / (weight + 1) / len(n)))
    middle = np.clip(pool + np.tile(np.linspace(-2.5, 2.5, MIDDLES), SPREADS) * doubt, 1e-3, 1 - 1e-3)
    a, b = (middle * weight)[:, None], ((1 - middle) * weight)[:, None]  # (priors, 1)
    likelihood = (special.betaln(a + alike, b + n - alike) - special.betaln(a, b)).sum(1) + np.log(doubt)  # priors stand doubt apart
    likely = likelihood > likelihood.max() + np.log(NEGLIGIBLE)
    a, b, likelihood = a[likely], b[likely], likelihood[likely]
    chance = np.exp(likelihood - special.logsumexp(likelihood))[:, None]
    mean = (chance * (a + alike) / (a + b + n)).sum(0)
    ends = np.stack([np.zeros((2, len(n))), np.ones((2, len(n)))])
    goal = np.array([[TAIL], [1 - TAIL]])
    for _ in range(HALVINGS):
        half = ends.mean(0)
        below = (chance[:, None] * special.betainc((a + alike)[:, None], (b + n - alike)[:, None], half)).sum(0) < goal
        ends = np.where(np.stack([below, ~below]), half, ends)
    low, high = ends.mean(0)
    return [Estimate(float(m), float(x), float(y), round(float(count))) for m, x, y, count in zip(mean, low, high, n, strict=True)]
