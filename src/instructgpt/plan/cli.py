"""`plan`: what a stage needs, before it starts; and what one that ran reached of it.

instructgpt plan ppo --policy runs/start --reward runs/reward --prompts prompts.jsonl
instructgpt plan runs/ppo
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import torch
from pydantic import Field

from instructgpt.config import Options, StageConfig
from instructgpt.data.packing import FEWEST_TOKENS
from instructgpt.errors import BadInput
from instructgpt.models.policy import pick_device
from instructgpt.plan import format
from instructgpt.plan.context import Told
from instructgpt.plan.hardware import Machine, linked, measure
from instructgpt.plan.roofline import Plan
from instructgpt.plan.stages import plan
from instructgpt.plan.utilization import reached, record_of, told_by
from instructgpt.run.directory import console

KINDS = ("cpu", "cuda")


class PlanConfig(Options):
    """What is planned, and for which machine."""

    stage: ClassVar[str] = "plan"

    run: Path | None = Field(None, description="the directory of a stage that ran or runs; or a stage's name with that stage's options")
    prompt_tokens: int | None = Field(None, ge=1, description="tokens of a prompt; with --completion-tokens no data is read")
    completion_tokens: int | None = Field(None, ge=1, description="tokens of a completion, on average")
    records: int | None = Field(None, ge=1, description="records of the training data, where lengths are stated")
    ranks: tuple[int, ...] = Field((), description="processes that divide the work; several numbers give a line each")
    matmul: float | None = Field(None, gt=0, description="GFLOP/s of matrix products; measured on this machine where not given")
    bandwidth: float | None = Field(None, gt=0, description="GB/s of a copy in memory; measured where not given")
    link: float | None = Field(None, gt=0, description="GB/s that a rank sends to another of its host; without it sending takes no time")
    network: float | None = Field(None, gt=0, description="GB/s that a host sends to another; without it as much as --link")
    host: int = Field(8, ge=1, description="ranks on one host")
    capacity: float | None = Field(
        None, gt=0, description="GB of memory a rank has; fewer tokens at once are planned where it is too little"
    )
    planned: StageConfig | None = Field(None, description="what the stage was told")

    def inert(self) -> Iterator[str]:
        """Rates between ranks and hosts that nobody would use."""
        if min(self.ranks, default=1) < 1:
            yield f"--ranks {min(self.ranks)}: at least 1 process does the work"
        if self.network is not None and self.link is None:
            yield "--network has no effect without --link"
        if self.run is not None and len(self.ranks) > 1:
            yield "--ranks: a run had one number of them"
        if self.run is not None and self.capacity is not None:
            yield "--capacity has no effect on a run that has been"


def main(config: PlanConfig) -> list[Plan]:
    """Print what a stage needs, and give it back, for each number of ranks.

    Raises:
        BadInput: there is nothing to plan, or a model or data is missing.
    """
    if config.planned is None and config.run is None:
        raise BadInput("plan: name a stage with its options ('instructgpt plan sft --base … --data …'), or the directory of a run")
    record, stage = record_of(config.run) if config.run is not None else ({}, config.planned)
    assert stage is not None
    device, alone = machine_of(config, stage)
    asked = config.ranks or (int(record.get("ranks", getattr(stage, "processes", 1))),)
    told = [Told(device, config.prompt_tokens, config.completion_tokens, config.records, ranks) for ranks in asked]
    machines = [among(alone, ranks, config) for ranks in asked]
    if config.run is not None:
        made = [plan(stage, told_by(config.run, record, told[0]))]
        shown = format.reached_lines(reached(record, made[0], machines[0]), machines[0])
    else:
        made = [fitting(stage, one, math.inf if config.capacity is None else 1e9 * config.capacity) for one in told]
        both = list(zip(made, machines, strict=True))
        shown = format.lines(*both[0], device.type) if len(both) == 1 else format.scaling_lines(both, device.type)
    for line in shown:
        console.print(line, soft_wrap=True, highlight=False, markup=False)
    return made


def fitting(stage: StageConfig, told: Told, capacity: float) -> Plan:
    """The plan with as many tokens at once as memory has room for, halved as the stages do it; with all where even few do not fit.

    Raises:
        BadInput: see `plan`.
    """
    whole = made = plan(stage, told)
    while made.memory > capacity:
        if made.always > capacity or told.budget < 2 * FEWEST_TOKENS:
            return replace(whole, notes=[*whole.notes, f"does not fit into {format.scaled(capacity, 'B')}"])
        told = replace(told, at_once=told.budget // 2)
        made = plan(stage, told)
    notes = [f"{told.budget:,} tokens at once, so that it fits"] if told.at_once else []
    return replace(made, at_once=told.budget, notes=made.notes + notes)


def machine_of(config: PlanConfig, stage: StageConfig) -> tuple[torch.device, Machine]:
    """The device and what it does, measured where it is not stated. A device of which both rates are stated need not be here."""
    described = config.matmul is not None and config.bandwidth is not None
    elsewhere = described and stage.device.partition(":")[0] in KINDS
    device = torch.device(stage.device) if elsewhere else pick_device(stage.device)
    dtype = torch.bfloat16 if "bf16" in stage.memory else torch.float32
    found = Machine(0, 0) if described else measure(device, dtype)
    return device, Machine(1e9 * (config.matmul or found.matmul / 1e9), 1e9 * (config.bandwidth or found.bandwidth / 1e9))


def among(machine: Machine, ranks: int, config: PlanConfig) -> Machine:
    """The machine as one of some ranks; where no link is stated, sending takes no time."""
    if ranks == 1 or config.link is None:
        return machine
    return linked(machine, ranks, config.host, 1e9 * config.link, 1e9 * (config.network or config.link))
