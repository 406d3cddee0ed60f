"""What a run has reached of the roofline, phase by phase: its own record of seconds and tokens beside the plan of the same work."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from instructgpt.config import StageConfig
from instructgpt.errors import BadInput
from instructgpt.plan.context import Told
from instructgpt.plan.hardware import Machine
from instructgpt.plan.roofline import Phase, Plan, joined
from instructgpt.plan.stages import ADDING, GATHERING
from instructgpt.run.directory import read_logged, read_record
from instructgpt.train.ppo import PPOConfig
from instructgpt.train.pretrain import PretrainConfig
from instructgpt.train.reward import RewardConfig
from instructgpt.train.sft import SFTConfig

STAGES: dict[str, type[StageConfig]] = {kind.stage: kind for kind in (PretrainConfig, SFTConfig, RewardConfig, PPOConfig)}
SAMPLED = "sampling"
TIMED_AS = {"prefill": SAMPLED, "decode": SAMPLED, GATHERING: SAMPLED, ADDING: "optimizer"}
"""Phases of a plan that are part of another one while they run."""
UNPLANNED = "validation", "parity"
"""Phases of a run that no plan has; their time is shown."""


@dataclass(frozen=True, slots=True)
class Reached:
    """A phase as it went: its work, what that took, and what it must take at least."""

    name: str
    tokens: float
    seconds: float
    least: float | None  # None where there is no plan of it

    @property
    def share(self) -> float | None:
        """Of the roofline; 1 is as fast as the machine allows."""
        return None if self.least is None or not self.seconds else self.least / self.seconds


def record_of(folder: Path) -> tuple[dict[str, Any], StageConfig]:
    """The record of a stage and what it was told.

    Raises:
        BadInput: it is no directory of a stage that has phases.
    """
    record = read_record(folder)
    if record is None:
        raise BadInput(f"{folder}: no run.json in it; give the directory of a stage that has begun")
    kind = STAGES.get(record.get("stage", ""))
    if kind is None:
        raise BadInput(f"{folder}: holds a run of '{record.get('stage')}'; phases are known of {', '.join(STAGES)}")
    if not record.get("phases"):
        raise BadInput(f"{folder}: no phase of it was timed yet; look again when it has run for a while")
    return record, kind.model_validate({name: value for name, value in record["config"].items() if name in kind.model_fields})


def told_by(folder: Path, record: Mapping[str, Any], told: Told) -> Told:
    """What was stated, and for PPO the mean lengths that came about."""
    rows = read_logged(folder / "metrics.jsonl")
    lengths = [row["completion/length"] for row in rows if "completion/length" in row]
    tokens = record["phases"].get("score", {}).get("tokens", 0)
    if record["stage"] != PPOConfig.stage or not lengths or not tokens:
        return told
    completion = statistics.mean(lengths)
    prompt = record.get("ranks", 1) * tokens / rows[-1]["episode"] - completion
    return replace(
        told,
        completion_tokens=told.completion_tokens or max(1, round(completion)),
        prompt_tokens=told.prompt_tokens or max(1, round(prompt)),
    )


def reached(record: Mapping[str, Any], plan: Plan, machine: Machine) -> list[Reached]:
    """Every timed phase beside its plan, which is scaled to the tokens that were computed."""
    planned = {phase.name: phase for phase in as_timed(plan.phases)}
    timed: Mapping[str, Mapping[str, float]] = record["phases"]
    scales = [timed[name]["tokens"] / planned[name].tokens for name in timed if name in planned and planned[name].tokens]
    steps = max(scales, default=0.0)
    found = []
    for name, sums in timed.items():
        phase = planned.get(name)
        factor = steps if phase is None or not phase.tokens else sums["tokens"] / phase.tokens
        least = None if phase is None else phase.times(factor).roofline(machine)
        found.append(Reached(name, sums["tokens"], sums["seconds"], least))
    return found


def as_timed(phases: list[Phase]) -> list[Phase]:
    """The phases of a plan as a run times them: all that samples is one, and gradients are added up in the optimizer's step."""
    timed: dict[str, list[Phase]] = {}
    for phase in phases:
        timed.setdefault(TIMED_AS.get(phase.name, phase.name), []).append(phase)
    found = {name: joined(name, parts) for name, parts in timed.items()}
    if SAMPLED in found:
        found[SAMPLED] = replace(found[SAMPLED], tokens=found["score"].tokens)
    return list(found.values())
