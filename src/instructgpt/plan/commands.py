"""`plan`: what a stage needs, before it starts; and what one that ran reached of it.

instructgpt plan ppo --policy runs/start --reward runs/reward --prompts prompts.jsonl
instructgpt plan runs/ppo
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from pydantic import Field

from instructgpt.config import Options, StageConfig
from instructgpt.errors import BadInput
from instructgpt.models.load import pick_device
from instructgpt.plan import tables
from instructgpt.plan.machine import Machine, measure
from instructgpt.plan.reached import reached, record_of, told_by
from instructgpt.plan.stages import Told, plan
from instructgpt.plan.work import Plan
from instructgpt.run import console


class PlanConfig(Options):
    """What is planned, and for which machine."""

    stage: ClassVar[str] = "plan"

    run: Path | None = Field(None, description="the directory of a stage that ran or runs; or a stage's name with that stage's options")
    prompt_tokens: int | None = Field(None, ge=1, description="tokens of a prompt; with --completion-tokens no data is read")
    completion_tokens: int | None = Field(None, ge=1, description="tokens of a completion, on average")
    records: int | None = Field(None, ge=1, description="records of the training data, where lengths are stated")
    ranks: int = Field(1, ge=1, description="processes that divide the work")
    matmul: float | None = Field(None, gt=0, description="GFLOP/s of matrix products on this machine; measured where not given")
    bandwidth: float | None = Field(None, gt=0, description="GB/s of its memory; measured where not given")
    planned: StageConfig | None = Field(None, description="what the stage was told")


def main(config: PlanConfig) -> Plan:
    """Print what a stage needs, and give it back.

    Raises:
        BadInput: there is nothing to plan, or a model or data is missing.
    """
    if config.planned is None and config.run is None:
        raise BadInput("plan: name a stage with its options ('instructgpt plan sft --base … --data …'), or the directory of a run")
    record, stage = record_of(config.run) if config.run is not None else ({}, config.planned)
    assert stage is not None
    device = pick_device(stage.device)
    machine = machine_of(config, stage.device)
    ranks = max(config.ranks, int(getattr(stage, "processes", 1)))
    told = Told(device, config.prompt_tokens, config.completion_tokens, config.records, ranks)
    if config.run is None:
        made = plan(stage, told)
        shown = tables.lines(made, machine, device.type)
    else:
        made = plan(stage, told_by(config.run, record, told))
        shown = tables.reached_lines(reached(record, made, machine), machine)
    for line in shown:
        console.print(line, soft_wrap=True, highlight=False, markup=False)
    return made


def machine_of(config: PlanConfig, device: str) -> Machine:
    """The machine, measured where it is not stated."""
    if config.matmul is not None and config.bandwidth is not None:
        return Machine(1e9 * config.matmul, 1e9 * config.bandwidth)
    found = measure(pick_device(device))
    return Machine(
        found.matmul if config.matmul is None else 1e9 * config.matmul,
        found.bandwidth if config.bandwidth is None else 1e9 * config.bandwidth,
    )
