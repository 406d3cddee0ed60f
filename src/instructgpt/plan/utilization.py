"""Roofline utilization of a run by phase: recorded seconds and tokens against the plan of the same work."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from instructgpt.config import StageConfig
from instructgpt.errors import InputError
from instructgpt.plan.context import PlanContext
from instructgpt.plan.hardware import Machine
from instructgpt.plan.roofline import Phase, Plan, merge_phases
from instructgpt.plan.stages import ALL_REDUCE_PHASE, GATHER_PHASE
from instructgpt.run.directory import read_jsonl_log, read_run_record
from instructgpt.run.timing import UNTIMED
from instructgpt.train.configs import PPOConfig, PretrainConfig, RewardConfig, SFTConfig

_STAGE_CONFIGS: dict[str, type[StageConfig]] = {
    kind.stage: kind for kind in (PretrainConfig, SFTConfig, RewardConfig, PPOConfig)
}
_SAMPLING = "sampling"
_TIMED_PHASE = {"prefill": _SAMPLING, "decode": _SAMPLING, GATHER_PHASE: _SAMPLING, ALL_REDUCE_PHASE: "optimizer"}
"""Planned phases that a run times as part of another one."""
_UNPLANNED_PHASES = "validation", "parity"


@dataclass(frozen=True, slots=True)
class PhaseUtilization:
    """Measured seconds of a phase beside its lower bound."""

    name: str
    tokens: float
    seconds: float
    roofline_seconds: float | None  # None where there is no plan of it

    @property
    def utilization(self) -> float | None:
        """Return the share of the roofline; 1 is the machine's limit."""
        return None if self.roofline_seconds is None or not self.seconds else self.roofline_seconds / self.seconds


def read_timed_record(folder: Path) -> tuple[dict[str, Any], StageConfig]:
    """Return a stage's run record and configuration.

    Raises:
        InputError: not the directory of a stage with timed phases.
    """
    record = read_run_record(folder)
    if record is None:
        raise InputError(f"{folder}: no run.json in it; give the directory of a stage that has begun")
    config_class = _STAGE_CONFIGS.get(record.get("stage", ""))
    if config_class is None:
        raise InputError(
            f"{folder}: holds a run of '{record.get('stage')}'; phases are known of {', '.join(_STAGE_CONFIGS)}"
        )
    if not record.get("phases"):
        raise InputError(f"{folder}: no phase of it was timed yet; look again when it has run for a while")
    return record, config_class.model_validate(
        {name: value for name, value in record["config"].items() if name in config_class.model_fields}
    )


def context_from_run(folder: Path, record: Mapping[str, Any], context: PlanContext) -> PlanContext:
    """Return the context of a run; PPO uses its recorded mean lengths."""
    rows = read_jsonl_log(folder / "metrics.jsonl")
    lengths = [row["completion/length"] for row in rows if "completion/length" in row]
    tokens = record["phases"].get("score", {}).get("tokens", 0)
    if record["stage"] != PPOConfig.stage or not lengths or not tokens:
        return context
    completion = statistics.mean(lengths)
    prompt = record.get("ranks", 1) * tokens / rows[-1]["episode"] - completion
    return replace(
        context,
        completion_tokens=context.completion_tokens or max(1, round(completion)),
        prompt_tokens=context.prompt_tokens or max(1, round(prompt)),
    )


def compute_utilization(record: Mapping[str, Any], plan: Plan, machine: Machine) -> list[PhaseUtilization]:
    """Compare every timed phase with its plan, scaled to the recorded tokens."""
    planned = {phase.name: phase for phase in _merge_timed_phases(plan.phases)}
    timed: Mapping[str, Mapping[str, float]] = record["phases"]
    scales = [
        timed[name]["tokens"] / planned[name].tokens for name in timed if name in planned and planned[name].tokens
    ]
    default_factor = max(scales, default=0.0)
    utilizations = []
    for name, timing in timed.items():
        if name == UNTIMED:
            continue
        phase = planned.get(name)
        factor = default_factor if phase is None or not phase.tokens else timing["tokens"] / phase.tokens
        roofline_seconds = None if phase is None else phase.scale(factor).roofline_seconds(machine)
        utilizations.append(PhaseUtilization(name, timing["tokens"], timing["seconds"], roofline_seconds))
    return utilizations


def _merge_timed_phases(phases: list[Phase]) -> list[Phase]:
    """Merge phases as a run times them: all sampling is one, all-reduce belongs to the optimizer step."""
    timed: dict[str, list[Phase]] = {}
    for phase in phases:
        timed.setdefault(_TIMED_PHASE.get(phase.name, phase.name), []).append(phase)
    merged = {name: merge_phases(name, parts) for name, parts in timed.items()}
    if _SAMPLING in merged:
        merged[_SAMPLING] = replace(merged[_SAMPLING], tokens=merged["score"].tokens)
    return list(merged.values())
