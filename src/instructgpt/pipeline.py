"""The paper from start to end. Each step of `build_small_world` makes one directory; a finished directory is not made again.

    instructgpt run --preset demo --out runs/demo                                            the embedded small world
    instructgpt run --config recipes/real-small.yaml --data FOLDER --out runs/real-small     your own files

In the small world simulated labelers write the demonstrations and rank; with files, people already did (`build_from_files`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch

from instructgpt.data.splits import is_heldout
from instructgpt.distributed.launch import ProcessJob, run_processes
from instructgpt.evaluate import world_exam
from instructgpt.evaluate.aggregate import ResultRow, read_result_rows, write_result_rows
from instructgpt.evaluate.candidate_sampling import CandidatesConfig, sample_candidate_completions
from instructgpt.evaluate.own_files import compare_models_with_reward_model, measure_reward_model
from instructgpt.evaluate.world_exam import ExamConfig
from instructgpt.label.simulation.site_labelers import SiteLabelers
from instructgpt.models.policy import pick_device
from instructgpt.models.reward_model import load_reward_model
from instructgpt.pipeline_config import (
    RunConfig,
    build_stage_configs,
    check_input_files,
    get_input_files,
    get_world_files,
)
from instructgpt.records import (
    Cohort,
    Completion,
    Labelers,
    Prompt,
    Ranking,
    SkippedLines,
    read_all_records,
    read_records,
    write_records,
)
from instructgpt.report.page import write_report
from instructgpt.report.terminal import print_report_tables
from instructgpt.run.directory import RunDirectory, console
from instructgpt.train import ppo, pretrain, reward, sft
from instructgpt.world import SimulatedLabelers, World

_EVALUATED_MODELS = ("base", "prompted", "sft", "ppo", "ppo_ptx")
"""What is evaluated in the small world; `prompted` is the base model with a few answered prompts before each."""


def main(config: RunConfig) -> Path:
    """Build everything, or what is still missing. Returns the directory."""
    if config.processes > 1:
        torch.set_num_threads(1)  # small models: two processes of one thread beat one of two
    stages = build_stage_configs(config)
    run = RunDirectory.open(config)
    if run.is_finished:
        console.print(f"already finished: {config.out / 'report.html'}", soft_wrap=True)
    else:
        check_input_files(config, stages)
        run.create()
        rows = build_from_files(config, stages) if config.corpus else build_small_world(config, stages)
        run.finish(lambda folder: write_result_rows(folder / "results.json", rows))
    print_report_tables(read_result_rows(config.out / "results.json"))
    console.print(f"report: {write_report(config.out)}", soft_wrap=True)
    return config.out


def build_small_world(config: RunConfig, stages: dict[str, Any]) -> list[ResultRow]:
    """Demonstrations and rankings by simulated labelers, every model, every evaluation."""
    world = World(config.seed)
    files = write_world(config, world, stages["exam"])
    pretrain.main(stages["pretrain"])
    sft.main(stages["start"])
    rank_candidates(config, world, stages["candidates"], files)
    reward.main(stages["reward"])
    sft.main(stages["sft"])
    run_processes(config.processes, [(ppo.main, (stages[name],)) for name in ("ppo", "ppo_ptx")])
    return evaluate_small_world(config, world, stages, files)


def build_from_files(config: RunConfig, stages: dict[str, Any]) -> list[ResultRow]:
    """Every model from people's own text, demonstrations and rankings; what can be measured where nobody knows the truth."""
    if unused := [name for name in ("sft", "candidates", "exam") if name in config.stages]:
        console.print(f"[bold]run[/] sections about the small world are not used: {', '.join(unused)}")
    pretrain.main(stages["pretrain"])
    sft.main(stages["start"])
    reward.main(stages["reward"])
    files = get_input_files(config)
    prompts = [
        Prompt(prompt=record.prompt, messages=record.messages)
        for record in read_all_records(Prompt, files["prompts"], SkippedLines())
    ]
    write_records(
        files["ppo"][0], [prompt for prompt in prompts if not is_heldout(prompt.text)]
    )  # the others are for judging
    policies = [name for name in ("ppo", "ppo_ptx") if name in stages]
    run_processes(config.processes, [(ppo.main, (stages[name],)) for name in policies])
    reward_model = load_reward_model(stages["reward"].out, pick_device(config.device))
    validation_rankings = read_all_records(Ranking, stages["reward"].validation or files["rankings"], SkippedLines())
    rows = measure_reward_model(
        reward_model,
        [ranking for ranking in validation_rankings if stages["reward"].validation or is_heldout(ranking.prompt)],
    )
    models = {"base": stages["pretrain"].out, "sft": stages["start"].out} | {
        name: stages[name].out for name in policies
    }
    preference_file = config.out / "evaluation" / "preference" / "rankings.jsonl"
    max_tokens = stages["ppo_ptx"].max_tokens
    return rows + compare_models_with_reward_model(
        reward_model, models, prompts, preference_file, max_tokens=max_tokens, seed=config.seed, device=config.device
    )


# --- the small world's part --------------------------------------------------------------------------------------


def write_world(config: RunConfig, world: World, exam: ExamConfig) -> dict[str, Path]:
    """Corpus, prompts and demonstrations of the small world as files. Returns where everything is, or will be."""
    files = get_world_files(config.out / "world")
    counts = {"reward": config.ranking_prompts, "ppo": config.ppo_prompts, "validation": 300, "test": exam.prompts}
    if not files["demonstrations"].exists():
        console.print(
            f"[bold]world[/] writes {config.words:,} words and {sum(counts.values()):,} prompts from seed {config.seed}"
        )
        write_records(files["corpus"], world.documents(config.words))
        for split, count in counts.items():
            write_records(files[split], world.prompts(split, count))
        training_labelers = build_labelers(config, world, "training")
        write_records(
            files["demonstrations"], training_labelers.demonstrate(world.prompts("sft", config.demonstration_prompts))
        )
    return files


def rank_candidates(config: RunConfig, world: World, sampling: CandidatesConfig, files: dict[str, Path]) -> None:
    """Simulated labelers rank completions: the training cohort those of the reward prompts, both cohorts those of validation prompts."""
    if files["heldout_rankings"].exists():
        return
    training_candidates, validation_candidates = sample_candidates(config, sampling, files)
    training_labelers = build_labelers(config, world, "training")
    write_records(files["rankings"], training_labelers.rank(training_candidates))
    evaluation_labelers = build_labelers(config, world, "training", purpose="evaluation")
    heldout_labelers = build_labelers(config, world, "heldout")
    write_records(
        files["heldout_rankings"],
        evaluation_labelers.rank(validation_candidates) + heldout_labelers.rank(validation_candidates),
    )


def sample_candidates(
    config: RunConfig, sampling: CandidatesConfig, files: dict[str, Path]
) -> tuple[list[list[Completion]], list[list[Completion]]]:
    """Completions to rank, a list for each time a prompt was asked: of the reward prompts, and of the validation prompts."""
    folder, jobs = files["reward"].parent, list[ProcessJob]()
    for name, prompts in (("candidates", files["reward"]), ("heldout_candidates", files["validation"])):
        with_strays = sampling.strays and name == "candidates"  # accuracy is measured on what models say by themselves
        for part in range(config.processes):
            out = folder / f"{name}-{part}-of-{config.processes}.jsonl"
            settings = sampling.model_copy(update={"out": out, "prompts": prompts, "part": part, "strays": with_strays})
            jobs.append((sample_candidate_completions, (settings, config.seed)))
    run_processes(config.processes, jobs)
    return (
        CandidatesConfig.read_parts(folder, f"candidates-*-of-{config.processes}.jsonl"),
        CandidatesConfig.read_parts(folder, f"heldout_candidates-*-of-{config.processes}.jsonl"),
    )


def build_labelers(
    config: RunConfig, world: World, cohort: Cohort, purpose: Literal["training", "evaluation"] = "training"
) -> Labelers:
    """Who writes and ranks: simulated people, asked at once or at a site."""
    if config.through_site:
        return SiteLabelers(config.out / "site", world, cohort, config.labelers, config.seed, purpose)
    return SimulatedLabelers(world, cohort, per_prompt=config.labelers, seed=config.seed)


def evaluate_small_world(
    config: RunConfig, world: World, stages: dict[str, Any], files: dict[str, Path]
) -> list[ResultRow]:
    """Every model answers the exam and is judged; the reward model is measured on held-out rankings, its score against true utility."""
    exam, evaluation_folder = stages["exam"], config.out / "evaluation"
    jobs: list[ProcessJob] = []
    for model in _EVALUATED_MODELS:
        folder = config.out / ("base" if model == "prompted" else model)
        jobs.append(
            (examine_model, (model, folder, evaluation_folder / f"{model}.jsonl", config.seed, exam, config.device))
        )
    run_processes(config.processes, jobs)
    rows = world_exam.grade_exams(evaluation_folder, _EVALUATED_MODELS, world, exam, config.seed)
    reward_model = load_reward_model(stages["reward"].out, pick_device(config.device))
    rows += measure_reward_model(reward_model, read_records(Ranking, files["heldout_rankings"]))
    points = [
        point
        for name in ("ppo", "ppo_ptx")
        for point in world_exam.compute_overoptimization_curve(name, config.out / name, world, stages[name].batch)
    ]
    write_records(evaluation_folder / "over_optimisation.jsonl", points)
    return rows


def examine_model(model: str, folder: Path, out: Path, seed: int, exam: ExamConfig, device: str) -> None:
    """Put the exam to one model, in a process of its own."""
    world_exam.run_exam(model, folder, out, World(seed), exam, seed, device, primed=model == "prompted")
    console.print(f"[bold]evaluation[/] {model} has answered")
