"""The paper from start to end. Each line of `build` makes one directory; a finished directory is not made again.

    instructgpt run --preset demo --out runs/demo                                            the embedded small world
    instructgpt run --config recipes/real-small.yaml --data FOLDER --out runs/real-small     your own files

In the small world simulated labelers write the demonstrations and rank; with files, people already did. A preset or a
configuration file has a section for `run` and one for each stage: pretrain, start (the PPO starting point), reward, sft
(the SFT baseline), ppo, ppo_ptx.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field

from instructgpt.config import WITHOUT_TRAINING, StageConfig, did_you_mean, make_config
from instructgpt.data.split import held_out
from instructgpt.evaluate import small_world
from instructgpt.evaluate.candidates import CandidatesConfig, gather_candidates
from instructgpt.evaluate.own_files import judged_by_reward_model, score_rankings
from instructgpt.evaluate.rows import Row, read_rows, write_rows
from instructgpt.evaluate.small_world import Exam
from instructgpt.label.through import SiteLabelers
from instructgpt.models.load import pick_device
from instructgpt.models.scalar import load_reward_model
from instructgpt.records import (
    Cohort,
    Demonstration,
    Document,
    Labelers,
    Prompt,
    Ranking,
    Record,
    Skipped,
    read_all,
    read_records,
    write_records,
)
from instructgpt.report.page import write_report
from instructgpt.report.table import show
from instructgpt.run import Run, console
from instructgpt.train import ppo, pretrain, reward, sft
from instructgpt.train.parallel import Job, side_by_side
from instructgpt.world import SimulatedLabelers, World

STAGES = ("pretrain", "start", "candidates", "reward", "sft", "ppo", "ppo_ptx", "exam")
MODELS = ("base", "prompted", "sft", "ppo", "ppo_ptx")


class RunConfig(StageConfig):
    """The whole paper. Sizes of the small world, or files; what the stages are told stands in the file's other sections."""

    stage: ClassVar[str] = "run"
    lacks: ClassVar[frozenset[str]] = WITHOUT_TRAINING

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
    through_site: bool = Field(False, description="simulated labelers work over HTTP on a labelers' site of this run; its exports go on")
    processes: int = Field(2, ge=1, description="processes that work side by side (CPU)")
    stages: dict[str, dict[str, Any]] = Field({}, description="what each stage is told")

    def inert(self) -> Any:
        """Files come together; sections must be of stages that exist."""
        for name in ("demonstrations", "rankings"):
            if bool(self.corpus) != bool(getattr(self, name)):
                yield f"--corpus, --demonstrations and --rankings belong together; --{name if self.corpus else 'corpus'} is missing"
        for name in ("data", "prompts"):
            if name in self.model_fields_set and not self.corpus:
                yield f"--{name} has no effect without --corpus"
        if self.through_site and self.corpus:
            yield "--through-site has no effect with --corpus: people already worked"
        for name in self.stages.keys() - set(STAGES):
            yield f"no stage '{name}'{did_you_mean(name, STAGES)}; sections can be run, {', '.join(STAGES)}"


def main(config: RunConfig) -> Path:
    """Build everything, or what is still missing. Returns the directory."""
    if config.processes > 1:
        torch.set_num_threads(1)  # small models: two processes of one thread beat one of two
    stages = plan(config)
    run = Run.start(config)
    if run.finished:
        console.print(f"already finished: {config.out / 'report.html'}")
    else:
        check_files(config, stages)
        run.begin()
        rows = build_from_files(config, stages) if config.corpus else build_small_world(config, stages)
        run.finish(lambda folder: write_rows(folder / "results.json", rows))
    show(read_rows(config.out / "results.json"))
    console.print(f"report: {write_report(config.out)}")
    return config.out


def plan(config: RunConfig) -> dict[str, Any]:
    """The configuration of every stage, by its directory, made before the first one starts: a mistake in a section shows at once.

    Raises:
        BadInput: a section says something that does not exist, or that would have no effect.
    """
    base, start, reward_model = (config.out / name for name in ("base", "start", "reward"))
    files = input_files(config)
    shared = {"processes": config.processes}
    both = {"policy": str(start), "reward": reward_model, "prompts": files["ppo"]}
    told: dict[str, tuple[type[StageConfig], str, dict[str, Any]]] = {
        "base": (pretrain.PretrainConfig, "pretrain", {"corpus": files["corpus"], **shared}),
        "start": (
            sft.SFTConfig,
            "start",
            {"base": str(base), "data": files["demonstrations"], "pretraining": files["corpus"]} | (shared if config.corpus else {}),
        ),
        "reward": (
            reward.RewardConfig,
            "reward",
            {"base": str(start), "data": files["rankings"], "demonstrations": files["demonstrations"], **shared},
        ),
        "ppo_ptx": (ppo.PPOConfig, "ppo_ptx", {"pretraining": files["corpus"], **both}),
    }
    if not config.corpus or "ppo" in config.stages:
        told["ppo"] = (ppo.PPOConfig, "ppo", both)
    if not config.corpus:
        told["sft"] = (sft.SFTConfig, "sft", {"base": str(base), "data": files["demonstrations"], "reward": reward_model})
        told["world"] = (
            CandidatesConfig, "candidates", {"policy": str(start), "base": str(base), "prompts": config.out, "parts": config.processes}
        )  # fmt: skip
    stages: dict[str, Any] = {"exam": make_config(Exam, config.stages.get("exam", {}), where="section exam")}
    for name, (kind, section, known) in told.items():
        place = {name: getattr(config, name) for name in ("seed", "device", "resume", "track")} | {"out": config.out / name}
        stages[name] = make_config(kind, place, known, config.stages.get(section, {}), where=f"section {section}")
    return stages


def input_files(config: RunConfig) -> dict[str, tuple[Path, ...]]:
    """Where the stages' input is, or will be: files of the small world, or people's."""
    if not config.corpus:
        return {name: (file,) for name, file in world_files(config.out / "world").items()}
    files = {name: tuple(config.data / path for path in getattr(config, name)) for name in ("corpus", "demonstrations", "rankings")}
    asked = tuple(config.data / path for path in config.prompts) or files["demonstrations"]
    return files | {"prompts": asked, "ppo": (config.out / "prompts" / "training.jsonl",)}


def check_files(config: RunConfig, stages: dict[str, Any]) -> None:
    """Read people's files once before anything starts, so that no bad line waits hours for its stage.

    Raises:
        BadInput: a file is missing, or a line of it is wrong and its stage was not told --skip-bad.
    """
    if not config.corpus:
        return
    files = input_files(config)
    kinds: dict[str, tuple[type[Record], str]] = {
        "corpus": (Document, "base"),
        "demonstrations": (Demonstration, "start"),
        "rankings": (Ranking, "reward"),
        "prompts": (Prompt, "ppo_ptx"),
    }
    for name, (kind, stage) in kinds.items():
        read_all(kind, files[name], Skipped() if getattr(stages[stage], "skip_bad", False) else None)


def build_small_world(config: RunConfig, stages: dict[str, Any]) -> list[Row]:
    """Demonstrations and rankings by simulated labelers, every model, every evaluation."""
    out, world, exam = config.out, World(config.seed), stages["exam"]
    files = write_world(config, world, exam)
    pretrain.main(stages["base"])
    sft.main(stages["start"])
    rank_candidates(config, world, stages["world"], files)
    reward.main(stages["reward"])
    sft.main(stages["sft"])
    side_by_side(config.processes, [(ppo.main, (stages[name],)) for name in ("ppo", "ppo_ptx")])
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
    judge = load_reward_model(stages["reward"].out, pick_device(config.device))
    rows += score_rankings(judge, read_records(Ranking, files["heldout_rankings"]))
    policies = ("ppo", "ppo_ptx")
    points = [point for name in policies for point in small_world.over_optimisation(name, out / name, world, stages[name].batch)]
    write_records(answered / "over_optimisation.jsonl", points)
    return rows


def build_from_files(config: RunConfig, stages: dict[str, Any]) -> list[Row]:
    """Every model from people's own text, demonstrations and rankings."""
    if unused := [name for name in ("sft", "candidates", "exam") if name in config.stages]:
        console.print(f"[bold]run[/] sections about the small world are not used: {', '.join(unused)}")
    pretrain.main(stages["base"])
    sft.main(stages["start"])
    reward.main(stages["reward"])
    policies = [name for name in ("ppo", "ppo_ptx") if name in stages]
    files = input_files(config)
    prompts = [Prompt(prompt=one.prompt, messages=one.messages) for one in read_all(Prompt, files["prompts"], Skipped())]
    write_records(files["ppo"][0], [prompt for prompt in prompts if not held_out(prompt.text)])  # the others are for judging
    side_by_side(config.processes, [(ppo.main, (stages[name],)) for name in policies])
    judge = load_reward_model(stages["reward"].out, pick_device(config.device))
    fresh = read_all(Ranking, stages["reward"].validation or files["rankings"], Skipped())
    rows = score_rankings(judge, [ranking for ranking in fresh if stages["reward"].validation or held_out(ranking.prompt)])
    models = {"base": stages["base"].out, "sft": stages["start"].out} | {name: stages[name].out for name in policies}
    answers = config.out / "evaluation" / "preference" / "rankings.jsonl"
    most = stages["ppo_ptx"].max_tokens
    return rows + judged_by_reward_model(judge, models, prompts, answers, max_tokens=most, seed=config.seed, device=config.device)


# --- the small world's part --------------------------------------------------------------------------------------


def world_files(folder: Path) -> dict[str, Path]:
    """Where everything of the small world is, or will be."""
    names = ("corpus", "demonstrations", "rankings", "heldout_rankings", "reward", "ppo", "validation", "test")
    return {name: folder / f"{name}.jsonl" for name in names}


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
    """Sample completions of the reward prompts and have simulated labelers of both cohorts rank them."""
    if files["heldout_rankings"].exists():
        return
    jobs: list[Job] = []
    for name, prompts in (("candidates", files["reward"]), ("heldout_candidates", files["validation"])):
        strays = sampling.strays and name == "candidates"  # accuracy is measured on what models say by themselves
        for part in range(config.processes):
            out = prompts.parent / f"{name}-{part}-of-{config.processes}.jsonl"
            settings = sampling.model_copy(update={"out": out, "prompts": prompts, "part": part, "strays": strays})
            jobs.append((gather_candidates, (settings, config.seed)))
    side_by_side(config.processes, jobs)
    training, measuring, heldout = (
        labelers(config, world, "training"),
        labelers(config, world, "training", purpose="evaluation"),
        labelers(config, world, "heldout"),
    )
    known, fresh = (
        CandidatesConfig.read_parts(files["reward"].parent, f"{name}-*-of-{config.processes}.jsonl")
        for name in ("candidates", "heldout_candidates")
    )
    write_records(files["rankings"], training.rank(known))
    validation: list[Ranking] = measuring.rank(fresh) + heldout.rank(fresh)
    write_records(files["heldout_rankings"], validation)


def labelers(config: RunConfig, world: World, cohort: Cohort, purpose: Literal["training", "evaluation"] = "training") -> Labelers:
    """Who writes and ranks: simulated people, asked at once or at a site."""
    if config.through_site:
        return SiteLabelers(config.out / "site", world, cohort, config.labelers, config.seed, purpose)
    return SimulatedLabelers(world, cohort, per_prompt=config.labelers, seed=config.seed)


def question_one(model: str, folder: Path, out: Path, seed: int, exam: Exam, device: str) -> None:
    """Put the exam to one model, in a process of its own."""
    small_world.question(model, folder, out, World(seed), exam, seed, device, primed=model == "prompted")
    console.print(f"[bold]evaluation[/] {model} has answered")
