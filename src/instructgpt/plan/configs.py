"""Options of `plan`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from instructgpt.config import CommandConfig, StageConfig


class PlanConfig(CommandConfig):
    stage: ClassVar[str] = "plan"

    run: Path | None = Field(
        None, description="the directory of a stage that ran or runs; or a stage's name with that stage's options"
    )
    prompt_tokens: int | None = Field(
        None, ge=1, description="tokens of a prompt; with --completion-tokens no data is read"
    )
    completion_tokens: int | None = Field(None, ge=1, description="tokens of a completion, on average")
    records: int | None = Field(None, ge=1, description="records of the training data, where lengths are stated")
    ranks: tuple[int, ...] = Field((), description="processes that divide the work; several numbers give a line each")
    matmul: float | None = Field(
        None, gt=0, description="GFLOP/s of matrix products; measured on this machine where not given"
    )
    bandwidth: float | None = Field(None, gt=0, description="GB/s of a copy in memory; measured where not given")
    link: float | None = Field(
        None, gt=0, description="GB/s that a rank sends to another of its host; without it sending takes no time"
    )
    network: float | None = Field(
        None, gt=0, description="GB/s that a host sends to another; without it as much as --link"
    )
    host: int = Field(8, ge=1, description="ranks on one host")
    capacity: float | None = Field(
        None,
        gt=0,
        description="GB of memory a rank has, by default that of this machine's GPU; fewer tokens and rows at once are "
        "planned where it is too little",
    )
    planned: StageConfig | None = Field(None, description="what the stage was told")

    def ineffective_options(self) -> Iterator[str]:
        """Report bandwidths between ranks and hosts that have no effect."""
        if min(self.ranks, default=1) < 1:
            yield f"--ranks {min(self.ranks)}: at least 1 process does the work"
        if self.network is not None and self.link is None:
            yield "--network has no effect without --link"
        if self.run is not None and len(self.ranks) > 1:
            yield "--ranks: a run had one number of them"
        if self.run is not None and self.capacity is not None:
            yield "--capacity has no effect on a run that has been"
