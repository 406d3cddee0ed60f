"""Settings that `evaluate` passes to the evaluations of whole files of rankings."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from instructgpt.config import SamplingOptions


@dataclass(frozen=True, slots=True)
class ComparisonSettings:
    """Options of the evaluations of whole files. `folder` holds their cache and output files."""

    folder: Path
    model: tuple[str, ...] = ()
    data: tuple[str, ...] = ()
    completions: tuple[Path, ...] = ()
    limit: int | None = None
    seed: int = 0
    device: str = "auto"
    skip_bad: bool = False


@dataclass(frozen=True, slots=True)
class PreferenceSettings(ComparisonSettings):
    """Options of the preference evaluation."""

    judge: str | None = None
    judge_model: str | None = None
    judge_key: str | None = None
    judge_reads: Literal["text", "logp"] | None = None
    judge_max_tokens: int = 400
    judge_temperature: float | None = None
    baseline: str | None = None
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
