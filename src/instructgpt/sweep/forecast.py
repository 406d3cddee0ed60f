"""--dry-run: what a sweep would make, what is shared, and the time and memory that `plan` expects of it.

Nothing is there yet, so models are planned from their configurations, and lengths are those of the small world's texts.
Where stages of the sweep have been made, what they took corrects the expectation of the others of their kind.
"""

from __future__ import annotations

import json
import math
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from rich.markup import escape

from instructgpt.formatting import format_si
from instructgpt.models.flops import FLOAT_BYTES, ModelShape, build_on_meta, get_model_shape, pretraining_flops
from instructgpt.models.packed_attention import use_packed_attention
from instructgpt.plan.context import PlanContext
from instructgpt.plan.hardware import Machine, benchmark_machine
from instructgpt.plan.lengths import synthetic_examples
from instructgpt.plan.roofline import Phase, Plan, optimizer_phase, sampling_phases
from instructgpt.plan.stages import plan_stage
from instructgpt.run.configs import RunConfig
from instructgpt.run.directory import console
from instructgpt.sampling.engine import sample_tokens
from instructgpt.stage_configs import REWARD_BASE_FOLDER, build_stage_configs
from instructgpt.sweep.cells import move_config
from instructgpt.sweep.shared_stages import stage_kinds
from instructgpt.sweep.table import format_values
from instructgpt.train.optim import build_optimizer, lm_loss, optimizer_step
from instructgpt.train.pretrain import build_llama_config
from instructgpt.world import SimulatedLabelers, World
from instructgpt.world.simple_mistakes import MISTAKES

if TYPE_CHECKING:
    from instructgpt.sweep.cli import Sweep

TOKENS_PER_WORD = 4 / 3
"""Of the small world's texts with a vocabulary of about a thousand."""
_TEMPLATE_TOKENS = 4
_SAMPLED_TEXTS = 64
_SAMPLED_ROWS = 64
_PLANNED_COMPLETIONS = 4  # of a ranking, in `plan`
_LARGEST_K = 9
_LIBRARY_BYTES = 0.4e9
"""Of the interpreter and its libraries, which `plan` leaves out."""
_VALIDATION_PROMPTS = 300
_TRUTH_CONDITIONS, _TOXICITY_CONDITIONS, _REFUSAL_CELLS = 2, 3, 4  # of the exam
_TIMED_TOKENS, _TIMED_CALLS = 1024, 5
_CPU = torch.device("cpu")
_plans: dict[tuple[str, int, int, int, Machine], Plan] = {}


@dataclass(frozen=True, slots=True)
class StageForecast:
    """Expected CPU-seconds and bytes of a stage; None where nothing is planned."""

    seconds: float | None
    peak_bytes: float = 0.0


def print_forecast(sweep: Sweep) -> None:
    """Print shared stages and cells with their state, and the time and memory of what is to be made."""
    torch.set_num_threads(1)
    machine = benchmark_machine(_CPU)
    forecasts = {cell.key: forecast_stages(cell.config, machine) for cell in sweep.cells}
    corrections = measure_corrections(sweep, forecasts)
    users = Counter(stage.name for cell in sweep.cells for stage in sweep.shared[cell.key])
    cell_of = {stage.name: cell.key for cell in sweep.cells for stage in sweep.shared[cell.key]}
    remaining: list[StageForecast] = []
    for name, stage in sweep.shared_stages().items():
        state = sweep.claims.status(name).state
        forecast = _correct(forecasts[cell_of[name]].get(stage.stage), corrections, stage.stage)
        remaining += [forecast] if state != "done" else []
        _print(f"shared {name}: for {users[name]} cells, {state}{_describe([forecast], state)}")
    for cell in sweep.cells:
        state = sweep.claims.status(sweep.item_name(cell)).state
        shared = {stage.stage for stage in sweep.shared[cell.key]}
        cell_forecasts = [
            _correct(forecast, corrections, stage)
            for stage, forecast in forecasts[cell.key].items()
            if stage not in shared
        ]
        remaining += cell_forecasts if state != "done" else []
        name = f"cell {cell.key}: {format_values(cell.values)}, seed {cell.seed}"
        _print(f"{name}, {state}{_describe(cell_forecasts, state)}")
    if sweep.config.fresh_seeds and sweep.choice_metric:
        _print(f"then the chosen cell again on {sweep.config.fresh_seeds} fresh seeds, a whole run each")
    _print_sum(sweep, remaining, machine, corrections)


def _print_sum(
    sweep: Sweep, remaining: Sequence[StageForecast], machine: Machine, corrections: Mapping[str, float]
) -> None:
    planned_seconds = [forecast.seconds for forecast in remaining if forecast.seconds is not None]
    peak = max((forecast.peak_bytes for forecast in remaining), default=0.0) + _LIBRARY_BYTES
    minutes = math.fsum(planned_seconds) / 60
    jobs = sweep.config.jobs
    _print(
        f"together {minutes:.0f} CPU minutes, {minutes / 60 / jobs:.1f} h with {jobs} at once, as plan expects of a "
        f"core that does {format_si(machine.matmul, 'FLOP/s')}, times what models of this size took here; "
        f"memory up to {format_si(peak, 'B')} for each at once"
    )
    if corrections:
        stages = ", ".join(f"{stage} x {factor:.2f}" for stage, factor in sorted(corrections.items()))
        _print(f"corrected by stages of this sweep that were made: {stages}")
    if len(planned_seconds) < len(remaining):
        count = len(remaining) - len(planned_seconds)
        _print(f"{count} stages are not planned: 'instructgpt plan' reads their data and models")
    _print("loading PyTorch, grading and reports are not in these numbers")


def _describe(forecasts: Iterable[StageForecast], state: str) -> str:
    seconds = [forecast.seconds for forecast in forecasts]
    if state == "done" or not seconds or None in seconds:
        return ""
    return f", {math.fsum(number for number in seconds if number is not None) / 60:.1f} CPU minutes"


def _correct(forecast: StageForecast | None, corrections: Mapping[str, float], stage: str) -> StageForecast:
    if forecast is None or forecast.seconds is None:
        return forecast or StageForecast(None)
    return StageForecast(forecast.seconds * corrections.get(stage, 1.0), forecast.peak_bytes)


def measure_corrections(sweep: Sweep, forecasts: Mapping[str, Mapping[str, StageForecast]]) -> dict[str, float]:
    """Return measured over expected seconds, by stage, of shared stages that were made. One made twice is left out."""
    ratios: dict[str, list[float]] = {}
    for cell in sweep.cells:
        for stage in sweep.shared[cell.key]:
            status, forecast = sweep.claims.status(stage.name), forecasts[cell.key].get(stage.stage)
            if status.state == "done" and status.attempt == 1 and forecast and forecast.seconds and status.outcome:
                ratios.setdefault(stage.stage, []).append(status.outcome["seconds"] / forecast.seconds)
    return {stage: statistics.fmean(values) for stage, values in ratios.items()}


# --- one run ---------------------------------------------------------------------------------------------------------


def forecast_stages(config: RunConfig, machine: Machine) -> dict[str, StageForecast]:
    """Return what each stage of a run of the small world takes, and nothing of your own files."""
    kinds = stage_kinds(config)
    if config.has_files or config.rounds > 1 or not kinds:
        return {stage: StageForecast(None) for stage in kinds}
    with tempfile.TemporaryDirectory() as folder:
        moved = move_config(config, Path(folder))
        stages = build_stage_configs(moved)
        model_config = build_llama_config(stages["pretrain"], stages["pretrain"].vocabulary)
        trunk = stages.get("reward_pretrain", stages["pretrain"])
        trunk_config = build_llama_config(trunk, stages["pretrain"].vocabulary)
        for name in ("base", "start", "sft"):
            model_config.save_pretrained(Path(folder) / name)
        for name in (REWARD_BASE_FOLDER, "reward"):
            trunk_config.save_pretrained(Path(folder) / name)
        return _forecast_world(moved, stages, (model_config, trunk_config), machine)


def _forecast_world(
    config: RunConfig, stages: Mapping[str, Any], model_configs: tuple[Any, Any], machine: Machine
) -> dict[str, StageForecast]:
    """Return what each stage takes. `model_configs`: of the base, and of the reward model's trunk."""
    prompt, completion = measure_lengths(0)  # the worlds of all seeds are alike
    round_, shape = stages["rounds"][0], get_model_shape(build_on_meta(model_configs[0]))
    speeds = [measure_speed(model_config.to_json_string(), machine) for model_config in model_configs]
    sampling_factor = speeds[0][1]

    def planned(stage: Any, records: int, factor: float = 1.0, training_factor: float = speeds[0][0]) -> StageForecast:
        text = stage.model_dump_json(exclude={"seed"}).replace(str(config.out), "")
        key = (text, prompt, completion, records, machine)
        if key not in _plans:  # cells differ in few stages
            context = PlanContext(_CPU, prompt, completion, records, 1, stage.microbatch_tokens or None)
            _plans[key] = plan_stage(stage, context)
        plan = _plans[key]
        seconds = sum(
            phase.expected_seconds(machine, "cpu")
            * (sampling_factor if phase.name in ("prefill", "decode") else training_factor)
            for phase in plan.phases
        )
        return StageForecast(factor * plan.steps * seconds, plan.peak_bytes)

    def sampled(count: float, length: int) -> float:
        return sampling_factor * count * _sampling_seconds(shape, prompt, length, machine)

    mean_k = (round_.candidates.least + _LARGEST_K) / 2
    ranked = mean_k * (config.ranking_prompts + _VALIDATION_PROMPTS)
    ranked_prompts = min(round(0.9 * config.ranking_prompts), round_.reward.max_prompts or config.ranking_prompts)
    demonstrations = round(0.9 * config.demonstration_prompts)
    k_share = min(mean_k, round_.reward.max_completions or mean_k) / _PLANNED_COMPLETIONS
    forecasts = {
        "world": StageForecast(0.0),
        "pretrain": planned(stages["pretrain"], 0),
        "start": planned(stages["start"], demonstrations),
        "candidates": StageForecast(sampled(ranked, completion)),
        "reward": planned(round_.reward, ranked_prompts, k_share, speeds[1][0]),
    }
    forecasts |= {name: planned(policy, 0) for name, policy in round_.policies.items()}
    if "reward_pretrain" in stages:
        forecasts["reward_pretrain"] = planned(stages["reward_pretrain"], 0, 1.0, speeds[1][0])
    if config.overoptimization:
        count = stages["start_samples"].prompts * stages["start_samples"].samples
        return forecasts | {"start_samples": StageForecast(sampled(count, completion))}
    forecasts["sft"] = planned(stages["sft"], demonstrations)
    return forecasts | _forecast_exams(config, stages["exam"], completion, sampled)


def _forecast_exams(
    config: RunConfig, exam: Any, completion: int, sampled: Callable[[float, int], float]
) -> dict[str, StageForecast]:
    """Return what each exam takes. `sampled`: completions and their length -> seconds."""
    questions, tasks = len(World(config.seed).questions()), len(World(config.seed).corpus_tasks(1))
    answers = exam.prompts * exam.samples + _TRUTH_CONDITIONS * questions * exam.truth_samples
    answers += _TOXICITY_CONDITIONS * exam.toxicity_prompts + tasks * exam.exercises
    answers += len(MISTAKES) * exam.mistakes + _REFUSAL_CELLS * exam.refusals
    lengths = {"base": exam.max_tokens, "prompted": exam.max_tokens}
    return {
        f"exam-{model}": StageForecast(sampled(answers, lengths.get(model, completion)))
        for model in ("base", "prompted", "sft", "ppo", "ppo_ptx")
    }


@cache
def measure_lengths(seed: int) -> tuple[int, int]:
    """Return the mean tokens of prompts and of labelers' completions in the small world."""
    world = World(seed)
    demonstrations = SimulatedLabelers(world, "training").demonstrate(world.prompts("sft", _SAMPLED_TEXTS))
    prompts = statistics.fmean(len(record.prompt.split()) for record in demonstrations)
    completions = statistics.fmean(len(record.completion.split()) for record in demonstrations)
    return round(TOKENS_PER_WORD * prompts) + _TEMPLATE_TOKENS, max(1, round(TOKENS_PER_WORD * completions)) + 1


@cache
def measure_speed(model_json: str, machine: Machine) -> tuple[float, float]:
    """Return measured over expected CPU-seconds of a model of this size, in training and in sampling.

    Small models spend much of their time between matrix products, which `plan` leaves out.
    """
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig.from_dict(json.loads(model_json)))
    use_packed_attention(model)
    shape, length = get_model_shape(model), model.config.max_position_embeddings
    rows = synthetic_examples(_TIMED_TOKENS // length, 1, [length - 1])
    flops = pretraining_flops(shape, len(rows), length)
    optimizer = build_optimizer(model)
    expected = Phase("", 0, flops, 0).expected_seconds(machine, "cpu")
    expected += optimizer_phase(shape.parameters).expected_seconds(machine, "cpu")
    training = _median_cpu_seconds(lambda: (lm_loss(model, rows), optimizer_step(optimizer, 1e-4, 1.0)))
    prompts, tokens = [[1 + row % 200] * (length // 4) for row in range(_SAMPLED_ROWS)], length // 4
    model.eval()
    sampling = _median_cpu_seconds(lambda: sample_tokens(model, prompts, stop_tokens=[], max_tokens=tokens, seed=0))
    expected_sampling = _SAMPLED_ROWS * _sampling_seconds(shape, length // 4, tokens, machine)
    return training / expected, sampling / expected_sampling


def _median_cpu_seconds(call: Callable[[], object]) -> float:
    """Return the median CPU-seconds of a call, so that other processes of the machine count little."""
    call()
    seconds: list[float] = []
    for _ in range(_TIMED_CALLS):
        start = time.process_time()
        call()
        seconds.append(time.process_time() - start)
    return statistics.median(seconds)


def _sampling_seconds(shape: ModelShape, prompt: int, completion: int, machine: Machine) -> float:
    """Return the expected seconds of a completion, among others that are sampled at the same time."""
    phases = sampling_phases(shape, [prompt] * _SAMPLED_ROWS, [completion] * _SAMPLED_ROWS, _SAMPLED_ROWS, FLOAT_BYTES)
    return sum(phase.expected_seconds(machine, "cpu") for phase in phases) / _SAMPLED_ROWS


def _print(text: str) -> None:
    console.print(f"[bold]sweep[/] {escape(text)}", soft_wrap=True)
