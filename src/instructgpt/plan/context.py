"""What a plan is told beside the stage's options."""

from __future__ import annotations

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
    """For which device and how many ranks is planned, lengths where they were stated, and whether a CPU's heap has holes."""

    device: torch.device
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    records: int | None = None
    ranks: int = 1
    microbatch_tokens: int | None = None
    glibc_malloc: bool = field(default_factory=uses_glibc_malloc)

    @property
    def has_lengths(self) -> bool:
        """Whether lengths were stated, so that no data is read."""
        return self.prompt_tokens is not None and self.completion_tokens is not None

    @property
    def budget(self) -> int:
        """Tokens of a microbatch."""
        return self.microbatch_tokens or token_budget(self.device)

    def examples(self) -> list[TokenizedExample]:
        """Examples of the stated lengths."""
        assert self.prompt_tokens is not None
        assert self.completion_tokens is not None
        return synthetic_examples(SYNTHETIC_RECORDS, self.prompt_tokens, [self.completion_tokens])

    def shards(self, model: TracedModel) -> bool:
        """Whether ranks hold parts of a model, and not all of it each. One that waits on the CPU is a part, be it of one."""
        return "offload" in model.memory or (self.ranks > 1 and model.shape.parameters >= MIN_SHARDED_PARAMETERS)

    def busiest_rank_rows(self, lengths: Sequence[int]) -> list[int]:
        """Rows of the rank that gets most tokens: the others wait for it."""
        shares = (shard_by_length(lengths, DistInfo(own, self.ranks)) for own in range(self.ranks))
        return max(shares, key=lambda rows: sum(lengths[row] for row in rows))
