"""Bradley-Terry strengths of models: P(i beats j) = pᵢ / (pᵢ + pⱼ), a tie is half a win for each.

Maximum likelihood by the MM algorithm (Hunter, 2004, equation 3). A finite solution exists only within a strongly
connected component of the win graph (Ford, 1957); other models are reported as components of their own, each with its
own zero, or with a bound where they only won or only lost.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit, logit

from instructgpt.statistics.arrays import BoolArray, FloatArray, IntArray, unique_with_counts
from instructgpt.statistics.clustered import ratio_uncertainty
from instructgpt.statistics.intervals import NO_ESTIMATE, Estimate, never_seen_mass, t_interval
from instructgpt.statistics.pair_judgments import HasRanks
from instructgpt.statistics.win_rate import Comparisons, comparisons

_POINTS_PER_LOG_STRENGTH = 400 / math.log(10)
"""Points per unit of log strength: 400 points are odds of ten to one, as in chess."""
_WIDEST_LOG_GAP = 50.0
"""Search range of bounds on log strengths."""
_MAX_ITERATIONS = 5_000
_TOLERANCE = 1e-7
"""Convergence threshold on log strengths."""


@dataclass(frozen=True, slots=True)
class Strength:
    model: str
    part: int
    """Component number, the largest first; strengths compare only within a component."""
    strength: Estimate
    """Points above the component's mean or above the anchor.

    A component of one model has no value; if it won or lost every comparison with the anchor's component (default: the
    largest), one end is a bound on that component's scale.
    """
    wins: float
    """Wins plus half the ties."""
    comparisons: int


def estimate_strengths(rankings: Sequence[HasRanks], anchor: str | None = None) -> list[Strength]:
    """Estimate the Bradley-Terry table of all models, best first within each component.

    Args:
        rankings: must name their `models`.
        anchor: model at 0 in its component; default is the component's mean.

    Returns:
        Strengths with 95 % intervals: Student's t on the sandwich variance (White, 1982), clustered by prompt and
        labeler.

    Raises:
        InputError: a ranking does not name its models.
    """
    table = comparisons(rankings)
    if not table.models:
        return []
    size = len(table.models)
    wins = _win_matrix(table.first, table.second, table.won, size)
    component = _components(wins)
    anchor_index = table.models.index(anchor) if anchor is not None and anchor in table.models else None
    reference = 0 if anchor_index is None else int(component[anchor_index])
    estimates: dict[int, Estimate] = {}
    for component_index in [reference, *(each for each in range(int(component.max()) + 1) if each != reference)]:
        members = np.flatnonzero(component == component_index)
        if len(members) > 1:
            inside = table.where(
                (component[table.first] == component_index) & (component[table.second] == component_index)
            )
            component_estimates = _estimate_component(inside, members, wins[np.ix_(members, members)], anchor_index)
            estimates.update(zip(members.tolist(), component_estimates, strict=True))
        elif members[0] == anchor_index:
            estimates[int(members[0])] = Estimate(0.0, 0.0, 0.0, round(wins[members].sum() + wins[:, members].sum()))
        else:
            model = int(members[0])
            rivals = {i: e.value for i, e in estimates.items() if component[i] == reference and e.value is not None}
            estimates[model] = _one_sided_bound(table, model, rivals)
    results = [
        Strength(
            model,
            int(component[index]),
            estimates[index],
            float(wins[index].sum()),
            round(wins[index].sum() + wins[:, index].sum()),
        )
        for index, model in enumerate(table.models)
    ]
    return sorted(results, key=lambda each: (each.part, -(each.strength.value or 0.0)))


def fit_bradley_terry(wins: FloatArray, start: FloatArray | None = None) -> FloatArray:
    """Return log strengths (B, M) with mean 0 from win tables (B, M, M), row over column, ties as halves.

    Each table must be strongly connected. `start` (M,) is the initial guess.
    """
    counts, win_sums = wins + wins.transpose(0, 2, 1), wins.sum(-1)
    log_strengths = np.zeros(win_sums.shape) if start is None else np.tile(start, (len(win_sums), 1))
    active = np.arange(len(win_sums))
    for _ in range(_MAX_ITERATIONS):
        strength = np.exp(log_strengths[active])
        updated = np.log(win_sums[active] / (counts[active] / (strength[:, :, None] + strength[:, None, :])).sum(-1))
        updated -= updated.mean(-1, keepdims=True)
        change = np.abs(updated - log_strengths[active]).max(-1)
        log_strengths[active] = updated
        active = active[change > _TOLERANCE]
        if not len(active):
            break
    return log_strengths


def _estimate_component(table: Comparisons, members: IntArray, wins: FloatArray, anchor: int | None) -> list[Estimate]:
    size = len(members)
    positions = np.zeros(len(table.models), dtype=np.int64)
    positions[members] = np.arange(size)
    first, second = positions[table.first], positions[table.second]
    prompt, labeler = unique_with_counts(table.prompt)[1], unique_with_counts(table.labeler)[1]
    anchor_position = int(positions[anchor]) if anchor is not None and anchor in members else None
    log_strengths = fit_bradley_terry(wins[None])[0]
    errors, counts, keys = _strength_errors(
        log_strengths, wins, first, second, table.won, prompt, labeler, anchor_position
    )
    values = _relative_to_anchor(log_strengths, anchor_position)
    estimates = []
    for model, (value, count) in enumerate(zip(values.tolist(), _comparison_counts(wins).tolist(), strict=True)):
        if model == anchor_position:
            estimates.append(Estimate(0.0, 0.0, 0.0, int(count)))
            continue
        uncertainty = ratio_uncertainty(errors[:, model], counts, *keys)
        estimate = t_interval(value, uncertainty, int(count))
        if estimate.low is None and uncertainty.cluster_count > 1:  # nothing varied: all ties
            half_width = float(logit(0.5 + never_seen_mass(uncertainty.effective_clusters) / 2))
            estimate = replace(estimate, low=value - half_width, high=value + half_width)
        estimates.append(_in_points(estimate))
    return estimates


def _one_sided_bound(table: Comparisons, model: int, rivals: Mapping[int, float]) -> Estimate:
    """Return the bound of a model that won, or lost, every comparison with models of known points; else no estimate.

    The bound is the strength whose mean chance of what happened is the smallest that its clusters do not rule out
    (Clopper and Pearson, 1934).
    """
    parts = [table.between(model, rival) for rival in rivals]
    won = np.concatenate([part.won for part in parts]) if parts else np.zeros(0)
    if not len(won) or not (won.min() == 1 or won.max() == 0):
        return NO_ESTIMATE
    points = np.repeat(list(rivals.values()), [len(part.won) for part in parts]) / _POINTS_PER_LOG_STRENGTH
    keys = (
        unique_with_counts(np.concatenate([getattr(part, name) for part in parts]))[1] for name in ("prompt", "labeler")
    )
    uncertainty = ratio_uncertainty(np.zeros(len(won)), np.ones(len(won)), *keys)
    if uncertainty.cluster_count < 2:
        return NO_ESTIMATE
    chance = 1 - never_seen_mass(uncertainty.effective_clusters)
    sign = 1.0 if won[0] == 1 else -1.0
    bound = sign * brentq(
        lambda strength: float(expit(strength - sign * points).mean()) - chance, -_WIDEST_LOG_GAP, _WIDEST_LOG_GAP
    )
    low, high = (bound, None) if sign > 0 else (None, bound)
    return _in_points(Estimate(None, low, high, len(won), uncertainty.caution))


def _in_points(estimate: Estimate) -> Estimate:
    value, low, high = (
        None if number is None else _POINTS_PER_LOG_STRENGTH * number
        for number in (estimate.value, estimate.low, estimate.high)
    )
    return replace(estimate, value=value, low=low, high=high)


def _strength_errors(
    log_strengths: FloatArray,
    wins: FloatArray,
    first: IntArray,
    second: IntArray,
    won: FloatArray,
    prompt: IntArray,
    labeler: IntArray,
    anchor: int | None,
) -> tuple[FloatArray, FloatArray, tuple[IntArray, IntArray]]:
    """Return the first-order error that each prompt of a labeler adds to each log strength (C, M), its comparisons
    (C,), and the two cluster keys (C,).

    The error is the inverse information times the score (White, 1982).
    """
    size = len(log_strengths)
    labeler_count = int(labeler.max()) + 1
    cells, cell, counts = unique_with_counts(prompt * labeler_count + labeler)
    residual = won - expit(log_strengths[first] - log_strengths[second])
    gradient = sum(
        np.bincount(cell * size + model, weights=sign * residual, minlength=len(cells) * size)
        for model, sign in ((first, 1), (second, -1))
    )
    win_probability = expit(log_strengths[:, None] - log_strengths)
    fisher_weights = (wins + wins.T) * win_probability * (1 - win_probability)
    information = np.diag(fisher_weights.sum(1)) - fisher_weights
    errors = _relative_to_anchor(np.asarray(gradient).reshape(len(cells), size) @ np.linalg.pinv(information), anchor)
    keys = unique_with_counts(cells // labeler_count)[1], unique_with_counts(cells % labeler_count)[1]
    return errors, counts.astype(np.float64), keys


def _win_matrix(first: IntArray, second: IntArray, won: FloatArray, size: int) -> FloatArray:
    straight = np.bincount(first * size + second, weights=won, minlength=size**2)
    swapped = np.bincount(second * size + first, weights=1 - won, minlength=size**2)
    return np.asarray((straight + swapped).reshape(size, size))


def _reachable(edges: BoolArray) -> BoolArray:
    """Return the transitive closure of a graph (..., M, M)."""
    reachable = edges | np.eye(edges.shape[-1], dtype=np.bool_)
    for _ in range(math.ceil(math.log2(max(edges.shape[-1], 2)))):
        reachable = (reachable.astype(np.float32) @ reachable.astype(np.float32)) > 0
    return np.asarray(reachable)


def _components(wins: FloatArray) -> IntArray:
    """Return the component of each model (M,); component 0 is the largest."""
    reachable = _reachable(wins > 0)
    root = (reachable & reachable.T).argmax(1)  # the first model of its part
    roots, counts = np.unique(root, return_counts=True)
    order = roots[np.argsort(-counts, kind="stable")].tolist()
    return np.array([order.index(each) for each in root.tolist()], dtype=np.int64)


def _comparison_counts(wins: FloatArray) -> FloatArray:
    return np.asarray(wins.sum(0) + wins.sum(1))


def _relative_to_anchor(log_strengths: FloatArray, anchor: int | None) -> FloatArray:
    return log_strengths - (
        log_strengths.mean(-1, keepdims=True) if anchor is None else log_strengths[..., anchor : anchor + 1]
    )
