"""The paper from start to end. Each line of `build` makes one directory; a finished directory is not made again.

    instructgpt run --preset demo --out runs/demo                                            the embedded small world
    instructgpt run --config recipes/real-small.yaml --data FOLDER --out runs/real-small     your own files

In the small world simulated labelers write the demonstrations and rank; with files, people already did. A preset or a
configuration file has a section for `run` and one for each stage: pretrain, start (the PPO starting point), reward, sft
(the SFT baseline), ppo, ppo_ptx.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import Field

from instructgpt.config import StageConfig, make_config
from instructgpt.errors import BadInput, RunFailed
from instructgpt.evaluate import small_world
from instructgpt.evaluate.candidates import CandidatesConfig, gather_candidates
from instructgpt.evaluate.rows import Row, read_rows, write_rows
from instructgpt.evaluate.small_world import Exam
from instructgpt.records import Ranking, write_records
from instructgpt.report.page import write_report
from instructgpt.report.table import show
from instructgpt.run import Run, console
from instructgpt.train import ppo, pretrain, reward, sft
from instructgpt.world import SimulatedLabelers, World

STAGES = ("pretrain", "start", "candidates", "reward", "sft", "ppo", "ppo_ptx", "exam")
MODELS = ("base", "prompted", "sft", "ppo", "ppo_ptx")


class RunConfig(StageConfig):
    """The whole paper. Sizes of the small world, or files; what the stages are told stands in the file's other sections."""

    stage: ClassVar[str] = "run"

    out: Path = Field(Path("runs/demo"), description="the directory that holds every stage's directory")
    data: Path = Field(Path(), description="folder in which the files named in a configuration file are found")
    corpus: tuple[Path, ...] = Field((), description="pretraining text; without it the small world writes its own")
    demonstrations: tuple[Path, ...] = Field((), description="demonstrations, with --corpus")
    rankings: tuple[Path, ...] = Field((), description="rankings, with --corpus")
    prompts: tuple[Path, ...] = Field((), description="prompts for PPO, with --corpus; without it those of the demonstrations")
    words: int = Field(3_000_000, ge=1000, description="words of the small world's corpus")
    demonstration_prompts: int = Field(400, ge=10, description="prompts of the small world that labelers demonstrate")
    ranking_prompts: int = Field(3000, ge=10, description="prompts of the small world whose completions labelers rank")
    ppo_prompts: int = Field(3000, ge=10, description="prompts of the small world that PPO answers")
    labelers: int = Field(3, ge=1, description="simulated labelers who rank the completions of each prompt")
    processes: int = Field(2, ge=1, description="processes that work side by side (CPU)")
    stages: dict[str, dict[str, Any]] = Field({}, description="what each stage is told")

    def inert(self) -> Any:
        """Files come together; sections must be of stages that exist."""
        for name in ("demonstrations", "rankings"):
            if bool(self.corpus) != bool(getattr(self, name)):
                yield f"--corpus, --demonstrations and --rankings belong together; --{name if self.corpus else 'corpus'} is missing"
        for name in self.stages.keys() - set(STAGES):
            yield f"no stage '{name}'; sections can be run, {', '.join(STAGES)}"


def main(config: RunConfig) -> Path:
    """Build everything, or what is still missing. Returns the directory."""
    if config.processes > 1:
        torch.set_num_threads(1)  # small models: two processes of one thread beat one of two
    run = Run.start(config)
    if run.finished:
        console.print(f"already finished: {config.out / 'report.html'}")
    else:
        build = build_from_files if config.corpus else build_small_world
        rows = build(config)
        run.finish(lambda folder: write_rows(folder / "results.json", rows))
    show(read_rows(config.out / "results.json"))
    console.print(f"report: {write_report(config.out)}")
    return config.out


def build_small_world(config: RunConfig) -> list[Row]:
    """Demonstrations and rankings by simulated labelers, every model, every evaluation."""
    out, world = config.out, World(config.seed)
    exam = make_exam(config)
    files = write_world(config, world, out / "world")
    base = make(pretrain, config, "base", "pretrain", corpus=(files["corpus"],), processes=config.processes)
    start = make(sft, config, "start", "start", base=str(base), data=(files["demonstrations"],), pretraining=(files["corpus"],))
    rank_candidates(config, world, base, start, files)
    reward_model = make(
        reward, config, "reward", "reward", base=str(start), data=(files["rankings"],), demonstrations=(files["demonstrations"],),
        processes=config.processes,
    )  # fmt: skip
    make(sft, config, "sft", "sft", base=str(base), data=(files["demonstrations"],), reward=reward_model)
    both = {"policy": str(start), "reward": reward_model, "prompts": (files["ppo"],)}
    side_by_side(
        config.processes,
        [
            (ppo.main, (stage_config(ppo, config, "ppo", "ppo", **both),)),
            (ppo.main, (stage_config(ppo, config, "ppo_ptx", "ppo_ptx", pretraining=(files["corpus"],), **both),)),
        ],
    )
    answered = out / "evaluation"
    jobs = [
        (
            question_one,
            (model, out / ("base" if model == "prompted" else model), answered / f"{model}.jsonl", config.seed, exam, config.device),
        )
        for model in MODELS
    ]
    side_by_side(config.processes, jobs)
    rows = small_world.judge_all(answered, MODELS, world, exam, config.seed)
    rows += small_world.examine_reward_model(reward_model, files["heldout_rankings"], config.device)
    batch = stage_config(ppo, config, "ppo", "ppo", **both).batch
    points = [point for model in ("ppo", "ppo_ptx") for point in small_world.over_optimisation(model, out / model, world, batch)]
    write_records(answered / "over_optimisation.jsonl", points)
    return rows


def build_from_files(config: RunConfig) -> list[Row]:
    """Every model from people's own text, demonstrations and rankings; reward-model scores on prompts no stage trained on."""
    paths = {
        name: tuple(config.data / path for path in getattr(config, name)) for name in ("corpus", "demonstrations", "rankings", "prompts")
    }
    base = make(pretrain, config, "base", "pretrain", corpus=paths["corpus"], processes=config.processes)
    start = make(
        sft, config, "start", "start", base=str(base), data=paths["demonstrations"], pretraining=paths["corpus"], processes=config.processes
    )
    reward_model = make(
        reward, config, "reward", "reward", base=str(start), data=paths["rankings"], demonstrations=paths["demonstrations"],
        processes=config.processes,
    )  # fmt: skip
    both = {"policy": str(start), "reward": reward_model, "prompts": paths["prompts"] or paths["demonstrations"]}
    jobs = [(ppo.main, (stage_config(ppo, config, "ppo_ptx", "ppo_ptx", pretraining=paths["corpus"], **both),))]
    if "ppo" in config.stages:
        jobs.append((ppo.main, (stage_config(ppo, config, "ppo", "ppo", **both),)))
    side_by_side(config.processes, jobs)
    return []


# --- the small world's part --------------------------------------------------------------------------------------


def write_world(config: RunConfig, world: World, folder: Path) -> dict[str, Path]:
    """Corpus, prompts and demonstrations of the small world as files. Returns where everything is, or will be."""
    names = ("corpus", "demonstrations", "rankings", "heldout_rankings", "reward", "ppo", "validation", "test")
    files = {name: folder / f"{name}.jsonl" for name in names}
    counts = {"reward": config.ranking_prompts, "ppo": config.ppo_prompts, "validation": 300, "test": make_exam(config).prompts}
    if not files["demonstrations"].exists():
        console.print(f"[bold]world[/] writes {config.words:,} words and {sum(counts.values()):,} prompts from seed {config.seed}")
        write_records(files["corpus"], world.documents(config.words))
        for split, count in counts.items():
            write_records(files[split], world.prompts(split, count))
        people = SimulatedLabelers(world, "training", seed=config.seed)
        write_records(files["demonstrations"], people.demonstrate(world.prompts("sft", config.demonstration_prompts)))
    return files


def rank_candidates(config: RunConfig, world: World, base: Path, start: Path, files: dict[str, Path]) -> None:
    """Sample completions of the reward prompts and have simulated labelers of both cohorts rank them."""
    if files["heldout_rankings"].exists():
        return
    told = config.stages.get("candidates", {})
    jobs = []
    for name, prompts in (("candidates", files["reward"]), ("heldout_candidates", files["validation"])):
        for part in range(config.processes):
            settings = make_config(
                CandidatesConfig,
                {"out": prompts.parent / f"{name}-{part}.jsonl", "seed": config.seed, "device": config.device},
                {"policy": str(start), "base": str(base), "prompts": prompts, "part": part, "parts": config.processes},
                told,
            )
            jobs.append((gather_candidates, (settings, config.seed)))
    side_by_side(config.processes, jobs)
    training = SimulatedLabelers(world, "training", per_prompt=config.labelers, seed=config.seed)
    heldout = SimulatedLabelers(world, "heldout", per_prompt=config.labelers, seed=config.seed)
    known, fresh = (CandidatesConfig.read_parts(files["reward"].parent, name) for name in ("candidates", "heldout_candidates"))
    write_records(files["rankings"], training.rank(known))
    validation: list[Ranking] = training.rank(fresh) + heldout.rank(fresh)
    write_records(files["heldout_rankings"], validation)


def question_one(model: str, folder: Path, out: Path, seed: int, exam: Exam, device: str) -> None:
    """Put the exam to one model, in a process of its own."""
    small_world.question(model, folder, out, World(seed), exam, seed, device, primed=model == "prompted")
    console.print(f"[bold]evaluation[/] {model} has answered")


def make_exam(config: RunConfig) -> Exam:
    """How much is asked.

    Raises:
        BadInput: the section says something that does not exist.
    """
    unknown = config.stages.get("exam", {}).keys() - Exam.model_fields.keys()
    if unknown:
        raise BadInput(f"section exam: unknown option '{sorted(unknown)[0]}'")
    return Exam(**config.stages.get("exam", {}))


# --- making stages -----------------------------------------------------------------------------------------------


def stage_config(stage: Any, config: RunConfig, directory: str, section: str, **files: Any) -> Any:
    """The configuration of a stage: what the pipeline knows, and what its section says."""
    kinds: dict[Any, type[StageConfig]] = {
        ppo: ppo.PPOConfig, pretrain: pretrain.PretrainConfig, reward: reward.RewardConfig, sft: sft.SFTConfig
    }  # fmt: skip
    known = {"out": config.out / directory, "seed": config.seed, "device": config.device, "resume": config.resume}
    return make_config(kinds[stage], known, files, config.stages.get(section, {}))


def make(stage: Any, config: RunConfig, directory: str, section: str, **files: Any) -> Path:
    """Run one stage, or find it finished. Returns its directory."""
    made: Path = stage.main(stage_config(stage, config, directory, section, **files))
    return made


def side_by_side(processes: int, jobs: Sequence[tuple[Callable[..., Any], tuple[Any, ...]]]) -> None:
    """Run jobs in separate processes, `processes` at a time; one alone runs here.

    Raises:
        RunFailed: a process died. What a job raised is raised again.
    """
    if processes == 1 or len(jobs) == 1:
        for function, arguments in jobs:
            function(*arguments)
        return
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        running = [pool.submit(function, *arguments) for function, arguments in jobs]
        try:
            for one in running:
                one.result()
        except BrokenProcessPool as error:
            raise RunFailed(
                "a helping process died, likely killed for want of memory; the same command goes on, --processes 1 needs less"
            ) from error
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
