"""Bradley-Terry strengths of models: P(i beats j) = pᵢ / (pᵢ + pⱼ), a tie is half a win for each.

Maximum likelihood by the MM algorithm (Hunter, 2004, equation 3). A finite solution exists only within a strongly
connected component of the win graph (Ford, 1957); other models are reported as components of their own, each with its
own zero.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse
from scipy.special import expit

from instructgpt.statistics.intervals import (
    NO_ESTIMATE,
    BoolArray,
    Estimate,
    FloatArray,
    IntArray,
    bootstrap_counts,
    clustered_uncertainty,
    percentile_interval,
)
from instructgpt.statistics.pair_judgments import HasRanks, unique_with_counts
from instructgpt.statistics.win_rate import Comparisons, comparisons

_POINTS_PER_LOG_STRENGTH = 400 / math.log(10)
"""Points per unit of log strength: 400 points are odds of ten to one, as in chess."""
_RESAMPLES = 1_000
_MAX_ITERATIONS = 5_000
_MAX_RESAMPLED_CLUSTERS = 128
"""Resamples give the shape of an interval, not its width (see `intervals`);
above this number clusters are drawn in blocks.
"""
_TOLERANCE = 1e-7
"""Convergence threshold on log strengths."""
_MAX_FAILED_SHARE = 0.01
"""Above this share of resamples without a finite solution, no interval is reported."""


@dataclass(frozen=True, slots=True)
class Strength:
    model: str
    part: int
    """Component number, the largest first; strengths compare only within a component."""
    strength: Estimate
    """Points above the component's mean or above the anchor; empty for a component of one model."""
    wins: float
    """Wins plus half the ties."""
    comparisons: int


def estimate_strengths(
    rankings: Sequence[HasRanks], anchor: str | None = None, seed: int = 0, resamples: int = _RESAMPLES
) -> list[Strength]:
    """Estimate the Bradley-Terry table of all models, best first within each component.

    Args:
        rankings: must name their `models`.
        anchor: model at 0 in its component; default is the component's mean.

    Returns:
        Strengths with 95 % intervals: percentiles over two-way resamples of prompts and labelers, rescaled to the
        clustered width. No interval where resamples often disconnect the component.

    Raises:
        InputError: a ranking does not name its models.
    """
    table = comparisons(rankings)
    if not table.models:
        return []
    size = len(table.models)
    wins = _win_matrix(table.first, table.second, table.won, size)
    component = _components(wins)
    results: list[Strength] = []
    for component_index in range(int(component.max()) + 1):
        members = np.flatnonzero(component == component_index)
        anchor_index = table.models.index(anchor) if anchor is not None and anchor in table.models else -1
        anchor_position = members.tolist().index(anchor_index) if anchor_index in members else None
        inside = table.where((component[table.first] == component_index) & (component[table.second] == component_index))
        estimates = (
            _estimate_component(inside, members, wins[np.ix_(members, members)], anchor_position, seed, resamples)
            if len(members) > 1
            else [NO_ESTIMATE]
        )
        for model, estimate in zip(members, estimates, strict=True):
            comparison_count = round(wins[model].sum() + wins[:, model].sum())
            results.append(
                Strength(table.models[model], component_index, estimate, float(wins[model].sum()), comparison_count)
            )
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


def _estimate_component(
    table: Comparisons, members: IntArray, wins: FloatArray, anchor: int | None, seed: int, resamples: int
) -> list[Estimate]:
    size = len(members)
    positions = np.zeros(len(table.models), dtype=np.int64)
    positions[members] = np.arange(size)
    first, second = positions[table.first], positions[table.second]
    prompt, labeler = unique_with_counts(table.prompt)[1], unique_with_counts(table.labeler)[1]
    log_strengths = fit_bradley_terry(wins[None])[0]
    uncertainties = [
        clustered_uncertainty(error, *keys)
        for error, keys in _strength_errors(log_strengths, wins, first, second, table.won, prompt, labeler, anchor)
    ]
    values = _POINTS_PER_LOG_STRENGTH * _relative_to_anchor(log_strengths, anchor)
    if uncertainties[0].cluster_count < 2:
        return [
            Estimate(float(value), None, None, int(count))
            for value, count in zip(values, _comparison_counts(wins), strict=True)
        ]
    replicate_logs, has_interval = _bootstrap_strengths(
        first,
        second,
        table.won,
        prompt % _MAX_RESAMPLED_CLUSTERS,
        labeler % _MAX_RESAMPLED_CLUSTERS,
        log_strengths,
        seed,
        resamples,
    )
    replicates = _POINTS_PER_LOG_STRENGTH * _relative_to_anchor(replicate_logs, anchor)
    estimates = []
    for model, (value, uncertainty, count) in enumerate(
        zip(values, uncertainties, _comparison_counts(wins), strict=True)
    ):
        low: float | None = None
        high: float | None = None
        if has_interval and model == anchor:
            low = high = 0.0
        elif has_interval:
            low, high = percentile_interval(replicates[:, model] / _POINTS_PER_LOG_STRENGTH, uncertainty)
            low, high = _POINTS_PER_LOG_STRENGTH * low, _POINTS_PER_LOG_STRENGTH * high
        estimates.append(Estimate(float(value), low, high, int(count)))
    return estimates


def _strength_errors(
    log_strengths: FloatArray,
    wins: FloatArray,
    first: IntArray,
    second: IntArray,
    won: FloatArray,
    prompt: IntArray,
    labeler: IntArray,
    anchor: int | None,
) -> Iterator[tuple[FloatArray, tuple[IntArray, IntArray]]]:
    """Yield, per model, the first-order error that each comparison (C,) adds to its log strength, and the two cluster
    keys (C,).

    The error is the inverse information times the score (White, 1982).
    """
    size = len(log_strengths)
    labeler_count = int(labeler.max()) + 1
    cells, cell, _ = unique_with_counts(prompt * labeler_count + labeler)
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
    return ((errors[:, model], keys) for model in range(size))


def _bootstrap_strengths(
    first: IntArray,
    second: IntArray,
    won: FloatArray,
    prompt: IntArray,
    labeler: IntArray,
    log_strengths: FloatArray,
    seed: int,
    resamples: int,
) -> tuple[FloatArray, bool]:
    """Return log strengths on the resamples with a finite solution (B, M), and whether few resamples lacked one."""
    size, labeler_count = len(log_strengths), int(labeler.max()) + 1
    column = labeler * size**2 + first * size + second
    swapped_column = labeler * size**2 + second * size + first
    shape = (int(prompt.max()) + 1, labeler_count * size**2)
    table = sparse.coo_array(
        (np.r_[won, 1 - won], (np.r_[prompt, prompt], np.r_[column, swapped_column])), shape=shape
    ).tocsc()
    used_columns = np.flatnonzero(np.diff(table.indptr))
    rng = np.random.default_rng(seed)
    by_prompt, by_labeler = bootstrap_counts(rng, shape[0], resamples), bootstrap_counts(rng, labeler_count, resamples)
    weighted = (table[:, used_columns].T @ by_prompt.T) * by_labeler.T[
        used_columns // size**2
    ]  # (columns in use, resamples)
    sums = (
        sparse.coo_array(
            (np.ones(len(used_columns)), (used_columns % size**2, np.arange(len(used_columns)))),
            shape=(size**2, len(used_columns)),
        ).tocsr()
        @ weighted
    )
    wins = sums.T.reshape(resamples, size, size)
    connected = _reachable(wins > 0).all((-1, -2))
    return fit_bradley_terry(wins[connected], log_strengths), bool(connected.mean() >= 1 - _MAX_FAILED_SHARE)


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
