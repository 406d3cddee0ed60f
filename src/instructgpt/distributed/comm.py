"""Communication between ranks, and the division of a batch's rows among them.

All ranks call a function on a sharded model with the same arguments and get the same result, that of a single process;
inside, each rank computes its share of the rows. Each rank computes an unsharded model on its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

SHARDED_CALL = "instructgpt_inside"  # attribute of a sharded model, see `call_sharded`

_T = TypeVar("_T")


class DistInfo(NamedTuple):
    rank: int
    world_size: int


_SINGLE_PROCESS = DistInfo(0, 1)


def get_dist_info() -> DistInfo:
    """Return rank and world size of the stage's process group."""
    if dist.is_available() and dist.is_initialized():
        return DistInfo(dist.get_rank(), dist.get_world_size())
    return _SINGLE_PROCESS


def uses_nccl() -> bool:
    """Return whether the ranks compute on GPUs, whichever device their models were loaded to."""
    return dist.is_available() and dist.is_initialized() and "nccl" in dist.get_backend_config()


def get_model_dist_info(model: Any) -> DistInfo:
    """Return rank and world size among the ranks that compute `model` together: (0, 1) if it is not sharded."""
    return get_dist_info() if is_sharded(model) else _SINGLE_PROCESS


def is_sharded(model: Any) -> bool:
    return hasattr(model, SHARDED_CALL)


def call_sharded(model: Any, function: Callable[..., _T], *arguments: Any) -> _T:
    """Call a function that uses submodules of `model`; FSDP gathers weights only inside methods registered with it."""
    sharded_call: Callable[..., _T] | None = getattr(model, SHARDED_CALL, None)
    return function(*arguments) if sharded_call is None else sharded_call(function, *arguments)


def shard_by_length(lengths: Sequence[int], dist_info: DistInfo) -> list[int]:
    """Return this rank's rows, ascending, so that all ranks get about the same number of tokens."""
    if dist_info.world_size == 1:
        return list(range(len(lengths)))
    # Longest row first, each to the rank with the fewest tokens. Every rank computes the same assignment.
    token_counts = [0] * dist_info.world_size
    rank_rows = []
    for row in sorted(range(len(lengths)), key=lambda row: (-lengths[row], row)):
        least_loaded = token_counts.index(min(token_counts))
        token_counts[least_loaded] += lengths[row]
        if least_loaded == dist_info.rank:
            rank_rows.append(row)
    return sorted(rank_rows)


def tokens_per_rank(tokens: int, dist_info: DistInfo) -> int:
    """Return the approximate number of tokens `shard_by_length` gives each rank."""
    return -(-tokens // dist_info.world_size)


def pad_steps(groups: Iterable[list[_T]], dist_info: DistInfo) -> Iterator[list[_T]]:
    """Yield this rank's groups of rows, then empty groups until every rank has had the same number.

    A sharded model all-gathers its weights in forward and backward, so all ranks must run it equally often.
    """
    rank_groups = list(groups)
    max_count = torch.tensor(len(rank_groups))
    if dist_info.world_size > 1:
        dist.all_reduce(max_count, dist.ReduceOp.MAX)
    yield from rank_groups
    for _ in range(int(max_count) - len(rank_groups)):
        yield []


def all_reduce_sum(tensor: Tensor, dist_info: DistInfo) -> Tensor:
    """Sum a tensor over ranks in place, on any device, and return it."""
    if dist_info.world_size > 1:
        dist.all_reduce(tensor)
    return tensor


def gather_in_order(rank_rows: Sequence[int], results: Sequence[_T], count: int, dist_info: DistInfo) -> list[_T]:
    """Gather one result per row from all ranks, in row order, on every rank; `count` is the number of rows."""
    if dist_info.world_size == 1:
        return list(results)
    gathered: list[Any] = [None] * dist_info.world_size
    dist.all_gather_object(gathered, (list(rank_rows), list(results)))
    by_row = {row: result for rows, values in gathered for row, result in zip(rows, values, strict=True)}
    return [by_row[row] for row in range(count)]


def broadcast_from_rank0(value: _T) -> _T:
    """Return rank 0's value on every rank; the others wait for it as in `barrier`."""
    values = [value]
    barrier()
    if get_dist_info().world_size > 1:
        dist.broadcast_object_list(values, 0)
    return values[0]


def any_rank(*flags: bool) -> list[bool]:
    """Return, for each flag, whether it is set on any rank."""
    if get_dist_info().world_size == 1:
        return list(flags)
    flag_tensor = torch.tensor(flags, dtype=torch.uint8)
    dist.all_reduce(flag_tensor, dist.ReduceOp.MAX)
    return [bool(flag) for flag in flag_tensor]


class _Waiting:
    """How ranks wait for one another; `RankMonitor` replaces it by a wait without a collective's time limit."""

    barrier: Callable[[], None] | None = None


def set_barrier(wait: Callable[[], None] | None) -> None:
    """Make `barrier` call this function."""
    _Waiting.barrier = wait


def barrier() -> None:
    """Wait until all ranks are here, however long one of them works alone, as long as it shows signs of life."""
    if _Waiting.barrier is not None:
        _Waiting.barrier()
    else:
        any_rank(False)


def format_ranks(ranks: Iterable[int]) -> str:
    """Format as `rank 1` or `ranks 1, 3`."""
    numbers = [str(rank) for rank in ranks]
    return f"rank{'s' if len(numbers) > 1 else ''} {', '.join(numbers)}"


def nonfinite_ranks_suffix(tensor: Tensor, dist_info: DistInfo) -> str:
    """Return ` (on rank 1)` for an error message, naming the ranks with a non-finite value. All ranks call it."""
    if dist_info.world_size == 1:
        return ""
    finite: list[Any] = [None] * dist_info.world_size
    dist.all_gather_object(finite, bool(tensor.isfinite().all()))
    return f" (on {format_ranks(rank for rank, is_finite in enumerate(finite) if not is_finite)})"
