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

SHARDED_CALL = "instructgpt_inside"
"""The method of a sharded model through which functions that compute with its parts are called."""

_T = TypeVar("_T")


class DistInfo(NamedTuple):
    """Who computes something together: the number of this process among them, and how many they are."""

    rank: int
    world_size: int


_SINGLE_PROCESS = DistInfo(0, 1)


def get_dist_info() -> DistInfo:
    """Everyone who works on this stage."""
    return (
        DistInfo(dist.get_rank(), dist.get_world_size())
        if dist.is_available() and dist.is_initialized()
        else _SINGLE_PROCESS
    )


def uses_nccl() -> bool:
    """Whether those who work on this stage compute on GPUs, wherever their models have been loaded to."""
    return dist.is_available() and dist.is_initialized() and "nccl" in dist.get_backend_config()


def get_model_dist_info(model: Any) -> DistInfo:
    """Those who hold the parts of a model; this process alone, where it is not sharded."""
    return get_dist_info() if is_sharded(model) else _SINGLE_PROCESS


def is_sharded(model: Any) -> bool:
    """Whether a model has to be entered as a whole, by all who hold it."""
    return hasattr(model, SHARDED_CALL)


def call_sharded(model: Any, function: Callable[..., _T], *arguments: Any) -> _T:
    """Call a function that computes with parts of a model; a sharded one has to be entered as a whole, by all of its ranks."""
    sharded_call: Callable[..., _T] | None = getattr(model, SHARDED_CALL, None)
    return function(*arguments) if sharded_call is None else sharded_call(function, *arguments)


def shard_by_length(lengths: Sequence[int], dist_info: DistInfo) -> list[int]:
    """Rows that fall to this rank, in order: all are shared out, the longest first, each to the rank with the fewest tokens so far."""
    if dist_info.world_size == 1:
        return list(range(len(lengths)))
    token_counts = [0] * dist_info.world_size
    rank_rows = []
    for row in sorted(range(len(lengths)), key=lambda row: (-lengths[row], row)):
        least_loaded = token_counts.index(min(token_counts))
        token_counts[least_loaded] += lengths[row]
        if least_loaded == dist_info.rank:
            rank_rows.append(row)
    return sorted(rank_rows)


def tokens_per_rank(tokens: int, dist_info: DistInfo) -> int:
    """About how many tokens of a batch fall to each rank: rows are shared out so that all have the same."""
    return -(-tokens // dist_info.world_size)


def pad_steps(groups: Iterable[list[_T]], dist_info: DistInfo) -> Iterator[list[_T]]:
    """The groups of rows of this rank, and as many empty ones after them as make every rank have the same number.

    A sharded model gathers its weights part by part while it computes, so that all ranks have to enter it equally often.
    """
    rank_groups = list(groups)
    max_count = torch.tensor(len(rank_groups))
    if dist_info.world_size > 1:
        dist.all_reduce(max_count, dist.ReduceOp.MAX)
    yield from rank_groups
    for _ in range(int(max_count) - len(rank_groups)):
        yield []


def all_reduce_sum(tensor: Tensor, dist_info: DistInfo) -> Tensor:
    """Sum over ranks, in place and returned. On any device."""
    if dist_info.world_size > 1:
        dist.all_reduce(tensor)
    return tensor


def gather_in_order(rank_rows: Sequence[int], results: Sequence[_T], count: int, dist_info: DistInfo) -> list[_T]:
    """What all ranks have computed for their rows, in the order of the rows; the same on every rank.

    Args:
        mine: this rank's rows; results: one for each of them.
        count: how many rows there are.
        ranks: those who have them.
    """
    if dist_info.world_size == 1:
        return list(results)
    gathered: list[Any] = [None] * dist_info.world_size
    dist.all_gather_object(gathered, (list(rank_rows), list(results)))
    by_row = {row: result for rows, values in gathered for row, result in zip(rows, values, strict=True)}
    return [by_row[row] for row in range(count)]


def broadcast_from_rank0(value: _T) -> _T:
    """What rank 0 says, on every rank."""
    values = [value]
    if get_dist_info().world_size > 1:
        dist.broadcast_object_list(values, 0)
    return values[0]


def any_rank(*flags: bool) -> list[bool]:
    """For each sign whether any rank gives it; the same on every rank."""
    if get_dist_info().world_size == 1:
        return list(flags)
    flag_tensor = torch.tensor(flags, dtype=torch.uint8)
    dist.all_reduce(flag_tensor, dist.ReduceOp.MAX)
    return [bool(flag) for flag in flag_tensor]


def barrier() -> None:
    """Go on when every rank is here."""
    any_rank(False)


def format_ranks(ranks: Iterable[int]) -> str:
    """Ranks as a person reads them."""
    numbers = [str(rank) for rank in ranks]
    return f"rank{'s' if len(numbers) > 1 else ''} {', '.join(numbers)}"


def nonfinite_ranks_suffix(tensor: Tensor, dist_info: DistInfo) -> str:
    """Which ranks have a number that is not finite, as the end of a complaint; nothing where there is one rank. All ranks call it."""
    if dist_info.world_size == 1:
        return ""
    finite: list[Any] = [None] * dist_info.world_size
    dist.all_gather_object(finite, bool(tensor.isfinite().all()))
    return f" (on {format_ranks(rank for rank, is_finite in enumerate(finite) if not is_finite)})"
