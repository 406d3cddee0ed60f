"""Options of `sweep`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from instructgpt.config import CommandConfig


class ScalingLawsConfig(CommandConfig):
    """Measurements to fit."""

    stage: ClassVar[str] = "scaling-laws"

    run: tuple[Path, ...] = Field(
        min_length=1,
        description="directories of sweeps or runs with --overoptimization, or files of measurements (JSONL)",
    )
    out: Path = Field(description="directory for measurements.jsonl, laws.json, laws.md and laws.svg")


class SweepConfig(CommandConfig):
    """Options of a sweep. The sections of a file beside `sweep` are those of `run`."""

    stage: ClassVar[str] = "sweep"
    interrupt_message: ClassVar[str] = "interrupted; run the same command to go on"

    recipe: str = Field("", description="a preset or a configuration file of 'run', which every cell starts from")
    vary: tuple[str, ...] = Field(
        min_length=1,
        description="STAGE.OPTION=VALUE,VALUE,... to vary; several give every combination; STAGE+STAGE.OPTION sets "
        "an option of two stages to the same value",
        json_schema_extra={"metavar": "STAGE.OPTION=A,B,..."},
    )
    seeds: int = Field(1, ge=1, description="seeds of each combination, from the recipe's seed on")
    fresh_seeds: int = Field(1, ge=0, description="seeds on which the chosen combination is measured again; 0: none")
    select: str = Field(
        "",
        description="validation metric that chooses, as ppo_ptx:validation/scores (a minus before it: the lowest); "
        "default: that of the last stage that is varied",
        json_schema_extra={"metavar": "[-]STAGE:METRIC"},
    )
    plot: tuple[str, ...] = Field(
        (), description="metrics of sweep.jsonl to draw, a panel each; default: the validation metric and preference"
    )
    paper_figure: int | None = Field(None, description="figure of the paper whose readings are drawn in gray")
    out: Path = Field(description="directory of the sweep, on a disk that all machines share")
    jobs: int = Field(1, ge=1, description="cells that this command makes at once, each in a process of one thread")
    attempts: int = Field(
        10, ge=1, description="processes that may die in a cell (machine off, out of memory) before it counts as failed"
    )
    stale_minutes: float = Field(
        5.0, gt=0, description="minutes without a sign of life after which another machine's cell is taken over"
    )
    retry: bool = Field(False, description="make failed cells again")
    dry_run: bool = Field(False, description="print cells, what they share, hours and memory, and make nothing")
    stages: dict[str, dict[str, Any]] = Field({}, description="sections that change options of the recipe, or are it")
