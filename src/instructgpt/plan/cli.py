"""`plan`: memory and time of a stage before it starts, and utilization of one that ran.

instructgpt plan ppo --policy runs/start --reward runs/reward --prompts prompts.jsonl
instructgpt plan runs/ppo
"""

from __future__ import annotations

from dataclasses import replace

import torch

from instructgpt.config import StageConfig
from instructgpt.data.packing import MIN_MICROBATCH_TOKENS
from instructgpt.errors import InputError
from instructgpt.formatting import format_si
from instructgpt.models.execution import enable_cuda_graphs
from instructgpt.models.policy import pick_device
from instructgpt.plan import format
from instructgpt.plan.configs import PlanConfig
from instructgpt.plan.context import PlanContext
from instructgpt.plan.hardware import Machine, benchmark_machine, device_capacity, with_links
from instructgpt.plan.roofline import Plan
from instructgpt.plan.stages import plan_stage
from instructgpt.plan.utilization import compute_utilization, context_from_run, read_timed_record
from instructgpt.run.directory import console

_DEVICE_TYPES = ("cpu", "cuda")


def main(config: PlanConfig) -> list[Plan]:
    """Print the plan of a stage for each number of ranks, and return the plans.

    Raises:
        InputError: nothing to plan, or a model or data is missing.
    """
    if config.planned is None and config.run is None:
        raise InputError(
            "plan: name a stage with its options ('instructgpt plan sft --base … --data …'), or the directory of a run"
        )
    record, stage = read_timed_record(config.run) if config.run is not None else ({}, config.planned)
    enable_cuda_graphs(getattr(stage, "cuda_graphs", True))
    assert stage is not None
    device, base_machine = resolve_machine(config, stage)
    capacity = device_capacity(device) if config.capacity is None else 1e9 * config.capacity
    rank_counts = config.ranks or (int(record.get("ranks", getattr(stage, "processes", 1))),)
    if "4bit" in stage.memory and max(rank_counts) > 1:
        raise InputError("--memory 4bit works in one process; drop --ranks, or 4bit")
    contexts = [
        PlanContext(
            device,
            config.prompt_tokens,
            config.completion_tokens,
            config.records,
            ranks,
            stage.microbatch_tokens or None,
            capacity,
        )
        for ranks in rank_counts
    ]
    machines = [machine_with_links(base_machine, ranks, config) for ranks in rank_counts]
    if config.run is not None:
        plans = [plan_stage(stage, context_from_run(config.run, record, contexts[0]))]
        lines = format.format_utilization(compute_utilization(record, plans[0], machines[0]), machines[0])
    else:
        plans = [fit_to_memory(stage, context) for context in contexts]
        plans_with_machines = list(zip(plans, machines, strict=True))
        lines = (
            format.format_plan(*plans_with_machines[0], device.type)
            if len(plans_with_machines) == 1
            else format.format_scaling(plans_with_machines, device.type)
        )
    for line in lines:
        console.print(line, soft_wrap=True, highlight=False, markup=False)
    return plans


def fit_to_memory(stage: StageConfig, context: PlanContext) -> Plan:
    """Return the plan with the largest microbatch that fits, halved as the stages do; the full one if none fits.

    Raises:
        InputError: see `plan_stage`.
    """
    full_plan = fitted = plan_stage(stage, context)
    capacity = context.capacity
    while fitted.peak_bytes > capacity:
        if fitted.fixed_bytes > capacity or context.budget < 2 * MIN_MICROBATCH_TOKENS:
            return replace(full_plan, notes=[*full_plan.notes, f"does not fit into {format_si(capacity, 'B')}"])
        context = replace(context, microbatch_tokens=context.budget // 2)
        fitted = plan_stage(stage, context)
    is_smaller = context.microbatch_tokens != (stage.microbatch_tokens or None)
    notes = [f"{context.budget:,} tokens at once, so that it fits"] if is_smaller else []
    return replace(fitted, microbatch_tokens=context.budget, notes=fitted.notes + notes)


def resolve_machine(config: PlanConfig, stage: StageConfig) -> tuple[torch.device, Machine]:
    """Return the device and its rates, measured unless both are stated; a fully stated device need not be present."""
    has_rates = config.matmul is not None and config.bandwidth is not None
    is_remote = has_rates and stage.device.partition(":")[0] in _DEVICE_TYPES
    device = torch.device(stage.device) if is_remote else pick_device(stage.device)
    dtype = torch.bfloat16 if "bf16" in stage.memory else torch.float32
    measured = Machine(0, 0) if has_rates else benchmark_machine(device, dtype)
    return device, Machine(
        1e9 * (config.matmul or measured.matmul / 1e9), 1e9 * (config.bandwidth or measured.bandwidth / 1e9)
    )


def machine_with_links(machine: Machine, ranks: int, config: PlanConfig) -> Machine:
    if ranks == 1 or config.link is None:
        return machine
    return with_links(machine, ranks, config.host, 1e9 * config.link, 1e9 * (config.network or config.link))
