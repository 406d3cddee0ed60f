"""Rankings as arrays of pair judgments, and outcome counts of two labelers on the same pairs."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, fields
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from instructgpt.statistics.arrays import BoolArray, FloatArray, IntArray, unique_with_counts

_MAX_TABLE_ENTRIES = 20_000_000
"""Maximum entries of one table of labelers and pairs."""


class HasRanks(Protocol):
    """Protocol of rankings as input; `records.Ranking` and `LabelerRanking` implement it."""

    @property
    def prompt(self) -> Hashable: ...
    @property
    def labeler(self) -> Hashable | None: ...
    @property
    def completions(self) -> Sequence[Hashable]:
        """Texts or ids; equal values are the same completion."""
        ...

    @property
    def ranks(self) -> Sequence[float]:
        """1 is best; equal ranks tie."""
        ...

    @property
    def models(self) -> Sequence[str] | None:
        """Author of each completion, where needed."""
        ...


@dataclass(frozen=True, slots=True)
class LabelerRanking:
    """One labeler's ranks of one prompt; prompt, labeler and completions may be ids."""

    prompt: Hashable
    labeler: Hashable | None
    completions: Sequence[Hashable]
    ranks: Sequence[float]
    models: Sequence[str] | None = None

    @classmethod
    def from_ratings(
        cls,
        prompt: Hashable,
        labeler: Hashable | None,
        completions: Sequence[Hashable],
        ratings: Sequence[float],
        models: Sequence[str] | None = None,
    ) -> Self:
        """Build a ranking from ratings: higher is better, equal ratings tie."""
        return cls(prompt, labeler, completions, [-rating for rating in ratings], models)


@dataclass(frozen=True, slots=True)
class PairJudgments:
    """All pair judgments of labelers: arrays (N,)."""

    prompt: IntArray
    labeler: IntArray
    pair: IntArray
    """Pair number, independent of the order of the two completions."""
    sign: NDArray[np.int8]
    """1 or -1: the first or second is better; 0: tie."""
    repeat_index: IntArray
    """0 for a labeler's first judgment of this pair, 1 for the hidden repeat."""
    labelers: tuple[Hashable, ...]

    def where(self, mask: BoolArray) -> PairJudgments:
        return PairJudgments(
            self.prompt[mask],
            self.labeler[mask],
            self.pair[mask],
            self.sign[mask],
            self.repeat_index[mask],
            self.labelers,
        )


@dataclass(frozen=True, slots=True)
class AgreementCells:
    """Outcome counts of two labelers on the pairs of one prompt: one row a prompt and couple, arrays (C,).

    For a labeler against gold, or against themselves, `first` and `second` are equal.
    """

    prompt: IntArray
    first: IntArray
    second: IntArray
    concordant: FloatArray
    """Pairs both decided the same way."""
    discordant: FloatArray
    """Pairs both decided in opposite ways."""
    first_tied: FloatArray
    """Pairs that only the first tied."""
    second_tied: FloatArray
    both_tied: FloatArray
    labelers: tuple[Hashable, ...]

    def where(self, mask: BoolArray) -> AgreementCells:
        columns = {field.name: getattr(self, field.name)[mask] for field in fields(self) if field.name != "labelers"}
        return AgreementCells(**columns, labelers=self.labelers)


def pair_judgments(rankings: Sequence[HasRanks]) -> PairJudgments:
    """Return every pair of every ranking. Rankings without a labeler are skipped; equal completions are one."""
    prompts: dict[Hashable, dict[Hashable, int]] = {}  # the completions of each, numbered
    prompt_codes: dict[Hashable, int] = {}
    labelers: dict[Hashable, int] = {}
    heads: dict[int, list[tuple[int, int, int]]] = {}
    bodies: dict[int, list[list[float]]] = {}
    for index, ranking in enumerate(rankings):
        if ranking.labeler is None:
            continue
        prompt = prompt_codes.setdefault(ranking.prompt, len(prompt_codes))
        completion_codes = prompts.setdefault(prompt, {})
        ranks = dict(zip(ranking.completions, ranking.ranks, strict=True))
        codes = [completion_codes.setdefault(completion, len(completion_codes)) for completion in ranks]
        heads.setdefault(len(codes), []).append((index, prompt, labelers.setdefault(ranking.labeler, len(labelers))))
        bodies.setdefault(len(codes), []).append([*codes, *ranks.values()])
    sizes = np.array([len(completion_codes) for completion_codes in prompts.values()], dtype=np.int64)
    pair_offsets = np.cumsum(sizes * (sizes - 1) // 2) - sizes * (sizes - 1) // 2
    heads_of = {k: np.array(rows, dtype=np.int64).T for k, rows in heads.items()}
    ranking_keys = np.concatenate([np.zeros((3, 0), dtype=np.int64), *heads_of.values()], axis=1)
    _, group, counts = unique_with_counts(ranking_keys[1] * len(labelers) + ranking_keys[2])
    repeated = np.zeros(len(rankings), dtype=np.int64)
    repeated[ranking_keys[0]] = counts[group] > 1
    parts = [np.zeros((6, 0), dtype=np.int64)]
    for k, head in heads_of.items():
        body = np.array(bodies[k], dtype=np.float64).T
        i, j = np.triu_indices(k, 1)
        first, second = body[i].astype(np.int64), body[j].astype(np.int64)
        sign = np.sign(body[k + j] - body[k + i]).astype(np.int64) * np.sign(second - first)
        later, earlier = np.maximum(first, second), np.minimum(first, second)
        pair = pair_offsets[head[1]] + later * (later - 1) // 2 + earlier
        columns = (*head, repeated[head[0]])
        parts.append(np.stack([*(np.tile(column, len(i)) for column in columns), pair.ravel(), sign.ravel()]))
    index, prompt, labeler, has_repeat, pair, sign = np.concatenate(parts, axis=1)
    repeat_index = np.zeros(len(index), dtype=np.int64)
    rows = np.flatnonzero(has_repeat)
    repeat_index[rows] = _occurrence_index(index[rows], pair[rows] * len(labelers) + labeler[rows])
    return PairJudgments(prompt, labeler, pair, sign.astype(np.int8), repeat_index, tuple(labelers))


def _occurrence_index(order: IntArray, key: IntArray) -> IntArray:
    """Return how often each key (N,) occurred before, in the given order (N,)."""
    rows = np.lexsort((order, key))
    key = key[rows]
    start = np.flatnonzero(np.r_[True, key[1:] != key[:-1]][: len(key)])
    occurrence = np.empty(len(key), dtype=np.int64)
    occurrence[rows] = np.arange(len(key)) - np.repeat(start, np.diff(np.r_[start, len(key)]))
    return occurrence


def inter_labeler_cells(judgments: PairJudgments) -> AgreementCells:
    """Count outcomes of every two labelers of a prompt; repeats are compared with repeats."""
    repeat_count = int(judgments.repeat_index.max(initial=0)) + 1
    group, first, second, counts = _compare_couples(judgments, judgments.repeat_index, repeat_count, judgments.labeler)
    return _build_cells(judgments, group // repeat_count, first, second, counts)


def intra_labeler_cells(judgments: PairJudgments) -> AgreementCells:
    """Count outcomes of each labeler against their own repeats."""
    labeler_count = max(len(judgments.labelers), 1)
    group, _, _, counts = _compare_couples(judgments, judgments.labeler, labeler_count, judgments.repeat_index)
    return _build_cells(judgments, group // labeler_count, group % labeler_count, group % labeler_count, counts)


def _build_cells(
    judgments: PairJudgments, prompt: IntArray, first: IntArray, second: IntArray, counts: FloatArray
) -> AgreementCells:
    concordant, discordant, first_tied, second_tied, both_tied = counts
    return AgreementCells(
        prompt, first, second, concordant, discordant, first_tied, second_tied, both_tied, judgments.labelers
    )


def _compare_couples(
    judgments: PairJudgments, variant: IntArray, variants: int, member: IntArray
) -> tuple[IntArray, IntArray, IntArray, FloatArray]:
    """Count outcomes of every two members within each variant (a number below `variants`) of each prompt.

    Returns: prompt * variants + variant (C,), first and second member (C,), the five counts of `AgreementCells` (5, C).
    """
    group = judgments.prompt * variants + variant
    _, unit, counts_per_unit = unique_with_counts(judgments.pair * variants + variant)
    shared = counts_per_unit[unit] > 1
    group, member, unit, sign = group[shared], member[shared], unit[shared], judgments.sign[shared]
    groups, group, _ = unique_with_counts(group)
    row, row_group, row_member = _local_index(group, member)
    column, column_group, _ = _local_index(group, unit)
    members, units = (np.bincount(each, minlength=len(groups)) for each in (row_group, column_group))
    start = np.cumsum(members) - members
    results: list[tuple[IntArray, IntArray, IntArray, FloatArray]] = []
    for m, u in sorted(set(zip(members.tolist(), units.tolist(), strict=True))):
        same_size = np.flatnonzero((members == m) & (units == u))
        for chunk in np.array_split(same_size, -(-len(same_size) * m * u // _MAX_TABLE_ENTRIES)):
            chunk_index = np.full(len(groups), -1)
            chunk_index[chunk] = np.arange(len(chunk))
            mask = chunk_index[group] >= 0
            table = np.full((len(chunk), m, u), np.nan, dtype=np.float32)
            table[chunk_index[group[mask]], row[mask], column[mask]] = sign[mask]
            i, j = np.triu_indices(m, 1)
            counts = _count_outcomes(table)[:, :, i, j]  # (5, groups, couples)
            member_ids = row_member[start[chunk][:, None] + np.arange(m)]
            rows = (np.repeat(groups[chunk], len(i)), member_ids[:, i].ravel(), member_ids[:, j].ravel())
            nonempty = counts.sum(0).ravel() > 0
            results.append((*(each[nonempty] for each in rows), counts.reshape(5, -1)[:, nonempty]))
    if not results:
        return (*(np.zeros(0, dtype=np.int64) for _ in range(3)), np.zeros((5, 0)))  # type: ignore[return-value]
    group, first, second, counts = (np.concatenate(each, axis=-1) for each in zip(*results, strict=True))
    return group, first, second, counts


def _local_index(group: IntArray, member: IntArray) -> tuple[IntArray, IntArray, IntArray]:
    """Return each row's member number within its group (N,), and for every group member its group and member."""
    base = int(member.max(initial=0)) + 1
    pairs, inverse, _ = unique_with_counts(group * base + member)
    pair_group = pairs // base
    sizes = np.bincount(pair_group)
    return inverse - (np.cumsum(sizes) - sizes)[group], pair_group, pairs % base


def _count_outcomes(table: NDArray[np.float32]) -> FloatArray:
    """Count the five outcomes for every two rows: signs (G, m, u), NaN where not judged -> (5, G, m, m)."""
    judged = (~np.isnan(table)).astype(np.float32)
    sign = np.nan_to_num(table)
    decided = np.abs(sign)

    def product(a: NDArray[np.float32], b: NDArray[np.float32]) -> FloatArray:
        return (a @ b.transpose(0, 2, 1)).astype(np.float64)

    both_judged, both_decided, net, first_decided = (
        product(judged, judged),
        product(decided, decided),
        product(sign, sign),
        product(decided, judged),
    )
    second_tied = first_decided - both_decided
    first_tied = second_tied.transpose(0, 2, 1)
    both_tied = both_judged - both_decided - first_tied - second_tied
    return np.stack([(both_decided + net) / 2, (both_decided - net) / 2, first_tied, second_tied, both_tied])
