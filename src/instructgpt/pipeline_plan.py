"""`plan run`: memory and time of each stage of a run on your own files, before it starts.

instructgpt plan run --config recipes/chat-model.yaml --base MODEL --data FOLDER
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from instructgpt.config import StageConfig
from instructgpt.errors import InputError
from instructgpt.formatting import format_seconds, format_si
from instructgpt.plan import cli as stage_plan
from instructgpt.plan.configs import PlanConfig
from instructgpt.plan.context import PlanContext
from instructgpt.plan.hardware import device_capacity
from instructgpt.plan.roofline import Plan
from instructgpt.run.configs import RunConfig
from instructgpt.run.directory import console
from instructgpt.stage_configs import POLICIES, build_stage_configs, get_input_files


@dataclass(frozen=True, slots=True)
class StagePlan:
    """A stage's plan on a number of ranks, and its time with the overhead that a machine reaches."""

    name: str
    ranks: int
    plan: Plan
    seconds: float
    fits: bool


def main(config: PlanConfig) -> object:
    """Plan a stage, a run that has been, or every stage of a run on files.

    Raises:
        InputError: see `plan_pipeline` and `plan.cli.main`.
    """
    if not isinstance(config.planned, RunConfig):
        return stage_plan.main(config)
    plans = plan_pipeline(config, config.planned)
    for line in format_stage_plans(plans):
        console.print(line, soft_wrap=True, highlight=False, markup=False)
    return plans


def plan_pipeline(config: PlanConfig, run: RunConfig) -> list[StagePlan]:
    """Return the plan of each stage from SFT on.

    Raises:
        InputError: the run pretrains its base, or a model or data is missing.
    """
    if run.base is None or not run.has_files:
        raise InputError(
            "plan run: plans runs with --base and files; plan a base with 'instructgpt plan pretrain', and a sweep of "
            "the small world with 'instructgpt sweep … --dry-run'"
        )
    stages = move_to_base(run)
    first = next(iter(stages.values()))
    device, machine = stage_plan.resolve_machine(config, first)
    capacity = device_capacity(device) if config.capacity is None else 1e9 * config.capacity
    plans = []
    for name, stage in stages.items():
        ranks = config.ranks[0] if config.ranks else int(getattr(stage, "processes", 1))
        lengths = (config.prompt_tokens, config.completion_tokens, config.records)
        context = PlanContext(device, *lengths, ranks, stage.microbatch_tokens or None, capacity)
        plan = stage_plan.fit_to_memory(stage, context)
        rates = stage_plan.machine_with_links(machine, ranks, config)
        seconds = plan.steps * plan.expected_seconds(rates, device.type)
        plans.append(StagePlan(name, ranks, plan, seconds, bool(plan.microbatch_tokens)))
    return plans


def move_to_base(run: RunConfig) -> dict[str, StageConfig]:
    """Return the stages in order, with the base in place of the models that do not exist yet.

    Policies are planned on the demonstrations' prompts.
    """
    assert run.base is not None
    is_gpu = run.device.partition(":")[0] == "cuda"  # the planned machine need not be this one
    stages = build_stage_configs(run.model_copy(update={"auto_bf16": False}) if is_gpu else run)
    prompts = get_input_files(run)["demonstrations"]
    moved: dict[str, StageConfig] = {"start": stages["start"]}
    # With --baselines reward model and judge have half of the rankings each: together as one of all.
    moved["reward"] = stages["reward"].model_copy(update={"base": run.base, "data": get_input_files(run)["rankings"]})
    for name in POLICIES:
        if name in stages:
            models = {"policy": run.base, "reward": (run.base,), "prompts": prompts}
            moved[name] = stages[name].model_copy(update=models)
    if not (run.auto_bf16 and is_gpu):
        return moved
    return {
        name: stage if stage.memory else stage.model_copy(update={"memory": ("bf16",)}) for name, stage in moved.items()
    }


def format_stage_plans(plans: list[StagePlan]) -> Iterator[str]:
    """Yield a line a stage, and what fits."""
    yield "stage    ranks  memory a rank  steps      time"
    for entry in plans:
        memory = format_si(entry.plan.peak_bytes if entry.fits else entry.plan.fixed_bytes, "B")
        time = format_seconds(entry.seconds) if entry.fits else "does not fit"
        yield f"{entry.name:8} {entry.ranks:5}  {memory:>13}  {entry.plan.steps:5}  {time:>8}"
    total = sum(entry.seconds for entry in plans)
    if all(entry.fits for entry in plans):
        yield f"together {format_seconds(total)}, without loading, validation and the last evaluation"
    else:
        yield "a stage does not fit: more ranks, --lora, or --memory; 'plan STAGE' says what takes the memory"
