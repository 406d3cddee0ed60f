"""Ranks: the processes that hold a part of every model each and compute its batches together.

A function that computes with a sharded model is called by all ranks with the same arguments and gives all of them the same
result: inside, each takes its share of the rows, and what the shares add up to is what one process alone would compute.
A model that is not sharded is computed by each process alone, whatever the others do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

INSIDE = "instructgpt_inside"
"""The method of a sharded model through which functions that compute with its parts are called."""

T = TypeVar("T")


class Ranks(NamedTuple):
    """Who computes something together: the number of this process among them, and how many they are."""

    own: int
    total: int


ALONE = Ranks(0, 1)


def all_ranks() -> Ranks:
    """Everyone who works on this stage."""
    return Ranks(dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else ALONE


def on_gpus() -> bool:
    """Whether those who work on this stage compute on GPUs, wherever their models have been loaded to."""
    return dist.is_available() and dist.is_initialized() and "nccl" in dist.get_backend_config()


def ranks_of(model: Any) -> Ranks:
    """Those who hold the parts of a model; this process alone, where it is not sharded."""
    return all_ranks() if is_divided(model) else ALONE


def is_divided(model: Any) -> bool:
    """Whether a model has to be entered as a whole, by all who hold it."""
    return hasattr(model, INSIDE)


def enter(model: Any, function: Callable[..., T], *arguments: Any) -> T:
    """Call a function that computes with parts of a model; a sharded one has to be entered as a whole, by all of its ranks."""
    inside: Callable[..., T] | None = getattr(model, INSIDE, None)
    return function(*arguments) if inside is None else inside(function, *arguments)


def share(lengths: Sequence[int], ranks: Ranks) -> list[int]:
    """Rows that fall to this rank, in order: all are shared out, the longest first, each to the rank with the fewest tokens so far."""
    if ranks.total == 1:
        return list(range(len(lengths)))
    loads = [0] * ranks.total
    mine = []
    for row in sorted(range(len(lengths)), key=lambda row: (-lengths[row], row)):
        least = loads.index(min(loads))
        loads[least] += lengths[row]
        if least == ranks.own:
            mine.append(row)
    return sorted(mine)


def own_part(tokens: int, ranks: Ranks) -> int:
    """About how many tokens of a batch fall to each rank: rows are shared out so that all have the same."""
    return -(-tokens // ranks.total)


def in_step(groups: Iterable[list[T]], ranks: Ranks) -> Iterator[list[T]]:
    """The groups of rows of this rank, and as many empty ones after them as make every rank have the same number.

    A sharded model gathers its weights part by part while it computes, so that all ranks have to enter it equally often.
    """
    own = list(groups)
    most = torch.tensor(len(own))
    if ranks.total > 1:
        dist.all_reduce(most, dist.ReduceOp.MAX)
    yield from own
    for _ in range(int(most) - len(own)):
        yield []


def add_up(numbers: Tensor, ranks: Ranks) -> Tensor:
    """Sum over ranks, in place and returned. On any device."""
    if ranks.total > 1:
        dist.all_reduce(numbers)
    return numbers


def collect(mine: Sequence[int], results: Sequence[T], count: int, ranks: Ranks) -> list[T]:
    """What all ranks have computed for their rows, in the order of the rows; the same on every rank.

    Args:
        mine: this rank's rows; results: one for each of them.
        count: how many rows there are.
        ranks: those who have them.
    """
    if ranks.total == 1:
        return list(results)
    parts: list[Any] = [None] * ranks.total
    dist.all_gather_object(parts, (list(mine), list(results)))
    by_row = {row: result for rows, some in parts for row, result in zip(rows, some, strict=True)}
    return [by_row[row] for row in range(count)]


def told_by_first(word: T) -> T:
    """What rank 0 says, on every rank."""
    words = [word]
    if all_ranks().total > 1:
        dist.broadcast_object_list(words, 0)
    return words[0]


def any_says(*signs: bool) -> list[bool]:
    """For each sign whether any rank gives it; the same on every rank."""
    if all_ranks().total == 1:
        return list(signs)
    given = torch.tensor(signs, dtype=torch.uint8)
    dist.all_reduce(given, dist.ReduceOp.MAX)
    return [bool(sign) for sign in given]


def wait_for_all() -> None:
    """Go on when every rank is here."""
    any_says(False)


def named(rows: Iterable[int]) -> str:
    """Ranks as a person reads them."""
    numbers = [str(row) for row in rows]
    return f"rank{'s' if len(numbers) > 1 else ''} {', '.join(numbers)}"


def where_not_finite(number: Tensor, ranks: Ranks) -> str:
    """Which ranks have a number that is not finite, as the end of a complaint; nothing where there is one rank. All ranks call it."""
    if ranks.total == 1:
        return ""
    finite: list[Any] = [None] * ranks.total
    dist.all_gather_object(finite, bool(number.isfinite().all()))
    return f" (on {named(row for row, fine in enumerate(finite) if not fine)})"
