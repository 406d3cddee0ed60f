"""Groups of labelers with a known truth: do the intervals of `statistics.group_preferences` hold it?

Two groups weigh a completion's three features by tastes that lie `gap` apart on one of them; every person has a taste
and a slip of their own. The truth comes from so many people that hardly two are compared twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
from coverage_numbers import COMPLETIONS, Array, Case, Design, Generator, Line, count_hits
from numpy.typing import NDArray

from instructgpt.statistics import group_preferences
from instructgpt.statistics.intervals import Estimate

NUMBERS = ("within group A", "within group B", "between groups", "within less between")
_MINORITY = 0.4
_TASTE = 0.5
_TRUTH = Design(400, 2_000, 8)
_TRUTH_REPETITIONS = 12


@dataclass(frozen=True, slots=True)
class People:
    """Tastes (L, 3) and the size of slips (L,)."""

    tastes: Array
    slip: Array


@dataclass(frozen=True, slots=True)
class GroupRanking:
    prompt: int
    labeler: int
    completions: range
    ranks: list[int]
    group: str
    scores: list[float]
    models: None = None


def group_of(labeler: int, labelers: int) -> str:
    return "B" if labeler < round(_MINORITY * labelers) else "A"


def draw_rankings(rng: Generator, design: Design, gap: float, people: People | None = None) -> list[GroupRanking]:
    """Draw rankings of two groups, with the scores of a reward model that knows the shared taste.

    Args:
        people: who stay the same; default: drawn anew.
    """
    people = people or draw_people(rng, design.labelers, gap)
    features = rng.normal(size=(design.prompts, COMPLETIONS, 3))
    who = assign(rng, design)
    noise = people.slip[who][..., None] * rng.normal(size=(*who.shape, COMPLETIONS))
    worth = np.einsum("pkf,pmf->pmk", features, people.tastes[who]) + noise
    ranks = (worth[..., None, :] > worth[..., :, None]).sum(-1) + 1
    scores = features.sum(-1)
    return [
        GroupRanking(
            p,
            int(labeler),
            range(COMPLETIONS),
            ranks[p, place].tolist(),
            group_of(int(labeler), design.labelers),
            scores[p].tolist(),
        )
        for p in range(len(who))
        for place, labeler in enumerate(who[p])
    ]


def draw_people(rng: Generator, labelers: int, gap: float) -> People:
    tastes = (1 + _TASTE * rng.normal(size=(labelers, 3))) / np.sqrt(3)
    sign = np.array([1 if group_of(labeler, labelers) == "A" else -1 for labeler in range(labelers)])
    tastes[:, 0] += sign * gap / 2
    return People(tastes, rng.uniform(0.5, 1.5, labelers))


def assign(rng: Generator, design: Design) -> NDArray[np.int64]:
    return np.argsort(rng.random((design.prompts, design.labelers)), axis=1)[:, : design.per_prompt]


def measure_groups(rankings: list[GroupRanking]) -> dict[str, Estimate]:
    agreement = group_preferences.group_agreement(rankings, group_preferences.find_groups(rankings))
    estimates = {frozenset((pair.first, pair.second)): pair.agreement for pair in agreement.pairs}
    values = (estimates[frozenset(names)] for names in ("A", "B", "AB"))
    return dict(zip(NUMBERS, [*values, agreement.difference], strict=True))


@cache
def group_truth(gap: float) -> dict[str, float]:
    """Return the agreement of any two people of these groups on any prompt."""
    rng = np.random.default_rng(100)
    samples = [measure_groups(draw_rankings(rng, _TRUTH, gap)) for _ in range(_TRUTH_REPETITIONS)]
    return {name: float(np.mean([sample[name].value for sample in samples])) for name in NUMBERS}


def agreement_lines(rng: Generator, repetitions: int, design: Design, gap: float) -> list[Line]:
    truth = group_truth(gap)
    samples = [measure_groups(draw_rankings(rng, design, gap)) for _ in range(repetitions)]
    setting = f"gap {gap:g}"
    return [count_hits(name, setting, design, truth[name], [sample[name] for sample in samples]) for name in NUMBERS]


def opposition_lines(rng: Generator, repetitions: int, design: Design, gap: float) -> list[Line]:
    """Share of pairs on which a group's majority opposes the scores: these people, other prompts."""
    people = draw_people(rng, design.labelers, gap)
    many = Design(4_000, design.labelers, design.per_prompt)
    truth = [estimate.value for estimate in measure_opposition(draw_rankings(rng, many, gap, people))]
    samples = [measure_opposition(draw_rankings(rng, design, gap, people)) for _ in range(repetitions)]
    return [
        count_hits(
            f"majority of {name} opposes scores", f"gap {gap:g}", design, value, [sample[i] for sample in samples]
        )
        for i, (name, value) in enumerate(zip("AB", truth, strict=True))
        if value is not None
    ]


def measure_opposition(rankings: list[GroupRanking]) -> list[Estimate]:
    return group_preferences.opposing_majorities(rankings, group_preferences.find_groups(rankings))


def groups() -> Iterator[Case]:
    """Agreement within and between groups, and majorities against a reward model."""
    for gap in (0.0, 1.0, 2.0):
        for design in (Design(40, 15, 4), Design(100, 15, 3), Design(100, 30, 4), Design(400, 30, 3)):
            yield Case(f"agreement, gap {gap:g}", design, partial(agreement_lines, design=design, gap=gap))
        for design in (Design(40, 15, 12), Design(100, 20, 15)):
            yield Case(f"majority, gap {gap:g}", design, partial(opposition_lines, design=design, gap=gap))
