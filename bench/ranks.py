"""Two ranks beside one process: how many times as fast a step of each stage is, at the demo's sizes.

    python bench/ranks.py             # pretrain, sft, reward, ppo; about three minutes on two idle cores
    python bench/ranks.py ppo --rounds 3

The models, batches and rates are those of `--preset demo`, the text is the small world's. One process and two ranks
take turns; each runs every stage from its start for a few steps, with one thread a process. The first step of a run is
left out, checkpoints too; validation counts where a stage validates. The models have learned little, so that
completions of PPO run to their limit of 32 tokens.

A ratio on the clock is what two ranks gain on this machine. The ratio of CPU time, one process to the rank that works
more, is what they would gain if no rank ever waited: on a machine that does other things it is the one to look at. The
second table says where the time of a step goes.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from instructgpt.config import StageConfig, make_config, read_preset, section_for
from instructgpt.distributed.comm import get_dist_info
from instructgpt.distributed.launch import launch
from instructgpt.pipeline import build_stage_configs, get_world_files
from instructgpt.records import Ranking, write_records
from instructgpt.run import directory as run_module
from instructgpt.run.configs import RunConfig
from instructgpt.run.directory import RunDirectory
from instructgpt.train import ppo, pretrain, reward, sft
from instructgpt.world import SimulatedLabelers, World

WORDS, PROMPTS, PPO_PROMPTS = 60_000, 240, 1_000
STAGES = {"pretrain": pretrain.train, "sft": sft.train, "reward": reward.train, "ppo": ppo.train}
UPDATES = 3


def make_files(config: RunConfig) -> None:
    """Text of the small world: as long as the demo's, but less of it."""
    world, files, draw = World(config.seed), get_world_files(config.out / "world"), random.Random(0)
    write_records(files["corpus"], world.documents(WORDS))
    write_records(files["ppo"], world.prompts("ppo", PPO_PROMPTS))
    demonstrations = list(SimulatedLabelers(world, "training").demonstrate(world.prompts("sft", PROMPTS)))
    write_records(files["demonstrations"], demonstrations)
    completions = sorted({one.completion for one in demonstrations})
    rankings = []
    for one in demonstrations:
        shown = draw.sample(completions, draw.randint(4, 9))
        rankings.append(
            Ranking(prompt=one.prompt, completions=shown, ranks=list(range(1, len(shown) + 1)), labeler="one")
        )
    write_records(files["rankings"], rankings)


def short(stages: dict[str, Any], folder: Path) -> dict[str, StageConfig]:
    """The demo's stages, with its sizes and few steps."""
    base, few = (
        stages["pretrain"],
        {
            "out": folder / "pretrain",
            "processes": 1,
            "tokens": 30 * stages["pretrain"].batch * stages["pretrain"].window,
        },
    )
    update = stages["ppo"].batch
    return {
        "pretrain": base.model_copy(update=few),
        "sft": stages["start"].model_copy(update={"out": folder / "sft", "processes": 1, "epochs": 2}),
        "reward": stages["reward"].model_copy(update={"out": folder / "reward", "processes": 1}),
        "ppo": stages["ppo"].model_copy(update={"out": folder / "ppo", "processes": 1, "episodes": UPDATES * update}),
    }


def steps_of(names: list[str], stages: dict[str, Any], folder: Path, _: StageConfig) -> None:
    """What each rank does: the stages, with the clock and its own CPU time read after every step."""
    torch.set_num_threads(1)
    run_module.CHECKPOINT_INTERVAL_S = float("inf")
    log, clocks = RunDirectory.log, []

    def read(run: RunDirectory, *given: Any, **more: Any) -> None:
        log(run, *given, **more)
        clocks.append((time.perf_counter(), time.process_time()))

    taken = {}
    for name, config in short(stages, folder).items():
        if name in names:
            clocks.clear()
            RunDirectory.log = read  # type: ignore[method-assign]
            try:
                STAGES[name](config)
            finally:
                RunDirectory.log = log  # type: ignore[method-assign]
            taken[name] = [(end - start) / (len(clocks) - 1) for start, end in zip(clocks[0], clocks[-1], strict=True)]
    (folder / f"rank-{get_dist_info().rank}.json").write_text(json.dumps(taken))


def measured(names: list[str], stages: dict[str, Any], count: int) -> dict[str, dict[str, Any]]:
    """Seconds a step on the clock, of the rank that works most, and by phase; of each stage, made by so many ranks."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        launch(partial(steps_of, names, stages, folder), stages["pretrain"], count)
        ranks = [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(count)]
        found = {}
        for name in names:
            phases = json.loads((folder / name / "run.json").read_text())["phases"]
            steps = len((folder / name / "metrics.jsonl").read_text().splitlines())
            by_phase = {phase: numbers["seconds"] / steps for phase, numbers in phases.items()}
            found[name] = {"clock": ranks[0][name][0], "cpu": max(rank[name][1] for rank in ranks), "phases": by_phase}
    return found


def show(names: list[str], turns: dict[int, list[dict[str, Any]]]) -> None:
    """Both tables, of medians over turns."""

    def middle(name: str, count: int, what: str, phase: str = "") -> float:
        numbers = [turn[name][what] for turn in turns[count]]
        return 1000 * statistics.median(number.get(phase, 0.0) if phase else number for number in numbers)

    print("| a step of | one process, ms | two ranks, ms | times as fast | by CPU time |\n|---|---|---|---|---|")
    for name in names:
        (one, two), (cpu, each) = ([middle(name, count, what) for count in (1, 2)] for what in ("clock", "cpu"))
        print(f"| `{name}` | {one:.0f} | {two:.0f} | {one / two:.2f} | {cpu / each:.2f} |")
    print("\n| phase of a step (rank 0) | one process, ms | two ranks, ms |\n|---|---|---|")
    for name in names:
        phases = dict.fromkeys(phase for count in (1, 2) for turn in turns[count] for phase in turn[name]["phases"])
        for phase in phases:
            print(
                f"| `{name}`: {phase} | {middle(name, 1, 'phases', phase):.0f} | "
                f"{middle(name, 2, 'phases', phase):.0f} |"
            )


def main() -> None:
    """Make what the stages read, let one process and two ranks take turns, and print both tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("stages", nargs="*", help=f"some of {', '.join(STAGES)}; all without it")
    parser.add_argument("--rounds", type=int, default=2, help="turns that count")
    options = parser.parse_args()
    names = [name for name in STAGES if name in (options.stages or STAGES)]
    with tempfile.TemporaryDirectory() as folder:
        config = make_config(RunConfig, section_for(RunConfig, read_preset("demo"), "demo"), {"out": Path(folder)})
        make_files(config)
        stages = build_stage_configs(config)
        (first,) = stages.pop("rounds")
        stages |= {"reward": first.reward, "ppo": first.policies["ppo"]}
        if names != ["pretrain"]:
            steps_of(["pretrain"], stages, Path(folder), stages["pretrain"])
        made = Path(folder) / "pretrain"
        for name, places in (("start", ("base",)), ("reward", ("base",)), ("ppo", ("policy",))):
            stages[name] = stages[name].model_copy(update=dict.fromkeys(places, str(made)))
        if "ppo" in names:
            steps_of(["reward"], stages, Path(folder), stages["pretrain"])
        stages["ppo"] = stages["ppo"].model_copy(update={"reward": Path(folder) / "reward"})
        turns: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for _ in range(options.rounds):
            for count in (1, 2):
                turns[count].append(measured(names, stages, count))
    show(names, turns)


if __name__ == "__main__":
    main()
