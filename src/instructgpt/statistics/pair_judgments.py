"""Rankings as arrays: which of two completions each labeler put first, and what two labelers did with the same two."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, fields
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from instructgpt.statistics.intervals import Bools, Floats, Ints

ROOM = 20_000_000
"""Entries of one table of labelers and pairs at a time."""


class Ranks(Protocol):
    """What the numbers here are made from. `records.Ranking` is one as it stands, and so is `Ranked`, for rows of a database."""

    @property
    def prompt(self) -> Hashable: ...
    @property
    def labeler(self) -> Hashable | None: ...
    @property
    def completions(self) -> Sequence[Hashable]:
        """Texts or ids. What is equal is the same completion."""
        ...

    @property
    def ranks(self) -> Sequence[float]:
        """1 is best; equal ranks tie."""
        ...

    @property
    def models(self) -> Sequence[str] | None:
        """Who wrote each completion, where that matters."""
        ...


@dataclass(frozen=True, slots=True)
class Ranked:
    """One labeler's ranks of the completions of one prompt; prompt, labeler and completions may be ids."""

    prompt: Hashable
    labeler: Hashable | None
    completions: Sequence[Hashable]
    ranks: Sequence[float]
    models: Sequence[str] | None = None

    @classmethod
    def by_rating(
        cls,
        prompt: Hashable,
        labeler: Hashable | None,
        completions: Sequence[Hashable],
        ratings: Sequence[float],
        models: Sequence[str] | None = None,
    ) -> Self:
        """Ratings read as ranks: the higher the better, equal ratings tie."""
        return cls(prompt, labeler, completions, [-rating for rating in ratings], models)


@dataclass(frozen=True, slots=True)
class Judgements:
    """Every pair of completions that a labeler put in order: arrays (N,)."""

    prompt: Ints
    labeler: Ints
    pair: Ints
    """The two completions, the same number whichever way they stood."""
    sign: NDArray[np.int8]
    """1 and -1: one or the other is better; 0: a tie."""
    turn: Ints
    """0 for the first time that this labeler judged this pair, 1 for the second (a hidden repeat)."""
    labelers: tuple[Hashable, ...]

    def where(self, kept: Bools) -> Judgements:
        """Some of them; labelers keep their numbers."""
        return Judgements(self.prompt[kept], self.labeler[kept], self.pair[kept], self.sign[kept], self.turn[kept], self.labelers)


@dataclass(frozen=True, slots=True)
class Cells:
    """What two labelers did with the pairs of one prompt that both judged: one row a prompt and couple of labelers, arrays (C,).

    For one labeler beside gold or beside the same labeler at another time, `first` and `second` are the same number.
    """

    prompt: Ints
    first: Ints
    second: Ints
    alike: Floats
    """Pairs that both decided, the same way."""
    opposite: Floats
    """Pairs that both decided, the other way round."""
    first_tied: Floats
    """Pairs that the first alone called a tie."""
    second_tied: Floats
    both_tied: Floats
    labelers: tuple[Hashable, ...]

    def where(self, kept: Bools) -> Cells:
        """Some of the rows; labelers keep their numbers."""
        columns = {field.name: getattr(self, field.name)[kept] for field in fields(self) if field.name != "labelers"}
        return Cells(**columns, labelers=self.labelers)


def judgements(rankings: Sequence[Ranks]) -> Judgements:
    """Every pair of every ranking. Rankings without a labeler are passed over; equal completions are one."""
    prompts: dict[Hashable, dict[Hashable, int]] = {}  # the completions of each, numbered
    numbers: dict[Hashable, int] = {}
    labelers: dict[Hashable, int] = {}
    heads: dict[int, list[tuple[int, int, int]]] = {}
    bodies: dict[int, list[list[float]]] = {}
    for index, ranking in enumerate(rankings):
        if ranking.labeler is None:
            continue
        prompt = numbers.setdefault(ranking.prompt, len(numbers))
        known = prompts.setdefault(prompt, {})
        ranks = dict(zip(ranking.completions, ranking.ranks, strict=True))
        shown = [known.setdefault(completion, len(known)) for completion in ranks]
        heads.setdefault(len(shown), []).append((index, prompt, labelers.setdefault(ranking.labeler, len(labelers))))
        bodies.setdefault(len(shown), []).append([*shown, *ranks.values()])
    sizes = np.array([len(known) for known in prompts.values()], dtype=np.int64)
    before = np.cumsum(sizes * (sizes - 1) // 2) - sizes * (sizes - 1) // 2
    heads_of = {k: np.array(rows, dtype=np.int64).T for k, rows in heads.items()}
    tasks = np.concatenate([np.zeros((3, 0), dtype=np.int64), *heads_of.values()], axis=1)
    _, same, times = distinct(tasks[1] * len(labelers) + tasks[2])
    repeated = np.zeros(len(rankings), dtype=np.int64)
    repeated[tasks[0]] = times[same] > 1
    parts = [np.zeros((6, 0), dtype=np.int64)]
    for k, head in heads_of.items():
        body = np.array(bodies[k], dtype=np.float64).T
        one, other = np.triu_indices(k, 1)
        first, second = body[one].astype(np.int64), body[other].astype(np.int64)
        sign = np.sign(body[k + other] - body[k + one]).astype(np.int64) * np.sign(second - first)
        later, earlier = np.maximum(first, second), np.minimum(first, second)
        pair = before[head[1]] + later * (later - 1) // 2 + earlier
        columns = (*head, repeated[head[0]])
        parts.append(np.stack([*(np.tile(column, len(one)) for column in columns), pair.ravel(), sign.ravel()]))
    index, prompt, labeler, again, pair, sign = np.concatenate(parts, axis=1)
    turn = np.zeros(len(index), dtype=np.int64)
    rows = np.flatnonzero(again)
    turn[rows] = _turns(index[rows], pair[rows] * len(labelers) + labeler[rows])
    return Judgements(prompt, labeler, pair, sign.astype(np.int8), turn, tuple(labelers))


def distinct(keys: Ints) -> tuple[Ints, Ints, Ints]:
    """The distinct keys in order, each row's place among them (N,), and how often each occurs. Counts where it can, sorts where it must."""
    highest = int(keys.max(initial=0))
    if highest > 8 * len(keys) + 1_000_000:
        found, place, counts = np.unique(keys, return_inverse=True, return_counts=True)
        return found, place, counts
    counts = np.bincount(keys, minlength=1)
    found = np.flatnonzero(counts)
    place = np.zeros(len(counts), dtype=np.int64)
    place[found] = np.arange(len(found))
    return found, place[keys], counts[found]


def _turns(order: Ints, key: Ints) -> Ints:
    """How often each key (N,) came before, in this order (N,)."""
    rows = np.lexsort((order, key))
    key = key[rows]
    start = np.flatnonzero(np.r_[True, key[1:] != key[:-1]][: len(key)])
    turns = np.empty(len(key), dtype=np.int64)
    turns[rows] = np.arange(len(key)) - np.repeat(start, np.diff(np.r_[start, len(key)]))
    return turns


def between_labelers(given: Judgements) -> Cells:
    """Each labeler beside each other one of the same prompt. Who judged a pair twice is compared turn by turn."""
    turns = int(given.turn.max(initial=0)) + 1
    group, first, second, counts = _couples(given, given.turn, turns, given.labeler)
    return _made(given, group // turns, first, second, counts)


def with_oneself(given: Judgements) -> Cells:
    """Each labeler beside the same labeler at another time."""
    people = max(len(given.labelers), 1)
    group, _, _, counts = _couples(given, given.labeler, people, given.turn)
    return _made(given, group // people, group % people, group % people, counts)


def _made(given: Judgements, prompt: Ints, first: Ints, second: Ints, counts: Floats) -> Cells:
    alike, opposite, first_tied, second_tied, both_tied = counts
    return Cells(prompt, first, second, alike, opposite, first_tied, second_tied, both_tied, given.labelers)


def _couples(given: Judgements, variant: Ints, variants: int, member: Ints) -> tuple[Ints, Ints, Ints, Floats]:
    """What every two members did with the pairs they share, within each variant (a number below `variants`) of each prompt.

    Returns: prompt * variants + variant (C,), first and second member (C,), the five counts of `Cells` (5, C).
    """
    group = given.prompt * variants + variant
    _, unit, judged = distinct(given.pair * variants + variant)
    shared = judged[unit] > 1
    group, member, unit, sign = group[shared], member[shared], unit[shared], given.sign[shared]
    groups, group, _ = distinct(group)
    row, row_group, row_member = _local(group, member)
    column, column_group, _ = _local(group, unit)
    members, units = (np.bincount(each, minlength=len(groups)) for each in (row_group, column_group))
    start = np.cumsum(members) - members
    found: list[tuple[Ints, Ints, Ints, Floats]] = []
    for m, u in sorted(set(zip(members.tolist(), units.tolist(), strict=True))):
        alike = np.flatnonzero((members == m) & (units == u))
        for chosen in np.array_split(alike, -(-len(alike) * m * u // ROOM)):
            place = np.full(len(groups), -1)
            place[chosen] = np.arange(len(chosen))
            mine = place[group] >= 0
            table = np.full((len(chosen), m, u), np.nan, dtype=np.float32)
            table[place[group[mine]], row[mine], column[mine]] = sign[mine]
            one, other = np.triu_indices(m, 1)
            counts = _compared(table)[:, :, one, other]  # (5, groups, couples)
            names = row_member[start[chosen][:, None] + np.arange(m)]
            rows = (np.repeat(groups[chosen], len(one)), names[:, one].ravel(), names[:, other].ravel())
            kept = counts.sum(0).ravel() > 0
            found.append((*(each[kept] for each in rows), counts.reshape(5, -1)[:, kept]))
    if not found:
        return (*(np.zeros(0, dtype=np.int64) for _ in range(3)), np.zeros((5, 0)))  # type: ignore[return-value]
    group, first, second, counts = (np.concatenate(each, axis=-1) for each in zip(*found, strict=True))
    return group, first, second, counts


def _local(group: Ints, member: Ints) -> tuple[Ints, Ints, Ints]:
    """Each row's number of its member within its group (N,); then of every member of every group, in order: its group, its member."""
    base = int(member.max(initial=0)) + 1
    pairs, place, _ = distinct(group * base + member)
    of_group = pairs // base
    sizes = np.bincount(of_group)
    return place - (np.cumsum(sizes) - sizes)[group], of_group, pairs % base


def _compared(table: NDArray[np.float32]) -> Floats:
    """The five counts of `Cells` for every two rows: signs (G, m, u), NaN where not judged -> (5, G, m, m)."""
    seen = (~np.isnan(table)).astype(np.float32)
    sign = np.nan_to_num(table)
    decided = np.abs(sign)

    def product(one: NDArray[np.float32], other: NDArray[np.float32]) -> Floats:
        return (one @ other.transpose(0, 2, 1)).astype(np.float64)

    both_saw, both_decided, net, first_decided = (
        product(seen, seen), product(decided, decided), product(sign, sign), product(decided, seen),
    )  # fmt: skip
    second_tied = first_decided - both_decided
    first_tied = second_tied.transpose(0, 2, 1)
    both_tied = both_saw - both_decided - first_tied - second_tied
    return np.stack([(both_decided + net) / 2, (both_decided - net) / 2, first_tied, second_tied, both_tied])
