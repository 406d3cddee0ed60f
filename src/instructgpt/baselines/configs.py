"""Options of `best` and `expert-iteration`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from instructgpt.config import TRAINING_ONLY_FIELDS, CommandConfig, StageConfig


class BestConfig(CommandConfig):
    stage: ClassVar[str] = "best"

    data: tuple[Path, ...] = Field(description="files of scored completions, as 'score' writes them")
    n: int = Field(ge=1, description="completions of each prompt to choose from: the first N of the files")
    out: Path = Field(description="file of demonstrations to write")
    skip_bad: bool = Field(
        False, description="skip bad lines and prompts with fewer than N completions, and count them"
    )

    def ineffective_options(self) -> Iterator[str]:
        if self.n == 1:
            yield "--n 1 chooses nothing; give the number of completions that each prompt has"


class ExpertIterationConfig(StageConfig):
    stage: ClassVar[str] = "expert-iteration"
    excluded_fields: ClassVar[frozenset[str]] = TRAINING_ONLY_FIELDS | {"checkpoint_minutes", "track"}

    policy: str = Field(description="initial policy: an SFT model")
    reward: str = Field(description="reward model that chooses the best completions")
    prompts: tuple[Path, ...] = Field(description="prompts, divided among the rounds")
    rounds: int = Field(3, ge=1, description="times to sample, choose and fine-tune")
    n: int = Field(8, ge=2, description="completions of each prompt to choose from")
    max_tokens: int = Field(256, ge=1, description="maximum completion length")
    temperature: float = Field(1.0, gt=0, description="sampling temperature")
    epochs: int = Field(1, ge=1, description="passes over the best completions of a round")
    batch: int = Field(32, ge=1, description="demonstrations per optimizer step")
    lr: float = Field(9.65e-6, gt=0, description="peak learning rate of a round; cosine to a tenth")
    skip_bad: bool = Field(False, description="skip and count bad lines and prompts that are too long")
    processes: int = Field(1, ge=1, description="ranks of the fine-tuning on this machine")
