"""Six cells a method on the small world: how DPO, expert iteration and PPO-ptx do with other options, on validation.

    python bench/baseline_search.py runs/demo --out runs/search [--jobs 2] [--method dpo]

RUN is a finished `run --preset demo --baselines`. Every cell is trained from RUN's start with its rankings, reward
model and prompts, in a stage directory of its own; finished cells are skipped. A cell counts by the best of its points
(policies saved along its run, rounds of expert iteration): the share of answers to validation prompts that training
labelers prefer to the start's. Test prompts are not read. The chosen options are the defaults of `run --baselines`.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

from instructgpt.baselines import dpo, expert_iteration
from instructgpt.config import make_config
from instructgpt.distributed.launch import run_processes
from instructgpt.evaluate.best_of_n_policy import score_answers
from instructgpt.evaluate.configs import BestOfNConfig
from instructgpt.evaluate.frontier import FrontierPolicy, frontier_prompts
from instructgpt.evaluate.inference import EvaluatedModel
from instructgpt.evaluate.metrics import preference
from instructgpt.evaluate.sampled_answers import START, sample_policy
from instructgpt.models.policy import pick_device
from instructgpt.models.reward_model import load_reward_model
from instructgpt.pipeline_baselines import list_iterations, list_policies
from instructgpt.run.configs import RunConfig
from instructgpt.run.directory import read_run_record
from instructgpt.stage_configs import build_stage_configs
from instructgpt.train import ppo
from instructgpt.world import SimulatedLabelers, World

CELLS: dict[str, list[dict[str, Any]]] = {
    "dpo": [{"lr": lr, "beta": beta} for lr, beta in product((3e-5, 1e-4), (0.1, 0.3, 1.0))],
    "expert_iteration": [{"n": n, "lr": lr} for n, lr in product((8, 16), (1e-4, 3e-4, 1e-3))],
    "ppo_ptx": [{"lr": lr, "kl_coef": kl} for lr, kl in product((2e-4, 4e-4), (0.02, 0.05, 0.1))],
}
MAINS: dict[str, Any] = {"dpo": dpo.main, "expert_iteration": expert_iteration.main, "ppo_ptx": ppo.main}
ANSWERS, PROMPTS = 4, 100


def read_run_config(run: Path, changes: Mapping[str, Mapping[str, Any]], device: str) -> RunConfig:
    """Return the configuration of a run with other options in some sections."""
    record = read_run_record(run)
    if record is None:
        raise SystemExit(f"{run} is not a run directory")
    sections = record["config"]["stages"]
    sections |= {name: {**sections.get(name, {}), **options} for name, options in changes.items()}
    defaults = RunConfig(out=run).model_dump(mode="json")
    settings = {name: value for name, value in record["config"].items() if value != defaults.get(name, value)}
    settings |= {"out": run, "stages": sections, "baselines": True, "device": device}
    config: RunConfig = make_config(RunConfig, settings)
    return config


def build_stage(run: Path, method: str, options: Mapping[str, Any], out: Path, device: str) -> Any:
    """Return the config of a cell, with RUN's inputs and a directory of its own."""
    config = read_run_config(run, {method: options}, device)
    stages = build_stage_configs(config)
    stage = stages["rounds"][0].policies[method] if method == "ppo_ptx" else stages["baselines"][method]
    return stage.model_copy(update={"out": out})


def run_cell(run: Path, method: str, options: Mapping[str, Any], out: Path, device: str) -> None:
    """Train a cell and measure its points, unless that is done."""
    if (out / "row.json").exists():
        return
    before = sum(os.times()[:2])
    MAINS[method](build_stage(run, method, options, out, device))
    row: dict[str, Any] = {"method": method, "options": dict(options), "cpu_s": round(sum(os.times()[:2]) - before)}
    points = list_points(method, out, run)
    row["points"] = measure_points(run, points, device)
    row["best"] = max(row["points"], key=lambda point: float(point["preferred"]))
    (out / "row.json").write_text(json.dumps(row), encoding="utf-8")
    print(json.dumps({**row, "points": len(row["points"])}), flush=True)


def list_points(method: str, out: Path, run: Path) -> list[FrontierPolicy]:
    if method == "expert_iteration":
        return list_iterations(out, run / "reward", 0.0)
    return list_policies(method, out)


def measure_points(run: Path, points: Sequence[FrontierPolicy], device_name: str) -> list[dict[str, Any]]:
    """Return preference, score and KL of every policy on validation prompts."""
    config = read_run_config(run, {}, device_name)
    best: BestOfNConfig = build_stage_configs(config)["baselines"]["best_of_n"]
    best = best.model_copy(update={"validation_prompts": PROMPTS, "answers": ANSWERS})
    world, device = World(config.seed), pick_device(device_name)
    prompts = frontier_prompts(best, world)["validation"]
    start, reward = EvaluatedModel.load(START, best.policy, device), load_reward_model(best.reward, device)
    answers, rows = {START: sample_policy(start, start.lm, prompts, best)[0]}, list[dict[str, Any]]()
    for point in points:
        model = EvaluatedModel.load(point.label, point.folder, device)
        answers[point.label], _, kl = sample_policy(model, start.lm, prompts, best)
        rows.append(
            {"label": point.label, "kl": fmean(kl), "score": fmean(score_answers(reward, answers[point.label]))}
        )
    labelers = SimulatedLabelers(world, "training", per_prompt=3, seed=config.seed + 1)
    for row in rows:  # each beside the start alone, so that no cell's points influence each other
        lists = [list(pair) for pair in zip(answers[START], answers[row["label"]], strict=True)]
        measured = preference.measure(labelers.rank(lists), baseline=START)
        wins = [
            result for result in measured if (result.metric, result.model) == (f"win_rate_vs_{START}", row["label"])
        ]
        row |= {"preferred": wins[0].value, "low": wins[0].low, "high": wins[0].high}
    return rows


def print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    print("| method | options | best point | preferred to the start, % | score | KL | CPU s |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        options, best = ", ".join(f"{name} {value:g}" for name, value in row["options"].items()), row["best"]
        wins = " ".join(f"{100 * best[name]:.1f}" for name in ("preferred", "low", "high"))
        print(
            f"| {row['method']} | {options} | {best['label']} | {wins} | {best['score']:.2f} | {best['kl']:.1f} "
            f"| {row['cpu_s']} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--method", choices=CELLS, action="append")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    started, jobs, folders = time.monotonic(), [], []
    for method in options.method or CELLS:
        for cell in CELLS[method]:
            name = "-".join([method, *(f"{option}={value:g}" for option, value in cell.items())])
            folders.append(options.out / name)
            jobs.append((run_cell, (options.run, method, cell, folders[-1], options.device)))
    options.out.mkdir(parents=True, exist_ok=True)
    run_processes(options.jobs, jobs)
    print_table([json.loads((folder / "row.json").read_text()) for folder in folders])
    print(f"{time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
