"""The paper from start to end. Each step of `build_small_world` makes one directory; a finished directory is not made again.

    instructgpt run --preset demo --out runs/demo                                            the embedded small world
    instructgpt run --config recipes/real-small.yaml --data FOLDER --out runs/real-small     your own files

In the small world simulated labelers write the demonstrations and rank; with files, people already did (`build_from_files`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch

from instructgpt.data.splits import held_out
from instructgpt.distributed.launch import Job, side_by_side
from instructgpt.evaluate import world_exam
from instructgpt.evaluate.aggregate import Row, read_rows, write_rows
from instructgpt.evaluate.candidate_sampling import CandidatesConfig, gather_candidates
from instructgpt.evaluate.own_files import judged_by_reward_model, score_rankings
from instructgpt.evaluate.world_exam import Exam
from instructgpt.label.simulation.site_labelers import SiteLabelers
from instructgpt.models.policy import pick_device
from instructgpt.models.reward_model import load_reward_model
from instructgpt.pipeline_config import RunConfig, check_files, input_files, stage_configs, world_files
from instructgpt.records import Cohort, Completion, Labelers, Prompt, Ranking, Skipped, read_all, read_records, write_records
from instructgpt.report.page import write_report
from instructgpt.report.terminal import show
from instructgpt.run.directory import Run, console
from instructgpt.train import ppo, pretrain, reward, sft
from instructgpt.world import SimulatedLabelers, World

MODELS = ("base", "prompted", "sft", "ppo", "ppo_ptx")
"""What is evaluated in the small world; `prompted` is the base model with a few answered prompts before each."""


def main(config: RunConfig) -> Path:
    """Build everything, or what is still missing. Returns the directory."""
    if config.processes > 1:
        torch.set_num_threads(1)  # small models: two processes of one thread beat one of two
    stages = stage_configs(config)
    run = Run.start(config)
    if run.finished:
        console.print(f"already finished: {config.out / 'report.html'}", soft_wrap=True)
    else:
        check_files(config, stages)
        run.begin()
        rows = build_from_files(config, stages) if config.corpus else build_small_world(config, stages)
        run.finish(lambda folder: write_rows(folder / "results.json", rows))
    show(read_rows(config.out / "results.json"))
    console.print(f"report: {write_report(config.out)}", soft_wrap=True)
    return config.out


def build_small_world(config: RunConfig, stages: dict[str, Any]) -> list[Row]:
    """Demonstrations and rankings by simulated labelers, every model, every evaluation."""
    world = World(config.seed)
    files = write_world(config, world, stages["exam"])
    pretrain.main(stages["pretrain"])
    sft.main(stages["start"])
    rank_candidates(config, world, stages["candidates"], files)
    reward.main(stages["reward"])
    sft.main(stages["sft"])
    side_by_side(config.processes, [(ppo.main, (stages[name],)) for name in ("ppo", "ppo_ptx")])
    return evaluate_small_world(config, world, stages, files)


def build_from_files(config: RunConfig, stages: dict[str, Any]) -> list[Row]:
    """Every model from people's own text, demonstrations and rankings; what can be measured where nobody knows the truth."""
    if unused := [name for name in ("sft", "candidates", "exam") if name in config.stages]:
        console.print(f"[bold]run[/] sections about the small world are not used: {', '.join(unused)}")
    pretrain.main(stages["pretrain"])
    sft.main(stages["start"])
    reward.main(stages["reward"])
    files = input_files(config)
    prompts = [Prompt(prompt=one.prompt, messages=one.messages) for one in read_all(Prompt, files["prompts"], Skipped())]
    write_records(files["ppo"][0], [prompt for prompt in prompts if not held_out(prompt.text)])  # the others are for judging
    policies = [name for name in ("ppo", "ppo_ptx") if name in stages]
    side_by_side(config.processes, [(ppo.main, (stages[name],)) for name in policies])
    judge = load_reward_model(stages["reward"].out, pick_device(config.device))
    fresh = read_all(Ranking, stages["reward"].validation or files["rankings"], Skipped())
    rows = score_rankings(judge, [ranking for ranking in fresh if stages["reward"].validation or held_out(ranking.prompt)])
    models = {"base": stages["pretrain"].out, "sft": stages["start"].out} | {name: stages[name].out for name in policies}
    answers = config.out / "evaluation" / "preference" / "rankings.jsonl"
    most = stages["ppo_ptx"].max_tokens
    return rows + judged_by_reward_model(judge, models, prompts, answers, max_tokens=most, seed=config.seed, device=config.device)


# --- the small world's part --------------------------------------------------------------------------------------


def write_world(config: RunConfig, world: World, exam: Exam) -> dict[str, Path]:
    """Corpus, prompts and demonstrations of the small world as files. Returns where everything is, or will be."""
    files = world_files(config.out / "world")
    counts = {"reward": config.ranking_prompts, "ppo": config.ppo_prompts, "validation": 300, "test": exam.prompts}
    if not files["demonstrations"].exists():
        console.print(f"[bold]world[/] writes {config.words:,} words and {sum(counts.values()):,} prompts from seed {config.seed}")
        write_records(files["corpus"], world.documents(config.words))
        for split, count in counts.items():
            write_records(files[split], world.prompts(split, count))
        people = labelers(config, world, "training")
        write_records(files["demonstrations"], people.demonstrate(world.prompts("sft", config.demonstration_prompts)))
    return files


def rank_candidates(config: RunConfig, world: World, sampling: CandidatesConfig, files: dict[str, Path]) -> None:
    """Simulated labelers rank completions: the training cohort those of the reward prompts, both cohorts those of validation prompts."""
    if files["heldout_rankings"].exists():
        return
    known, fresh = sample_candidates(config, sampling, files)
    training = labelers(config, world, "training")
    write_records(files["rankings"], training.rank(known))
    measuring = labelers(config, world, "training", purpose="evaluation")
    heldout = labelers(config, world, "heldout")
    write_records(files["heldout_rankings"], measuring.rank(fresh) + heldout.rank(fresh))


def sample_candidates(
    config: RunConfig, sampling: CandidatesConfig, files: dict[str, Path]
) -> tuple[list[list[Completion]], list[list[Completion]]]:
    """Completions to rank, a list for each time a prompt was asked: of the reward prompts, and of the validation prompts."""
    folder, jobs = files["reward"].parent, list[Job]()
    for name, prompts in (("candidates", files["reward"]), ("heldout_candidates", files["validation"])):
        strays = sampling.strays and name == "candidates"  # accuracy is measured on what models say by themselves
        for part in range(config.processes):
            out = folder / f"{name}-{part}-of-{config.processes}.jsonl"
            settings = sampling.model_copy(update={"out": out, "prompts": prompts, "part": part, "strays": strays})
            jobs.append((gather_candidates, (settings, config.seed)))
    side_by_side(config.processes, jobs)
    return (
        CandidatesConfig.read_parts(folder, f"candidates-*-of-{config.processes}.jsonl"),
        CandidatesConfig.read_parts(folder, f"heldout_candidates-*-of-{config.processes}.jsonl"),
    )


def labelers(config: RunConfig, world: World, cohort: Cohort, purpose: Literal["training", "evaluation"] = "training") -> Labelers:
    """Who writes and ranks: simulated people, asked at once or at a site."""
    if config.through_site:
        return SiteLabelers(config.out / "site", world, cohort, config.labelers, config.seed, purpose)
    return SimulatedLabelers(world, cohort, per_prompt=config.labelers, seed=config.seed)


def evaluate_small_world(config: RunConfig, world: World, stages: dict[str, Any], files: dict[str, Path]) -> list[Row]:
    """Every model answers the exam and is judged; the reward model is measured on held-out rankings, its score against true utility."""
    exam, answered = stages["exam"], config.out / "evaluation"
    jobs: list[Job] = []
    for model in MODELS:
        folder = config.out / ("base" if model == "prompted" else model)
        jobs.append((examine, (model, folder, answered / f"{model}.jsonl", config.seed, exam, config.device)))
    side_by_side(config.processes, jobs)
    rows = world_exam.judge_all(answered, MODELS, world, exam, config.seed)
    judge = load_reward_model(stages["reward"].out, pick_device(config.device))
    rows += score_rankings(judge, read_records(Ranking, files["heldout_rankings"]))
    points = [
        point for name in ("ppo", "ppo_ptx") for point in world_exam.over_optimisation(name, config.out / name, world, stages[name].batch)
    ]
    write_records(answered / "over_optimisation.jsonl", points)
    return rows


def examine(model: str, folder: Path, out: Path, seed: int, exam: Exam, device: str) -> None:
    """Put the exam to one model, in a process of its own."""
    world_exam.question(model, folder, out, World(seed), exam, seed, device, primed=model == "prompted")
    console.print(f"[bold]evaluation[/] {model} has answered")
