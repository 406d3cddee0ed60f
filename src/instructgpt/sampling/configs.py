"""Options of `sample` and `score`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from instructgpt.config import CommandConfig

_DEVICE_HELP = "cpu, cuda, cuda:1 …; auto takes a GPU when there is one"


class SampleConfig(CommandConfig):
    """Options of `sample`."""

    stage: ClassVar[str] = "sample"

    out: Path = Field(description="file of completions to write")
    model: str = Field(description="a model directory or hub name")
    prompts: Path = Field(description="file of prompts")
    n: int = Field(1, ge=1, description="completions of each prompt")
    max_tokens: int = Field(256, ge=1, description="length at which a completion is cut off")
    temperature: float = Field(1.0, ge=0, description="1: the model's own distribution, 0: the likeliest token")
    top_p: float = Field(1.0, gt=0, le=1, description="sample from the likeliest tokens with this total probability")
    seed: int = Field(0, ge=0, lt=2**32, description="seed of everything random")
    device: str = Field("auto", description=_DEVICE_HELP)
    skip_bad: bool = Field(False, description="skip bad lines and prompts that are too long, and count them")

    def ineffective_options(self) -> Iterator[str]:
        """Yield options that have no effect at temperature 0."""
        if self.temperature == 0 and self.n > 1:
            yield f"--n {self.n} has no effect at --temperature 0, all completions of a prompt would be the same"
        if self.temperature == 0 and "seed" in self.model_fields_set:
            yield "--seed has no effect at --temperature 0"
        if self.temperature == 0 and self.top_p < 1:
            yield f"--top-p {self.top_p} has no effect at --temperature 0, the likeliest token is always in it"


class ScoreConfig(CommandConfig):
    """Options of `score`."""

    stage: ClassVar[str] = "score"

    out: Path = Field(description="file of scored completions to write")
    reward: str = Field(description="a reward model: any sequence classifier with one label")
    data: Path = Field(description="file of completions, or of demonstrations")
    demonstrations: tuple[Path, ...] = Field(
        (), description="demonstrations whose average score becomes 0, for a reward model that records no offset"
    )
    device: str = Field("auto", description=_DEVICE_HELP)
    skip_bad: bool = Field(False, description="skip bad lines and completions that are too long, and count them")
