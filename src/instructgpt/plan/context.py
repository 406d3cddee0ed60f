"""Planning inputs beside the stage's options."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from instructgpt.data.packing import TokenizedExample, token_budget
from instructgpt.distributed.comm import DistInfo, shard_by_length
from instructgpt.models.sharding import MIN_SHARDED_PARAMETERS
from instructgpt.plan.hardware import uses_glibc_malloc
from instructgpt.plan.lengths import synthetic_examples
from instructgpt.plan.meta_trace import TracedModel

SYNTHETIC_RECORDS = 256


@dataclass(frozen=True, slots=True)
class PlanContext:
    """Target device and its memory, number of ranks, stated lengths, and whether a CPU heap fragments."""

    device: torch.device
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    records: int | None = None
    ranks: int = 1
    microbatch_tokens: int | None = None
    capacity: float = math.inf  # bytes of memory of a rank
    glibc_malloc: bool = field(default_factory=uses_glibc_malloc)

    @property
    def has_lengths(self) -> bool:
        """Return whether lengths are stated, so that no data is read."""
        return self.prompt_tokens is not None and self.completion_tokens is not None

    @property
    def budget(self) -> int:
        """Return the tokens of a microbatch."""
        return self.microbatch_tokens or token_budget(self.device)

    def examples(self) -> list[TokenizedExample]:
        assert self.prompt_tokens is not None
        assert self.completion_tokens is not None
        return synthetic_examples(SYNTHETIC_RECORDS, self.prompt_tokens, [self.completion_tokens])

    def shards(self, model: TracedModel) -> bool:
        """Return whether ranks hold shards of a model; with CPU offload even one rank does."""
        return "offload" in model.memory or (self.ranks > 1 and model.shape.parameters >= MIN_SHARDED_PARAMETERS)

    def busiest_rank_rows(self, lengths: Sequence[int]) -> list[int]:
        """Return the rows of the rank with most tokens, which the others wait for."""
        shares = (shard_by_length(lengths, DistInfo(own, self.ranks)) for own in range(self.ranks))
        return max(shares, key=lambda rows: sum(lengths[row] for row in rows))
