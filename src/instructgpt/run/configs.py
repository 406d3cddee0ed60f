"""Options of the commands that run the pipeline or read a run directory, and of `completion`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from instructgpt.config import TRAINING_ONLY_FIELDS, CommandConfig, StageConfig, did_you_mean

BASELINE_SECTIONS = ("public_tasks", "dpo", "expert_iteration", "best_of_n")
"""Methods of `run --baselines`, which train on what PPO trains on."""
STAGE_SECTIONS = (
    *("pretrain", "start", "candidates", "reward_pretrain", "reward", "sft", "start_samples", "ppo", "ppo_ptx"),
    *(*BASELINE_SECTIONS, "exam"),
)


class RunConfig(StageConfig):
    """Options of the whole pipeline: sizes of the small world, or your own files.

    A preset or configuration file has a section for `run` and one for each of STAGE_SECTIONS: `start` is the starting
    point of PPO, `sft` the SFT baseline, `candidates` the completions to rank, `exam` the evaluation; those of
    BASELINE_SECTIONS are the methods that --baselines adds. With a section `reward_pretrain` the reward model has a
    trunk of its own; what that section leaves out is as in `pretrain`. `start_samples` are those of --overoptimization.
    """

    stage: ClassVar[str] = "run"
    consists_of_stages: ClassVar[bool] = True
    excluded_fields: ClassVar[frozenset[str]] = TRAINING_ONLY_FIELDS

    out: Path = Field(Path("runs/demo"), description="directory of all stage directories")
    base: str | None = Field(
        None,
        description="model to start at, instead of pretraining one: a directory or a hub name; --corpus is optional",
    )
    auto_bf16: bool = Field(False, description="compute in bf16 on a GPU, and in float32 on a CPU")
    data: Path = Field(Path(), description="folder of the files that a configuration file names")
    corpus: tuple[Path, ...] = Field((), description="pretraining text; without it, the small world writes its own")
    demonstrations: tuple[Path, ...] = Field((), description="demonstrations, with --corpus or --base")
    rankings: tuple[Path, ...] = Field((), description="rankings, with --corpus or --base")
    prompts: tuple[Path, ...] = Field(
        (), description="prompts for PPO, with --corpus or --base (else the demonstrations')"
    )
    words: int = Field(3_000_000, ge=1000, description="words of the small world's corpus")
    demonstration_prompts: int = Field(400, ge=10, description="prompts of the small world that labelers demonstrate")
    ranking_prompts: int = Field(3000, ge=10, description="prompts of the small world whose completions labelers rank")
    ppo_prompts: int = Field(3000, ge=10, description="prompts of the small world for PPO")
    refusals: float = Field(
        0.0,
        ge=0,
        le=0.5,
        description="share of the small world's training prompts that ask for insults or harm, or look like it, with "
        "and without a list of forbidden uses",
    )
    labelers: int = Field(3, ge=1, description="simulated labelers who rank the completions of each prompt")
    labeler_noise: float | None = Field(
        None, ge=0, description="standard deviation of their noise on an answer's utility; default: the world's, 1.2"
    )
    through_site: bool = Field(False, description="let simulated labelers work over HTTP on a labelers' site")
    rounds: int = Field(
        1, ge=1, description="times that candidates, rankings, reward model and PPO repeat; each round has a directory"
    )
    reward_base: Literal["start", "base"] = Field(
        "start", description="initial trunk of the reward model: the SFT start of PPO, or the base model"
    )
    round_reward: Literal["all", "newest", "continued"] = Field(
        "all",
        description="the reward model of a round: from --reward-base on the rankings of all rounds, or on the newest "
        "alone, or the last round's model continued on the newest",
    )
    round_policy: Literal["start", "continued"] = Field(
        "start",
        description="where PPO of a round begins: at the SFT start, or at the last round's policy; the reference is "
        "the SFT start in both",
    )
    one_round_control: bool = Field(
        False, description="with --rounds, also spend as many rankings in one round, to compare"
    )
    baselines: bool = Field(
        False,
        description="also train DPO, expert iteration, best of n and SFT on public tasks, and draw the frontier; with your "
        "own files, a reward model of the other half of the rankings is the judge",
    )
    overoptimization: Literal["best_of_n", "ppo", "ppo_ptx"] | None = Field(
        None,
        description="end after the reward model, and measure how far this method drives its score and the truth apart, "
        "instead of training and examining all models",
    )
    processes: int = Field(2, ge=1, description="processes to run in parallel (CPU)")
    stages: dict[str, dict[str, Any]] = Field({}, description="options of each stage")

    @property
    def has_files(self) -> bool:
        """Whether the run is made from people's files, not in the small world."""
        return bool(self.corpus) or self.base is not None

    def ineffective_options(self) -> Iterator[str]:
        start = "base" if self.base is not None else "corpus"
        for name in ("demonstrations", "rankings"):
            if self.has_files != bool(getattr(self, name)):
                missing = name if self.has_files else "corpus (or --base)"
                yield f"--{start}, --demonstrations and --rankings belong together; --{missing} is missing"
        for name in ("data", "prompts"):
            if name in self.model_fields_set and not self.has_files:
                yield f"--{name} has no effect without --corpus or --base"
        if self.through_site and self.has_files:
            yield f"--through-site has no effect with --{start}: people have already labeled"
        if self.base is not None and "pretrain" in self.stages:
            yield "section pretrain has no effect with --base, which is where the run starts"
        if self.has_files and not self.corpus and "ppo_ptx" in self.stages:
            yield "section ppo_ptx needs pretraining text; add --corpus, or name the section ppo"
        for name in ("rounds", "round_reward", "round_policy", "one_round_control"):
            flag = f"--{name.replace('_', '-')}"
            if name in self.model_fields_set and self.has_files:
                yield f"{flag} has no effect with --{start}: each round needs labelers who rank new completions"
            elif name in self.model_fields_set and name != "rounds" and self.rounds == 1:
                yield f"{flag} has no effect without --rounds 2 or more"
        if self.baselines and self.rounds > 1 and not self.has_files:
            yield "--baselines has no effect with --rounds 2 or more; run it with one round"
        if self.baselines and self.has_files and not self.stages.get("public_tasks", {"data": True}).get("data"):
            yield "section public_tasks needs 'data' with your own files: demonstrations of public tasks"
        for name in BASELINE_SECTIONS:
            if name in self.stages and not self.baselines:
                yield f"section {name} has no effect without --baselines"
        yield from self._ineffective_overoptimization()
        for name in self.stages.keys() - set(STAGE_SECTIONS):
            sections = ", ".join(("run", *STAGE_SECTIONS))
            yield f"no stage '{name}'{did_you_mean(name, STAGE_SECTIONS)}; valid sections: {sections}"

    def _ineffective_overoptimization(self) -> Iterator[str]:
        """Report options that have no effect with --overoptimization, or without it, and a second trunk."""
        if self.labeler_noise is not None and (self.has_files or self.through_site):
            yield "--labeler-noise has no effect with your own files or --through-site"
        if "reward_pretrain" in self.stages and self.has_files:
            yield "section reward_pretrain has no effect with your own files; train the reward model with 'reward'"
        if "reward_pretrain" in self.stages and "reward_base" in self.model_fields_set:
            yield "--reward-base has no effect with a section reward_pretrain, which makes the trunk"
        if self.overoptimization is None:
            if "start_samples" in self.stages:
                yield "section start_samples has no effect without --overoptimization"
            return
        if self.has_files:
            yield "--overoptimization has no effect with your own files: only in the small world is the truth known"
        if self.rounds > 1 or self.baselines:
            yield "--overoptimization measures one method in one round; leave --rounds and --baselines out"


class ReportConfig(CommandConfig):
    stage: ClassVar[str] = "report"

    run: tuple[Path, ...] = Field(
        min_length=1, description="a run directory, or files of results (and run directories) for one page"
    )
    out: Path | None = Field(
        None,
        description="file of the page; default: report.html in the run directory, comparison.html beside several, or a "
        "page beside the first file of results",
    )
    language: Literal["en", "ko"] = Field("en", description="language of the page")


class CostConfig(CommandConfig):
    stage: ClassVar[str] = "cost"

    run: tuple[Path, ...] = Field(min_length=1, description="run directories, or directories of stages")
    labels: tuple[Path, ...] = Field(
        (),
        description="folders or files of 'label export' with demonstrations and rankings; default: those that the "
        "stages were trained on",
    )
    prices: Path | None = Field(
        None,
        description="YAML file of your prices: currency, machine_hour, gpu_hour, kwh, labeler_hour, each optional",
    )
    watts: float | None = Field(
        None, gt=0, description="power of the machine (of a GPU each), where no counter measured the energy"
    )


class DoctorConfig(CommandConfig):
    stage: ClassVar[str] = "doctor"

    run: Path = Field(description="a run directory, or the directory of one stage")


class WatchConfig(CommandConfig):
    stage: ClassVar[str] = "watch"

    run: Path = Field(description="a run directory, or the directory of one stage")
    every: float = Field(2.0, gt=0, description="seconds between refreshes")
    once: bool = Field(False, description="print once and exit")


class CompletionConfig(CommandConfig):
    stage: ClassVar[str] = "completion"

    shell: Literal["bash", "zsh", "fish"] = Field(description="shell to complete for: bash, zsh or fish")
