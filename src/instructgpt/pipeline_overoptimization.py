"""`run --overoptimization METHOD`: one measurement for the scaling laws of reward-model over-optimization.

After the reward model, nothing but the method is made: samples of PPO's start, which all reward models of a sweep
share, and for PPO a run that saves its policies. `evaluation/overoptimization.json` has the measurement and what it
depends on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from instructgpt.evaluate.configs import BestOfNConfig, StartSamplesConfig
from instructgpt.evaluate.overoptimization import measure, measure_scored_samples, sample_start_answers
from instructgpt.io import write_text_atomic
from instructgpt.pipeline_baselines import list_policies
from instructgpt.results import ResultRow
from instructgpt.run.configs import RunConfig
from instructgpt.run.directory import RunDirectory, console, read_run_record
from instructgpt.stage_configs import Round, find_labeler_noise
from instructgpt.statistics.intervals import mean
from instructgpt.train import ppo
from instructgpt.train.configs import PPOConfig
from instructgpt.world import World

_SAMPLES = "samples.jsonl"
_POLICY_OPTIONS = ("kl_coef", "ptx_coef", "episodes", "lr")
_REWARD_OPTIONS = ("max_prompts", "max_completions", "epochs", "lr", "keep")


def make_start_samples(config: StartSamplesConfig, world: World) -> Path:
    """Run the stage that samples the start, which trains nothing. Return its file."""
    run, out = RunDirectory.open(config, {"policy": config.policy}), config.out / _SAMPLES
    if not run.is_finished:
        run.create()
        sample_start_answers(config, world, out)
        run.finish(lambda _: None)
    return out


def measure_overoptimization(
    config: RunConfig, world: World, round_: Round, sampling: StartSamplesConfig
) -> list[ResultRow]:
    """Train the method's policy, if it has one, measure, and write the measurement. Return rows of its ends."""
    out = config.out / "evaluation" / "overoptimization.json"
    samples = make_start_samples(sampling, world)
    for policy in round_.policies.values():
        ppo.main(policy)
    if not out.exists():
        policies = [point for name, stage in round_.policies.items() for point in list_policies(name, stage.out)]
        measured = measure(sampling, samples, round_.reward.out, world, policies)
        write_measurement(out, config, round_, list(round_.policies.values()), measured)
    record = json.loads(out.read_text(encoding="utf-8"))
    console.print(f"[bold]overoptimization[/] {len(record['points'])} points: {out}", soft_wrap=True)
    return summarize(record)


def measure_baseline(config: RunConfig, world: World, round_: Round, sampling: BestOfNConfig) -> None:
    """Write the measurement of `run --baselines`, best of n by the run's reward model, unless it is there."""
    out = config.out / "evaluation" / "overoptimization.json"
    if not out.exists():
        write_measurement(out, config, round_, [], measure_scored_samples(sampling, world))


def write_measurement(
    out: Path, config: RunConfig, round_: Round, policies: Sequence[PPOConfig], measured: Mapping[str, Any]
) -> None:
    """Write one line: the method, what the measurement depends on, and the measurement."""
    record = {"method": config.overoptimization or "best_of_n", "seed": config.seed}
    record |= describe_cell(config, round_, policies) | dict(measured)
    write_text_atomic(out, json.dumps(record) + "\n")


def describe_cell(config: RunConfig, round_: Round, policies: Sequence[PPOConfig]) -> dict[str, Any]:
    """Return what a measurement depends on besides the seed. `policies`: those that it is of; none for best of n."""
    reward, trunk = (read_run_record(Path(folder)) or {} for folder in (round_.reward.out, round_.reward.base))
    cell: dict[str, Any] = {
        "labels": reward.get("labels", {}),
        "labeler_noise": find_labeler_noise(config),
        "labelers": config.labelers,
        "trunk_tokens": trunk.get("config", {}).get("tokens"),
        "reward_accuracy": reward.get("validation", {}).get("validation/accuracy"),
    }
    cell |= {f"reward_{name}": getattr(round_.reward, name) for name in _REWARD_OPTIONS}
    for policy in policies:
        cell |= {name: getattr(policy, name) for name in _POLICY_OPTIONS if name != "ptx_coef" or policy.pretraining}
    return cell


def summarize(record: dict[str, Any]) -> list[ResultRow]:
    """Return truth and proxy, in standard deviations over the start, at the end and where the truth is highest."""
    points = sorted(record["points"], key=lambda point: point["kl"])
    peak = max(points, key=lambda point: sum(point["truth"]))
    rows = []
    for condition, point in (("end", points[-1]), ("peak", peak)):
        for name in ("truth", "proxy"):
            gain = mean(point[name], range(len(point[name])))
            ends = (gain.value, gain.low, gain.high, record["prompts"])
            rows.append(ResultRow("overoptimization", f"{name}_gain", record["method"], condition, *ends))
    return rows
