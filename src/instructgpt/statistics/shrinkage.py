"""Shrinkage of many labelers' shares towards their common mean."""

from __future__ import annotations

import numpy as np
from scipy import special

from instructgpt.statistics.arrays import FloatArray
from instructgpt.statistics.clustered import TAIL_PROBABILITY
from instructgpt.statistics.intervals import Estimate

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
    a, b, posterior = _prior_grid(successes, n)
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


def predictive_p_value(successes: float, n: int, other_successes: FloatArray, other_n: FloatArray) -> float:
    """Return the two-sided p that one more member of a group would have so many successes (Spiegelhalter, 2005).

    The group's members (L,) differ as a beta distribution; its two parameters are integrated over as in
    `beta_binomial_shrinkage`.
    """
    a, b, posterior = _prior_grid(other_successes, other_n)
    count = np.arange(n + 1)
    log_choose = special.gammaln(n + 1) - special.gammaln(count + 1) - special.gammaln(n - count + 1)
    chance = (posterior * np.exp(log_choose + special.betaln(a + count, b + n - count) - special.betaln(a, b))).sum(0)
    observed = round(successes)
    return min(1.0, 2 * float(min(chance[: observed + 1].sum(), chance[observed:].sum())))


def _prior_grid(successes: FloatArray, n: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return the likely priors of a group's shares: both parameters and the posterior probability, each (priors, 1)."""
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
    likelihood = likelihood[likely]
    return a[likely], b[likely], np.exp(likelihood - special.logsumexp(likelihood))[:, None]
