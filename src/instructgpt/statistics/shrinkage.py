"""Shrinkage of many labelers' shares towards their common mean."""

from __future__ import annotations

import numpy as np
from scipy import special

from instructgpt.statistics.arrays import FloatArray
from instructgpt.statistics.intervals import TAIL_PROBABILITY, Estimate

_WEIGHT_GRID_SIZE, _MEAN_GRID_SIZE = 16, 7
"""Grid of the two prior parameters."""
_BISECTION_STEPS = 22
_MIN_RELATIVE_LIKELIHOOD = 1e-3
"""Priors below this relative likelihood are dropped."""


def beta_binomial_shrinkage(successes: FloatArray, n: FloatArray) -> list[Estimate]:
    """Return shares with 95 % posterior intervals under a beta-binomial model.

    The prior's mean and weight s are integrated over, uniform in the mean and in the shrinkage s / (s + mean n) (Gelman
    and others, 2013, "Bayesian Data Analysis", 5.3). A plug-in prior would give short intervals where labelers hardly
    differ.

    Args:
        successes: (L,) counts; need not be whole.
        n: (L,) independent observations, above 0.
    """
    pooled_share, total = float(successes.sum() / n.sum()), float(n.sum())
    shrinkage = (np.arange(_WEIGHT_GRID_SIZE) + 0.5) / _WEIGHT_GRID_SIZE
    weight = np.repeat(n.mean() * shrinkage / (1 - shrinkage), _MEAN_GRID_SIZE)
    variance = max(pooled_share * (1 - pooled_share), 1 / (total + 2))
    prior_width = np.sqrt(variance * (1 / total + 1 / (weight + 1) / len(n)))
    prior_mean = np.clip(
        pooled_share + np.tile(np.linspace(-2.5, 2.5, _MEAN_GRID_SIZE), _WEIGHT_GRID_SIZE) * prior_width, 1e-3, 1 - 1e-3
    )
    a, b = (prior_mean * weight)[:, None], ((1 - prior_mean) * weight)[:, None]  # (priors, 1)
    likelihood = (special.betaln(a + successes, b + n - successes) - special.betaln(a, b)).sum(1) + np.log(
        prior_width
    )  # priors stand doubt apart
    likely = likelihood > likelihood.max() + np.log(_MIN_RELATIVE_LIKELIHOOD)
    a, b, likelihood = a[likely], b[likely], likelihood[likely]
    posterior = np.exp(likelihood - special.logsumexp(likelihood))[:, None]
    mean = (posterior * (a + successes) / (a + b + n)).sum(0)
    bounds = np.stack([np.zeros((2, len(n))), np.ones((2, len(n)))])
    target = np.array([[TAIL_PROBABILITY], [1 - TAIL_PROBABILITY]])
    for _ in range(_BISECTION_STEPS):
        half = bounds.mean(0)
        below = (
            posterior[:, None] * special.betainc((a + successes)[:, None], (b + n - successes)[:, None], half)
        ).sum(0) < target
        bounds = np.where(np.stack([below, ~below]), half, bounds)
    low, high = bounds.mean(0)
    return [
        Estimate(float(m), float(x), float(y), round(float(count)))
        for m, x, y, count in zip(mean, low, high, n, strict=True)
    ]
