"""Options of `sample` and `score`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from instructgpt.config import CUDA_GRAPHS_HELP, CommandConfig, SamplingOptions

_DEVICE_HELP = "cpu, cuda, cuda:1 …; auto takes a GPU when there is one"


_RESUME_MESSAGE = "interrupted; run the same command to resume"
_RESUME_HELP = "go on with OUT.part, which a killed command has left; --no-resume starts again"


class SampleConfig(SamplingOptions):
    """Options of `sample`."""

    stage: ClassVar[str] = "sample"
    interrupt_message: ClassVar[str] = _RESUME_MESSAGE

    out: Path = Field(description="file of completions to write")
    model: str = Field(description="a model directory or hub name")
    prompts: Path = Field(description="file of prompts")
    n: int = Field(1, ge=1, description="completions of each prompt")
    seed: int = Field(0, ge=0, lt=2**32, description="seed of everything random")
    device: str = Field("auto", description=_DEVICE_HELP)
    cuda_graphs: bool = Field(True, description=CUDA_GRAPHS_HELP)
    resume: bool = Field(True, description=_RESUME_HELP)
    skip_bad: bool = Field(False, description="skip bad lines and prompts that are too long, and count them")

    def ineffective_options(self) -> Iterator[str]:
        """Yield a seed that has no effect, and what all commands that sample refuse."""
        if self.temperature == 0 and "seed" in self.model_fields_set:
            yield "--seed has no effect at --temperature 0"
        yield from super().ineffective_options()


class ScoreConfig(CommandConfig):
    """Options of `score`."""

    stage: ClassVar[str] = "score"
    interrupt_message: ClassVar[str] = _RESUME_MESSAGE

    out: Path = Field(description="file of scored completions to write")
    reward: str = Field(description="a reward model: any sequence classifier with one label")
    group: str | None = Field(None, description="score with the head of this group of labelers (reward --groups)")
    data: Path = Field(description="file of completions, or of demonstrations")
    demonstrations: tuple[Path, ...] = Field(
        (), description="demonstrations whose average score becomes 0, for a reward model that records no offset"
    )
    device: str = Field("auto", description=_DEVICE_HELP)
    resume: bool = Field(True, description=_RESUME_HELP)
    skip_bad: bool = Field(False, description="skip bad lines and completions that are too long, and count them")
