"""The paper from start to end. Each step makes one directory; finished directories are skipped.

    instructgpt run --preset demo --out runs/demo                                            the embedded small world
    instructgpt run --config recipes/real-small.yaml --data FOLDER --out runs/real-small     your own files

In the small world, simulated labelers write demonstrations and rank. With your own files, people have done so already.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from instructgpt.config import StageConfig, make_config
from instructgpt.data.splits import is_heldout
from instructgpt.distributed.launch import ProcessJob, run_processes
from instructgpt.evaluate import world_exam
from instructgpt.evaluate.candidate_sampling import read_candidate_parts, sample_candidate_completions
from instructgpt.evaluate.configs import CandidatesConfig, ExamConfig
from instructgpt.evaluate.inference import EvaluatedModel
from instructgpt.evaluate.metrics import preference
from instructgpt.evaluate.reward.metrics import measure
from instructgpt.evaluate.reward.scores import attach_reward_scores, ranks_by_score, score_with_lengths
from instructgpt.label.simulation.site_labelers import SiteLabelers
from instructgpt.models.policy import context_length, pick_device
from instructgpt.models.reward_model import ScalarModel, load_reward_model
from instructgpt.records import (
    Cohort,
    Completion,
    Demonstration,
    Document,
    Labelers,
    Prompt,
    Ranking,
    Record,
    SkippedLines,
    read_all_records,
    read_records,
    write_records,
)
from instructgpt.report.page import write_report
from instructgpt.report.terminal import print_report_tables
from instructgpt.results import ResultRow, merge_result_rows, read_result_rows, with_judge, write_result_rows
from instructgpt.run.configs import RunConfig
from instructgpt.run.directory import RunDirectory, console
from instructgpt.sampling.completions import generate, retokenize_for
from instructgpt.train import ppo, pretrain, reward, sft
from instructgpt.train.configs import PPOConfig, PretrainConfig, RewardConfig, SFTConfig
from instructgpt.world import SimulatedLabelers, World

_EVALUATED_MODELS = ("base", "prompted", "sft", "ppo", "ppo_ptx")
"""Models of the small world; `prompted` is the base model with a few answered prompts before each prompt."""
_MAX_HELDOUT_PROMPTS = 200
_REWARD_MODEL_JUDGE = "reward model"
"""Labeler of the rankings on your own files, and condition of their win rates."""


def main(config: RunConfig) -> Path:
    """Run every unfinished step and write the report. Return the run directory."""
    if config.processes > 1:
        torch.set_num_threads(1)  # with small models, two processes of one thread beat one process of two threads
    stages = build_stage_configs(config)
    run = RunDirectory.open(config)
    if run.is_finished:
        console.print(f"already finished: {config.out / 'report.html'}", soft_wrap=True)
    else:
        check_input_files(config, stages)
        run.create()
        rows = build_from_files(config, stages) if config.corpus else build_small_world(config, stages)
        results_path = config.out / "results.json"
        earlier_rows = read_result_rows(results_path) if results_path.exists() else []  # added by `evaluate`
        rows = merge_result_rows(earlier_rows, rows)
        run.finish(lambda folder: write_result_rows(folder / "results.json", rows))
    print_report_tables(read_result_rows(config.out / "results.json"))
    console.print(f"report: {write_report(config.out)}", soft_wrap=True)
    return config.out


def build_small_world(config: RunConfig, stages: dict[str, Any]) -> list[ResultRow]:
    """Train and evaluate every model of the paper with simulated labelers."""
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
    """Train every model on your own files, and measure what needs no ground truth."""
    if unused := [name for name in ("sft", "candidates", "exam") if name in config.stages]:
        console.print(f"[bold]run[/] ignoring sections of the small world: {', '.join(unused)}")
    pretrain.main(stages["pretrain"])
    sft.main(stages["start"])
    reward.main(stages["reward"])
    files = get_input_files(config)
    records = read_all_records(Prompt, files["prompts"], SkippedLines())
    prompts = [Prompt.model_validate(record.prompt_columns()) for record in records]
    write_records(files["ppo"][0], [prompt for prompt in prompts if not is_heldout(prompt.prompt)])
    policies = [name for name in ("ppo", "ppo_ptx") if name in stages]
    run_processes(config.processes, [(ppo.main, (stages[name],)) for name in policies])
    reward_model = load_reward_model(stages["reward"].out, pick_device(config.device))
    rankings = read_all_records(Ranking, stages["reward"].validation or files["rankings"], SkippedLines())
    if not stages["reward"].validation:
        rankings = [ranking for ranking in rankings if is_heldout(ranking.prompt)]
    rows = measure_reward_model(reward_model, rankings)
    models = {"base": stages["pretrain"].out, "sft": stages["start"].out}
    models |= {name: stages[name].out for name in policies}
    file = config.out / "evaluation" / "preference" / "rankings.jsonl"
    settings = {"max_tokens": stages["ppo_ptx"].max_tokens, "seed": config.seed, "device": config.device}
    return rows + compare_models_with_reward_model(reward_model, models, prompts, file, **settings)


# --- configuration and files of each stage -----------------------------------------------------------------------


def build_stage_configs(config: RunConfig) -> dict[str, Any]:
    """Return the config of every stage by section, before the first stage starts, so that mistakes show at once.

    Raises:
        InputError: a section has an option that does not exist or has no effect.
    """
    base, start, reward_model = (config.out / name for name in ("base", "start", "reward"))
    files = get_input_files(config)
    processes = {"processes": config.processes}
    corpus, demonstrations = {"corpus": files["corpus"]}, {"data": files["demonstrations"]}
    rankings = {"data": files["rankings"], "demonstrations": files["demonstrations"]}
    start_settings = {"base": str(base), "pretraining": files["corpus"]} | demonstrations
    ppo_settings = {"policy": str(start), "reward": reward_model, "prompts": files["ppo"]}
    # section: (config class, directory, options that the pipeline sets)
    sections: dict[str, tuple[type[StageConfig], str, dict[str, Any]]] = {
        "pretrain": (PretrainConfig, "base", corpus | processes),
        "start": (SFTConfig, "start", start_settings | (processes if config.corpus else {})),
        "reward": (RewardConfig, "reward", {"base": str(start)} | rankings | processes),
        "ppo_ptx": (PPOConfig, "ppo_ptx", {"pretraining": files["corpus"]} | ppo_settings),
    }
    if not config.corpus or "ppo" in config.stages:
        sections["ppo"] = (PPOConfig, "ppo", ppo_settings)
    if not config.corpus:
        sections["sft"] = (SFTConfig, "sft", {"base": str(base), "reward": reward_model} | demonstrations)
        candidates = {"policy": str(start), "base": str(base), "prompts": config.out, "parts": config.processes}
        sections["candidates"] = (CandidatesConfig, "world", candidates)
    stages: dict[str, Any] = {"exam": make_config(ExamConfig, config.stages.get("exam", {}), source="section exam")}
    for section, (config_class, directory, settings) in sections.items():
        common = {name: getattr(config, name) for name in ("seed", "device", "resume", "track")}
        common["out"] = config.out / directory
        layers = (common, settings, config.stages.get(section, {}))
        stages[section] = make_config(config_class, *layers, source=f"section {section}")
    return stages


def get_input_files(config: RunConfig) -> dict[str, tuple[Path, ...]]:
    """Return the input files of the stages, which the small world may still have to write."""
    if not config.corpus:
        return {name: (file,) for name, file in get_world_files(config.out / "world").items()}
    names = ("corpus", "demonstrations", "rankings")
    files = {name: tuple(config.data / path for path in getattr(config, name)) for name in names}
    prompts = tuple(config.data / path for path in config.prompts) or files["demonstrations"]
    return files | {"prompts": prompts, "ppo": (config.out / "prompts" / "training.jsonl",)}


def check_input_files(config: RunConfig, stages: dict[str, Any]) -> None:
    """Read your own files once before the first stage, so that a bad line does not fail hours later.

    Raises:
        InputError: a file is missing, or a line is bad and its stage has no --skip-bad.
    """
    if not config.corpus:
        return
    files = get_input_files(config)
    readers: dict[str, tuple[type[Record], str]] = {
        "corpus": (Document, "pretrain"),
        "demonstrations": (Demonstration, "start"),
        "rankings": (Ranking, "reward"),
        "prompts": (Prompt, "ppo_ptx"),
    }
    for name, (record_class, stage) in readers.items():
        read_all_records(record_class, files[name], SkippedLines(getattr(stages[stage], "skip_bad", False)))


def get_world_files(folder: Path) -> dict[str, Path]:
    names = ("corpus", "demonstrations", "rankings", "heldout_rankings", "reward", "ppo", "validation", "test")
    return {name: folder / f"{name}.jsonl" for name in names}


# --- the small world ---------------------------------------------------------------------------------------------


def write_world(config: RunConfig, world: World, exam: ExamConfig) -> dict[str, Path]:
    """Write corpus, prompts and demonstrations of the small world. Return all its files by name."""
    files = get_world_files(config.out / "world")
    counts = {"reward": config.ranking_prompts, "ppo": config.ppo_prompts, "validation": 300, "test": exam.prompts}
    if not files["demonstrations"].exists():
        prompt_count = sum(counts.values())
        console.print(f"[bold]world[/] writing {config.words:,} words, {prompt_count:,} prompts, seed {config.seed}")
        write_records(files["corpus"], world.documents(config.words))
        for split, count in counts.items():
            write_records(files[split], world.prompts(split, count))
        labelers = build_labelers(config, world, "training")
        # The last file, so that its presence means that all are complete.
        demonstrations = labelers.demonstrate(world.prompts("sft", config.demonstration_prompts))
        write_records(files["demonstrations"], demonstrations)
    return files


def rank_candidates(config: RunConfig, world: World, sampling: CandidatesConfig, files: dict[str, Path]) -> None:
    """Let the training cohort rank completions of reward prompts, and both cohorts those of validation prompts."""
    if files["heldout_rankings"].exists():
        return
    candidates, heldout_candidates = sample_candidates(config, sampling, files)
    write_records(files["rankings"], build_labelers(config, world, "training").rank(candidates))
    rankings = build_labelers(config, world, "training", purpose="evaluation").rank(heldout_candidates)
    rankings += build_labelers(config, world, "heldout").rank(heldout_candidates)
    write_records(files["heldout_rankings"], rankings)


def sample_candidates(
    config: RunConfig, sampling: CandidatesConfig, files: dict[str, Path]
) -> tuple[list[list[Completion]], list[list[Completion]]]:
    """Sample completions to rank, one list per ranking task: of the reward prompts, and of the validation prompts."""
    folder, jobs = files["reward"].parent, list[ProcessJob]()
    for name, prompts in (("candidates", files["reward"]), ("heldout_candidates", files["validation"])):
        strays = sampling.strays and name == "candidates"  # accuracy is measured on the models' own completions only
        for part in range(config.processes):
            out = folder / f"{name}-{part}-of-{config.processes}.jsonl"
            settings = sampling.model_copy(update={"out": out, "prompts": prompts, "part": part, "strays": strays})
            jobs.append((sample_candidate_completions, (settings, config.seed)))
    run_processes(config.processes, jobs)
    return (
        read_candidate_parts(folder, f"candidates-*-of-{config.processes}.jsonl"),
        read_candidate_parts(folder, f"heldout_candidates-*-of-{config.processes}.jsonl"),
    )


def build_labelers(
    config: RunConfig, world: World, cohort: Cohort, purpose: Literal["training", "evaluation"] = "training"
) -> Labelers:
    """Return simulated labelers that answer directly, or over a labelers' site with --through-site."""
    if config.through_site:
        return SiteLabelers(config.out / "site", world, cohort, config.labelers, config.seed, purpose)
    return SimulatedLabelers(world, cohort, per_prompt=config.labelers, seed=config.seed)


def evaluate_small_world(config: RunConfig, world: World, stages: Any, files: dict[str, Path]) -> list[ResultRow]:
    """Grade every model's exam, and measure the reward model on held-out rankings and against true utility."""
    exam, folder = stages["exam"], config.out / "evaluation"
    jobs: list[ProcessJob] = []
    for model in _EVALUATED_MODELS:
        model_folder = config.out / ("base" if model == "prompted" else model)
        jobs.append((examine_model, (model, model_folder, folder / f"{model}.jsonl", config.seed, exam, config.device)))
    run_processes(config.processes, jobs)
    rows = world_exam.grade_exams(folder, _EVALUATED_MODELS, world, exam, config.seed)
    reward_model = load_reward_model(stages["reward"].out, pick_device(config.device))
    rows += measure_reward_model(reward_model, read_records(Ranking, files["heldout_rankings"]))
    points = [
        point
        for name in ("ppo", "ppo_ptx")
        for point in world_exam.compute_overoptimization_curve(name, config.out / name, world, stages[name].batch)
    ]
    write_records(folder / "over_optimisation.jsonl", points)
    return rows


def examine_model(model: str, folder: Path, out: Path, seed: int, exam: ExamConfig, device: str) -> None:
    world_exam.run_exam(model, folder, out, World(seed), exam, seed, device, primed=model == "prompted")
    console.print(f"[bold]evaluation[/] {model} has finished its exam")


# --- your own files ----------------------------------------------------------------------------------------------


def measure_reward_model(reward_model: ScalarModel, rankings: Sequence[Ranking]) -> list[ResultRow]:
    """Measure accuracy by cohort and source, length baseline and agreement. Skip completions that are too long."""
    return measure(attach_reward_scores(rankings, partial(score_with_lengths, reward_model))[0])


def compare_models_with_reward_model(
    reward_model: ScalarModel,
    models: Mapping[str, Path],
    prompts: Sequence[Prompt],
    out: Path,
    *,
    max_tokens: int,
    seed: int,
    device: str,
) -> list[ResultRow]:
    """Rank one completion per model and held-out prompt by score. Return win rates against `sft`.

    PPO was trained against this very judge, so its win rate shows that PPO did its work, not that people would agree.
    """
    texts: dict[str, list[str]] = {}
    scores: dict[str, list[float]] = {}
    finish: dict[str, list[Literal["stop", "length"]]] = {}
    heldout: list[Prompt] = []
    for name, folder in models.items():
        model = EvaluatedModel.load(name, folder, pick_device(device))
        if not heldout:  # chosen by the first model, so that all models get the same prompts
            limit = context_length(model.lm) - max_tokens
            candidates = (prompt for prompt in prompts if is_heldout(prompt.prompt))
            fitting = [prompt for prompt in candidates if len(model.tokenizer.encode_prompt(prompt)) <= limit]
            heldout = fitting[:_MAX_HELDOUT_PROMPTS]
        completions = generate(model.lm, model.tokenizer, heldout, max_tokens=max_tokens, seed=seed)
        texts[name] = [completion.text for completion in completions]
        finish[name] = ["stop" if completion.finished else "length" for completion in completions]
        scores[name] = reward_model.score(retokenize_for(reward_model.tokenizer, model.tokenizer, completions)).tolist()
    rankings = [
        Ranking(
            prompt=prompt.prompt,
            completions=tuple(texts[name][index] for name in models),
            ranks=ranks_by_score([scores[name][index] for name in models]),
            labeler=_REWARD_MODEL_JUDGE,
            models=tuple(models),
            finish=tuple(finish[name][index] for name in models),
        )
        for index, prompt in enumerate(heldout)
    ]
    write_records(out, rankings)
    return with_judge(preference.measure(rankings, judge=_REWARD_MODEL_JUDGE), _REWARD_MODEL_JUDGE) if rankings else []
