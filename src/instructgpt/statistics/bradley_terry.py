"""One scale for many models: strengths of the Bradley-Terry model, P(i beats j) = pᵢ / (pᵢ + pⱼ), ties as half a win for each.

Maximum likelihood by minorisation-maximisation (Hunter, 2004, "MM algorithms for generalized Bradley-Terry models", equation 3). It has a
finite answer only within models that can be reached from each other by wins (Ford, 1957): a model that only ever won has no strength, and
models that never met, even by way of others, have no common scale. Such models are reported as separate parts, each with its own zero.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse
from scipy.special import expit

from instructgpt.statistics.intervals import NOTHING, Bools, Estimate, Floats, Ints, clustered, draws, percentiles
from instructgpt.statistics.pair_judgments import Ranks, distinct
from instructgpt.statistics.win_rate import Comparisons, comparisons

POINTS = 400 / math.log(10)
"""Points on the scale for one unit of log strength: 400 points are odds of ten to one, as in chess."""
RESAMPLES = 1_000
STEPS = 5_000
BLOCKS = 128
"""Resamples give the shape of an interval, not its width (see `estimate`): more prompts or labelers than this are drawn in blocks."""
CLOSE = 1e-7
"""Log strengths that move by less are there."""
MISSING = 0.01
"""Where a greater share of resamples has no finite strength, there is no interval."""


@dataclass(frozen=True, slots=True)
class Strength:
    """One model on the scale."""

    model: str
    part: int
    """Only strengths of the same part can be compared. Parts are numbered from 0, the largest first."""
    strength: Estimate
    """Points above the mean of its part, or above the anchor. Nothing where the model is a part by itself."""
    wins: float
    """Half wins for ties."""
    comparisons: int


def strengths(rankings: Sequence[Ranks], anchor: str | None = None, seed: int = 0, resamples: int = RESAMPLES) -> list[Strength]:
    """The Bradley-Terry table of all models, each part's best first.

    Args:
        rankings: with `models`.
        anchor: the model that stands at 0 in its part; the mean of the part where not given.
        seed: of the resampling.
        resamples: how often prompts and labelers are drawn again.

    Returns:
        Strengths with 95 % intervals of their distance from 0: percentiles over resamples of whole prompts and labelers, brought to the
        two-way clustered width (`estimate.percentiles`). No interval where resamples often tear the part apart.

    Raises:
        BadInput: a ranking does not name its models.
    """
    table = comparisons(rankings)
    if not table.models:
        return []
    size = len(table.models)
    wins = _wins(table.first, table.second, table.won, size)
    part = _parts(wins)
    found: list[Strength] = []
    for number in range(int(part.max()) + 1):
        members = np.flatnonzero(part == number)
        zero = table.models.index(anchor) if anchor is not None and anchor in table.models else -1
        place = members.tolist().index(zero) if zero in members else None
        inside = table.where((part[table.first] == number) & (part[table.second] == number))
        measured = _measure(inside, members, wins[np.ix_(members, members)], place, seed, resamples) if len(members) > 1 else [NOTHING]
        for model, estimate in zip(members, measured, strict=True):
            played = round(wins[model].sum() + wins[:, model].sum())
            found.append(Strength(table.models[model], number, estimate, float(wins[model].sum()), played))
    return sorted(found, key=lambda each: (each.part, -(each.strength.value or 0.0)))


def fit(wins: Floats, start: Floats | None = None) -> Floats:
    """Log strengths with mean 0, (B, M), of B tables of wins (B, M, M): row over column, halves for ties.

    In each table every model must be reachable from every other by wins. `start` (M,) is a first guess.
    """
    games, won = wins + wins.transpose(0, 2, 1), wins.sum(-1)
    log = np.zeros(won.shape) if start is None else np.tile(start, (len(won), 1))
    moving = np.arange(len(won))
    for _ in range(STEPS):
        p = np.exp(log[moving])
        new = np.log(won[moving] / (games[moving] / (p[:, :, None] + p[:, None, :])).sum(-1))
        new -= new.mean(-1, keepdims=True)
        moved = np.abs(new - log[moving]).max(-1)
        log[moving] = new
        moving = moving[moved > CLOSE]
        if not len(moving):
            break
    return log


def _measure(table: Comparisons, members: Ints, wins: Floats, zero: int | None, seed: int, resamples: int) -> list[Estimate]:
    """Strengths in points of the models of one part: their numbers `members` (m,), their wins (m, m), which of them stands at 0."""
    size = len(members)
    place = np.zeros(len(table.models), dtype=np.int64)
    place[members] = np.arange(size)
    first, second = place[table.first], place[table.second]
    prompt, labeler = distinct(table.prompt)[1], distinct(table.labeler)[1]
    log = fit(wins[None])[0]
    spreads = [clustered(error, *keys) for error, keys in _errors(log, wins, first, second, table.won, prompt, labeler, zero)]
    values = POINTS * _from_zero(log, zero)
    if spreads[0].independent < 2:
        return [Estimate(float(value), None, None, int(games)) for value, games in zip(values, _games(wins), strict=True)]
    drawn, complete = _replicates(first, second, table.won, prompt % BLOCKS, labeler % BLOCKS, log, seed, resamples)
    replicates = POINTS * _from_zero(drawn, zero)
    found = []
    for model, (value, spread, games) in enumerate(zip(values, spreads, _games(wins), strict=True)):
        low: float | None = None
        high: float | None = None
        if complete and model == zero:
            low = high = 0.0
        elif complete:
            low, high = percentiles(replicates[:, model] / POINTS, spread)
            low, high = POINTS * low, POINTS * high
        found.append(Estimate(float(value), low, high, int(games)))
    return found


def _errors(
    log: Floats, wins: Floats, first: Ints, second: Ints, won: Floats, prompt: Ints, labeler: Ints, zero: int | None
) -> Iterator[tuple[Floats, tuple[Ints, Ints]]]:
    """For each model: what every prompt and labeler (C,) adds to the error of its log strength, to first order, and the two keys (C,).

    That is the inverse information times the score, as in any maximum likelihood (White, 1982).
    """
    size = len(log)
    people = int(labeler.max()) + 1
    cells, cell, _ = distinct(prompt * people + labeler)
    surprise = won - expit(log[first] - log[second])
    score = sum(
        np.bincount(cell * size + model, weights=sign * surprise, minlength=len(cells) * size) for model, sign in ((first, 1), (second, -1))
    )
    chance = expit(log[:, None] - log)
    bend = (wins + wins.T) * chance * (1 - chance)
    information = np.diag(bend.sum(1)) - bend
    errors = _from_zero(np.asarray(score).reshape(len(cells), size) @ np.linalg.pinv(information), zero)
    keys = distinct(cells // people)[1], distinct(cells % people)[1]
    return ((errors[:, model], keys) for model in range(size))


def _replicates(
    first: Ints, second: Ints, won: Floats, prompt: Ints, labeler: Ints, log: Floats, seed: int, resamples: int
) -> tuple[Floats, bool]:
    """Log strengths on resamples of prompts and labelers (B, M), without those that have none; whether these were few."""
    size, people = len(log), int(labeler.max()) + 1
    column = labeler * size**2 + first * size + second
    turned = labeler * size**2 + second * size + first
    shape = (int(prompt.max()) + 1, people * size**2)
    table = sparse.coo_array((np.r_[won, 1 - won], (np.r_[prompt, prompt], np.r_[column, turned])), shape=shape).tocsc()
    used = np.flatnonzero(np.diff(table.indptr))
    rng = np.random.default_rng(seed)
    by_prompt, by_labeler = draws(rng, shape[0], resamples), draws(rng, people, resamples)
    weighted = (table[:, used].T @ by_prompt.T) * by_labeler.T[used // size**2]  # (columns in use, resamples)
    sums = sparse.coo_array((np.ones(len(used)), (used % size**2, np.arange(len(used)))), shape=(size**2, len(used))).tocsr() @ weighted
    wins = sums.T.reshape(resamples, size, size)
    whole = _reachable(wins > 0).all((-1, -2))
    return fit(wins[whole], log), bool(whole.mean() >= 1 - MISSING)


def _wins(first: Ints, second: Ints, won: Floats, size: int) -> Floats:
    """(M, M): how often the model of the row beat that of the column, half for a tie."""
    straight = np.bincount(first * size + second, weights=won, minlength=size**2)
    turned = np.bincount(second * size + first, weights=1 - won, minlength=size**2)
    return np.asarray((straight + turned).reshape(size, size))


def _reachable(step: Bools) -> Bools:
    """Which models are reached from which in any number of steps: (..., M, M)."""
    reached = step | np.eye(step.shape[-1], dtype=np.bool_)
    for _ in range(math.ceil(math.log2(max(step.shape[-1], 2)))):
        reached = (reached.astype(np.float32) @ reached.astype(np.float32)) > 0
    return np.asarray(reached)


def _parts(wins: Floats) -> Ints:
    """The part of each model (M,): those that reach each other by wins; the largest is 0."""
    reached = _reachable(wins > 0)
    label = (reached & reached.T).argmax(1)  # the first model of its part
    found, counts = np.unique(label, return_counts=True)
    order = found[np.argsort(-counts, kind="stable")].tolist()
    return np.array([order.index(each) for each in label.tolist()], dtype=np.int64)


def _games(wins: Floats) -> Floats:
    """(M,): how many comparisons each model was in."""
    return np.asarray(wins.sum(0) + wins.sum(1))


def _from_zero(log: Floats, zero: int | None) -> Floats:
    """Log strengths (..., M) as the distance from the model at 0, or from their mean."""
    return log - (log.mean(-1, keepdims=True) if zero is None else log[..., zero : zero + 1])
