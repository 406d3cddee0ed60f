"""What a plan is told beside the stage's options."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from instructgpt.data.packing import Example, token_budget
from instructgpt.distributed.comm import Ranks, share
from instructgpt.models.sharding import HELD_WHOLE
from instructgpt.plan.hardware import heap_has_holes
from instructgpt.plan.lengths import stated
from instructgpt.plan.meta_trace import Network

STATED_RECORDS = 256


@dataclass(frozen=True, slots=True)
class Told:
    """For which device and how many ranks is planned, lengths where they were stated, and whether a CPU's heap has holes."""

    device: torch.device
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    records: int | None = None
    ranks: int = 1
    at_once: int | None = None
    holes: bool = field(default_factory=heap_has_holes)

    @property
    def stated(self) -> bool:
        """Whether lengths were stated, so that no data is read."""
        return self.prompt_tokens is not None and self.completion_tokens is not None

    @property
    def budget(self) -> int:
        """Tokens of a microbatch."""
        return self.at_once or token_budget(self.device)

    def examples(self) -> list[Example]:
        """Examples of the stated lengths."""
        assert self.prompt_tokens is not None
        assert self.completion_tokens is not None
        return stated(STATED_RECORDS, self.prompt_tokens, [self.completion_tokens])

    def divides(self, network: Network) -> bool:
        """Whether ranks hold parts of a model, and not all of it each. One that waits on the CPU is a part, be it of one."""
        return "offload" in network.memory or (self.ranks > 1 and network.shape.parameters >= HELD_WHOLE)

    def fullest(self, lengths: Sequence[int]) -> list[int]:
        """Rows of the rank that gets most tokens: the others wait for it."""
        shares = (share(lengths, Ranks(own, self.ranks)) for own in range(self.ranks))
        return max(shares, key=lambda rows: sum(lengths[row] for row in rows))
